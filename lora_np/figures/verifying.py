r"""Pictures of tutorial 11: merges by gap and by gap / bound, a staircase of rounding, and updates merged in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import COLOURS, GREY, LINES, MARKERS, _figure, _legend, _look


def told_apart(merges: Mapping[str, tuple[float, float, bool]], tolerance: float) -> Any:
    r"""Merges by the largest gap of an entry (left) and by the largest gap / bound (right), honest ones and others.

    merges     {label: (gap, gap / bound, honest)}; logarithmic, so a gap of zero has no mark; ∞ is written at the edge
    tolerance  a line on the left: what passes and what does not, were this the judge
    Raises ValueError when there is no merge.
    """
    if not merges:
        raise ValueError("a picture of merges needs at least one")
    with _figure(7.6, 1.5 + 0.3 * len(merges)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for honest, colour, marker in ((True, COLOURS[0], MARKERS[0]), (False, COLOURS[3], MARKERS[3])):
            rows = [(i, gap, used) for i, (gap, used, is_so) in enumerate(merges.values()) if is_so == honest]
            look = {"color": colour, "marker": marker, "linestyle": "none"}
            for axes, column in ((left, 1), (right, 2)):
                label = ("an honest merge" if honest else "a wrong one") if axes is left else None
                shown = [row[column] if 0 < row[column] < math.inf else math.nan for row in rows]
                axes.plot(shown, [row[0] for row in rows], label=label, **look)
        for i, (_, used, _) in enumerate(merges.values()):
            if math.isinf(used):  # what must be equal and is not has no bound
                right.text(
                    0.97, i, "∞", color=COLOURS[3], ha="right", va="center", transform=right.get_yaxis_transform()
                )
        left.axvline(tolerance, color=GREY, linestyle=LINES[1], linewidth=1.3, label=f"tolerance {tolerance:g}")
        right.axvline(1.0, color=GREY, linestyle=LINES[3], linewidth=1.6, label="its own bound")
        for axes in (left, right):
            axes.set_xscale("log")
        left.set_yticks(range(len(merges)), list(merges))
        left.set_ylim(len(merges) - 0.5, -0.5)  # the first on top
        left.set(xlabel="largest gap of an entry (units of W, log scale)")
        right.set(xlabel="largest gap / bound (log scale)")
        _legend(figure, columns=4)
    return figure


def staircase(changes: Sequence[float], kept: Sequence[float], unit: float, number: float) -> Any:
    r"""What is left of a change d once w + d was rounded, both in units in the last place of w.

    changes, kept  d and fl(w + d) − w, one each        unit  in the last place        number  w
    Raises ValueError when the lengths differ.
    """
    if len(changes) != len(kept) or not len(changes):
        raise ValueError(f"one change kept for each change, and at least one; got {len(changes)} and {len(kept)}")
    with _figure(5.6, 3.9) as figure:
        axes = figure.add_subplot()
        x, y = ([value / unit for value in values] for values in (changes, kept))
        axes.axvspan(-0.5, 0.5, color=COLOURS[1], alpha=0.2, linewidth=0, label="it vanishes")
        axes.plot(x, x, color=GREY, linestyle=LINES[3], linewidth=1.4, label="nothing lost")
        axes.plot(x, y, color=COLOURS[0], linewidth=1.8, label=f"w = {number:g}")
        axes.set(xlabel="change d (units in the last place of w)", ylabel="kept: fl(w + d) − w (the same units)")
        _legend(figure, columns=3)
    return figure


def in_a_row(errors: Mapping[str, Sequence[float]]) -> Any:
    r"""How far a merge of many updates lies from their sum, after each of them, one line for each way to merge.

    errors  {way: one share of the whole update for each}, all of one length
    Raises ValueError when they differ, or there is none.
    """
    if not errors or len({len(line) for line in errors.values()}) != 1 or not len(next(iter(errors.values()))):
        raise ValueError("each way needs the same number of updates, at least one")
    from matplotlib.ticker import MaxNLocator

    with _figure(5.6, 3.9) as figure:
        axes = figure.add_subplot()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for i, (way, line) in enumerate(errors.items()):
            axes.plot(range(1, len(line) + 1), [100.0 * share for share in line], label=way, **_look(i))
        axes.set_ylim(bottom=0.0)
        axes.set(xlabel="updates merged", ylabel="error (% of their sum, root mean square)")
        _legend(figure, columns=2)
    return figure
