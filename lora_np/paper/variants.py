r"""Methods that only the study asks for: other starts, other halves trained, one B for several maps.

    lora-b-start    B random and A = 0 at the start                      Hayou et al. 2024, arXiv:2406.08447
    lora-a-only     A is trained, B stays at a random start              Zhu et al. 2024, arXiv:2402.16842
    shared-b        queries, keys and values have one B, and an A each   A Note on LoRA, section 2.1, read as here: B
    shared-a        … one A, and a B each                                … is the matrix that the input meets first

They are applied as LoRA is, and stand beside the base in its own wrappers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import TransformerConfig
from ..engine.arrays import Array, blank
from ..lora import LoraLinear, adapters
from ..method import Method, positive, whole
from ..methods.lora import LoraConfig
from ..modules import Attention, Reading
from ..parameters import Arrays, parameters, with_modules


@dataclass(frozen=True)
class BStart(LoraConfig):
    """B ~ N(0, 1/r) and A = 0: the adapter starts at zero as well, from the other side."""

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        fresh = super().apply(model, rng)
        return fresh if rng is None else with_modules(fresh, _from_the_other_side(fresh, rng))


@dataclass(frozen=True)
class AOnly(BStart):
    """The same start, and B stays where it is: A alone is trained."""

    def trained(self, model: Any) -> Arrays:
        return parameters(model, "*.A")

    def numbers_of_one(self, rank: int, d_in: int, d_out: int) -> int:
        return rank * d_in


def _from_the_other_side(model: Any, rng: np.random.Generator) -> dict[str, LoraLinear]:
    found = {}
    for path, module in adapters(model).items():
        B = rng.standard_normal(module.B.shape) / math.sqrt(module.B.shape[1])
        found[path] = replace(module, A=0.0 * module.A, B=B.astype(module.B.dtype))
    return found


SHARING = ("query", "key", "value")


@dataclass(frozen=True)
class SharedAttention:
    r"""Attention whose queries, keys and values get $W_i x + s\,B_i A_i x$ with one B for all i, or one A.

    down  the A, (rank, d): one a map, or one for all      up  the B, (d, rank): likewise
    """

    base: Attention
    down: tuple[Array, ...]
    up: tuple[Array, ...]
    scaling: float

    def __call__(self, x: Array, reading: Reading) -> Array:
        of = {name: getattr(self.base, name) for name in SHARING}
        pairs = zip(of.items(), 3 // len(self.down) * self.down, 3 // len(self.up) * self.up, strict=True)
        maps: Any = {name: LoraLinear(module, A, B, self.scaling) for (name, module), A, B in pairs}
        return replace(self.base, **maps)(x, reading)


@dataclass(frozen=True)
class SharedB(Method):
    """L · 4 · r · d numbers, where LoRA on the three maps has 6 r d. Queries, keys and values must have one width."""

    rank: int = 4
    alpha: float = 8.0

    grows_by = "rank"
    sides = 3, 1

    def __post_init__(self) -> None:
        whole("rank", self.rank)
        positive("alpha", self.alpha)

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        return with_modules(
            model, {f"blocks.{i}.attention": self._around(block.attention, rng) for i, block in enumerate(model.blocks)}
        )

    def trained(self, model: Any) -> Arrays:
        return parameters(model, "*.attention.down.*", "*.attention.up.*")

    def numbers(self, config: TransformerConfig) -> int:
        return config.layers * sum(self.sides) * self.rank * config.d_model

    def _around(self, attention: Attention, rng: np.random.Generator | None) -> SharedAttention:
        W, (down, up) = attention.query.W, self.sides
        if rng is None:
            A, B = blank((self.rank, W.shape[1]), W.dtype), blank((W.shape[0], self.rank), W.dtype)
            return SharedAttention(attention, (A,) * down, (B,) * up, self.alpha / self.rank)
        drawn = [rng.standard_normal((self.rank, W.shape[1])) / math.sqrt(W.shape[1]) for _ in range(down)]
        zeros = [np.zeros((W.shape[0], self.rank), W.dtype) for _ in range(up)]
        A_all = tuple(A.astype(W.dtype) for A in drawn)
        return SharedAttention(attention, A_all, tuple(zeros), self.alpha / self.rank)


@dataclass(frozen=True)
class SharedA(SharedB):
    """The other reading: the matrix that the input meets first is the one for all."""

    sides = 1, 3


VARIANTS: dict[str, type[Method]] = {
    "lora-b-start": BStart,
    "lora-a-only": AOnly,
    "shared-b": SharedB,
    "shared-a": SharedA,
}
