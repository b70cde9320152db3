r"""Training: a loss, a flat dict of arrays, and a step that is a pure function of both.

    batch → shards → gradients (mapped) → their sum, in order → clip → AdamW → the next state

Everything a step needs follows from (state, step number, seed): the batch, the dropout masks and the learning rate.
So a run that is stopped and resumed ends with the same bits as one that was not. How a batch is cut into shards is a
setting too: who makes their gradients, and how many workers there are, changes no bit (`engine.mapping`).

On a device a step only queues its work. Loss and norm stay there until a record is asked for them; the pieces of a
batch are made one after another, because the device is busy with one already.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from .config import TransformerConfig, matrix_multiply_adds
from .engine.arrays import array_module, on_device
from .engine.devices import explained_memory
from .engine.differentiation import value_and_grad
from .engine.mapping import Map, engine_map
from .engine.threads import thread_map, worker_count
from .model import Transformer, beside, language_model_loss, place_of, with_dropout
from .optimization import TrainingConfig, TrainingState, clipped, global_norm, learning_rate, update
from .parameters import Arrays, walk, with_parameters

Loss = Callable[[Arrays, Any, np.random.Generator], Any]

# Multiply-adds of a forward pass of a batch: with fewer, its array operations are too short for threads to share. Who
# makes the shards unasked are threads; what processes gain, and what their start costs, is said in docs/engines.md.
WORTH_A_SHARD = 1 << 28


class Batches(Protocol):
    """Random access to batches by step, without end."""

    def __getitem__(self, step: int, /) -> Any: ...


@dataclass(frozen=True)
class Traffic:
    """What a step moved between processes.

    shards   how many were made elsewhere      moved  bytes there and back: trained arrays, tokens, gradient
    held     bytes of what workers were sent once, the frozen base, since the run began
    ready_after  seconds from the start of worker processes until the last of them was ready; None for a cluster
    """

    shards: int
    moved: int
    held: int
    ready_after: float | None

    def if_all_were_trained(self, base: Arrays, trained: Arrays) -> int:
        """The bytes that a step would move if every array of the base were trained: each there, its gradient back."""
        return self.moved + 2 * self.shards * (_bytes(base) - _bytes(trained))


@dataclass(frozen=True)
class Record:
    """What one step did; the state is that after it.

    loss, gradient_norm   from before the step, in nats per trained token, and over all arrays. On a device they stay
                          there until one of them is asked for: that waits for the step
    seconds               of the step; on a device until its work was queued
    traffic               of the step, where shards were made by other processes
    """

    step: int
    learning_rate: float
    tokens: int
    seconds: float
    state: TrainingState
    measured: tuple[Any, Any] = field(repr=False)  # loss and norm as they were computed
    traffic: Traffic | None = None

    @cached_property
    def loss(self) -> float:
        return float(self.measured[0])

    @cached_property
    def gradient_norm(self) -> float:
        return float(self.measured[1])

    @property
    def was_read(self) -> bool:
        """Has the loss been asked for?"""
        return "loss" in vars(self)

    def check(self) -> None:
        """Wait for the step, and raise NonFiniteError unless its loss and its gradient were finite."""
        if not (math.isfinite(self.loss) and math.isfinite(self.gradient_norm)):
            raise NonFiniteError(_first_not_finite(self.step, self.loss, self.state.trained, {}))


class NonFiniteError(ArithmeticError):
    """The loss or its gradient is no longer a number; the message names the step and the first such array."""


@dataclass(frozen=True)
class ModelLoss:
    """The language-modelling loss as a function of the trained arrays, a batch, and a generator for dropout.

    A batch on the host goes to the device of the model, once; so does a dropout mask, which is drawn on the host.

    recompute   keep only the input of each block for backward, which then evaluates the block once more
    """

    model: Transformer
    recompute: bool = False

    def __call__(self, trained: Arrays, batch: Any, rng: np.random.Generator) -> Any:
        model = with_parameters(self.model, trained)
        model = with_dropout(model, rng) if self._drops else model
        return language_model_loss(model, beside(model, batch), recompute=self.recompute)

    @cached_property
    def _drops(self) -> bool:
        return any(getattr(node, "dropout", 0.0) for _, node in walk(self.model))

    def pieces(self, batch: Any) -> int:
        """How many shards of a batch make a step fastest: one where there is too little to share."""
        return pieces_of(self.model.config, batch.tokens.size)


def pieces_of(config: TransformerConfig, tokens: int) -> int:
    """How many shards of so many tokens make a step of such a model fastest."""
    return 2 if matrix_multiply_adds(config) * tokens >= WORTH_A_SHARD else 1


def model_loss(model: Transformer, *, recompute: bool = False) -> ModelLoss:
    """The loss that `fit` lowers for a language model; with `recompute` it takes less memory and more time.

    The loss is that of `language_model_loss`, of batches of tokens (batch, seq). Raises nothing until it is called, and
    then what that raises.

    >>> import numpy as np
    >>> from lora_np import LoraConfig, TransformerConfig, adapt, initialize
    >>> from lora_np import model_loss, parameters, value_and_grad
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> base = initialize(config, np.random.default_rng(0))
    >>> model = adapt(base, LoraConfig(rank=2, targets="qv"), np.random.default_rng(1))
    >>> from lora_np.tasks.batches import collate, Sequence
    >>> sequences = [Sequence(np.array([0, 1, 2, 3, 0]), n_prompt=2), Sequence(np.array([0, 4, 5, 0]), n_prompt=1)]
    >>> trained, batch = parameters(model, "*.A", "*.B"), collate(sequences, end=0)
    >>> value, gradient = value_and_grad(model_loss(model))(trained, batch, np.random.default_rng(0))
    >>> bool(gradient["blocks.0.attention.query.A"].any()), bool(gradient["blocks.0.attention.query.B"].any())
    (False, True)
    """
    return ModelLoss(model, recompute)


def fit(
    loss: Loss,
    batches: Batches,
    config: TrainingConfig,
    state: TrainingState,
    workers: int | None = None,
    engine: str | None = None,
) -> Iterator[Record]:
    """Train from `state` to `config.steps`, yielding one record a step; stop reading and the run stops.

    engine   who makes the gradients of the shards: see `engine.mapping`; threads when None
    workers  of the engine, this process one of them; as many as there are cores when None

    Raises NonFiniteError when a loss or gradient is not finite: on the host at once, on a device after the last step
    and after every record whose loss was read. Raises DeviceMemoryError where a device has no room.

    Trained arrays, their moments and their gradients are dicts of the same shapes (...); a batch holds tokens
    (batch, seq).

    >>> import numpy as np
    >>> from lora_np import LoraConfig, TrainingConfig, TransformerConfig, adapt, fit
    >>> from lora_np import initialize, model_loss, parameters, start
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> base = initialize(config, np.random.default_rng(0))
    >>> model = adapt(base, LoraConfig(rank=2, targets="qv"), np.random.default_rng(1))
    >>> from lora_np.tasks.batches import Batches, Sequence
    >>> sequences = [Sequence(np.array([0, 1, 2, 3, 0]), n_prompt=2), Sequence(np.array([0, 4, 5, 0]), n_prompt=1)]
    >>> batches, settings = Batches(sequences, batch_size=2, seed=0, end=0), TrainingConfig(steps=20, learning_rate=0.1)
    >>> first = start(parameters(model, "*.A", "*.B"), settings)
    >>> losses = [record.loss for record in fit(model_loss(model), batches, settings, first)]
    >>> len(losses), losses[-1] < losses[0]
    (20, True)
    """
    pieces = getattr(loss, "pieces", lambda batch: 2)
    away = any(map(on_device, state.trained.values()))
    if state.step >= config.steps:
        return

    def cut(batch: Any) -> tuple[int, list[Any]]:
        return batch.tokens_trained, batch.shards(config.micro_batches or pieces(batch))

    gradient_of, begun, batch = ShardGradient(loss), state.step, batches[state.step]
    first = cut(batch)
    with _mapped("inline" if away else engine, workers, len(first[1])) as run:
        for step in range(begun, config.steps):
            began = time.perf_counter()
            tokens, shards = first if step == begun else cut(batches[step])
            with explained_memory():
                value, gradient = _batch_gradient(gradient_of, state.trained, shards, (config.seed, step), run)
                norm = global_norm(gradient)
                if not (away or (math.isfinite(value) and math.isfinite(norm))):
                    raise NonFiniteError(_first_not_finite(step + 1, value, state.trained, gradient))
                rate = learning_rate(step, config)
                state = update(state, clipped(gradient, norm, config.clip), rate, config)
            seconds = time.perf_counter() - began
            traffic = Traffic(run.shares, run.moved, run.sent, run.ready_after) if run.shares else None
            record = Record(step + 1, rate, tokens, seconds, state, (value, norm), traffic)
            yield record
            if away and (record.was_read or state.step == config.steps):
                record.check()


@contextmanager
def _mapped(engine: str | None, workers: int | None, shards: int) -> Iterator[Map]:
    """The map of a run whose batches are cut into so many shards; of processes only as many as have something to do.

    Threads that a shard leaves idle still work inside its operations; processes and machines cannot.
    """
    chosen = engine or "threads"
    if chosen in ("inline", "threads"):
        with engine_map(chosen, workers) as run:
            yield run
        return
    if workers is not None and worker_count(workers) > shards:
        warnings.warn(
            f"{workers} workers were asked for and {shards} {'is' if shards == 1 else 'are'} used: "
            f"a batch is cut into {shards} {'shard' if shards == 1 else 'shards'} (--shards, micro_batches)",
            RuntimeWarning,
            stacklevel=3,
        )
    with engine_map(chosen, min(worker_count(workers), shards), takes_part=True) as run:
        yield run


@dataclass(frozen=True)
class ShardGradient:
    """What is mapped over the shards of a batch: (trained arrays, shard, seed) → loss and gradient.

    It holds the loss and with it the frozen base, which does not move while a run goes on.
    """

    loss: Loss

    def __call__(self, job: tuple[Arrays, Any, tuple[int, ...]]) -> tuple[Any, Arrays]:
        trained, shard, seed = job
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite gets a message of its own, in `fit`
            return value_and_grad(self.loss)(trained, shard, np.random.default_rng(seed))


def _batch_gradient(
    gradient_of: ShardGradient, trained: Arrays, shards: list[Any], seed: tuple[int, int], run: Map
) -> tuple[Any, Arrays]:
    """Loss and gradient of a batch as the sum over its shards, added in their order whoever made them."""
    jobs = [(trained, shard, (*seed, number)) for number, shard in enumerate(shards)]
    (value, gradient), *others = run(gradient_of, jobs)
    for more, addend in others:
        value = value + more
        gradient = {name: gradient.pop(name) + addend.pop(name) for name in list(gradient)}  # let go one by one
    return value, gradient


def evaluate(model: Transformer, batches: Iterable[Any], workers: int | None = None) -> float:
    r"""Mean loss of a model over batches, in nats per trained token, each token counting the same.

    $$\frac{\sum_\mathrm{batches} n\,L}{\sum_\mathrm{batches} n}$$

    for batches of n trained tokens, tokens (batch, seq). Raises ValueError when there is no batch.

    >>> import numpy as np
    >>> from lora_np import TransformerConfig, evaluate, initialize
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> model = initialize(config, np.random.default_rng(0))
    >>> from lora_np.tasks.batches import epoch, Sequence
    >>> sequences = [Sequence(np.array([0, 1, 2, 3, 0]), n_prompt=2), Sequence(np.array([0, 4, 5, 0]), n_prompt=1)]
    >>> whole = evaluate(model, epoch(sequences, batch_size=2, end=0))
    >>> abs(evaluate(model, epoch(sequences, batch_size=1, end=0)) - whole) < 1e-6  # however it is cut
    True
    """

    def loss(batch: Any) -> Any:
        return language_model_loss(model, beside(model, batch))

    held = list(batches)
    if not held:
        raise ValueError("nothing to evaluate: no batch was given")
    with thread_map(1 if on_device(place_of(model)) else workers) as run, explained_memory():
        losses = run(loss, held)  # all queued before the first is waited for
        nats = [float(loss) * batch.tokens_trained for loss, batch in zip(losses, held, strict=True)]
    return sum(nats) / sum(batch.tokens_trained for batch in held)


def _bytes(arrays: Arrays) -> int:
    return sum(int(array.nbytes) for array in arrays.values())


def _first_not_finite(step: int, value: Any, trained: Arrays, gradient: Arrays) -> str:
    arrays = {**trained, **{f"the gradient of {name}": g for name, g in gradient.items()}}
    wrong = [name for name, array in arrays.items() if not bool(array_module(array).isfinite(array).all())]
    found = f"the first array that is not finite is {wrong[0]}" if wrong else "all trained arrays are finite"
    return f"step {step}: the loss is {value}; {found}. A smaller learning rate may help"
