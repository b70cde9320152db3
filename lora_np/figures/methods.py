r"""Pictures of all methods: what each trains at one budget, and what it adds to the model that is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import COLOURS, GREY, _figure, _legend, _look

if TYPE_CHECKING:
    from ..costs.budget import Offer

KINDS = {  # what becomes of a method when training is over: colour, marker, filled or hollow
    "can be merged, and then adds nothing": (COLOURS[0], "o", "full"),
    "stays beside the model": (COLOURS[3], "s", "none"),
}


def one_budget(offers: Sequence[Offer], budget: int) -> Any:
    r"""Four columns of marks, a row for each method: numbers trained (logarithmic, with the budget), multiply-adds of a
    token in percent of the base, products that a block gets longer by, and places of the context that are taken.

    Raises ValueError when no method has a bill.
    """
    shown = [offer for offer in offers if offer.bill is not None]
    if not shown:
        raise ValueError("a picture of methods needs at least one with a bill, got none")
    bills: list[Any] = [offer.bill for offer in shown]
    percent = [100 * bill.added / bill.forward for bill in bills]
    columns = {
        "trained numbers\n(log scale)": [bill.trained for bill in bills],
        "more multiply-adds of a token,\nunless merged (% of the base)": percent,
        "a block longer by\n(products)": [bill.depth for bill in bills],
        "context taken\n(places)": [bill.full_context - bill.context for bill in bills],
    }
    with _figure(10.4, 1.7 + 0.29 * len(shown)) as figure:
        every = figure.subplots(1, len(columns), sharey=True, width_ratios=(3, 3, 1.6, 1.6))
        for axes, (label, values) in zip(every, columns.items(), strict=True):
            _column(axes, label, values, [bill.merged for bill in bills], first=axes is every[0])
        every[0].axvline(budget, color=GREY, linestyle="--", linewidth=1.3, label=f"the budget: {budget:,}")
        every[0].set_xscale("log")
        _percent(every[1], max(percent))
        for axes in every[2:]:
            _whole(axes, max(columns[axes.get_xlabel()]))
        every[0].set_yticks(range(len(shown)), [f"{offer.name}  {offer.settings}".strip() for offer in shown])
        every[0].set_ylim(len(shown) - 0.5, -0.5)  # the first on top
        _legend(figure, columns=3)
    return figure


def latency(percent: Mapping[str, Mapping[str, float]]) -> Any:
    r"""How much longer than the base each takes: a row for each, a mark for each way to read.

    percent  {way: {label: percent of the time of the base}}, the same labels for each
    Raises ValueError for none, or labels that differ.
    """
    labels = [list(found) for found in percent.values()]
    if not labels or not labels[0] or any(found != labels[0] for found in labels):
        raise ValueError(f"a picture of latency needs at least one label, the same for each length; got {labels}")
    with _figure(5.8, 1.4 + 0.34 * len(labels[0])) as figure:
        axes = figure.add_subplot()
        for i, (name, found) in enumerate(percent.items()):
            style = _look(i) | {"linestyle": "none", "markersize": 7}
            axes.plot(list(found.values()), range(len(found)), label=name, **style)
        axes.axvline(0.0, color=GREY, linestyle="--", linewidth=1.3)
        axes.set_yticks(range(len(labels[0])), labels[0])
        axes.set_ylim(len(labels[0]) - 0.5, -0.5)  # the first on top
        axes.set(xlabel="more time than the base (%), the fastest of many calls")
        _legend(figure, columns=2)
    return figure


def _column(axes: Any, label: str, values: Sequence[float], merged: Sequence[bool], *, first: bool) -> None:
    for (kind, (colour, marker, fill)), wanted in zip(KINDS.items(), (True, False), strict=True):
        rows = [row for row, is_merged in enumerate(merged) if is_merged is wanted]
        style = {"color": colour, "marker": marker, "fillstyle": fill, "linestyle": "none", "markersize": 7}
        axes.plot([values[row] for row in rows], rows, label=kind if first else None, **style)
    axes.set_xlabel(label)


def _percent(axes: Any, largest: float) -> None:
    """An axis that holds zero, and is logarithmic from a tenth of a percent on."""
    ticks = [0.0, *(tick for tick in (0.1, 1.0, 10.0, 100.0, 1000.0) if tick <= 10 * max(largest, 0.1))]
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(-0.04, ticks[-1] * 1.3)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _whole(axes: Any, largest: float) -> None:
    """An axis of whole numbers with room on both sides."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(-0.12 * max(largest, 1), 1.12 * max(largest, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
