"""Tutorial 03, deriving the gradients: the line that bears a tag, which witness stands alone, and what to derive."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np

from .. import operations
from ..cases import Case, operation_case
from ..cases import planted as planted
from ..cases import spoiled as spoiled
from ..engine.arrays import Array
from ..gradients import AGREEMENT, Row
from . import checker, unanswered

CLOSE = 1e-8  # of the largest number compared: in float64 a right derivation is a million times closer
SEED = 49  # a seed at which W is square and the rank is 2, so that every mistake has room to show itself


def tagged(function: Any, tag: str, lines: int = 1) -> str:
    """The line of a function, or else of its file, that bears an equation's tag; and so many lines that end with it.

    >>> print(tagged(operations.lora_linear.backward, "G1"))
    "B": lambda: scaling * (G.T @ Z),  # (G1)

    Raises ValueError when no line bears the tag.
    """
    place: Any
    for place in (function, inspect.getmodule(function)):
        source = inspect.getsource(place).splitlines()
        found = [i for i, line in enumerate(source) if f"({tag})" in line.partition("#")[2]]
        if found:
            return "\n".join(textwrap.dedent("\n".join(source[max(0, i + 1 - lines) : i + 1])) for i in found)
    raise ValueError(f"no line of {function.__name__} bears the tag ({tag})")


def case(name: str, operations: Any = operations, seed: int = SEED) -> Case:
    """The gradient-check case of one operation, at random shapes and B ≠ 0; raises ValueError for an unknown name."""
    return operation_case(name, seed, operations)


def at_zero_B(case: Case) -> Case:
    """The same case at the point where an adapter starts: B = 0."""
    return replace(case, point={**case.point, "B": np.zeros_like(case.point["B"])})


def alone(row: Row) -> str:
    """Which witness do the two others contradict? "hand", "textbook" or "difference"; "none" when all three agree."""
    if row.holds:
        return "none"
    limit = max(row.uncertainty, AGREEMENT)
    hand_book, hand_difference, book_difference = (
        gap <= limit for gap in (row.hand_textbook, row.hand_difference, row.textbook_difference)
    )
    if book_difference and not hand_difference:
        return "hand"
    if hand_difference and not book_difference:
        return "textbook"
    return "difference" if hand_book else "all three disagree"


@checker
def check_scaling_gradient(answer: Any) -> None:
    """∂L/∂s of h = W0x + s·BAx, as a function (x, A, B, dy) -> one number."""
    if unanswered(answer, "a function (x, A, B, dy) that gives ∂L/∂s, one number, for h = W0x + s·BAx"):
        return
    rng = np.random.default_rng(0)
    x, A, B, dy = (rng.standard_normal(shape) for shape in ((5, 3), (2, 3), (4, 2), (5, 4)))
    got = np.asarray(answer(x, A, B, dy))
    branch = x @ A.T @ B.T
    if got.shape:
        hint = "s is one number, so every output entry pulls on it: add up all rows and columns"
        raise AssertionError(f"∂L/∂s must be one number, got an array of shape {got.shape}: {hint}")
    if _equal(got, branch.sum()):
        raise AssertionError("that is the sum of ∂h/∂s alone; the chain rule multiplies each entry by its ∂L/∂h, dy")
    right = _by_autograd(lambda s: anp.sum(dy * (s * branch)), np.array(1.7))
    assert _equal(got, right), (
        f"autograd says {float(right):.6g}, got {float(got):.6g}: h is linear in s with slope BAx, one slope an entry"
    )
    print("Right: the sum over all rows and outputs of dy ⊙ BAx, and autograd agrees.")


@checker
def check_rms_norm_gradient(answer: Any) -> None:
    """∂L/∂x of y = γ ⊙ x / σ, σ² = mean(x²) + ε, as a function (x, gamma, dy, eps) -> array."""
    if unanswered(answer, "a function (x, gamma, dy, eps) that gives ∂L/∂x for y = γ ⊙ x / sqrt(mean(x²) + ε)"):
        return
    rng = np.random.default_rng(0)
    x, gamma, dy, eps = rng.standard_normal((3, 6)) + 1.0, rng.standard_normal(6), rng.standard_normal((3, 6)), 1e-5
    got = np.asarray(answer(x, gamma, dy, eps))
    assert got.shape == x.shape, f"∂L/∂x has the shape of x, {x.shape}; got {got.shape}"
    sigma = np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    g, x_hat = dy * gamma, x / sigma
    along = x_hat * (g * x_hat).mean(axis=-1, keepdims=True)
    known = {
        "γ is missing: the gradient at x̂ is γ ⊙ dy": (dy - x_hat * (dy * x_hat).mean(axis=-1, keepdims=True)) / sigma,
        "σ depends on x too: moving along x̂ changes only σ, so that part must be taken out of g": g / sigma,
        "the mean of g is taken out too: right for layer norm, but this one subtracts no mean": (
            (g - g.mean(axis=-1, keepdims=True) - along) / sigma
        ),
        "the factor 1/σ is missing": g - along,
        "the sign of the projection is wrong: it is taken out of g": (g + along) / sigma,
    }
    for hint, wrong in known.items():
        assert not _equal(got, wrong), hint
    right = _by_autograd(lambda x: anp.sum(dy * gamma * x / anp.sqrt(anp.mean(x * x, axis=-1, keepdims=True) + eps)), x)
    gap = float(abs(got - right).max())
    assert _equal(got, right), f"autograd differs by up to {gap:.3g}: start from (N3) and leave out what came from μ"
    print("Right: (N4) without its first mean, and autograd agrees.")


@checker
def check_hidden_fault(answer: Any) -> None:
    """∂L/∂x of h = W0x + s·BAx, a function (x, W, A, B, s, dy) -> array: a wrong one that no check at B = 0 finds."""
    task = "a function (x, W, A, B, s, dy) that gives a wrong ∂L/∂x of W0x + s·BAx, and the right one where B = 0"
    if unanswered(answer, task):
        return
    rng, s = np.random.default_rng(0), 1.7
    x, W, A, B, dy = (rng.standard_normal(shape) for shape in ((5, 3), (4, 3), (2, 3), (4, 2), (5, 4)))
    hides = {}
    for place, there in (("at B = 0", np.zeros_like(B)), ("at B ≠ 0", B)):
        right = _by_autograd(partial(_pulled, W=W, A=A, B=there, s=s, dy=dy), x)
        got = np.asarray(answer(x, W, A, there, s, dy))
        assert got.shape == x.shape, f"∂L/∂x has the shape of x, {x.shape}; got {got.shape}"
        hides[place] = _equal(got, right)
    assert hides["at B = 0"], (
        "at B = 0 autograd already disagrees: put the fault only where something is multiplied by B"
    )
    assert not hides["at B ≠ 0"], "at B ≠ 0 it passes as well: this derivation is right, and it should be wrong"
    print("Right: nothing is noticed at B = 0, and at B ≠ 0 it is caught.")


def _pulled(x: Any, W: Array, A: Array, B: Array, s: float, dy: Array) -> Any:
    """A loss whose gradient at h is dy."""
    return anp.sum(dy * (anp.dot(x, W.T) + s * anp.dot(anp.dot(x, A.T), B.T)))


def _by_autograd(loss: Callable[[Any], Any], at: Array) -> Array:
    return np.asarray(autograd.grad(loss)(at))


def _equal(one: Array, other: Array) -> bool:
    return bool(abs(one - other).max() <= CLOSE * abs(other).max())
