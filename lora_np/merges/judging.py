r"""Is a merged checkpoint of another program W0 + ΔW? Tensor by tensor, of files that need not fit into memory.

What the adapter changes is W0 + ΔW within the bound of `lora_np.merges.expecting`, by (V1) to (V3) of
`lora_np.certificate` with E of (V4) or (V5). What no adapter touches must be the same bytes, the same type and the same
shape.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..certificate import ArrayVerdict, Tally
from ..engine.arrays import Array, row_blocks
from ..formats.grammar import HEADS, TABLES
from ..formats.tensors import Tensor, flat
from ..formats.updates import Adapter, Numbers, Update, in_type
from ..rounding import rounded, spacing
from .expecting import ENTRIES, Expectation, Stages, expectation, found_rows, norm_doubt, stages_of

PIECE = 1 << 24  # bytes of a tensor that are compared by one thread before it takes others
STEP = 1 << 19  # of them at a time
Run = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


def in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


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
    norms = norm_doubt(ready, W, stages)

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
