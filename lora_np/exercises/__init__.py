"""Exercises of the tutorials: each check says what is wrong with a wrong answer."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")


class Hint(AssertionError):
    """What is wrong with an answer. A notebook and a terminal show the sentence alone: where it was raised is the
    source of a checker, and the hints beside it are for other answers."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"Not yet: {self}"]


def checker(check: Callable[P, None]) -> Callable[P, None]:
    """A check whose findings are hints."""

    @wraps(check)
    def checked(*answer: P.args, **about: P.kwargs) -> None:
        try:
            check(*answer, **about)
        except AssertionError as wrong:
            sys.excepthook = _without_traceback(sys.excepthook)
            raise Hint(str(wrong)) from None

    return checked


def unanswered(answer: object, task: str) -> bool:
    """Is the answer still the placeholder `...`? Then the task is printed."""
    if answer is not ...:
        return False
    print(f"Exercise: {task}")
    return True


def compare(answer: float, right: float, hints: Mapping[float, str], otherwise: str) -> None:
    """Raise AssertionError for a number that is not the right one, with the hint for this one where there is one."""
    if math.isclose(answer, right, rel_tol=1e-6):
        return
    for wrong, hint in hints.items():
        assert not math.isclose(answer, wrong, rel_tol=1e-4), f"{answer:,.6g} is not it: {hint}"
    raise AssertionError(f"{answer:,.6g} is not it: {otherwise}")


def _without_traceback(others: Callable[..., Any]) -> Callable[..., Any]:
    """A `sys.excepthook` that writes a hint as one line, and leaves all other errors to the one before it."""

    def hook(kind: type[BaseException], error: BaseException, *rest: Any) -> None:
        if isinstance(error, Hint):
            print(*error._render_traceback_(), file=sys.stderr)
        else:
            others(kind, error, *rest)

    return others if getattr(others, "__qualname__", "") == hook.__qualname__ else hook
