r"""What lies in a folder of weights: facts, and findings of which each says what, where and what to do.

Of an adapter, tensor by tensor: ranks, scales, the singular values of ΔW = s·BA, which are those of s·R_B R_Aᵀ with
B = Q_B R_B and Aᵀ = Q_A R_A, and with a base ‖ΔW‖/‖W‖ and the share of the entries whose change is under half a unit
in the last place of W, so that a merge into the type of the base would swallow it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import Array, row_blocks
from ..formats.examining import examined
from ..formats.tensors import Tensor, flat
from ..formats.updates import Adapter, Finding, LowRank, Update, in_type
from ..rounding import rounded
from .expecting import ENTRIES, found_rows
from .recipes import only_sums

MOST = 0.5  # share of the changes above which a merge loses the adapter rather than some of it


@dataclass(frozen=True)
class UpdateFacts:
    """One tensor that an adapter changes; None where there is no base, or no sum of s·BA."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None  # of the base
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    largest: float | None  # singular value of the parts
    smallest: float | None
    relative: float | None  # ‖ΔW‖/‖W‖
    swallowed: float | None


def update_facts(update: Update, base: Tensor | None) -> UpdateFacts:
    ranks = tuple(sorted({part.rank for part in update.parts}))
    scales = tuple(sorted({part.scale for part in update.parts}))
    ready = update if base is None and update.start else update.prepared(base)  # type: ignore[arg-type]
    S = [singular_values(part) for part in ready.parts]
    relative, swallowed = (None, None) if base is None or not only_sums(ready) else _beside(ready, base)
    return UpdateFacts(
        *(update.name, update.shape, None if base is None else base.dtype.name, ranks, scales),
        largest=max((float(s[0]) for s in S if s.size), default=None),
        smallest=min((float(s[-1]) for s in S if s.size), default=None),
        relative=relative,
        swallowed=swallowed,
    )


def singular_values(part: LowRank) -> Array:
    """Of s·BA, at most r of them, without forming it."""
    A, B = (in_type(factor, np.float64) for factor in (part.a(), part.b()))
    if not (np.isfinite(A).all() and np.isfinite(B).all()):
        return np.full(1, math.nan)
    left, right = (np.asarray(np.linalg.qr(factor, mode="r")) for factor in (B, A.T))
    return np.asarray(abs(part.scale) * np.linalg.svd(left @ right.T, compute_uv=False))


def _beside(ready: Update, base: Tensor) -> tuple[float, float]:
    change = size = 0.0
    changed = lost = 0
    for rows in row_blocks(*ready.matrix, ENTRIES):
        W, delta = found_rows(ready, base, rows), ready.change(rows)
        change, size = change + float((delta * delta).sum()), size + float((W * W).sum())
        changed += int(np.count_nonzero(delta))
        lost += int(np.count_nonzero((rounded(W + delta, base.dtype) == W) & (delta != 0.0)))
    return math.sqrt(change / size) if size else math.inf, lost / changed if changed else 0.0


def adapter_facts(
    adapter: Adapter, base: Mapping[str, Tensor] | None = None
) -> tuple[list[UpdateFacts], list[Finding]]:
    """Facts of every tensor that it changes, and all findings: of names and settings, of numbers, of a merge."""
    with np.errstate(invalid="ignore", over="ignore"):
        facts = [update_facts(update, (base or {}).get(name)) for name, update in adapter.updates.items()]
    findings = [*adapter.findings, *examined(adapter)]
    for fact in facts:
        if fact.swallowed is not None and fact.swallowed > MOST:
            what = f"{fact.swallowed:.0%} of its changes are too small for {fact.dtype}: a merge would swallow them"
            findings.append(Finding("swallowed", fact.name, what, "merge into a wider type, or keep the adapter apart"))
    return facts, findings


def model_facts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[Finding]]:
    """Tensors, types and parameters of a model, and what is not finite in it."""
    findings = []
    for name, tensor in tensors.items():
        if tensor.dtype.kind in "iub":
            continue
        for start in range(0, tensor.size, 8 * ENTRIES):
            block = flat(tensor, start, min(start + 8 * ENTRIES, tensor.size))
            if not np.isfinite(block).all():
                what = "it holds a number that is not finite"
                findings.append(Finding("not_finite", name, what, "the file is broken: save or fetch it again"))
                break
    types = Counter(tensor.dtype.name for tensor in tensors.values())
    size = sum(tensor.size for tensor in tensors.values())
    return {"tensors": len(tensors), "types": dict(types), "parameters": size}, findings
