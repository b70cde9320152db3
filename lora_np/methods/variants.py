r"""What came after LoRA and stays close to it: other lengths, other starts, fewer arrays trained.

dora      rows of W get a learned length m, LoRA their direction    Liu et al. 2024, arXiv:2402.09353
vera      A and B are random, shared and frozen; two vectors learn  Kopiczko et al. 2023, arXiv:2310.11454
pissa     A and B start as the largest part of W0                   Meng et al. 2024, arXiv:2404.02948
lora+     B learns at a rate of its own                             Hayou et al. 2024, arXiv:2402.12354
lora-fa   A is frozen at its random start                           Zhang et al. 2023, arXiv:2308.03303
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import TransformerConfig
from ..engine.arrays import Array, array_module, blank, is_blank
from ..engine.devices import to_host
from ..lora import LoraLinear, adapters
from ..method import positive, whole
from ..model import Linear
from ..operations import dora_linear, lora_linear, scaled_rows
from ..parameters import Arrays, outline, parameters, with_modules
from ..wrappers import Expected, wrappers
from .lora import BIASES, LoraConfig


@dataclass(frozen=True)
class DoraLinear:
    r"""$W = \mathrm{diag}(m/n)\,(W_0 + s\,BA)$ with n the length of each row of W0 + s·BA; equation (R1).

    base  Linear, frozen    A (rank, d_in)    B (d_out, rank)    m (d_out,), which starts as the lengths of W0
    """

    base: Linear
    A: Array
    B: Array
    m: Array
    scaling: float

    __repr__ = outline

    def __call__(self, x: Array) -> Array:
        return dora_linear(x, self.base.W, self.base.b, self.A, self.B, self.m, self.scaling)

    def merged(self) -> Linear:
        V = self.base.W + self.scaling * (self.B @ self.A)
        n = array_module(V).sqrt((V * V).sum(axis=1))
        return replace(self.base, W=V * (self.m / n)[:, None])

    def expected(self, rows: slice = slice(None)) -> Expected:
        r"""Rows of the merged W. Behind V lie r + 3 roundings, behind n a sum of d_in squares more, and m/n and the
        product take three; with $T = |W_0| + |s||B||A|$, an error of V moves n by at most that of its whole row."""
        W, A, B, m = (
            np.asarray(to_host(array), np.float64) for array in (self.base.W[rows], self.A, self.B[rows], self.m[rows])
        )
        V = W + self.scaling * (B @ A)
        T = abs(W) + abs(self.scaling) * (abs(B) @ abs(A))
        n = np.sqrt((V * V).sum(axis=1, keepdims=True))
        value = V * m[:, None] / n
        terms = abs(m[:, None]) / n * T + abs(value) * (1.0 + np.sqrt((T * T).sum(axis=1, keepdims=True)) / n)
        roundings = W.shape[1] + len(A) + 8
        in_V = abs(self.scaling) * (len(A) + 1) + 2.0 * (abs(B) @ abs(A)) + 1.0
        in_n = np.sqrt((in_V * in_V).sum(axis=1, keepdims=True)) / n + W.shape[1] / (n * n)
        lost = 2.0 * (abs(m[:, None]) / n * in_V + abs(value) * in_n + abs(V) + 1.0)
        precision = np.result_type(self.A.dtype, self.B.dtype, self.m.dtype)
        return Expected(value, value - W, terms, roundings, precision, lost)


@dataclass(frozen=True)
class DoRA(LoraConfig):
    """LoRA whose rows have a learned length; Σ r (d_in + d_out) + d_out numbers (C18). Linear maps only, no dropout."""

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        return _exchanged(super().apply(model, rng), self, _with_lengths)

    def trained(self, model: Any) -> Arrays:
        return parameters(model, "*.A", "*.B", "*.m", *BIASES[self.bias])

    def numbers_of_one(self, rank: int, d_in: int, d_out: int) -> int:
        """A, B and m."""
        return rank * (d_in + d_out) + d_out

    def multiply_adds(self, config: TransformerConfig) -> int:
        """A token meets V in the place of W0. V is made once a call: r d_in d_out for every adapted map."""
        return 0


@dataclass(frozen=True)
class VeraLinear:
    r"""$W = W_0 + \mathrm{diag}(b)\,B\,\mathrm{diag}(d)\,A$ with A (rank, d_in) and B (d_out, rank) frozen.

    scale_d (rank,)    starts at a small constant    scale_b (d_out,)    starts at zero
    """

    base: Linear
    A: Array
    B: Array
    scale_d: Array
    scale_b: Array

    __repr__ = outline

    def __call__(self, x: Array) -> Array:
        A, B = scaled_rows(self.A, self.scale_d), scaled_rows(self.B, self.scale_b)
        return lora_linear(x, self.base.W, self.base.b, A, B, 1.0, None)

    def merged(self) -> Linear:
        return replace(self.base, W=self.base.W + (self.B * self.scale_b[:, None]) @ (self.A * self.scale_d[:, None]))

    def expected(self, rows: slice = slice(None)) -> Expected:
        """Rows of the merged W: a sum of r products, each of four numbers."""
        W, A, B, d, b = (
            np.asarray(to_host(array), np.float64)
            for array in (self.base.W[rows], self.A, self.B[rows], self.scale_d, self.scale_b[rows])
        )
        left, right = B * b[:, None], A * d[:, None]
        update = left @ right
        precision = np.result_type(self.A.dtype, self.B.dtype, self.scale_d.dtype, self.scale_b.dtype)
        lost = 2.0 * (abs(left).sum(axis=1, keepdims=True) + abs(right).sum(axis=0) + len(A) + 1.0)
        return Expected(W + update, update, abs(left) @ abs(right), len(A) + 2, precision, lost)


@dataclass(frozen=True)
class VeRA(LoraConfig):
    """Σ r + d_out numbers (C19). All maps of the same sizes share one A and one B, which are not stored: they are drawn
    from `projection_seed`, N(0, 1/d_in) and N(0, 1/r).

    d_initial   where every entry of d starts
    """

    rank: int = 64
    projection_seed: int = 0
    d_initial: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("projection_seed", self.projection_seed, least=0)
        positive("d_initial", self.d_initial)

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        return _exchanged(super().apply(model, None), self, self._shared)

    def trained(self, model: Any) -> Arrays:
        return parameters(model, "*.scale_d", "*.scale_b", *BIASES[self.bias])

    def numbers_of_one(self, rank: int, d_in: int, d_out: int) -> int:
        """The two vectors."""
        return rank + d_out

    def _shared(self, module: LoraLinear) -> VeraLinear:
        rank, (d_out, d_in) = len(module.A), module.base.W.shape
        like, xp = module.base.W.dtype, array_module(module.base.W)
        if is_blank(module.base.W):
            return VeraLinear(module.base, module.A, module.B, blank((rank,), like), blank((d_out,), like))
        A, B = map(xp.asarray, _projections(self.projection_seed, rank, d_in, d_out, like))
        return VeraLinear(module.base, A, B, xp.full(rank, self.d_initial, like), xp.zeros(d_out, like))


@dataclass(frozen=True)
class PissaLinear:
    r"""$y = W_\mathrm{res}\,x + b + s\,BAx$, $W_\mathrm{res} = W_0 - s\,B_0A_0$, where A and B started as A0 and B0.

    The base W0 stays as it was beside it: what was learned is $s\,(BA - B_0A_0)$, a plain LoRA of rank 2r.
    """

    base: Linear
    residual: Array
    A: Array
    B: Array
    A0: Array
    B0: Array
    scaling: float

    __repr__ = outline

    def __call__(self, x: Array) -> Array:
        return lora_linear(x, self.residual, self.base.b, self.A, self.B, self.scaling, None)

    def as_lora(self) -> LoraLinear:
        """[A; A0] and [B, −B0]: the same map beside the untouched base."""
        xp = array_module(self.residual)
        A, B = xp.concatenate([self.A, self.A0]), xp.concatenate([self.B, -self.B0], axis=1)
        return LoraLinear(self.base, A, B, self.scaling)

    def merged(self) -> Linear:
        return self.as_lora().merged()

    def expected(self, rows: slice = slice(None)) -> Expected:
        return self.as_lora().expected(rows)


@dataclass(frozen=True)
class PiSSA(LoraConfig):
    r"""LoRA that starts as the r largest singular parts of W0: $s\,B_0A_0 = \sum_{i\le r}\sigma_i u_i v_i^T$, in equal
    shares. Stored as LoRA of rank 2r beside the untouched base, so that no other file is needed: 2r must be a rank that
    each map can have."""

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        self._as_stored()._sizes(model.config)
        return _exchanged(super().apply(model, None), self, _shapes_of_pissa if rng is None else _started_pissa)

    def numbers(self, config: TransformerConfig) -> int:
        self._as_stored()._sizes(config)
        return super().numbers(config)

    def in_file(self, config: TransformerConfig) -> int:
        return self._as_stored().numbers(config)

    def stored(self, model: Any) -> tuple[Any, LoraConfig]:
        found = {path: node.as_lora() for path, node in wrappers(model).items() if isinstance(node, PissaLinear)}
        return with_modules(model, found), self._as_stored()

    def _as_stored(self) -> LoraConfig:
        twice = {pattern: 2 * rank for pattern, rank in self.ranks.items()}
        alphas = {pattern: self._doubled(alpha) for pattern, alpha in self.alphas.items()}
        new = {"rank": 2 * self.rank, "alpha": self._doubled(self.alpha), "ranks": twice, "alphas": alphas}
        return replace(_plain_lora(self), **new)  # type: ignore[arg-type]

    def _doubled(self, alpha: float) -> float:
        """The α with which rank 2r has the scaling of rank r."""
        return alpha * (2.0 if self.scaling == "alpha/rank" else math.sqrt(2.0))


@dataclass(frozen=True)
class LoraPlus(LoraConfig):
    """LoRA whose B learns `ratio` times as fast as A."""

    ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("ratio", self.ratio)

    @property
    def rates(self) -> Mapping[str, float]:  # type: ignore[override]
        return {"*.B": self.ratio}


@dataclass(frozen=True)
class LoraFA(LoraConfig):
    """LoRA whose A stays at its random start: Σ r d_out numbers (C20), and of x only Ax is kept for backward.
    Stored as plain LoRA, A with it."""

    def trained(self, model: Any) -> Arrays:
        return parameters(model, "*.B", *BIASES[self.bias])

    def numbers_of_one(self, rank: int, d_in: int, d_out: int) -> int:
        """B."""
        return rank * d_out

    def in_file(self, config: TransformerConfig) -> int:
        return _plain_lora(self).numbers(config)

    def stored(self, model: Any) -> tuple[Any, LoraConfig]:
        return model, _plain_lora(self)


def _plain_lora(method: LoraConfig) -> LoraConfig:
    """LoRA with the settings that this relative shares with it."""
    return LoraConfig(**{name: getattr(method, name) for name in LoraConfig.__dataclass_fields__})


def _exchanged(model: Any, method: LoraConfig, exchange: Callable[[LoraLinear], Any]) -> Any:
    """The model with another wrapper for each of LoRA's; raises ValueError for what it cannot stand beside."""
    found = adapters(model)
    if method.dropout:
        raise ValueError(f"{type(method).__name__} has no dropout, got dropout {method.dropout}")
    if tables := [path for path, module in found.items() if not isinstance(module, LoraLinear)]:
        raise ValueError(f"{type(method).__name__} adapts linear maps only, and {tables[0]} is a table")
    return with_modules(model, {path: exchange(module) for path, module in found.items()})


def _with_lengths(module: LoraLinear) -> DoraLinear:
    W = module.base.W
    m = blank(W.shape[:1], W.dtype) if is_blank(W) else array_module(W).sqrt((W * W).sum(axis=1))
    return DoraLinear(module.base, module.A, module.B, m, module.scaling)


def _started_pissa(module: LoraLinear) -> PissaLinear:
    """A0 and B0 from the singular value decomposition of W0, made in float64 on the host."""
    W, rank, xp = to_host(module.base.W), len(module.A), array_module(module.base.W)
    left, sizes, right = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    root = np.sqrt(sizes[:rank] / module.scaling)
    A, B = (root[:, None] * right[:rank]).astype(W.dtype), (left[:, :rank] * root).astype(W.dtype)
    residual = W - module.scaling * (B @ A)
    residual, A, B = map(xp.asarray, (residual, A, B))
    return PissaLinear(module.base, residual, A, B, A, B, module.scaling)


def _shapes_of_pissa(module: LoraLinear) -> PissaLinear:
    return PissaLinear(module.base, module.base.W, module.A, module.B, module.A, module.B, module.scaling)


@functools.lru_cache(maxsize=8)
def _projections(seed: int, rank: int, d_in: int, d_out: int, dtype: Any) -> tuple[Array, Array]:
    rng = np.random.default_rng([seed, rank])
    A = rng.standard_normal((rank, d_in)) / math.sqrt(d_in)
    B = rng.standard_normal((d_out, rank)) / math.sqrt(rank)
    return A.astype(dtype), B.astype(dtype)
