"""The checks of tutorial 01: silent about nothing, right about right answers, and precise about wrong ones."""

from typing import Any

import numpy as np
import pytest

from lora_np.exercises.low_rank import check_cheaper_ranks, check_factors, check_rank_for_energy

rng = np.random.default_rng(0)
UPDATE = rng.standard_normal((9, 7)) * np.array([9.0, 5.0, 3.0, 1.0, 0.5, 0.2, 0.1])
U, SIGMA, V_T = np.linalg.svd(UPDATE, full_matrices=False)
FEW = np.array([4.0, 2.0, 2.0, 1.0])  # energy 16, 20, 24, 25 of 25: 64 %, 80 %, 96 %, 100 %


def test_the_largest_cheaper_rank_is_accepted(capsys: Any) -> None:
    check_cheaper_ranks(153, 192, 768)
    check_cheaper_ranks(95, 192, 192)  # 96 would be as large as the matrix
    assert capsys.readouterr().out.count("Right:") == 2


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (192, "which is the largest that saves"),
        (154, "not fewer"),
        (100, "so does 101"),
        (0, "at least 1"),
        (96.5, "whole"),
    ],
)
def test_a_wrong_cheaper_rank_is_explained(answer: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_cheaper_ranks(answer, 192, 768)


def test_a_rank_that_costs_as_much_is_not_cheaper() -> None:
    with pytest.raises(AssertionError, match="not fewer"):
        check_cheaper_ranks(96, 192, 192)


def test_the_smallest_rank_that_keeps_the_energy_is_accepted(capsys: Any) -> None:
    check_rank_for_energy(3, FEW, 0.9)
    check_rank_for_energy(np.int64(4), FEW, 0.99)
    assert capsys.readouterr().out.count("Right:") == 2


@pytest.mark.parametrize(
    ("answer", "share", "hint"),
    [
        (2, 0.6, "sum of their squares"),  # what the σ themselves would need
        (2, 0.9, "NumPy counts from 0"),
        (1, 0.9, "keeps only 64.00%"),
        (4, 0.7, "a smaller rank already keeps"),
        (5, 0.9, "lies in 1..4"),
        ("3", 0.9, "whole number"),
    ],
)
def test_a_wrong_rank_for_the_energy_is_explained(answer: Any, share: float, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_rank_for_energy(answer, FEW, share)


def test_the_best_factors_are_accepted_wherever_sigma_goes(capsys: Any) -> None:
    root = np.sqrt(SIGMA[:3])
    check_factors(V_T[:3], U[:, :3] * SIGMA[:3], UPDATE, 3)
    check_factors(SIGMA[:3, None] * V_T[:3], U[:, :3], UPDATE, 3)
    check_factors(root[:, None] * V_T[:3], U[:, :3] * root, UPDATE.astype(np.float32), 3)
    assert capsys.readouterr().out.count("Right:") == 3


@pytest.mark.parametrize(
    ("A", "B", "hint"),
    [
        (U[:, :3] * SIGMA[:3], V_T[:3], "exchanged"),
        (V_T[:3].T, U[:, :3], "transposed"),
        (V_T[:3], U[:, :3], "singular values are missing"),
        (SIGMA[:3, None] * V_T[:3], U[:, :3] * SIGMA[:3], "twice"),
        (V_T[-3:], U[:, -3:] * SIGMA[-3:], "smallest singular values"),
        (V_T[1:4], U[:, 1:4] * SIGMA[1:4], "keep the first columns"),
    ],
)
def test_wrong_factors_are_explained(A: Any, B: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_factors(A, B, UPDATE, 3)


def test_a_placeholder_is_told_the_task(capsys: Any) -> None:
    check_cheaper_ranks(..., 192, 768)
    check_rank_for_energy(..., FEW, 0.9)
    check_factors(..., ..., UPDATE, 3)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["Exercise"] * 3
