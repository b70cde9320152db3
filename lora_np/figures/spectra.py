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
        kinds |= dict.fromkeys(_kind(name) for name, values in maps.items() if _above(values))
    if not kinds:
        raise ValueError("a picture of spectra needs one ΔW that is not zero")
    every = [value for maps in adapters.values() for values in maps.values() for value in _above(values)]
    near = 0.05 * math.log(max(every) / min(every)) + 0.05
    columns = min(ACROSS, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    with _figure(max(4.6, 1.2 + 2.7 * columns), 1.1 + 2.7 * rows) as figure:
        places = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
        for place, kind in zip(places.flat, kinds, strict=False):
            for i, (label, maps) in enumerate(adapters.items()):
                mine = {name: _above(values) for name, values in maps.items() if _kind(name) == kind}
                shown = {name: values for name, values in mine.items() if values}
                _panel(place, shown, i, label if place is places.flat[0] else None)
                if len(shown) <= LABELLED:
                    _labels(place, shown, i, near)
            place.set_title(f"{kind}, by block" if any(map(_number, _of(adapters, kind))) else kind, fontsize=9.5)
        for place in list(places.flat)[len(kinds) :]:
            place.set_visible(False)
        for place in list(places.flat)[max(0, len(kinds) - columns) : len(kinds)]:
            place.set_xlabel("i, from the largest on")
            place.xaxis.set_tick_params(labelbottom=True)
        _axes(places)
        _legend(figure, columns=2)
    return figure


def _of(adapters: Mapping[str, Mapping[str, Sequence[float]]], kind: str) -> list[str]:
    return [name for maps in adapters.values() for name in maps if _kind(name) == kind]


def _kind(name: str) -> str:
    """`attention.query` of `blocks.3.attention.query`, `self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers and numbers[-1] + 1 < len(parts) else name


def _number(name: str) -> str:
    return next((part for part in reversed(name.split(".")) if part.isdecimal()), "")


def _above(values: Sequence[float]) -> list[float]:
    return [value for value in values if value > 0.0]


def _colour(i: int) -> str:
    return COLOURS[(0, 3, 2, 4)[i % 4]]


def _panel(place: Any, shown: Mapping[str, Sequence[float]], i: int, label: str | None) -> None:
    look = {"color": _colour(i), "linestyle": LINES[i % 2], "linewidth": 1.2, "alpha": 0.85}
    if max(map(len, shown.values()), default=0) <= 16:
        look |= {"marker": MARKERS[i % len(MARKERS)], "markersize": 4}
    for k, values in enumerate(shown.values()):
        place.plot(range(1, len(values) + 1), values, label=None if k else label, **look)


def _labels(place: Any, shown: Mapping[str, Sequence[float]], i: int, near: float) -> None:
    """The numbers of the blocks behind the ends of their lines; ends that are near each other share one text."""
    ends = sorted((len(values), values[-1], _number(name)) for name, values in shown.items() if _number(name))
    groups: list[list[tuple[int, float, str]]] = []
    for end in ends:
        last = groups[-1][-1] if groups else None
        if last is not None and last[0] == end[0] and math.log(end[1] / last[1]) < near:
            groups[-1].append(end)
        else:
            groups.append([end])
    for group in groups:
        at = group[0][0], math.exp(sum(math.log(y) for _, y, _ in group) / len(group))
        text = ", ".join(sorted((number for *_, number in group), key=int))
        look = {"fontsize": 7.5, "color": _colour(i), "va": "center", "textcoords": "offset points"}
        place.annotate(text, at, xytext=(5, 0), **look)


def _axes(places: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    first = places.flat[0]
    first.set_yscale("log")
    for row in places:
        row[0].set_ylabel("singular value σ of ΔW\n(logarithmic)")
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = first.get_xlim()
    first.set_xlim(min(low, 0.4), high + 0.12 * (high - low))
