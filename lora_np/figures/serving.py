r"""Pictures of tutorial 08: memory against the number of tasks, a routing mask, and the time of a mixed batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.arrays import Array
from . import _figure, _from_zero, _legend, _look


def memory(counts: Sequence[int], lines: Mapping[str, Sequence[float]]) -> Any:
    r"""Bytes held against the number of tasks, one line for each way to serve; both axes are logarithmic.

    counts  of tasks        lines  {way: bytes}, one for each count
    Raises ValueError when there is no line, or one of another length.
    """
    if not counts or not lines or any(len(line) != len(counts) for line in lines.values()):
        raise ValueError(f"each way needs one number of bytes for each of the {len(counts)} counts, and there is one")
    with _figure(5.6, 4.0) as figure:
        axes = figure.add_subplot()
        for i, (way, line) in enumerate(lines.items()):
            axes.plot(counts, [value / 1e6 for value in line], label=way, **_look(i))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(xlabel="tasks (log scale)", ylabel="held in memory (MB, log scale)")
        _legend(figure, columns=2)
    return figure


def routing(mask: Array, rows: Sequence[str], columns: Sequence[str]) -> Any:
    r"""The routing mask M (batch, R): which columns of the stacked factors each sequence meets, and with which s.

    rows  a label for each sequence        columns  a label for each column, the same for all of one adapter
    Raises ValueError where the labels do not fit the mask.
    """
    if mask.shape != (len(rows), len(columns)) or not mask.size:
        raise ValueError(f"a mask {mask.shape} needs one label a row and a column, got {len(rows)} and {len(columns)}")
    ends = [i for i in range(1, len(columns)) if columns[i] != columns[i - 1]]
    starts = [0, *ends]
    middles = [(low + high - 1) / 2 for low, high in zip(starts, [*ends, len(columns)], strict=True)]
    with _figure(5.6, 1.6 + 0.32 * len(rows)) as figure:
        axes = figure.add_subplot()
        axes.imshow(mask, cmap="Blues", vmin=0.0, vmax=1.6 * float(mask.max() or 1.0), aspect="auto")
        for row, column in ((i, j) for i in range(len(rows)) for j in range(len(columns))):
            shown = f"{mask[row, column]:g}"
            axes.text(column, row, shown, ha="center", va="center", fontsize=8, color="#1b1b1b")
        for end in ends:
            axes.axvline(end - 0.5, color="#1b1b1b", linewidth=1.0)
        axes.grid(visible=False)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_xticks(middles, [columns[i] for i in starts])
        axes.set(xlabel="columns of X Aᵀ, by the adapter they belong to", ylabel="sequence")
    return figure


def speeds(counts: Sequence[int], lines: Mapping[str, Sequence[float]]) -> Any:
    r"""Tokens a second against the number of different adapters in the batch, one line for each way to serve.

    counts  of adapters        lines  {way: tokens a second}, one for each count
    Raises ValueError when there is no line, or one of another length.
    """
    if not counts or not lines or any(len(line) != len(counts) for line in lines.values()):
        raise ValueError(f"each way needs one speed for each of the {len(counts)} counts, and there must be one")
    with _figure(5.6, 4.0) as figure:
        axes = figure.add_subplot()
        for i, (way, line) in enumerate(lines.items()):
            axes.plot(counts, line, label=way, **_look(i))
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(counts), [str(count) for count in counts])
        axes.minorticks_off()
        _from_zero(axes)
        axes.set(xlabel="different adapters among the requests", ylabel="tokens written in a second")
        _legend(figure, columns=2)
    return figure
