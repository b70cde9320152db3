r"""Pictures of the study: values with intervals, curves with intervals, and maps of φ beside their chance level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import COLOURS, GREY, _figure, _legend, _look

Spread = tuple[float, float, Sequence[float]]  # mean, half width of its interval, and the values
WIDTH = 4.7  # inches: narrow, so that on the screen of a telephone the text is not much smaller than that beside it
Points = Sequence[tuple[float, float, float]]  # x, mean, half width


def intervals(groups: Mapping[str, Spread], label: str) -> Any:
    """A row for each group: its values, their mean, and its interval. Raises ValueError for none."""
    if not groups:
        raise ValueError("a picture of intervals needs at least one group, got none")
    with _figure(WIDTH, 1.0 + 0.3 * len(groups)) as figure:
        axes = figure.add_subplot()
        for row, (mean, half, values) in enumerate(groups.values()):
            if not math.isfinite(mean):
                axes.text(0.02, row, "diverged", color=GREY, va="center", transform=axes.get_yaxis_transform())
                continue
            axes.plot(values, [row] * len(values), marker="|", color=GREY, linestyle="none", markersize=9)
            style = {"color": COLOURS[0], "marker": "o", "capsize": 4, "linestyle": "none"}
            axes.errorbar([mean], [row], xerr=[half], **style)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlim(left=0.0)
        axes.set(xlabel=label)
    return figure


def with_intervals(
    curves: Mapping[str, Points], x: str, y: str, *, log_x: bool = False, log_y: bool = False, chance: Points = ()
) -> Any:
    """A line for each curve through its means, with intervals; `chance` in grey. Raises ValueError for none."""
    if not curves or not all(curves.values()):
        raise ValueError("a picture of curves needs at least one, each with points")
    with _figure(WIDTH, 3.6) as figure:
        axes = figure.add_subplot()
        for i, (name, points) in enumerate(curves.items()):
            kept = [point for point in points if math.isfinite(point[1])]
            if kept:
                at, means, widths = zip(*kept, strict=True)
                axes.errorbar(at, means, yerr=widths, capsize=3, label=name, **_look(i))
            else:
                axes.plot([], [], label=f"{name}: diverged", **_look(i))
        if chance:
            at, levels, _ = zip(*chance, strict=True)
            axes.plot(at, levels, color=GREY, linestyle=":", label="by chance")
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set(xlabel=x, ylabel=y)
        _legend(figure, columns=2)
    return figure


def similarity_maps(panels: Mapping[str, Sequence[Sequence[float]]], x: str = "j", y: str = "i") -> Any:
    """φ(i, j) of several panels, two in a row, on one scale from 0 to 1. Raises ValueError for none."""
    if not panels:
        raise ValueError("a picture of φ needs at least one panel, got none")
    down = -(-len(panels) // 2)
    with _figure(WIDTH, 0.4 + 2.1 * down) as figure:
        every = figure.subplots(down, 2, squeeze=False).ravel()
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        for axes, (name, values) in zip(every, panels.items(), strict=False):
            extent = (0.5, len(values[0]) + 0.5, len(values) + 0.5, 0.5)
            image = axes.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis", extent=extent, aspect="auto")
            axes.grid(False)
            axes.set_title(name, fontsize=9.5)
            axes.set(xlabel=x, ylabel=y)
        figure.colorbar(image, ax=list(every), label="φ", shrink=0.9)
    return figure
