r"""Tutorial 11, checking other people's merges: a mystery, and checks of a scale, of what vanishes, of a cause and of a
merge that rounds once. What the notebook works with comes from `folders`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..formats.tensors import dtype_of
from ..names import nearest_first
from ..rounding import gamma, spacing, unit_roundoff
from . import checker, shown, unanswered
from .answers import number, told
from .folders import (
    Formula,
    drawn_update,
    errors_in_a_row,
    kept,
    merged_by,
    nudged,
    scaled,
    verify,
    write_adapter,
    write_base,
)

__all__ = [
    "CAUSES",
    "check_cause",
    "check_merge_once",
    "check_scale",
    "check_vanishing",
    "drawn_update",
    "errors_in_a_row",
    "kept",
    "merged_by",
    "mystery",
    "nudged",
    "scaled",
    "verify",
    "write_adapter",
    "write_base",
]

# What may have been done with W, A, B and s; all but the first are mistakes that somebody has made.
CAUSES: dict[str, Formula] = {
    "right": lambda W, A, B, s: W + s * (B @ A),
    "not merged": lambda W, A, B, s: W.copy(),
    "sign": lambda W, A, B, s: W - s * (B @ A),
    "twice": lambda W, A, B, s: W + 2 * s * (B @ A),
    "alpha/r": lambda W, A, B, s: W + s / len(A) ** 0.5 * (B @ A),
    "transposed": lambda W, A, B, s: W + s * (B @ A).T,
}


def mystery(rng: np.random.Generator, size: int = 48, rank: int = 4) -> tuple[Array, Array, Array, float, Array]:
    """W0, A, B, s, and a matrix that was merged from them in one of the ways of CAUSES, in float32."""
    W0, A = (rng.standard_normal((rows, size)).astype(np.float32) for rows in (size, rank))
    B, s = rng.standard_normal((size, rank)).astype(np.float32), 16 / math.sqrt(rank)
    cause = list(CAUSES)[int(rng.integers(1, len(CAUSES)))]
    return W0, A, B, s, CAUSES[cause](W0, A, B, np.float32(s))


# ---------------------------------------------------------------------------------------------------------- checks


@checker
def check_scale(answer: Any, about: Mapping[str, Any]) -> None:
    """The s of an adapter_config.json."""
    r, alpha, root = about["r"], about["lora_alpha"], bool(about.get("use_rslora"))
    if unanswered(answer, f"the s that PEFT multiplies BA by, of r = {r}, lora_alpha = {alpha}, use_rslora = {root}"):
        return
    right, other = (alpha / math.sqrt(r), alpha / r) if root else (alpha / r, alpha / math.sqrt(r))
    hints = {
        other: "use_rslora is set: the divisor is √r" if root else "use_rslora is not set: the divisor is r",
        float(alpha): "that is alpha itself; it is divided by something that grows with r",
        r / alpha: "that is the inverse",
        math.sqrt(r) / alpha: "that is the inverse",
        1.0 / r: "alpha is missing",
        alpha * math.sqrt(r): "√r divides",
        1.0: "there is a scale: lora_alpha says how large",
    }
    told(number(answer), right, hints, "look at all three, r, lora_alpha and use_rslora")
    print(f"Right: s = {right:g}. A program that overlooks use_rslora takes {other:g}.")


@checker
def check_vanishing(answer: Any, w: float) -> None:
    """The largest d > 0 that vanishes when it is added to w in bfloat16, w itself being such a number."""
    if unanswered(answer, f"the largest change d for which {w} + d, rounded to bfloat16, is still {w}"):
        return
    size, kind = np.asarray(abs(w)), dtype_of("bfloat16")
    unit = float(spacing(size, kind))
    right, eps = unit / 2.0, 2.0 * unit_roundoff(kind)
    hints = {
        eps: "that is ε, the unit at 1; the units are smaller below 1 and larger from 2 on",
        unit: "that is a whole unit in the last place: it reaches the next number, and from half of it on it is seen",
        unit / 4.0: "a little more still vanishes: numbers are rounded to the nearest, from the middle on upwards",
        eps * abs(w): "between two powers of two the unit is the same for all numbers",
        eps * abs(w) / 2.0: "between two powers of two the unit is the same for all numbers",
        float(spacing(size, np.float16)) / 2.0: "that is float16, with 10 bits of fraction; bfloat16 has 7",
        float(spacing(size, np.float32)) / 2.0: "that is float32, with 23 bits of fraction; bfloat16 has 7",
    }
    told(number(answer), right, hints, "between 2ᵏ and 2ᵏ⁺¹ the numbers of bfloat16 lie 2ᵏ⁻⁷ apart")
    print(f"Right: half a unit, {right:g}, is {right / abs(w):.2%} of {w}.")


@checker
def check_cause(answer: Any, W0: Array, A: Array, B: Array, s: float, W: Array) -> None:
    """What was done with W0, A, B and s to give W: one of CAUSES."""
    if unanswered(answer, f"what happened to this merge: one of {', '.join(map(repr, CAUSES))}"):
        return
    assert isinstance(answer, str), f"the answer is a text, got {shown(answer)}"
    assert answer in CAUSES, f"there is no cause {shown(answer)}: one of {nearest_first(answer, CAUSES)}"
    update, found = s * (B @ A).astype(np.float64), W.astype(np.float64) - W0
    right = min(CAUSES, key=lambda cause: abs(CAUSES[cause](W0, A, B, np.float32(s)) - W).max())
    if answer == right:
        print(f"Right: {right}. Every entry is what it should be, then.")
        return
    would = CAUSES[answer](W0, A, B, np.float32(s)).astype(np.float64) - W0
    has, is_now = (float(np.vdot(D, update) / np.vdot(update, update)) for D in (would, found))
    if abs(has - is_now) > 0.2:
        raise AssertionError(f"{shown(answer)} has ĉ = {has:.3g}, and here ĉ is {is_now:.3g}: compute it, by (V2)")
    off = abs(would - found).max()
    raise AssertionError(
        f"{shown(answer)} would have ĉ = {has:.3g} too, or nearly; but entries are off by up to {off:.3g}: compare W "
        "itself"
    )


@checker
def check_merge_once(answer: Any) -> None:
    """`merge_all(W, updates)`: W in bfloat16, and every update (A, B, s) in float32, merged with a single rounding."""
    task = "merge_all(W, updates): W + Σ s·BA for all (A, B, s) of updates, rounded to the type of W once, at the end"
    if unanswered(answer, task):
        return
    assert callable(answer), f"the answer is a function of (W, updates), got {shown(answer)}"
    W, updates = _small_updates(np.random.default_rng(0))
    kept = W.copy()
    found = answer(W, [(A.copy(), B.copy(), s) for A, B, s in updates])
    assert np.array_equal(W, kept), "it wrote into W: += changes the array that it is given"
    assert isinstance(found, np.ndarray), f"it must give back an array, got {shown(found)}"
    assert found.shape == W.shape, f"the answer has shape {found.shape}, and W has {W.shape}"
    assert found.dtype == W.dtype, f"the file is {W.dtype}, and the answer {found.dtype}: cast once, at the end"
    now = found.astype(np.float64)
    exact = W.astype(np.float64) + sum(s * (B.astype(np.float64) @ A) for A, B, s in updates)
    terms = sum(s * (abs(B).astype(np.float64) @ abs(A)) for A, B, s in updates)
    roundings = sum(len(A) + 2 for A, _, _ in updates) + len(updates)
    E = gamma(roundings, unit_roundoff(np.float32)) * (abs(W.astype(np.float64)) + terms)
    far, bound = abs(now - exact), E + 0.5 * spacing(abs(exact) + E, W.dtype)
    if (far <= bound).all():
        print(
            f"Right: {len(updates)} updates, one rounding; every entry within its bound of {bound.max():.1g} at most."
        )
        return
    for hint, wrong in _merged_wrongly(W, updates).items():
        assert np.mean(found == wrong) < 0.99, hint
    at = np.unravel_index(np.argmax(~(far <= bound)), far.shape)
    raise AssertionError(
        f"entry {[int(i) for i in at]} is off by {far[at]:.2g}, where one rounding explains {bound[at]:.2g}"
    )


def _small_updates(rng: np.random.Generator) -> tuple[Array, list[tuple[Array, Array, float]]]:
    """A matrix in bfloat16, and twelve updates of which each alone is a few thousandths of it."""
    W = (0.02 * rng.standard_normal((32, 40))).astype(dtype_of("bfloat16"))
    A = [rng.standard_normal((2, 40)).astype(np.float32) for _ in range(12)]
    B = [(1e-5 * rng.standard_normal((32, 2))).astype(np.float32) for _ in range(12)]
    return W, [(a, b, 2.0) for a, b in zip(A, B, strict=True)]


def _merged_wrongly(W: Array, updates: Sequence[tuple[Array, Array, float]]) -> dict[str, Array]:
    wide, deltas = W.astype(np.float32), [np.float32(s) * (B @ A) for A, B, s in updates]
    each, short = W, W
    for delta in deltas:
        each = (each.astype(np.float32) + delta).astype(W.dtype)
        short = short + delta.astype(W.dtype)
    lost = np.mean(each == W)
    rounds = f"it rounds after every update: {lost:.0%} of the entries are still those of W"
    as_one = sum(delta.astype(W.dtype).astype(np.float32) for delta in deltas)
    unscaled = sum(B @ A for A, B, _ in updates)
    return {
        "nothing was added: that is W": W,
        rounds: each,
        f"{rounds}, and ΔW was cast before the sum": short,
        "ΔW was cast to bfloat16 before the sum: cast once, at the end": (wide + as_one).astype(W.dtype),
        "the scaling is missing: an update is s·BA": (wide + unscaled).astype(W.dtype),
        "only the last update was merged": (wide + deltas[-1]).astype(W.dtype),
        "only the first update was merged": (wide + deltas[0]).astype(W.dtype),
    }
