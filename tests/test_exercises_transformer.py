"""Each check of tutorial 04 knows the right answer, and says what is wrong with a wrong one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lora_np.config import TransformerConfig
from lora_np.costs import SHAPES, adapter_bytes, lora_count, parameter_count
from lora_np.exercises.transformer import check_adapter_bytes, check_attention, check_parameter_count
from lora_np.textbook import attention, softmax

Q, K = np.random.default_rng(0).standard_normal((2, 5, 8))
SEES = np.tril(np.ones((5, 5), bool))
SMALL = TransformerConfig(layers=3, d_model=64, heads=4, d_ff=256, vocab=100, context=32, tied=False)
WIDE = TransformerConfig(layers=16, d_model=4096, heads=1, d_ff=1, vocab=1, context=1)


def hidden(scores: Any, sees: Any = SEES) -> Any:
    return softmax(np.where(sees, scores, -np.inf))


RIGHT = hidden(Q @ K.T / math.sqrt(8))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().out.splitlines()
    return line


def test_attention_is_what_the_textbook_averages_the_values_with(capsys: pytest.CaptureFixture[str]) -> None:
    check_attention(RIGHT, Q, K)
    assert one_line(capsys).startswith("Right")
    v = np.random.default_rng(1).standard_normal((5, 8))
    np.testing.assert_allclose(attention(Q[None], K[None], v[None], 1, SEES[None, None])[0], RIGHT @ v)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (Q @ K.T / math.sqrt(8), "these are the scores"),
        (softmax(Q @ K.T / math.sqrt(8)), "no mask"),
        (softmax(Q @ K.T / math.sqrt(8)) * SEES, "masked after the softmax"),
        (hidden(Q @ K.T), "not divided by √d_head"),
        (hidden(Q @ K.T / 8), "divided by d_head, and it is its square root"),
        (hidden(Q @ K.T / math.sqrt(8), SEES.T), "the wrong way round"),
        (hidden(K @ Q.T / math.sqrt(8)), "exchanged"),
        (hidden(K @ Q.T / math.sqrt(8), SEES.T).T, "the last axis"),
        (np.full((5, 5), 0.2), "row 0 should be"),
        (RIGHT[:4], r"\(5, 5\), got \(4, 5\)"),
    ],
)
def test_wrong_attention_is_told_why(wrong: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_attention(wrong, Q, K)


@pytest.mark.parametrize("shape", [SMALL, replace(SMALL, tied=True), SHAPES["gpt2-medium"]])
def test_the_count_of_a_shape_is_right(shape: TransformerConfig, capsys: pytest.CaptureFixture[str]) -> None:
    check_parameter_count(parameter_count(shape), shape)
    assert one_line(capsys) == f"Right: {parameter_count(shape):,}."


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        (100 * 64, "not tied"),
        (32 * 64, "positions"),
        (2 * 64, "the last layer norm"),
        (3 * 4 * 64, "each block has two layer norms"),
        (3 * 4 * 64 + 2 * 64, "the layer norms are missing"),
        (3 * (5 * 64 + 256), "the biases of the linear maps"),
        (3 * (9 * 64 + 256) + 2 * 64, "the biases and the layer norms"),
        (3 * 2 * 64 * 256, "each MLP"),
        (100 * 64 + 32 * 64, "the token table and the table of positions"),
        (2 * (4 * 64 * 64 + 2 * 64 * 256 + 9 * 64 + 256), "that is one block"),
        (1, "less than it should be"),
        (-1, "more than it should be"),
    ],
)
def test_a_wrong_count_is_told_what_is_missing(missing: int, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_parameter_count(parameter_count(SMALL) - missing, SMALL)


def test_a_tied_head_is_counted_once() -> None:
    tied = replace(SMALL, tied=True)
    with pytest.raises(AssertionError, match="counts once"):
        check_parameter_count(parameter_count(SMALL), tied)


def test_the_bytes_of_an_adapter_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    right = adapter_bytes(lora_count(SHAPES["gpt3"], 2, "qkvo"), "float16")
    assert right == 36 * 2**20
    check_adapter_bytes(right, SHAPES["gpt3"], 2, "qkvo", "float16")
    assert one_line(capsys).startswith("Right: 37,748,736 bytes")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (2**20, "both A and B are stored"),
        (2**22, "twice as much"),
        (2**21 // 16, "one block; there are 16"),
        (2**21 // 8, "that is rank 1; the rank is 8"),
        (2**21 / 1e6, "the size in MB"),
        (2.0, "the size in MiB"),
        (2 * parameter_count(WIDE), "the whole model"),
        (12345, "less than it should be"),
        ("2 MiB", "is a number"),
    ],
)
def test_wrong_bytes_are_told_why(wrong: Any, hint: str) -> None:
    assert adapter_bytes(lora_count(WIDE, 8, "attention.query"), "float16") == 2**21
    with pytest.raises(AssertionError, match=hint):
        check_adapter_bytes(wrong, WIDE, 8, "attention.query", "float16")


def test_a_placeholder_is_told_its_task(capsys: pytest.CaptureFixture[str]) -> None:
    for check in (
        lambda: check_attention(..., Q, K),
        lambda: check_parameter_count(..., SMALL),
        lambda: check_adapter_bytes(..., SHAPES["gpt3"], 2, "qkvo", "float16"),
    ):
        check()
        assert one_line(capsys).startswith("Exercise: the ")
