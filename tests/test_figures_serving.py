"""The pictures of tutorials 08 and 11 hold the numbers they were given, and say what they show."""

from __future__ import annotations

import numpy as np
import pytest

from lora_np.figures import serving, verifying


def lines(figure: object, axes: int = 0) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in figure.axes[axes].lines}  # type: ignore[attr-defined]


def test_memory_is_drawn_in_megabytes_on_two_logarithmic_axes() -> None:
    figure = serving.memory((1, 10), {"a bank": [2e6, 3e6], "copies": [2e6, 9e6]})
    (axes,) = figure.axes
    assert lines(figure) == {"a bank": [2.0, 3.0], "copies": [2.0, 9.0]}
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert "MB" in axes.get_ylabel()


def test_a_mask_is_drawn_with_its_numbers_and_a_line_between_adapters() -> None:
    mask = np.array([[2.0, 2.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    figure = serving.routing(mask, ["first", "second", "none"], ["one", "one", "two"])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["2", "2", "0", "0", "0", "0.5", "0", "0", "0"]
    assert [line.get_xdata()[0] for line in axes.lines] == [1.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "two"]
    assert list(axes.get_xticks()) == [0.5, 2.0]


def test_speeds_start_at_zero() -> None:
    figure = serving.speeds((1, 4), {"mixed": [900.0, 800.0]})
    assert lines(figure) == {"mixed": [900.0, 800.0]}
    assert figure.axes[0].get_ylim()[0] == 0.0


def test_merges_are_told_apart_by_their_bound() -> None:
    figure = verifying.told_apart({"right": (1e-3, 0.9, True), "twice": (5e-4, 40.0, False)}, tolerance=7e-4)
    left, right = figure.axes
    assert [list(line.get_xdata()) for line in left.lines] == [[1e-3], [5e-4], [7e-4, 7e-4]]
    assert [list(line.get_xdata()) for line in right.lines] == [[0.9], [40.0], [1.0, 1.0]]
    assert [label.get_text() for label in left.get_yticklabels()] == ["right", "twice"]


def test_what_has_no_bound_is_written_and_not_lost() -> None:
    figure = verifying.told_apart({"right": (1e-3, 0.9, True), "a norm": (1e-2, np.inf, False)}, tolerance=1e-3)
    assert [text.get_text() for text in figure.axes[1].texts] == ["∞"]
    assert np.isnan(figure.axes[1].lines[1].get_xdata()[0])


def test_a_staircase_is_in_units_in_the_last_place() -> None:
    figure = verifying.staircase([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], unit=0.25, number=0.75)
    assert lines(figure)["w = 0.75"] == [0.0, 2.0, 4.0]


def test_errors_in_a_row_are_percents() -> None:
    figure = verifying.in_a_row({"each": [0.1, 0.5], "once": [0.1, 0.1]})
    assert lines(figure) == {"each": [10.0, 50.0], "once": [10.0, 10.0]}


@pytest.mark.parametrize(
    "draw",
    [
        lambda: serving.memory((1, 2), {}),
        lambda: serving.memory((1, 2), {"a": [1.0]}),
        lambda: serving.routing(np.zeros((2, 2)), ["a"], ["b", "c"]),
        lambda: serving.speeds((), {"a": []}),
        lambda: verifying.told_apart({}, 1.0),
        lambda: verifying.staircase([], [], 1.0, 1.0),
        lambda: verifying.staircase([1.0], [], 1.0, 1.0),
        lambda: verifying.in_a_row({"a": []}),
        lambda: verifying.in_a_row({"a": [1.0], "b": [1.0, 2.0]}),
    ],
)
def test_a_picture_of_nothing_raises(draw: object) -> None:
    with pytest.raises(ValueError, match="one"):
        draw()  # type: ignore[operator]
