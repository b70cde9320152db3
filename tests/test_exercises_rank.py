"""The laws of `exercises.rank`: bills are counted, an outcome is a training, and each check names the mistake."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import config, hashes, model

from lora_np.adaptation import Text
from lora_np.costs import SHAPES, lora_count, optimizer_bytes, parameter_count
from lora_np.exercises.rank import (
    PLACEMENTS,
    bill,
    check_largest_rank,
    check_optimizer_bytes,
    check_paired_interval,
    fastest_steps,
    outcome,
)
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.optimization import TrainingConfig
from lora_np.paper.intervals import Interval
from lora_np.parameters import count, parameters
from lora_np.tasks import collate, encode, generate
from lora_np.tokenizers import ByteTokenizer

MEDIUM, GPT3 = SHAPES["gpt2-medium"], SHAPES["gpt3"]
FIRST, SECOND = [3.07, 3.03, 3.05], [2.93, 2.84, 2.89]
DIFFERENCES = np.subtract(FIRST, SECOND)
MEAN, DEVIATION = DIFFERENCES.mean(), DIFFERENCES.std(ddof=1)
HALF = 4.303 * DEVIATION / np.sqrt(3)


def small_base() -> Any:
    return model(dtype=np.float32, vocab=256, context=200)


def rejects(hint: str, check: Callable[..., None], *arguments: Any, **settings: Any) -> None:
    with pytest.raises(AssertionError, match=re.escape(hint)):
        check(*arguments, **settings)


# ------------------------------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_bill_is_counted_and_equal_to_the_closed_form(placement: str) -> None:
    lora = LoraConfig(rank=2, targets=PLACEMENTS[placement])
    counted = bill(small_base(), lora)
    trained = count(lora.trained(adapt(small_base(), lora, np.random.default_rng(0))))
    assert counted.trained == trained
    assert counted.optimizer_bytes == optimizer_bytes(trained)
    assert 4 * trained < counted.file_bytes < 4 * trained + 4096


def test_the_placements_are_what_the_closed_forms_know() -> None:
    assert [lora_count(SHAPES["base"], 1, targets) for targets in PLACEMENTS.values()] == [
        1536,
        1536,
        3072,
        6144,
        13824,
    ]


def test_an_outcome_is_a_training_that_is_scored_and_counted() -> None:
    base, lora = small_base(), LoraConfig(rank=2, targets=PLACEMENTS["v"])
    sequences = encode(generate(12, np.random.default_rng(0)), ByteTokenizer(), config(context=200).context)
    settings = TrainingConfig(steps=3, learning_rate=1e-1, warmup=1, seed=4)
    one, same = (outcome(base, lora, settings, sequences[2:], sequences[:2]) for _ in range(2))
    assert (one.placement, one.rank, one.seed) == ("v", 2, 4)
    assert one.bill == bill(base, lora)
    assert one.held_out == same.held_out < Text(sequences[:2], ByteTokenizer()).bits_per_byte(base)


def test_an_outcome_of_another_placement_is_named_by_its_targets() -> None:
    sequences = encode(generate(4, np.random.default_rng(0)), ByteTokenizer(), 200)
    lora = LoraConfig(rank=1, targets=("mlp.up", "mlp.down"))
    found = outcome(small_base(), lora, TrainingConfig(steps=1, warmup=0), sequences, sequences)
    assert found.placement == "mlp.up + mlp.down"


def test_the_fastest_step_of_every_way_is_timed() -> None:
    base = small_base()
    batch = collate(encode(generate(4, np.random.default_rng(0)), ByteTokenizer(), 200), ByteTokenizer().end)
    ways = {"full": None, "small": LoraConfig(rank=1), ("qkvo", 2): LoraConfig(rank=2, targets="qkvo")}
    before = hashes(parameters(base))
    seconds = fastest_steps(base, ways, batch, turns=2)
    assert list(seconds) == list(ways)
    assert all(taken > 0 for taken in seconds.values())
    assert hashes(parameters(base)) == before


def test_an_interval_is_students() -> None:
    interval = Interval.of([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.303 / 3**0.5)
    assert interval.covers_zero
    assert not Interval.of([5.0, 5.1, 5.2]).covers_zero
    assert str(Interval(-0.5, 0.25)) == "-0.500 ± 0.250"


@pytest.mark.parametrize("n", [0, 1, 11])
def test_an_interval_of_too_few_or_too_many_values_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="2 to 10 values"):
        Interval.of([1.0] * n)


# ------------------------------------------------------------------------------------------------------- the checks


def test_the_largest_rank(capsys: pytest.CaptureFixture[str]) -> None:
    check_largest_rank(6, MEDIUM, "attention+mlp", 3_000_000)
    assert capsys.readouterr().out == "Right: rank 6 trains 2,654,208 numbers, and rank 7 would train 3,096,576.\n"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (7, "more than 3,000,000"),
        (5, "still fits into 3,000,000"),
        (162, "fits one layer; all 24 layers"),
        (0, "at least 1"),
        (6.78, "whole number"),
    ],
)
def test_a_wrong_largest_rank_is_named(answer: Any, hint: str) -> None:
    rejects(hint, check_largest_rank, answer, MEDIUM, "attention+mlp", 3_000_000)


def test_the_bytes_of_the_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    check_optimizer_bytes(150_994_944, GPT3, 4, "qv")
    assert capsys.readouterr().out.startswith("Right: 150,994,944 bytes")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (18_874_368, "each moment has bytes"),
        (2 * 18_874_368, "a float32 has 4 bytes"),
        (4 * 18_874_368, "that is one moment"),
        (12 * 18_874_368, "includes the value itself"),
        (16 * 18_874_368, "value, gradient and both moments"),
        (8 * parameter_count(GPT3), "a frozen number has no moments"),
        (1, "count the trained numbers first"),
    ],
)
def test_wrong_bytes_of_the_optimizer_are_named(answer: int, hint: str) -> None:
    rejects(hint, check_optimizer_bytes, answer, GPT3, 4, "qv")


def test_the_paired_interval(capsys: pytest.CaptureFixture[str]) -> None:
    check_paired_interval((MEAN, HALF), FIRST, SECOND)
    check_paired_interval([MEAN, HALF], FIRST, SECOND)
    assert capsys.readouterr().out == 2 * "Right: +0.163 ± 0.063, which does not cover zero.\n"
    check_paired_interval((0.0, 4.303 * 1.0 / 3**0.5), [1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert "cannot tell the two apart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (0.163, "is a pair"),
        ((-MEAN, HALF), "it is first − second"),
        ((0.2, HALF), "mean of the differences is not 0.2"),
        ((MEAN, 4.303 * DEVIATION), "over √n, here n = 3"),
        ((MEAN, DEVIATION / 3**0.5), "that is the standard error"),
        ((MEAN, 1.96 * DEVIATION / 3**0.5), "1.96 is for many values"),
        ((MEAN, 4.303 * statistics.pstdev(DIFFERENCES) / 3**0.5), "n − 1 (ddof=1)"),
        (
            (MEAN, 4.303 * np.sqrt((np.var(FIRST, ddof=1) + np.var(SECOND, ddof=1)) / 3)),
            "pair them by seed",
        ),
        ((MEAN, 1.0), "t · stdev(differences) / √n"),
    ],
)
def test_a_wrong_interval_is_named(answer: Any, hint: str) -> None:
    rejects(hint, check_paired_interval, answer, FIRST, SECOND)


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (check_largest_rank, (MEDIUM, "attention+mlp", 3_000_000)),
        (check_optimizer_bytes, (GPT3, 4, "qv")),
        (check_paired_interval, (FIRST, SECOND)),
    ],
)
def test_the_placeholder_prints_the_task(
    check: Callable[..., None], arguments: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    check(..., *arguments)
    assert capsys.readouterr().out.startswith("Exercise: ")
