r"""What few bits leave of a small update, as a table: `python -m lora_np.precision`.

    W    (256, 256)  normal, standard deviation 0.02, seed 0
    ΔW   (256, 256)  B·A of rank 8, both normal, seed 1, scaled to 1 % of W, root mean square

All columns but the first two are shares of ΔW, root mean square: (Q3) both orders, (Q4) into the requantised base.
"""

from __future__ import annotations

import numpy as np

from ..engine.arrays import Array
from .lab import bases, orders, sizes_swallowed, swallowed
from .quantization import BLOCK, KINDS, doubly_quantised, quantised

WIDTH, RANK, SIZE = 256, 8, 0.01
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
HEAD = ("format", "bits", "swallowed", "merge, then quantise", "quantise, then merge", "requantised")


def example(size: float = SIZE) -> tuple[Array, Array]:
    """W and ΔW of the table, (WIDTH, WIDTH) each, in float64."""
    W = 0.02 * np.random.default_rng(0).standard_normal((WIDTH, WIDTH))
    rng = np.random.default_rng(1)
    change = rng.standard_normal((WIDTH, RANK)) @ rng.standard_normal((RANK, WIDTH))
    return W, change * (size * np.sqrt(np.mean(W**2) / np.mean(change**2)))


def table() -> str:
    """The table in Markdown, and what double quantisation adds to it."""
    W, change = example()
    rows = [HEAD, ("---",) * len(HEAD)]
    for kind in KINDS:
        far = orders(W, change, kind).values()
        shares = (swallowed(W, change, kind), *far, bases(W, change, kind).requantised)
        rows.append((kind, f"{quantised(W, kind).bits:.3f}", *(f"{100.0 * share:.4g}%" for share in shares)))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n\n" + _double(W)


def shares() -> dict[str, list[tuple[float, float]]]:
    """{format: [(size of ΔW, share swallowed)]}, for `figures.precision.swallowed`."""
    return sizes_swallowed(*example(), SIZES, KINDS)


def _double(W: Array) -> str:
    found = {one.kind: one for one in (quantised(W, "nf4"), doubly_quantised(W))}
    size = np.sqrt(np.mean(W**2))
    said = [f"{one.bits:.3f} bits and an error of {100.0 * np.sqrt(np.mean((one.numbers - W) ** 2)) / size:.4f}% of W"
            for one in found.values()]  # fmt: skip
    return f"NF4 with a scale in float32 a block of {BLOCK}: {said[0]}; with its scales in 8 bits: {said[1]}."
