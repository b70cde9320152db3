"""Pictures of tutorial 07: gaps beside their bounds, the signature of rounding, a drift, and how sure a token is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import COLOURS, GREY, MARKERS, _figure, _legend, _look

if TYPE_CHECKING:
    from ..proofs import MapProof


def precisions(proofs: Mapping[str, Sequence[MapProof]]) -> Any:
    r"""For every adapted map: the measured gap and its bound in each precision, and what the adapter itself changes.

    proofs  {precision: one proof for each map, in the same order}; logarithmic, so a gap of zero has no mark
    Raises ValueError when there is nothing to draw.
    """
    if not proofs or not all(proofs.values()):
        raise ValueError("a picture of gaps needs at least one precision and one map")
    first = next(iter(proofs.values()))
    places = range(len(first))
    with _figure(6.6, 4.6) as figure:
        axes = figure.add_subplot()
        effect = {"color": "#000000", "marker": "_", "markersize": 18, "linestyle": "none", "markeredgewidth": 2}
        axes.plot(places, [proof.effect for proof in first], label="effect |adapted − base|", **effect)
        for i, (name, maps) in enumerate(proofs.items()):
            look = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": "none"}
            bounds = [proof.bound for proof in maps]
            axes.vlines(places, [max(p.gap, p.bound * 1e-6) for p in maps], bounds, color="#d0d0d0", zorder=1)
            axes.plot(places, bounds, label=f"bound, {name}", **look | {"markerfacecolor": "white"})
            axes.plot(places, [proof.gap or float("nan") for proof in maps], label=f"measured, {name}", **look)
        axes.set_yscale("log")
        axes.set_xticks(list(places), [proof.path.removeprefix("blocks.") for proof in first], rotation=30, ha="right")
        axes.set(xlabel="adapted map (block, part)", ylabel="largest difference of outputs\n(log scale)")
        _legend(figure, columns=3)
    return figure


def signature(gaps: Mapping[str, Sequence[float]], epsilons: Mapping[str, float]) -> Any:
    r"""The gap between adapted and merged logits against the machine epsilon, one line for each way to merge.

    gaps  {label: one gap for each precision}       epsilons  {precision: ε}
    A guide of slope 1 starts at the last point of the first line. Raises ValueError when the lengths differ.
    """
    if not gaps or any(len(values) != len(epsilons) for values in gaps.values()):
        raise ValueError(f"each line needs one gap for each of the {len(epsilons)} precisions, and there must be one")
    sizes = list(epsilons.values())
    with _figure(5.8, 4.0) as figure:
        axes = figure.add_subplot()
        for i, (label, values) in enumerate(gaps.items()):
            axes.plot(sizes, values, label=label, **_look(i))
        anchor, size = next(iter(gaps.values()))[-1], sizes[-1]
        guide = [anchor * epsilon / size for epsilon in sizes]
        axes.plot(sizes, guide, color=GREY, linestyle=":", linewidth=1.3, label="proportional to ε")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, [f"{name}\n{epsilon:.1e}" for name, epsilon in epsilons.items()])
        axes.minorticks_off()
        axes.set_xlim(min(sizes) / 10.0, max(sizes) * 10.0)
        axes.set(xlabel="precision, and its ε (log scale)", ylabel="largest difference of logits (log scale)")
        _legend(figure, columns=3)
    return figure


def drifts(curves: Mapping[str, Sequence[float]]) -> Any:
    r"""How far a matrix has moved from its start against the number of updates put in and taken out again.

    curves  {label: the drift after cycle 1, 2, ...}; both axes are logarithmic, and a curve that is zero throughout
            is drawn along the lower edge
    Raises ValueError when there is no curve, or none above zero.
    """
    above = [value for values in curves.values() for value in values if value > 0]
    if not above:
        raise ValueError("a picture of drifts needs at least one curve that leaves zero")
    lowest = min(above) / 5.0
    with _figure(6.0, 4.3) as figure:
        axes = figure.add_subplot()
        for i, (label, values) in enumerate(curves.items()):
            cycles = range(1, len(values) + 1)
            marks = sorted({round(10 ** (k / 2)) - 1 for k in range(9)} & set(range(len(values))))
            drawn = values if any(values) else [lowest] * len(values)
            name = label if any(values) else f"{label}: exactly 0"
            axes.plot(cycles, drawn, label=name, clip_on=False, markevery=marks, **_look(i))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(bottom=lowest)
        axes.set(xlabel="updates put in and taken out (log scale)", ylabel="largest |W − W at first| (log scale)")
        _legend(figure, columns=2)
    return figure


def confidence(margins: Sequence[float], gaps: Mapping[str, Sequence[float]]) -> Any:
    r"""For every generated token: by how much it was the best, and how far merging moved the logits.

    margins  best logit − second best        gaps  {precision: twice the largest change of a logit}
    A token can only change where a gap reaches the margin. Raises ValueError when the lengths differ.
    """
    if len(margins) == 0 or any(len(values) != len(margins) for values in gaps.values()):
        raise ValueError(f"each gap needs one value for each of the {len(margins)} tokens, and there must be one")
    with _figure(6.4, 4.0) as figure:
        axes = figure.add_subplot()
        places = range(1, len(margins) + 1)
        axes.plot(places, margins, label="margin: best − second best logit", **_look(0))
        for i, (name, values) in enumerate(gaps.items(), 1):
            style = _look(i) | {"markersize": 3.5}
            axes.plot(
                places, [value or float("nan") for value in values], label=f"2 × change by merging, {name}", **style
            )
        axes.set_yscale("log")
        axes.set(xlabel="generated token", ylabel="difference of logits (log scale)")
        _legend(figure, columns=2)
    return figure
