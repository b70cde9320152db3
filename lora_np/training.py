r"""Training: a loss, a flat dict of arrays, and a step that is a pure function of both.

    batch → shards → gradients (threads) → their sum, in order → clip → AdamW → the next state

Everything a step needs follows from (state, step number, seed): the batch, the dropout masks and the learning rate.
So a run that is stopped and resumed ends with the same bits as one that was not.

On a device a step only queues its work. Loss and norm stay there until a record is asked for them; the pieces of a
batch are made one after another, because the device is busy with one already.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from .arrays import Array, array_module, fused, on_device
from .costs import matrix_multiply_adds
from .devices import explained_memory
from .differentiation import value_and_grad
from .lora import adapters, with_dropout
from .model import Transformer, TransformerConfig, batch_for, language_model_loss, shape_of
from .parameters import Arrays, with_parameters
from .threads import thread_map

Loss = Callable[[Arrays, Any, np.random.Generator], Any]

WORTH_A_THREAD = 1 << 28  # multiply-adds of a forward pass: with fewer, its array operations are too short to share


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
    micro_batches  pieces of a batch whose gradients are made one by one, or side by side on threads, and added; when
                   None, two of a batch that is large enough for its loss (see `ModelLoss`) to gain by it, else one
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
    micro_batches: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("warmup", 0), ("micro_batches", 1), ("seed", 0)):
            value = getattr(self, name)
            if not (name == "micro_batches" and value is None) and (type(value) is not int or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name in ("learning_rate", "eps", "clip"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if not (name == "clip" and value is None) and not (is_number and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be a number of at least 0, got {self.weight_decay!r}")
        for name, allowed in (("decay", ("linear", "cosine", "constant")), ("optimizer", ("adamw", "sgd"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class TrainingState:
    """All that a run must remember: the steps done, the trained arrays, and the optimizer's moments."""

    step: int
    trained: Arrays
    moments: Arrays


@dataclass(frozen=True)
class Record:
    """What one step did; the state is that after it.

    loss, gradient_norm   from before the step, in nats per trained token, and over all arrays. On a device they stay
                          there until one of them is asked for: that waits for the step
    seconds               of the step; on a device until its work was queued
    """

    step: int
    learning_rate: float
    tokens: int
    seconds: float
    state: TrainingState
    measured: tuple[Any, Any] = field(repr=False)  # loss and norm as they were computed

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


def start(trained: Arrays, config: TrainingConfig) -> TrainingState:
    """The state before the first step: moments m and v at zero (none for SGD)."""
    if config.optimizer == "sgd":
        return TrainingState(0, trained, {})
    zeros = {name: array_module(array).zeros_like(array) for name, array in trained.items()}
    return TrainingState(0, trained, {f"{moment}.{name}": array for moment in "mv" for name, array in zeros.items()})


@dataclass(frozen=True)
class ModelLoss:
    """The language-modelling loss as a function of the trained arrays, a batch, and a generator for dropout.

    A batch on the host goes to the device of the model, once; so does a dropout mask, which is drawn on the host.
    """

    model: Transformer

    def __call__(self, trained: Arrays, batch: Any, rng: np.random.Generator) -> Any:
        model = with_parameters(self.model, trained)
        return language_model_loss(with_dropout(model, rng) if self._drops else model, batch_for(model, batch))

    @cached_property
    def _drops(self) -> bool:
        return any(getattr(module, "dropout", 0.0) for module in adapters(self.model).values())

    def pieces(self, batch: Any) -> int:
        """How many shards of a batch make a step fastest: one where threads would mostly wait for each other."""
        return pieces_of(self.model.config, batch.tokens.size)


def pieces_of(config: TransformerConfig, tokens: int) -> int:
    """How many shards of so many tokens make a step of such a model fastest."""
    return 2 if matrix_multiply_adds(shape_of(config)) * tokens >= WORTH_A_THREAD else 1


def model_loss(model: Transformer) -> ModelLoss:
    """The loss that `fit` lowers for a language model."""
    return ModelLoss(model)


def fit(
    loss: Loss, batches: Batches, config: TrainingConfig, state: TrainingState, workers: int | None = None
) -> Iterator[Record]:
    """Train from `state` to `config.steps`, yielding one record a step; stop reading and the run stops.

    Raises NonFiniteError when a loss or gradient is not finite: on the host at once, on a device after the last step
    and after every record whose loss was read. Raises DeviceMemoryError where a device has no room.
    """
    gradient_of, pieces = value_and_grad(loss), getattr(loss, "pieces", lambda batch: 2)
    away = any(map(on_device, state.trained.values()))
    with thread_map(1 if away else workers) as run:
        for step in range(state.step, config.steps):
            began = time.perf_counter()
            batch = batches[step]
            with explained_memory():
                shards = batch.shards(config.micro_batches or pieces(batch))
                value, gradient = _batch_gradient(gradient_of, state.trained, shards, (config.seed, step), run)
                norm = global_norm(gradient)
                if not (away or (math.isfinite(value) and math.isfinite(norm))):
                    raise NonFiniteError(_first_not_finite(step + 1, value, state.trained, gradient))
                rate = learning_rate(step, config)
                state = update(state, clipped(gradient, norm, config.clip), rate, config)
            seconds = time.perf_counter() - began
            record = Record(step + 1, rate, batch.tokens_trained, seconds, state, (value, norm))
            yield record
            if away and (record.was_read or state.step == config.steps):
                record.check()


def _batch_gradient(
    gradient_of: Callable[..., tuple[Any, Arrays]],
    trained: Arrays,
    shards: list[Any],
    seed: tuple[int, int],
    run: Callable[..., list[Any]],
) -> tuple[Any, Arrays]:
    """Loss and gradient of a batch as the sum over its shards, added in their order whoever made them."""
    jobs = list(enumerate(shards))

    def one(job: tuple[int, Any]) -> tuple[Any, Arrays]:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite gets a message of its own, in `fit`
            return gradient_of(trained, job[1], np.random.default_rng([*seed, job[0]]))

    (value, gradient), *others = run(one, jobs)
    for more, addend in others:
        value = value + more
        gradient = {name: gradient.pop(name) + addend.pop(name) for name in list(gradient)}  # let go one by one
    return value, gradient


def evaluate(model: Transformer, batches: Iterable[Any], workers: int | None = None) -> float:
    """Mean loss of a model over batches, in nats per trained token, each token counting the same."""

    def loss(batch: Any) -> Any:
        return language_model_loss(model, batch_for(model, batch))

    held = list(batches)
    if not held:
        raise ValueError("nothing to evaluate: no batch was given")
    with thread_map(1 if on_device(model.positions.W) else workers) as run, explained_memory():
        losses = run(loss, held)  # all queued before the first is waited for
        nats = [float(loss) * batch.tokens_trained for loss, batch in zip(losses, held, strict=True)]
    return sum(nats) / sum(batch.tokens_trained for batch in held)


def learning_rate(step: int, config: TrainingConfig) -> float:
    r"""The rate of step 0, 1, …: rises linearly over the warm-up, then decays to zero at the end.

    With p the part of the way from warm-up to the end, the factor is 1 − p (linear) or (1 + cos πp)/2 (cosine).
    """
    if step < config.warmup:
        return float(config.learning_rate * (step + 1) / config.warmup)
    passed = (step - config.warmup) / max(1, config.steps - config.warmup)
    factor = {"linear": 1.0 - passed, "cosine": 0.5 * (1.0 + math.cos(math.pi * passed)), "constant": 1.0}
    return float(config.learning_rate * factor[config.decay])


def global_norm(gradient: Mapping[str, Array]) -> Any:
    r"""$\sqrt{\sum g^2}$ over all arrays together: one number, and where the arrays are.

    A sum of squares can overflow where no g does, in float32 from 1.8·10¹⁹ on. On the host it is looked at, and made
    again of g divided by the largest |g|. A device is not waited for: there it stays infinite, and `fit` stops.
    """
    xp = array_module(next(iter(gradient.values())))
    with np.errstate(over="ignore"):
        norm = _root_of_squares(xp, gradient.values())
    if xp is not np:
        return norm
    largest = max(float(np.abs(g).max(initial=0.0)) for g in gradient.values()) if np.isinf(norm) else 0.0
    if not 0.0 < largest < math.inf:
        return norm
    return largest * _root_of_squares(np, [g / largest for g in gradient.values()])


def _root_of_squares(xp: Any, arrays: Iterable[Array]) -> Any:
    return xp.sqrt(sum((xp.vdot(g, g) for g in arrays), start=xp.zeros((), xp.float64)))


def clipped(gradient: Arrays, norm: Any, largest: float | None) -> Arrays:
    """The gradient, scaled down to the norm `largest` when it is longer (Pascanu et al. 2013, arXiv:1211.5063).

    A norm on the host is looked at; one on a device is not waited for, and an array that is short enough times 1.
    """
    if largest is None or (isinstance(norm, float) and norm <= largest):
        return gradient
    factor = array_module(norm).minimum(float(largest) / norm, 1.0)
    factors = {dtype: factor.astype(dtype) for dtype in {array.dtype for array in gradient.values()}}
    return {name: array * factors[array.dtype] for name, array in gradient.items()}


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
    shares = (config.beta1, 1.0 - config.beta1, config.beta2, 1.0 - config.beta2)
    corrections = (1.0 - config.beta1**step, 1.0 - config.beta2**step)
    for name, theta in parameters.items():
        held = theta, gradient[name], moments[f"m.{name}"], moments[f"v.{name}"]
        kept = 1.0 - rate * config.weight_decay if theta.ndim >= 2 else 1.0
        settings = map(float, (*shares, *corrections, config.eps, kept, rate))  # a NumPy number would widen float32
        new[name], state[f"m.{name}"], state[f"v.{name}"] = _adamw(*held, *settings)
    return new, state


@fused
def _adamw(
    xp: Any,
    theta: Array,
    g: Array,
    m: Array,
    v: Array,
    share_m: float,
    share_g: float,
    share_v: float,
    share_square: float,
    correction_m: float,
    correction_v: float,
    eps: float,
    kept: float,
    rate: float,
) -> tuple[Array, Array, Array]:
    """(T1) and (T2) for one array: the new θ, m and v."""
    new_m = share_m * m + share_g * g
    new_v = share_v * v + share_square * (g * g)
    direction = (new_m / correction_m) / (xp.sqrt(new_v / correction_v) + eps)
    return kept * theta - rate * direction, new_m, new_v


def _first_not_finite(step: int, value: Any, trained: Arrays, gradient: Arrays) -> str:
    arrays = {**trained, **{f"the gradient of {name}": g for name, g in gradient.items()}}
    wrong = [name for name, array in arrays.items() if not bool(array_module(array).isfinite(array).all())]
    found = f"the first array that is not finite is {wrong[0]}" if wrong else "all trained arrays are finite"
    return f"step {step}: the loss is {value}; {found}. A smaller learning rate may help"
