"""Tutorial 02, the LoRA layer: what a product costs, which α keeps s, and two adapters stacked into one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..lora import LoraLinear, delta
from . import checker, shown, unanswered

CLOSE = 1e-5  # of the largest number compared


@dataclass
class Counter:
    """Matrix products that are counted as they are made: `counter(P, Q)` is P @ Q."""

    multiply_adds: int = 0

    def __call__(self, P: Array, Q: Array) -> Array:
        self.multiply_adds += P.shape[0] * P.shape[1] * Q.shape[1]
        return P @ Q


@checker
def check_multiply_adds(answer: Any, n: int, d_in: int, d_out: int, rank: int) -> None:
    """The multiply-adds of W0x + s·B(Ax) for n rows."""
    if unanswered(answer, f"the multiply-adds of W0x + s·B(Ax) for {n} rows, d_in {d_in}, d_out {d_out}, rank {rank}"):
        return
    dense, branch, update = d_in * d_out, rank * (d_in + d_out), rank * d_in * d_out
    hints = {
        branch * n: "that is the low-rank branch alone; W0x is computed as well",
        dense * n: "that is W0x alone; the low-rank branch is computed beside it",
        dense + branch: f"that is one row; there are {n}",
        update + 2 * n * dense: "that forms the whole (d_out, d_in) matrix BA first; here A meets x first",
        update + n * dense: "that is the merged order (W0 + s·BA)x; here nothing is merged",
    }
    right = n * (dense + branch)
    if answer != right and answer in hints:
        raise AssertionError(f"{answer:,} is not it: {hints[answer]}")
    assert answer == right, (
        f"got {shown(answer)}: a product (n, k) @ (k, m) costs n·k·m, and there are three: x W0ᵀ, x Aᵀ and then z Bᵀ"
    )
    print(f"Right: {right:,}, of which the branch is {branch / (dense + branch):.1%}.")


@checker
def check_alpha(answer: Any, rank: int, alpha: float, new_rank: int) -> None:
    """The α that, under s = α/√r, gives the new rank the s that the old rank had."""
    if unanswered(answer, f"the α that at rank {new_rank} gives the same s = α/√r as α = {alpha} at rank {rank}"):
        return
    assert isinstance(answer, int | float | np.number), f"α is a number, got {shown(answer)}"
    right = alpha * math.sqrt(new_rank / rank)
    if math.isclose(answer, alpha * new_rank / rank) and not math.isclose(answer, right):
        raise AssertionError(f"α = {answer} keeps α/r; here s = α/√r, so the rank counts by its square root")
    if math.isclose(answer, alpha / math.sqrt(rank)):
        raise AssertionError(f"{answer} is s itself; which α gives it at rank {new_rank}?")
    if math.isclose(answer, alpha):
        raise AssertionError(
            f"the same α gives s = {alpha / math.sqrt(new_rank):.4g} at rank {new_rank}, a smaller one"
        )
    assert math.isclose(answer, right), (
        f"α = {answer} gives s = {answer / math.sqrt(new_rank):.4g} at rank {new_rank}, "
        f"and at rank {rank} it was {alpha / math.sqrt(rank):.4g}"
    )
    print(f"Right: s = {alpha / math.sqrt(rank):.4g} at both ranks.")


@checker
def check_stacked(A: Any, B: Any, first: LoraLinear, second: LoraLinear) -> None:
    """A and B that with scaling 1 are both adapters of one map at once, ΔW = ΔW₁ + ΔW₂."""
    task = "A and B that, with scaling 1, do what two adapters of one map do together: BA = s₁B₁A₁ + s₂B₂A₂"
    if unanswered(A, task) or unanswered(B, task):
        return
    A, B = np.asarray(A), np.asarray(B)
    rank = first.A.shape[0] + second.A.shape[0]
    d_out, d_in = first.base.W.shape
    assert (A.shape, B.shape) == ((rank, d_in), (d_out, rank)), (
        f"the ranks add up: A must be ({rank}, {d_in}) and B ({d_out}, {rank}), got {A.shape} and {B.shape}"
    )
    wanted = delta(first) + delta(second)

    def is_it(candidate: Array) -> bool:
        return float(abs(B @ A - candidate).max()) <= CLOSE * float(abs(wanted).max())

    one, two = (module.B @ module.A for module in (first, second))
    if is_it(one + two):
        raise AssertionError("the two s are missing: with scaling 1 they must be inside A or inside B")
    if is_it(first.scaling**2 * one + second.scaling**2 * two):
        raise AssertionError("each s went in twice: multiply A or B by it, not both")
    if any(is_it(s * (one + two)) for s in (first.scaling, second.scaling)):
        raise AssertionError("one s was used for both adapters: each has its own")
    assert is_it(wanted), (
        "B @ A is not s₁B₁A₁ + s₂B₂A₂: rows of A and columns of B must stand in one order, each pair with its s"
    )
    print(f"Right: two adapters of ranks {first.A.shape[0]} and {second.A.shape[0]} are one of rank {rank}.")
