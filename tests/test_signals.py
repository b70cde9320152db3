"""Whoever asks a run to stop is heard, at any moment; what was done is saved, and one line says so."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import AS_FROM_A_TERMINAL, begun

from lora_np import stopping
from lora_np.adaptation import Interrupted
from lora_np.progress import watch

cli = importlib.import_module("lora_np.cli.main")  # the package gives its name to the function

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX knows them")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """The dispositions a command starts with, and afterwards those of the tests."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stopping._asked.clear()


def raised(number: int) -> bool:
    """Does this signal interrupt what runs?"""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_every_signal_interrupts_unless_it_was_to_be_ignored(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    stopping.heed()
    assert raised(number)
    assert stopping.asked()
    signal.signal(number, signal.SIG_IGN)
    stopping.heed()
    assert not raised(number)
    assert not stopping.asked()


def test_sigterm_interrupts_a_job_in_the_background_where_sigint_is_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping.heed()
    assert not raised(signal.SIGINT)
    assert raised(signal.SIGTERM)


def test_the_second_signal_lets_the_first_one_save_and_the_third_does_not_wait() -> None:
    stopping.heed()
    assert [raised(signal.SIGINT) for _ in range(4)] == [True, False, True, True]


def test_a_signal_that_was_swallowed_interrupts_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    stopping.heed()
    steps = watch(iter(range(9)), "step", 9)
    assert next(iter(steps)) == 0
    with contextlib.suppress(KeyboardInterrupt):  # as in a destructor, where Python prints it and goes on
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(iter(steps))
    assert "step 1/9" in capsys.readouterr().err


def test_when_the_work_is_over_no_signal_reaches_its_last_line() -> None:
    stopping.heed()
    stopping.disregard()
    assert not any(raised(number) for number in stopping.SIGNALS)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (Interrupted(3), "interrupted after step 3; --resume continues"),
        (ImportError("numpy could not be imported"), "interrupted"),  # what some libraries make of Ctrl-C
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_interrupt_is_one_line_whatever_it_was_turned_into(
    error: BaseException, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    stopping._asked.append(signal.SIGINT)
    assert cli.code_of(["params"]) == 130
    assert capsys.readouterr().err == f"lora-np: {line}\n"


# in the first second: an import of NumPy that says so, and takes as long as it needs to

SLOW = """
import sys, time
class Slow:
    def find_spec(self, name, *_):
        if name == "numpy":
            print("importing", flush=True)
            try: time.sleep(60)
            except BaseException: print("swallowed", flush=True)
sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_the_imports_ends_in_one_line_and_cannot_be_swallowed(
    tmp_path: Path, sent: signal.Signals
) -> None:
    with begun("params", "gpt3", cwd=tmp_path, before=AS_FROM_A_TERMINAL + SLOW) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(sent)
        said, error = process.communicate(timeout=60)
    assert (process.returncode, said, error) == (130, "", "lora-np: interrupted\n")
