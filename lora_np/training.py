r"""Training: a loss, a flat dict of arrays, and a step that is a pure function of both.

    batch → shards → gradients (threads) → their sum, in order → clip → AdamW → the next state

Everything a step needs follows from (state, step number, seed): the batch, the dropout masks and the learning rate.
So a run that is stopped and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from .arrays import Array, array_module
from .differentiation import value_and_grad
from .lora import with_dropout
from .model import Transformer, language_model_loss
from .parameters import Arrays, with_parameters
from .threads import thread_map

Loss = Callable[[Arrays, Any, np.random.Generator], Any]


class Batches(Protocol):
    """Random access to batches by step, without end."""

    def __getitem__(self, step: int, /) -> Any: ...


@dataclass(frozen=True)
class TrainingConfig:
    r"""How to train.

    steps          optimizer steps in all           learning_rate  its largest value, after warm-up
    warmup         steps of linear rise             decay          "linear" or "cosine" to zero, or "constant"
    optimizer      "adamw" or "sgd"                 beta1, beta2, eps, weight_decay   of AdamW
    clip           largest global gradient norm; None does not clip
    micro_batches  pieces of a batch whose gradients are made one by one, or side by side on threads, and added
    seed           of the dropout masks

    Raises ValueError for a value outside its range.
    """

    steps: int = 300
    learning_rate: float = 3e-3
    warmup: int = 10
    decay: Literal["linear", "cosine", "constant"] = "linear"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    micro_batches: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("warmup", 0), ("micro_batches", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name in ("learning_rate", "eps", "clip"):
            value = getattr(self, name)
            if not (name == "clip" and value is None) and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be a number of at least 0, got {self.weight_decay!r}")
        if self.decay not in ("linear", "cosine", "constant") or self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"unknown decay {self.decay!r} or optimizer {self.optimizer!r}")


@dataclass(frozen=True)
class TrainingState:
    """All that a run must remember: the steps done, the trained arrays, and the optimizer's moments."""

    step: int
    trained: Arrays
    moments: Arrays


@dataclass(frozen=True)
class Record:
    """What one step did: loss in nats per trained token, before the step; the state after it."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    state: TrainingState


class NonFiniteError(ArithmeticError):
    """The loss or its gradient is no longer a number; the message names the step and the first such array."""


def start(trained: Arrays, config: TrainingConfig) -> TrainingState:
    """The state before the first step: moments m and v at zero (none for SGD)."""
    if config.optimizer == "sgd":
        return TrainingState(0, trained, {})
    zeros = {name: array_module(array).zeros_like(array) for name, array in trained.items()}
    return TrainingState(0, trained, {f"{moment}.{name}": array for moment in "mv" for name, array in zeros.items()})


def model_loss(model: Transformer) -> Loss:
    """The language-modelling loss as a function of the trained arrays, a batch, and a generator for dropout."""

    def loss(trained: Arrays, batch: Any, rng: np.random.Generator) -> Any:
        return language_model_loss(with_dropout(with_parameters(model, trained), rng), batch)

    return loss


def fit(
    loss: Loss, batches: Batches, config: TrainingConfig, state: TrainingState, workers: int | None = None
) -> Iterator[Record]:
    """Train from `state` to `config.steps`, yielding one record a step; stop reading and the run stops.

    Raises NonFiniteError when a loss or gradient is not finite.
    """
    gradient_of = value_and_grad(loss)
    with thread_map(workers) as run:
        for step in range(state.step, config.steps):
            began = time.perf_counter()
            batch = batches[step]
            value, gradient = _batch_gradient(gradient_of, state.trained, batch, config, step, run)
            norm = global_norm(gradient)
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise NonFiniteError(_first_not_finite(step, value, state.trained, gradient))
            rate = learning_rate(step, config)
            state = update(state, clipped(gradient, norm, config.clip), rate, config)
            seconds = time.perf_counter() - began
            yield Record(step + 1, value, rate, norm, batch.tokens_trained, seconds, state)


def _batch_gradient(
    gradient_of: Callable[..., tuple[Any, Arrays]],
    trained: Arrays,
    batch: Any,
    config: TrainingConfig,
    step: int,
    run: Callable[..., list[Any]],
) -> tuple[float, Arrays]:
    """Loss and gradient of a batch as the sum over its shards, added in their order whoever made them."""
    jobs = list(enumerate(batch.shards(config.micro_batches)))

    def one(job: tuple[int, Any]) -> tuple[Any, Arrays]:
        return gradient_of(trained, job[1], np.random.default_rng([config.seed, step, job[0]]))

    (value, gradient), *others = run(one, jobs)
    for more, addend in others:
        value = value + more
        gradient = {name: array + addend[name] for name, array in gradient.items()}
    return float(value), gradient


def evaluate(model: Transformer, batches: Iterable[Any], workers: int | None = None) -> float:
    """Mean loss of a model over batches, in nats per trained token, each token counting the same."""

    def nats(batch: Any) -> float:
        return float(language_model_loss(model, batch)) * batch.tokens_trained

    held = list(batches)
    with thread_map(workers) as run:
        return sum(run(nats, held)) / sum(batch.tokens_trained for batch in held)


def learning_rate(step: int, config: TrainingConfig) -> float:
    r"""The rate of step 0, 1, …: rises linearly over the warm-up, then decays to zero at the end.

    With p the part of the way from warm-up to the end, the factor is 1 − p (linear) or (1 + cos πp)/2 (cosine).
    """
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    passed = (step - config.warmup) / max(1, config.steps - config.warmup)
    factor = {"linear": 1.0 - passed, "cosine": 0.5 * (1.0 + math.cos(math.pi * passed)), "constant": 1.0}
    return config.learning_rate * factor[config.decay]


def global_norm(gradient: Mapping[str, Array]) -> float:
    r"""$\sqrt{\sum g^2}$ over all arrays together."""
    return math.sqrt(sum(float(array_module(g).vdot(g, g)) for g in gradient.values()))


def clipped(gradient: Arrays, norm: float, largest: float | None) -> Arrays:
    """The gradient, scaled down to the norm `largest` when it is longer (Pascanu et al. 2013, arXiv:1211.5063)."""
    if largest is None or norm <= largest:
        return gradient
    return {name: array * (largest / norm) for name, array in gradient.items()}


def update(state: TrainingState, gradient: Arrays, rate: float, config: TrainingConfig) -> TrainingState:
    """The state after one step of the configured optimizer; the old state stays as it was."""
    step = state.step + 1
    if config.optimizer == "sgd":
        return TrainingState(step, sgd(state.trained, gradient, rate), {})
    return TrainingState(step, *adamw(state.trained, gradient, state.moments, step, rate, config))


def sgd(parameters: Arrays, gradient: Arrays, rate: float) -> Arrays:
    r"""$\theta \leftarrow \theta - \eta g$."""
    return {name: array - rate * gradient[name] for name, array in parameters.items()}


def adamw(
    parameters: Arrays, gradient: Arrays, moments: Arrays, step: int, rate: float, config: TrainingConfig
) -> tuple[Arrays, Arrays]:
    r"""One step of Adam with decoupled weight decay; step counts from 1.

    $$m \leftarrow \beta_1 m + (1-\beta_1) g,\quad v \leftarrow \beta_2 v + (1-\beta_2) g^2,\quad
      \hat m = \frac{m}{1-\beta_1^t},\quad \hat v = \frac{v}{1-\beta_2^t} \tag{T1}$$
    $$\theta \leftarrow (1 - \eta\lambda)\,\theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon} \tag{T2}$$

    The decay λ is applied to matrices only, not to biases and gains.

    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
    """
    new: Arrays = {}
    state: Arrays = {}
    for name, theta in parameters.items():
        g = gradient[name]
        m = config.beta1 * moments[f"m.{name}"] + (1.0 - config.beta1) * g
        v = config.beta2 * moments[f"v.{name}"] + (1.0 - config.beta2) * (g * g)
        m_hat = m / (1.0 - config.beta1**step)
        v_hat = v / (1.0 - config.beta2**step)
        decay = config.weight_decay if theta.ndim >= 2 else 0.0
        direction = m_hat / (array_module(v).sqrt(v_hat) + config.eps)
        new[name] = (1.0 - rate * decay) * theta - rate * direction
        state[f"m.{name}"], state[f"v.{name}"] = m, v
    return new, state


def _first_not_finite(step: int, value: float, trained: Arrays, gradient: Arrays) -> str:
    arrays = {**trained, **{f"the gradient of {name}": g for name, g in gradient.items()}}
    wrong = [name for name, array in arrays.items() if not bool(array_module(array).isfinite(array).all())]
    found = f"the first array that is not finite is {wrong[0]}" if wrong else "all trained arrays are finite"
    return f"step {step + 1}: the loss is {value}; {found}. A smaller learning rate may help"
