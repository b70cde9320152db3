"""The laws of `exercises.serving`: styles are what they say, three ways write one text, checks name the mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import hashes, model

from lora_np import tasks
from lora_np.exercises.serving import (
    STYLES,
    bytes_held,
    check_adapters_in_a_copy,
    check_break_even,
    check_mixed_rows,
    drawn,
    fastest,
    house,
    in_one_batch,
    merged_in_turn,
    one_at_a_time,
)
from lora_np.methods.lora import LoraConfig
from lora_np.parameters import parameters
from lora_np.serving import Request, applied, switched
from lora_np.tasks.generated import ways


def rejects(hint: str, check: Callable[..., None], *arguments: Any, **about: Any) -> None:
    with pytest.raises(AssertionError, match=re.escape(hint)):
        check(*arguments, **about)


# ------------------------------------------------------------------------------------------- what the notebook uses


def test_a_house_has_one_sentence_for_all_objects() -> None:
    examples = tasks.generate(6, np.random.default_rng(0))
    for style, number in STYLES.items():
        labels = house(examples, style)
        assert [label.prompt for label in labels] == [example.prompt for example in examples]
        assert [label.reference for label in labels] == [ways(example.prompt)[number] for example in examples]
    assert len({house(examples, style)[0].reference for style in STYLES}) == len(STYLES)


def test_an_array_that_is_shared_is_held_once() -> None:
    base, bank = model(dtype=np.float32), drawn(model(dtype=np.float32), 2, LoraConfig(rank=2, targets="qv"))
    one, two = (applied(base, bank[name]) for name in bank.names)
    assert bytes_held(base, base) == bytes_held(base)
    assert bytes_held(base, one) == bytes_held(base) + bank["a0"].nbytes
    assert bytes_held(one, two) == bytes_held(base) + bank["a0"].nbytes + bank["a1"].nbytes
    copy = switched(base, bank["a0"])
    assert bytes_held(base, copy.model) == bytes_held(base) + copy.nbytes


def test_three_ways_write_the_same_and_leave_the_base_alone() -> None:
    base = model(dtype=np.float64, vocab=11, context=12)
    bank, before = drawn(base, 3, LoraConfig(rank=2, targets="qv")), hashes(parameters(base))
    names = ("a0", "a1", None, "a0", "a2")
    requests = [Request((1 + i, 2, 3), name, 4) for i, name in enumerate(names)]
    written = [way(base, requests, bank) for way in (in_one_batch, merged_in_turn, one_at_a_time)]
    assert written[0] == written[1] == written[2]
    assert len(set(written[0].values())) > 2
    assert hashes(parameters(base)) == before


def test_the_fastest_of_some_turns_counts_and_all_take_turns() -> None:
    order: list[str] = []
    found = fastest({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, turns=3)
    assert order == ["a", "b"] * 3
    assert found.keys() == {"a", "b"}
    assert all(seconds >= 0.0 for seconds in found.values())


# ------------------------------------------------------------------------------------------------------- the checks


def test_the_adapters_in_a_copy(capsys: pytest.CaptureFixture[str]) -> None:
    check_adapters_in_a_copy(1536, d_in=12_288, d_out=12_288, rank=4)
    check_adapters_in_a_copy(np.float64(38.4), d_in=192, d_out=768, rank=4)
    assert capsys.readouterr().out.splitlines()[0].startswith("Right: 1,536 adapters of 98,304 numbers each")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (3072, "that counts one of A and B"),
        (6144, "a product and not a sum"),
        (1 / 1536, "that is the inverse"),
        (98_304, "those are the numbers of one adapter"),
        (12_288**2, "those are the numbers of a copy"),
        (7, "a copy holds d_out · d_in numbers"),
        (float("nan"), "the answer is one number, and a finite one"),
        ("1536", "the answer is one number"),
        (None, "the answer is one number"),
    ],
)
def test_wrong_adapters_in_a_copy_are_named(answer: Any, hint: str) -> None:
    rejects(hint, check_adapters_in_a_copy, answer, d_in=12_288, d_out=12_288, rank=4)


def test_a_side_alone_is_named_where_the_map_is_not_square() -> None:
    about = {"d_in": 192, "d_out": 768, "rank": 4}
    rejects("that counts one of A and B", check_adapters_in_a_copy, 192, **about)
    rejects("that counts one of A and B", check_adapters_in_a_copy, 48, **about)
    rejects("that is for rank 1", check_adapters_in_a_copy, 768 * 192 / 960, **about)


def test_the_break_even(capsys: pytest.CaptureFixture[str]) -> None:
    check_break_even(2048, d_in=4096, d_out=4096, rank=16)
    check_break_even(153.6, d_in=192, d_out=768, rank=1)
    assert capsys.readouterr().out == (
        "Right: after 2,048 tokens, whatever the rank.\nRight: after 153.6 tokens, whatever the rank.\n"
    )


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (2048 * 16, "the branch costs r (d_in + d_out) for each token"),
        (2048 / 16, "forming BA costs d_out · r · d_in"),
        (16 * 4096**2, "that is the whole work of BA"),
        (4096**2, "that is a row of W0 x"),
        (16 * 8192, "that is what one token saves; how many"),
        (8192, "that is what one token saves at rank 1"),
        (1 / 2048, "that is the inverse"),
        (4096, "a token saves both of its products"),
        (-3, "set the multiply-adds of BA equal"),
        ([2048, 1], "the answer is one number"),
    ],
)
def test_a_wrong_break_even_is_named(answer: Any, hint: str) -> None:
    rejects(hint, check_break_even, answer, d_in=4096, d_out=4096, rank=16)


def by_adapter(X: Any, W: Any, A: Any, B: Any, s: Any, which: Any) -> Any:
    Y = X @ W.T
    for i in range(len(A)):
        own = np.array(which) == i
        Y[own] += s[i] * X[own] @ A[i].T @ B[i].T
    return Y


def by_mask(X: Any, W: Any, A: Any, B: Any, s: Any, which: Any) -> Any:
    owner = np.repeat(np.arange(len(A)), [len(a) for a in A])
    mask = (np.array(which)[:, None] == owner) * np.array(s)[owner]
    return X @ W.T + (X @ np.concatenate(A).T * mask) @ np.concatenate(B, axis=1).T


def row_by_row(X: Any, W: Any, A: Any, B: Any, s: Any, which: Any, none: bool = True, scale: bool = True) -> Any:
    rows = []
    for x, i in zip(X, which, strict=True):
        rows.append(W @ x)
        if i >= 0 or not none:
            rows[-1] = rows[-1] + (s[i] if scale else 1.0) * B[i] @ (A[i] @ x)
    return np.stack(rows)


def all_of_them(X: Any, W: Any, A: Any, B: Any, s: Any, which: Any) -> Any:
    return X @ W.T + sum(scale * X @ a.T @ b.T for a, b, scale in zip(A, B, s, strict=True))


def in_place(X: Any, W: Any, A: Any, B: Any, s: Any, which: Any) -> Any:
    W += s[0] * B[0] @ A[0]
    return X @ W.T


@pytest.mark.parametrize("answer", [by_adapter, by_mask, row_by_row])
def test_a_right_mixed_batch(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check_mixed_rows(answer)
    assert capsys.readouterr().out.startswith("Right: five batches")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda X, W, A, B, s, which: row_by_row(X, W, A, B, s, which, none=False), "A[-1] is the last of a list"),
        (lambda X, W, A, B, s, which: row_by_row(X, W, A, B, s, which, scale=False), "the scaling is missing"),
        (lambda X, W, A, B, s, which: X @ W.T, "no row got its adapter"),
        (lambda X, W, A, B, s, which: by_adapter(X, W, A, B, s, which) - X @ W.T, "W0 is missing"),
        (all_of_them, "every row got all adapters"),
        (lambda X, W, A, B, s, which: X @ (W + s[1] * B[1] @ A[1]).T, "every row got adapter 1"),
        (lambda X, W, A, B, s, which: by_adapter(X, W, A, B, s, which[::-1]), "look at what this row is multiplied by"),
        (lambda X, W, A, B, s, which: np.nan * by_adapter(X, W, A, B, s, which), "row 0, "),
        (in_place, "wrote into what it was given"),
        (lambda X, W, A, B, s, which: by_adapter(X, W, A, B, s, which).T, "the answer has shape"),
        (lambda X, W, A, B, s, which: None, "must give back an array"),
        (7, "the answer is a function"),
    ],
)
def test_a_wrong_mixed_batch_is_named(answer: Any, hint: str) -> None:
    rejects(hint, check_mixed_rows, answer)


@pytest.mark.parametrize(
    ("check", "arguments"),
    [(check_adapters_in_a_copy, (8, 8, 2)), (check_break_even, (8, 8, 2)), (check_mixed_rows, ())],
)
def test_the_placeholder_prints_the_task(
    check: Callable[..., None], arguments: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    check(..., *arguments)
    assert capsys.readouterr().out.startswith("Exercise: ")
