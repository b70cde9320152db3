"""Pictures of tutorial 06: loss and time against rank and placement, equal budgets, and a slider that may be still."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from . import GREY, _figure, _floor, _legend, _look, show, svg


class Outcome(Protocol):
    """One trained adapter: where it sits, its rank and seed, what it costs, and its loss in the end."""

    placement: str
    rank: int
    seed: int
    bill: Any
    held_out: float


def rank_and_placement(outcomes: Sequence[Outcome], base: float, floor: float | None = None) -> Any:
    r"""Held-out loss against the rank (left) and against the trained parameters (right), one line for each placement.

    base   the loss without an adapter        floor  the loss no model can beat
    Raises ValueError when there is no outcome.
    """
    lines = _by_placement(outcomes)
    with _figure(7.6, 4.0) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for i, (name, line) in enumerate(lines.items()):
            losses = [outcome.held_out for outcome in line]
            left.plot([outcome.rank for outcome in line], losses, label=name, **_look(i))
            right.plot([outcome.bill.trained for outcome in line], losses, **_look(i))
        for axes in (left, right):
            axes.axhline(base, color=GREY, linestyle="-.", linewidth=1.3, label="base" if axes is left else None)
            axes.set_ylim(bottom=0.0)
        _floor(left, floor)
        if floor is not None:
            right.axhline(floor, color=GREY, linestyle=":", linewidth=1.3)
        _ranks(left, sorted({outcome.rank for outcome in outcomes}))
        right.set_xscale("log")
        left.set(xlabel="rank r", ylabel="held-out loss (bits per byte)")
        right.set(xlabel="trained parameters (numbers, log scale)")
        _legend(figure, columns=4)
    return figure


def equal_budget(losses: Mapping[str, Sequence[float]], half_widths: Mapping[str, float]) -> Any:
    r"""For each way to spend a budget: the held-out loss of every seed, their mean, and its interval.

    Raises ValueError when there is nothing to draw, or a half width is missing.
    """
    if not losses or set(losses) != set(half_widths):
        raise ValueError(f"each way needs losses and a half width, got {sorted(losses)} and {sorted(half_widths)}")
    with _figure(5.6, 1.5 + 0.42 * len(losses)) as figure:
        axes = figure.add_subplot()
        for row, (name, values) in enumerate(losses.items()):
            mean = sum(values) / len(values)
            label = None if row else ("mean and 95 % interval", "one seed")
            style = _look(0) | {"linestyle": "none", "capsize": 4}
            axes.errorbar([mean], [row], xerr=[half_widths[name]], label=label and label[0], **style)
            dots = {"marker": "x", "color": "#D55E00", "linestyle": "none"}
            axes.plot(values, [row + 0.24] * len(values), label=label and label[1], **dots)
        axes.set_yticks(range(len(losses)), list(losses))
        axes.set_ylim(len(losses) - 0.4, -0.6)  # the first on top
        axes.set(xlabel="held-out loss (bits per byte)")
        _legend(figure, columns=2)
    return figure


def step_time(counted: Mapping[str, Sequence[float]], measured: Mapping[str, Sequence[float]]) -> Any:
    r"""The measured time of a training step against its counted multiply-adds, one kind of mark for each placement.

    counted   {label: millions of multiply-adds per token}      measured  {label: milliseconds}, as many
    Raises ValueError when the two do not fit.
    """
    sizes = {name: len(values) for name, values in counted.items()}
    if not sizes or sizes != {name: len(values) for name, values in measured.items()}:
        raise ValueError("each label needs as many measured times as counted multiply-adds, and there must be one")
    with _figure(5.6, 3.9) as figure:
        axes = figure.add_subplot()
        for i, (name, values) in enumerate(counted.items()):
            axes.plot(values, measured[name], label=name, **_look(i) | {"linestyle": "none"})
        every = [value for values in counted.values() for value in values]
        axes.set_xlim(0.95 * min(every), 1.03 * max(every))
        axes.set_ylim(0.0, 1.12 * max(max(values) for values in measured.values()))
        axes.set(xlabel="counted multiply-adds per token (millions)", ylabel="measured time of a step (ms)")
        _legend(figure, columns=3)
    return figure


def frame(outcomes: Sequence[Outcome], rank: int, base: float) -> Any:
    r"""One position of the slider: loss against parameters, all outcomes in grey, those of `rank` marked and named.

    Raises ValueError when there is no outcome of this rank.
    """
    with _figure(4.4, 3.6) as figure:
        _draw_frame(figure.add_subplot(), outcomes, rank, base, first=True)
        _legend(figure, columns=4)
    return figure


def frames(outcomes: Sequence[Outcome], base: float) -> Any:
    r"""Every position of the slider side by side."""
    ranks = sorted({outcome.rank for outcome in outcomes})
    if not ranks:
        raise ValueError("the frames need at least one outcome, got none")
    with _figure(2.6 * len(ranks), 3.5) as figure:
        every = figure.subplots(1, len(ranks), sharey=True, squeeze=False)[0]
        for axes, rank in zip(every, ranks, strict=True):
            _draw_frame(axes, outcomes, rank, base, first=axes is every[0])
        _legend(figure, columns=4)
    return figure


def explore(outcomes: Sequence[Outcome], base: float, live: bool | None = None) -> Any:
    r"""A slider over the rank where somebody can move it, else every position as one still picture.

    live   is there somebody? None asks the kernel whether it could put a question to its user: a notebook can, a run
           that only executes one cannot. Without ipywidgets the picture is still as well.
    """
    widgets = _optional("ipywidgets") if (_somebody_is_there() if live is None else live) else None
    if widgets is None:
        return show(frames(outcomes, base))
    ranks = sorted({outcome.rank for outcome in outcomes})
    slider = widgets.SelectionSlider(options=ranks, value=ranks[0], description="rank")
    picture = widgets.HTML(layout=widgets.Layout(width="34em", max_width="100%"))

    def draw(change: Any = None) -> None:
        picture.value = svg(frame(outcomes, slider.value, base))

    slider.observe(draw, names="value")
    draw()
    return widgets.VBox([slider, picture])


def _draw_frame(axes: Any, outcomes: Sequence[Outcome], rank: int, base: float, *, first: bool) -> None:
    chosen = [outcome for outcome in outcomes if outcome.rank == rank]
    if not chosen:
        raise ValueError(f"no outcome has rank {rank}: there are {sorted({outcome.rank for outcome in outcomes})}")
    trained, losses = [o.bill.trained for o in outcomes], [o.held_out for o in outcomes]
    axes.plot(trained, losses, color="#bdbdbd", marker=".", linestyle="none", label="other ranks" if first else None)
    axes.axhline(base, color=GREY, linestyle="-.", linewidth=1.3, label="base" if first else None)
    for i, name in enumerate(_by_placement(outcomes)):
        for outcome in (o for o in chosen if o.placement == name):
            style = _look(i) | {"linestyle": "none", "markersize": 8.5}
            axes.plot([outcome.bill.trained], [outcome.held_out], label=name if first else None, **style)
    axes.set_xscale("log")
    axes.set_xlim(min(trained) / 2.0, max(trained) * 2.0)
    axes.set_ylim(0.0, 1.08 * max(base, *losses))
    axes.set_title(f"rank {rank}: adapter files\n{_sizes([o.bill.file_bytes for o in chosen])}", fontsize=9.5)
    axes.set(xlabel="trained parameters (numbers)")
    if first:
        axes.set(ylabel="held-out loss (bits per byte)")


def _sizes(file_bytes: Sequence[int]) -> str:
    """'7 to 49 KiB', or one of them."""
    low, high = (math.ceil(size / 1024) for size in (min(file_bytes), max(file_bytes)))
    return f"{low} KiB" if low == high else f"{low} to {high} KiB"


def _by_placement(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each placement, by rank, in the order in which the placements first appear."""
    if not outcomes:
        raise ValueError("a picture of outcomes needs at least one, got none")
    names = dict.fromkeys(outcome.placement for outcome in outcomes)
    return {n: sorted((o for o in outcomes if o.placement == n), key=lambda o: o.rank) for n in names}


def _ranks(axes: Any, ranks: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ranks), [str(rank) for rank in ranks])
    axes.minorticks_off()


def _optional(name: str) -> Any:
    """A module, or None where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


def _somebody_is_there() -> bool:
    """Does this code run for a cell whose sender would answer a question (`allow_stdin`)?"""
    ipython = _optional("IPython")
    shell = ipython.get_ipython() if ipython else None
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", False))
