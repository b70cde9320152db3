"""The laws of `exercises.merging`: planted factors are what they say, and each check names the mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import adapted, model, moved

from lora_np.certificate import certify
from lora_np.exercises.merging import (
    check_factor,
    check_roundings,
    check_switch,
    in_precision,
    merged_with,
    mystery,
    switched_in_place,
)
from lora_np.lora import adapters, delta
from lora_np.model import Transformer
from lora_np.parameters import parameters
from lora_np.wrappers import merge

QUERY = "blocks.0.attention.query"


def lora(rank: int = 2, alpha: float = 6.0) -> Transformer:
    """A model with B far from zero; s = 3, so that a lost s is noticed."""
    return moved(adapted(model(dtype=np.float32), rank=rank, alpha=alpha))


def factor_of(node: Transformer, merged: Transformer) -> float:
    verdict = certify(node, merged, np.zeros((1, 1), np.int64))
    return next(array.factor for array in verdict.arrays if array.factor is not None)


def rejects(hint: str, check: Callable[..., None], *arguments: Any, **settings: Any) -> None:
    with pytest.raises(AssertionError, match=re.escape(hint)):
        check(*arguments, **settings)


# --------------------------------------------------------------------------------------------------- what is planted


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_model_in_another_precision_has_all_its_arrays_in_it(dtype: Any) -> None:
    node = in_precision(lora(), dtype)
    assert {array.dtype for array in parameters(node).values()} == {np.dtype(dtype)}
    assert node(np.zeros((1, 3), np.int64)).dtype == dtype


def test_a_merge_with_factor_one_is_the_merge_and_any_other_is_not() -> None:
    node = lora()
    right, one = parameters(merge(node)), parameters(merged_with(node, 1.0))
    assert all(np.array_equal(one[name], right[name]) for name in right)
    for factor in (0.5, 1.01, 2.0):
        assert factor_of(node, merged_with(node, factor)) == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_a_mystery_is_a_wrong_factor(seed: int) -> None:
    node = lora()
    factor = factor_of(node, mystery(node, np.random.default_rng(seed)))
    assert 0.2 <= factor <= 3.0
    assert abs(factor - 1.0) > 0.09


def test_switching_in_place_drifts_with_changing_updates_and_settles_with_one() -> None:
    rng = np.random.default_rng(0)
    W = (0.1 * rng.standard_normal((20, 20))).astype(np.float32)
    before, updates = W.copy(), [(0.1 * rng.standard_normal(W.shape)).astype(np.float32) for _ in range(300)]
    changing, same = switched_in_place(W, updates), switched_in_place(W, updates[:1] * 300)
    assert np.array_equal(W, before)
    assert len(changing) == len(same) == 300
    assert changing[-1] > 4 * changing[0] > 0
    assert same[-1] == same[2] > 0


# ------------------------------------------------------------------------------------------------------- the checks


def test_the_roundings(capsys: pytest.CaptureFixture[str]) -> None:
    check_roundings(780, d_in=768, rank=8)
    assert capsys.readouterr().out.startswith("Right: 780 roundings.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (779, "one more covers the terms"),
        (776, "those are the two sums"),
        (772, "the branch sums over the rank"),
        (12, "the product with x sums over d_in"),
        (11, "that is (V1)"),
        (1560, "the factor of two stands in the bound already"),
        (5, "follow one product"),
    ],
)
def test_wrong_roundings_are_named(answer: int, hint: str) -> None:
    rejects(hint, check_roundings, answer, d_in=768, rank=8)


def test_the_factor(capsys: pytest.CaptureFixture[str]) -> None:
    node = lora()
    found = merged_with(node, 1.7)
    module = adapters(node)[QUERY]
    W, D = parameters(found)[f"{QUERY}.W"], delta(module)
    check_factor(np.vdot(W - module.base.W, D) / np.vdot(D, D), node, found)
    check_factor(1.7, node, found)
    assert capsys.readouterr().out == 2 * "Right: the update stands in the merged model 1.7 times.\n"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (1.7 * 3, "relative to BA; the update is s·BA with s = 3"),
        (0.7, "compare with W0 alone"),
        (1 / 1.7, "that is the inverse"),
        (1.7**2, "that is the square"),
        (1.0, "does not explain the merged model"),
        ("1.7", "the factor is a number"),
    ],
)
def test_a_wrong_factor_is_named(answer: Any, hint: str) -> None:
    node = lora()
    rejects(hint, check_factor, answer, node, merged_with(node, 1.7))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_switch_from_the_base_is_right(dtype: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check_switch(lambda W0, W, old, new: W0 + new, dtype)
    assert capsys.readouterr().out.startswith("Right: 200 switches in float")


def in_place(W0: Any, W: Any, old: Any, new: Any) -> Any:
    W -= old
    W += new
    return W


def into_the_base(W0: Any, W: Any, old: Any, new: Any) -> Any:
    W0 += new
    return W0


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda W0, W, old, new: W - old + new, "did not come out as it went in"),
        (in_place, "did not come out as it went in"),
        (lambda W0, W, old, new: W + new, "W0 and the new update alone"),
        (lambda W0, W, old, new: W0 - new, "the first switch, from W0 alone"),
        (into_the_base, "wrote into W0"),
        (lambda W0, W, old, new: None, "must give back the weights"),
        (lambda W0, W, old, new: W0.astype(np.float64) + new, "switch gave float64"),
        (lambda W0, W, old, new: (W0 + new).T, "switch gave float16 (16, 12)"),
        (7, "the answer is a function"),
    ],
)
def test_a_wrong_switch_is_named(answer: Any, hint: str) -> None:
    rejects(hint, check_switch, answer)


@pytest.mark.parametrize(
    ("check", "arguments"), [(check_roundings, (768, 8)), (check_factor, (None, None)), (check_switch, ())]
)
def test_the_placeholder_prints_the_task(
    check: Callable[..., None], arguments: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    check(..., *arguments)
    assert capsys.readouterr().out.startswith("Exercise: ")
