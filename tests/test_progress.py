"""A run shows that it is alive: a bar on a terminal, plain lines anywhere else, and never anything on stdout."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from lora_np import progress
from lora_np.progress import LINES_EVERY, describe, watch


class Screen(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def screen(monkeypatch: pytest.MonkeyPatch, on_a_terminal: bool = True) -> Screen:
    """Stderr becomes a terminal for the rest of the test that calls this; after a fixture pytest captures anew."""
    shown = Screen()
    if on_a_terminal:
        monkeypatch.setattr(sys, "stderr", shown)
    return shown


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that `progress` reads: the number in the list."""
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_every_item_passes_unchanged_and_only_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, on_a_terminal: bool
) -> None:
    screen(monkeypatch, on_a_terminal)
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    watched = watch(items(), "step", 5)
    assert made == []
    assert next(watched) == 0
    assert made == [0]
    assert list(watched) == [1, 2, 3, 4]


def test_without_a_terminal_the_first_and_the_last_are_a_line_each(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    list(watch("abcdef", "step", show=str.upper))
    assert lines(capsys) == ["step 1/6: A", "step 6/6: F"]


def test_between_them_is_a_line_every_few_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in watch(range(1, 101), "step"):
        clock[0] += LINES_EVERY / 10
    numbers = [int(line.split()[1].split("/")[0]) for line in lines(capsys)]
    assert numbers[0] == 1
    assert numbers[-1] == 100
    assert all(later - earlier in (10, 11) for earlier, later in pairwise(numbers[:-1]))


def test_a_resumed_run_counts_on_from_what_was_done(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    list(watch(iter("abc"), "step", total=10, done=7))
    assert lines(capsys) == ["step 8/10", "step 10/10"]


def test_a_total_that_is_not_known_is_not_shown(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    list(watch(iter("abc"), "case"))
    assert lines(capsys) == ["case 1"]


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_nothing_to_do_shows_nothing_that_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_a_terminal: bool
) -> None:
    shown = screen(monkeypatch, on_a_terminal)
    assert list(watch([], "step")) == []
    assert lines(capsys) == []
    assert shown.getvalue().split("\r")[-1].strip() == ""


def test_on_a_terminal_it_is_a_bar_that_is_gone_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = screen(monkeypatch)
    watched = watch(range(4), "step", show=lambda item: f"item {item}")
    assert next(watched) == 0
    list(watched)
    assert "step:" in shown.getvalue()
    assert "/4" in shown.getvalue()
    assert "\n" not in shown.getvalue()
    assert shown.getvalue().split("\r")[-1].strip() == ""
    assert lines(capsys) == []


def test_a_bar_starts_where_a_resumed_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch)
    watched = watch(iter("abc"), "step", total=10, done=7)
    next(watched)
    assert "7/10" in shown.getvalue()
    list(watched)


def test_a_bar_is_taken_down_when_its_reader_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch)
    watched: Any = watch(range(100), "step")
    next(watched)
    watched.close()
    assert shown.getvalue().split("\r")[-1].strip() == ""


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_an_error_of_what_is_watched_passes_through(monkeypatch: pytest.MonkeyPatch, on_a_terminal: bool) -> None:
    screen(monkeypatch, on_a_terminal)

    def items() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(watch(items(), "step", 2))


def test_a_training_record_is_described_by_its_loss_and_speed() -> None:
    assert describe(SimpleNamespace(loss=1.23456, tokens=3000, seconds=0.25)) == "loss 1.2346, 12,000 tokens/s"
