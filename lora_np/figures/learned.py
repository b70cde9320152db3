"""Pictures of tutorial 09: what is shared, amplified and new in an update, each beside what it is by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..engine.arrays import Array
from . import COLOURS, GREY, LINES, _figure, _legend, _look

SURE = 2.0  # standard deviations on each side: the band in which nineteen of twenty lie


def beside_chance(curves: Mapping[str, Array], chance: Array, spread: Array, x: str, y: str = "φ (no unit)") -> Any:
    r"""Curves over 1, 2, … and their chance level with a band of two standard deviations on each side.

    curves, chance, spread   all of one length
    Raises ValueError for none, or where the lengths differ.
    """
    if not curves or {len(curve) for curve in curves.values()} != {len(chance)} or len(spread) != len(chance):
        raise ValueError("each curve needs a chance level and a spread at each of its points, and there must be one")
    at = np.arange(1, len(chance) + 1)
    every = max(1, len(chance) // 8)
    with _figure(5.6, 3.9) as figure:
        axes = figure.add_subplot()
        for i, (name, curve) in enumerate(curves.items()):
            axes.plot(at, curve, label=name, markevery=every, **_look(i))
        axes.plot(at, chance, color=GREY, linestyle=LINES[3], label="by chance, ± 2 standard deviations")
        axes.fill_between(at, chance - SURE * spread, chance + SURE * spread, color=GREY, alpha=0.25, linewidth=0)
        axes.set_ylim(bottom=0.0)
        axes.set(xlabel=x, ylabel=y)
        _legend(figure, columns=2)
    return figure


def norms_beside(rows: Mapping[str, tuple[float, float, float, float]]) -> Any:
    r"""A row for each update: ‖UᵀWV‖ in random directions, in those of ΔW and in those of W, and ‖ΔW‖ itself.

    rows   {label: (random, own, top, update)}; logarithmic
    Raises ValueError for none, or a norm that is not above zero.
    """
    if not rows or min(min(row) for row in rows.values()) <= 0.0:
        raise ValueError("a picture of norms needs at least one row, and norms above zero")
    names = ("‖UᵀWV‖, random directions", "‖UᵀWV‖, directions of ΔW", "‖UᵀWV‖, first ones of W", "‖ΔW‖")
    with _figure(6.4, 1.6 + 0.42 * len(rows)) as figure:
        axes = figure.add_subplot()
        places = range(len(rows))
        axes.hlines(places, [min(row) for row in rows.values()], [max(row) for row in rows.values()], color="#bdbdbd")
        for i, name in enumerate(names):
            style = _look((6, 0, 1, 3)[i]) | {"linestyle": "none", "markersize": 8}
            axes.plot([row[i] for row in rows.values()], places, label=name, **style)
        axes.set_xscale("log")
        axes.set_yticks(list(places), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set(xlabel="norm of Frobenius (units of W, log scale)")
        _legend(figure, columns=2)
    return figure


def nearest_directions(cosines: Mapping[str, Sequence[Array]], threshold: float) -> Any:
    r"""For each of the largest directions of adapted weights, how near the weight before had one.

    cosines    {label: of every map, (k,)}: the mean over maps as a line, each map as a dot
    threshold  below which a direction is an intruder
    Raises ValueError for none.
    """
    if not cosines or not all(len(maps) for maps in cosines.values()):
        raise ValueError("a picture of nearest directions needs at least one label, each with at least one map")
    with _figure(5.6, 4.0) as figure:
        axes = figure.add_subplot()
        for i, (name, maps) in enumerate(cosines.items()):
            values = np.array(maps)
            at = np.arange(1, values.shape[1] + 1)
            axes.plot(at, values.mean(axis=0), label=name, **_look(i))
            place = at + 0.12 * (i - (len(cosines) - 1) / 2)
            dots = {"marker": ".", "markersize": 3.5, "linestyle": "none", "alpha": 0.6}
            axes.plot(np.tile(place, len(values)), values.ravel(), color=COLOURS[i % len(COLOURS)], **dots)
        axes.axhline(threshold, color=GREY, linestyle=LINES[1], linewidth=1.3, label="below: an intruder")
        axes.set_ylim(0.0, 1.03)
        axes.set(xlabel="j, singular directions of W0 + ΔW, the largest first", ylabel="nearest of W0 (|cosine|)")
        _legend(figure, columns=3)
    return figure
