"""The picture of tutorial 03: how far three witnesses are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..gradients import Row
from . import _figure, _legend, _look

PAIRS = {
    "hand, textbook": "hand_textbook",
    "hand, difference": "hand_difference",
    "textbook, difference": "textbook_difference",
    "error of the difference": "uncertainty",
}


def disagreements(rows: Mapping[str, Row]) -> Any:
    r"""For each row the disagreement of each pair of witnesses, relative to the gradient's largest entry.

    rows  {label: row of a gradient check}; the axis is logarithmic, so a disagreement of exactly zero has no mark
    Raises ValueError when there is no row.
    """
    if not rows:
        raise ValueError("a picture of witnesses needs at least one row, got none")
    places = range(len(rows))
    with _figure(6.4, 1.7 + 0.29 * len(rows)) as figure:
        axes = figure.add_subplot()
        for i, (label, field) in enumerate(PAIRS.items()):
            values = [getattr(row, field) for row in rows.values()]
            look = _look(i) | {"linestyle": "none"}
            if field == "uncertainty":
                look |= {"marker": "|", "color": "black", "markersize": 12}
            if field == "hand_difference":  # the next pair is often in the same place: leave it visible inside
                look |= {"markerfacecolor": "none", "markersize": 8}
            axes.plot([v if v > 0 else math.nan for v in values], places, label=label, **look)
        axes.set_xscale("log")
        axes.set_xlim(1e-18, 1e2)
        axes.set_yticks(list(places), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
        axes.set(xlabel="disagreement / largest entry of the gradient (log scale)")
        _legend(figure, columns=2)
    return figure
