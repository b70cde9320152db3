r"""Exact laws of low-rank training: each a sentence, its formula, a miniature that computes both sides, and a verdict.

A law is judged by what rounding, or chance, can do, which is derived and not chosen; and it is only said to hold where
the same comparison refuses every fault that is planted, for a comparison that nothing can fail says nothing.

The miniatures are in `lora_np.paper.exact`, and go through the operations and optimizers that train everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..engine.arrays import Array
from ..names import nearest_first
from . import exact

Verdict = Literal["holds here", "does not hold here", "cannot be said"]


class Sides(NamedTuple):
    """Both sides of a law, and how far apart they may be where it holds: 0 means to the bit."""

    left: Array
    right: Array
    bound: Array | float

    @property
    def excess(self) -> float:
        """The largest |left − right| beyond its bound; at most 0 where the law holds, infinite where not a number."""
        with np.errstate(invalid="ignore", over="ignore"):
            beyond = np.abs(self.left - self.right) - self.bound
        return float(beyond.max()) if np.isfinite(beyond).all() else float("inf")


@dataclass(frozen=True)
class Law:
    r"""A law and the faults that its miniature must refuse.

    tolerance  why the two sides may differ by what they may
    sides      (rng, fault) → left, right, bound; the fault None is the law itself
    """

    name: str
    sentence: str
    formula: str
    source: str
    tolerance: str
    sides: Callable[[np.random.Generator, str | None], tuple[Any, Any, Any]]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What a miniature came to: the gap beyond its bound, that of each planted fault, and the verdict."""

    law: Law
    excess: float
    gap: float
    planted: dict[str, float]

    @property
    def verdict(self) -> Verdict:
        """A law that its faults satisfy as well cannot be said to hold."""
        if self.excess > 0.0:
            return "does not hold here"
        return "holds here" if all(beyond > 0.0 for beyond in self.planted.values()) else "cannot be said"

    @property
    def why(self) -> str:
        """The figures behind the verdict, in a sentence."""
        seen = "; ".join(f"{fault}: {beyond:.1e}" for fault, beyond in self.planted.items())
        return f"largest gap {self.gap:.1e}, {self.law.tolerance}; beyond the bound when broken on purpose: {seen}"


def judged(law: Law, seed: int = 0) -> Finding:
    """The law and its faults, from the same random numbers."""

    def found(fault: str | None) -> Sides:
        return Sides(*law.sides(np.random.default_rng(seed), fault))

    itself = found(None)
    planted = {fault: found(fault).excess for fault in law.faults}
    return Finding(law, itself.excess, float(np.abs(itself.left - itself.right).max()), planted)


def law_named(name: str) -> Law:
    """Raises ValueError, with the nearest names, for an unknown one."""
    if name not in LAWS:
        raise ValueError(f"a law is one of {nearest_first(name, LAWS)}; got {name!r}")
    return LAWS[name]


TO_THE_BIT = "no tolerance: all factors are powers of two, which multiply without rounding"
DYADIC = "no tolerance: all numbers are multiples of 2⁻ᵏ below 2⁵³⁻ᵏ, with which float64 does not round"
SIX = "six standard deviations of the mean of so many draws, in closed form"
WITHOUT_REGRET = "Schulman et al. 2025, LoRA Without Regret"

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            "adam invariance",
            "Under Adam the course of training depends on α, the start of A and the two learning rates only up to two "
            "factors p and q, if ε is divided by p for A and by q for B.",
            "(α, A₀, η_A, η_B, ε_A, ε_B) → (α/pq, p·A₀, p·η_A, q·η_B, ε_A/p, ε_B/q) leaves every s·BA as it was",
            f"{WITHOUT_REGRET} (for ε = 0); the condition on ε is derived in lora_np.paper.exact, (X1)",
            TO_THE_BIT,
            exact.adam_invariance,
            ("ε as it was", "ε of both divided by q", "α divided by p only", "η_A as it was"),
        ),
        Law(
            "mean first step",
            "With s = α/r the first step of Adam changes W on average by the same amount for every rank.",
            "E[ΔW₁] = −η α σ √(2/π) · ∂L/∂W, each row divided by its length; A ~ N(0, σ²), B = 0",
            f"{WITHOUT_REGRET}; the constant is derived in lora_np.paper.exact, (X2)",
            SIX,
            exact.mean_first_step,
            ("s = α/√r", "SGD"),
        ),
        Law(
            "mean first step of SGD",
            "Under SGD it is the gradient itself, and falls with the rank.",
            "E[ΔW₁] = −η α² σ²/r · ∂L/∂W",
            "derived in lora_np.paper.exact, (X3)",
            SIX,
            exact.mean_first_sgd_step,
            ("no fall with r", "Adam"),
        ),
        Law(
            "gauge invariance",
            "B and A stand for one update together with every BG⁻¹ and GA, and so do their gradients.",
            "BG⁻¹·GA = BA;  ∂L/∂(GA) = G⁻ᵀ ∂L/∂A,  ∂L/∂(BG⁻¹) = ∂L/∂B Gᵀ,  for every G in GL(r)",
            "the chain rule",
            DYADIC,
            exact.gauge,
            ("B as it was", "BGᵀ"),
        ),
        Law(
            "gauge of a step",
            "A step of SGD keeps to that where G is orthogonal, and only there; a step of Adam does not.",
            "ΔW after a step from (BG⁻¹, GA) is that from (B, A) if GᵀG = I",
            "derived in lora_np.paper.exact, (X4)",
            DYADIC,
            exact.gauge_of_a_step,
            ("G not orthogonal", "Adam"),
        ),
        Law(
            "first step of SGD",
            "The first step of SGD is that of full fine-tuning projected on the row space of A.",
            "ΔW₁ = −η s² ∂L/∂W AᵀA, and AᵀA is the projection where the rows of A are orthonormal",
            "(G1) of lora_np.operations.linear with B = 0",
            DYADIC,
            exact.first_sgd_step,
            ("B not at zero", "Adam", "another A"),
        ),
        Law(
            "LoRA+ under Adam",
            "Under Adam LoRA+ of ratio λ is plain LoRA with one learning rate, a start of A λ times as large and α/λ.",
            "(α, A₀, η, λη) and (α/λ, λA₀, λη, λη), with ε/λ for A, have the same course of s·BA",
            "the first law with p = λ, q = 1",
            TO_THE_BIT,
            exact.lora_plus_adam,
            ("√λ in place of λ",),
        ),
        Law(
            "LoRA+ under SGD",
            "Under SGD it is plain LoRA with a start of A only √λ times as large and α/√λ.",
            "(α, A₀, η, λη) and (α/√λ, √λA₀, λη, λη) have the same course of s·BA",
            "derived in lora_np.paper.exact, (X5)",
            TO_THE_BIT,
            exact.lora_plus_sgd,
            ("λ in place of √λ",),
        ),
    )
}
