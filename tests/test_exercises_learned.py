"""Tutorial 09: adapters are those of the study, and each check names the mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import model

from lora_np.exercises.learned import (
    agreement,
    check_amplification,
    check_chance,
    check_other_cut,
    check_similarity,
    held_out,
    reading_only,
    trained,
)
from lora_np.lora import LoraLinear, adapters, delta
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.model import Linear
from lora_np.paper.subspaces import of_factors, of_updates, orthonormal
from lora_np.parameters import parameters, with_parameters

RNG = np.random.default_rng(0)
RANK, D_IN, D_OUT = 3, 9, 8
MODULE = LoraLinear(
    Linear(RNG.standard_normal((D_OUT, D_IN))),
    RNG.standard_normal((RANK, D_IN)),
    RNG.standard_normal((D_OUT, RANK)),
    2.0,
)
U, SIGMA, V_T = np.linalg.svd(delta(MODULE))
U, SIGMA, V = U[:, :RANK], SIGMA[:RANK], V_T[:RANK].T
OWN = float(np.linalg.norm(U.T @ MODULE.base.W @ V))
UPDATE, WEIGHT = float(np.linalg.norm(SIGMA)), float(np.linalg.norm(MODULE.base.W))
LEFT_OF_A = np.linalg.svd(MODULE.A)[0]
LAST_FIRST = LEFT_OF_A @ np.diag([1.0, 1.0, 1e6]) @ LEFT_OF_A.T


def rejects(hint: str, check: Callable[..., None], *arguments: Any) -> None:
    with pytest.raises(AssertionError, match=re.escape(hint)):
        check(*arguments)


# ------------------------------------------------------------------------------------------------- what is looked into


def test_a_run_is_a_function_of_its_seed_and_is_scored_on_what_none_has_seen() -> None:
    base = model(dtype=np.float32, vocab=256, context=200)
    one, same, other = (trained(base, LoraConfig(rank=2), 0.1, seed, steps=2) for seed in (0, 0, 1))
    assert one.score == same.score != other.score
    assert held_out(base).bits_per_byte(one.model) == one.score < held_out(base).bits_per_byte(base)
    found = agreement(adapters(one.model), adapters(same.model), 1)
    assert found == pytest.approx({"A": 1.0, "reads": 1.0, "writes": 1.0})


def test_an_agreement_is_the_mean_of_phi_over_the_maps() -> None:
    def drawn() -> dict[str, LoraLinear]:
        A, B = ([RNG.standard_normal(shape) for _ in "ab"] for shape in ((RANK, D_IN), (D_OUT, RANK)))
        return {path: LoraLinear(MODULE.base, A[i], B[i], 1.0) for i, path in enumerate("ab")}

    first, second = drawn(), drawn()
    sides = [of_updates((first[p].B, first[p].A), (second[p].B, second[p].A)) for p in "ab"]
    of_A = [of_factors(first[p].A, second[p].A).values[1, 1] for p in "ab"]
    assert agreement(first, second, 2) == pytest.approx(
        {
            "A": np.mean(of_A),
            "reads": np.mean([side.right.values[1, 1] for side in sides]),
            "writes": np.mean([side.left.values[1, 1] for side in sides]),
        }
    )


def test_an_update_that_reads_some_directions_only_keeps_its_share_and_the_rest_is_left_alone() -> None:
    node, rng = model(), np.random.default_rng(1)
    node = adapt(node, LoraConfig(rank=2), rng)
    moved = {name: rng.standard_normal(B.shape) for name, B in parameters(node, "*.B").items()}
    node, Q = with_parameters(node, moved), orthonormal(rng, 8, 8)
    halves = [reading_only(node, dict.fromkeys(adapters(node), part)) for part in (Q[:, :5], Q[:, 5:])]
    assert sum(share for _, share in halves) == pytest.approx(1.0)
    for path, module in adapters(node).items():
        parts = [delta(adapters(half)[path]) for half, _ in halves]
        assert abs(parts[0] @ Q[:, 5:]).max() < 1e-12
        np.testing.assert_allclose(sum(parts), delta(module), atol=1e-12)


# ------------------------------------------------------------------------------------------------------- the checks


def test_the_chance_level(capsys: pytest.CaptureFixture[str]) -> None:
    check_chance(16 / 768, 4, 16, 768)
    assert capsys.readouterr().out.startswith("Right: 0.02083")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (0.0, "nearly orthogonal, one to one"),
        (4 / 768, "the larger of i and j"),
        (4 * 16 / 768, "φ divides by min(i, j)"),
        (4 * 16 / 768**2, "one d too many"),
        (1 / 768, "one direction beside one other"),
        ((16 / 768) ** 0.5, "do not take the root"),
        (0.5, "E‖UᵀV‖² is ij/d"),
        ("a little", "one number, got 'a little'"),
        (None, "one number"),
        ([1, 2], "an array of shape (2,)"),
        (float("nan"), "a finite one"),
    ],
)
def test_a_wrong_chance_level_is_told_why(wrong: Any, hint: str) -> None:
    rejects(hint, check_chance, wrong, 4, 16, 768)


def test_a_similarity_is_accepted_however_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    check_similarity(lambda U, V: np.sum((U.T @ V) ** 2) / min(U.shape[1], V.shape[1]))
    check_similarity(lambda U, V: np.mean(np.linalg.svd(U.T @ V, compute_uv=False) ** 2))
    assert capsys.readouterr().out.count("Right:") == 2


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda U, V: np.sum((U.T @ V) ** 2), "divide by min(i, j)"),
        (lambda U, V: np.sum((U.T @ V) ** 2) / max(U.shape[1], V.shape[1]), "by the smaller of i and j"),
        (lambda U, V: np.mean((U.T @ V) ** 2), "not by the number of entries"),
        (lambda U, V: np.linalg.norm(U.T @ V) / min(U.shape[1], V.shape[1]), "a mean of squared cosines"),
        (lambda U, V: np.linalg.norm(U.T @ V), "and divided by min(i, j)"),
        (lambda U, V: np.mean(np.linalg.svd(U.T @ V)[1]), "the mean of their squares"),
        (lambda U, V: np.linalg.svd(U.T @ V)[1][0] ** 2, "the closest pair"),
        (lambda U, V: np.sum(U.T @ V) / min(U.shape[1], V.shape[1]), "which cancel"),
        (lambda U, V: 0.5, "for i = 2 and j = 5 it is"),
        (lambda U, V: U.T @ V, "must give one number for 2 and 5 columns, got an array of shape (2, 5)"),
        (lambda U, V: None, "must give one number"),
        (lambda U, V: "much", "got 'much'"),
        (0.5, "a function of (U, V), got 0.5"),
    ],
)
def test_a_wrong_similarity_is_told_why(wrong: Any, hint: str) -> None:
    rejects(hint, check_similarity, wrong)


def test_the_amplification_factor(capsys: pytest.CaptureFixture[str]) -> None:
    check_amplification(UPDATE / OWN, MODULE)
    assert capsys.readouterr().out.startswith(f"Right: {UPDATE / OWN:.4g}, where random directions would have ")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (UPDATE / OWN / 2.0, "the factor of BA; the update is s·BA, with s = 2"),
        (OWN / UPDATE, "the inverse"),
        (UPDATE / WEIGHT, "that is ‖ΔW‖/‖W‖"),
        (WEIGHT / UPDATE, "upside down"),
        (UPDATE / (RANK / (D_IN * D_OUT) ** 0.5 * WEIGHT), "the factor of random directions"),
        (UPDATE / np.linalg.norm(np.linalg.svd(MODULE.base.W)[1][:RANK]), "W does in its own first directions"),
        (UPDATE / abs(U[:, 0] @ MODULE.base.W @ V[:, 0]), "take all r of them"),
        (OWN, "that is ‖UᵀWV‖ alone"),
        (UPDATE, "that is ‖ΔW‖ alone"),
        (UPDATE / np.linalg.norm(U.T @ delta(MODULE) @ V), "W is what stands between"),
        (-3.0, "singular vectors of `delta(module)`"),
        (U, "one number, got an array"),
        ({}, "one number"),
    ],
)
def test_a_wrong_amplification_is_told_why(wrong: Any, hint: str) -> None:
    rejects(hint, check_amplification, wrong, MODULE)


def test_another_cut_of_the_same_update(capsys: pytest.CaptureFixture[str]) -> None:
    check_other_cut(LAST_FIRST, MODULE)
    check_other_cut((LAST_FIRST * 3.0).tolist(), MODULE)
    assert capsys.readouterr().out.count("The update is the same.") == 2


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (np.eye(RANK), "GᵀG is a multiple of I"),
        (5.0 * LEFT_OF_A, "GᵀG is a multiple of I"),
        (np.diag([1.0, 2.0, 3.0]), "φ(1, 1) of A and GA is"),
        (np.zeros((RANK, RANK)), "G must be invertible"),
        (np.ones((RANK, RANK)), "G must be invertible"),
        (np.eye(2), "shape (3, 3), got (2, 2)"),
        (MODULE.A, "shape (3, 3), got (3, 9)"),
        (np.full((RANK, RANK), np.nan), "finite numbers"),
        ("G", "an array of shape (3, 3), got 'G'"),
        ([[1, 2], [3]], "an array of shape (3, 3)"),
    ],
)
def test_a_cut_that_is_none_is_told_why(wrong: Any, hint: str) -> None:
    rejects(hint, check_other_cut, wrong, MODULE)


@pytest.mark.parametrize(
    ("check", "about"),
    [
        (check_chance, (4, 16, 768)),
        (check_similarity, ()),
        (check_amplification, (MODULE,)),
        (check_other_cut, (MODULE,)),
    ],
)
def test_a_placeholder_is_told_its_task(
    check: Callable[..., None], about: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    check(..., *about)
    assert capsys.readouterr().out.startswith("Exercise: ")
