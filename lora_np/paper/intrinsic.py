r"""Intrinsic dimension: how few random directions of all the weights training needs.

$$\theta = \theta_0 + P z,\qquad P\ (D, d)\ \text{orthonormal columns, drawn at random and frozen},\quad z = 0
  \text{ at the start} \tag{N1}$$

Only z is trained, by the same `fit` as everything else. The dimension d90 is the smallest d that gains nine tenths of
what training all D numbers gains. By chance, that is where every direction of θ matters alike, a random subspace holds
on average d/D of the squared gradient (E‖Pᵀg‖² = (d/D)‖g‖², as in (S3)), and d90 would be 0.9 D.

Sources: Li et al. 2018, arXiv:1804.08838, sections 2 and 3; Aghajanyan et al. 2020, arXiv:2012.13255.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..operations import linear
from ..optimization import TrainingConfig, start
from ..parameters import Arrays, count
from ..training import Batches, Loss, fit
from .subspaces import orthonormal


@dataclass(frozen=True)
class InSubspace:
    """A loss of the arrays of a model as a loss of z, equation (N1).

    loss     of all arrays       origin  θ0, by path       P  (D, d), orthonormal columns
    """

    loss: Loss
    origin: Arrays
    P: Array

    def __call__(self, trained: Arrays, batch: Any, rng: np.random.Generator) -> Any:
        return self.loss(self.arrays(trained["z"]), batch, rng)

    def arrays(self, z: Array) -> Arrays:
        """θ0 + P z, cut into the arrays of the model."""
        step = linear(z, self.P, None)  # (D,)
        ends = np.cumsum([array.size for array in self.origin.values()])
        parts = {
            name: slice(end - array.size, end) for (name, array), end in zip(self.origin.items(), ends, strict=True)
        }
        return {name: array + step[parts[name]].reshape(array.shape) for name, array in self.origin.items()}

    @property
    def start(self) -> Arrays:
        return {"z": np.zeros(self.P.shape[1], self.P.dtype)}


def in_subspace(loss: Loss, origin: Arrays, dimension: int, seed: int) -> InSubspace:
    """The loss in a random subspace of this dimension. Raises ValueError for a dimension outside 1..D."""
    total = count(origin)
    if type(dimension) is not int or not 1 <= dimension <= total:
        raise ValueError(f"a dimension must lie in 1..{total}, the numbers that the arrays hold, got {dimension}")
    dtype = np.result_type(*(array.dtype for array in origin.values()))
    return InSubspace(loss, origin, orthonormal(np.random.default_rng(seed), total, dimension).astype(dtype))


def trained_in(subspace: InSubspace, batches: Batches, config: TrainingConfig) -> Arrays:
    """The arrays of the model after training z."""
    state = start(subspace.start, config)
    for record in fit(subspace, batches, config, state):
        state = record.state
    return subspace.arrays(state.trained["z"])


@dataclass(frozen=True)
class IntrinsicDimension:
    """What was gained in subspaces of several dimensions.

    total   D, the numbers of the model
    gains   {dimension: what training there gained, as a share of what training everything gains}
    """

    total: int
    gains: Mapping[int, float]

    def reaching(self, share: float = 0.9) -> int | None:
        """The smallest dimension that was tried and gains this share: d90. None when none does."""
        return next((d for d, gain in sorted(self.gains.items()) if gain >= share), None)

    def chance(self, share: float = 0.9) -> int:
        """The same where every direction matters alike."""
        return math.ceil(share * self.total)

    @property
    def chance_gains(self) -> dict[int, float]:
        """d/D for every dimension."""
        return {d: d / self.total for d in self.gains}


def intrinsic_dimension(losses: Mapping[int, float], before: float, full: float, total: int) -> IntrinsicDimension:
    r"""d90 from losses: those after training in each dimension, before training, and after training everything.

    $$gain(d) = \frac{before - loss(d)}{before - full} \tag{N2}$$

    Raises ValueError when training everything gained nothing, or a dimension lies outside 1..total.
    """
    if not before > full:
        raise ValueError(f"training everything must lower the loss, got {before} before and {full} after")
    for d in losses:
        if not 1 <= d <= total:
            raise ValueError(f"a dimension must lie in 1..{total}, got {d}")
    return IntrinsicDimension(total, {d: (before - loss) / (before - full) for d, loss in losses.items()})
