"""The laws of `paper.updates`: sizes, energies, cosines and new directions, each against its null hypothesis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from builders import assert_agree
from test_subspaces import SURE, factors, gauge

from lora_np.paper.ledger import ledger
from lora_np.paper.subspaces import orthonormal
from lora_np.paper.updates import Amplification, Energy, amplification, correlation, energy, intruders

W = np.random.default_rng(7).standard_normal((10, 8)) * np.linspace(0.2, 3.0, 8)


# amplification


def test_the_norms_of_table_7_are_those_of_the_products() -> None:
    B, A = factors(0)
    found, update = amplification(W, B, A, 0.7), 0.7 * B @ A
    U, _, V = np.linalg.svd(update)
    assert_agree(found.update, np.linalg.norm(update))
    assert_agree(found.weight, np.linalg.norm(W))
    assert_agree(found.own, np.linalg.norm(U[:, :3].T @ W @ V[:3].T))
    u, _, v = np.linalg.svd(W)
    assert_agree(found.top, np.linalg.norm(u[:, :3].T @ W @ v[:3].T))
    assert found.own <= found.top <= found.weight
    assert found.own / np.linalg.norm(U[:, :3].T @ W @ U[:8, :3]) != pytest.approx(
        1.0, rel=1e-3
    )  # left for right shows


def test_the_factor_of_an_update_that_repeats_the_weight_is_what_it_repeats_it_by() -> None:
    U, sigma, V = np.linalg.svd(W, full_matrices=False)
    found = amplification(W, U[:, :2] * sigma[:2], V[:2], 5.0)
    assert_agree(found.factor, 5.0)
    assert_agree(found.own, found.top)


def test_the_scale_moves_the_update_and_not_its_directions() -> None:
    B, A = factors(0)
    once, twice = amplification(W, B, A, 1.0), amplification(W, B, A, 2.0)
    assert_agree(twice.factor, 2.0 * once.factor)
    assert_agree(twice.own, once.own)
    assert_agree(twice.chance, 2.0 * once.chance)


def test_the_factor_is_the_same_however_the_update_is_cut() -> None:
    B, A = factors(0)
    assert_agree(amplification(W, *gauge(B, A), 1.0).factor, amplification(W, B, A, 1.0).factor)


def test_the_random_column_is_the_mean_of_random_directions() -> None:
    rng, r = np.random.default_rng(0), 3
    squares = [
        np.linalg.norm(orthonormal(rng, 10, r).T @ W @ orthonormal(rng, 8, r)) ** 2 for _ in range(1000)
    ]  # fmt: skip
    error = np.std(squares) / math.sqrt(len(squares))
    random = amplification(W, *factors(0), 1.0).random
    assert abs(np.mean(squares) - random**2) < SURE * error
    for wrong in (np.linalg.norm(W) * r / 8, np.linalg.norm(W) * math.sqrt(r / 10), np.linalg.norm(W) * r / 10):
        assert abs(np.mean(squares) - wrong**2) > SURE * error  # planted: one width alone, or the root


def test_the_paper_s_own_factor_lies_below_that_of_random_directions() -> None:
    """21.6 is no sign of structure by its size: random directions would give 340. That 0.32 > 0.02 is one."""
    rows = {entry.row: float(entry.value) for entry in ledger() if entry.place == "Table 7"}
    found = Amplification(6.91, 61.95, 0.32, 21.67, rows["random directions, r = 4"])
    assert found.factor == pytest.approx(21.6, abs=0.05)
    assert found.chance == pytest.approx(rows["amplification by chance, r = 4"])
    assert found.chance > 15 * found.factor
    assert found.own > 15 * found.random


def test_a_weight_that_does_nothing_there_is_amplified_without_end() -> None:
    E = np.eye(4)
    found = amplification(E[:, :2] @ E[:2], E[:, 2:], E[2:], 1.0)
    assert found.factor == math.inf
    assert found.own == 0.0


# energy


def test_the_energy_of_rank_r_is_all_held_by_r_directions() -> None:
    B, A = factors(0)
    found = energy(B @ A, np.random.default_rng(0))
    assert found.kept.shape == found.chance.shape == (8,)
    assert found.kept[-1] == 1.0
    assert (np.diff(found.kept) >= 0).all()
    assert found.kept[1] < 1.0 - 1e-6
    assert found.rank(1.0 - 1e-9) == 3  # not 2, not 4
    assert found.chance_rank(1.0 - 1e-9) == 8


def test_the_energy_is_that_of_the_best_approximation() -> None:
    M = factors(0)[0] @ factors(0)[1] + 0.3 * W
    U, sigma, V = np.linalg.svd(M, full_matrices=False)
    found = energy(M, np.random.default_rng(0))
    for r in range(1, 9):
        rest = np.linalg.norm(M - (U[:, :r] * sigma[:r]) @ V[:r]) ** 2 / np.linalg.norm(M) ** 2
        assert_agree(found.kept[r - 1], 1.0 - rest)


def test_a_matrix_without_structure_has_the_energy_of_chance() -> None:
    """Contrast: the same matrix plus one strong direction has more."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((40, 30))
    found = energy(noise, rng, draws=30)
    many = [energy(rng.permutation(noise.ravel()).reshape(noise.shape), rng, draws=1).kept for _ in range(60)]
    assert (np.abs(found.kept - found.chance) <= SURE * np.std(many, axis=0) * math.sqrt(1 + 1 / 30) + 1e-12).all()
    strong = energy(noise + 3.0 * np.outer(rng.standard_normal(40), rng.standard_normal(30)), rng)
    assert strong.kept[0] > 3 * strong.chance[0]


def test_a_share_is_reached_exactly_where_it_is_reached() -> None:
    found = Energy(np.array([0.5, 0.75, 1.0]), np.array([0.4, 0.7, 1.0]))
    assert [found.rank(share) for share in (0.5, 0.51, 0.75, 0.76, 1.0)] == [1, 2, 2, 3, 3]
    assert found.chance_rank(0.5) == 2


# correlation


def test_the_cosine_is_that_of_the_products() -> None:
    updates = {name: factors(seed) for seed, name in enumerate("qkv")}
    found = correlation(updates)
    flat = [(B @ A).ravel() for B, A in updates.values()]
    expected = [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in flat] for x in flat]
    assert found.paths == ("q", "k", "v")
    assert_agree(found.cosine, np.array(expected))
    assert_agree(np.diag(found.cosine), np.ones(3))
    assert_agree(correlation({**updates, "q": gauge(*updates["q"])}).cosine, found.cosine)


def test_opposite_updates_have_cosine_minus_one() -> None:
    B, A = factors(0)
    assert_agree(correlation({"one": (B, A), "other": (-2.0 * B, A)}).cosine[0, 1], -1.0)


@pytest.mark.parametrize("r", [1, 3])
def test_the_spread_of_the_cosine_is_that_of_turned_updates_of_any_rank(r: int) -> None:
    rng, one = np.random.default_rng(0), factors(0, r=r)
    cosines = []
    for _ in range(500):
        B, A = factors(1, r=r)
        turned = orthonormal(rng, 10, 10) @ B, A @ orthonormal(rng, 8, 8)
        cosines.append(correlation({"one": one, "turned": turned}).cosine[0, 1])
    squares = np.square(cosines)
    error = squares.std() / math.sqrt(len(squares))
    spread = correlation({"one": one}).spread
    assert abs(np.mean(cosines)) < SURE * spread / math.sqrt(len(cosines))
    assert abs(squares.mean() - spread**2) < SURE * error
    assert abs(squares.mean() - 1 / 10) > SURE * error  # planted: the root of one width alone


# intruders


def diagonal(n: int = 12) -> np.ndarray:
    return np.diag(np.linspace(2.0, 1.0, n))


def test_a_weight_that_only_grows_has_no_intruders() -> None:
    found = intruders(diagonal(), 1.7 * diagonal(), np.random.default_rng(0), k=5)
    assert found.count == 0
    assert_agree(found.cosines, np.ones(5))


def test_one_new_strong_direction_is_one_intruder_on_the_left_only() -> None:
    """u is as far as it can be from every old left direction, v is one of the old right ones."""
    n = 12
    u, v = np.ones(n) / math.sqrt(n), np.eye(n)[0]
    after = diagonal() + 50.0 * np.outer(u, v)
    found = intruders(diagonal(), after, np.random.default_rng(0), k=4)
    assert found.count == 1
    assert found.cosines[0] < 0.5 < found.cosines[1:].min()
    turned = intruders(diagonal().T, after.T, np.random.default_rng(0), k=4)
    assert turned.count == 0  # planted: right singular vectors for left ones do not see it


def test_the_threshold_decides() -> None:
    after = diagonal() + 0.8 * np.random.default_rng(1).standard_normal((12, 12))
    found = intruders(diagonal(), after, np.random.default_rng(0), k=12, threshold=1.0)
    assert found.count == 12
    least = float(found.cosines.min())
    assert replace(found, threshold=least).count == 0  # "below", not "at most"
    assert replace(found, threshold=math.nextafter(least, 2.0)).count == 1


def test_by_chance_a_small_update_brings_none_and_a_large_one_many() -> None:
    """The Gaussian has the norm of the update: whether it brings any is decided by that."""
    rng, direction = np.random.default_rng(0), np.random.default_rng(1).standard_normal((40, 40))
    small = intruders(diagonal(40), diagonal(40) + 1e-4 * direction, rng, k=6, draws=3)
    large = intruders(diagonal(40), diagonal(40) + 1e3 * direction, rng, k=6, draws=3)
    assert small.count == small.chance == small.rotated == 0
    assert min(large.count, large.chance, large.rotated) > 3


def test_a_gaussian_update_has_as_many_intruders_as_chance_says() -> None:
    rng = np.random.default_rng(0)
    counts, chances = [], []
    for _ in range(40):
        found = intruders(diagonal(), diagonal() + 0.6 * rng.standard_normal((12, 12)), rng, k=12, draws=4)
        counts.append(found.count)
        chances.append(found.chance)
    gaps = np.subtract(counts, chances)
    assert np.mean(chances) > 0.5
    assert abs(gaps.mean()) < SURE * gaps.std() / math.sqrt(len(gaps))


def test_a_low_rank_update_brings_more_than_a_gaussian_of_its_norm() -> None:
    """And as many as itself, turned: it is its spectrum that does it, not where it points."""
    rng, n = np.random.default_rng(0), 40
    u, v = (orthonormal(rng, n, 1) for _ in "uv")
    weight = 30.0 * np.diag(0.5 ** np.arange(n))
    found = intruders(weight, weight + 20.0 * u @ v.T, rng, k=2, draws=5)
    assert found.count == 1
    assert found.rotated > 0.5
    assert found.chance == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda rng: amplification(np.ones((3, 4)), *factors(0), 1.0), "W must be"),
        (lambda rng: amplification(np.zeros((10, 8)), *factors(0), 1.0), "the weight is zero"),
        (lambda rng: amplification(W, np.zeros((10, 3)), factors(0)[1], 1.0), "no directions"),
        (lambda rng: energy(np.zeros((3, 3)), rng), "not zero"),
        (lambda rng: energy(np.ones(3), rng), "not zero"),
        (lambda rng: Energy(np.ones(2), np.ones(2)).rank(0.0), r"\(0, 1\], got 0"),
        (lambda rng: Energy(np.ones(2), np.ones(2)).rank(1.1), r"\(0, 1\], got 1.1"),
        (lambda rng: correlation({}), "got none"),
        (lambda rng: correlation({"a": factors(0), "b": factors(0, d_in=7)}), "one shape"),
        (lambda rng: correlation({"a": (np.zeros((10, 3)), factors(0)[1])}), "update of a is zero"),
        (lambda rng: intruders(W, W[:5], rng), "one shape"),
        (lambda rng: intruders(W, W, rng, k=9), "1..8"),
        (lambda rng: intruders(W, W, rng, k=0), "1..8"),
        (lambda rng: intruders(W, W, rng, k=2, threshold=0.0), "threshold"),
    ],
)
def test_what_cannot_be_measured_is_refused(make: Callable[..., object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(np.random.default_rng(0))
