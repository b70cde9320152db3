r"""Every picture, one function each: numbers in, a matplotlib `Figure` out.

No pyplot, no window, and the caller's own style is left as it was. Colours are those of Okabe and Ito (2008), which
colour-blind readers can tell apart; every series also has its own marker and line style, so a print in grey can be
read too. matplotlib is imported inside the functions: `import lora_np.figures` costs nothing.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Curve = Sequence[tuple[float, float]]

# In an order of which neighbours differ in lightness as well.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
GREY = "#595959"  # what is drawn beside the data: 7:1 against white

STYLE: Any = {  # of matplotlib's settings; newer versions type their names one by one
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a picture is the same everywhere
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "svg.fonttype": "path",  # no font is needed to read the file
    "svg.hashsalt": "lora_np",  # the same picture has the same ids
}


def learning_curves(curves: Mapping[str, Curve], floor: float | None = None) -> Any:
    r"""Bits per byte against the optimizer step: one line per label, and a line at the floor no model can beat.

    curves  {label: [(step, bits per byte), ...]}
    Raises ValueError when there is no curve, or one without points.
    """
    if not curves or not all(len(curve) for curve in curves.values()):
        raise ValueError(f"learning curves need at least one point each, got {dict(curves)!r}")
    from matplotlib.ticker import MaxNLocator

    with _figure(5.6, 3.9) as figure:
        axes = figure.add_subplot()
        for i, (label, curve) in enumerate(curves.items()):
            steps, bits = zip(*curve, strict=True)
            axes.plot(steps, bits, label=label, **_look(i))
        _floor(axes, floor)
        _from_zero(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="optimizer step", ylabel="held-out loss (bits per byte)")
        _legend(figure, columns=3)
    return figure


def loss_against_rank(
    ranks: Sequence[int],
    held_out: Sequence[float],
    trained: Sequence[int],
    base: float | None = None,
    floor: float | None = None,
    intervals: Sequence[float] | None = None,
) -> Any:
    r"""Held-out loss against the rank on the left axis, trained parameters on the right (logarithmic).

    ranks, held_out, trained  one value each per rank        base   the loss without an adapter
    intervals                 half width of an interval      floor  the loss no model can beat
    Raises ValueError when the lengths differ.
    """
    if not len(ranks) == len(held_out) == len(trained) == len(ranks if intervals is None else intervals) or not ranks:
        raise ValueError(f"one value each per rank, got {len(ranks)}, {len(held_out)} and {len(trained)}")
    with _figure(5.6, 3.9) as figure:
        loss = figure.add_subplot()
        size = loss.twinx()
        loss.errorbar(ranks, held_out, yerr=intervals, capsize=3, label="held-out loss (left)", **_look(0))
        size.plot(ranks, trained, label="trained parameters (right)", **_look(3) | {"linestyle": LINES[1]})
        if base is not None:
            loss.axhline(base, color=GREY, linestyle="-.", linewidth=1.3, label="base, no adapter (left)")
        _floor(loss, floor, " (left)")
        loss.set_xscale("log", base=2)
        loss.set_xticks(list(ranks), [str(rank) for rank in ranks])
        loss.minorticks_off()
        _from_zero(loss)
        _plain_log(size, trained)
        size.grid(False)
        size.spines["right"].set_visible(True)
        loss.set(xlabel="rank r", ylabel="held-out loss (bits per byte)")
        size.set_ylabel("trained parameters (numbers)")
        _legend(figure, columns=2)
    return figure


def merge_error(gaps: Mapping[str, tuple[float, float] | tuple[float, float, float]]) -> Any:
    r"""For each adapted map: |adapted − merged| as measured, its rounding bound, and what the adapter itself changes.

    gaps  {path: (measured, bound)} or {path: (measured, bound, effect)}; logarithmic, so a gap of zero has no mark
    Raises ValueError when there is no map.
    """
    if not gaps:
        raise ValueError("a picture of merge errors needs at least one adapted map, got none")
    names = ("measured |adapted − merged|", "rounding bound", "effect |adapted − base|")
    columns = list(zip(*gaps.values(), strict=True))
    places = range(len(gaps))
    with _figure(5.6, 1.7 + 0.27 * len(gaps)) as figure:
        axes = figure.add_subplot()
        axes.hlines(places, columns[0], columns[1], color="#bdbdbd", linewidth=1.2, zorder=1)
        for i, values in enumerate(columns):
            shown = [value if value > 0 else math.nan for value in values]
            axes.plot(shown, places, label=names[i], **_look((0, 3, 2)[i]) | {"linestyle": "none"})
        axes.set_xscale("log")
        axes.set_yticks(list(places), list(gaps))
        axes.set_ylim(len(gaps) - 0.5, -0.5)  # the first map on top
        axes.set(xlabel="size of the difference (units of the output, log scale)", ylabel="adapted map")
        _legend(figure, columns=2)
    return figure


def svg(figure: Any) -> str:
    r"""The figure as one `<svg>` element that needs nothing else, to stand inside a page.

    The same figure gives the same text. Every id carries a prefix made from the picture's content, so that several of
    them can stand in one page. The size is left to the page: there is a viewBox, but no width and height.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    element = re.sub(r"<style.*?</style>", "", element, count=1, flags=re.DOTALL)  # it would style the whole page
    element = element.replace("<svg", '<svg style="stroke-linejoin: round; stroke-linecap: butt"', 1)
    element = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", element))
    prefix = "f" + hashlib.sha256(element.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", element).strip()


def save(figure: Any, path: str | Path) -> None:
    """Write the figure to a file, in the format of its suffix (.png, .svg, .pdf)."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure.savefig(path, dpi=160)


def show(figure: Any, dots: int = 110) -> Any:
    """The figure as a PNG for the output of a notebook cell, at `dots` an inch.

    A stored PNG is seen wherever the notebook is opened; Jupyter hides a stored SVG until its cell has been run.
    """
    from matplotlib import rc_context

    try:
        from IPython.display import Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError("showing a figure needs IPython: pip install 'lora_np[tutorials]'") from None
    file = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(file, format="png", dpi=dots, metadata={"Software": None})
    return Image(data=file.getvalue(), format="png", width=round(96 * figure.get_figwidth()))


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    """An empty figure of this size in inches, in the style of this module; the caller's own style is put back."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _look(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": LINES[i % len(LINES)],
    }


def _floor(axes: Any, floor: float | None, where: str = "") -> None:
    if floor is not None:
        axes.axhline(floor, color=GREY, linestyle=":", linewidth=1.3, label=f"floor of the task{where}")


def _from_zero(axes: Any) -> None:
    """A loss axis that starts at zero, so that the height of a point is the loss and not a part of it."""
    axes.set_ylim(bottom=0.0)


def _plain_log(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 times the powers of ten, and some room around the data."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(min(values) / 1.5, max(values) * 1.5)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Any, columns: int) -> None:
    """All series of all axes in one legend above the plot, where it covers nothing."""
    figure.legend(loc="outside upper center", ncols=columns)
