r"""What is the matter with a tensor that is not W0 + ΔW? Hypotheses by name, each an update that may have been merged.

A hypothesis is judged as a merge is (`lora_np.merges.judging.verdict_of`), on rows spread over the tensor: the first
whose entries all lie within their bounds is the name. So a name is never a matter of taste: it says that what was found
is an honest merge of that other update. Only three names are looser, and are asked last: `twice` (the first merge is
made here, and one made by another recipe rounds some entries otherwise), `scale` (a factor that no rule gives is
measured, and 3 % of slack are let pass), and `another_adapter` (what was added has the rank of an adapter).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..formats.tensors import Tensor
from ..formats.updates import Adapter, LowRank, Numbers, Update
from ..rounding import rounded, spacing, unit_roundoff
from .expecting import Stages, found_rows
from .judging import verdict_of

SAMPLE = 1 << 18  # numbers of a tensor by which its fault is named
LUCK = 0.15  # share of the entries in which two honest first merges may differ
SLACK = 0.03  # of the update, where its factor is measured


@dataclass(frozen=True)
class Case:
    """A tensor that does not hold: the prepared update, its base, what was found, and the rounding of honest merges."""

    adapter: Adapter
    update: Update
    W: Numbers
    found: Numbers
    stages: Stages

    @cached_property
    def blocks(self) -> list[slice]:
        """Rows spread over the tensor, some of every part."""
        n, width = self.update.matrix
        if n * width <= SAMPLE:
            return [slice(0, n)]
        middles = {part.at + part.height // 2 for part in self.update.parts}
        starts = sorted({*np.linspace(0, n - 1, 16).astype(int).tolist(), *middles})
        height = max(1, SAMPLE // (width * len(starts)))
        cut = [min(start + height, stop) for start, stop in zip(starts, [*starts[1:], n], strict=True)]
        return [slice(start, stop) for start, stop in zip(starts, cut, strict=True) if start < stop]

    def wrong(self, update: Update, W: Numbers | None = None, **changes: Any) -> float:
        """Share of the looked-at entries that no honest merge of this other update would give; 1 for a wrong factor."""
        stages = dataclasses.replace(self.stages, **changes)
        verdict = verdict_of(update, self.W if W is None else W, self.found, stages, self.blocks)
        looked = sum(rows.stop - rows.start for rows in self.blocks) * self.update.matrix[1]
        return verdict.wrong / looked if verdict.factor_holds or changes or W is not None else 1.0

    def added(self, rows: slice) -> Array:
        """What was added there, in float64."""
        return found_rows(self.update, self.found, rows) - found_rows(self.update, self.W, rows)


Guess = Callable[[Case], Iterator[Update]]


def with_parts(update: Update, change: Callable[[LowRank], LowRank]) -> Update:
    return dataclasses.replace(update, parts=tuple(change(part) for part in update.parts))


def times(update: Update, factor: float) -> Update:
    return with_parts(update, lambda part: dataclasses.replace(part, scale=part.scale * factor))


def _nothing(case: Case) -> Iterator[Update]:
    yield dataclasses.replace(case.update, parts=(), magnitude=None, replacement=None, tokens=None, shift=None)


def _negative(case: Case) -> Iterator[Update]:
    if case.update.parts:
        yield times(case.update, -1.0)


def _no_magnitude(case: Case) -> Iterator[Update]:
    if case.update.magnitude is not None:
        yield dataclasses.replace(case.update, magnitude=None)


def _times(factor: Callable[[LowRank, Adapter], float]) -> Guess:
    """The same update with the factor s that a wrong rule would give."""

    def guess(case: Case) -> Iterator[Update]:
        parts = tuple(dataclasses.replace(p, scale=factor(p, case.adapter)) for p in case.update.parts)
        if any(abs(p.scale - q.scale) > 1e-9 * abs(q.scale) for p, q in zip(parts, case.update.parts, strict=True)):
            yield dataclasses.replace(case.update, parts=parts)

    return guess


def _alpha(part: LowRank, adapter: Adapter) -> float:
    return part.scale * (math.sqrt(part.rank) if adapter.settings.get("use_rslora") else part.rank)


def _general(part: LowRank, adapter: Adapter) -> float:
    """s out of the general r and lora_alpha, as if there were no patterns."""
    r, alpha = adapter.settings.get("r"), adapter.settings.get("lora_alpha")
    if not (isinstance(r, int) and isinstance(alpha, int | float) and r > 0):
        return part.scale
    return float(alpha) / (math.sqrt(r) if adapter.settings.get("use_rslora") else r)


def _square(case: Case) -> bool:
    return bool(case.update.parts) and all(p.d_in == p.d_out and p.experts == 1 for p in case.update.parts)


def _transposed(case: Case) -> Iterator[Update]:
    if _square(case):
        yield with_parts(case.update, lambda part: dataclasses.replace(part, transposed=not part.transposed))


def _swapped(case: Case) -> Iterator[Update]:
    """The numbers of A in the place of B, and those of B in the place of A."""

    def swap(part: LowRank) -> LowRank:
        A, B = part.b().reshape(part.rank, part.d_in), part.a().reshape(part.d_out, part.rank)
        return dataclasses.replace(part, A=A, B=B, outputs=None)

    if _square(case):
        yield with_parts(case.update, swap)


def _expert_order(case: Case) -> Iterator[Update]:
    """B's columns read with the expert slowest."""

    def slowest(part: LowRank) -> LowRank:
        B = np.asarray(part.B)
        whole = B.reshape(len(B), part.experts, part.rank).swapaxes(1, 2).reshape(B.shape)
        return dataclasses.replace(part, B=whole)

    if any(part.experts > 1 and not part.stacked(part.B) and part.rank > 1 for part in case.update.parts):
        yield with_parts(case.update, slowest)


def _gate_up(case: Case) -> Iterator[Update]:
    """The update of the other one of gate and up; or the halves of a fused one swapped, or interleaved."""
    for mine, other in (("gate_proj", "up_proj"), ("w1", "w3")):
        for a, b in ((mine, other), (other, mine)):
            words = case.update.name.split(".")
            if a in words:
                sibling = case.adapter.updates.get(".".join(b if word == a else word for word in words))
                if sibling is not None and sibling.matrix == case.update.matrix:
                    ready = dataclasses.replace(sibling, name=case.update.name, start=None)
                    yield ready
    if "gate_up" in case.update.name:
        for order in (_halves, _woven, _unwoven):
            yield with_parts(case.update, lambda part, order=order: _reordered(part, order))  # type: ignore[misc]


def _reordered(part: LowRank, order: Callable[[int], Array]) -> LowRank:
    whole = np.asarray(part.B)
    B = np.take(whole, order(part.d_out) + (part.outputs or (0, 0))[0], axis=1 if part.stacked(part.B) else 0)
    return dataclasses.replace(part, B=B, outputs=None)


def _halves(n: int) -> Array:
    return np.roll(np.arange(n), n // 2)


def _woven(n: int) -> Array:
    return np.arange(n).reshape(2, -1).T.reshape(-1) if n % 2 == 0 else np.arange(n)


def _unwoven(n: int) -> Array:
    return np.arange(n).reshape(-1, 2).T.reshape(-1) if n % 2 == 0 else np.arange(n)


def _lost_parts(case: Case) -> Iterator[Update]:
    """The parts (experts, pieces of a fused map) of which nothing is found left out."""
    if len(case.update.parts) < 2:
        return
    kept = []
    for part in case.update.parts:
        dot, norm = 0.0, 0.0
        for rows in case.blocks:
            low, high = max(rows.start, part.at), min(rows.stop, part.at + part.height)
            if low < high:
                change = part.rows(low - part.at, high - part.at)
                dot, norm = dot + float((case.added(slice(low, high)) * change).sum()), norm + float((change**2).sum())
        if dot > 0.3 * norm or norm == 0.0:
            kept.append(part)
    if 0 < len(kept) < len(case.update.parts):
        yield dataclasses.replace(case.update, parts=tuple(kept))


def _partial_rank(case: Case) -> Iterator[Update]:
    """Only those of the r outer products b·aᵀ that least squares find in what was added."""
    if len(case.update.parts) != 1 or case.update.parts[0].rank < 2:
        return
    (part,) = case.update.parts
    G, found = np.zeros((part.rank, part.rank)), np.zeros(part.rank)
    for rows in case.blocks:
        left, right = (side.astype(np.float64) for side in part.sides(rows.start, rows.stop))
        G += part.scale**2 * (left.T @ left) * (right @ right.T)
        found += part.scale * np.einsum("nr,nw,rw->r", left, case.added(rows), right, optimize=True)
    share = np.linalg.lstsq(G, found, rcond=None)[0]
    keep = share > 0.5 * share.max()
    if share.max() > 0 and not keep.all():
        A, B = part.a()[keep], part.b()[:, keep]
        for factor in (1.0, part.rank / int(keep.sum())):
            one = LowRank(A, B, part.scale * factor, part.transposed, part.at)
            yield dataclasses.replace(case.update, parts=(one,))


# name: what it says, and the updates that would be merged then
FAULTS: dict[str, tuple[str, Guess]] = {
    "not_merged": ("it is the base's: nothing was merged", _nothing),
    "sign": ("the update was subtracted, or the base and the merged files are swapped", _negative),
    "no_magnitude": ("the magnitude of DoRA was left out", _no_magnitude),
    "scale_root": ("its scale is √r times too small: alpha/r, where use_rslora asks for alpha/√r",
                   _times(lambda p, _: p.scale / math.sqrt(p.rank))),
    "scale_rslora": ("its scale is √r times too large: alpha/√r, where alpha/r is asked for",
                     _times(lambda p, _: p.scale * math.sqrt(p.rank))),
    "scale_alpha": ("its scale is alpha itself: the division by r was forgotten", _times(_alpha)),
    "scale_one": ("its scale is 1: alpha and r were forgotten", _times(lambda p, _: 1.0)),
    "scale_inverse": ("its scale is 1/r: alpha was forgotten", _times(lambda p, _: 1.0 / p.rank)),
    "scale_general": ("its scale comes of the general r and alpha: a pattern was ignored", _times(_general)),
    "scale_squared": ("its scale was multiplied in twice", _times(lambda p, _: p.scale**2)),
    "transposed": ("the update was transposed", _transposed),
    "swapped": ("A and B were taken for each other", _swapped),
    "expert_order": ("B was read with the experts one after another, where they alternate", _expert_order),
    "gate_up": ("the updates of gate and up were swapped, or the one was woven into the other", _gate_up),
    "lost_parts": ("some experts, or pieces of a fused map, were not merged", _lost_parts),
    "partial_rank": ("only a part of the rank was merged", _partial_rank),
}  # fmt: skip


def name_of(case: Case) -> tuple[str, str]:
    """The name of the fault and what it says; two empty texts where no hypothesis explains what was found."""
    with np.errstate(over="ignore", invalid="ignore"):
        for name, (words, guess) in FAULTS.items():
            if any(case.wrong(update) == 0.0 for update in guess(case)):
                return name, words
        return _exchanged(case) or _requantised(case) or _twice(case) or _measured(case) or _another(case) or ("", "")


def _exchanged(case: Case) -> tuple[str, str] | None:
    """Is the base an honest merge into what was found? It was rounded then, so `_negative` need not hold."""
    other = dataclasses.replace(case, W=case.found, found=case.W)
    if case.update.start is None and other.wrong(case.update) == 0.0:
        return "sign", FAULTS["sign"][0]
    return None


class Once(Tensor):
    """The base with the update merged into it once, made when it is read."""

    def __init__(self, case: Case) -> None:
        self.case, self.shape = case, tuple(case.W.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.case.W.dtype

    def numbers(self, start: int, stop: int) -> Array:
        width = self.case.update.matrix[1]
        rows = slice(start // width, -(-stop // width))
        value = self.case.update.expected(self.case.W, rows).astype(self.case.found.dtype)
        return value.reshape(-1)[start - rows.start * width : stop - rows.start * width]


def _twice(case: Case) -> tuple[str, str] | None:
    if case.update.magnitude is None and case.wrong(case.update, Once(case)) <= LUCK:
        return "twice", "it was merged twice, one merge on the other"
    return None


def _requantised(case: Case) -> tuple[str, str] | None:
    """Are the numbers on a coarser grid, and the right ones but for that?"""
    own, name = unit_roundoff(case.found.dtype), case.found.dtype.name
    for coarse in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        try:
            kind = np.dtype(coarse) if coarse == "float16" else _extra_type(coarse)
        except ImportError:
            continue
        numbers = [found_rows(case.update, case.found, rows) for rows in case.blocks]
        if unit_roundoff(kind) <= own or any(np.any(rounded(block, kind) != block) for block in numbers):
            continue
        first = dataclasses.replace(case.stages, wide=name)  # rounded to its own type, and then to the coarser one
        verdict = verdict_of(case.update, case.W, case.found, first, case.blocks, kind)
        if verdict.wrong == 0:
            return "requantised", f"it was rounded to {coarse} before it was stored as {name}"
    for words, on_grid in GRIDS.items():
        if all(on_grid(found_rows(case.update, case.found, rows), own) for rows in case.blocks) and not all(
            on_grid(found_rows(case.update, case.W, rows), own) for rows in case.blocks
        ):
            return "requantised", f"it was quantised: its numbers lie on {words}"
    return None


def _extra_type(name: str) -> np.dtype[Any]:
    from ..formats.tensors import dtype_of

    return dtype_of(name)


def _on_127_steps(rows: Array, u: float) -> bool:
    """Whole multiples of 1/127 of the largest number of each row."""
    step = abs(rows).max(axis=1, keepdims=True) / 127.0
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.where(step > 0.0, rows / step, 0.0)
    return bool(rows.shape[1] >= 16 and np.all(abs(units - np.round(units)) <= 4.0 * u * abs(units) + 1e-9))


def _few_numbers(rows: Array, u: float) -> bool:
    """At most 16 different ones in each 64."""
    blocks = np.sort(rows.reshape(-1)[: rows.size // 64 * 64].reshape(-1, 64), axis=1)
    return bool(len(blocks) and np.all(np.count_nonzero(np.diff(blocks), axis=1) < 16))


GRIDS: dict[str, Callable[[Array, float], bool]] = {
    "127 steps a row (int8)": _on_127_steps,
    "16 levels a block (4 bits)": _few_numbers,
}


def _measured(case: Case) -> tuple[str, str] | None:
    """The factor of the update that gives as much of it as was found, rounding included; by halving."""
    if not case.update.parts:
        return None
    wanted = _survives(case, None)
    low, high = -16.0, 16.0
    if not _survives(case, low) < wanted < _survives(case, high):
        return None
    for _ in range(24):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _survives(case, middle) < wanted else (low, middle)
    if abs(high) < 0.02 or case.wrong(times(case.update, high), slack=SLACK) > 0.0:
        return None
    return "scale", f"its scale is about {high:.3g} times the right one, which no known rule gives"


def _survives(case: Case, factor: float | None) -> float:
    """⟨Ŵ − W0, ΔW⟩ of what was found, or of an honest merge of `factor` times the update."""
    total = 0.0
    for rows in case.blocks:
        W, change = found_rows(case.update, case.W, rows), case.update.change(rows)
        after = found_rows(case.update, case.found, rows) if factor is None else _merged(case, rows, factor)
        total += float(((after - W) * change).sum())
    return total


def _merged(case: Case, rows: slice, factor: float) -> Array:
    return rounded(times(case.update, factor).expected(case.W, rows), case.found.dtype)


def _another(case: Case) -> tuple[str, str] | None:
    """Has what was added a low rank beyond what rounding gives? (m, n) of noise has norms below σ(√m + √n)."""
    if not case.update.parts:
        return None
    rows = max(case.blocks, key=lambda block: block.stop - block.start)
    D = case.added(rows)[:512, :2048]
    noise = spacing(abs(found_rows(case.update, case.found, rows)), case.found.dtype)[:512, :2048] / math.sqrt(12.0)
    edge = 1.5 * float(np.sqrt((noise**2).mean())) * (math.sqrt(D.shape[0]) + math.sqrt(D.shape[1]))
    rank = int(np.count_nonzero(np.linalg.svd(D, compute_uv=False) > edge))
    if 0 < rank <= min(4 * sum(part.rank for part in case.update.parts), min(D.shape) // 2):
        return "another_adapter", f"an update of rank {rank} was merged, but not this one: another adapter"
    return None
