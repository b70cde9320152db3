"""Exercises of the tutorials: each check says what is wrong with a wrong answer."""

from __future__ import annotations

import reprlib
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec

P = ParamSpec("P")
# Whose functions a check calls; any other is the reader's.
OURS = frozenset({"autograd", "lora_np", "numpy", *sys.stdlib_module_names})


class Hint(AssertionError):
    """What is wrong with an answer. A notebook and a terminal show the sentence alone: where it was raised is the
    source of a checker, and the hints beside it are for other answers."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"Not yet: {self}"]


def checker(check: Callable[P, None]) -> Callable[P, None]:
    """A check whose findings are hints.

    What fails while an answer is read is a hint as well: an answer may be anything. What a function of the reader
    raises is theirs, and shows their own lines without those of the check.
    """

    @wraps(check)
    def checked(*answer: P.args, **about: P.kwargs) -> None:
        __tracebackhide__ = True  # IPython leaves this line out
        try:
            with warnings.catch_warnings():  # what NumPy warns of shows lines of the check; the hint says what is wrong
                warnings.simplefilter("ignore")
                check(*answer, **about)
        except Exception as error:
            if own := _readers_own(error.__traceback__):
                raise error.with_traceback(own) from None
            sys.excepthook = _without_traceback(sys.excepthook)
            said = str(error) if isinstance(error, AssertionError) else _unreadable(answer, error)
            raise Hint(" ".join(said.split())) from None

    return checked


def shown(answer: object) -> str:
    """An answer in a few words, whatever it is."""
    if callable(answer) and not isinstance(answer, type):
        return "a function"
    shape = getattr(answer, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"an array of shape {shape}"
    words = " ".join(_SHORT.repr(answer).split())
    return f"something of type {type(answer).__name__}" if " at 0x" in words or len(words) > LONGEST else words


LONGEST = 120  # characters of an answer that a hint repeats
_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 60


def _unreadable(answer: tuple[Any, ...], error: Exception) -> str:
    given = ", ".join(map(shown, answer[:1]))
    first = (str(error).splitlines() or [""])[0]
    return f"{given} cannot be read as an answer: {first or type(error).__name__}"


def _readers_own(traceback: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that lies in a function of the reader's, which a check has called; None without one."""
    called = traceback.tb_next if traceback else None  # below the line that calls the check, the check itself
    place = called.tb_next if called else None
    while place and str(place.tb_frame.f_globals.get("__name__", "")).partition(".")[0] in OURS:
        place = place.tb_next
    return place


def unanswered(answer: object, task: str) -> bool:
    """Is the answer still the placeholder `...`? Then the task is printed."""
    if answer is not ...:
        return False
    print(f"Exercise: {task}")
    return True


def _without_traceback(others: Callable[..., Any]) -> Callable[..., Any]:
    """A `sys.excepthook` that writes a hint as one line, and leaves all other errors to the one before it."""

    def hook(kind: type[BaseException], error: BaseException, *rest: Any) -> None:
        if isinstance(error, Hint):
            print(*error._render_traceback_(), file=sys.stderr)
        else:
            others(kind, error, *rest)

    return others if getattr(others, "__qualname__", "") == hook.__qualname__ else hook
