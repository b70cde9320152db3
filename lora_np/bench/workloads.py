r"""The work that is timed, each as a function of a `Task` that sets up and gives back one step to call.

A step gives back a number that follows from all of its work: the loss before it, or the tokens it generated. So two
programs that claim to do the same thing can be compared in that as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import autograd
import numpy as np

from .. import textbook
from ..devices import to_device
from ..files import load_model
from ..generation import generate
from ..lora import LoraConfig, adapt, adapters, merge
from ..model import Transformer, initialize
from ..parameters import Arrays, parameters, with_parameters
from ..training import Record, TrainingConfig, adamw, fit, model_loss, start
from .sizes import ALPHA, RANK, TARGETS, RandomTokens, Size

Step = Callable[[], Any]

PROMPT = np.frombuffer(b"The os module ", np.uint8).astype(np.int64)

# No clipping, here and in what we compare with: it would time one more pass over the gradient on either side.
TRAINING = TrainingConfig(steps=1 << 30, learning_rate=1e-4, warmup=0, decay="constant", clip=None)


@dataclass(frozen=True)
class Task:
    """What one process does: a workload by name, at a size.

    workers   threads; None: as many as the library would use      device   "cpu" or "gpu"
    traced    count the bytes of arrays as they are allocated, which costs time
    """

    workload: str
    size: Size
    workers: int | None = None
    device: str = "cpu"
    rank: int = RANK
    seed: int = 0
    traced: bool = False


def adapted_model(task: Task) -> Transformer:
    """The model of this size with LoRA."""
    rng = np.random.default_rng(task.seed)
    return _adapted(initialize(task.size.config, rng), task.rank, rng)


def _adapted(base: Transformer, rank: int, rng: np.random.Generator) -> Transformer:
    """With B moved off zero, so that no product is with zeros."""
    model = adapt(base, LoraConfig(rank, ALPHA, TARGETS), rng)
    moved = {n: 0.02 * rng.standard_normal(B.shape).astype(B.dtype) for n, B in parameters(model, "*.B").items()}
    return with_parameters(model, moved)


def lora(task: Task) -> Step:
    """A training step of LoRA as the library's users run it: batch, gradient on threads, AdamW."""
    return _training(adapted_model(task), ("*.A", "*.B"), task)


def lora_recomputed(task: Task) -> Step:
    """The same with `checkpoint_blocks`."""
    return _training(replace(adapted_model(task), checkpoint_blocks=True), ("*.A", "*.B"), task)


def full(task: Task) -> Step:
    """A training step of every parameter."""
    return _training(initialize(task.size.config, np.random.default_rng(task.seed)), ("*",), task)


def _training(model: Transformer, select: tuple[str, ...], task: Task) -> Step:
    model = to_device(model, task.device)
    state = start(parameters(model, *select), TRAINING)
    batches = RandomTokens(task.size, task.seed)
    records: Iterator[Record] = fit(model_loss(model), batches, TRAINING, state, task.workers)
    return lambda: next(records).loss


def textbook_lora(task: Task) -> Step:
    """The LoRA step by autograd alone, on the equations of `lora_np.textbook`."""
    model, size = adapted_model(task), task.size
    plain = {path.replace(".base.", "."): array for path, array in parameters(model).items()}
    scaling = {path: module.scaling for path, module in adapters(model).items()}
    batches, state = RandomTokens(size, task.seed), start(parameters(model, "*.A", "*.B"), TRAINING)

    def loss(trained: Arrays, batch: Any) -> Any:
        return textbook.loss({**plain, **trained}, batch.tokens, batch.targets, batch.weights, size.heads, scaling)

    def step() -> float:
        nonlocal state
        value, gradient = autograd.value_and_grad(loss)(state.trained, batches[state.step])
        done = state.step + 1
        trained, moments = adamw(state.trained, gradient, state.moments, done, TRAINING.learning_rate, TRAINING)
        state = replace(state, step=done, trained=trained, moments=moments)
        return float(value)

    return step


def generation(make: Callable[[Transformer], Transformer]) -> Callable[[Task], Step]:
    """Greedy tokens, as many as `size.seq`, after a short prompt, by what is made of the base that ships."""

    def prepare(task: Task) -> Step:
        model = to_device(make(load_model()), task.device)
        return lambda: list(generate(model, PROMPT, task.size.seq))

    return prepare


def _with_adapter(base: Transformer) -> Transformer:
    return _adapted(base, RANK, np.random.default_rng(0))


def peer(task: Task) -> Step:
    """The LoRA step in PyTorch with PEFT."""
    from .peers import training

    return training(task)


def peer_generation(task: Task) -> Step:
    """The same tokens from `transformers`."""
    from .peers import generation

    return generation(task)


WORKLOADS: dict[str, Callable[[Task], Step]] = {
    "lora": lora,
    "lora, recomputed": lora_recomputed,
    "full": full,
    "textbook": textbook_lora,
    "peer": peer,
    "generation, base": generation(lambda base: base),
    "generation, adapted": generation(_with_adapter),
    "generation, merged": generation(lambda base: merge(_with_adapter(base))),
    "generation, peer": peer_generation,
}
