r"""The work that is timed, each as a function of a `Task` that sets up and gives back one step to call.

A step gives back a number that follows from all of its work: the loss before it, or the tokens it generated. So two
programs that claim to do the same thing can be compared in that as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import autograd
import numpy as np

from .. import textbook
from ..engine.devices import to_device
from ..engine.threads import worker_count
from ..files import load_model
from ..generation import generate
from ..lora import adapters
from ..method import Method
from ..methods.tuning import Full
from ..model import Transformer, initialize
from ..names import plain
from ..optimization import adamw, start
from ..parameters import Arrays, parameters
from ..training import Record, fit, model_loss
from ..wrappers import merge
from .mixing import SERVING
from .real_work import real
from .sizes import LORA, PROMPT, RANK, TRAINING, RandomTokens, Step, Task, adapted_model, with_adapter


def lora(task: Task, engine: str | None = None) -> Step:
    """A training step of LoRA as the library's users run it: batch, gradient, AdamW.

    By an engine that is named it is one in as many shards as there are workers.
    """
    return _training(adapted_model(task), LORA, task, engine=engine)


def lora_recomputed(task: Task) -> Step:
    """The same, and backward computes each block again."""
    return _training(adapted_model(task), LORA, task, recompute=True)


def full(task: Task) -> Step:
    """A training step of every parameter."""
    return _training(initialize(task.size.config, np.random.default_rng(task.seed)), Full(), task)


def _training(
    model: Transformer, method: Method, task: Task, *, recompute: bool = False, engine: str | None = None
) -> Step:
    model = to_device(model, task.device)
    settings = TRAINING if engine is None else replace(TRAINING, micro_batches=worker_count(task.workers))
    state = start(method.trained(model), settings)
    batches = RandomTokens(task.size, task.seed)
    loss = model_loss(model, recompute=recompute)
    records: Iterator[Record] = fit(loss, batches, settings, state, task.workers, engine)
    return lambda: next(records).loss


def textbook_lora(task: Task) -> Step:
    """The LoRA step by autograd alone, on the equations of `lora_np.textbook`."""
    model, size = adapted_model(task), task.size
    everything = {plain(path): array for path, array in parameters(model).items()}
    scaling = {path: module.scaling for path, module in adapters(model).items()}
    batches, state = RandomTokens(size, task.seed), start(LORA.trained(model), TRAINING)

    def loss(trained: Arrays, batch: Any) -> Any:
        return textbook.loss({**everything, **trained}, batch.tokens, batch.targets, batch.weights, size.heads, scaling)

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
    return with_adapter(base, RANK, np.random.default_rng(0))


def peer(task: Task) -> Step:
    """The LoRA step in PyTorch with PEFT."""
    from .peers import training

    return training(task)


def peer_compiled(task: Task) -> Step:
    """The same under `torch.compile`."""
    from .peers import training

    return training(task, compiled=True)


def peer_jax(task: Task) -> Step:
    """The LoRA step in JAX, compiled as a whole."""
    from .jax_peer import training

    return training(task)


def peer_generation(task: Task) -> Step:
    """The same tokens from `transformers`."""
    from .peers import generation

    return generation(task)


def real_peer(task: Task) -> Step:
    """The LoRA step of a real model in transformers with PEFT."""
    from .real_peers import training

    return training(task)


WORKLOADS: dict[str, Callable[[Task], Step]] = {
    "lora": lora,
    "lora, recomputed": lora_recomputed,
    **{f"lora, {engine}": partial(lora, engine=engine) for engine in ("inline", "threads", "processes")},
    "full": full,
    "textbook": textbook_lora,
    "peer": peer,
    "peer, compiled": peer_compiled,
    "peer, jax": peer_jax,
    "generation, base": generation(lambda base: base),
    "generation, adapted": generation(_with_adapter),
    "generation, merged": generation(lambda base: merge(_with_adapter(base))),
    "generation, peer": peer_generation,
    **{f"serving, {name}": prepare for name, prepare in SERVING.items()},
    "real, float32": real(None),
    "real, float16": real("float16"),
    "real, bfloat16": real("bfloat16"),
    "real peer": real_peer,
}
