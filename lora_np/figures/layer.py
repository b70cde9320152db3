"""Pictures of tutorial 02: four ways to start, the first step against the rank, and where the rank of BA ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import GREY, Curve, _figure, _legend, _look


def starts(curves: Mapping[str, Curve]) -> Any:
    r"""The loss against the step, on a logarithmic axis, one line for each way to start.

    curves  {label: [(step, loss), ...]}
    Raises ValueError when there is no curve.
    """
    if not curves:
        raise ValueError("a picture of starts needs at least one curve, got none")
    with _figure(5.6, 3.7) as figure:
        axes = figure.add_subplot()
        for i, (label, curve) in enumerate(curves.items()):
            steps, losses = zip(*curve, strict=True)
            axes.plot(steps, losses, label=label, markevery=max(1, len(steps) // 8), **_look(i))
        axes.set_yscale("log")
        axes.set(xlabel="step", ylabel="loss (squared error, log scale)")
        _legend(figure, columns=2)
    return figure


def first_step(ranks: Sequence[int], sizes: Mapping[str, Sequence[float]]) -> Any:
    r"""How far the first step gets against the rank, both axes logarithmic; one line for each rule and optimizer.

    sizes  {label: one value for each rank}, each drawn relative to its first
    Raises ValueError when a line has another number of values than there are ranks.
    """
    if not sizes or any(len(values) != len(ranks) for values in sizes.values()):
        raise ValueError(f"each line needs one value for each of the {len(ranks)} ranks")
    with _figure(5.6, 3.9) as figure:
        axes = figure.add_subplot()
        for i, (label, values) in enumerate(sizes.items()):
            axes.plot(ranks, np.asarray(values) / values[0], label=label, **_look(i))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(list(ranks), [str(rank) for rank in ranks])
        axes.minorticks_off()
        axes.set(
            xlabel="rank r (log scale)", ylabel="loss removed by one step\n(relative to the first rank, log scale)"
        )
        _legend(figure, columns=2)
    return figure


def cliffs(singular_values: Mapping[str, Sequence[float]], rounding: float) -> Any:
    r"""Singular values by index on a logarithmic axis, and the line below which everything is rounding.

    singular_values  {label: σ, largest first}, each drawn relative to its largest
    Raises ValueError when there is none.
    """
    if not singular_values:
        raise ValueError("a picture of singular values needs at least one matrix, got none")
    with _figure(5.6, 3.7) as figure:
        axes = figure.add_subplot()
        for i, (label, values) in enumerate(singular_values.items()):
            sigma = np.asarray(values) / values[0]
            index = np.arange(1, len(sigma) + 1)
            marked = [2**k - 1 for k in range(len(sigma).bit_length())]
            axes.plot(index, sigma, label=label, markevery=marked, **_look(i))
        axes.axhline(rounding, color=GREY, linestyle=":", linewidth=1.3, label="rounding of float64")
        ticks = [2**k for k in range(len(sigma).bit_length())]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_yscale("log")
        axes.set_ylim(1e-20, 10.0)  # below it is the rounding of rounding
        axes.set(xlabel="index i of the singular value (log scale)", ylabel="σᵢ / σ₁ (no unit, log scale)")
        _legend(figure, columns=2)
    return figure
