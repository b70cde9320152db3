"""Pictures of tutorial 04: what each head looks at, where adapters sit in a block, and the size of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..names import PRESETS, targeted
from . import COLOURS, GREY, _figure, _legend, _look

HIDDEN = "#e3e3e3"  # what a query may not see
DARK_ON_LIGHT = (
    "#ffffff",
    "#9ecae9",
    "#0072B2",
    "#00304d",
)  # probabilities: white is 0; darker is more, in grey as well


def attention_heads(probabilities: Array, characters: Sequence[str], titles: Sequence[str] | None = None) -> Any:
    r"""The attention probabilities of some heads, one panel each: a row for each query, a column for each key.

    probabilities  (heads, seq, seq)    characters  one for each position    titles  one for each head
    What causal attention hides, above the diagonal, is grey. Raises ValueError when the lengths do not fit.
    """
    heads, seq = probabilities.shape[:2]
    names = [f"head {i}" for i in range(heads)] if titles is None else list(titles)
    if probabilities.shape[2] != seq or len(characters) != seq or len(names) != heads:
        raise ValueError(
            f"probabilities (heads, seq, seq), seq characters and a title for each head belong together, "
            f"got {probabilities.shape}, {len(characters)} and {len(names)}"
        )
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("probability", DARK_ON_LIGHT).with_extremes(bad=HIDDEN)
    columns = min(heads, 3)
    rows = -(-heads // columns)
    inches = {1: 4.6, 2: 3.8, 3: 3.1}[columns]  # of a panel
    letters = ["␣" if character == " " else character for character in characters]
    size = min(9.0, 55.0 * inches / max(seq, 1))
    with _figure(inches * columns + 0.9, (inches + 0.25) * rows + 0.2) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name, p in zip(panels, names, probabilities, strict=False):
            seen = np.ma.masked_where(np.triu(np.ones((seq, seq), bool), 1), p)
            picture = axes.imshow(seen, cmap=colours, vmin=0.0, vmax=1.0, interpolation="nearest")
            axes.set_xticks(range(seq), letters, fontsize=size)
            axes.set_yticks(range(seq), letters, fontsize=size)
            axes.tick_params(length=0, pad=1.5)
            axes.grid(False)
            axes.set_title(name, fontsize=10)
        for axes in panels[heads:]:
            axes.remove()
        for i, axes in enumerate(panels[:heads]):
            if i % columns == 0:
                axes.set_ylabel("query: the position that asks")
            if i + columns >= heads:
                axes.set_xlabel("key: the position looked at")
        figure.colorbar(picture, ax=list(panels[:heads]), shrink=0.6, label="attention probability")
    return figure


# One block, from the bottom up: (name, label, x, y, width); every box is as high as HEIGHT.
HEIGHT = 0.62
WIDE, NARROW = 0.17, 0.07  # half the widths of a trapezium: at the sides of A and B that face the model, at the rank
_BOXES = (
    ("attention_norm", "layer norm", 0.0, 1.0, 4.2),
    ("attention.query", "query", -1.55, 2.0, 1.15),
    ("attention.key", "key", 0.0, 2.0, 1.15),
    ("attention.value", "value", 1.55, 2.0, 1.15),
    ("heads", "softmax(QKᵀ/√d_head) V", 0.0, 3.0, 4.2),
    ("attention.output", "output", 0.0, 4.0, 1.6),
    ("mlp_norm", "layer norm", 0.0, 5.9, 4.2),
    ("mlp.up", "up", 0.0, 6.9, 2.6),
    ("gelu", "gelu", 0.0, 7.9, 1.6),
    ("mlp.down", "down", 0.0, 8.9, 2.6),
)
_ARROWS = (  # (x, y) to (x, y) between the boxes
    *(((x, 1.31), (x, 1.66)) for x in (-1.55, 0.0, 1.55)),
    *(((x, 2.31), (x, 2.66)) for x in (-1.55, 0.0, 1.55)),
    ((0.0, 3.31), (0.0, 3.66)),
    ((0.0, 6.21), (0.0, 6.56)),
    ((0.0, 7.21), (0.0, 7.56)),
    ((0.0, 8.21), (0.0, 8.56)),
)
_STREAM = -3.3  # where the residual stream runs


def block_with_adapters(targets: str | Iterable[str]) -> Any:
    r"""One block of the transformer from the bottom up, and an A and a B beside every target.

    targets  a preset, or names such as "attention.query"
    Raises ValueError for a name that is not a linear map of a block.
    """
    linear = [name for name, *_ in _BOXES if name in PRESETS["attention+mlp"]]
    adapted = targeted(linear, targets)
    from matplotlib.patches import Patch

    with _figure(4.8, 5.6) as figure:
        axes = figure.add_subplot()
        arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (_STREAM, 10.5), (_STREAM, -0.1), arrowprops=arrow | {"linewidth": 2.4})
        axes.text(_STREAM, -0.3, "residual stream h", ha="center", va="top", fontsize=9)
        for leaves, enters in ((0.25, 4.75), (5.15, 9.65)):  # a branch leaves the stream and is added back
            axes.plot([_STREAM, 0.0], [leaves, leaves], color=GREY, linewidth=1.2)
            axes.annotate("", (0.0, leaves + 0.41), (0.0, leaves), arrowprops=arrow)
            axes.plot([0.0, 0.0], [enters - 0.44, enters], color=GREY, linewidth=1.2)
            axes.annotate("", (_STREAM + 0.26, enters), (0.0, enters), arrowprops=arrow)
            plus = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": GREY}
            axes.text(_STREAM, enters, "+", ha="center", va="center", bbox=plus)
        for start, stop in _ARROWS:
            axes.annotate("", stop, start, arrowprops=arrow)
        for name, label, x, y, width in _BOXES:
            _box(axes, label, x, y, width, "frozen" if name in linear else "plain")
            if name in adapted:
                _adapter(axes, x + width / 2 + WIDE, y)
        axes.set(xlim=(-4.5, 3.6), ylim=(-0.9, 10.7), aspect="equal")
        axes.axis("off")
        legend = {"frozen": "linear map, frozen", "adapter": "A and B, trained", "plain": "no linear map"}
        handles = [Patch(label=text, **_FILLS[kind]) for kind, text in legend.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


_FILLS: dict[str, dict[str, Any]] = {
    "frozen": {"facecolor": "#cfe3f1", "edgecolor": COLOURS[0], "linewidth": 1.3},
    "plain": {"facecolor": "white", "edgecolor": GREY, "linewidth": 1.0},
    "adapter": {"facecolor": COLOURS[1], "edgecolor": "#000000", "linewidth": 1.0, "hatch": "///"},
}


def _box(axes: Any, label: str, x: float, y: float, width: float, kind: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x - width / 2, y - HEIGHT / 2), width, HEIGHT, zorder=2, **_FILLS[kind]))
    axes.text(x, y, label, ha="center", va="center", fontsize=9, zorder=3)


def _adapter(axes: Any, x: float, y: float) -> None:
    """A and B as two small trapezia that meet at the rank, right of a box."""
    from matplotlib.patches import Polygon

    for edge in (y - HEIGHT / 2, y + HEIGHT / 2):
        corners = [(x - WIDE, edge), (x + WIDE, edge), (x + NARROW, y), (x - NARROW, y)]
        axes.add_patch(Polygon(corners, zorder=4, **_FILLS["adapter"]))


def checkpoint_sizes(sizes: Mapping[str, tuple[int, int]]) -> Any:
    r"""The bytes of a full checkpoint and of an adapter, one row for each model, on a logarithmic axis.

    sizes  {model: (bytes of the whole model, bytes of the adapter)}; the quotient is written between the two
    Raises ValueError when there is no model.
    """
    if not sizes:
        raise ValueError("a picture of checkpoint sizes needs at least one model, got none")
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    whole, adapter = zip(*sizes.values(), strict=True)
    places = range(len(sizes))
    with _figure(5.8, 1.5 + 0.5 * len(sizes)) as figure:
        axes = figure.add_subplot()
        axes.hlines(places, adapter, whole, color="#bdbdbd", linewidth=1.2, zorder=1)
        for i, (values, label) in enumerate(((whole, "the whole model"), (adapter, "the adapter, A and B"))):
            axes.plot(values, places, label=label, **_look(i) | {"linestyle": "none"})
        for y, large, small in zip(places, whole, adapter, strict=True):
            axes.text((large * small) ** 0.5, y - 0.12, f"{large / small:,.0f} ×", ha="center", va="bottom", fontsize=9)
        axes.set_xscale("log")
        axes.set_xlim(min(adapter) / 4, max(whole) * 4)
        axes.xaxis.set_major_locator(LogLocator(numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
        axes.set_yticks(list(places), list(sizes))
        axes.set_ylim(len(sizes) - 0.5, -0.6)
        axes.grid(False, axis="y")
        axes.set(xlabel="size of the file (log scale)", ylabel="model")
        _legend(figure, columns=2)
    return figure


def _bytes(value: float) -> str:
    """A size in bytes with its decimal unit: 10 kB, 1 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"
