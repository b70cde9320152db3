r"""Exact laws of training with LoRA, in float64: what a change of α, of the start, of a rate or of the factors does.

The update is ΔW = s·BA with s = α/r. Scales here are powers of two, by which a float64 is multiplied without rounding:
where a law says that two runs are one, they are compared to the last bit.

Sources: Schulman and Thinking Machines 2025, LoRA Without Regret (invariance, first step); Hayou et al. 2024,
arXiv:2402.12354 (LoRA+); Hu et al. 2021, section 4.1. The conditions on ε, and those of SGD, are derived here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import assert_agree, model, random_batch
from test_intrinsic import Same

from lora_np.engine.arrays import Array
from lora_np.engine.differentiation import value_and_grad
from lora_np.lora import adapters, delta
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.optimization import TrainingConfig, start
from lora_np.parameters import Arrays, parameters, with_parameters
from lora_np.training import fit, model_loss

BASE = model(vocab=9, d_model=6, context=8, layers=1)
BATCH = random_batch(BASE)
RANK = 2
RNG = np.random.default_rng(0)

ADAM = TrainingConfig(steps=5, learning_rate=0.01, warmup=0, decay="constant", clip=None, micro_batches=1, eps=1e-300)
SGD = replace(ADAM, optimizer="sgd", learning_rate=0.5)
LARGE = pytest.mark.filterwarnings("ignore:.* more than the 36 of the matrix")  # such a rank is asked for here


def updates_of(lora: LoraConfig, A: Arrays, config: TrainingConfig, B: Arrays | None = None) -> list[Arrays]:
    """ΔW of every adapted map after each step, from these A (and B, zero when not given)."""
    fresh = with_parameters(adapt(BASE, lora, np.random.default_rng(0)), {**A, **(B or {})})
    records = fit(model_loss(fresh), Same(BATCH), config, start(lora.trained(fresh), config))
    models = [with_parameters(fresh, record.state.trained) for record in records]
    return [{path: delta(module) for path, module in adapters(one).items()} for one in models]


def drawn(seed: int = 1, rank: int = RANK, alpha: float = 3.0) -> tuple[LoraConfig, Arrays]:
    lora = LoraConfig(rank=rank, alpha=alpha)
    return lora, parameters(adapt(BASE, lora, np.random.default_rng(seed)), "*.A")


def equal(first: list[Arrays], second: list[Arrays]) -> bool:
    """To the bit, at every step."""
    return all(
        a[path].tobytes() == b[path].tobytes() for a, b in zip(first, second, strict=True) for path in a
    )  # fmt: skip


def apart(first: list[Arrays], second: list[Arrays]) -> float:
    """The largest difference after the last step, relative to the largest entry."""
    gaps = [np.abs(first[-1][path] - second[-1][path]).max() / np.abs(first[-1][path]).max() for path in first[-1]]
    return float(max(gaps))


def changed(
    p: float, q: float, config: TrainingConfig, *, rate_A: float, rate_B: float, eps: float | None = None
) -> list[Arrays]:
    """The run of α/(pq) from p·A, with these factors of the learning rates."""
    lora, A = drawn()
    other = replace(config, rates={"*.A": rate_A, "*.B": rate_B}, eps=config.eps if eps is None else eps)
    return updates_of(
        replace(lora, alpha=lora.alpha / (p * q)), {name: p * array for name, array in A.items()}, other
    )  # fmt: skip


def plain(config: TrainingConfig) -> list[Arrays]:
    lora, A = drawn()
    return updates_of(lora, A, config)


# one trajectory, many settings


@pytest.mark.parametrize(("p", "q"), [(2.0, 1.0), (1.0, 4.0), (0.25, 8.0), (4.0, 0.25)])
def test_under_adam_alpha_start_and_both_rates_hold_two_numbers_too_many(p: float, q: float) -> None:
    r"""(α, A₀, η_A, η_B) and (α/(pq), p·A₀, p·η_A, q·η_B) give one ΔW, at every step, where ε is nothing.

    With A' = pA and B' = qB the update s'B'A' is the same, so ∂L/∂A' = (∂L/∂A)/p and ∂L/∂B' = (∂L/∂B)/q. The direction
    m/√v does not see a factor of the gradient; so A' moves by p·η_A times the same direction, which keeps A' = pA.
    """
    run = plain(ADAM)
    assert max(np.abs(update).max() for update in run[-1].values()) > 0.01
    assert equal(run, changed(p, q, ADAM, rate_A=p, rate_B=q))
    assert apart(run, changed(p, q, ADAM, rate_A=1.0, rate_B=q if p != 1 else 1.0)) > 1e-3  # contrast


@pytest.mark.parametrize("p", [2.0, 0.25])
def test_with_epsilon_the_law_asks_for_another_epsilon_of_each_factor(p: float) -> None:
    r"""(m/p)/(√v/p + ε') is m/(√v + ε) exactly when ε' = ε/p for A, and ε/q for B; with p = q one ε can be both."""
    config = replace(ADAM, eps=0.01)
    run = plain(config)
    assert equal(run, changed(p, p, config, rate_A=p, rate_B=p, eps=config.eps / p))
    assert apart(run, changed(p, p, config, rate_A=p, rate_B=p)) > 1e-3
    assert apart(run, changed(p, 1 / p, config, rate_A=p, rate_B=1 / p, eps=config.eps / p)) > 1e-3  # wrong for B


def test_clipping_and_weight_decay_see_the_factors_and_break_the_law() -> None:
    """A norm over A and B together, and a decay by η·λ, are no functions of the product."""
    for config in (replace(ADAM, clip=0.01), replace(ADAM, weight_decay=1.0)):
        assert apart(plain(config), changed(4.0, 1.0, config, rate_A=4.0, rate_B=1.0)) > 1e-6


@pytest.mark.parametrize(("p", "q"), [(2.0, 1.0), (1.0, 4.0), (0.25, 8.0)])
def test_under_sgd_the_rates_change_by_squares(p: float, q: float) -> None:
    r"""A' = pA moves by −η'(∂L/∂A)/p, and must move by −pη ∂L/∂A: η_A' = p²η_A, and η_B' = q²η_B."""
    run = plain(SGD)
    assert equal(run, changed(p, q, SGD, rate_A=p * p, rate_B=q * q))
    assert apart(run, changed(p, q, SGD, rate_A=p, rate_B=q)) > 1e-3


# s against the ratio of LoRA+


@pytest.mark.parametrize("c", [2.0, 16.0])
def test_under_adam_c_times_alpha_is_c_times_the_rate_of_B(c: float) -> None:
    lora, A = drawn()
    larger = updates_of(replace(lora, alpha=c * lora.alpha), A, ADAM)
    assert equal(larger, updates_of(lora, A, replace(ADAM, rates={"*.B": c})))
    assert apart(larger, updates_of(lora, A, replace(ADAM, rates={"*.B": c * c}))) > 1e-3
    assert apart(larger, updates_of(lora, A, replace(ADAM, rates={"*.A": c}))) > 1e-3


@pytest.mark.parametrize("c", [2.0, 4.0])
def test_under_sgd_c_times_alpha_is_c_squared_times_the_rate_of_B(c: float) -> None:
    lora, A = drawn()
    larger = updates_of(replace(lora, alpha=c * lora.alpha), A, SGD)
    assert equal(larger, updates_of(lora, A, replace(SGD, rates={"*.B": c * c})))
    assert apart(larger, updates_of(lora, A, replace(SGD, rates={"*.B": c}))) > 1e-3


# the first step


def gradient_of_the_weights(paths: Any) -> Arrays:
    """∂L/∂W of the base, by path of the map."""
    trained = parameters(BASE, *(f"{path}.W" for path in paths))
    _, gradient = value_and_grad(model_loss(BASE))(trained, BATCH, RNG)
    return {name.removesuffix(".W"): array for name, array in gradient.items()}


def first_step(rank: int, rows: dict[str, Array], config: TrainingConfig) -> Arrays:
    """ΔW after one step from A whose rows are these."""
    lora, A = drawn(rank=rank)
    given = {name: rows[name.removesuffix(".A")] for name in A}
    return updates_of(lora, given, replace(config, steps=1))[0]


def rows_of(rank: int, seed: int = 5) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {path: rng.standard_normal((rank, 6)) for path in adapters(adapt(BASE, drawn()[0], rng))}


def test_the_first_step_of_sgd_is_the_gradient_through_the_row_space_of_A() -> None:
    r"""B = 0, so A does not move and B becomes −ηs·GAᵀ with G = ∂L/∂W: ΔW = −ηs²·G AᵀA.

    For orthonormal rows AᵀA is the projection on the row space of A, and nothing outside of it is learned.
    """
    s, rows = 3.0 / RANK, rows_of(RANK)
    gradients = gradient_of_the_weights(rows)
    for A in (rows, {path: np.linalg.qr(a.T)[0].T for path, a in rows.items()}):
        for path, update in first_step(RANK, A, SGD).items():
            assert_agree(update, -SGD.learning_rate * s * s * gradients[path] @ A[path].T @ A[path], path)
            inside = np.linalg.qr(A[path].T)[0]
            assert_agree(update @ inside @ inside.T, update, path)
            assert np.abs(gradients[path] @ inside @ inside.T - gradients[path]).max() > 1e-3  # contrast


@LARGE
def test_at_full_rank_with_orthonormal_rows_the_first_step_is_that_of_full_fine_tuning() -> None:
    rows = {path: np.linalg.qr(a)[0] for path, a in rows_of(6).items()}
    for path, gradient in gradient_of_the_weights(rows).items():
        assert_agree(first_step(6, rows, SGD)[path], -SGD.learning_rate * (3.0 / 6) ** 2 * gradient, path)


@LARGE
@pytest.mark.parametrize("rank", [2, 4, 6])
def test_the_first_step_of_adam_at_rank_r_is_the_mean_of_those_at_rank_one(rank: int) -> None:
    r"""ΔW = −(α/r)·η·sign(GAᵀ)A = (1/r) Σ_k −αη·sign(G a_k) a_kᵀ. So its mean over draws of A is the same for all r.

    That asks for s = α/r: with α/√r the first step grows as √r.
    """
    rows = rows_of(rank)
    found = first_step(rank, rows, ADAM)
    ones = [first_step(1, {path: a[k : k + 1] for path, a in rows.items()}, ADAM) for k in range(rank)]
    for path, update in found.items():
        assert_agree(update, np.mean([one[path] for one in ones], axis=0), path)
        assert np.abs(update - ones[0][path]).max() > 1e-4  # contrast: they differ among themselves
    lora, A = drawn(rank=rank)
    steady = replace(lora, scaling="alpha/sqrt(rank)")
    grown = updates_of(steady, {name: rows[name.removesuffix(".A")] for name in A}, replace(ADAM, steps=1))[0]
    for path, update in found.items():
        assert_agree(grown[path], math.sqrt(rank) * update, path)


def test_the_mean_first_step_of_adam_is_the_gradient_with_rows_of_one_length() -> None:
    r"""For a ~ N(0, σ²I) E sign(gᵀa)a is σ√(2/π) g/‖g‖, so E ΔW is −αησ√(2/π) times G with rows of length 1."""
    number = 400
    rows = {path: np.random.default_rng(8).standard_normal((number, 6)) for path in rows_of(1)}
    gradients = gradient_of_the_weights(rows)
    for path, G in gradients.items():
        steps = -3.0 * ADAM.learning_rate * np.sign(rows[path] @ G.T)[:, :, None] * rows[path][:, None, :]
        expected = -3.0 * ADAM.learning_rate * math.sqrt(2 / math.pi) * G / np.linalg.norm(G, axis=1, keepdims=True)
        error = steps.std(axis=0) / math.sqrt(number)
        assert (np.abs(steps.mean(axis=0) - expected) < 6 * error).all(), path
        one = first_step(1, {name: a[:1] for name, a in rows.items()}, ADAM)[path]
        assert_agree(one, steps[0], path)  # what was averaged is what the optimizer does


# the same update, cut otherwise


def cut(A: Arrays, B: Arrays, G: Array) -> tuple[Arrays, Arrays]:
    """G A and B G⁻¹ for every map."""
    inverse = np.linalg.inv(G)
    return {name: G @ a for name, a in A.items()}, {name: b @ inverse for name, b in B.items()}


def moved() -> tuple[LoraConfig, Arrays, Arrays]:
    lora, A = drawn()
    rng = np.random.default_rng(3)
    return lora, A, {name.replace(".A", ".B"): 0.5 * rng.standard_normal((a.shape[1], RANK)) for name, a in A.items()}


GENERAL = np.array([[2.0, 0.5], [-1.0, 1.0]])
TURN = np.array([[0.6, -0.8], [0.8, 0.6]])
SWAP = np.array([[0.0, -1.0], [1.0, 0.0]])


@pytest.mark.parametrize("G", [GENERAL, TURN, SWAP], ids=["general", "orthogonal", "signed permutation"])
def test_the_output_does_not_depend_on_how_the_update_is_cut(G: Array) -> None:
    lora, A, B = moved()
    fresh = adapt(BASE, lora, np.random.default_rng(0))
    one = with_parameters(fresh, {**A, **B})
    other = with_parameters(fresh, {name: a for part in cut(A, B, G) for name, a in part.items()})
    assert_agree(one(BATCH.tokens), other(BATCH.tokens))
    assert np.abs(one(BATCH.tokens) - BASE(BATCH.tokens)).max() > 0.1  # contrast: the adapter does something


@pytest.mark.parametrize(
    ("G", "config", "same"),
    [
        (TURN, SGD, True),  # GᵀG = I: −η G(∂L/∂A) is G times the step of A
        (SWAP, SGD, True),
        (GENERAL, SGD, False),  # the gradient of GA is G⁻ᵀ(∂L/∂A), which is no longer G times it
        (SWAP, ADAM, True),  # Adam works entry by entry: it knows permutations and signs, and no other turn
        (TURN, ADAM, False),
        (GENERAL, ADAM, False),
    ],
)
def test_the_training_does_depend_on_it(G: Array, config: TrainingConfig, same: bool) -> None:
    lora, A, B = moved()
    config = replace(config, learning_rate=0.02)
    other_A, other_B = cut(A, B, G)
    gap = apart(updates_of(lora, A, config, B), updates_of(lora, other_A, config, other_B))
    assert gap < 1e-9 if same else gap > 1e-4
