"""Pictures of tutorial 05: what a batch is made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import COLOURS, GREY, _figure

# kind of position → colour; from light to dark, so that grey print tells them apart
KINDS = {"padding": "#e3e3e3", "prompt: read, not learned": COLOURS[4], "reference and END: learned": "#00304d"}


def batch_layout(batch: Any, end: int = 0) -> Any:
    r"""A batch as a map of its positions: what is only read, what is learned, and what is padding.

    batch  has tokens and weights (batch, seq); end pads. A position counts as padding after the last learned one.
    """
    learned = np.asarray(batch.weights) > 0
    after = np.cumsum(learned[:, ::-1], axis=1)[:, ::-1] == 0  # nothing learned here or later
    kinds = np.where(learned, 2, np.where(after & (np.asarray(batch.tokens) == end), 0, 1))
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    rows, seq = kinds.shape
    with _figure(6.4, 1.5 + 0.2 * rows) as figure:
        axes = figure.add_subplot()
        edges = np.arange(seq + 1) - 0.5, np.arange(rows + 1) - 0.5
        colours, norm = ListedColormap(list(KINDS.values())), BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3)
        axes.pcolormesh(*edges, kinds, cmap=colours, norm=norm, rasterized=True)
        axes.hlines(np.arange(1, rows) - 0.5, -0.5, seq - 0.5, color="white", linewidth=2.0)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_yticks(range(rows))
        axes.grid(False)
        axes.set(xlabel="position in the sequence (tokens)", ylabel="row of the batch")
        handles = [Patch(facecolor=colour, edgecolor=GREY, label=kind) for kind, colour in KINDS.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure
