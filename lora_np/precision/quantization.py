r"""Numbers of few bits: the nearest one that a format has, and how far it may be off.

    float16, bfloat16   the nearest floating-point number                  |W − Ŵ| ≤ half a unit in the last place
    int8                a whole number q of steps a row, absmax/127         |W − Ŵ| ≤ absmax/254
    nf4                 one of 16 levels times the absmax of 64 numbers     |W − Ŵ| ≤ absmax · half the largest gap

With levels $c_0 < \dots < c_m$ from −1 to 1, a scale a = max|W| of a block, and the nearest level taken,

$$\hat W = a\,c_{q},\quad q = \arg\min_i |W/a - c_i|,\qquad
  |W - \hat W| \le \tfrac{a}{2}\,(c_{i+1} - c_i)\ \text{ for the } i \text{ with } c_i \le W/a \le c_{i+1} \tag{Q1}$$

since W/a lies between two neighbours and the nearer one is at most half their gap away. At the middle of a gap it is
reached. int8 is the same with 255 levels k/127.

**Double quantisation.** The scales of NF4 cost 32/64 = 0.5 bits a number. In groups of 256, with m the mean of all and
g the largest |a − m| of a group, they are kept in 8 bits, for 8/64 + 32/(64·256) = 0.127 bits:

$$\hat a = \max\bigl(0,\ m + g\,k/127\bigr),\quad k = \mathrm{round}\bigl(127\,(a - m)/g\bigr),\qquad
  |W - \hat a\,c_q| \le \underbrace{|W - a\,c_q|}_{\le (Q1)} + \frac{g}{254}\,|c_q| \tag{Q6}$$

for a, which is not negative, is nearer to max(0, x) than to a negative x, and q is chosen with a itself.

Source: Dettmers et al. 2023, arXiv:2305.14314 (QLoRA), section 3 and appendix E. There the second quantisation is to
8-bit floats; here it is to 8-bit whole numbers, of which (Q6) is the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..engine.arrays import Array
from ..formats.tensors import dtype_of
from ..rounding import rounded, spacing, unit_roundoff

KINDS = ("float16", "bfloat16", "int8", "nf4")
BLOCK, GROUP = 64, 256  # numbers that share one scale in NF4, and scales that share one of theirs


def normal_float(bits: int = 4) -> Array:
    r"""The levels of NormalFloat: quantiles of a normal distribution, (2^bits,), from −1 to 1, one of them 0.

    Half of the levels are quantiles below 0, half plus one above, at equal steps of probability from 1/2 to

    $$\delta = 1 - \tfrac12\Bigl(\tfrac{1}{2\,(2^k - 1)} + \tfrac{1}{2 \cdot 2^k}\Bigr),\qquad
      c^- = -Q(\mathrm{linspace}(\delta, \tfrac12, 2^{k-1})),\quad
      c^+ = Q(\mathrm{linspace}(\delta, \tfrac12, 2^{k-1} + 1)) \tag{Q2}$$

    with Q the quantile function; both are divided by Q(δ), and their common 0 is taken once.

    Source: the levels of QLoRA's appendix E, which are those of its code and not of its equation 4.
    """
    if bits < 2:
        raise ValueError(f"bits must be at least 2, got {bits}")
    n, quantile = 2**bits, NormalDist().inv_cdf
    most = 1.0 - 0.5 * (1.0 / (2 * (n - 1)) + 1.0 / (2 * n))

    def half(count: int) -> list[float]:
        return [quantile(float(p)) / quantile(most) for p in np.linspace(most, 0.5, count)[:-1]]

    return np.array(sorted([*(-level for level in half(n // 2)), 0.0, *half(n // 2 + 1)]))


NF4 = normal_float(4)
INT8 = np.arange(-127, 128) / 127.0


@dataclass(frozen=True)
class Quantised:
    """An array in few bits.

    numbers   what is stored, in float64                  codes   which level, or the bits of a float, as whole numbers
    bound     (Q1), elementwise: |W − numbers| ≤ bound    bits    of one number, its share of a scale counted
    """

    kind: str
    numbers: Array
    codes: Array
    bound: Array
    bits: float


def quantised(W: Array, kind: str) -> Quantised:
    """W (n, width), each number as the nearest one that this format has; raises ValueError for an unknown format.

    NF4 counts its blocks row by row, and the last one may be shorter. What is not finite is refused.
    """
    W = np.asarray(W, np.float64)
    if kind not in KINDS or W.ndim != 2 or not np.isfinite(W).all():
        raise ValueError(
            f"a matrix of finite numbers and one of {', '.join(KINDS)} are needed, got {kind!r}, {W.shape}"
        )
    if kind == "int8":
        return _levels(kind, W, W, INT8, 8.0 + 32.0 / W.shape[1])
    if kind == "nf4":
        return _levels(kind, W, _blocks(W, BLOCK), NF4, 4.0 + 32.0 / BLOCK)
    dtype = dtype_of(kind)
    numbers = rounded(W.astype(np.float32), dtype)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{kind} does not reach {abs(W).max():.4g}: its largest number is smaller")
    bound = 0.5 * spacing(abs(W), dtype) + unit_roundoff(np.float32) * abs(W)  # W goes through float32
    return Quantised(kind, numbers, W.astype(np.float32).astype(dtype).view(np.int16).astype(np.int64), bound, 16.0)


def doubly_quantised(W: Array) -> Quantised:
    """W (n, width) in NF4 with its scales in 8 bits, (Q6); raises ValueError as `quantised` does."""
    once, rows = quantised(W, "nf4"), _blocks(np.asarray(W, np.float64), BLOCK)
    scale = abs(rows).max(axis=1)
    mean = float(scale.mean())
    again = _blocks(scale - mean, GROUP)
    widest = abs(again).max(axis=1, keepdims=True)
    steps = np.rint(127.0 * again / np.where(widest > 0.0, widest, 1.0))
    kept = np.maximum(0.0, mean + (widest * steps / 127.0).reshape(-1)[: scale.size])
    off = np.repeat(widest, GROUP)[: scale.size] / 254.0 + 4.0 * unit_roundoff(np.float64) * (mean + scale)

    def spread(array: Array) -> Array:
        """One number a block, to all numbers of W."""
        return np.repeat(array, BLOCK)[: once.codes.size].reshape(once.codes.shape)

    level, bits = NF4[once.codes], 4.0 + 8.0 / BLOCK + 32.0 / (BLOCK * GROUP)
    return Quantised("nf4 double", spread(kept) * level, once.codes, once.bound + spread(off) * abs(level), bits)


def _blocks(array: Array, size: int) -> Array:
    """The numbers of an array, `size` a row, the last row filled up with zeros."""
    out = np.zeros(-(-array.size // size) * size)
    out[: array.size] = array.reshape(-1)
    return out.reshape(-1, size)


def _levels(kind: str, W: Array, rows: Array, levels: Array, bits: float) -> Quantised:
    scale = abs(rows).max(axis=1, keepdims=True)
    x = rows / np.where(scale > 0.0, scale, 1.0)
    codes = np.searchsorted(0.5 * (levels[1:] + levels[:-1]), x)
    gap = np.diff(levels)[np.clip(np.searchsorted(levels, x) - 1, 0, len(levels) - 2)]
    tiny = 4.0 * unit_roundoff(np.float64) * scale  # of the quotient, the product and the middles themselves

    def like_w(array: Array) -> Array:
        return array.reshape(-1)[: W.size].reshape(W.shape)

    return Quantised(kind, like_w(scale * levels[codes]), like_w(codes), like_w(0.5 * scale * gap + tiny), bits)
