r"""What an adapter does to one tensor of its base, whatever its format: rows of it, in a stated order of roundings.

    W    base tensor, seen as a matrix (n, width)       experts (E, out, in) as (E·out, in), convolutions as (out, rest)
    ΔW   sum of parts s·BA, each placed at its rows     transposed where the base stores (d_in, d_out)
    Ŵ    W + ΔW                                                                                              (F1)
         m ∘ (W + ΔW)/‖W + ΔW‖                          DoRA: a norm for each output, Liu et al. 2024, equation 5
         another tensor, or some rows of one            modules_to_save, trained biases, trained tokens

Source: Hu et al. 2021, arXiv:2106.09685, equation 3, for (F1); arXiv:2402.09353 for the magnitude.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..engine.arrays import Array
from .tensors import Tensor, dtype_of, flat

Numbers = Array | Tensor
BLOCK = 1 << 20  # numbers of a base tensor that are held at once while its columns are measured


def in_type(array: Array, dtype: Any) -> Array:
    """The array in another type; a signalling NaN, which a 16-bit file may hold, becomes a quiet one without a word."""
    with np.errstate(invalid="ignore"):
        return array.astype(dtype, copy=False)


@dataclass(frozen=True)
class Order:
    """In which types s·BA is computed: the product and the factor in `product`, then cast to `cast` if it is not None.

    scale_first   s multiplies the left factor before the product, not the product after it
    """

    product: str = "float64"
    cast: str | None = None
    scale_first: bool = False


EXACT = Order()


def peft_order(stored: str) -> Order:
    """How PEFT computes ΔW of an adapter stored in this type on a CPU: 16-bit factors are multiplied in float32."""
    return Order("float32" if stored in ("float16", "bfloat16") else stored, stored)


@dataclass(frozen=True)
class LowRank:
    r"""One product s·BA at rows `at` and on of the base tensor.

    A         (rank, d_in); (rank, d_in, k...) of a convolution; (E·rank, d_in) or (E, rank, d_in) of experts
    B         (d_out, rank); (d_out, E·rank) of experts, whose columns count the expert fastest; or (E, d_out, rank)
    expert    which of `experts` this part is
    outputs   which rows of B are meant, (start, stop); all when None
    """

    A: Numbers
    B: Numbers
    scale: float
    transposed: bool = False
    at: int = 0
    expert: int = 0
    experts: int = 1
    outputs: tuple[int, int] | None = None

    @property
    def rank(self) -> int:
        return self.A.shape[1] if self.stacked(self.A) else self.A.shape[0] // self.experts

    @property
    def d_out(self) -> int:
        whole = self.B.shape[1] if self.stacked(self.B) else self.B.shape[0]
        return whole if self.outputs is None else self.outputs[1] - self.outputs[0]

    @property
    def d_in(self) -> int:
        return int(np.prod(self.A.shape[2 if self.stacked(self.A) else 1 :]))

    @property
    def height(self) -> int:
        """How many rows of the base tensor it reaches."""
        return self.d_in if self.transposed else self.d_out

    def stacked(self, factor: Numbers) -> bool:
        """True for factors of experts with an axis of their own."""
        return self.experts > 1 and len(factor.shape) == 3

    def a(self) -> Array:
        """A of this part, (rank, d_in), as it is stored."""
        if self.stacked(self.A):
            return self.A[self.expert : self.expert + 1][0]
        rank = self.rank
        return self.A[self.expert * rank : (self.expert + 1) * rank].reshape(rank, -1)

    def b(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows `start` to `stop` of B of this part, (stop - start, rank), as they are stored."""
        first = (self.outputs or (0, 0))[0]
        stop = self.d_out if stop is None else stop
        if self.stacked(self.B):
            return self.B[self.expert : self.expert + 1][0][first + start : first + stop]
        block = self.B[first + start : first + stop]
        return block.reshape(stop - start, -1)[:, self.expert :: self.experts]

    def sides(self, start: int, stop: int) -> tuple[Array, Array]:
        """Left (stop - start, rank) and right (rank, width) whose product is those rows of BA, or of its transpose."""
        return (self.a().T[start:stop], self.b().T) if self.transposed else (self.b(start, stop), self.a())

    def rows(self, start: int, stop: int, order: Order = EXACT) -> Array:
        """Rows `start` to `stop`, counted from its own first, of s·BA."""
        left, right = (in_type(side, order.product) for side in self.sides(start, stop))
        scale = left.dtype.type(self.scale)
        product = (scale * left) @ right if order.scale_first else (left @ right) * scale
        return product if order.cast is None else in_type(product, dtype_of(order.cast))

    def sizes(self, start: int, stop: int) -> Array:
        """The same rows of |s||B||A| in float64: what its rounding errors are measured against."""
        left, right = (abs(in_type(side, np.float64)) for side in self.sides(start, stop))
        return abs(self.scale) * (left @ right)


@dataclass(frozen=True)
class Magnitude:
    """DoRA's m, one number an output: along the rows of the base matrix, or along its columns.

    norms   of the columns of W + ΔW, once they are measured (see `Update.prepared`)
    """

    m: Numbers
    along: Literal["rows", "columns"]
    norms: Array | None = None


@dataclass(frozen=True)
class TokenRows:
    """Rows of a table that stand in the place of its own: `rows` (n, d) at `indices` (n,)."""

    indices: Array
    rows: Numbers


@dataclass(frozen=True)
class Shift:
    """s·b, added to a bias."""

    b: Numbers
    scale: float


@dataclass(frozen=True)
class Update:
    """What happens to the tensor `name`; in this order: replaced, parts added, magnitude, bias shifted, rows replaced.

    shape    of the base tensor; of the new one where the base has none (`new`)
    matrix   (n, width), as which it is seen here
    start    "pissa" or "olora" when the base was changed before training by what its own factors give: ΔW is then
             s·BA minus that, which `prepared` computes from the base
    """

    name: str
    shape: tuple[int, ...]
    matrix: tuple[int, int]
    parts: tuple[LowRank, ...] = ()
    replacement: Numbers | None = None
    magnitude: Magnitude | None = None
    shift: Shift | None = None
    tokens: TokenRows | None = None
    new: bool = False
    start: str | None = None

    @property
    def only_sums(self) -> bool:
        """Is nothing done but adding s·BA?"""
        others = (self.magnitude, self.shift, self.tokens, self.replacement, self.start)
        return bool(self.parts) and all(other is None for other in others)

    def change(self, rows: slice, order: Order = EXACT) -> Array:
        r"""These rows of ΔW, the sum of the parts, in float64 or in the order given."""
        return self._summed(rows, lambda part, start, stop: part.rows(start, stop, order))

    def sizes(self, rows: slice) -> Array:
        """These rows of the sum of |s||B||A|, in float64."""
        return self._summed(rows, lambda part, start, stop: part.sizes(start, stop))

    def _summed(self, rows: slice, of: Any) -> Array:
        start, stop, _ = rows.indices(self.matrix[0])
        total: Array | None = None
        for part in self.parts:
            low, high = max(start, part.at), min(stop, part.at + part.height)
            if low >= high:
                continue
            block = of(part, low - part.at, high - part.at)
            if (low, high) == (start, stop) and total is None:
                total = block
                continue
            if total is None:
                total = np.zeros((stop - start, self.matrix[1]), block.dtype)
            total[low - start : high - start] += block
        return np.zeros((stop - start, self.matrix[1])) if total is None else total

    def base_rows(self, W: Numbers, rows: slice) -> Array:
        """These rows of the base tensor, or of what replaces it, as they are stored."""
        start, stop, _ = rows.indices(self.matrix[0])
        source = W if self.replacement is None else self.replacement
        return flat(source, start * self.matrix[1], stop * self.matrix[1]).reshape(stop - start, self.matrix[1])

    def expected(self, W: Numbers, rows: slice) -> Array:
        """These rows of the merged tensor in float64; raises ValueError where `prepared` should have come first."""
        merged = self._sum(W, rows)
        if self.magnitude is not None:
            merged = merged * self._factor(merged, rows)
        if self.shift is not None:
            merged = merged + self.shift.scale * np.asarray(self.shift.b, np.float64)
        if self.tokens is not None:
            start, stop, _ = rows.indices(self.matrix[0])
            mine = np.flatnonzero((self.tokens.indices >= start) & (self.tokens.indices < stop))
            merged[self.tokens.indices[mine] - start] = in_type(np.asarray(self.tokens.rows)[mine], np.float64)
        return merged

    def _sum(self, W: Numbers, rows: slice) -> Array:
        if self.start is not None:
            raise ValueError(f"{self.name} starts from its base ({self.start}): prepare the update with the base first")
        return in_type(self.base_rows(W, rows), np.float64) + self.change(rows)

    def _factor(self, merged: Array, rows: slice) -> Array:
        assert self.magnitude is not None
        m = np.asarray(self.magnitude.m, np.float64).reshape(-1)
        if self.magnitude.along == "rows":
            return (m[rows] / np.sqrt((merged * merged).sum(axis=1)))[:, None]
        if self.magnitude.norms is None:
            raise ValueError(f"{self.name} needs the norms of its columns: prepare the update with the base first")
        return m / self.magnitude.norms

    def prepared(self, W: Numbers) -> Update:
        """The same update with its factors in memory, and what follows from the whole base tensor: start and norms.

        Rows may be asked for without it, but then the factors are read each time.
        """
        held: dict[int, Array] = {}  # factors that several parts share are read once

        def read(factor: Numbers) -> Array:
            if id(factor) not in held:
                held[id(factor)] = np.asarray(factor)
            return held[id(factor)]

        parts = tuple(dataclasses.replace(part, A=read(part.A), B=read(part.B)) for part in self.parts)
        begun = () if self.start is None else self._begun(W)
        ready = dataclasses.replace(self, start=None, parts=parts + begun)
        if ready.magnitude is None or ready.magnitude.along == "rows":
            return ready
        squares, step = np.zeros(self.matrix[1]), max(1, BLOCK // max(1, self.matrix[1]))
        for start in range(0, self.matrix[0], step):
            block = ready._sum(W, slice(start, start + step))
            squares += (block * block).sum(axis=0)
        return dataclasses.replace(ready, magnitude=dataclasses.replace(ready.magnitude, norms=np.sqrt(squares)))

    def _begun(self, W: Numbers) -> tuple[LowRank, ...]:
        """What was taken from the base before training: its best rank-r part (PiSSA), or the first r of QR (OLoRA).

        Source: Meng et al. 2024, arXiv:2404.02948, section 3; Büyükakyüz 2024, arXiv:2406.01775, section 3.
        """
        (part,) = self.parts
        r, whole = part.rank, np.asarray(W, np.float64).reshape(self.matrix)
        if self.start == "pissa":
            U, S, V = np.linalg.svd(whole.T if part.transposed else whole, full_matrices=False)
            return (LowRank(V[:r], U[:, :r] * S[:r], -1.0, part.transposed),)
        Q, R = np.linalg.qr(whole)
        return (LowRank(R[:r], Q[:, :r], -part.scale),)


@dataclass(frozen=True)
class Finding:
    """Something about an adapter that its owner should know.

    kind    a word for programs      where   the tensor, module or setting
    what    what is the matter       todo    what to do about it
    stops   True where ΔW cannot be given as its author meant it
    """

    kind: str
    where: str
    what: str
    todo: str
    stops: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.todo}"


@dataclass(frozen=True)
class Adapter:
    """An adapter of any format: what it does to each tensor of its base, and what is odd about it.

    updates   {name of the base's tensor: Update}
    order     in which its own program computes ΔW
    settings  what its description says, as it stands there
    leaves    what its file has, before the base was asked (`lora_np.formats.factors.Leaves`)
    """

    format: str
    updates: Mapping[str, Update]
    order: Order
    findings: tuple[Finding, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    leaves: Any = None

    def checked(self, *allowed: str) -> Adapter:
        """The same adapter; raises ValueError for the first finding that stops, unless its kind is allowed."""
        for finding in self.findings:
            if finding.stops and finding.kind not in allowed:
                raise ValueError(str(finding))
        if not self.updates:
            raise ValueError(f"{self.files[0] if self.files else 'the adapter'} changes no tensor of the base")
        return self
