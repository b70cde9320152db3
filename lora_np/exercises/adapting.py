"""Tutorial 05, adapting a model to your file: what is learned of a pair, what is selected, and Adam's first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..optimization import TrainingConfig, adamw
from ..parameters import count, parameters
from ..tasks import Example, collate, encode
from ..tokenizers import ByteTokenizer
from . import checker, shown, unanswered

CLOSE = 1e-3  # of a step: ε, which is left out by hand, changes less


@checker
def check_weights(answer: Any, examples: Sequence[Example]) -> None:
    """The loss weights (batch, seq) of these pairs: zero where nothing is learned, and one in all."""
    pairs = ", ".join(f"{example.prompt!r} → {example.reference!r}" for example in examples)
    if unanswered(answer, f"the weights of the batch of {pairs}, one list for each pair"):
        return
    tokenizer = ByteTokenizer()
    sequences = encode(examples, tokenizer, context=10**6)
    right = collate(sequences, tokenizer.end).weights
    longest = right.shape[1]
    lengths = [np.size(row) for row in answer] if isinstance(answer, list | tuple) else [longest]
    assert len({*lengths}) == 1, (
        f"the rows have {' and '.join(map(str, lengths))} weights: a batch is a rectangle, and the shorter rows are "
        "padded with zeros"
    )
    found = np.asarray(answer, float)
    assert found.shape == right.shape, (
        f"{len(examples)} rows of {longest}: END, prompt, newline and reference of the longest pair; got {found.shape}"
    )
    learned, counted = right > 0, found > 0
    for row, (sequence, example) in enumerate(zip(sequences, examples, strict=True)):
        first, last = sequence.n_prompt - 1, sequence.length - 1
        name = f"row {row} ({example.prompt!r} → {example.reference!r})"
        assert not counted[row, last + 1 :].any(), f"{name}: padding is learned; its weight is zero"
        assert counted[row, last], f"{name}: the END after the reference is learned too, or the model never stops"
        assert counted[row, first], (
            f"{name}: the first letter of the reference is learned: column {first} reads the newline and predicts it"
        )
        assert not counted[row, :first].any(), f"{name}: the prompt is given, not learned; its weight is zero"
        assert (counted[row] == learned[row]).all(), f"{name}: every byte of the reference is learned"
    assert np.isclose(found.sum(), 1.0), f"the weights of the whole batch sum to 1, got {found.sum():.4g}"
    assert np.allclose(found, right), (
        f"every learned token counts the same, 1/{learned.sum()} here, however the tokens are spread over the rows"
    )
    print(f"Right: {learned.sum()} tokens are learned, each with weight 1/{learned.sum()}.")


@checker
def check_last_blocks(answer: Any, model: Any, blocks: int = 2) -> None:
    """Patterns that select the last blocks of a model and nothing else."""
    if unanswered(answer, f"a tuple of patterns that selects the last {blocks} blocks, and nothing else"):
        return
    patterns = (answer,) if isinstance(answer, str) else tuple(answer)
    last = range(len(model.blocks) - blocks, len(model.blocks))
    wanted = {name for name in parameters(model) if any(name.startswith(f"blocks.{i}.") for i in last)}
    try:
        found = parameters(model, *patterns)
    except ValueError as error:
        raise AssertionError(str(error)) from None
    assert patterns, "no pattern at all selects every array; name the blocks"
    more = [name for name in found if name not in wanted]
    fewer = [name for name in parameters(model) if name in wanted and name not in found]
    assert not more, f"{len(more)} arrays too many are selected, {more[0]} for one"
    assert not fewer, f"{len(fewer)} arrays are left out, {fewer[0]} for one"
    print(f"Right: {count(found):,} of {count(model):,} numbers.")


@checker
def check_first_step(answer: Any, gradient: float, rate: float) -> None:
    """By how much AdamW's first step, without decay, changes a number whose gradient this is."""
    if unanswered(answer, f"what AdamW's first step, of rate {rate}, adds to a number whose gradient is {gradient}"):
        return
    zero, g = {"x": np.zeros(1)}, {"x": np.array([gradient])}
    new, _ = adamw(zero, g, {"m.x": np.zeros(1), "v.x": np.zeros(1)}, 1, rate, TrainingConfig())
    right, defaults = float(new["x"][0]), TrainingConfig()
    assert isinstance(answer, int | float | np.number), f"the answer is a number, got {shown(answer)}"
    # Of moments that still feel their start at zero: m = (1 − β₁) g, v = (1 − β₂) g².
    uncorrected = right * (1.0 - defaults.beta1) / math.sqrt(1.0 - defaults.beta2)
    hints = {
        -rate * gradient: "that is plain gradient descent, −rate·g. Adam divides by √v̂, and at step 1 that is |g|",
        rate * gradient: "that is rate·g; Adam divides by √v̂, and a step goes against the gradient",
        -right: "the size is right, the sign is not: a step goes against the gradient",
        uncorrected: "m and v start at zero; (T1) corrects both for that, by 1 − βᵗ",
    }
    for wrong, hint in hints.items():
        assert math.isclose(answer, right, rel_tol=CLOSE) or not math.isclose(answer, wrong, rel_tol=CLOSE), hint
    assert math.isclose(answer, right, rel_tol=CLOSE), f"with m̂ = g and v̂ = g², what is −rate·m̂/√v̂? Not {answer}"
    print(f"Right: {right:+.4g}. The first step asks only for the sign of the gradient.")
