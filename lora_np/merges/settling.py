r"""The entries of a 16-bit merge of which float32 says everything that counts; the few others are judged in float64.

Let V = W + D be the sum in float32, D the product in float32, R = V rounded to 16 bits, F what was found, g = |F − V|,
g₀ = |R − V|; h' is half a unit in the last place of R, but a quarter where R is a power of two. D and V are off
by at most δ = γ_k(u32) T + l η + u32 |V|, T = Σ|terms| of ΔW. With E and e of (V1) and (V4), and w the part of its
bound that some entry of this tensor uses, an entry with ΔW ≠ 0 is *settled* where

$$g_0 + \delta < h', \qquad g + \delta < w\,(h' + E). \tag{V6}$$

*Claim.* (i) R is the exact sum rounded once. (ii) The gap is less than w of its bound. (iii) The entry does not lie
within E + e of where rounding turns, unless g₀ + δ + E + e ≥ h'. (iv) Where it does not, every honest recipe gives R.

*Proof.* If V and W + ΔW lay in different binades, the power of two between them would be within δ of V, and so it would
be R, whose h' is half a unit of the finer side. So h' is at most half a unit at either. (i) Numbers of this
precision lie at least 2h' apart around R, and the exact sum is nearer to R than h'. (ii) The bound is at least h' + E,
and the gap at most g + δ. (iii) Rounding turns at the distance h' from R or farther. (iv) What a recipe rounds at last
lies within E of the exact sum, so nearer to R than h'. ∎

Most entries have F = R, no power of two, so that h' is half a unit at V: a few operations on all of a block find those
that are settled, and for them the update found is the update rounded. D of (V3) may hold too many entries, by an E that
is too large by what float32 may be off: then the interval is a little wider than it must be, and still true. Of what is
left, one in a hundred, R is computed; and the few of which float32 does not know enough are judged in float64, as every
entry of another precision is. T is bounded by one number a block, $|s| \max_i \sum_r |B_{ir}| \max_j |A_{rj}|$,
and |W + ΔW| ≤ 2^{p+3} h' with p bits of fraction, so that what is relative to it is a share of h'. w is the use at the
worst entry of some rows, which is not settled itself: the largest use is never lost, and so the verdict is that of
float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..engine.arrays import Array
from ..formats.tensors import dtype_of, flat
from ..formats.updates import LowRank, Numbers, Order, Update, in_type
from ..rounding import finfo_of, gamma, underflow, unit_roundoff
from .expecting import Stages, expectation, lost_of, of_sums, roundings_of
from .judging import Sums
from .recipes import RECIPES, added, merged_rows, order_of

SAMPLE = 1 << 13  # entries by which w is found
MANY = 0.5  # share of a block that is not sure, from which on all of it is judged in float64
U32 = unit_roundoff(np.float32)


class Seen(NamedTuple):
    """A tally of rows, and how many of their entries each recipe gives to the bit."""

    tally: Sums
    equal: dict[str, int]


def recipes_for(found: Numbers) -> list[str]:
    """The programs that write files of this type."""
    return [key for key, recipe in RECIPES.items() if recipe.file in (None, found.dtype.name)]


@dataclass(frozen=True)
class Rows:
    """A tensor that is judged: the prepared update, its base, what was found, and the roundings of honest merges."""

    update: Update
    W: Numbers
    found: Numbers
    stages: Stages

    def stored(self, rows: slice) -> tuple[Array, Array]:
        """These rows of the base and of what was found, as they are stored."""
        width = self.update.matrix[1]
        W, F = (flat(t, rows.start * width, rows.stop * width).reshape(-1, width) for t in (self.W, self.found))
        return W, F

    def exact(self, rows: slice) -> Seen:
        """All of these rows in float64."""
        tally, (_, F), made = Sums(), self.stored(rows), dict[Order, Array]()
        tally.take(rows.start, expectation(self.update, self.W, rows, self.stages), in_type(F, np.float64), F.dtype)
        equal = {
            key: int(np.count_nonzero(merged_rows(RECIPES[key], self.update, self.W, rows, F.dtype, made) == F))
            for key in recipes_for(F)
        }
        return Seen(tally, equal)

    def unadapted(self, rows: slice) -> Seen:
        """Rows between the parts, which must be those of the base."""
        W, F = self.stored(rows)
        if not (np.array_equal(W.view(np.uint16), F.view(np.uint16)) and np.isfinite(in_type(F, np.float32)).all()):
            return self.exact(rows)
        return Seen(Sums(used=0.0, entry=(rows.start, 0)), dict.fromkeys(recipes_for(F), F.size))


@dataclass(frozen=True)
class Screen:
    """One part of an update, and the constants of (V6)."""

    rows: Rows
    part: LowRank
    down: Array  # (height, r) and
    across: Array  # (width, r), the two sides as they are stored
    left: Array  # (height, r) and
    right: Array  # (r, width) in float32
    w: float
    a: float  # E ≥ a|ΔW|, and not much more
    T: Array  # (height,), T of any entry of a row at most

    @classmethod
    def of(cls, rows: Rows, part: LowRank) -> Screen:
        down, right = part.sides(0, part.height)
        left, over = (np.ascontiguousarray(in_type(side, np.float32)) for side in (down, right))
        size = min(max(SAMPLE, part.height * rows.update.matrix[1] // 400), 8 * SAMPLE)
        few = slice(part.at, part.at + min(part.height, max(1, size // rows.update.matrix[1])))
        w = min(1.0, rows.exact(few).tally.used)
        a = math.prod(1.0 + unit_roundoff(cast) for cast in rows.stages.casts) - 1.0
        T = abs(part.scale) * (abs(left).astype(np.float64) @ abs(over).max(axis=1).astype(np.float64))
        return cls(rows, part, np.ascontiguousarray(down), np.ascontiguousarray(right.T), left, over, w, a, T)

    def __call__(self, rows: slice) -> Seen:
        mine = slice(rows.start - self.part.at, rows.stop - self.part.at)
        (W, F), D, off = self.rows.stored(rows), self._product(mine), self._off(mine)
        tally = Sums()
        with np.errstate(all="ignore"):  # what is not finite is not settled
            same = self._cast(W, F, D, mine)
            sure = self._sure(tally, W, F, D, off)
            others = np.flatnonzero(~sure)
            if others.size > MANY * F.size or not math.isfinite(tally.found_update + tally.doubt):
                return self.rows.exact(rows)
            few = Few(*(array.reshape(-1)[others] for array in (W, F, D)))
            settled, is_rounded = self._settled(tally, few, off)
        n_sure, open_ = F.size - others.size, np.flatnonzero(~settled)
        in_float64 = is_rounded.copy()  # what is settled rounds to R, and so it does in float64
        in_float64[open_] = self._exact(tally, few, rows, others, open_)
        for key in recipes_for(F):
            order = order_of(RECIPES[key], self.rows.update)
            if key not in same:
                at = in_float64 if order.product == "float64" else is_rounded
                same[key] = n_sure + int(np.count_nonzero(at))
        return Seen(tally, same)

    def _product(self, mine: slice, *, scale_first: bool = False) -> Array:
        scale, left = np.float32(self.part.scale), self.left[mine]
        if scale_first:
            return (scale * left) @ self.right
        D = left @ self.right
        D *= scale
        return D

    def _off(self, mine: slice) -> Off:
        k, lost = roundings_of(self.rows.update) + self.rows.stages.more, lost_of(self.rows.update)
        product = gamma(k, U32) * float(self.T[mine].max()) + lost * underflow(np.float32)
        casts = sum(map(underflow, self.rows.stages.casts)) * (1.0 + self.a)
        return Off(np.float32(1.001 * 4.0 * product), np.float32(1.001 * casts))

    def _cast(self, W: Array, F: Array, D: Array, mine: slice) -> dict[str, int]:
        """How many of the entries each recipe gives that casts ΔW before the sum."""
        found: dict[str, int] = {}
        known: dict[tuple[Any, ...], int] = {}  # several recipes are one where they round alike
        power_of_two = math.frexp(abs(self.part.scale))[0] in (0.0, 0.5)
        for key in recipes_for(F):
            recipe, order = RECIPES[key], order_of(RECIPES[key], self.rows.update)
            first = order.scale_first and not power_of_two  # a power of two may as well multiply after the product
            casts = [name for name in (order.cast, F.dtype.name if recipe.cast else None) if name is not None]
            if not casts and not first:
                continue
            same = (first, *casts)
            if same not in known:
                delta = self._product(mine, scale_first=True) if first else D
                for name in casts:
                    delta = in_type(delta, dtype_of(name))
                made = in_type(in_type(W, np.float32) + in_type(delta, np.float32), F.dtype)
                known[same] = int(np.count_nonzero(made.view(np.uint16) == F.view(np.uint16)))
            found[key] = known[same]
        return found

    def _sure(self, tally: Sums, W: Array, F: Array, D: Array, off: Off) -> Array:
        """Where (V6) holds with F = R, no power of two; what the entries there add to the sums is added."""
        share, zero = _share(F.dtype), np.float32(0.0)
        V, g = in_type(W, np.float32), in_type(F, np.float32)
        X = g - V
        V += D
        g -= V
        np.abs(g, out=g)
        h, buffer = _half_unit(V, F.dtype), np.empty_like(V)
        np.multiply(h, np.float32(self.w - share), out=buffer)
        buffer -= g
        sure = buffer > off.product
        np.logical_and(sure, F.view(np.uint16) & _fraction(F.dtype), out=sure)
        E = np.abs(D, out=buffer)
        if not E.min() > zero:  # an update of zero leaves the base as it is, to the bit
            np.logical_and(sure, D, out=sure)
        E *= np.float32(self.a)
        X *= sure
        update = float(np.einsum("ij,ij->i", X, D).sum(dtype=np.float64))
        np.abs(V, out=V)
        V += E
        apart = _half_unit(V, F.dtype, out=V)
        apart *= np.float32(2.0)
        apart += E
        apart += off.product + off.casts  # E + ulp + e of (V3)
        g += E
        h *= np.float32(1.0 - share)
        h -= g
        doubtful = h <= off.product + off.casts
        np.logical_and(doubtful, sure, out=doubtful)
        apart *= doubtful
        doubt = float(np.einsum("ij,ij->i", apart, E).sum(dtype=np.float64)) / self.a
        tally.doubt += doubt * (1.0 + 2.0 * share) + float(off.product) * float(apart.sum(dtype=np.float64))
        tally.found_update += update
        tally.rounded_update += update
        tally.changed += int(np.count_nonzero(sure))
        tally.swallowed += int(np.count_nonzero(np.logical_and(W.view(np.uint16) == F.view(np.uint16), sure)))
        return sure

    def _settled(self, tally: Sums, few: Few, off: Off) -> tuple[Array, Array]:
        """Where (V6) holds, and where F = R; what settled entries add to the sums is added."""
        W, F, D = (in_type(array, np.float32) for array in few)
        kind, V, size = few.F.dtype, W + D, abs(D)
        short = in_type(V, kind)
        R, E = in_type(short, np.float32), np.float32(self.a) * size
        h = _half_unit(R, kind)
        h[(short.view(np.uint16) & _fraction(kind)) == 0] *= np.float32(0.5)
        g, g0, d = abs(F - V), abs(R - V), off.product + np.float32(_share(kind, 2.0)) * h
        settled = (g0 + d < h) & (g + 2.0 * d < np.float32(self.w) * (h + E)) & (D != 0.0)
        E = E + d + off.casts
        doubtful = settled & (g0 + E >= h)
        apart = 2.0 * _half_unit(abs(V) + E, kind)
        tally.doubt += 1.001 * float((((E + apart) * (size + off.product))[doubtful]).sum(dtype=np.float64))
        is_rounded = short.view(np.uint16) == few.F.view(np.uint16)
        W, F, R, D = (array[settled] for array in (W, F, R, D))
        tally.found_update += float(((F - W) * D).sum(dtype=np.float64))
        tally.rounded_update += float(((R - W) * D).sum(dtype=np.float64))
        tally.changed += D.size
        tally.swallowed += int(np.count_nonzero(R == W))
        return settled, is_rounded

    def _exact(self, tally: Sums, few: Few, rows: slice, others: Array, open_: Array) -> Array:
        """The entries that are not settled, `open_` among the few, in float64; where a merge in float64 gives them."""
        update, stages, scale = self.rows.update, self.rows.stages, self.part.scale
        i, j = np.divmod(others[open_], update.matrix[1])
        left = in_type(self.down[i + (rows.start - self.part.at)], np.float64)
        right = in_type(self.across[j], np.float64)
        change = np.einsum("ij,ij->i", left, right) * scale
        terms = np.einsum("ij,ij->i", np.abs(left, out=left), np.abs(right, out=right)) * abs(scale)
        W, F = few.W[open_], few.F[open_]
        k, lost = roundings_of(update) + stages.more, lost_of(update)
        part = Sums()
        part.take(0, of_sums(in_type(W, np.float64), change, terms, k, lost, stages), in_type(F, np.float64), F.dtype)
        if part.entry:
            part.entry = (rows.start + int(i[part.entry[0]]), int(j[part.entry[0]]))
        tally.join(part)
        return added(RECIPES["float64"], W, change, F.dtype) == F


class Off(NamedTuple):
    """What E, e, δ, and a times what D is off, hold at most beside shares of |ΔW| and |V|, in a block.

    product   γT + lη of the products, at most 1 + a < 2 times in each of the four
    casts     of E alone: half the smallest number of each precision to which ΔW is cast
    """

    product: np.float32
    casts: np.float32


class Few(NamedTuple):
    """Entries taken out of a block: W and F as they are stored, D in float32."""

    W: Array
    F: Array
    D: Array


def _half_unit(V: Array, dtype: Any, out: Array | None = None) -> Array:
    """Half a unit in the last place of a 16-bit precision at the float32 numbers V."""
    about = finfo_of(dtype)
    power = np.bitwise_and(V.view(np.uint32), np.uint32(0x7F800000), out=None if out is None else out.view(np.uint32))
    h = np.maximum(power.view(np.float32), np.float32(about.smallest_normal), out=power.view(np.float32))
    h *= np.float32(0.5 * about.eps)
    return h


def _share(dtype: Any, coarser: float = 1.0) -> float:
    """δ and E hold u32 |W + ΔW| each, |W + ΔW| ≤ 2^{p+2} `coarser` h': that and roundings here, as a share of h'."""
    return (2.0 ** (finfo_of(dtype).nmant + 3) * coarser + 32.0) * U32


def _fraction(dtype: Any) -> np.uint16:
    """The bits of the fraction: none of them is set in a power of two, nor in zero."""
    return np.uint16((1 << finfo_of(dtype).nmant) - 1)
