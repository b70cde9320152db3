"""The laws of `paper.intrinsic`: training in a random subspace, and the dimension that it needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import assert_agree, model, random_batch
from test_subspaces import SURE

from lora_np.engine.arrays import Array
from lora_np.engine.differentiation import value_and_grad
from lora_np.optimization import TrainingConfig, start
from lora_np.paper.intrinsic import InSubspace, IntrinsicDimension, in_subspace, intrinsic_dimension, trained_in
from lora_np.parameters import count, parameters
from lora_np.tasks import Batch
from lora_np.training import fit, model_loss

MODEL = model(vocab=7, d_model=4, context=6, layers=1)
ORIGIN = parameters(MODEL)
TOTAL = count(ORIGIN)
STEP = TrainingConfig(steps=3, learning_rate=0.1, warmup=0, decay="constant", optimizer="sgd", clip=None)
RNG = np.random.default_rng(0)


class Same:
    """One batch for ever, in one piece."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __getitem__(self, step: int) -> Batch:
        return self.batch


BATCH = random_batch(MODEL)


def flat(arrays: dict[str, Array]) -> Array:
    return np.concatenate([array.ravel() for array in arrays.values()])


def test_at_the_start_nothing_has_moved() -> None:
    subspace = in_subspace(model_loss(MODEL), ORIGIN, 5, seed=1)
    arrays = subspace.arrays(subspace.start["z"])
    assert list(arrays) == list(ORIGIN)
    for name, array in ORIGIN.items():
        assert arrays[name].tobytes() == array.tobytes()


def test_the_projection_has_orthonormal_columns_and_follows_from_its_seed() -> None:
    one, same, other = (in_subspace(model_loss(MODEL), ORIGIN, 5, seed).P for seed in (1, 1, 2))
    assert one.shape == (TOTAL, 5)
    assert_agree(one.T @ one, np.eye(5))
    assert one.tobytes() == same.tobytes() != other.tobytes()


def test_the_gradient_in_the_subspace_is_the_projected_gradient() -> None:
    subspace = in_subspace(model_loss(MODEL), ORIGIN, 9, seed=1)
    z = {"z": np.random.default_rng(2).standard_normal(9)}
    value, gradient = value_and_grad(subspace)(z, BATCH, RNG)
    there, whole = value_and_grad(model_loss(MODEL))(subspace.arrays(z["z"]), BATCH, RNG)
    assert_agree(value, there)
    assert_agree(gradient["z"], subspace.P.T @ flat(whole))
    assert abs(gradient["z"]).max() > 1e-3


def test_in_all_dimensions_it_is_plain_training() -> None:
    """With P orthogonal, θ0 + P z under gradient descent moves as θ does: P Pᵀ = I."""
    loss = model_loss(MODEL)
    found = trained_in(in_subspace(loss, ORIGIN, TOTAL, seed=1), Same(BATCH), STEP)
    (*_, record) = fit(loss, Same(BATCH), STEP, start(ORIGIN, STEP))
    assert_agree(flat(found), flat(record.state.trained))
    assert abs(flat(found) - flat(ORIGIN)).max() > 0.01  # contrast


def test_training_moves_within_the_subspace_and_lowers_the_loss() -> None:
    loss, subspace = model_loss(MODEL), in_subspace(model_loss(MODEL), ORIGIN, 40, seed=1)
    found = trained_in(subspace, Same(BATCH), STEP)
    step = flat(found) - flat(ORIGIN)
    assert_agree(subspace.P @ (subspace.P.T @ step), step)
    assert loss(found, BATCH, RNG) < loss(ORIGIN, BATCH, RNG) - 0.01


def quadratic(weights: Array) -> Callable[..., Any]:
    """½ Σ w (θ − 1)², a loss whose best point in a subspace is known."""

    def loss(arrays: dict[str, Array], batch: Any, rng: Any) -> Any:
        gap = arrays["theta"] - 1.0
        return 0.5 * (weights * gap * gap).sum()

    return loss


def best_gain(subspace: InSubspace, weights: Array) -> float:
    """The share of the loss that the best z gains: least squares."""
    root = np.sqrt(weights)
    z = np.linalg.lstsq(root[:, None] * subspace.P, root, rcond=None)[0]
    rest = root - root * (subspace.P @ z)
    return 1.0 - float(rest @ rest / weights.sum())


def test_where_every_direction_matters_alike_the_gain_is_that_of_chance() -> None:
    total, origin = 30, {"theta": np.zeros(30)}
    weights = np.ones(total)
    for d in (3, 15, 27):
        gains = [best_gain(in_subspace(quadratic(weights), origin, d, seed), weights) for seed in range(200)]
        chance = IntrinsicDimension(total, {d: 0.0}).chance_gains[d]
        error = np.std(gains) / math.sqrt(len(gains))
        assert abs(np.mean(gains) - chance) < SURE * error
        assert abs(np.mean(gains) - (d + 2) / total) > SURE * error  # planted


def test_where_few_directions_matter_few_dimensions_are_enough() -> None:
    """Three directions of a hundred hold all but a ten-thousandth of the loss: d90 is far below chance."""
    total, weights = 100, np.full(100, 1e-6)
    weights[:3] = 1.0
    origin = {"theta": np.zeros(total)}
    losses = {}
    for d in (1, 2, 3, 5, 10, 50):
        many = [in_subspace(quadratic(weights), origin, d, seed) for seed in range(5)]
        losses[d] = float(np.mean([1.0 - best_gain(subspace, weights) for subspace in many]))
    found = intrinsic_dimension(losses, before=1.0, full=0.0, total=total)
    assert found.reaching(0.9) in (3, 5)
    assert found.chance(0.9) == 90


def test_fit_finds_the_best_point_of_the_subspace() -> None:
    weights, origin = np.ones(20), {"theta": np.zeros(20)}
    subspace = in_subspace(quadratic(weights), origin, 8, seed=3)
    config = TrainingConfig(steps=60, learning_rate=0.5, warmup=0, decay="constant", optimizer="sgd", clip=None)
    found = trained_in(subspace, Same(BATCH), config)
    gain = 1.0 - float(np.square(found["theta"] - 1.0).sum() / 20)
    assert gain == pytest.approx(best_gain(subspace, weights), abs=1e-9)


def test_d90_is_the_smallest_dimension_that_reaches_nine_tenths() -> None:
    found = intrinsic_dimension({40: 0.1875, 10: 1.0, 20: 0.5, 80: 0.0}, before=2.0, full=0.0, total=200)
    assert found.reaching(0.9) == 40
    assert found.reaching(0.90625) == 40  # reached means reached
    assert found.reaching(0.75) == 20
    assert found.reaching(1.01) is None
    assert found.chance(0.9) == 180
    assert found.chance_gains == {40: 0.2, 10: 0.05, 20: 0.1, 80: 0.4}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: in_subspace(model_loss(MODEL), ORIGIN, 0, 1), rf"1..{TOTAL}"),
        (lambda: in_subspace(model_loss(MODEL), ORIGIN, TOTAL + 1, 1), f"got {TOTAL + 1}"),
        (lambda: intrinsic_dimension({1: 1.0}, 1.0, 1.0, 9), "must lower the loss"),
        (lambda: intrinsic_dimension({1: 1.0}, float("nan"), 1.0, 9), "must lower the loss"),
        (lambda: intrinsic_dimension({10: 1.0}, 2.0, 1.0, 9), "1..9, got 10"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
