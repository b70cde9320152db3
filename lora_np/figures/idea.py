"""What LoRA is, in pictures: W0 beside a thin B and a flat A, and the numbers of each as colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engine.arrays import Array
from . import COLOURS, GREY, _figure

BLUE, ORANGE = COLOURS[0], COLOURS[1]


def lora_picture(d_out: int = 192, d_in: int = 192, rank: int = 4, name: str = "W0") -> Any:
    r"""$W_0$ (d_out, d_in), frozen, and beside it $s\,BA$: a thin B (d_out, rank) and a flat A (rank, d_in), trained.

    Sides are drawn to scale, but for the rank, which would be a hair: it is at least a twentieth of the larger side.
    Meant for ranks that are small: at others the texts stand on the boxes.
    Raises ValueError for a size below 1, or a rank that exceeds the smaller side.
    """
    if min(d_out, d_in, rank) < 1 or rank > min(d_out, d_in):
        raise ValueError(f"sizes must be at least 1, the rank at most the smaller; got {d_out} × {d_in}, rank {rank}")
    unit = 1.0 / max(d_out, d_in)
    height, width, thin = d_out * unit, d_in * unit, max(rank * unit, 0.05)
    right = max(width, 0.5)  # room for the words in W0
    at_B, at_A = right + 0.34, right + 0.34 + thin + 0.12
    with _figure(7.2, 3.4) as figure:
        axes = figure.add_subplot()
        _box(axes, (0.0, 0.0), width, height, GREY, f"{name}\n{d_out} × {d_in}\n{d_out * d_in:,} numbers\nfrozen")
        axes.text(right + 0.17, height / 2, "+  s ·", ha="center", va="center", fontsize=15)
        _box(axes, (at_B, 0.0), thin, height, BLUE, "")
        _box(axes, (at_A, (height - thin) / 2), width, thin, ORANGE, "")
        below = {"va": "top", "fontsize": 10}
        axes.text(at_B + thin / 2, -0.03, f"B  {d_out} × {rank}\nstarts at zero", ha="center", color=BLUE, **below)
        beside = f"A  {rank} × {d_in}\nstarts random"
        axes.text(at_A + width / 2, (height - thin) / 2 - 0.03, beside, ha="center", color="#8a5a00", **below)
        trained = rank * (d_out + d_in)
        share = f"B and A are trained:\n{rank} · ({d_out} + {d_in}) = {trained:,} numbers,\n"
        share += f"{trained / (d_out * d_in):.1%} of {name}"
        axes.text(at_A, height, share, ha="left", va="top", fontsize=10)
        end = at_A + max(width, 0.8)
        axes.text(end, -0.03, f"merged: {name} + s·BA,\none matrix again", ha="right", **below)
        axes.set(xlim=(-0.1, end + 0.28), ylim=(-0.24, height + 0.06))
        axes.set_aspect("equal")
        axes.axis("off")
    return figure


def heat_maps(matrices: Mapping[str, Array]) -> Any:
    """Matrices side by side as colours, each on a scale of its own that is centred at zero and stated above it.

    matrices  {label: a matrix}; of more than one axis and at least one entry
    Raises ValueError where there is none, or one that is no matrix.
    """
    if not matrices or any(matrix.ndim != 2 or not matrix.size for matrix in matrices.values()):
        raise ValueError("heat maps need at least one matrix, each of two axes")
    shapes = [matrix.shape for matrix in matrices.values()]
    widths = [max(columns / max(max(shape) for shape in shapes), 0.16) for _, columns in shapes]
    with _figure(7.2, 2.9) as figure:
        places = figure.subplots(1, len(shapes), squeeze=False, width_ratios=widths)[0]
        for axes, (label, matrix) in zip(places, matrices.items(), strict=True):
            most = float(np.abs(matrix).max()) or 1.0
            thin = min(matrix.shape) * 8 < max(matrix.shape)
            look = {"cmap": "RdBu_r", "vmin": -most, "vmax": most, "interpolation": "nearest"}
            axes.imshow(matrix, aspect="auto" if thin else "equal", **look)
            axes.set_title(f"{label}\n{matrix.shape[0]} × {matrix.shape[1]}\n±{most:.2g}", fontsize=9)
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            if thin and matrix.shape[0] < matrix.shape[1]:
                axes.set_box_aspect(0.14)
    return figure


def _box(axes: Any, corner: tuple[float, float], width: float, height: float, colour: str, text: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(corner, width, height, facecolor=colour, alpha=0.25, edgecolor=colour, linewidth=1.4))
    axes.text(corner[0] + width / 2, corner[1] + height / 2, text, ha="center", va="center", fontsize=11)
