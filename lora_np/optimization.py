r"""One step of an optimizer: a pure function of the trained arrays, their gradient, and what it remembers.

gradient → clip → SGD or AdamW at the rate of the schedule → the next state
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .engine.arrays import Array, array_module, fused
from .names import per_path
from .parameters import Arrays


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
    rates          {pattern: factor} of the learning rate, for arrays that shall have their own: LoRA+ (Hayou et al.
                   2024, arXiv:2402.12354) is {"*.B": 16}

    Raises ValueError for a value outside its range.

    >>> from lora_np import TrainingConfig
    >>> from lora_np.optimization import learning_rate
    >>> config = TrainingConfig(steps=100, learning_rate=0.01, warmup=10)
    >>> [round(learning_rate(step, config), 4) for step in (0, 9, 55, 99)]
    [0.001, 0.01, 0.005, 0.0001]
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
    rates: Mapping[str, float] = field(default_factory=dict)

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
        for pattern, factor in self.rates.items():
            if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
                raise ValueError(f"the rate of {pattern} must be a number of at least 0, got {factor!r}")
        for name, allowed in (("decay", ("linear", "cosine", "constant")), ("optimizer", ("adamw", "sgd"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class TrainingState:
    """All that a run must remember: the steps done, the trained arrays, and the optimizer's moments."""

    step: int
    trained: Arrays
    moments: Arrays


def start(trained: Arrays, config: TrainingConfig) -> TrainingState:
    """The state before the first step: moments m and v at zero (none for SGD).

    Of every trained array (...) there are two moments (...). Raises nothing of its own: the settings were checked
    before.

    >>> import numpy as np
    >>> from lora_np import TrainingConfig, start
    >>> state = start({"A": np.ones((2, 8))}, TrainingConfig())
    >>> state.step, {name: array.shape for name, array in state.moments.items()}
    (0, {'m.A': (2, 8), 'v.A': (2, 8)})
    """
    if config.optimizer == "sgd":
        return TrainingState(0, trained, {})
    zeros = {name: array_module(array).zeros_like(array) for name, array in trained.items()}
    return TrainingState(0, trained, {f"{moment}.{name}": array for moment in "mv" for name, array in zeros.items()})


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
        return TrainingState(step, sgd(state.trained, gradient, rate, config), {})
    return TrainingState(step, *adamw(state.trained, gradient, state.moments, step, rate, config))


def sgd(parameters: Arrays, gradient: Arrays, rate: float, config: TrainingConfig) -> Arrays:
    r"""$\theta \leftarrow \theta - \eta g$."""
    rates = _rates(parameters, rate, config)
    return {name: array - rates[name] * gradient[name] for name, array in parameters.items()}


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
    rates = _rates(parameters, rate, config)
    for name, theta in parameters.items():
        held = theta, gradient[name], moments[f"m.{name}"], moments[f"v.{name}"]
        kept = 1.0 - rates[name] * config.weight_decay if theta.ndim >= 2 else 1.0
        settings = map(float, (*shares, *corrections, config.eps, kept, rates[name]))  # a NumPy number widens float32
        new[name], state[f"m.{name}"], state[f"v.{name}"] = _adamw(*held, *settings)
    return new, state


def _rates(names: Iterable[str], rate: float, config: TrainingConfig) -> dict[str, float]:
    """The learning rate of each array: that of the schedule times its own factor."""
    return {name: rate * factor for name, factor in per_path(names, config.rates, 1.0).items()}


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
