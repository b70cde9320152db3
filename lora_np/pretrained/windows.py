r"""What the base trains on: windows of a run of bytes, each at a place of its own in the position table.

A short window that always stood at the first positions would leave the others untrained. So a window of n bytes stands
at positions o … o + n − 1, with o drawn for each: every position is trained from the first step on. The model starts
from one that knows what is near, the same at every position (see `near_sighted`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import TransformerConfig
from ..engine.arrays import Array
from ..model import Transformer, initialize, language_model_loss
from ..operations import embedding
from ..optimization import TrainingConfig
from ..parameters import Arrays, parameters, with_modules, with_parameters
from ..tasks import Batch

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
    """How the base is trained: by settings that follow one another, each up to its last step, moments and all; and
    (from step, windows, bytes of each) say on what."""

    trainings: tuple[TrainingConfig, ...]
    stages: tuple[tuple[int, int, int], ...]

    @property
    def steps(self) -> int:
        """How many steps in all."""
        return self.trainings[-1].steps

    def stage(self, step: int) -> tuple[int, int]:
        """How many windows a step takes, and how many bytes of each."""
        _, windows, size = [stage for stage in self.stages if stage[0] <= step][-1]
        return windows, size


@dataclass(frozen=True)
class PlacedBatch(Batch):
    """A batch whose rows begin at positions of their own, `begin` (batch, 1)."""

    begin: npt.NDArray[np.int64] = field(kw_only=True)

    def shards(self, n: int) -> list[Batch]:
        """As those of a batch, each with the places of its rows."""
        plain = super().shards(n)
        places = np.array_split(self.begin, len(plain))
        return [
            PlacedBatch(b.tokens, b.targets, b.weights, begin=begin) for b, begin in zip(plain, places, strict=True)
        ]


@dataclass(frozen=True)
class Windows:
    """Endless batches of windows that start anywhere in a run of bytes; the step decides where, and how long."""

    text: Bytes
    recipe: Recipe
    context: int
    seed: int

    def __getitem__(self, step: int) -> PlacedBatch:
        windows, size = self.recipe.stage(step)
        rng = np.random.default_rng([self.seed, step])
        first = rng.integers(0, len(self.text) - size, (windows, 1))
        begin = rng.integers(0, self.context - size + 1, (windows, 1))
        read = self.text[first + np.arange(size + 1)].astype(np.int64)
        weights = np.full((windows, size), 1.0 / (windows * size), np.float32)
        return PlacedBatch(read[:, :-1], read[:, 1:], weights, begin=begin)


def waves(context: int, d_model: int, size: float) -> npt.NDArray[np.float32]:
    r"""A position table (context, d_model) of sines and cosines, its root mean square `size`.

    $$P_{p,i} = \sqrt2\,s\,\sin(\omega_i p),\qquad P_{p,d/2+i} = \sqrt2\,s\,\cos(\omega_i p),\qquad
      \omega_i = T^{-2i/d}$$

    The vectors of two positions that are k apart differ by a rotation that depends on k alone. T is the context: waves
    much longer than it would be constants. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    angles = np.arange(context)[:, None] * float(context) ** (-np.arange(0, d_model, 2) / d_model)
    return (math.sqrt(2.0) * size * np.concatenate([np.sin(angles), np.cos(angles)], axis=1)).astype(np.float32)


def near_sighted(config: TransformerConfig, rng: np.random.Generator) -> Transformer:
    r"""A fresh model whose every position looks at itself and at what is near: its position table starts as `waves`,
    and its keys as its queries, $q_i^\top k_j = x_i^\top W^\top W x_j$, which is the larger the nearer i and j are.

    The waves are much longer than a token's vector, N(0, 0.02²), so that the first steps do not blur them; W is
    N(0, 1/d), so that the entries of q and k are of the size 1.
    """
    model = initialize(config, rng)
    d, new = config.d_model, {"positions.W": waves(config.context, config.d_model, size=0.1)}
    for i in range(config.layers):
        W = (rng.standard_normal((d, d)) / math.sqrt(d)).astype(np.float32)
        new |= {f"blocks.{i}.attention.query.W": W, f"blocks.{i}.attention.key.W": W.copy()}
    return with_parameters(model, new)


@dataclass(frozen=True)
class PlacedPositions:
    """A position table that is read from `begin` (batch, 1) on."""

    W: Array
    begin: npt.NDArray[np.int64]

    def __call__(self, places: Array) -> Array:
        """places (seq,) → (batch, seq, d_model)."""
        return embedding(self.begin + places, self.W)


@dataclass(frozen=True)
class PlacedLoss:
    """The language-modelling loss as a function of the trained arrays and a batch with places."""

    model: Transformer

    def __call__(self, trained: Arrays, batch: PlacedBatch, rng: np.random.Generator) -> Any:
        model = with_parameters(self.model, trained)
        placed = PlacedPositions(parameters(model.positions)["W"], batch.begin)
        return language_model_loss(with_modules(model, {"positions": placed}), batch)
