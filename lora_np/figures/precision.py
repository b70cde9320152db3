"""Pictures of few bits: levels, what is swallowed, the bases of a merge, and the drift of unmerging."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import COLOURS, GREY, Curve, _figure, _from_zero, _legend, _look

HATCHES = ("", "//", "..", "xx")


def levels(books: Mapping[str, Sequence[float]]) -> Any:
    r"""The levels of each format from −1 to 1, over the normal distribution that NF4 is made for.

    books  {format: its levels, rising}; raises ValueError when there is none
    """
    if not books or not all(len(book) for book in books.values()):
        raise ValueError("a picture of levels needs at least one format with one level")
    with _figure(5.6, 3.4) as figure:
        axes = figure.add_subplot()
        grid = [-1.0 + k / 100.0 for k in range(201)]
        density = [math.exp(-0.5 * (1.8481 * x) ** 2) for x in grid]  # at ±1 the quantile at which NF4 ends
        axes.plot(grid, density, color=GREY, linewidth=1.3, label="normal density (scaled)")
        for i, (name, book) in enumerate(books.items()):
            look = {"color": COLOURS[i], "linestyle": "none", "marker": "|", "markersize": 15, "markeredgewidth": 1.4}
            axes.plot(list(book), [-0.15 - 0.22 * i] * len(book), label=name, **look)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set(xlabel="level, as a share of the largest number of its block")
        _legend(figure, columns=3)
    return figure


def swallowed(shares: Mapping[str, Curve]) -> Any:
    r"""Share of an update that leaves no trace, against its size beside the weights; one line a format.

    shares  {format: [(size, share)]}; raises ValueError when there is no line, or one without points
    """
    if not shares or not all(len(curve) for curve in shares.values()):
        raise ValueError(f"a line needs at least one point, got {dict(shares)!r}")
    with _figure(5.6, 3.9) as figure:
        axes = figure.add_subplot()
        for i, (name, curve) in enumerate(shares.items()):
            sizes, lost = zip(*curve, strict=True)
            axes.plot([100.0 * size for size in sizes], [100.0 * share for share in lost], label=name, **_look(i))
        axes.set_xscale("log")
        axes.set_ylim(-3.0, 103.0)
        axes.set(xlabel="size of ΔW (% of W, root mean square)", ylabel="numbers left as they were (%)")
        _legend(figure, columns=4)
    return figure


def merges(errors: Mapping[str, Mapping[str, float]]) -> Any:
    r"""How far each way to merge lies from the right model, relative to ΔW, one group of bars a format; logarithmic.

    errors  {format: {way: error}}, the same ways in each; raises ValueError when they differ or there is none
    """
    ways = list(next(iter(errors.values()), {}))
    if not ways or any(list(row) != ways for row in errors.values()):
        raise ValueError(
            f"each format needs the same ways to merge, got { ({k: list(v) for k, v in errors.items()})!r}"
        )
    width = 0.8 / len(ways)
    with _figure(5.6, 3.9) as figure:
        axes = figure.add_subplot()
        for i, way in enumerate(ways):
            places = [k + (i - (len(ways) - 1) / 2) * width for k in range(len(errors))]
            look = {"color": COLOURS[i], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white"}
            axes.bar(places, [100.0 * row[way] for row in errors.values()], width, label=way, **look)
        axes.axhline(100.0, color=GREY, linestyle=":", linewidth=1.3, label="as large as ΔW itself")
        axes.set_yscale("log")
        least = min((error for row in errors.values() for error in row.values() if error > 0.0), default=1.0)
        axes.set_ylim(bottom=30.0 * least)  # a third of the smallest bar, in percent
        axes.set_xticks(range(len(errors)), list(errors))
        axes.set(ylabel="error (% of ΔW, root mean square)")
        _legend(figure, columns=2)
    return figure


def drifts(shares: Mapping[str, Sequence[float]]) -> Any:
    r"""Share of the weights that are no longer those of the base, after each cycle of merging and unmerging.

    shares  {label: one share a cycle}, all of one length; raises ValueError when they differ or there is none
    """
    if not shares or len({len(line) for line in shares.values()}) != 1 or not len(next(iter(shares.values()))):
        raise ValueError("each line needs the same number of cycles, at least one")
    with _figure(5.6, 3.9) as figure:
        axes = figure.add_subplot()
        for i, (name, line) in enumerate(shares.items()):
            cycles = range(1, len(line) + 1)
            axes.plot(cycles, [100.0 * share for share in line], label=name, **_look(i) | {"markevery": (0.0, 0.15)})
        axes.set_xscale("log")
        _from_zero(axes)
        axes.set(xlabel="cycles of merging and unmerging", ylabel="weights that changed (%)")
        _legend(figure, columns=2)
    return figure
