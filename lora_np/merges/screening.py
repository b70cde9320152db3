r"""A merge in 16 bits judged in float32 where that says everything, by `lora_np.merges.settling`, on threads.

The tensor is cut into pieces: rows of one part of the update, or rows between parts, which must be those of the base.
⟨ΔW, ΔW⟩ of (V2) needs no entry of ΔW: it is s² Σ_kl (BᵀB)_kl (AAᵀ)_kl. The sums are added in the order of the rows, so
they do not depend on the number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from ..certificate import ArrayVerdict
from ..engine.arrays import Array, row_blocks
from ..formats.updates import LowRank, Numbers, Update, in_type
from ..rounding import gamma, unit_roundoff
from .expecting import SHORT, Stages
from .judging import Run, Sums, placed
from .settling import Rows, Screen, Seen, recipes_for

ENTRIES = 1 << 17  # of a tensor at a time: half a MiB in float32, of which some six are held together
JOB = 1 << 20  # entries that a thread takes at once


def screened(
    ready: Update, W: Numbers, found: Numbers, stages: Stages, run: Run
) -> tuple[ArrayVerdict, dict[str, int]] | None:
    """The verdict on a sum of s·BA in 16 bits, and how many entries each recipe gives; None for any other tensor."""
    if not _fits(ready, W, found, stages):
        return None
    jobs = list(_jobs(ready, W, found, stages))
    tally, equal = Sums(), dict.fromkeys(recipes_for(found), 0)
    for seen in run(lambda job: job(), jobs):
        tally.join(seen.tally)
        equal = {key: count + seen.equal[key] for key, count in equal.items()}
    squares, sizes = (sum(_squares(part, form) for part in ready.parts) for form in (np.asarray, np.abs))
    k = sum(ready.matrix) + 3 * max(part.rank for part in ready.parts)
    tally.norm = max(squares, 0.0)
    tally.doubt += gamma(k, unit_roundoff(np.float64)) * sizes  # of the sums that make ⟨ΔW, ΔW⟩
    return placed(tally.verdict(ready.name), ready), equal


def _fits(ready: Update, W: Numbers, found: Numbers, stages: Stages) -> bool:
    """Nothing but products beside each other, added in float32 to 16-bit numbers and stored as such."""
    if not ready.only_sums or not all(ready.matrix) or not all(part.height for part in ready.parts):
        return False
    parts = sorted(ready.parts, key=lambda part: part.at)
    beside = all(one.at + one.height <= other.at for one, other in itertools.pairwise(parts))
    plain = beside and tuple(W.shape) == ready.shape == tuple(found.shape)
    known = all(side.dtype.name in (*SHORT, "float32") for part in ready.parts for side in (part.A, part.B))
    exact = stages.product == stages.wide == "float32" and not stages.slack and stages.begun is None
    return plain and W.dtype == found.dtype and found.dtype.name in SHORT and exact and known


def _squares(part: LowRank, form: Callable[[Array], Array]) -> float:
    """‖s·BA‖² out of the factors, or the same of |s||B||A|: Σ_kl (BᵀB)_kl (AAᵀ)_kl."""
    left, right = (form(in_type(side, np.float64)) for side in part.sides(0, part.height))
    return part.scale**2 * float(((left.T @ left) * (right @ right.T)).sum())


def _jobs(ready: Update, W: Numbers, found: Numbers, stages: Stages) -> Iterator[Callable[[], Seen]]:
    """Pieces of the tensor: rows of one part, or rows between parts."""
    whole, end = Rows(ready, W, found, stages), 0
    for part in sorted(ready.parts, key=lambda part: part.at):
        yield from _cut(whole.unadapted, end, part.at, ready.matrix[1])
        end = part.at + part.height
        yield from _cut(Screen.of(whole, part), part.at, end, ready.matrix[1])
    yield from _cut(whole.unadapted, end, ready.matrix[0], ready.matrix[1])


def _cut(look: Callable[[slice], Seen], start: int, stop: int, width: int) -> Iterator[Callable[[], Seen]]:
    def job(low: int, high: int) -> Seen:
        tally, equal = Sums(), dict[str, int]()
        for rows in row_blocks(high - low, width, ENTRIES):
            seen = look(slice(low + rows.start, low + rows.stop))
            tally.join(seen.tally)
            equal = {key: count + equal.get(key, 0) for key, count in seen.equal.items()}
        return Seen(tally, equal)

    for rows in row_blocks(stop - start, width, JOB):
        yield lambda low=start + rows.start, high=start + rows.stop: job(low, high)  # type: ignore[misc]
