"""Tutorial 04, a transformer on two pages: attention of one head, what a model's sizes cost, and GPT-3's adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..config import TransformerConfig, shape_name
from ..costs import adapter_bytes, lora_count, parameter_count
from ..engine.arrays import Array
from ..textbook import softmax
from . import checker, shown, unanswered

CLOSE = 1e-5  # of a probability: float32 is enough


@checker
def check_attention(answer: Any, q: Array, k: Array) -> None:
    """The causal attention probabilities of one head, (seq, seq), from its q and k (seq, d_head)."""
    seq, d_head = q.shape
    if unanswered(answer, f"the causal attention probabilities ({seq}, {seq}) of one head, from q and k {q.shape}"):
        return
    found = np.asarray(answer, float)
    assert found.shape == (seq, seq), (
        f"one row for each query, one column for each key: ({seq}, {seq}), got {found.shape}"
    )
    products, sees = np.asarray(q @ k.T, float), np.tril(np.ones((seq, seq), bool))
    scores = products / math.sqrt(d_head)
    right = _probabilities(scores, sees)
    hints = {
        "these are the scores; softmax turns each row into probabilities": scores,
        "no mask: a query sees keys that come after it. Hide their scores before the softmax": softmax(scores),
        "masked after the softmax: the rows do not sum to one. Hide the scores with −∞ first": softmax(scores) * sees,
        "the scores are not divided by √d_head": _probabilities(products, sees),
        "the scores are divided by d_head, and it is its square root": _probabilities(products / d_head, sees),
        "the mask is the wrong way round: query i sees keys j ≤ i": _probabilities(scores, sees.T),
        "queries and keys are exchanged: rows belong to queries, so the scores are q @ k.T": _probabilities(
            scores.T, sees
        ),
        "each column sums to one; each row, a query, should: softmax runs over the last axis": (
            _probabilities(scores.T, sees.T).T
        ),
    }
    if not _equal(found, right):
        for hint, wrong in hints.items():
            assert not _equal(found, wrong), hint
        row = int(np.argmax(abs(found - right).max(axis=1)))
        raise AssertionError(f"row {row} should be {_short(right[row])}, got {_short(found[row])}")
    print(f"Right: {seq} rows that sum to one, and nothing above the diagonal.")


@checker
def check_parameter_count(answer: Any, shape: TransformerConfig) -> None:
    """How many parameters a transformer of this shape has."""
    tied = "tied" if shape.tied else "not tied"
    if unanswered(
        answer, f"the parameters of {shape.layers} layers, d_model {shape.d_model}, vocab {shape.vocab} ({tied})"
    ):
        return
    layers, d, f, table = shape.layers, shape.d_model, shape.d_hidden, shape.vocab * shape.d_model
    right = parameter_count(shape)
    hints = {
        right - (layers - 1) * (4 * d * d + 2 * d * f + 9 * d + f): "that is one block; there are several",
        right - layers * (9 * d + f) - 2 * d: "the biases and the layer norms have parameters too",
        right - layers * (5 * d + f): "the biases of the linear maps are missing: 4d in attention, f + d in the MLP",
        right - layers * 4 * d - 2 * d: "the layer norms are missing: a gain and a shift, 2d, for each",
        right - layers * 4 * d: "each block has two layer norms with 2d numbers each",
        right - 2 * d: "the last layer norm, before the head, is missing: 2d",
        right - shape.context * d: "the table of positions is missing: context × d_model",
        right - table - shape.context * d: "the token table and the table of positions are missing",
        right - 2 * layers * d * f: "the two matrices of each MLP are missing: 2·d·f",
    }
    if shape.tied:
        hints[right + table] = "the head is tied: it is the token table, which counts once"
    else:
        hints[right - table] = "the head is not tied: it is a second matrix of vocab × d_model"
    _check_number(answer, right, hints, "compare term by term with equation (C1) of lora_np.costs")
    print(f"Right: {right:,}.")


@checker
def check_adapter_bytes(
    answer: Any, shape: TransformerConfig, rank: int, targets: str | Iterable[str], dtype: str
) -> None:
    """The bytes of a LoRA adapter's numbers in a file."""
    if unanswered(answer, f"the bytes of a rank-{rank} adapter on {targets} of {shape_name(shape)}, stored as {dtype}"):
        return
    numbers = lora_count(shape, rank, targets)
    right = adapter_bytes(numbers, dtype)
    hints: dict[float, str] = {
        numbers: "that is how many numbers there are; how many bytes does each take?",
        right // 2: "that is half of it: both A and B are stored, and each number takes as many bytes as its type says",
        right * 2: "that is twice as much: how many bytes does one number take, and which matrices are targets?",
        right // shape.layers: f"that is one block; there are {shape.layers}",
        right // rank: f"that is rank 1; the rank is {rank}",
        adapter_bytes(parameter_count(shape), dtype): "that is the whole model; only A and B are stored",
    }
    for size, unit in ((10**6, "MB"), (2**20, "MiB")):
        hints[right / size] = f"that is the size in {unit}; asked for are bytes"
    _check_number(answer, right, hints, "each target costs rank·(d_in + d_out) numbers in each block")
    print(f"Right: {right:,} bytes, {parameter_count(shape) / numbers:,.0f} times fewer numbers than the model.")


def _probabilities(scores: Array, sees: Array) -> Array:
    return np.asarray(softmax(np.where(sees, scores, -1e30)))


def _equal(one: Array, other: Array) -> bool:
    return bool(np.allclose(one, other, rtol=0.0, atol=CLOSE))


def _short(row: Array) -> str:
    return np.array2string(row[:4], precision=3, suppress_small=True) + (" …" if len(row) > 4 else "")


def _check_number(answer: Any, right: int, hints: dict[Any, str], advice: str) -> None:
    assert isinstance(answer, int | float | np.number), f"the answer is a number, got {shown(answer)}"
    if answer == right:
        return
    for wrong, hint in hints.items():
        assert not math.isclose(answer, wrong, rel_tol=1e-9), f"{answer:,} is not it: {hint}"
    raise AssertionError(f"{answer:,} is {'more' if answer > right else 'less'} than it should be: {advice}")
