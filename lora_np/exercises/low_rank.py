"""Tutorial 01, why low rank: what a rank costs, how much of an update it keeps, and its two factors."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.arrays import Array
from . import checker, shown, unanswered

CLOSE = 1e-5  # of the norm of the update: a thousand roundings of float32 are below it, and no mistake is


@checker
def check_cheaper_ranks(answer: Any, d_in: int, d_out: int) -> None:
    """The largest rank at which A and B together hold fewer numbers than W (d_out, d_in)."""
    if unanswered(answer, f"the largest rank at which A and B hold fewer numbers than a {d_out} × {d_in} matrix"):
        return
    r = _whole(answer)
    pair, matrix = r * (d_in + d_out), d_in * d_out
    if r == min(d_in, d_out):
        hint = "that is the largest rank there is; which is the largest that saves something?"
        raise AssertionError(f"rank {r} trains {pair:,} numbers, the matrix has {matrix:,}: {hint}")
    assert r >= 1, f"a rank is at least 1, got {r}"
    assert pair < matrix, (
        f"rank {r} trains {r} · ({d_in} + {d_out}) = {pair:,} numbers, not fewer than the {matrix:,} of the matrix"
    )
    more = (r + 1) * (d_in + d_out)
    assert more >= matrix, (
        f"rank {r} saves, but so does {r + 1}: it trains {more:,} numbers, and {matrix:,} is the limit"
    )
    print(f"Right: rank {r} trains {pair:,} numbers instead of {matrix:,}, and rank {r + 1} would train {more:,}.")


@checker
def check_rank_for_energy(answer: Any, singular_values: Array, share: float) -> None:
    """The smallest rank whose best approximation keeps this share of the squared norm."""
    if unanswered(answer, f"the smallest rank that keeps {share:.0%} of the energy, the sum of the squared σ"):
        return
    r = _whole(answer)
    sigma = np.asarray(singular_values, np.float64)
    energy = np.cumsum(sigma**2) / np.sum(sigma**2)
    right = _first_that_reaches(energy, share)
    assert 1 <= r <= len(sigma), f"a rank lies in 1..{len(sigma)} for this matrix, got {r}"
    if r != right and r == _first_that_reaches(np.cumsum(sigma) / np.sum(sigma), share):
        raise AssertionError(f"rank {r} keeps {share:.0%} of the sum of the σ: energy is the sum of their squares")
    if r == right - 1:
        hint = "NumPy counts from 0: the entry at index i is what rank i + 1 keeps"
        raise AssertionError(f"rank {r} keeps {energy[r - 1]:.2%}, which is too little; {hint}")
    assert r >= right, f"rank {r} keeps only {energy[r - 1]:.2%} of the energy, less than {share:.0%}"
    assert r <= right, f"rank {r} keeps {energy[r - 1]:.2%}, but a smaller rank already keeps {share:.0%}"
    print(f"Right: rank {r} keeps {energy[r - 1]:.2%} of the energy, rank {r - 1} would not reach {share:.0%}.")


@checker
def check_factors(A: Any, B: Any, update: Array, rank: int) -> None:
    """A (rank, d_in) and B (d_out, rank) whose product is the best approximation of `update` of this rank."""
    task = f"A ({rank}, d_in) and B (d_out, {rank}) from U, σ, Vᵀ, so that B @ A is the best rank-{rank} part"
    if unanswered(A, task) or unanswered(B, task):
        return
    d_out, d_in = update.shape
    A, B = np.asarray(A, np.float64), np.asarray(B, np.float64)
    assert (A.shape, B.shape) == ((rank, d_in), (d_out, rank)), (
        f"A must be ({rank}, {d_in}) and B ({d_out}, {rank}), got {A.shape} and {B.shape}: "
        + ("A and B are exchanged" if B.shape == (rank, d_in) else "is one of them transposed?")
    )
    U, sigma, V_T = np.linalg.svd(np.asarray(update, np.float64), full_matrices=False)
    size = float(np.linalg.norm(sigma))

    def is_it(candidate: Array) -> bool:
        return float(np.linalg.norm(B @ A - candidate)) <= CLOSE * size

    def with_weights(weights: Array) -> Array:
        return (U * weights) @ V_T

    first = np.arange(len(sigma)) < rank
    if is_it(with_weights(first.astype(float))):
        raise AssertionError("the directions are right and the singular values are missing: put σ into one of A and B")
    if is_it(with_weights(first * sigma**2)):
        raise AssertionError("every σ went in twice: put σ into A or into B, or √σ into both")
    if rank < len(sigma) and is_it(with_weights(first[::-1] * sigma)):
        raise AssertionError("these are the smallest singular values; NumPy sorts them from the largest down")
    lost = float(np.linalg.norm(update - B @ A))
    least = float(np.linalg.norm(sigma[rank:]))
    assert is_it(with_weights(first * sigma)), (
        f"‖ΔW − BA‖ is {lost:.4g}, and the best rank-{rank} part misses only {least:.4g}: "
        "keep the first columns of U, the first σ and the first rows of Vᵀ"
    )
    print(f"Right: ‖ΔW − BA‖ = {lost:.4g}, and no other B and A of rank {rank} come closer (Eckart and Young 1936).")


def _whole(answer: Any) -> int:
    """The answer as an int, when it is a whole number."""
    assert isinstance(answer, int | np.integer), f"a rank is a whole number, got {shown(answer)}"
    return int(answer)


def _first_that_reaches(kept: Array, share: float) -> int:
    return int(np.count_nonzero(kept < share)) + 1
