"""The laws of `figures.merging`: what was measured is what is drawn, and a zero is said rather than lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lora_np.figures import merging as figures
from lora_np.proofs import MapProof

PROOFS = {
    "float32": [
        MapProof("blocks.0.attention.query", 1e-6, 1e-4, 2.0),
        MapProof("blocks.0.attention.value", 0.0, 2e-4, 3.0),
    ],
    "float64": [
        MapProof("blocks.0.attention.query", 1e-15, 1e-13, 2.0),
        MapProof("blocks.0.attention.value", 2e-15, 2e-13, 3.0),
    ],
}
EPSILONS = {"float16": 1e-3, "float32": 1e-7, "float64": 1e-16}


def lines(figure: Any) -> dict[str, list[float]]:
    [axes] = figure.axes
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def test_gaps_and_bounds_of_every_map_are_drawn() -> None:
    figure = figures.precisions(PROOFS)
    drawn = lines(figure)
    assert drawn["effect |adapted − base|"] == [2.0, 3.0]
    for name, maps in PROOFS.items():
        assert drawn[f"bound, {name}"] == [proof.bound for proof in maps]
        assert drawn[f"measured, {name}"] == pytest.approx([proof.gap or np.nan for proof in maps], nan_ok=True)
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.attention.query", "0.attention.value"]
    assert axes.get_yscale() == "log"


def test_the_signature_has_a_guide_that_is_proportional_to_epsilon() -> None:
    gaps = {"correct": [1e-2, 1e-5, 1e-14], "scale 1.01": [0.1, 0.1, 0.1]}
    figure = figures.signature(gaps, EPSILONS)
    drawn = lines(figure)
    assert {name: drawn[name] for name in gaps} == gaps
    assert drawn["proportional to ε"] == pytest.approx([0.1, 1e-5, 1e-14])
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{n}\n{e:.1e}" for n, e in EPSILONS.items()]


def test_a_drift_of_zero_is_drawn_at_the_edge_and_said_to_be_zero() -> None:
    figure = figures.drifts({"in place": [1e-8, 2e-8, 4e-8], "kept": [0.0, 0.0, 0.0]})
    drawn = lines(figure)
    assert drawn["in place"] == [1e-8, 2e-8, 4e-8]
    [axes] = figure.axes
    assert drawn["kept: exactly 0"] == [axes.get_ylim()[0]] * 3
    assert axes.get_xlabel() == "updates put in and taken out (log scale)"


def test_margins_stand_beside_the_gaps() -> None:
    margins, gaps = np.array([1.0, 2.0]), {"float32": np.array([1e-5, 0.0])}
    drawn = lines(figures.confidence(margins, gaps))
    assert drawn["margin: best − second best logit"] == [1.0, 2.0]
    assert drawn["2 × change by merging, float32"] == pytest.approx([1e-5, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.precisions({}),
        lambda: figures.precisions({"float32": []}),
        lambda: figures.signature({}, EPSILONS),
        lambda: figures.signature({"correct": [1.0]}, EPSILONS),
        lambda: figures.drifts({}),
        lambda: figures.drifts({"kept": [0.0]}),
        lambda: figures.confidence([], {}),
        lambda: figures.confidence([1.0], {"float32": []}),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match=r"at least one|there must be one"):
        draw()
