"""Tutorial 10: methods are moved and timed as the notebook needs them, and each check names the mistake."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import hashes, model

from lora_np.costs import SHAPES
from lora_np.exercises.others import (
    NAMES,
    _one_more,
    check_adapter_rank,
    check_dora,
    check_pissa,
    check_places_left,
    fastest_calls,
    moved,
    slower,
)
from lora_np.methods import METHODS
from lora_np.methods.bottleneck import AdapterH
from lora_np.methods.variants import PiSSA
from lora_np.parameters import parameters

MEDIUM, BUDGET = SHAPES["gpt2-medium"], 393_216
W = np.random.default_rng(0).standard_normal((8, 9))
U, SIGMA, V_T = np.linalg.svd(W, full_matrices=False)
RANK, S = 3, 2.0
ROOT = np.sqrt(SIGMA[:RANK] / S)
A, B = ROOT[:, None] * V_T[:RANK], U[:, :RANK] * ROOT


def rejects(hint: str, check: Callable[..., None], *arguments: Any) -> None:
    with pytest.raises(AssertionError, match=re.escape(hint)):
        check(*arguments)


# ------------------------------------------------------------------------------------------------- what is looked at


def test_the_fifteen_are_methods_and_lora_comes_first() -> None:
    assert set(NAMES) < set(METHODS)
    assert (NAMES[0], len(NAMES)) == ("lora", 15)


def fields_of(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(METHODS[name])}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_moved_in_what_it_trains_and_nowhere_else(name: str) -> None:
    base, method = model(), METHODS[name](**({"rank": 2} if "rank" in fields_of(name) and name != "compacter" else {}))
    own = parameters(base)
    before, node = hashes(own), moved(base, method)
    trained, start = method.trained(node), method.trained(method.apply(base, np.random.default_rng(0)))
    assert all((trained[path] != start[path]).all() for path in trained)
    frozen = hashes({path: array for path, array in parameters(node).items() if path not in trained})
    assert {before[path] for path in own if path not in trained} <= set(frozen.values())
    assert hashes(parameters(base)) == before


def test_the_fastest_of_every_call_is_given_and_all_take_turns() -> None:
    order: list[str] = []
    seconds = fastest_calls({name: lambda name=name: order.append(name) for name in "ab"}, turns=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert all(0.0 < taken < 60.0 for taken in seconds.values())


def test_every_method_is_timed_beside_the_base_and_merged_where_it_can_be() -> None:
    methods = {"lora": METHODS["lora"](rank=2), "adapter-p": METHODS["adapter-p"](rank=2)}
    found = slower(model(), methods, n=3, turns=2)
    assert list(found) == ["one more token", "3 tokens at once"]
    assert all(list(each) == ["lora", "adapter-p", "lora, merged"] for each in found.values())
    assert all(-100.0 < percent < 1e6 for each in found.values() for percent in each.values())


def test_one_more_token_is_read_behind_the_others_every_time() -> None:
    node, tokens = model(), np.array([1, 2, 3])
    seen: list[Any] = []

    class Watched(type(node)):  # type: ignore[misc]
        def __call__(self, tokens: Any, **about: Any) -> Any:
            seen.append(super().__call__(tokens, **about))
            return seen[-1]

    call = _one_more(Watched(**{f.name: getattr(node, f.name) for f in dataclasses.fields(node)}), tokens)
    call()
    call()
    whole = node(np.array([[1, 2, 3, 0]]))[0, -1]
    assert abs(seen[1][0, -1] - whole).max() < 1e-10
    assert np.array_equal(seen[1], seen[2])


# ------------------------------------------------------------------------------------------------------- the checks


def test_the_largest_rank_of_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    right = max(r for r in range(1, 100) if AdapterH(r).numbers(MEDIUM) <= BUDGET)
    check_adapter_rank(right, MEDIUM, BUDGET)
    check_adapter_rank(np.int64(right), MEDIUM, BUDGET)
    assert capsys.readouterr().out.count(f"Right: rank {right} trains ") == 2


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (7, "one adapter a block; adapter-h has two"),
        (191, "there are two in each of 24 blocks"),
        (4, "leaves the biases out"),
        (5, "rank 5 trains 540,912 numbers, more of 393,216"),
        (2, "one rank more would still fit"),
        (8, "counts one of the two matrices"),
        (0, "a rank lies in 1..d_model"),
        (3.5, "a rank is a whole number"),
        ("three", "a rank is a whole number, got 'three'"),
        ([3, 4], "a rank is a whole number"),
        (None, "a rank is a whole number"),
        (10**9, "a rank lies in"),
    ],
)
def test_a_wrong_rank_of_adapters_is_told_why(wrong: Any, hint: str) -> None:
    rejects(hint, check_adapter_rank, wrong, MEDIUM, BUDGET)


@pytest.mark.parametrize(("name", "left"), [("prefix-embedding", 1024 - 384), ("prefix-layer", 1024 - 16)])
def test_the_places_that_are_left(name: str, left: int, capsys: pytest.CaptureFixture[str]) -> None:
    check_places_left(left, MEDIUM, name, BUDGET)
    assert f"Right: {1024 - left} places are taken, and {left} of 1024" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "wrong", "hint"),
    [
        ("prefix-layer", 16, "that is what it takes"),
        ("prefix-layer", 1024, "special tokens stand in it too"),
        ("prefix-layer", 1024 - BUDGET, "a row of d numbers"),
        ("prefix-layer", 1024 - 384, "a row for every block"),
        ("prefix-embedding", 1024 - 16, "a row once"),
        ("prefix-layer", 1024 - 32, "one row a block"),
        ("prefix-layer", 5, "a place costs 24,576 numbers, and 16 of them fit into 393,216"),
        ("prefix-layer", "none", "one number, got 'none'"),
        ("prefix-layer", {}, "one number"),
    ],
)
def test_wrong_places_are_told_why(name: str, wrong: Any, hint: str) -> None:
    rejects(hint, check_places_left, wrong, MEDIUM, name, BUDGET)


def dora(x: Any, W: Any, A: Any, B: Any, m: Any, s: Any, *, to: Any = None, power: int = 1, only: bool = False) -> Any:
    """(R1), and with other settings the mistakes that are made in it."""
    V = s * (B @ A) if only else W + s * (B @ A)
    n = np.linalg.norm(V if to is None else to, axis=1) ** power
    return x @ ((W if only else 0) + V * (m / n)[:, None]).T


def test_dora_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    check_dora(dora)
    check_dora(lambda x, W, A, B, m, s: (x @ (V := W + s * B @ A).T) * m / np.sqrt((V * V).sum(1)))
    assert capsys.readouterr().out.count("Right:") == 2


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda x, W, A, B, m, s: x @ ((W + s * B @ A) * m[:, None]).T, "the length is missing"),
        (lambda x, W, A, B, m, s: dora(x, W, A, B, 1.0 + 0 * m, s), "m is missing"),
        (lambda x, W, A, B, m, s: dora(x, W, A, B, m, s, to=W), "not of W0"),
        (lambda x, W, A, B, m, s: dora(x, W, A, B, m, 1.0), "s is missing"),
        (lambda x, W, A, B, m, s: dora(x, W, A, B, m, s, only=True), "only BA was brought"),
        (lambda x, W, A, B, m, s: dora(x, W, A, B, m, s, power=2), "n is squared"),
        (
            lambda x, W, A, B, m, s: x @ ((V := W + s * B @ A) * m[:, None] / np.linalg.norm(V)).T,
            "each row has its own",
        ),
        (
            lambda x, W, A, B, m, s: x @ ((V := W + s * B @ A) / np.linalg.norm(V, axis=0) * m[:, None]).T,
            "n divides the columns",
        ),
        (lambda x, W, A, B, m, s: x @ W.T, "it is off by up to"),
        (lambda x, W, A, B, m, s: W, "an array of shape (5, 4), got (4, 3)"),
        (lambda x, W, A, B, m, s: None, "an array of shape (5, 4), got None"),
        (lambda x, W, A, B, m, s: np.nan * (x @ W.T), "finite numbers"),
        (3.0, "is a function of (x, W, A, B, m, s), got 3.0"),
    ],
)
def test_a_wrong_dora_is_told_why(wrong: Any, hint: str) -> None:
    rejects(hint, check_dora, wrong)


def test_where_pissa_starts(capsys: pytest.CaptureFixture[str]) -> None:
    check_pissa(A, B, W, RANK, S)
    base = model(dtype=np.float32)
    module = PiSSA(rank=2).apply(base, np.random.default_rng(0)).blocks[0].attention.query
    check_pissa(module.A0, module.B0, module.base.W, 2, module.scaling)
    assert capsys.readouterr().out.count("Right:") == 2


@pytest.mark.parametrize(
    ("A", "B", "hint"),
    [
        (A * S**0.5, B * S**0.5, "s is missing"),
        (A / S**0.5, B / S**0.5, "s went in twice"),
        (V_T[:RANK], U[:, :RANK], "the σ are missing"),
        (SIGMA[:RANK, None] * V_T[:RANK], U[:, :RANK] * SIGMA[:RANK], "every σ went in twice"),
        (
            (np.sqrt(SIGMA[-RANK:] / S))[:, None] * V_T[-RANK:],
            U[:, -RANK:] * np.sqrt(SIGMA[-RANK:] / S),
            "the smallest singular values",
        ),
        (2.0 * A, B / 2.0, "A0 has 4 times the norm of B0"),
        (A, 0.9 * B, "s·B0A0 is off by 10.0%"),
        (B, A, "A0 is an array of shape (3, 9), got (8, 3)"),
        (A, None, "B0 is an array of shape (8, 3), got None"),
        ("A", B, "A0 is an array of shape (3, 9), got 'A'"),
    ],
)
def test_another_start_is_told_why(A: Any, B: Any, hint: str) -> None:
    rejects(hint, check_pissa, A, B, W, RANK, S)


@pytest.mark.parametrize(
    ("check", "about"),
    [
        (check_adapter_rank, (..., MEDIUM, BUDGET)),
        (check_places_left, (..., MEDIUM, "prefix-layer", BUDGET)),
        (check_dora, (...,)),
        (check_pissa, (..., ..., W, RANK, S)),
    ],
)
def test_a_placeholder_is_told_its_task(
    check: Callable[..., None], about: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    check(*about)
    assert capsys.readouterr().out.startswith("Exercise: ")
