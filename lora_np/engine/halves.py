r"""Frozen matrices held in 16 bits and computed with in 32: half the memory, and not one operation more to derive.

    float16    sign, 5 bits of exponent, 10 of fraction    6e-8 … 65504      unit roundoff 2⁻¹¹
    bfloat16   sign, 8 bits of exponent, 7 of fraction     as float32's      unit roundoff 2⁻⁸: the upper half of one

A `HalfArray` is such a matrix. Whoever asks for rows of it gets them as an ordinary array, exactly: every number of 16
bits is one of float32. So what is computed is what the float32 matrix of the rounded numbers would give, and only the
rounding, once, when the matrix is stored, is an approximation.

**Widening by bits.** A bfloat16 is a float32 without its lower half: a shift by 16. A float16 with exponent e and
fraction m, shifted to where float32 has its fields, reads as 2^(e−127)(1 + m/2¹⁰) in place of 2^(e−15)(1 + m/2¹⁰), and
so does a subnormal one in place of itself: a product with 2¹¹² is exact in both cases.

$$\mathrm{float16}:\quad 2^{112}\cdot\mathrm{float32}(2^{13}\,\mathrm{bits},\ \text{under a mask}) \tag{W1}\qquad
  \mathrm{bfloat16}:\quad \mathrm{float32}(2^{16}\,\mathrm{bits}) \tag{W2}$$

where float32(b) is the number whose bits are b.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from .arrays import Array, row_blocks

HALVES = ("float16", "bfloat16")
AT_ONCE = 1 << 22  # numbers that are widened at a time where a matrix is read in blocks: 16 MiB in float32


class HalfArray:
    """A frozen matrix in 16 bits that reads as an array of `dtype`.

    bits    uint16, the numbers as they are held        kind    "float16" or "bfloat16"

    It can be read, `W[rows]` and `np.asarray(W)`, and neither written nor differentiated.
    """

    __slots__ = ("bits", "dtype", "kind")

    def __init__(self, bits: Array, kind: str, dtype: npt.DTypeLike = np.float32) -> None:
        self.bits, self.kind, self.dtype = bits, kind, np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    @property
    def ndim(self) -> int:
        return self.bits.ndim

    @property
    def size(self) -> int:
        return self.bits.size

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes

    @property
    def T(self) -> Array:
        return np.asarray(self).T

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, where: Any) -> Array:
        return widened(self.bits[where], self.kind).astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[...] if dtype is None else self[...].astype(dtype, copy=False)

    def __add__(self, other: Any) -> Array:
        return self[...] + other

    def __repr__(self) -> str:
        return f"HalfArray({self.kind}, shape {self.shape})"

    def astype(self, dtype: npt.DTypeLike, *, copy: bool = True) -> Array:
        return self[...].astype(dtype, copy=False)

    def blocks(self) -> list[slice]:
        """Its rows in slices of at most AT_ONCE numbers."""
        return row_blocks(len(self), self.size // max(1, len(self)), AT_ONCE)


def is_half(array: object) -> TypeGuard[HalfArray]:
    """Is this a matrix in 16 bits?"""
    return isinstance(array, HalfArray)


def whole(W: Array) -> Array:
    """An array as it is; one of 16 bits widened, for as long as somebody holds the result."""
    return W[...] if is_half(W) else W


def half(array: Array, kind: str) -> HalfArray:
    """The array rounded from float32 to 16 bits, to the nearest number, of two as near to the even one.

    Raises ValueError for another kind, and for a number that is not finite then: float16 ends at 65504.
    """
    held = HalfArray(np.empty(array.shape, np.uint16), kind, array.dtype if array.dtype == np.float64 else np.float32)
    if kind not in HALVES:
        raise ValueError(f"the base can be held in {' or '.join(HALVES)}, got {kind!r}")
    for r in row_blocks(len(array), array.size // max(1, len(array)), AT_ONCE):
        store(held, r, np.asarray(array[r]))
    return held


def store(held: HalfArray, rows: slice, numbers: Array) -> None:
    """Round these numbers into rows of a matrix that is being made."""
    exact = np.ascontiguousarray(numbers, np.float32)
    if held.kind == "float16":
        with np.errstate(over="ignore"):
            rounded = exact.astype(np.float16).view(np.uint16)
        finite = (rounded & 0x7C00) != 0x7C00
    else:
        bits = exact.view(np.uint32)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        finite = (rounded & 0x7F80) != 0x7F80
    finite &= np.isfinite(exact)
    if not finite.all():
        raise ValueError(f"it holds {exact[~finite].flat[0]:g}, which {held.kind} does not: hold it in float32")
    held.bits[rows] = rounded


def widened(bits: Array, kind: str) -> Array:
    """Bits of 16-bit numbers as the same numbers in float32: (W1), (W2)."""
    if kind == "bfloat16":
        wide = bits.astype(np.uint32)
        wide <<= 16  # (W2)
        return wide.view(np.float32)
    signed = bits.view(np.int16).astype(np.int32)  # the sign fills the upper half
    signed <<= 13
    signed &= np.int32(-0x70002000)  # 0x8FFFE000: of the copies of the sign only the first
    numbers = signed.view(np.float32)
    numbers *= np.float32(2.0**112)  # (W1)
    return numbers
