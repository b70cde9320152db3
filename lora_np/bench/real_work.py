r"""The work that is timed on a real model: a step of LoRA beside it, whatever it is held in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..files import load_config, load_model
from ..formats.folders import is_foreign
from ..loading import load_foreign
from ..model import Transformer
from ..optimization import start
from ..tasks import Batch
from ..training import fit, model_loss
from .sizes import LORA, TRAINING, Size, Step, Task, with_adapter

CLASSES = 2  # of the head that an encoder gets


def real(held: str | None) -> Callable[[Task], Step]:
    """A training step of LoRA on the model, its matrices held as given."""

    def prepare(task: Task) -> Step:
        model = adapted_real(task, held)
        state = start(LORA.trained(model), TRAINING)
        records = fit(model_loss(model), RealTokens(task.size, model.config.outcomes, task.seed), TRAINING, state,
                      task.workers)  # fmt: skip
        return lambda: next(records).loss

    return prepare


def adapted_real(task: Task, held: str | None = None) -> Transformer:
    """The model with LoRA beside it, B moved off zero; an encoder with a head of two classes."""
    rng = np.random.default_rng(task.seed)
    base, sizes = task.size.base, load_config(task.size.base)
    if not sizes.causal and not sizes.classes and is_foreign(base):
        model = load_foreign(base, held=held, classes=CLASSES, rng=rng)
    else:
        model = load_model(base, held=held)
    return with_adapter(model, task.rank, rng)


class RealTokens:
    """Random tokens and targets, another batch at every step; of a classifier one target a sequence."""

    def __init__(self, size: Size, outcomes: int, seed: int) -> None:
        self.size, self.outcomes, self.seed = size, outcomes, seed

    def __getitem__(self, step: int, /) -> Batch:
        rng, shape = np.random.default_rng([self.seed, step]), (self.size.batch, self.size.seq)
        tokens = rng.integers(0, self.size.vocab, shape)
        predicted = shape if self.outcomes == self.size.vocab else (self.size.batch, 1)
        targets = rng.integers(0, self.outcomes, predicted)
        return Batch(tokens, targets, np.full(predicted, 1.0 / targets.size, np.float32))
