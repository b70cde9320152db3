"""Every check of every notebook and puzzle, on right, wrong, silly and blank answers: a sentence, and nothing else.

The right answers are those of the solutions, which are executed with the checks taken away; so a new notebook is
tested as well.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_puzzles import ANSWERS

from lora_np import exercises
from lora_np.exercises import Hint, _without_traceback, puzzles
from lora_np.handouts import exercise

FOLDER = Path(__file__).parent.parent / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]-*.ipynb"))
MODULES = [importlib.import_module(f"{exercises.__name__}.{m.name}") for m in pkgutil.iter_modules(exercises.__path__)]

Call = tuple[Callable[..., None], int, tuple[Any, ...], dict[str, Any]]


def code(path: Path) -> Iterator[str]:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])


def asked(path: Path) -> dict[str, int]:
    """The checks of a notebook, and how many of their arguments are the answer."""
    return {task.check: len(task.names) for source in code(path) if (task := exercise(source))}


CASES = [(path.stem, check) for path in NOTEBOOKS for check in asked(path)]
CASES += [("puzzles", str(number)) for number in ANSWERS]
each = pytest.mark.parametrize(("stem", "check"), CASES)


@cache
def calls(stem: str) -> dict[str, Call]:
    """How the solutions of a notebook call each check first."""
    if stem == "puzzles":
        return {str(n): (lambda answer, n=n: puzzles.check(n, answer), 1, (right,), {}) for n, right in ANSWERS.items()}
    path = FOLDER / f"{stem}.ipynb"
    wanted, found = asked(path), {}
    own = {name: (module, getattr(module, name)) for module in MODULES for name in wanted if hasattr(module, name)}

    def taking(name: str) -> Callable[..., None]:
        return lambda *answer, **about: found.setdefault(name, (own[name][1], wanted[name], answer, about)) and None

    try:
        for name, (module, _) in own.items():
            setattr(module, name, taking(name))
        namespace: dict[str, Any] = {"__name__": "solutions"}
        with contextlib.redirect_stdout(io.StringIO()):
            for source in code(FOLDER / "solutions" / path.name):
                exec(compile(source, path.name, "exec"), namespace)
    finally:
        for name, (module, check) in own.items():
            setattr(module, name, check)
    return found


def called(stem: str, check: str) -> Call:
    try:
        return calls(stem)[check]
    except ModuleNotFoundError as absent:
        pytest.skip(f"needs {absent.name}")


def spoiled(found: Any) -> Any:
    """Another result of the same kind."""
    return (
        f"{found}?" if isinstance(found, str) else 1.37 * np.asarray(found) + np.asarray(1.0, np.asarray(found).dtype)
    )


# Where most changes of a right answer are right as well, one that is not.
OTHERS: dict[str, Callable[[Any], Any]] = {"check_other_cut": lambda right: np.eye(len(right))}


def wrong(answer: Any) -> Any:
    """An answer of the same kind that is another one."""
    if callable(answer):
        return lambda *given: spoiled(answer(*given))
    if isinstance(answer, str):
        return f"{answer}?"
    if isinstance(answer, bool):
        return not answer
    if isinstance(answer, tuple | list) and answer and isinstance(answer[0], str):
        return type(answer)([*answer[:-1], "nothing.*"])
    if isinstance(answer, int | float | np.number):
        return type(answer)(1.37 * answer + 1)
    try:
        return 1.37 * np.asarray(answer, float) + 1
    except (TypeError, ValueError):
        return object()


class Evil:
    """It cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


SILLY: dict[str, Callable[[Any], Any]] = {
    "None": lambda right: None,
    "a text": lambda right: "banana",
    "NaN": lambda right: float("nan"),
    "infinity": lambda right: np.inf,
    "complex": lambda right: 1j,
    "minus one": lambda right: -1,
    "huge": lambda right: 10**30,
    "an object": lambda right: Evil(),
    "empty": lambda right: [],
    "a dict": lambda right: {},
    "ragged": lambda right: [[1.0], [1.0, 2.0]],
    "another shape": lambda right: np.zeros((2, 3, 1)),
    "objects": lambda right: np.array([None, "a"], object),
    "NaN of its shape": lambda right: np.full(np.shape(right) if not callable(right) else (), np.nan),
    "objects of its shape": lambda right: np.full(np.shape(right) if not callable(right) else (), None, object),
    "a function of nothing": lambda right: lambda: 0,
    "a function that gives None": lambda right: lambda *given: None,
    "a function that gives NaN": lambda right: lambda *given: np.nan,
    "a function that gives a text": lambda right: lambda *given: "banana",
    "a function that gives what it got": lambda right: lambda *given: given,
}


def hint(check: Callable[..., None], answer: tuple[Any, ...], about: dict[str, Any]) -> Hint:
    with pytest.raises(Hint) as raised:
        check(*answer, **about)
    return raised.value


@each
def test_a_right_answer_is_told_so_in_a_line(stem: str, check: str, capsys: pytest.CaptureFixture[str]) -> None:
    function, _, arguments, about = called(stem, check)
    function(*arguments, **about)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Right: ")


@each
def test_a_blank_answer_is_told_the_task_in_a_line(stem: str, check: str, capsys: pytest.CaptureFixture[str]) -> None:
    function, n, arguments, about = called(stem, check)
    function(*[...] * n, *arguments[n:], **about)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Exercise: ")


@each
def test_a_wrong_answer_shows_a_sentence_alone(stem: str, check: str, capsys: pytest.CaptureFixture[str]) -> None:
    function, n, arguments, about = called(stem, check)
    said = hint(function, (*map(OTHERS.get(check, wrong), arguments[:n]), *arguments[n:]), about)
    assert capsys.readouterr() == ("", "")
    assert (said.__cause__, said.__suppress_context__) == (None, True)
    assert said._render_traceback_() == [f"Not yet: {said}"]
    _without_traceback(sys.__excepthook__)(Hint, said, said.__traceback__)
    assert capsys.readouterr() == ("", f"Not yet: {said}\n")


@each
def test_a_silly_answer_is_a_wrong_one(stem: str, check: str, capsys: pytest.CaptureFixture[str]) -> None:
    function, n, arguments, about = called(stem, check)
    for silly in SILLY.values():
        answer = tuple(map(silly, arguments[:n]))
        said = str(hint(function, (*answer, *arguments[n:]), about))
        if n > 1:  # and one of several
            hint(function, (arguments[0], *answer[1:], *arguments[n:]), about)
        assert 10 < len(said) < 400
        assert "\n" not in said
        assert "0x" not in said
    assert capsys.readouterr() == ("", "")


def test_jupyter_shows_each_of_them_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shells = pytest.importorskip("IPython.core.interactiveshell")
    config = pytest.importorskip("traitlets.config").Config()
    config.HistoryManager.enabled = False
    shell, hook = shells.InteractiveShell(config=config, ipython_dir=str(tmp_path)), sys.excepthook
    try:
        for stem, check in CASES:
            with contextlib.suppress(ModuleNotFoundError):
                function, n, arguments, about = calls(stem)[check]
                answer = (*map(OTHERS.get(check, wrong), arguments[:n]), *arguments[n:])
                shell.user_ns |= {"check": function, "answer": answer, "about": about}
                assert not shell.run_cell("check(*answer, **about)").success
                assert "".join(capsys.readouterr()).strip() == f"Not yet: {hint(function, answer, about)}"
    finally:
        sys.excepthook = hook


def test_every_check_of_the_library_is_asked_for_somewhere() -> None:
    known = {name for module in MODULES for name in vars(module) if name.startswith("check_")}
    assert known == {check for stem, check in CASES if stem != "puzzles"}


def test_what_a_function_of_the_reader_raises_is_shown_without_the_lines_of_the_check() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        puzzles.check(4, lambda W, r: 1 / 0)
    modules = [entry.frame.f_globals["__name__"] for entry in raised.traceback]
    assert modules == [__name__, puzzles.__name__, exercises.__name__, __name__]
