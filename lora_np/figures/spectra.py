r"""The picture of spectra: singular values of every ΔW, each kind of map in a panel of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import COLOURS, LINES, MARKERS, _figure, _legend

ACROSS, LABELLED = 4, 6  # panels beside each other; lines of one adapter that are labelled one by one


def spectra(adapters: Mapping[str, Mapping[str, Sequence[float]]]) -> Any:
    r"""Singular values σ_i of each ΔW against i, on one logarithmic axis for all panels.

    adapters   {its label: {name of a map: σ, the largest first}}; what is zero has no mark
    Raises ValueError where no value is above zero.
    """
    kinds: dict[str, None] = {}
    for maps in adapters.values():
        kinds |= dict.fromkeys(_kind(name) for name, values in maps.items() if max(values, default=0.0) > 0.0)
    if not kinds:
        raise ValueError("a picture of spectra needs one ΔW that is not zero")
    columns = min(ACROSS, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    with _figure(max(4.6, 1.2 + 2.7 * columns), 1.1 + 2.7 * rows) as figure:
        places = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
        for place, kind in zip(places.flat, kinds, strict=False):
            for i, (label, maps) in enumerate(adapters.items()):
                mine = {name: values for name, values in maps.items() if _kind(name) == kind}
                _panel(place, mine, i, label if place is places.flat[0] else None)
            place.set_title(kind, fontsize=9.5)
        for place in list(places.flat)[len(kinds) :]:
            place.set_visible(False)
        for place in list(places.flat)[max(0, len(kinds) - columns) : len(kinds)]:
            place.set_xlabel("i")
            place.xaxis.set_tick_params(labelbottom=True)
        _axes(places)
        _legend(figure, columns=2)
    return figure


def _kind(name: str) -> str:
    """`attention.query` of `blocks.3.attention.query`, `self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers and numbers[-1] + 1 < len(parts) else name


def _number(name: str) -> str:
    return next((part for part in reversed(name.split(".")) if part.isdecimal()), "")


def _panel(place: Any, maps: Mapping[str, Sequence[float]], i: int, label: str | None) -> None:
    shown = {name: values for name, values in maps.items() if max(values, default=0.0) > 0.0}
    look = {"color": COLOURS[(0, 3, 2, 4)[i % 4]], "linestyle": LINES[i % 2], "linewidth": 1.2, "alpha": 0.85}
    if max((len(values) for values in shown.values()), default=0) <= 16:
        look |= {"marker": MARKERS[i % len(MARKERS)], "markersize": 4}
    for k, (name, values) in enumerate(shown.items()):
        above = [value for value in values if value > 0.0]
        place.plot(range(1, len(above) + 1), above, label=None if k else label, **look)
        if len(shown) <= LABELLED and (number := _number(name)):
            about = {"fontsize": 7, "color": look["color"], "va": "center", "textcoords": "offset points"}
            side = {"ha": "right", "xytext": (-5, 0)} if i == 0 else {"ha": "left", "xytext": (5, 0)}
            end = (1, above[0]) if i == 0 else (len(above), above[-1])
            place.annotate(number, end, **about, **side)


def _axes(places: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    first = places.flat[0]
    first.set_yscale("log")
    for row in places:
        row[0].set_ylabel("singular value σ of ΔW\n(logarithmic)")
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = first.get_xlim()
    first.set_xlim(min(low, 0.4), high + 0.4)
