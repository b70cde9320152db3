r"""What is timed: five sizes of model and batch, from one that fits the cache to GPT-2 with its own vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..model import TransformerConfig
from ..tasks import Batch

RANK, ALPHA, TARGETS = 8, 16.0, "qv"


@dataclass(frozen=True)
class Size:
    """A transformer and the batch of one step: `batch` sequences of `seq` tokens each."""

    name: str
    d_model: int
    layers: int
    heads: int
    batch: int
    seq: int
    vocab: int

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.seq

    @property
    def config(self) -> TransformerConfig:
        """The model, its context just long enough."""
        return TransformerConfig(self.vocab, self.seq, self.d_model, self.layers, self.heads)


SIZES = {
    size.name: size
    for size in (
        Size("tiny", 64, 2, 2, 8, 64, 256),
        Size("small", 128, 4, 4, 16, 128, 256),
        Size("mid", 256, 6, 8, 8, 256, 1024),
        Size("gpt2", 768, 12, 12, 4, 256, 50257),
        Size("long", 768, 12, 12, 1, 1024, 50257),
    )
}


def named_size(name: str) -> Size:
    """`SIZES[name]`; an unknown name raises ValueError that lists the known ones."""
    if name not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {name!r}")
    return SIZES[name]


class RandomTokens:
    """Random tokens and targets, another batch at every step; every position is trained and weighs the same."""

    def __init__(self, size: Size, seed: int) -> None:
        self.size, self.seed = size, seed

    def __getitem__(self, step: int, /) -> Batch:
        size = self.size
        rng = np.random.default_rng([self.seed, step])
        shape = (size.batch, size.seq)
        tokens, targets = rng.integers(0, size.vocab, shape), rng.integers(0, size.vocab, shape)
        return Batch(tokens, targets, np.full(shape, 1.0 / size.tokens, np.float32))
