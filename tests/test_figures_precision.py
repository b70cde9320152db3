"""The laws of `figures.precision`: what was measured is what is drawn, and nothing is drawn out of nothing."""

from __future__ import annotations

from typing import Any

import pytest

from lora_np.figures import precision as figures
from lora_np.precision import NF4


def lines(figure: Any) -> dict[str, list[float]]:
    [axes] = figure.axes
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def test_every_level_has_its_mark() -> None:
    [axes] = figures.levels({"nf4": list(NF4)}).axes
    assert list(next(line for line in axes.get_lines() if line.get_label() == "nf4").get_xdata()) == list(NF4)


def test_what_is_swallowed_is_drawn_in_percent() -> None:
    figure = figures.swallowed({"nf4": [(0.01, 1.0), (0.1, 0.25)], "int8": [(0.01, 0.5), (0.1, 0.0)]})
    assert lines(figure) == {"nf4": [100.0, 25.0], "int8": [50.0, 0.0]}


def test_bars_are_as_high_as_the_errors() -> None:
    [axes] = figures.merges({"int8": {"a": 0.5, "b": 0.1}, "nf4": {"a": 2.0, "b": 0.2}}).axes
    assert [bar.get_height() for bars in axes.containers for bar in bars] == pytest.approx([50, 200, 10, 20])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["int8", "nf4"]
    assert axes.get_yscale() == "log"


def test_a_drift_is_drawn_cycle_by_cycle() -> None:
    figure = figures.drifts({"float16": [0.0, 0.5], "kept": [0.0, 0.0]})
    assert lines(figure) == {"float16": [0.0, 50.0], "kept": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("draw", "nothing"),
    [
        (figures.levels, {}), (figures.levels, {"nf4": []}), (figures.swallowed, {}), (figures.swallowed, {"nf4": []}),
        (figures.merges, {}), (figures.merges, {"int8": {"a": 1.0}, "nf4": {"b": 1.0}}), (figures.drifts, {}),
        (figures.drifts, {"a": [0.0], "b": [0.0, 0.1]}),
    ],
)  # fmt: skip
def test_nothing_is_drawn_out_of_nothing(draw: Any, nothing: Any) -> None:
    with pytest.raises(ValueError, match=r"need|point"):
        draw(nothing)
