"""Tutorial 07, merging is exact up to rounding: counting roundings, finding a factor, switching without a drift."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..certificate import certify
from ..engine.arrays import Array
from ..lora import adapters
from ..model import Transformer
from ..parameters import parameters, with_modules, with_parameters
from ..wrappers import merge
from . import checker, shown, unanswered

SWITCHES = 200  # of adapters in check_switch; by then adding and subtracting has left its traces in nearly every entry


def in_precision(model: Transformer, dtype: Any) -> Transformer:
    """The same model, adapted or not, with every array in another precision."""
    return with_parameters(model, {name: array.astype(dtype) for name, array in parameters(model).items()})


def merged_with(model: Transformer, factor: float) -> Transformer:
    r"""A merge with a mistake: $W_0 + c\,s\,BA$ for the given c; 1 is correct, and 2 is a merge that ran twice."""
    wrong = {path: replace(module, scaling=factor * module.scaling) for path, module in adapters(model).items()}
    return merge(with_modules(model, wrong))


def mystery(model: Transformer, rng: np.random.Generator) -> Transformer:
    """A merged model in which the update of every map has one and the same wrong factor, drawn from (0.2, 3)."""
    factor = 1.0
    while abs(factor - 1.0) < 0.1:
        factor = round(float(rng.uniform(0.2, 3.0)), 2)
    return merged_with(model, factor)


def switched_in_place(W: Array, updates: Iterable[Array]) -> list[float]:
    """Each update is added to a copy of W and taken out again: the largest |W now − W at first| after each."""
    now, drift = W.copy(), []
    for update in updates:
        now += update
        now -= update
        drift.append(float(abs(now.astype(np.float64) - W).max()))
    return drift


# ---------------------------------------------------------------------------------------------------------- checks


@checker
def check_roundings(answer: Any, d_in: int, rank: int) -> None:
    """The n of equation (L2): how many roundings the bound for one map allows for."""
    if unanswered(answer, f"the n of equation (L2) for a map with d_in = {d_in} and an adapter of rank {rank}"):
        return
    right = d_in + rank + 4
    hints = {
        right - 1: "the roundings of either output are all there; one more covers the terms, which are computed too",
        d_in + rank: "those are the two sums; the factor s and two additions round as well, and one more covers T",
        d_in + 4: "the branch sums over the rank as well",
        rank + 4: "the product with x sums over d_in",
        rank + 3: "that is (V1), for the merged matrix; an output has met x as well",
        2 * right: "the factor of two stands in the bound already, since ε = 2u",
    }
    if answer != right and answer in hints:
        raise AssertionError(f"{answer} is not it: {hints[answer]}")
    assert answer == right, (
        f"got {shown(answer)}: follow one product W0[i, j] x[j] or B[i, k] A[k, j] x[j] to the output"
    )
    print(f"Right: {right} roundings. In float32 the bound is {right * np.finfo(np.float32).eps:.1e} of T.")


@checker
def check_factor(answer: Any, adapted: Transformer, merged: Transformer) -> None:
    """The factor ĉ of equation (V2) by which a merged model has the update of `adapted`."""
    if unanswered(answer, "the factor ĉ of (V2): how many times does s·BA stand in the merged model?"):
        return
    assert isinstance(answer, float | int | np.number), f"the factor is a number, got {shown(answer)}"
    tokens = np.zeros((1, 1), np.int64)  # the arrays alone decide
    factors = [array.factor for array in certify(adapted, merged, tokens).arrays if array.factor is not None]
    right, scaling = float(np.mean(factors)), next(iter(adapters(adapted).values())).scaling
    if math.isclose(answer, right, rel_tol=1e-3):
        print(f"Right: the update stands in the merged model {right:.4g} times.")
        return
    hints = {
        right * scaling: f"that is relative to BA; the update is s·BA with s = {scaling:g}, see `delta`",
        right - 1.0: "that is what is left beside W0 + s·BA; compare with W0 alone",
        1.0 / right: "that is the inverse; divide by ⟨s·BA, s·BA⟩, the update as it should be",
        right * right: "that is the square; take the inner product with s·BA, not that of the found update with itself",
    }
    for wrong, hint in hints.items():
        if math.isclose(answer, wrong, rel_tol=1e-3, abs_tol=1e-4):
            raise AssertionError(f"{answer:.4g} is not it: {hint}")
    raise AssertionError(
        f"{answer:.4g} does not explain the merged model: take W − W0 of one adapted map, and its `delta`"
    )


@checker
def check_switch(answer: Any, dtype: Any = np.float16) -> None:
    """`switch(W0, W, old, new)`: the weights to serve after a change of adapters, without a drift.

    W0 the base, W what is served now, old and new the updates ΔW of the adapter before and after
    """
    task = "switch(W0, W, old, new): the weights that serve ΔW = new, after any number of switches exact to the bit"
    if unanswered(answer, task):
        return
    assert callable(answer), f"the answer is a function of (W0, W, old, new), got {shown(answer)}"
    rng = np.random.default_rng(0)
    W0 = (0.1 * rng.standard_normal((12, 16))).astype(dtype)
    kept, W, old = W0.copy(), W0.copy(), np.zeros_like(W0)
    for number in range(1, SWITCHES + 1):
        new = (0.1 * rng.standard_normal(W0.shape)).astype(dtype)
        right = kept + new
        W = answer(W0, W, old, new.copy())
        assert isinstance(W, np.ndarray), f"switch must give back the weights, got {shown(W)}"
        found = f"{W.dtype} {W.shape}"
        assert found == f"{W0.dtype} {W0.shape}", f"the weights are {W0.dtype} {W0.shape}, and switch gave {found}"
        assert np.array_equal(W0, kept), f"switch {number} wrote into W0: += changes the array that it is given"
        if not np.array_equal(W, right):
            raise AssertionError(_drifted(number, W, right))
        old = new
    print(f"Right: {SWITCHES} switches in {np.dtype(dtype).name}, and each of them served W0 + new to the bit.")


def _drifted(number: int, W: Array, right: Array) -> str:
    gap = float(abs(W.astype(np.float64) - right).max())
    if gap < 1e-2:
        return f"after switch {number} the weights are off by {gap:.1g}: what was added did not come out as it went in"
    if number == 1:
        return f"the first switch, from W0 alone, must serve W0 + new; it is off by {gap:.2g}"
    return f"after switch {number} the weights are off by {gap:.2g}: each time it is W0 and the new update alone"
