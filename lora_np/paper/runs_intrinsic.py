r"""A cell that trains in random subspaces of all weights: d90, on a model so small that a projection of it fits.

P of the base that ships would hold D·d numbers, 2 GB for d = 256: what is measured here is a model of nine thousand
numbers that learns the task from nothing, as in Li et al. 2018.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..config import TransformerConfig
from ..model import Transformer, initialize
from ..optimization import TrainingConfig, start
from ..parameters import count, parameters, with_parameters
from ..training import fit, model_loss
from .cells import Cell, Row
from .intrinsic import in_subspace, intrinsic_dimension, trained_in
from .runs import Sides, training_of

SMALL = TransformerConfig(vocab=256, context=160, d_model=16, layers=1, heads=2)
FULL_RATE, RATE = 1e-2, 1e-1  # all weights, and z: a direction of z moves each weight by little


def intrinsic(cell: Cell, base: Transformer) -> Row:
    """settings: dimensions. more: the gain in each, as a share of what all weights gain, d90, and its chance level."""
    dimensions = [int(d) for d in cell.with_settings["dimensions"]]
    model = initialize(SMALL, np.random.default_rng(cell.seed))
    sides = Sides.of(cell, model)
    origin, loss = parameters(model), model_loss(model)

    def score(arrays: Any) -> float:
        return sides.held_out.bits_per_byte(with_parameters(model, arrays))

    def config(rate: float) -> TrainingConfig:
        return replace(training_of(cell), learning_rate=rate)

    losses = {}
    for d in dimensions:
        subspace = in_subspace(loss, origin, d, cell.seed)
        losses[d] = score(trained_in(subspace, sides.train.batches, config(RATE)))
    state = start(origin, config(FULL_RATE))
    for record in fit(loss, sides.train.batches, config(FULL_RATE), state):
        state = record.state
    before, full = score(origin), score(state.trained)
    found = intrinsic_dimension(losses, before, full, count(origin))
    d90 = found.reaching()
    more = {f"gain at {d}": found.gains[d] for d in dimensions}
    more |= {f"gain at {d} by chance": gain for d, gain in found.chance_gains.items()}
    more |= {"D": count(origin), "d90": d90 or 0, "d90 by chance": found.chance()}
    return Row(cell, float(count(origin)), before, full, more=more)
