r"""Training several adapters at once on one frozen base: a batch holds the examples of all, and each sees its own.

Where the weights of each adapter's examples sum to 1, the loss of the batch is the sum of what each would have alone,

$$L = \sum_i L_i(A_i, B_i),\qquad \partial L/\partial A_i = \partial L_i/\partial A_i \tag{J7}$$

for no row of another adapter meets A_i or B_i (see (J2) to (J4)); and AdamW steps every number by itself. What would
tie them together is clipping by one norm of all gradients, so it must be off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..model import Transformer, language_model_loss
from ..operations.gathered import Which
from ..optimization import TrainingConfig, start
from ..parameters import Arrays, parameters, with_parameters
from ..training import Record, fit
from .adapter import Adapter
from .mixed import routed, separated, stacked


class Batches(Protocol):
    """A batch for every step, as `fit` asks for it: tokens, targets and weights (batch, seq), the weights sum to 1."""

    def __getitem__(self, step: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class TogetherBatch:
    """The batches of several adapters in one, padded on the right; `which` says whose each sequence is."""

    tokens: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.floating]
    which: Which

    @property
    def tokens_trained(self) -> int:
        return int(np.count_nonzero(self.weights))

    def shards(self, n: int) -> list[TogetherBatch]:
        """At most n parts by sequences, whose losses add up to that of the batch."""
        parts = [part for part in np.array_split(np.arange(len(self.which)), n) if len(part)]
        rows = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
        return [TogetherBatch(self.tokens[r], self.targets[r], self.weights[r], self.which[r]) for r in rows]


@dataclass(frozen=True)
class Together:
    """The batches of all adapters step by step: those of the first, then those of the second, …"""

    each: tuple[Batches, ...]

    def __getitem__(self, step: int, /) -> TogetherBatch:
        batches = [own[step] for own in self.each]
        seq = max(batch.tokens.shape[1] for batch in batches)

        def joined(name: str) -> Any:
            parts = [getattr(batch, name) for batch in batches]
            return np.concatenate([np.pad(part, ((0, 0), (0, seq - part.shape[1]))) for part in parts])

        which = tuple(i for i, batch in enumerate(batches) for _ in batch.tokens)
        return TogetherBatch(joined("tokens"), joined("targets"), joined("weights"), which)


@dataclass(frozen=True)
class TogetherLoss:
    """(J7), as a function of the factors of all adapters side by side."""

    model: Transformer

    def __call__(self, trained: Arrays, batch: TogetherBatch, rng: np.random.Generator) -> Any:
        return language_model_loss(routed(with_parameters(self.model, trained), batch.which), batch)

    def pieces(self, batch: TogetherBatch) -> int:
        """As many as threads: sequences of one adapter stay side by side."""
        return 2


def fit_together(
    base: Transformer,
    adapters: Sequence[Adapter],
    batches: Sequence[Batches],
    config: TrainingConfig,
    workers: int | None = None,
) -> Iterator[tuple[Record, list[Adapter]]]:
    """Train all adapters at once, each on its own batches: a record a step, and the adapters as they are then.

    Raises ValueError for another number of batches than adapters, or a configuration that clips gradients.
    """
    if len(adapters) != len(batches) or not adapters:
        raise ValueError(f"each adapter has batches of its own, got {len(adapters)} adapters and {len(batches)}")
    if config.clip is not None:
        raise ValueError(
            "clipping by one norm would tie the adapters together: set clip=None, and each trains as it would alone"
        )
    model, names = stacked(base, adapters), [adapter.name for adapter in adapters]
    state = start(parameters(model, "*.A", "*.B"), config)
    for record in fit(TogetherLoss(model), Together(tuple(batches)), config, state, workers):
        yield record, separated(with_parameters(model, record.state.trained), names)
