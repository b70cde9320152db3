r"""An adapter as its file has it, whatever the format: what stands beside each module, before any base is asked.

    A, B     (r, d_in), (d_out, r)       of a linear map; more axes of a convolution; E of experts packed or in front
    EA, EB   (r, vocab), (d, r)          of a table, whose update is the transpose of s·BA
    m, b     (d_out,)                    DoRA's magnitude; a bias beside B
    tokens   (n, d)                      rows of a table that are replaced

That is what a conversion carries from one format to another; `lora_np.formats.assembling` places the same on a base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engine.arrays import Array
from .tensors import Tensor
from .updates import Numbers

LINEAR, TABLE = ("A", "B"), ("EA", "EB")


@dataclass(frozen=True)
class Leaves:
    """Factors by module, the scale s of each pair, and tensors that replace those of the base.

    copies      of these, the ones that were saved because their module was adapted, changed or not
    dora        do magnitudes act?
    settings    the description that came with it, as it stands
    """

    modules: Mapping[str, Mapping[str, Numbers]]
    scales: Mapping[str, float]
    whole: Mapping[str, Numbers] = field(default_factory=dict)
    copies: frozenset[str] = frozenset()
    dora: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Made(Tensor):
    """An array that is made from others each time it is used."""

    shape: tuple[int, ...]
    kind: np.dtype[Any]
    make: Callable[[], Array]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.kind

    def numbers(self, start: int, stop: int) -> Array:
        return np.asarray(self.make()).reshape(-1)[start:stop].astype(self.kind, copy=False)


def pair_of(leaves: Mapping[str, Numbers]) -> tuple[Numbers, Numbers] | None:
    """The two factors of a module, of a linear map or of a table; None where one of them is missing."""
    for one, other in (LINEAR, TABLE):
        if one in leaves and other in leaves:
            return leaves[one], leaves[other]
    return None


def is_table(leaves: Mapping[str, Numbers]) -> bool:
    return "EA" in leaves


def padded(leaves: Mapping[str, Numbers], rank: int) -> dict[str, Numbers]:
    """The same update with factors of a higher rank: rows of A and columns of B that are zero."""
    names = TABLE if is_table(leaves) else LINEAR
    A, B = leaves[names[0]], leaves[names[1]]
    more = rank - A.shape[0]
    if not more:
        return dict(leaves)
    below = Made((rank, A.shape[1]), A.dtype, lambda: np.pad(np.asarray(A), ((0, more), (0, 0))))
    beside = Made((B.shape[0], rank), B.dtype, lambda: np.pad(np.asarray(B), ((0, 0), (0, more))))
    return {**leaves, names[0]: below, names[1]: beside}


def times(leaves: Mapping[str, Numbers], factor: float) -> dict[str, Numbers]:
    """B multiplied by a factor: in its own type where that is exact, a power of two, else at least in float32."""
    name = TABLE[1] if is_table(leaves) else LINEAR[1]
    B = leaves[name]
    exact = abs(np.frexp(factor)[0]) == 0.5 and _keeps(np.asarray(B), factor)
    kind = B.dtype if exact else np.promote_types(np.float32, B.dtype) if B.dtype.kind == "f" else np.dtype("f4")
    scaled = Made(B.shape, kind, lambda: (np.asarray(B).astype(np.float64) * factor).astype(kind))
    return {**leaves, name: scaled}


def _keeps(B: Array, factor: float) -> bool:
    """Does no number of B leave the range of its type when it is multiplied by this power of two?"""
    with np.errstate(over="ignore", under="ignore"):
        scaled = (B.astype(np.float64) * factor).astype(B.dtype)
    return bool(np.array_equal(scaled.astype(np.float64), B.astype(np.float64) * factor))


def in_types(leaves: Mapping[str, Numbers], allowed: tuple[str, ...]) -> dict[str, Numbers]:
    """The same arrays in types that a format has: one that it has not becomes float32."""
    single = np.dtype(np.float32)

    def cast(array: Numbers) -> Numbers:
        if array.dtype.name in allowed:
            return array
        return Made(tuple(array.shape), single, lambda: np.asarray(array).astype(single))

    return {name: cast(array) for name, array in leaves.items()}
