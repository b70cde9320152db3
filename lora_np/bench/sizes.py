r"""What is timed: five sizes, from one that fits the cache to GPT-2 with its own vocabulary, and how all start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import TransformerConfig
from ..files import load_config
from ..methods import adapt
from ..methods.lora import LoraConfig
from ..model import Transformer, initialize
from ..optimization import TrainingConfig
from ..parameters import parameters, with_parameters
from ..tasks import Batch

RANK, ALPHA, TARGETS = 8, 16.0, "qv"
LORA = LoraConfig(RANK, ALPHA, TARGETS)


@dataclass(frozen=True)
class Size:
    """A transformer and the batch of one step: `batch` sequences of `seq` tokens each; `base`: one that is stored."""

    name: str
    d_model: int
    layers: int
    heads: int
    batch: int
    seq: int
    vocab: int
    base: str = ""

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.seq

    @property
    def config(self) -> TransformerConfig:
        """The model, its context just long enough; or the one that is stored."""
        if self.base:
            return load_config(self.base)
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


Step = Callable[[], Any]

PROMPT = np.frombuffer(b"The os module ", np.uint8).astype(np.int64)

# No clipping, here and in what we compare with: it would time one more pass over the gradient on either side.
TRAINING = TrainingConfig(steps=1 << 30, learning_rate=1e-4, warmup=0, decay="constant", clip=None)


@dataclass(frozen=True)
class Task:
    """What one process does: a workload by name, at a size.

    workers   threads; None: as many as the library would use      device   "cpu" or "gpu"
    traced    count the bytes of arrays as they are allocated, which costs time
    clock     "wall", or "processor": seconds of this process on a processor, which a busy machine does not stretch
    """

    workload: str
    size: Size
    workers: int | None = None
    device: str = "cpu"
    rank: int = RANK
    seed: int = 0
    traced: bool = False
    clock: str = "wall"


def adapted_model(task: Task) -> Transformer:
    """The model of this size with LoRA."""
    rng = np.random.default_rng(task.seed)
    return with_adapter(initialize(task.size.config, rng), task.rank, rng)


def with_adapter(base: Transformer, rank: int, rng: np.random.Generator) -> Transformer:
    """With B moved off zero, so that no product is with zeros."""
    model = adapt(base, replace(LORA, rank=rank), rng)
    moved = {n: 0.2 * rng.standard_normal(B.shape).astype(B.dtype) for n, B in parameters(model, "*.B").items()}
    return with_parameters(model, moved)
