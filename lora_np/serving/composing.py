r"""Adapters made of adapters, each with a label: is it exact, and if not, how far off?

The update of one map is $\Delta_i = s_i B_i A_i$. A weighted sum of several is again of low rank, and exact:

$$\sum_i w_i \Delta_i = [\,w_1 s_1 B_1,\ \dots,\ w_N s_N B_N\,]\,[A_1;\ \dots;\ A_N],\qquad r = \sum_i r_i \tag{Z1}$$

Averaging A and B apart is not a weighted sum: of the products it forms, those of different adapters are cross terms,

$$\Big(\sum_i w_i B_i\Big)\Big(\sum_j w_j A_j\Big) = \sum_i w_i^2 B_i A_i + \sum_{i \ne j} w_i w_j B_i A_j \tag{Z2}$$

A rank is lowered by the singular value decomposition (Eckart and Young 1936), without forming Δ: with $B = Q_B R_B$
and $A^T = Q_A R_A$,

$$sBA = Q_B\,(s R_B R_A^T)\,Q_A^T,\qquad s R_B R_A^T = U\Sigma V^T\ (r \times r) \tag{Z3}$$

so the singular values of Δ are those of a small matrix, and keeping k of them is off by
$\sqrt{\sum_{i>k}\sigma_i^2}\,\big/\sqrt{\sum_i\sigma_i^2}$ of $\lVert\Delta\rVert_F$. So are norms and distances of
updates: of (Z1) with weights 1 and −1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.arrays import Array
from ..model import Linear, Transformer
from ..parameters import parameters, walk
from .adapter import Adapter, Factors

BY_ROUNDING = 1e-12  # of float64: what is below it of the whole was not left out, it is not there


@dataclass(frozen=True)
class Composed:
    """An adapter made of others.

    error   ‖what it is − what it should be‖ / ‖what it should be‖ (Frobenius, over all maps); 0.0: exact but for the
            rounding of its numbers          note   what it is, and what it is not
    """

    adapter: Adapter
    error: float
    note: str

    @property
    def exact(self) -> bool:
        return self.error == 0.0

    @property
    def label(self) -> str:
        how = "exact" if self.exact else f"approximate, relative error {self.error:.3g}"
        return f"{how}: {self.note}"


def concatenated(name: str, adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Composed:
    """Σ w Δ as (Z1): exact, of the ranks together. One adapter with weight 1 is itself, bit for bit.

    Raises ValueError for no adapter, or weights that are not one finite number each.
    """
    w = _weights(adapters, weights)
    if len(adapters) == 1 and w[0] == 1.0:
        return Composed(adapters[0].renamed(name), 0.0, "the adapter itself")
    factors = {}
    for path in _paths(adapters):
        mine = [(weight, a.factors[path]) for weight, a in zip(w, adapters, strict=True) if path in a.factors]
        A = np.concatenate([f.A for _, f in mine])
        B = np.concatenate([(weight * f.scaling) * f.B for weight, f in mine], axis=1)
        factors[path] = Factors(A, B, 1.0)
    terms = " + ".join(f"{weight:g}·{adapter.name}" for weight, adapter in zip(w, adapters, strict=True))
    return Composed(Adapter(name, factors), 0.0, f"{terms}, factors side by side")


def added(name: str, adapters: Sequence[Adapter]) -> Composed:
    """Σ Δ: `concatenated` with weights 1."""
    return concatenated(name, adapters)


def averaged_apart(name: str, adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Composed:
    """Σ w B beside Σ w A, as (Z2): of one rank, and not the weighted sum. Its error is measured against that.

    The scale of each goes with its B. Raises ValueError for adapters of unequal ranks or maps.
    """
    w = _weights(adapters, weights)
    if any(adapter.ranks != adapters[0].ranks for adapter in adapters):
        raise ValueError("to average A and B apart, all adapters must have the same maps and ranks: concatenate them")
    factors = {}
    for path in adapters[0].factors:
        mine = [adapter.factors[path] for adapter in adapters]
        A = sum(weight * f.A for weight, f in zip(w, mine, strict=True))
        B = sum((weight * f.scaling) * f.B for weight, f in zip(w, mine, strict=True))
        factors[path] = Factors(np.asarray(A, mine[0].A.dtype), np.asarray(B, mine[0].B.dtype), 1.0)
    made, meant = Adapter(name, factors), concatenated(name, adapters, w).adapter
    note = f"{len(adapters)} adapters averaged apart, with cross terms B_i A_j of different adapters"
    return Composed(made, _not_zero(distance(made, meant)), note)


def compressed(name: str, adapter: Adapter, rank: int) -> Composed:
    """The nearest adapter of at most this rank in every map, by (Z3); maps of a lower rank are left as they are.

    Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    factors, left, whole = {}, 0.0, 0.0
    for path, own in adapter.factors.items():
        if len(own.A) <= rank:
            factors[path] = own
            whole += float((singular_values(own) ** 2).sum())
            continue
        U, S, V = _decomposed(own)
        root = np.sqrt(S[:rank])
        A, B = (root[:, None] * V[:rank]).astype(own.A.dtype), (U[:, :rank] * root).astype(own.B.dtype)
        factors[path] = Factors(A, B, 1.0)
        left, whole = left + float((S[rank:] ** 2).sum()), whole + float((S**2).sum())
    error = math.sqrt(left / whole) if whole else 0.0
    note = f"rank at most {rank}, by singular values; {adapter.name} has up to {max(adapter.ranks.values())}"
    return Composed(Adapter(name, factors), error if error > BY_ROUNDING else 0.0, note)


def difference(name: str, before: Transformer, after: Transformer, rank: int) -> Composed:
    """What a checkpoint became, as an adapter of what it was: the best of this rank in every map that changed.

    What else changed, biases, norms and tables, no adapter holds: the label says so. Raises ValueError for models of
    other shapes, and for two that are equal.
    """
    old, new = parameters(before), parameters(after)
    if {path: a.shape for path, a in old.items()} != {path: a.shape for path, a in new.items()}:
        raise ValueError("the two checkpoints must have the same arrays: these are of different models")
    moved = [path for path in old if not np.array_equal(old[path], new[path])]
    maps = {f"{path}.W": path for path, node in walk(before) if isinstance(node, Linear)}
    if not any(path in maps for path in moved):
        raise ValueError("the two checkpoints have equal maps: there is nothing for an adapter to hold")
    factors, left, whole = {}, 0.0, 0.0
    for path in moved:
        delta = np.asarray(new[path], np.float64) - old[path]
        whole += float((delta**2).sum())
        if path not in maps:
            left += float((delta**2).sum())
            continue
        U, S, V = np.linalg.svd(delta, full_matrices=False)
        kept = max(1, min(rank, int((S > S[0] * BY_ROUNDING).sum())))
        root, dtype = np.sqrt(S[:kept]), old[path].dtype
        factors[maps[path]] = Factors((root[:, None] * V[:kept]).astype(dtype), (U[:, :kept] * root).astype(dtype), 1.0)
        left += float((S[kept:] ** 2).sum())
    others = [path for path in moved if path not in maps]
    note = f"{len(factors)} maps of rank at most {rank}"
    note += f"; left out: {', '.join(others[:3])}{' …' if len(others) > 3 else ''}" if others else ""
    error = math.sqrt(left / whole)
    return Composed(Adapter(name, factors), error if error > BY_ROUNDING else 0.0, note)


def singular_values(factors: Factors) -> Array:
    """Those of Δ, largest first, `rank` of them, by (Z3)."""
    return _decomposed(factors)[1]


def norm(adapter: Adapter) -> float:
    """‖Δ‖ over all maps (Frobenius), without forming one."""
    return math.sqrt(sum(float((singular_values(f) ** 2).sum()) for f in adapter.factors.values()))


def distance(one: Adapter, other: Adapter) -> float:
    """‖Δ − Δ'‖ / ‖Δ'‖ over all maps, without forming one; infinite where Δ' is zero and Δ is not."""
    apart, size = norm(concatenated("difference", [one, other], [1.0, -1.0]).adapter), norm(other)
    return apart / size if size else (math.inf if apart else 0.0)


def _decomposed(factors: Factors) -> tuple[Array, Array, Array]:
    """U (d_out, k), σ (k,) and V (k, d_in) of Δ, in float64: (Z3)."""
    A, B = (np.asarray(array, np.float64) for array in (factors.A, factors.B))
    Q_B, R_B = np.linalg.qr(B)
    Q_A, R_A = np.linalg.qr(A.T)
    U, S, V = np.linalg.svd(factors.scaling * (R_B @ R_A.T), full_matrices=False)
    return Q_B @ U, S, V @ Q_A.T


def _not_zero(error: float) -> float:
    return error if error > BY_ROUNDING else 0.0


def _paths(adapters: Iterable[Adapter]) -> list[str]:
    return list(dict.fromkeys(path for adapter in adapters for path in adapter.factors))


def _weights(adapters: Sequence[Adapter], weights: Sequence[float] | None) -> list[float]:
    found = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    if not adapters or len(found) != len(adapters) or not all(map(math.isfinite, found)):
        raise ValueError(
            f"every adapter has one finite weight, and there is at least one: got {len(adapters)} and {found}"
        )
    return found
