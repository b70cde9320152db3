r"""The miniatures behind `lora_np.paper.laws`: both sides of each law, computed by what trains everything else.

**(X1)** Let A' = pA, B' = qB, s' = s/pq: the function is the same, and by the chain rule ∂L/∂A' = g_A/p and
∂L/∂B' = g_B/q. Adam's m̂ and √v̂ scale alike, so its direction m̂/(√v̂ + ε) is the same if ε_A' = ε_A/p; then a rate of
p·η_A moves A' by p times as much as A, and A' = pA still holds. The same with q for B. With p and q powers of two no
operation rounds otherwise.

**(X2)** With B = 0 the first step of Adam (ε → 0) is B₁ = −η sign(s M Aᵀ), M = ∂L/∂W; A stays, its gradient being zero:

$$\Delta W_1 = -\frac{\eta\alpha}{r} \sum_{k \le r} \mathrm{sign}(M a_k)\, a_k^T,\qquad
  E[\mathrm{sign}(m \cdot a)\, a] = \sigma\sqrt{2/\pi}\; m/|m|$$

for a row m of M and a ~ N(0, σ²I): r equal terms over r. An entry of one term has the variance σ²(1 − (2/π) m_j²/|m|²).

**(X3)** SGD's is −η s² M Σ a_k a_kᵀ, whose mean is −η (α²/r²) r σ² M. An entry of M a aᵀ has the variance
σ⁴(|m|² + m_j²).

**(X4)** A step of SGD from (BG⁻¹, GA) gives (B − η g_B GᵀG) G⁻¹ and G (A − η (GᵀG)⁻¹ g_A): those of (B, A) if GᵀG = I.

**(X5)** SGD moves A' by −η_A' g_A/p, which is p times −η_A g_A if η_A' = p² η_A; likewise η_B' = q² η_B. From rates η
and λη to one rate λη with q = 1 thus p = √λ; under Adam, where η_A' = p η_A, it is p = λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..config import TransformerConfig
from ..engine.arrays import Array
from ..engine.differentiation import value_and_grad
from ..lora import adapters, delta
from ..methods import adapt
from ..methods.lora import LoraConfig
from ..model import initialize
from ..operations import lora_linear
from ..optimization import TrainingConfig, TrainingState, start, update
from ..parameters import Arrays, with_modules, with_parameters
from ..tasks import Batch
from ..training import model_loss

Sides = tuple[Array, Array, Any]
SMALL = TransformerConfig(vocab=11, context=8, d_model=8, layers=1, heads=2)
STEPS, RATE, EPS = 6, 2.0**-5, 2.0**-9  # an ε as large as a gradient: that it must be scaled shows at once
P, Q, RATIO = 4.0, 0.5, 16.0
RANKS, DRAWS, D = (1, 4, 16), 512, 16  # DRAWS rows of A for every rank
HADAMARD = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2.0  # orthogonal, and dyadic


# ----------------------------------------------------------------------------------------- the whole course of training


def adam_invariance(rng: np.random.Generator, fault: str | None) -> Sides:
    course = _course(rng, "adamw")
    s = {"α divided by p only": 1.0 / P}.get(fault or "", 1.0 / (P * Q))
    rates = {"A": RATE if fault == "η_A as it was" else P * RATE, "B": Q * RATE}
    eps = {"ε as it was": {"A": EPS, "B": EPS}, "ε of both divided by q": {"A": EPS / Q, "B": EPS / Q}}
    scaled = eps.get(fault or "", {"A": EPS / P, "B": EPS / Q})
    plain = course(1.0, 1.0, {"A": RATE, "B": RATE}, {"A": EPS, "B": EPS})
    return plain, course(P, s, rates, scaled), 0.0


def lora_plus_adam(rng: np.random.Generator, fault: str | None) -> Sides:
    return _lora_plus(rng, "adamw", math.sqrt(RATIO) if fault else RATIO)


def lora_plus_sgd(rng: np.random.Generator, fault: str | None) -> Sides:
    return _lora_plus(rng, "sgd", RATIO if fault else math.sqrt(RATIO))


def _lora_plus(rng: np.random.Generator, optimizer: str, p: float) -> Sides:
    course, rate = _course(rng, optimizer), (32.0 if optimizer == "sgd" else 1.0) * RATE / RATIO
    plus = course(1.0, 1.0, {"A": rate, "B": RATIO * rate}, {"A": EPS, "B": EPS})
    plain = course(p, 1.0 / p, {"A": RATIO * rate, "B": RATIO * rate}, {"A": EPS / p, "B": EPS})
    return plus, plain, 0.0


Course = Callable[[float, float, Mapping[str, float], Mapping[str, float]], Array]


def _course(rng: np.random.Generator, optimizer: str) -> Course:
    """(factor of A₀, factor of s, rates, ε) → s·BA of every map after every step; one model, the same batches."""
    base = initialize(SMALL, rng, np.float64)
    fresh = adapt(base, LoraConfig(rank=2, alpha=4.0), rng)
    batches = [_batch(rng) for _ in range(STEPS)]

    def course(p: float, of_s: float, rates: Mapping[str, float], eps: Mapping[str, float]) -> Array:
        def changed(module: Any) -> Any:
            return type(module)(module.base, p * module.A, module.B, of_s * module.scaling)

        model = with_modules(fresh, {path: changed(module) for path, module in adapters(fresh).items()})
        gradient_of, trained = value_and_grad(model_loss(model)), LoraConfig().trained(model)
        configs = {part: _constant(optimizer, rates[part], eps[part]) for part in "AB"}
        states = {part: start(_part(trained, part), configs[part]) for part in "AB"}
        seen = []
        for batch in batches:
            _, gradient = gradient_of(trained, batch, rng)
            states = {part: _stepped(states[part], _part(gradient, part), configs[part]) for part in "AB"}
            trained = {**states["A"].trained, **states["B"].trained}
            moved = adapters(with_parameters(model, trained))
            seen.append(np.concatenate([delta(module).ravel() for module in moved.values()]))
        return np.array(seen)

    return course


def _constant(optimizer: str, rate: float, eps: float) -> TrainingConfig:
    about: Any = {"optimizer": optimizer, "learning_rate": rate, "eps": eps}
    return TrainingConfig(steps=STEPS, warmup=0, decay="constant", clip=None, **about)


def _part(arrays: Arrays, part: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name.endswith(f".{part}")}


def _stepped(state: TrainingState, gradient: Arrays, config: TrainingConfig) -> TrainingState:
    return update(state, gradient, config.learning_rate, config)


def _batch(rng: np.random.Generator) -> Batch:
    tokens, targets = rng.integers(0, SMALL.vocab, (2, 3, SMALL.context))
    return Batch(tokens, targets, np.full(tokens.shape, 1.0 / tokens.size))


# ---------------------------------------------------------------------------------------------- the first step, one map


def mean_first_step(rng: np.random.Generator, fault: str | None) -> Sides:
    """(X2), for all RANKS; α = 1, σ = 1."""
    x, dY = rng.standard_normal((5, D)), rng.standard_normal((5, D))
    M = dY.T @ x
    unit = M / np.linalg.norm(M, axis=1, keepdims=True)
    expected = -RATE * math.sqrt(2.0 / math.pi) * unit
    bound = 6.0 * RATE * np.sqrt((1.0 - 2.0 / math.pi * unit**2) / DRAWS)
    root = 0.5 if fault == "s = α/√r" else 1.0
    means = [_mean_step(rng, x, dY, r, r**-root, "sgd" if fault == "SGD" else "adamw") for r in RANKS]
    return np.array(means), expected, bound


def mean_first_sgd_step(rng: np.random.Generator, fault: str | None) -> Sides:
    """(X3), for all RANKS; α = 1, σ = 1."""
    x, dY = rng.standard_normal((5, D)), rng.standard_normal((5, D))
    M = dY.T @ x
    falls = [1.0 if fault == "no fall with r" else 1.0 / r for r in RANKS]
    expected = np.array([-RATE * fall * M for fall in falls])
    spread = np.sqrt(((M**2).sum(axis=1, keepdims=True) + M**2) / DRAWS)
    bound = np.array([6.0 * RATE * spread / r for r in RANKS])
    means = [_mean_step(rng, x, dY, r, 1.0 / r, "adamw" if fault == "Adam" else "sgd") for r in RANKS]
    return np.array(means), expected, bound


def _mean_step(rng: np.random.Generator, x: Array, dY: Array, rank: int, s: float, optimizer: str) -> Array:
    """The mean of ΔW₁ over draws of A ~ N(0, 1), of which all have DRAWS rows together."""
    draws = DRAWS // rank
    steps = [_step(x, dY, rng.standard_normal((rank, D)), np.zeros((D, rank)), s, optimizer) for _ in range(draws)]
    return np.mean(steps, axis=0)


def _step(x: Array, dY: Array, A: Array, B: Array, s: float, optimizer: str, rate: float = RATE) -> Array:
    """s·BA after one step on the loss ⟨dY, y⟩, whose gradient by y is dY."""
    config, trained = _constant(optimizer, rate, 1e-30), {"A": A, "B": B}
    _, gradient = value_and_grad(_beside_nothing(x, dY, s))(trained)
    moved = _stepped(start(trained, config), gradient, config).trained
    return s * (moved["B"] @ moved["A"])


def _beside_nothing(x: Array, dY: Array, s: float) -> Any:
    """The loss of A and B alone: ⟨dY, s·B A x⟩."""
    nothing = np.zeros((dY.shape[1], x.shape[1]))
    return lambda arrays: (dY * lora_linear(x, nothing, None, arrays["A"], arrays["B"], s, None)).sum()


def first_sgd_step(rng: np.random.Generator, fault: str | None) -> Sides:
    x, dY, s = _dyadic(rng, 5, 4), _dyadic(rng, 5, 6), 2.0
    A, B = HADAMARD[:2], np.zeros((6, 2))
    if fault == "B not at zero":
        B = _dyadic(rng, 6, 2)
    step = _step(x, dY, A, B, s, "adamw" if fault == "Adam" else "sgd")
    seen = HADAMARD[1:3] if fault == "another A" else A
    P = seen.T @ seen
    full = -RATE * s * s * (dY.T @ x)
    return np.stack([step, step - step @ P]), np.stack([full @ P, 0.0 * full]), 0.0


# --------------------------------------------------------------------------------------------------- another G, one map


def gauge(rng: np.random.Generator, fault: str | None) -> Sides:
    x, dY, A, B, s = _dyadic(rng, 5, 6), _dyadic(rng, 5, 7), _dyadic(rng, 4, 6), _dyadic(rng, 7, 4), 2.0
    G, inverse = _unimodular(rng, 4)
    turned = {"B as it was": B, "BGᵀ": B @ G.T}.get(fault or "", B @ inverse)

    def seen(A: Array, B: Array) -> tuple[Array, Arrays]:
        y = lora_linear(x, np.zeros((7, 6)), None, A, B, s, None)
        return y, value_and_grad(_beside_nothing(x, dY, s))({"A": A, "B": B})[1]

    (y, of), (y_turned, of_turned) = seen(A, B), seen(G @ A, turned)
    left = (y_turned, G.T @ of_turned["A"], of_turned["B"] @ inverse.T)
    return _flat(left), _flat((y, of["A"], of["B"])), 0.0


def gauge_of_a_step(rng: np.random.Generator, fault: str | None) -> Sides:
    x, dY, A, B, s = _dyadic(rng, 5, 6), _dyadic(rng, 5, 7), _dyadic(rng, 4, 6), _dyadic(rng, 7, 4), 2.0
    G, inverse = _unimodular(rng, 4) if fault == "G not orthogonal" else (HADAMARD, HADAMARD.T)
    optimizer = "adamw" if fault == "Adam" else "sgd"
    return _step(x, dY, G @ A, B @ inverse, s, optimizer), _step(x, dY, A, B, s, optimizer), 0.0


def _dyadic(rng: np.random.Generator, *shape: int) -> Array:
    """Multiples of an eighth in −1..1, none of them 0: sums of a few products of a few of them are exact in float64."""
    return rng.choice([-1.0, 1.0], shape) * rng.integers(1, 9, shape) / 8.0


def _unimodular(rng: np.random.Generator, r: int) -> tuple[Array, Array]:
    """A matrix of whole numbers whose inverse is one as well, and the inverse."""
    low, up = (np.tril(rng.integers(-1, 2, (r, r)), -1) + np.eye(r) for _ in range(2))
    low[1, 0] = up[1, 0] = 1.0  # so that it is never orthogonal
    G = low @ up.T
    return G, np.rint(np.linalg.inv(G))


def _flat(arrays: tuple[Array, ...]) -> Array:
    return np.concatenate([array.ravel() for array in arrays])
