r"""Twelve LoRA puzzles: each a specification as plain loops, to be said again in one line of NumPy.

    show(7)                                  the specification
    check(7, lambda x, A, dy, s: ...)        right, or what is wrong

A specification is slow and plain on purpose; an answer is compared with it on random arrays of several shapes, so that
one that is right for square matrices alone does not pass. Letters and shapes are those of the paper: x (n, d_in) rows
of examples, W (d_out, d_in), A (r, d_in), B (d_out, r), s a number, dy (n, d_out) the gradient at the output.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine.arrays import Array
from . import checker, shown, unanswered

SEEDS = range(5)  # so many draws of shapes and numbers
CLOSE = 1e-9  # of the largest number compared: in float64 a right answer is a million times closer


def adapted_row(W: Array, A: Array, B: Array, x: Array, s: float) -> Array:
    """One row through the adapted map, h = W x + s B A x, for x (n, d_in)."""
    h = np.zeros((len(x), len(W)))
    for n in range(len(x)):
        for i in range(len(W)):
            for j in range(W.shape[1]):
                h[n, i] += W[i, j] * x[n, j]
                for k in range(len(A)):
                    h[n, i] += s * B[i, k] * A[k, j] * x[n, j]
    return h


def merged(W: Array, A: Array, B: Array, s: float) -> Array:
    """The one matrix that computes the same: W + s B A."""
    new = np.zeros(W.shape)
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            new[i, j] = W[i, j]
            for k in range(len(A)):
                new[i, j] += s * B[i, k] * A[k, j]
    return new


def one_entry(A: Array, B: Array, i: int, j: int) -> Any:
    """Entry (i, j) of B A, without making B A."""
    entry = 0.0
    for k in range(len(A)):
        entry += B[i, k] * A[k, j]
    return entry


def numbers(W: Array, r: int) -> Any:
    """How many numbers A and B hold beside W at rank r."""
    count = 0
    for _ in range(r):
        for _ in range(W.shape[0]):
            count += 1
        for _ in range(W.shape[1]):
            count += 1
    return count


def worth_it(W: Array) -> Any:
    """The largest rank at which A and B hold fewer numbers than W."""
    r = 0
    while (r + 1) * W.shape[0] + (r + 1) * W.shape[1] < W.shape[0] * W.shape[1]:
        r += 1
    return r


def size_of_update(A: Array, B: Array) -> Any:
    """The squared Frobenius norm of B A from two small (r, r) matrices; the loops form it the long way."""
    total = 0.0
    for i in range(len(B)):
        for j in range(A.shape[1]):
            entry = 0.0
            for k in range(len(A)):
                entry += B[i, k] * A[k, j]
            total += entry**2
    return total


def gradient_of_B(x: Array, A: Array, dy: Array, s: float) -> Array:
    """∂L/∂B of h = W x + s B A x."""
    dB = np.zeros((dy.shape[1], len(A)))
    for n in range(len(x)):
        for i in range(dy.shape[1]):
            for k in range(len(A)):
                for j in range(x.shape[1]):
                    dB[i, k] += s * dy[n, i] * A[k, j] * x[n, j]
    return dB


def gradient_of_A(x: Array, B: Array, dy: Array, s: float) -> Array:
    """∂L/∂A of h = W x + s B A x."""
    dA = np.zeros((B.shape[1], x.shape[1]))
    for n in range(len(x)):
        for k in range(B.shape[1]):
            for j in range(x.shape[1]):
                for i in range(len(B)):
                    dA[k, j] += s * dy[n, i] * B[i, k] * x[n, j]
    return dA


def best_of_rank(U: Array, sigma: Array, V_T: Array, r: int) -> Array:
    """The closest matrix of rank r, given U, σ and Vᵀ of a matrix (Eckart and Young 1936)."""
    best = np.zeros((len(U), V_T.shape[1]))
    for k in range(r):
        for i in range(len(U)):
            for j in range(V_T.shape[1]):
                best[i, j] += sigma[k] * U[i, k] * V_T[k, j]
    return best


def two_as_one(A1: Array, B1: Array, A2: Array, B2: Array, x: Array) -> Array:
    """What two adapters of one map add together, by one product with a stacked A and one with a stacked B."""
    h = np.zeros((len(x), len(B1)))
    for A, B in ((A1, B1), (A2, B2)):
        for n in range(len(x)):
            for i in range(len(B)):
                for k in range(len(A)):
                    for j in range(x.shape[1]):
                        h[n, i] += B[i, k] * A[k, j] * x[n, j]
    return h


def each_its_own(As: Array, Bs: Array, which: Array, x: Array) -> Array:
    """A mixed batch: row n goes through adapter which[n], of As (adapters, r, d_in) and Bs (adapters, d_out, r)."""
    h = np.zeros((len(x), Bs.shape[1]))
    for n in range(len(x)):
        A, B = As[which[n]], Bs[which[n]]
        for i in range(len(B)):
            for k in range(len(A)):
                for j in range(x.shape[1]):
                    h[n, i] += B[i, k] * A[k, j] * x[n, j]
    return h


def similarity(U: Array, V: Array) -> Any:
    """φ of equation 4 of Hu et al. 2021, of two orthonormal bases with d rows: 1 when one space lies in the other."""
    total = 0.0
    for i in range(U.shape[1]):
        for j in range(V.shape[1]):
            dot = 0.0
            for d in range(len(U)):
                dot += U[d, i] * V[d, j]
            total += dot**2
    return total / min(U.shape[1], V.shape[1])


PUZZLES: tuple[Callable[..., Any], ...] = (
    adapted_row,
    merged,
    one_entry,
    numbers,
    worth_it,
    size_of_update,
    gradient_of_B,
    gradient_of_A,
    best_of_rank,
    two_as_one,
    each_its_own,
    similarity,
)


def show(number: int) -> None:
    """Print the specification of puzzle 1 to 12."""
    print(textwrap.dedent(inspect.getsource(_puzzle(number))).rstrip())


def check(number: int, answer: Any) -> None:
    """Is a function of the same arguments what the specification says, on random arrays of several shapes?

    Raises a hint that names the first thing that is wrong, and ValueError for a number that no puzzle has.
    """
    _agrees(answer, number, _puzzle(number))


@checker
def _agrees(answer: Any, number: int, spec: Callable[..., Any]) -> None:
    names = list(inspect.signature(spec).parameters)
    if unanswered(answer, f"a function ({', '.join(names)}) for: {(spec.__doc__ or '').splitlines()[0]}"):
        return
    assert callable(answer), f"a puzzle is answered by a function ({', '.join(names)}), got {shown(answer)}"
    for seed in SEEDS:
        given = drawn(names, np.random.default_rng(seed))
        wanted, got = np.asarray(spec(**given)), np.asarray(answer(*given.values()))
        shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in given.items() if np.ndim(value))
        assert got.shape == wanted.shape, f"with {shapes} the answer has the shape {got.shape}, not {wanted.shape}"
        gap = float(abs(got - wanted).max())
        assert gap <= CLOSE * float(abs(wanted).max()), (
            f"with {shapes} the largest entry that is off is off by {gap:.3g}, where the largest number is "
            f"{abs(wanted).max():.3g}"
        )
    print(f"Right: puzzle {number}, {spec.__name__}.")


def drawn(names: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """Random arguments of these names that fit each other."""
    n, d_in, d_out, r, adapters = rng.permutation([3, 4, 5, 6, 7])
    rank = int(min(r, d_in - 1, d_out - 1))
    shapes: dict[str, tuple[int, ...]] = {
        "x": (n, d_in),
        "W": (d_out, d_in),
        "dy": (n, d_out),
        "A": (rank, d_in),
        "B": (d_out, rank),
        "A1": (rank, d_in),
        "B1": (d_out, rank),
        "A2": (rank + 1, d_in),
        "B2": (d_out, rank + 1),
        "As": (adapters, rank, d_in),
        "Bs": (adapters, d_out, rank),
    }
    U, sigma, V_T = np.linalg.svd(rng.standard_normal((d_out, d_in)), full_matrices=False)
    bases = {"U": U, "sigma": sigma, "V_T": V_T, "V": np.linalg.qr(rng.standard_normal((d_out, rank)))[0]}
    others = {"s": float(rng.uniform(0.5, 2.0)), "r": rank, "which": rng.integers(0, adapters, n)}
    places = {"i": int(rng.integers(d_out)), "j": int(rng.integers(d_in))}
    known = bases | others | places
    if "V" in names:
        known["U"] = U[:, : min(3, U.shape[1])]
    return {name: known[name] if name in known else rng.standard_normal(shapes[name]) for name in names}


def _puzzle(number: int) -> Callable[..., Any]:
    if number not in range(1, len(PUZZLES) + 1):
        raise ValueError(f"there are puzzles 1 to {len(PUZZLES)}, got {number!r}")
    return PUZZLES[number - 1]
