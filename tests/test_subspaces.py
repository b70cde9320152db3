"""The laws of `paper.subspaces`: φ keeps its bounds and invariances, and by chance it is what its formula says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from builders import assert_agree, few_shapes
from hypothesis import given
from hypothesis import strategies as st

from lora_np.engine.arrays import Array
from lora_np.paper.subspaces import (
    Similarity,
    across,
    directions,
    of_factors,
    of_updates,
    of_weight,
    orthonormal,
    similarity,
    update_directions,
)

SURE = 6.0  # standard errors: below 2e-9 for a normal variable, so that a hundred of them still hold

Phi = Callable[[Array, Array], Array]


def phi(U: Array, V: Array) -> Array:
    return similarity(U, V).values


def by_definition(U: Array, V: Array) -> Array:
    """Equation 4 of the paper, cell by cell, by singular values: the mean of p squared cosines of principal angles."""
    found = np.zeros((U.shape[1], V.shape[1]))
    for i in range(1, U.shape[1] + 1):
        for j in range(1, V.shape[1] + 1):
            cosines = np.linalg.svd(U[:, :i].T @ V[:, :j], compute_uv=False)
            found[i - 1, j - 1] = np.sum(cosines**2) / min(i, j)
    return found


def frames(seed: int, d: int = 9, i: int = 4, j: int = 5) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return orthonormal(rng, d, i), orthonormal(rng, d, j)


def check_laws(of: Phi) -> None:
    """Raise AssertionError unless this is a similarity of subspaces; faults are held against it below."""
    (U, V), rng = frames(0), np.random.default_rng(1)
    values = of(U, V)
    assert values.shape == (4, 5)
    assert (values >= 0.0).all()
    assert (values <= 1.0 + 1e-12).all()
    assert_agree(np.diag(of(U, U)), np.ones(4), "equal subspaces")
    assert_agree(of(V, U), values.T, "symmetric")
    R = orthonormal(rng, 9, 9)
    assert_agree(of(R @ U, R @ V), values, "in another frame")
    assert_agree(of(U * [1, -1, 1, -1], V), values, "singular vectors have no sign")
    E = np.eye(9)
    assert_agree(of(E[:, :4], E[:, 4:]), np.zeros((4, 5)), "orthogonal subspaces")
    nested = of(E[:, :3], E[:, :5])
    for i in range(3):
        assert_agree(nested[i, i:], np.ones(5 - i), "contained in the other")
        assert_agree(nested[i, :i], np.ones(i), "contains the other")
    one_shared = of(E[:, :3], E[:, [2, 5, 0]])
    assert_agree(one_shared, np.array([[0, 0, 1], [0, 0, 1 / 2], [1, 1 / 2, 2 / 3]]), "counted by hand")


def test_the_laws_of_a_similarity() -> None:
    check_laws(phi)
    check_laws(by_definition)


FAULTS: dict[str, Phi] = {
    "not normalised": lambda U, V: np.cumsum(np.cumsum((U.T @ V) ** 2, 0), 1),
    "divided by the larger": lambda U, V: _over(U, V, np.maximum),
    "divided by the product": lambda U, V: _over(U, V, np.multiply),
    "the norm, not its square": lambda U, V: np.sqrt(by_definition(U, V)),
    "entries, not their squares": lambda U, V: _over(U, V, np.minimum, power=1),
    "i one too small": lambda U, V: by_definition(np.roll(U, 1, axis=1), V),
    "j one too large": lambda U, V: by_definition(U, np.roll(V, -1, axis=1)),
    "only the last direction": lambda U, V: (U.T @ V) ** 2,
}


def _over(U: Array, V: Array, by: Callable[..., Array], power: int = 2) -> Array:
    i, j = np.arange(1, U.shape[1] + 1)[:, None], np.arange(1, V.shape[1] + 1)[None, :]
    return np.cumsum(np.cumsum((U.T @ V) ** power, 0), 1) / by(i, j)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_breaks_a_law(fault: str) -> None:
    with pytest.raises(AssertionError):
        check_laws(FAULTS[fault])


@few_shapes
@given(st.integers(1, 8), st.integers(1, 8), st.integers(8, 12), st.integers(0, 99))
def test_phi_is_the_definition_at_every_i_and_j(i: int, j: int, d: int, seed: int) -> None:
    U, V = frames(seed, d, i, j)
    assert_agree(phi(U, V), by_definition(U, V))


# by chance


def draws(d: int, i: int, j: int, number: int = 2000) -> Array:
    """φ between a fixed and a random subspace, many times: (number, i, j)."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((number, d, j)))[0]
    shared = np.cumsum(np.cumsum(Q[:, :i] ** 2, axis=1), axis=2)  # the fixed one is spanned by the first i axes
    return shared / np.minimum.outer(np.arange(1, i + 1), np.arange(1, j + 1))


def check_chance(chance: Array, spread: Array, drawn: Array) -> None:
    """Raise AssertionError unless mean and standard deviation of the draws are these, within their own errors."""
    n = len(drawn)
    error = drawn.std(axis=0) / math.sqrt(n)
    assert (np.abs(drawn.mean(axis=0) - chance) <= SURE * error + 1e-12).all()
    variance = drawn.var(axis=0)
    fourth = ((drawn - drawn.mean(axis=0)) ** 4).mean(axis=0)
    of_variance = np.sqrt(np.maximum(fourth - variance**2, 0.0) / n)
    assert (np.abs(variance - spread**2) <= SURE * of_variance + 1e-12).all()


@pytest.mark.parametrize(("d", "i", "j"), [(7, 3, 7), (12, 5, 4), (2, 2, 2), (40, 8, 16)])
def test_mean_and_spread_by_chance_are_those_of_random_subspaces(d: int, i: int, j: int) -> None:
    by_chance = Similarity(np.zeros((i, j)), d)
    check_chance(by_chance.chance, by_chance.spread, draws(d, i, j))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda i, j, d: np.minimum(i, j) / d,
        lambda i, j, d: i * j / d,
        lambda i, j, d: (np.maximum(i, j) + 1) / d,
        lambda i, j, d: np.maximum(i, j) / (d + 1),
        lambda i, j, d: np.maximum(i - 1, j) / d,
    ],
    ids=["the smaller", "not normalised", "one too many", "one dimension too many", "i one too small"],
)
def test_another_chance_level_is_found_out(wrong: Callable[..., Array]) -> None:
    d, i, j = 12, 5, 4
    right, drawn = Similarity(np.zeros((i, j)), d), draws(12, 5, 4)
    rows, columns = np.arange(1, i + 1)[:, None], np.arange(1, j + 1)[None, :]
    with pytest.raises(AssertionError):
        check_chance(wrong(rows, columns, d), right.spread, drawn)
    with pytest.raises(AssertionError):
        check_chance(right.chance, 1.3 * right.spread, drawn)


def test_the_whole_space_is_contained_by_chance_too() -> None:
    found = similarity(np.eye(5), orthonormal(np.random.default_rng(0), 5, 2))
    assert_agree(found.values[-1], found.chance[-1])
    assert found.spread[-1].tolist() == [0.0, 0.0]


def test_two_gaussian_matrices_are_alike_by_chance_only() -> None:
    """The right panel of figure 4."""
    rng = np.random.default_rng(0)
    found = of_factors(rng.standard_normal((6, 300)), rng.standard_normal((8, 300)))
    assert (np.abs(found.values - found.chance) <= SURE * found.spread).all()
    assert found.values.shape == (6, 8)


def test_figure_8_is_far_above_chance_though_it_barely_exceeds_a_fifth() -> None:
    d, i, j = 12288, 1229, 4
    found = Similarity(np.zeros((i, j)), d)
    assert found.chance[-1, -1] == pytest.approx(0.1, abs=1e-4)
    assert found.spread[-1, -1] == pytest.approx(0.0019, abs=1e-4)


def test_a_shared_direction_is_far_above_chance() -> None:
    """Contrast: what figure 3 looks for is seen, where it is there."""
    rng = np.random.default_rng(0)
    shared = 10.0 * np.outer(rng.standard_normal(4), rng.standard_normal(300))
    found = of_factors(*(shared[:4] + 0.05 * rng.standard_normal((4, 300)) for _ in range(2)))
    assert found.values[0, 0] > 0.9
    assert found.values[0, 0] - found.chance[0, 0] > 50 * found.spread[0, 0]


def test_random_columns_are_orthonormal_and_prefer_no_axis() -> None:
    rng = np.random.default_rng(0)
    many = np.array([orthonormal(rng, 4, 2) for _ in range(2000)])
    assert_agree(np.einsum("nik,nil->nkl", many, many), np.broadcast_to(np.eye(2), (2000, 2, 2)))
    assert (np.abs(many.mean(axis=0)) <= SURE * many.std(axis=0) / math.sqrt(2000)).all()  # and no sign


# what depends on the factors, and what does not


def gauge(B: Array, A: Array, seed: int = 0) -> tuple[Array, Array]:
    """B G⁻¹, G A for a random invertible G: the same update."""
    r = len(A)
    G = np.random.default_rng(seed).standard_normal((r, r)) + 2.0 * np.eye(r)
    return B @ np.linalg.inv(G), G @ A


def factors(seed: int, d_out: int = 10, r: int = 3, d_in: int = 8) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))


@few_shapes
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_the_directions_of_an_update_are_those_of_the_product(d_out: int, r: int, d_in: int, seed: int) -> None:
    B, A = factors(seed, d_out, r, d_in)
    thin, whole = update_directions(B, A, 0.7), directions(0.7 * B @ A)
    assert thin.sigma.shape == (min(r, d_out, d_in),)
    assert_agree(thin.sigma, whole.sigma)
    assert_agree((thin.left * thin.sigma) @ thin.right.T, 0.7 * B @ A)
    for columns in (thin.left, thin.right):
        assert_agree(columns.T @ columns, np.eye(len(thin.sigma)))


def test_what_stands_on_the_update_is_the_same_however_it_is_cut() -> None:
    one, other = factors(0), factors(1)
    plain, cut = of_updates(one, other), of_updates(gauge(*one), gauge(*other, seed=5))
    assert_agree(cut.left.values, plain.left.values)
    assert_agree(cut.right.values, plain.right.values)


def test_what_stands_on_A_is_the_same_for_the_whole_row_space_only() -> None:
    (_, A), (_, other) = factors(0), factors(1)
    plain, cut = of_factors(A, other), of_factors(gauge(*factors(0))[1], other)
    assert_agree(cut.values[-1, -1], plain.values[-1, -1])
    assert np.abs(cut.values - plain.values).max() > 0.01  # contrast


def test_left_and_right_change_places_with_the_transpose() -> None:
    (B, A), W = factors(0), np.random.default_rng(3).standard_normal((10, 8))
    plain, turned = of_weight(W, B, A), of_weight(W.T, A.T, B.T)
    assert plain.left.d == turned.right.d == 10
    assert_agree(plain.left.values, turned.right.values)
    assert_agree(plain.right.values, turned.left.values)
    assert np.abs(plain.left.values - plain.right.values).max() > 0.01  # taking one for the other shows


def test_an_update_made_of_the_largest_directions_of_a_weight_is_similar_to_it() -> None:
    W = np.random.default_rng(0).standard_normal((10, 8))
    U, sigma, right = np.linalg.svd(W, full_matrices=False)
    found = of_weight(W, U[:, :3] * sigma[:3], right[:3])
    for side in found:
        assert_agree(np.diag(side.values[:3]), np.ones(3))
    smallest = of_weight(W, U[:, -3:] * sigma[-3:], right[-3:])
    assert_agree(smallest.right.values[:3], np.zeros((3, 3)))


def test_all_maps_of_two_runs_are_compared_by_path() -> None:
    first, second = {"q": factors(0)[1], "v": factors(1)[1]}, {"q": factors(2)[1], "v": factors(3)[1]}
    found = across(first, second)
    assert set(found) == {"q", "v"}
    assert_agree(found["v"].values, of_factors(first["v"], second["v"]).values)


def test_precision_of_the_input_is_respected() -> None:
    U = orthonormal(np.random.default_rng(0), 50, 4).astype(np.float32)
    assert similarity(U, U).values.dtype == np.float64
    assert np.abs(np.diag(similarity(U, U).values) - 1.0).max() < 1e-5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: similarity(np.eye(3), np.eye(4)), "columns of one length"),
        (lambda: similarity(np.ones(3), np.eye(3)), "columns of one length"),
        (lambda: similarity(2.0 * np.eye(3), np.eye(3)), "must be orthonormal"),
        (lambda: directions(np.zeros((3, 3))), "it has no directions"),
        (lambda: directions(np.zeros(3)), "two axes"),
        (lambda: directions(np.full((2, 2), np.nan)), "must be finite"),
        (lambda: update_directions(np.zeros((4, 2)), np.ones((2, 3))), "is the adapter trained"),
        (lambda: update_directions(np.ones((4, 2)), np.ones((3, 3))), "B must be"),
        (lambda: of_weight(np.ones((3, 4)), *factors(0)), "W must be"),
        (lambda: across({"q": factors(0)[1]}, {"v": factors(0)[1]}), "only one of them: q, v"),
        (lambda: across({}, {}), "none at all"),
        (lambda: orthonormal(np.random.default_rng(0), 3, 4), "1 <= k <= d"),
    ],
)
def test_what_has_no_directions_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
