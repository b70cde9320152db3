r"""Is a merged checkpoint of another program W0 + ΔW? Tensor by tensor, of files that need not fit into memory.

**Every honest recipe.** Programs differ in where they round. Behind ΔW lie the products, in float32 or better, and then
none, one or more casts: to the type in which the adapter is stored (PEFT), and to that of the base before the sum
(`safe_merge`, mlx-lm). The sum is taken in a type at least as wide as float32 and then rounded to that of the file.
With u and η of each stage and l of the products, as in equation (V1) of `lora_np.certificate`:

$$E = \gamma_k(u_\text{product})\,T + l\,\eta,\qquad
  E \leftarrow E + u_c\,(|\Delta W| + E) + \eta_c\ \text{for each cast } c,\qquad
  E \leftarrow E + u_\text{wide}\,(|W| + E)                                              \tag{V4}$$

and (V1) to (V3) follow with this E. Every stage only adds, so the bound of all casts together holds for a recipe that
leaves some of them out. A factor s that is no power of two may be multiplied in 16 bits behind the product (on a
device), which is one more cast. Where no term meets an entry, E is 0 and the entry must be that of the base.

**DoRA** gives f·x with x = W0 + ΔW, f = m/‖x‖. With ρ what is known of f, the relative error of a norm of n numbers,
a quotient and their casts, and E of x as above,

$$|\hat f \hat x - f x| \le |f|\,\bigl(|x|\,\delta + E\,(1 + \delta)\bigr),\qquad
  \delta = \frac{\rho}{1 - \rho},\quad \rho = \frac{\|E\|}{\|x\|} + \gamma_{n+2}(u_{32}) + 3u_\text{wide}   \tag{V5}$$

**PiSSA, OLoRA** changed the base before training, W0 − s·B0A0 rounded to its own type: half a unit more, and the error
of a decomposition in float32, for which the usual estimate stands:
$16\sqrt n\,u_{32}\,\sigma_1(1 + \sigma_r/(\sigma_r - \sigma_{r+1}))$.

What no adapter touches must be the same bytes, the same type and the same shape.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..certificate import ArrayVerdict, Tally
from ..engine.arrays import Array, row_blocks
from ..formats.grammar import HEADS, TABLES
from ..formats.tensors import Tensor, flat
from ..formats.updates import Adapter, LowRank, Numbers, Update, in_type
from ..rounding import gamma, of_an_update, rounded, spacing, underflow, unit_roundoff, within

ENTRIES = 1 << 17  # of a tensor at a time: 1 MiB in float64, of which some twenty are held together
PIECE = 1 << 24  # bytes of a tensor that are compared by one thread before it takes others
STEP = 1 << 19  # of them at a time
SHORT = ("float16", "bfloat16")
Run = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


def in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


@dataclass(frozen=True)
class Stages:
    """The roundings that an honest merge may make of one tensor, all of them together; see (V4).

    casts   of ΔW before the sum      wide   of the sum before its last rounding, to the type of the file
    more    roundings behind a product beside those of the product itself: factors stored in a wider type
    begun   half a unit of this type, and this much everywhere, where the base itself was changed before training
    slack   share of the update that is let pass beside: 0 for a verdict, more for a guess of what a fault is
    """

    product: str
    casts: tuple[str, ...]
    wide: str
    more: int = 0
    begun: tuple[str, float] | None = None
    slack: float = 0.0


@dataclass(frozen=True)
class Judged:
    """One tensor of the merged files beside what it should be.

    kind    "adapted", "untouched", "missing" (in the merged files) or "extra"
    array   gap, bound and factors where they could be measured
    fault   "" where it holds, else a word for programs, and `words` for people
    equal   how many of its numbers each recipe gives to the bit, where they were counted on the way
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    array: ArrayVerdict | None = None
    fault: str = ""
    words: str = ""
    equal: Mapping[str, int] | None = None

    @property
    def holds(self) -> bool:
        return not self.fault

    @property
    def weight(self) -> float:
        """How bad it is, for sorting."""
        used = 0.0 if self.array is None else self.array.used
        return math.inf if self.fault and self.array is None else used + (1e300 if self.fault else 0.0)

    def as_dict(self) -> dict[str, Any]:
        from ..gradients import finite

        about: dict[str, Any] = {"name": self.name, "kind": self.kind, "shape": list(self.shape), "dtype": self.dtype}
        about |= {"holds": self.holds, "fault": self.fault, "words": self.words}
        array = {} if self.array is None else finite(dataclasses.asdict(self.array))
        return {**about, **{name: array.get(name) for name in ("gap", "bound", "used", "entry", "wrong", "factor",
                "factor_low", "factor_high", "swallowed")}}  # fmt: skip


def judged(
    adapter: Adapter,
    base: Mapping[str, Tensor],
    merged: Mapping[str, Tensor],
    tied: Mapping[str, str] | None = None,
    *,
    named: bool = True,
    run: Run = in_turn,
) -> Iterator[Judged]:
    """A verdict for each tensor that one side has or should have, in the order of the base.

    tied   {head: table} that are one tensor, of which the merged files may write both
    named  look for what a fault is, by `lora_np.merges.faults`
    run    a map over pieces of a tensor, on threads; the numbers do not depend on it
    """
    for name in [*base, *(name for name, update in adapter.updates.items() if update.new and name not in base)]:
        update = adapter.updates.get(name)
        if name not in merged:
            other = next((b if name == a else a for a, b in (tied or {}).items() if name in (a, b)), None)
            if other in merged and other in base and update is None:
                continue  # the tied copy was left out
            about = base.get(name)
            shape, dtype = (update.shape, "") if about is None and update else (about.shape, about.dtype.name)  # type: ignore[union-attr]
            yield Judged(name, "missing", shape, dtype, None, "missing", "the merged files do not have it")
        elif update is None:
            yield untouched(name, base[name], merged[name], run)
        else:
            yield adapted(adapter, update, base.get(name), merged[name], named=named, run=run)
    for name in merged:
        if name not in base and name not in adapter.updates:
            yield _extra(name, merged, tied or {}, run)


def tied_tables(base: Mapping[str, Tensor], merged: Mapping[str, Tensor]) -> dict[str, str]:
    """{head: table} for a head that the base does not store, since it is its table of tokens."""
    tables = [name for name in base if name.endswith(TABLES)]
    heads = [name for name in merged if name not in base and name.removesuffix(".weight").endswith(HEADS)]
    return {head: tables[0] for head in heads if len(tables) == 1}


def _extra(name: str, merged: Mapping[str, Tensor], tied: Mapping[str, str], run: Run) -> Judged:
    """A tensor that the base has not: the copy of a tied one, or what should not be there."""
    found, other = merged[name], tied.get(name)
    about = (name, "extra", found.shape, found.dtype.name)
    if other is None or other not in merged:
        return Judged(*about, None, "extra", "neither the base nor the adapter has it")
    if same_bytes(found, merged[other], run):
        return Judged(*about)
    words = f"it is tied to {other} in config.json, but they differ: the update was merged into one of them only"
    return Judged(*about, None, "tied", words)


def untouched(name: str, base: Tensor, found: Tensor, run: Run = in_turn) -> Judged:
    """What no adapter touches: the same bytes, type and shape, or what is different."""
    about = (name, "untouched", found.shape, found.dtype.name)
    if found.shape != base.shape:
        return Judged(*about, None, "shape", f"its shape is {found.shape}, that of the base {base.shape}")
    if same_bytes(base, found, run):
        return Judged(*about)
    verdict, recast = _difference(name, base, found)
    if base.dtype != found.dtype and recast:
        words = f"the numbers of the base in another type: {found.dtype.name}, not {base.dtype.name}"
        return Judged(*about, verdict, "recast", words)
    if not math.isfinite(verdict.used) and not math.isfinite(verdict.gap):
        return Judged(*about, verdict, "not_finite", f"entry {list(verdict.entry)} is not finite")
    verb = "differs" if verdict.wrong == 1 else "differ"
    words = f"no adapter touches it, and yet {verdict.wrong:,} of {found.size:,} numbers {verb} from the base"
    return Judged(*about, verdict, "untouched_changed", words)


def same_bytes(one: Tensor, other: Tensor, run: Run = in_turn) -> bool:
    """The same type, shape and bytes; numbers are compared as whole words, whatever they mean."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    size = one.dtype.itemsize
    step = STEP // size

    def piece(start: int) -> bool:
        ends = [(at, min(at + step, one.size)) for at in range(start, min(start + PIECE // size, one.size), step)]
        return all(bool((_words(one, *end) == _words(other, *end)).all()) for end in ends)

    return all(run(piece, range(0, one.size, PIECE // size)))


def _words(tensor: Tensor, start: int, stop: int) -> Array:
    """The bytes of these numbers, eight at a time where they can be so divided."""
    found = np.ascontiguousarray(flat(tensor, start, stop)).view(np.uint8)
    return found.view(np.uint64) if found.size % 8 == 0 else found


def _difference(name: str, base: Tensor, found: Tensor) -> tuple[ArrayVerdict, bool]:
    """The largest difference of two tensors of one shape, and whether the one is the other in another type."""
    wrong, gap, entry, recast = 0, -1.0, 0, True
    for start in range(0, base.size, ENTRIES):
        stop = min(start + ENTRIES, base.size)
        one, other = (in_type(flat(t, start, stop), np.float64) for t in (base, found))
        recast = recast and bool(np.array_equal(rounded(one, found.dtype), other, equal_nan=True))
        far = np.where(np.isnan(other) & ~np.isnan(one), math.inf, np.nan_to_num(abs(other - one), posinf=math.inf))
        wrong += int(np.count_nonzero(far))
        if far.size and far.max() > gap:
            gap, entry = float(far.max()), start + int(far.argmax())
    at = tuple(int(i) for i in np.unravel_index(entry, base.shape)) if base.shape else ()
    return ArrayVerdict(name, False, max(gap, 0.0), 0.0, math.inf if gap > 0 else 0.0, at, wrong, None), recast


def adapted(
    adapter: Adapter, update: Update, base: Tensor | None, found: Tensor, *, named: bool = False, run: Run = in_turn
) -> Judged:
    """What the adapter changes, judged over all of it."""
    from .screening import screened

    about = (update.name, "adapted", found.shape, found.dtype.name)
    if found.shape != update.shape:
        return Judged(*about, None, "shape", f"its shape is {found.shape}, and should be {update.shape}")
    W = np.zeros(update.shape, found.dtype) if base is None else base
    ready = update.prepared(W)
    stages = stages_of(update, W, found)
    verdict, equal = screened(ready, W, found, stages, run) or (verdict_of(ready, W, found, stages, run=run), None)
    if base is not None and base.dtype != found.dtype:
        words = f"it is stored as {found.dtype.name}, the base as {base.dtype.name}"
        holds = verdict.holds or verdict_of(ready, W, found, stages, precision=base.dtype).holds  # widened afterwards
        return Judged(*about, verdict, "recast" if holds else "wrong", words)
    if verdict.holds:
        return Judged(*about, verdict, equal=equal)
    if not math.isfinite(verdict.gap):
        return Judged(*about, verdict, "not_finite", f"entry {list(verdict.entry)} is not finite")
    from .faults import Case, name_of

    fault, words = name_of(Case(adapter, ready, W, found, stages)) if named else ("", "")
    return Judged(*about, verdict, fault or "wrong", f"{words}; {_off(verdict)}" if fault else _off(verdict))


def _off(verdict: ArrayVerdict) -> str:
    if verdict.wrong:
        where = f"entry {list(verdict.entry)} is off by {verdict.gap:.3g}, where rounding explains {verdict.bound:.3g}"
        return where + (f", and {verdict.wrong - 1:,} more" if verdict.wrong > 1 else "")
    return f"the update found is {verdict.factor:.6g} times the one expected"


def verdict_of(
    ready: Update, W: Numbers, found: Numbers, stages: Stages, blocks: Sequence[slice] | None = None,
    precision: Any = None, run: Run = in_turn,
) -> ArrayVerdict:  # fmt: skip
    """(V1) to (V3) over blocks of rows, all of them when None; `ready` is prepared with the base W.

    precision   of the sum; that of what is found when None
    run         a map over blocks, on threads
    """
    norms = _norm_doubt(ready, W, stages)

    def tally_of(rows: slice) -> Sums:
        part = Sums()
        made = expectation(ready, W, rows, stages, norms)
        part.take(rows.start, made, found_rows(ready, found, rows), precision or found.dtype)
        return part

    tally = Sums()
    for part in run(tally_of, blocks or row_blocks(*ready.matrix, ENTRIES)):
        tally.join(part)
    return placed(tally.verdict(ready.name), ready)


def placed(verdict: ArrayVerdict, ready: Update) -> ArrayVerdict:
    """The same verdict, its entry counted in the axes of the tensor."""
    at = math.prod(ready.matrix[1:]) * verdict.entry[0] + verdict.entry[1] if verdict.entry else 0
    return dataclasses.replace(verdict, entry=tuple(int(i) for i in np.unravel_index(at, ready.shape)))


class Expectation(NamedTuple):
    """Rows of a merged tensor in float64: before, after, what is added, E of (V4) or (V5), e of (V1)."""

    before: Array
    value: Array
    update: Array
    E: Array
    e: Array


class Sums(Tally):
    """What is summed up over the blocks of one tensor, by (V1) to (V3) with an E of any recipe."""

    def take(self, start: int, rows: Expectation, found: Array, precision: Any) -> None:
        W, value, update, E, e = rows
        R = rounded(value, precision)
        apart = spacing(abs(value) + E, precision)
        self._worst(start, abs(found - value), np.where(E == 0.0, abs(value - R), E + 0.5 * apart + e))
        ulp = spacing(abs(R), precision)
        turns = 0.25 * ulp  # half a unit below a power of two is a quarter of one above it
        doubtful = (turns - abs(value - R) <= E + e) & (update != 0.0)
        doubtful &= (0.5 * ulp - abs(value - R) <= E + e) | (np.frexp(abs(R))[0] == 0.5)
        self.doubt += float(((E + apart + e) * abs(update))[doubtful].sum())
        self.found_update += float(((found - W) * update).sum())
        self.rounded_update += float(((R - W) * update).sum())
        self.norm += float((update * update).sum())
        self.changed += int(np.count_nonzero(update))
        self.swallowed += int(np.count_nonzero((update != 0.0) & (R == W)))


def found_rows(update: Update, found: Numbers, rows: slice) -> Array:
    """These rows of a tensor, seen as the matrix of the update, in float64."""
    start, stop, _ = rows.indices(update.matrix[0])
    block = flat(found, start * update.matrix[1], stop * update.matrix[1])
    return in_type(block, np.float64).reshape(stop - start, update.matrix[1])


def expectation(ready: Update, W: Numbers, rows: slice, stages: Stages, norms: Array | None = None) -> Expectation:
    """These rows of W0, and what they should become."""
    same = tuple(W.shape) == ready.shape
    before = found_rows(ready, W, rows) if same else np.zeros((rows.stop - rows.start, ready.matrix[1]))
    change, terms, k = ready.change(rows), ready.sizes(rows), roundings_of(ready) + stages.more
    if ready.only_sums:
        return of_sums(before, change, terms, k, lost_of(ready), stages)
    value = ready.expected(W, rows)
    if ready.shift is not None:
        terms = terms + abs(ready.shift.scale * np.asarray(ready.shift.b, np.float64)).reshape(terms.shape)
    plain = ready.magnitude is None
    inner = value if plain else ready._sum(W, rows)
    update = inner - before if ready.shift is not None else change
    E = _update_error(before, terms, update, k, lost_of(ready), stages)
    E = E + np.where(E > 0.0, unit_roundoff(stages.wide) * (abs(inner) + E), 0.0)
    if not plain:
        E, terms, k = _scaled(ready, inner, value, E, terms, k, rows, stages, norms)
    if ready.replacement is not None or not plain or ready.tokens is not None:
        update = value - before
    if ready.tokens is not None:
        E, terms = _known(ready, rows, E), _known(ready, rows, terms)
    u = unit_roundoff(np.float64)
    return Expectation(before, value, update, E, within(gamma(k, u), terms) + u * abs(value))


def of_sums(before: Array, change: Array, terms: Array, k: int, lost: float, stages: Stages) -> Expectation:
    """What entries of W0 (`before`) should become where nothing is done but adding s·BA, in any shape."""
    value, u = before + change, unit_roundoff(np.float64)
    E = _update_error(before, terms, change, k, lost, stages)
    E = E + np.where(E > 0.0, unit_roundoff(stages.wide) * (abs(value) + E), 0.0)
    return Expectation(before, value, change, E, within(gamma(k, u), terms) + u * abs(value))


def _update_error(before: Array, terms: Array, update: Array, k: int, lost: float, stages: Stages) -> Array:
    E = of_an_update(update, terms, k, lost, stages.product, stages.casts, stages.slack)
    if stages.begun is not None:
        dtype, everywhere = stages.begun
        E = E + everywhere + unit_roundoff(dtype) * (abs(before) + terms) + underflow(dtype)
    return np.where(terms > 0.0, E, 0.0)


def _scaled(
    ready: Update, inner: Array, value: Array, E: Array, terms: Array, k: int, rows: slice, stages: Stages,
    norms: Array | None,
) -> tuple[Array, Array, int]:  # fmt: skip
    """(V5), and terms and roundings by which the check itself is bounded."""
    assert ready.magnitude is not None
    n = ready.matrix[1] if ready.magnitude.along == "rows" else ready.matrix[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.sqrt((E * E).sum(1) / (inner * inner).sum(1))[:, None] if norms is None else norms[None, :]
        f = abs(np.where(inner == 0.0, 0.0, value / inner))
    rho = share + gamma(n + 2, unit_roundoff(np.float32)) + 3.0 * unit_roundoff(stages.wide)
    delta = np.where(rho < 1.0, rho / np.maximum(1.0 - rho, 1e-300), math.inf)
    return f * (abs(inner) * delta + E * (1.0 + delta)), f * (terms + abs(inner)), k + n + 8


def _norm_doubt(ready: Update, W: Numbers, stages: Stages) -> Array | None:
    """‖E‖/‖x‖ of each column, where DoRA measures columns; None elsewhere."""
    if ready.magnitude is None or ready.magnitude.along == "rows":
        return None
    bare, squares = dataclasses.replace(ready, magnitude=None), np.zeros(ready.matrix[1])
    for rows in row_blocks(*ready.matrix, ENTRIES):
        E = expectation(bare, W, rows, stages).E
        squares += (E * E).sum(axis=0)
    with np.errstate(divide="ignore"):
        return np.sqrt(squares) / np.asarray(ready.magnitude.norms)


def _known(ready: Update, rows: slice, E: Array) -> Array:
    """0 in the rows that are replaced: nothing is computed there."""
    assert ready.tokens is not None
    mine = ready.tokens.indices
    E = E.copy()
    E[mine[(mine >= rows.start) & (mine < rows.stop)] - rows.start] = 0.0
    return E


def roundings_of(update: Update) -> int:
    """k of (V4): the ranks that meet in one entry, two for the factor s, and the sums of several parts."""
    if len({part.at for part in update.parts}) == len(update.parts) > 1:
        return max(part.rank for part in update.parts) + 2  # one beside the other
    return sum(part.rank + 2 for part in update.parts) + 1


def lost_of(update: Update) -> float:
    """l of (V4): how often half the smallest number may be lost; s multiplies what was lost before it.

    Where s meets B first (mlx-lm), or A, each of its numbers may lose as much, before the other factor multiplies it;
    and so may s itself.
    """
    total = 1.0
    for part in update.parts:
        A, B = (abs(in_type(factor, np.float64)) for factor in (part.a(), part.b()))
        rows, columns = B.sum(axis=1).max(initial=0.0), A.sum(axis=0).max(initial=0.0)
        met_first = rows + columns + rows * A.max(initial=0.0)
        total += float((part.rank + 1) * max(1.0, abs(part.scale)) + 1.0 + 2.0 * met_first)
    return total


def stages_of(update: Update, W: Numbers, found: Numbers) -> Stages:
    """All roundings that an honest merge of this tensor may make."""
    stored = {factor.dtype.name for part in update.parts for factor in (part.A, part.B)}
    base = W.dtype.name
    wide64 = base == "float64" and stored <= {"float64"}
    casts = [name for name in sorted(stored) if name in SHORT]
    if any(not _power_of_two(part.scale) for part in update.parts):
        casts += casts
    casts += [name for name in {base, found.dtype.name} if name in SHORT and name not in casts]
    product = "float64" if wide64 else "float32"
    magnitude = update.magnitude is not None and base in SHORT and bool(stored) and stored <= set(SHORT)
    wide = base if magnitude else "float32" if {base, found.dtype.name} & set(SHORT) else "float64"
    wide = "float32" if update.magnitude is not None and base == "float32" else wide
    more = 0 if product == "float64" or "float64" not in stored else 2
    return Stages(product, tuple(casts), wide, more, _begun(update, W))


def _power_of_two(scale: float) -> bool:
    return math.frexp(abs(scale))[0] in (0.0, 0.5)


def _begun(update: Update, W: Numbers) -> tuple[str, float] | None:
    if update.start is None or not update.parts:
        return None
    part: LowRank = update.parts[0]
    S = np.linalg.svd(np.asarray(W, np.float64).reshape(update.matrix), compute_uv=False)
    r = part.rank
    gap = S[r - 1] - (S[r] if r < S.size else 0.0)
    worse = 1.0 + (S[r - 1] / gap if update.start == "pissa" else 1.0)
    return W.dtype.name, 16.0 * math.sqrt(max(update.matrix)) * unit_roundoff(np.float32) * float(S[0]) * float(worse)
