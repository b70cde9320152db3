r"""What happens to an update ΔW when it is merged into few bits; every function returns numbers, for a picture.

With q(·) a format of `quantised` and h(·) its bound (Q1), elementwise:

    swallowed            q(W) + ΔW has the code of q(W): the update left no trace there
    merge, then quantise  |q(W + ΔW) − (W + ΔW)| ≤ h(W + ΔW)
    quantise, then merge  |q(q(W) + ΔW) − (W + ΔW)| ≤ h(q(W) + ΔW) + h(W)                                        (Q3)

**QLoRA's three bases.** An adapter that was trained on a quantised base corrects q(W) + ΔW, not W + ΔW. Where it is
merged decides how far the model lies from the one that was trained:

    the base in 16 bits   W + ΔW            off by the whole error of the quantisation, h(W)
    the dequantised base  q(W) + ΔW         off by one rounding to 16 bits
    requantised           q(q(W) + ΔW)      off by h(q(W) + ΔW): a third quantity, as small as the file is        (Q4)

**Drift.** Adding ΔW and taking it away again rounds twice, so after t cycles

$$|W_t - W_0| \le \sum_{i \le t} \tfrac12\,\mathrm{ulp}(M_i) + \tfrac12\,\mathrm{ulp}(W_i),\qquad
  M_i = \mathrm{fl}(W_{i-1} + \Delta W_i),\ W_i = \mathrm{fl}(M_i - \Delta W_i) \tag{Q5}$$

and an unmerge that keeps W0 and gives it back is exact, whatever the precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.arrays import Array
from ..formats.tensors import dtype_of
from ..rounding import rounded, spacing
from .quantization import quantised


def swallowed(W: Array, change: Array, kind: str) -> float:
    """Share of the numbers that ΔW changes whose code in this format stays that of q(W); 0 where ΔW changes none."""
    base = quantised(W, kind)
    moved = np.asarray(change) != 0.0
    same = quantised(base.numbers + change, kind).codes == base.codes
    return float(same[moved].mean()) if moved.any() else 0.0


def sizes_swallowed(
    W: Array, change: Array, sizes: Sequence[float], kinds: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """{format: [(size, share swallowed)]} with ΔW scaled to `size` times the root mean square of W."""
    unit = change * (_size(W) / _size(change))
    return {kind: [(size, swallowed(W, size * unit, kind)) for size in sizes] for kind in kinds}


def orders(W: Array, change: Array, kind: str) -> dict[str, float]:
    """How far both orders lie from W + ΔW, root mean square relative to that of ΔW; (Q3)."""
    right = np.asarray(W, np.float64) + change
    after = quantised(right, kind).numbers
    before = quantised(quantised(W, kind).numbers + change, kind).numbers
    return {
        "merge, then quantise": _share(after - right, change),
        "quantise, then merge": _share(before - right, change),
    }


@dataclass(frozen=True)
class Bases:
    """How far each merge lies from q(W) + ΔW, which was trained, root mean square relative to that of ΔW; (Q4)."""

    in_16_bits: float
    dequantised: float
    requantised: float

    def as_dict(self) -> dict[str, float]:
        return {
            "base in 16 bits": self.in_16_bits,
            "dequantised base": self.dequantised,
            "requantised": self.requantised,
        }


def bases(W: Array, change: Array, kind: str, stored: str = "bfloat16") -> Bases:
    """The three merges of an adapter that was trained on q(W); `stored` is the 16-bit type of the first two."""
    dtype, base = dtype_of(stored), quantised(W, kind).numbers
    trained = base + change
    made = (
        rounded(rounded(np.asarray(W, np.float64), dtype) + change, dtype),
        rounded(trained, dtype),
        quantised(trained, kind).numbers,
    )
    return Bases(*(_share(one - trained, change) for one in made))


@dataclass(frozen=True)
class Drift:
    """After each cycle: the share of the numbers that are not W0's, the largest difference, and (Q5)."""

    changed: tuple[float, ...]
    largest: tuple[float, ...]
    bound: tuple[float, ...]


def drift(W: Array, changes: Sequence[Array], dtype: str, cycles: int = 1000) -> Drift:
    """Adapters merged and unmerged in turn, in this precision; raises ValueError without a cycle or an adapter."""
    if cycles < 1 or not changes:
        raise ValueError(f"at least one cycle and one adapter are needed, got {cycles} and {len(changes)}")
    kind = dtype_of(dtype)
    first = np.asarray(W).astype(kind)
    steps = [np.asarray(change).astype(np.float32) for change in changes]
    now, start, bound = first, first.astype(np.float64), np.zeros(first.shape)
    seen: list[tuple[float, float, float]] = []
    for cycle in range(cycles):
        step = steps[cycle % len(steps)]
        merged = (now.astype(np.float32) + step).astype(kind)
        now = (merged.astype(np.float32) - step).astype(kind)
        for one in (merged, now):
            # the sum goes through float32, half of whose unit is 2^-16 of one of bfloat16, and 2^-13 of one of float16
            bound += (0.5 + 2.0**-12) * spacing(abs(one.astype(np.float64)), kind)
        far = abs(now.astype(np.float64) - start)
        seen.append((float((far > 0.0).mean()), float(far.max()), float(bound.max())))
    changed, largest, bounds = zip(*seen, strict=True)
    return Drift(changed, largest, bounds)


def _size(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))


def _share(error: Array, change: Array) -> float:
    return _size(error) / _size(change)
