r"""Is ΔW of one file that of another? Module by module, by numbers that were read back from both.

Equal to the bit, where scale and factors are the same numbers but for parts of the rank that are zero; else both ΔW are
formed in float64 and compared. What was written may differ from s·BA by one rounding of A, of B and of s, each by at
most u of the type that is written, and by half of the smallest number η of it, so

$$|\Delta W' - \Delta W| \;\le\; 4u\,|s||B||A| + \eta\,|s|\,(|B|\mathbf 1 + \mathbf 1|A| + r\eta)
    + 2\gamma_{r+2}(2^{-53})\,|s||B||A| \tag{K1}$$

where the last term is the rounding of this check.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import Array, row_blocks
from ..formats.factors import Leaves, pair_of
from ..formats.updates import Numbers, in_type
from ..rounding import gamma, underflow, unit_roundoff

ENTRIES = 1 << 20


@dataclass(frozen=True)
class Same:
    """One module before and after: the largest |ΔW' − ΔW|, where that uses most of its bound (K1), and the bound."""

    module: str
    rank: tuple[int, int]
    scale: tuple[float, float]
    gap: float
    bound: float
    size: float  # of the largest entry of ΔW

    @property
    def to_the_bit(self) -> bool:
        return self.gap == 0.0

    @property
    def holds(self) -> bool:
        return self.gap <= self.bound


def compared(before: Leaves, after: Leaves) -> Iterator[Same]:
    """Every module of both; raises ValueError where one side has a module, or an array, that the other has not."""
    for module in [*before.modules, *after.modules]:
        if module not in before.modules or module not in after.modules:
            side = "what was read" if module in before.modules else "what was written"
            raise ValueError(f"{module} is in {side} alone: the conversion failed")
    for module, parts in before.modules.items():
        other = after.modules[module]
        _check_rest(module, parts, other)
        pair, again = pair_of(parts), pair_of(other)
        if pair is not None and again is not None:
            yield _of_pairs(module, pair, before.scales[module], again, after.scales[module])
    _check_rest("the adapter", before.whole, after.whole)


def _check_rest(where: str, before: Mapping[str, Numbers], after: Mapping[str, Numbers]) -> None:
    """What is no factor must be the same numbers."""
    for name in {*before, *after} - {"A", "B", "EA", "EB"}:
        one, other = (np.asarray(side[name]) if name in side else None for side in (before, after))
        if one is None or other is None or not np.array_equal(_wide(one).ravel(), _wide(other).ravel()):
            raise ValueError(f"{where}: {name} was not written as it was read: the conversion failed")


def _of_pairs(module: str, before: tuple[Numbers, Numbers], s: float, after: tuple[Numbers, Numbers], t: float) -> Same:
    ranks, scales = (_rank(before[0]), _rank(after[0])), (s, t)
    (A, B), (C, D) = (tuple(map(np.asarray, _trimmed(*pair))) for pair in (before, after))
    if s == t and all(_equal(one, other) for one, other in ((A, C), (B, D))):
        return Same(module, ranks, scales, 0.0, 0.0, math.nan)
    if A.ndim != 2 or C.ndim != 2:
        raise ValueError(f"{module} was not written as it was read: the conversion failed")
    kind = max((C.dtype, D.dtype), key=unit_roundoff)
    A, B, C, D = (_wide(factor) for factor in (A, B, C, D))
    worst, size = (-1.0, 0.0, 0.0), 0.0
    for rows in row_blocks(len(B), A.shape[1], ENTRIES):
        one, other = s * (B[rows] @ A), t * (D[rows] @ C)
        gap, bound = abs(other - one), _bound(A, B[rows], s, kind)
        size = max(size, float(abs(one).max(initial=0.0)))
        with np.errstate(divide="ignore", invalid="ignore"):
            used = np.where(gap == 0.0, 0.0, gap / bound)
        k = np.unravel_index(int(used.argmax()), used.shape)
        worst = max(worst, (float(used[k]), float(gap[k]), float(bound[k])))
    return Same(module, ranks, scales, worst[1], worst[2], size)


def _bound(A: Array, B: Array, s: float, kind: Any) -> Array:
    u, eta, r = unit_roundoff(kind), underflow(kind), len(A)
    terms = abs(s) * (abs(B) @ abs(A))
    lost = abs(s) * (abs(B).sum(axis=1, keepdims=True) + abs(A).sum(axis=0) + r * eta)
    return (4.0 * u + 2.0 * gamma(r + 2, unit_roundoff(np.float64))) * terms + eta * lost


def _rank(A: Numbers) -> int:
    return int(A.shape[0])


def _trimmed(A: Numbers, B: Numbers) -> tuple[Array, Array]:
    """The factors without the parts of the rank that are zero on one side."""
    a, b = np.asarray(A), np.asarray(B)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        return a, b
    used = a.any(axis=1) & b.any(axis=0)
    return a[used], b[:, used]


def _equal(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.array_equal(_wide(one), _wide(other)))


def _wide(array: Array) -> Array:
    return in_type(array, np.float64)
