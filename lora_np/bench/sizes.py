r"""What is timed: five sizes of model and batch, from one that fits the cache to GPT-2 with its own vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

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


# What generates: the base that ships, one sequence; `seq` is the number of tokens that are timed.
GENERATION = Size("base", 192, 4, 6, 1, 200, 256)


def named_size(name: str, batch: int | None = None) -> Size:
    """`SIZES[name]`, with another number of sequences if one is given.

    Raises ValueError for an unknown name, which lists the known ones, and for a batch below 1.
    """
    if name not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {name!r}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return SIZES[name] if batch is None else replace(SIZES[name], batch=batch)


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
