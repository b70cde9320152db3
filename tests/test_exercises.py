"""What a wrong answer is shown: a hint, in a notebook and in a terminal, and nothing of the checker."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from lora_np import exercises
from lora_np.exercises import Hint, checker

WRONG = "from lora_np.exercises.layer import check_alpha\ncheck_alpha(16, rank=4, alpha=16, new_rank=64)\n"
SAID = "Not yet: the same α gives s = 2 at rank 64, a smaller one"


def test_every_check_gives_hints() -> None:
    checks = [
        value
        for module in pkgutil.iter_modules(exercises.__path__)
        for name, value in vars(import_module(f"lora_np.exercises.{module.name}")).items()
        if name.startswith("check_")
    ]
    assert len(checks) >= 21
    assert all(inspect.unwrap(check) is not check for check in checks)


def test_a_hint_is_an_assertion_and_keeps_nothing_of_where_it_came_from() -> None:
    @checker
    def check(answer: int) -> None:
        assert answer == 1, "one, not another"

    check(1)
    with pytest.raises(AssertionError, match="one, not another") as raised:
        check(2)
    assert isinstance(raised.value, Hint)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_a_mistake_of_the_reader_keeps_its_own_error() -> None:
    @checker
    def check(answer: object) -> None:
        answer()  # type: ignore[operator]

    with pytest.raises(ZeroDivisionError):
        check(lambda: 1 / 0)


def test_a_notebook_shows_the_sentence_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shells = pytest.importorskip("IPython.core.interactiveshell")
    config = pytest.importorskip("traitlets.config").Config()
    config.HistoryManager.enabled = False
    shell, hook = shells.InteractiveShell(config=config, ipython_dir=str(tmp_path)), sys.excepthook
    try:
        assert not shell.run_cell(WRONG).success
        shown = "".join(capsys.readouterr())
        shell.run_cell("1 / 0")
        other = "".join(capsys.readouterr())
    finally:
        sys.excepthook = hook
    assert shown.strip() == SAID
    assert "Traceback" in other


@pytest.mark.parametrize(("more", "traceback"), [("", False), ("1 / 0\n", True)])
def test_a_terminal_shows_the_sentence_alone_and_other_errors_whole(more: str, traceback: bool) -> None:
    code = f"try:\n    {WRONG.splitlines()[1]}\nexcept AssertionError:\n    {more}" if more else WRONG.splitlines()[1]
    ran = subprocess.run(
        [sys.executable, "-c", f"{WRONG.splitlines()[0]}\n{code}"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert ("ZeroDivisionError" in ran.stderr) == ("Traceback" in ran.stderr) == traceback
    assert traceback or ran.stderr.strip() == SAID
