r"""Pictures of a merged tensor that is not W0 + ΔW: how much of the update is there, of which rank, and where not."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import COLOURS, GREY, _figure, _legend

SIZE = 3.6, 3.1


def measured_against_expected(expected: Any, measured: Any, half: float) -> Any:
    """Entries of Ŵ − W0 over those of ΔW, on which line an honest merge lies, and half a unit in the last place."""
    with _figure(*SIZE) as figure:
        axes = figure.add_subplot()
        reach = float(abs(expected).max(initial=0.0)) or 1.0
        line = np.array([-reach, reach])
        axes.fill_between(line, line - half, line + half, color=COLOURS[2], alpha=0.25, linewidth=0)
        axes.plot(line, line, color=COLOURS[2], linewidth=1.4, label="an honest merge")
        axes.plot(expected, measured, linestyle="", marker="o", markersize=2.2, color=COLOURS[3], alpha=0.7,
                  label="found")  # fmt: skip
        axes.set(xlabel="expected: ΔW", ylabel="measured: Ŵ − W0")
        _legend(figure, columns=2)
    return figure


def two_spectra(expected: Any, measured: Any) -> Any:
    """Singular values of what was expected and of what was found."""
    from matplotlib.ticker import MaxNLocator

    with _figure(*SIZE) as figure:
        axes = figure.add_subplot()
        count = np.arange(1, len(expected) + 1)
        axes.plot(count, expected, marker="s", markersize=4, color=COLOURS[2], label="expected")
        axes.plot(count, measured, marker="o", markersize=3, color=COLOURS[3], linestyle="--", label="measured")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="number", ylabel="singular value")
        axes.set_ylim(bottom=0.0)
        _legend(figure, columns=2)
    return figure


def where_it_is_wrong(grid: Any, shape: tuple[int, int]) -> Any:
    """Gap over bound at the worst entry of each cell: above 1 rounding does not explain it. Grey: within its bound."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    with _figure(*SIZE) as figure:
        axes = figure.add_subplot()
        shown = np.where(np.isfinite(grid), np.clip(grid, 1.0, 1e6), 1e6)
        top = max(10.0, float(shown.max()))
        masked = np.ma.masked_where(~(np.nan_to_num(grid, nan=np.inf, posinf=np.inf) > 1.0), shown)
        axes.set_facecolor("#dddddd")
        drawn = axes.imshow(masked, norm=LogNorm(1.0, top), cmap="inferno_r", aspect="auto", interpolation="nearest",
                            extent=(0, shape[1], shape[0], 0))  # fmt: skip
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="column", ylabel="row")
        bar = figure.colorbar(drawn, ax=axes, shrink=0.9)
        bar.set_label("gap / bound", color=GREY)
    return figure
