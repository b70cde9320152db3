"""The pictures of tutorial 09: what was measured is what is drawn, with its chance level beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lora_np.figures.learned import beside_chance, nearest_directions, norms_beside

CURVE, CHANCE, SPREAD = np.array([0.3, 0.2, 0.5]), np.array([0.1, 0.2, 0.3]), np.array([0.01, 0.02, 0.03])
ROWS = {"rank 4": (0.4, 0.8, 7.0, 9.0), "rank 16": (1.4, 2.0, 12.0, 9.5)}
COSINES = {"LoRA": [np.array([0.9, 0.2]), np.array([0.7, 0.4])], "full": [np.array([1.0, 0.9]), np.array([0.9, 0.9])]}


def lines(axes: Any) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def test_a_curve_stands_beside_its_chance_level_with_two_standard_deviations() -> None:
    [axes] = beside_chance({"reads": CURVE}, CHANCE, SPREAD, "i").axes
    drawn = lines(axes)
    assert drawn["reads"] == CURVE.tolist()
    assert drawn["by chance, ± 2 standard deviations"] == CHANCE.tolist()
    [band] = axes.collections
    corners = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([corners.min(), corners.max()], [0.08, 0.36])
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_ylim()[0]) == ("i", "φ (no unit)", 0.0)


def test_every_norm_has_its_mark_and_its_name() -> None:
    figure = norms_beside(ROWS)
    [axes] = figure.axes
    marks = [list(line.get_xdata()) for line in axes.get_lines()]
    assert marks == [list(column) for column in zip(*ROWS.values(), strict=True)]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ROWS)
    assert len(figure.legends[0].get_texts()) == 4
    assert axes.get_xscale() == "log"


def test_the_nearest_directions_are_drawn_by_map_and_on_average() -> None:
    [axes] = nearest_directions(COSINES, threshold=0.5).axes
    drawn = lines(axes)
    np.testing.assert_allclose(drawn["LoRA"], [0.8, 0.3])
    assert drawn["below: an intruder"] == [0.5, 0.5]
    dots = [line.get_ydata() for line in axes.get_lines() if line.get_marker() == "."]
    assert [list(one) for one in dots] == [[0.9, 0.2, 0.7, 0.4], [1.0, 0.9, 0.9, 0.9]]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: beside_chance({}, CHANCE, SPREAD, "i"),
        lambda: beside_chance({"a": CURVE[:2]}, CHANCE, SPREAD, "i"),
        lambda: beside_chance({"a": CURVE}, CHANCE, SPREAD[:2], "i"),
        lambda: norms_beside({}),
        lambda: norms_beside({"a": (0.0, 1.0, 1.0, 1.0)}),
        lambda: nearest_directions({}, 0.5),
        lambda: nearest_directions({"a": []}, 0.5),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match=r"needs"):
        draw()
