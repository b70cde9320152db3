"""The laws of `training`: the optimizers are the papers', a run is a pure function, and what breaks says where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from builders import adapted, assert_agree, hashes, model, moved, random_batch

import lora_np.training
from lora_np.config import TransformerConfig
from lora_np.costs import matrix_multiply_adds
from lora_np.engine.differentiation import value_and_grad
from lora_np.model import Transformer, initialize, language_model_loss
from lora_np.optimization import (
    TrainingConfig,
    TrainingState,
    adamw,
    clipped,
    global_norm,
    learning_rate,
    sgd,
    start,
    update,
)
from lora_np.parameters import parameters, with_parameters
from lora_np.tasks import Batch
from lora_np.training import NonFiniteError, Record, evaluate, fit, model_loss
from lora_np.wrappers import unwrapped

EPS = float(np.finfo(np.float64).eps)
EVERYTHING = {"targets": ("attention+mlp", "tokens", "head")}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def arrays(seed: int = 0, dtype: Any = np.float64) -> dict[str, Any]:
    """A matrix, a vector, and a stack of matrices."""
    normal = rng(seed).standard_normal
    return {name: normal(shape).astype(dtype) for name, shape in (("W", (3, 4)), ("b", (3,)), ("stack", (2, 2, 2)))}


# ------------------------------------------------------------------------------------------------------ optimizers


@dataclass(frozen=True)
class ScalarAdamW:
    """Algorithm 2 of Loshchilov and Hutter 2019, one number at a time, with its line numbers; flags plant faults.

    The paper's η_t α is the rate here, and its η_t λ is rate · weight_decay, as in every released AdamW.
    """

    bias_corrected: bool = True
    decoupled: bool = True
    eps_outside_the_root: bool = True

    def run(
        self, theta: float, gradients: list[float], rates: list[float], config: TrainingConfig, decay: float
    ) -> float:
        m = v = 0.0
        for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
            if not self.decoupled:
                g = g + decay * theta  # line 6: the part of L2 regularization
            m = config.beta1 * m + (1 - config.beta1) * g  # line 7
            v = config.beta2 * v + (1 - config.beta2) * g**2  # line 8
            m_hat, v_hat = m, v
            if self.bias_corrected:
                m_hat, v_hat = m / (1 - config.beta1**t), v / (1 - config.beta2**t)  # lines 9 and 10
            root = math.sqrt(v_hat) + config.eps if self.eps_outside_the_root else math.sqrt(v_hat + config.eps)
            theta = theta - (rate * m_hat / root + (rate * decay * theta if self.decoupled else 0.0))  # line 12
        return theta


ADAMW = TrainingConfig(beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.3)


def assert_is_the_papers(paper: ScalarAdamW, steps: int = 15) -> None:
    """Ours beside the scalar one: a step has a dozen roundings of numbers that are smaller than 4."""
    parameters_, moments = arrays(), start(arrays(), ADAMW).moments
    gradients = [arrays(seed) for seed in range(1, steps + 1)]
    rates = [0.1 / (1 + i) for i in range(steps)]
    for i in range(steps):
        parameters_, moments = adamw(parameters_, gradients[i], moments, i + 1, rates[i], ADAMW)
    for name, first in arrays().items():
        decay = 0.0 if first.ndim == 1 else ADAMW.weight_decay
        for entry in np.ndindex(first.shape):
            expected = paper.run(first[entry], [float(g[name][entry]) for g in gradients], rates, ADAMW, decay)
            assert abs(parameters_[name][entry] - expected) <= 12 * steps * EPS * 4, f"{name}{entry}"


def test_adamw_is_the_algorithm_of_its_paper() -> None:
    assert_is_the_papers(ScalarAdamW())


@pytest.mark.parametrize("fault", ["bias_corrected", "decoupled", "eps_outside_the_root"])
def test_the_comparison_with_the_paper_catches_what_is_not(fault: str) -> None:
    with pytest.raises(AssertionError):
        assert_is_the_papers(replace(ScalarAdamW(), **{fault: False}))


def test_the_decay_acts_on_matrices_alone_and_where_the_gradient_is_zero() -> None:
    before, zero = arrays(), {name: np.zeros_like(array) for name, array in arrays().items()}
    after, _ = adamw(before, zero, start(before, ADAMW).moments, 1, 0.5, ADAMW)
    for name in ("W", "stack"):
        assert np.array_equal(after[name], (1 - 0.5 * 0.3) * before[name])
    assert np.array_equal(after["b"], before["b"])


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e6])
def test_the_first_step_of_adamw_has_the_length_of_the_rate_whatever_the_gradient(size: float) -> None:
    """m̂ = g and v̂ = g², so the step is η g/(|g| + ε)."""
    gradient = {name: size * np.sign(array) for name, array in arrays().items()}
    config = TrainingConfig()
    after, _ = adamw(arrays(), gradient, start(arrays(), config).moments, 1, 0.01, config)
    for name, before in arrays().items():
        expected = 0.01 * np.sign(before) * size / (size + config.eps)
        assert abs((before - after[name]) - expected).max() <= 8 * EPS * abs(before).max()


def test_sgd_goes_down_the_gradient_by_the_rate() -> None:
    before, gradient = arrays(), arrays(1)
    after = sgd(before, gradient, 0.25, TrainingConfig())
    assert all(np.array_equal(after[name], before[name] - 0.25 * gradient[name]) for name in before)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_array_with_a_factor_of_its_own_learns_at_that_factor_of_the_rate(optimizer: Any) -> None:
    config, gradient = TrainingConfig(optimizer=optimizer, weight_decay=0.1), arrays(1)
    names = list(arrays())
    special = replace(config, rates={"*": 0.5, names[0]: 4.0})
    state = start(arrays(), config)
    one, half, four = (update(state, gradient, rate, config).trained for rate in (0.01, 0.005, 0.04))
    found = update(state, gradient, 0.01, special).trained
    assert all(np.array_equal(found[name], (four if name == names[0] else half)[name]) for name in names)
    assert all(not np.array_equal(found[name], one[name]) for name in names)


def test_a_factor_that_no_array_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'x\.A' matches none of the"):
        update(start(arrays(), TrainingConfig()), arrays(1), 0.1, TrainingConfig(rates={"x.A": 2.0}))
    with pytest.raises(ValueError, match=r"the rate of x\.A must be a number of at least 0, got -1\.0"):
        TrainingConfig(rates={"x.A": -1.0})


def test_sgd_keeps_no_moments_and_adamw_two_for_every_array() -> None:
    assert start(arrays(), TrainingConfig(optimizer="sgd")).moments == {}
    moments = start(arrays(), TrainingConfig()).moments
    assert {name: array.shape for name, array in moments.items()} == {
        f"{moment}.{name}": array.shape for moment in "mv" for name, array in arrays().items()
    }
    assert not any(array.any() for array in moments.values())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_update_leaves_the_old_state_and_the_gradient_byte_identical(optimizer: Any) -> None:
    config, gradient = TrainingConfig(optimizer=optimizer, weight_decay=0.1), arrays(1)
    state = start(arrays(), config)
    before = hashes(state.trained), hashes(state.moments), hashes(gradient)
    new = update(update(state, gradient, 0.1, config), gradient, 0.1, config)
    assert new.step == 2
    assert hashes(new.trained) != before[0]
    assert (hashes(state.trained), hashes(state.moments), hashes(gradient)) == before


# ------------------------------------------------------------------------------------------------------- schedules


def rates(**settings: Any) -> list[float]:
    config = TrainingConfig(**{"steps": 12, "warmup": 4, "learning_rate": 2.0, **settings})
    return [learning_rate(step, config) for step in range(config.steps)]


def test_the_linear_schedule_rises_to_its_top_and_falls_by_equal_steps() -> None:
    assert rates(decay="linear") == [0.5, 1.0, 1.5, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25]


def test_the_constant_schedule_stays_at_its_top() -> None:
    assert rates(decay="constant") == [0.5, 1.0, 1.5] + 9 * [2.0]


def test_the_cosine_schedule_is_half_a_wave() -> None:
    found = rates(decay="cosine")
    root = math.sqrt(0.5)
    assert found[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    for step, expected in ((6, 1 + root), (8, 1.0), (10, 1 - root)):
        assert abs(found[step] - expected) <= 4 * EPS
    assert found[4:] == sorted(found[4:], reverse=True)
    assert abs(found[5] + found[11] - 2.0) <= 4 * EPS  # symmetric about the middle


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_without_warm_up_the_first_rate_is_the_largest(decay: str) -> None:
    found = rates(decay=decay, warmup=0)
    assert found[0] == max(found) == 2.0
    assert min(found) > 0


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_decay_would_reach_zero_just_after_the_last_step(decay: Any) -> None:
    config = TrainingConfig(steps=12, warmup=4, decay=decay)
    assert learning_rate(11, config) > 0
    assert learning_rate(12, config) == 0


def test_a_warm_up_that_never_ends_rises_only() -> None:
    assert rates(warmup=24, steps=3) == [2.0 / 24, 4.0 / 24, 6.0 / 24]
    assert rates(warmup=3, steps=3) == [2.0 / 3, 4.0 / 3, 2.0]


# -------------------------------------------------------------------------------------------------------- clipping


def test_the_global_norm_is_that_of_all_numbers_together() -> None:
    everything = np.concatenate([array.reshape(-1) for array in arrays().values()])
    assert abs(global_norm(arrays()) - np.linalg.norm(everything)) <= everything.size * EPS * np.linalg.norm(everything)
    assert global_norm({"a": np.full((2, 2), 2.0), "b": np.array([3.0])}) == 5.0


def test_a_longer_gradient_is_cut_to_the_norm_and_keeps_its_direction() -> None:
    gradient = {"a": np.full((2, 2), 2.0), "b": np.array([3.0])}
    cut = clipped(gradient, 5.0, 2.5)
    assert {name: array.tolist() for name, array in cut.items()} == {"a": [[1.0, 1.0], [1.0, 1.0]], "b": [1.5]}


@pytest.mark.parametrize("largest", [None, 5.0, 6.0])
def test_a_gradient_no_longer_than_allowed_is_left_as_it_is(largest: float | None) -> None:
    gradient = {"a": np.full((2, 2), 2.0), "b": np.array([3.0])}
    assert clipped(gradient, 5.0, largest) is gradient


def test_training_clips_and_records_the_norm_from_before() -> None:
    node = lora_of()
    free, bound = (run(node, optimizer="sgd", clip=clip, steps=1, learning_rate=1.0, warmup=0) for clip in (None, 0.01))
    moves = [
        {name: array - last.state.trained[name] for name, array in trained_of(node).items()}
        for (last,) in (free, bound)
    ]
    assert free[0].gradient_norm == bound[0].gradient_norm
    assert abs(global_norm(moves[0]) - free[0].gradient_norm) <= 1e-12  # a difference of numbers of size 1
    assert abs(global_norm(moves[1]) - 0.01) <= 1e-12
    assert free[0].gradient_norm > 0.1


# ------------------------------------------------------------------------------------------------------ what is run


class Same:
    """The same batch at every step."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __getitem__(self, step: int, /) -> Batch:
        return self.batch


class Different:
    """Another random batch at every step."""

    def __init__(self, node: Transformer, batch: int = 4) -> None:
        self.node, self.rows = node, batch

    def __getitem__(self, step: int, /) -> Batch:
        return random_batch(self.node, seed=100 + step, batch=self.rows)


def lora_of(dtype: Any = np.float64, **lora: Any) -> Transformer:
    return moved(adapted(model(dtype=dtype, tied=False), **lora))


def trained_of(node: Transformer) -> dict[str, Any]:
    return parameters(node, "*.A", "*.B")


def records(
    node: Transformer,
    state: TrainingState | None = None,
    batches: Any = None,
    workers: int | None = 1,
    **settings: Any,
) -> Iterator[Record]:
    config = TrainingConfig(**{"steps": 5, "warmup": 2, **settings})
    first = state or start(trained_of(node), config)
    return fit(model_loss(node), batches or Different(node), config, first, workers)


def run(node: Transformer, state: TrainingState | None = None, **settings: Any) -> list[Record]:
    return list(records(node, state, **settings))


def bits(state: TrainingState) -> tuple[int, dict[str, str], dict[str, str]]:
    return state.step, hashes(state.trained), hashes(state.moments)


def test_there_is_one_record_a_step_and_it_says_what_the_step_did() -> None:
    node = lora_of()
    found = run(node, steps=7, learning_rate=0.01)
    config = TrainingConfig(steps=7, warmup=2, learning_rate=0.01)
    assert [record.step for record in found] == [record.state.step for record in found] == list(range(1, 8))
    assert [record.learning_rate for record in found] == [learning_rate(step, config) for step in range(7)]
    assert [record.tokens for record in found] == [Different(node)[step].tokens_trained for step in range(7)]
    assert all(record.seconds > 0 for record in found)


def test_a_record_holds_the_loss_and_the_norm_from_before_its_step() -> None:
    node = lora_of()
    first, second = run(node, steps=2, batches=Same(random_batch(node)), learning_rate=0.01, micro_batches=1)
    gradient_of = value_and_grad(lambda p: language_model_loss(with_parameters(node, p), random_batch(node)))
    for record, trained in ((first, trained_of(node)), (second, first.state.trained)):
        value, gradient = gradient_of(trained)
        assert (record.loss, record.gradient_norm) == (value, global_norm(gradient))
    assert first.loss != second.loss


def test_nothing_is_trained_before_the_first_record_is_asked_for_nor_after_the_last() -> None:
    asked: list[int] = []

    class Counted(Different):
        def __getitem__(self, step: int, /) -> Batch:
            asked.append(step)
            return super().__getitem__(step)

    node = lora_of()
    wanted = records(node, batches=Counted(node))
    assert asked == []
    assert [record.step for record in islice(wanted, 2)] == [1, 2]
    assert asked == [0, 1]


def test_a_run_that_is_done_yields_nothing_more() -> None:
    node = lora_of()
    *_, last = run(node)
    assert run(node, last.state) == []


def counting(rows: int = 8, seq: int = 11, vocab: int = 11) -> Batch:
    """A task with nothing to guess: after token t comes t + 1."""
    tokens = (np.arange(seq) + np.arange(rows)[:, None]) % vocab
    return Batch(tokens, (tokens + 1) % vocab, np.full(tokens.shape, 1 / tokens.size, np.float32))


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 0.03), ("sgd", 0.5)])
def test_the_loss_falls_on_a_task_that_can_be_learned(optimizer: str, rate: float) -> None:
    """Guessing costs log 11 = 2.4 nats. Measured after 150 steps: 0.03 with AdamW, 0.15 with SGD."""
    node = adapted(model(dtype=np.float32, tied=False), targets=("attention+mlp", "tokens", "head"))
    found = run(node, batches=Same(counting()), steps=150, learning_rate=rate, optimizer=optimizer)
    assert found[0].loss > 2.4
    assert found[-1].loss < 0.5


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_leaves_every_frozen_array_byte_identical(optimizer: str) -> None:
    node = lora_of(**EVERYTHING)
    before = hashes(parameters(node))
    *_, last = run(node, optimizer=optimizer, weight_decay=0.1)
    assert hashes(parameters(node)) == before  # the model that was handed in, A and B included
    after = with_parameters(node, last.state.trained)
    assert hashes(parameters(unwrapped(after))) == hashes(parameters(unwrapped(node)))
    assert all(hashes(last.state.trained)[name] != before[name] for name in last.state.trained)


# ----------------------------------------------------------------------------------- pieces of a batch, and threads


def one_step(node: Transformer, batch: Batch, micro_batches: int, workers: int = 1) -> Record:
    """Plain descent at rate 1: the state is the start minus the gradient."""
    settings = {"optimizer": "sgd", "clip": None, "learning_rate": 1.0, "warmup": 0, "steps": 1}
    (record,) = run(node, batches=Same(batch), micro_batches=micro_batches, workers=workers, **settings)
    return record


@pytest.mark.parametrize("pieces", [2, 3, 4, 7, 100])
def test_pieces_of_unequal_rows_have_the_gradient_of_the_whole_batch(pieces: int) -> None:
    node = lora_of()
    batch = random_batch(node, batch=7)
    whole, cut = one_step(node, batch, 1), one_step(node, batch, pieces)
    assert len({len(shard.tokens) for shard in batch.shards(pieces)}) > 1 or pieces >= 7
    assert_agree(cut.loss, whole.loss)
    for name, array in whole.state.trained.items():
        assert np.abs(array - trained_of(node)[name]).max() > 1e-3, name  # contrast: there is a gradient
        assert_agree(cut.state.trained[name], array, name)


def test_the_mean_of_the_pieces_means_would_be_another_loss() -> None:
    node = lora_of()
    batch = random_batch(node, batch=7)
    means = [language_model_loss(node, replace(b, weights=b.weights / b.weights.sum())) for b in batch.shards(3)]
    assert abs(np.mean(means) - one_step(node, batch, 3).loss) > 1e-2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_number_of_workers_changes_no_bit(optimizer: str) -> None:
    node = lora_of(np.float32, dropout=0.3)
    one, *others = [run(node, workers=n, micro_batches=4, optimizer=optimizer) for n in (1, 2, 4)]
    for other in others:
        assert [record.loss for record in other] == [record.loss for record in one]
        assert bits(other[-1].state) == bits(one[-1].state)


def test_every_piece_and_every_step_draws_its_own_dropout() -> None:
    node = lora_of(dropout=0.5)
    batch = random_batch(node, batch=1)
    doubled = Batch(*(np.concatenate([a, a]) for a in (batch.tokens, batch.targets, batch.weights / 2)))
    assert abs(one_step(node, doubled, 2).loss - one_step(node, batch, 1).loss) > 1e-3  # equal without dropout
    still = lora_of(dropout=0.0)
    assert_agree(one_step(still, doubled, 2).loss, one_step(still, batch, 1).loss)
    losses = [record.loss for record in run(node, batches=Same(batch), learning_rate=1e-12, steps=3)]
    assert len({round(loss, 3) for loss in losses}) == 3


# -------------------------------------------------------------------------------------------------- a pure function


def test_the_same_seed_gives_the_same_bits_and_another_other_masks() -> None:
    node = lora_of(np.float32, dropout=0.3)
    one, same, other = (run(node, seed=seed)[-1].state for seed in (0, 0, 1))
    assert bits(one) == bits(same)
    assert bits(one) != bits(other)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_continuing_from_any_record_ends_with_the_same_bits(optimizer: str) -> None:
    node = lora_of(np.float32, dropout=0.3)
    found = run(node, optimizer=optimizer, weight_decay=0.1)
    for record in found[:-1]:
        again = run(node, record.state, optimizer=optimizer, weight_decay=0.1)
        assert [r.loss for r in again] == [r.loss for r in found[record.step :]]
        assert bits(again[-1].state) == bits(found[-1].state)


def test_continuing_without_the_moments_ends_elsewhere() -> None:
    node = lora_of(np.float32)
    found = run(node)
    forgotten = replace(found[1].state, moments=start(trained_of(node), TrainingConfig()).moments)
    assert bits(run(node, forgotten)[-1].state) != bits(found[-1].state)


def test_no_state_is_touched_once_it_was_handed_out() -> None:
    node = lora_of()
    config = TrainingConfig(steps=5, warmup=2)
    first = start(trained_of(node), config)
    handed_out = [(first, bits(first)), *((record.state, bits(record.state)) for record in records(node, first))]
    assert [bits(state) for state, _ in handed_out] == [before for _, before in handed_out]


# ------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_float32_stays_float32(optimizer: str, clip: float | None) -> None:
    *_, last = run(lora_of(np.float32, dropout=0.1), optimizer=optimizer, clip=clip, weight_decay=0.1)
    held = {**last.state.trained, **last.state.moments}
    assert {array.dtype for array in held.values()} == {np.dtype(np.float32)}
    assert type(last.loss) is type(last.gradient_norm) is type(last.learning_rate) is float


@pytest.mark.parametrize("setting", ["learning_rate", "beta1", "beta2", "eps", "weight_decay", "clip"])
def test_a_setting_that_is_a_numpy_number_leaves_float32_float32(setting: str) -> None:
    """np.float64 · float32 array is a float64 array: the adapter and its file would double in size."""
    *_, last = run(lora_of(np.float32), **{setting: np.float64(1e-3)})
    held = {**last.state.trained, **last.state.moments}
    assert {array.dtype for array in held.values()} == {np.dtype(np.float32)}


def test_training_in_float32_is_training_in_float64_but_for_rounding() -> None:
    """Measured after 5 steps: 7e-8 apart, where every array moved by at least 9e-3."""
    wide = run(lora_of(np.float64))[-1].state.trained
    narrow = run(lora_of(np.float32))[-1].state.trained
    moves = {name: abs(array - trained_of(lora_of())[name]).max() for name, array in wide.items()}
    assert min(moves.values()) > 5e-3
    assert max(abs(narrow[name] - array).max() for name, array in wide.items()) < 1e-6


# --------------------------------------------------------------------------------------------- what is not a number


quietly = pytest.mark.filterwarnings("ignore::RuntimeWarning")
TRAINED = "blocks.1.attention.value.A"


def with_planted(node: Transformer, name: str, value: float) -> Transformer:
    wrong = parameters(node)[name].copy()
    wrong[0, 0] = value
    return with_parameters(node, {name: wrong})


@quietly
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_trained_array_that_is_not_finite_stops_the_run_and_is_named(value: float) -> None:
    node = with_planted(lora_of(), TRAINED, value)
    assert len(trained_of(node)) > 2
    with pytest.raises(
        NonFiniteError, match=f"^step 1: the loss is nan; the first array that is not finite is {TRAINED}"
    ):
        run(node)


@quietly
def test_a_run_stops_at_the_step_that_breaks_and_keeps_those_before() -> None:
    class Broken(Different):
        def __getitem__(self, step: int, /) -> Batch:
            batch = super().__getitem__(step)
            return replace(batch, weights=batch.weights * np.float32(math.nan)) if step == 3 else batch

    node = lora_of()
    going = records(node, batches=Broken(node))
    found = list(islice(going, 3))
    with pytest.raises(NonFiniteError, match=r"^step 4: the loss is nan; the first array .* is the gradient of "):
        next(going)
    assert [record.step for record in found] == [1, 2, 3]
    assert all(np.isfinite(array).all() for array in found[-1].state.trained.values())


@quietly
@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 1e30), ("adamw", 1e30)])
def test_a_learning_rate_that_overflows_stops_the_run(optimizer: str, rate: float) -> None:
    node = lora_of(np.float32)
    with pytest.raises(NonFiniteError, match=r"^step 2: the loss is .*\. A smaller learning rate may help$"):
        run(node, optimizer=optimizer, learning_rate=rate, warmup=0)


@quietly
def test_a_finite_loss_with_a_gradient_that_is_not_stops_as_well() -> None:
    """√x at 0: the value is 0, the slope infinite."""

    class Nothing:
        tokens_trained = 1

        def shards(self, n: int) -> list[Any]:
            return [self]

    def loss(trained: Any, batch: Any, generator: Any) -> Any:
        return (trained["x"] ** 0.5).sum()

    config = TrainingConfig(steps=1)
    with pytest.raises(NonFiniteError, match=r"^step 1: the loss is 0\.0; .* is the gradient of x\."):
        list(fit(loss, [Nothing()], config, start({"x": np.zeros(2)}, config)))


def test_an_error_that_is_not_finite_comes_with_no_warning_beside_it() -> None:
    """The message is the one clear line; a run under -W error must meet it, not NumPy's warning."""
    with pytest.raises(NonFiniteError):
        run(with_planted(lora_of(), TRAINED, math.inf))


# ------------------------------------------------------------------------------------------------------ evaluation


def test_evaluation_weighs_every_token_the_same_however_the_batches_are_cut() -> None:
    node = lora_of()
    tokens = rng().integers(0, 11, (6, 12))
    trained = np.zeros((6, 12), bool)
    for row, n in enumerate((11, 1, 5, 2, 9, 3)):
        trained[row, :n] = True

    def batch(rows: slice) -> Batch:
        part = trained[rows].astype(np.float32)
        return Batch(tokens[rows], tokens[rows][:, ::-1], part / part.sum())

    whole = evaluate(node, [batch(slice(0, 6))])
    pieces = [batch(slice(0, 1)), batch(slice(1, 2)), batch(slice(2, 6))]
    # float32 weights: each 1/n is off by half an epsilon, and their sum by as much
    assert abs(evaluate(node, pieces) - whole) <= 4 * float(np.finfo(np.float32).eps) * whole
    assert abs(np.mean([float(language_model_loss(node, piece)) for piece in pieces]) - whole) > 1e-2  # contrast


def test_evaluation_is_the_loss_of_one_batch_and_does_not_depend_on_the_workers() -> None:
    node = lora_of(np.float32, dropout=0.5)
    batches = [random_batch(node, seed) for seed in range(5)]
    assert evaluate(node, batches[:1]) == float(language_model_loss(node, batches[0]))  # and without dropout
    one, two, four = (evaluate(node, iter(batches), workers) for workers in (1, 2, 4))
    assert one == two == four


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.0}, r"steps must be a whole number of at least 1, got 2\.0"),
        ({"steps": True}, "steps must be a whole number of at least 1, got True"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, got -1"),
        ({"micro_batches": 0}, "micro_batches must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"learning_rate": 0.0}, r"learning_rate must be a positive number, got 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a positive number, got nan"),
        ({"learning_rate": math.inf}, "learning_rate must be a positive number, got inf"),
        ({"learning_rate": None}, "learning_rate must be a positive number, got None"),
        ({"learning_rate": "fast"}, "learning_rate must be a positive number, got 'fast'"),
        ({"eps": -1e-8}, "eps must be a positive number, got -1e-08"),
        ({"clip": 0.0}, r"clip must be a positive number, got 0\.0"),
        ({"beta1": 1.0}, r"beta1 must lie in \[0, 1\), got 1\.0"),
        ({"beta2": -0.1}, r"beta2 must lie in \[0, 1\), got -0\.1"),
        ({"beta2": math.nan}, r"beta2 must lie in \[0, 1\), got nan"),
        ({"weight_decay": -0.1}, r"weight_decay must be a number of at least 0, got -0\.1"),
        ({"weight_decay": math.inf}, "weight_decay must be a number of at least 0, got inf"),
        ({"decay": "step"}, "decay must be one of .* got 'step'"),
        ({"optimizer": "lion"}, "optimizer must be one of .* got 'lion'"),
    ],
    ids=str,
)
def test_a_setting_outside_its_range_raises_and_says_the_range(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingConfig(**wrong)


def test_the_edges_of_the_ranges_are_allowed() -> None:
    edges = {"steps": 1, "warmup": 0, "micro_batches": 1, "seed": 0, "beta1": 0.0, "beta2": 0.0, "weight_decay": 0.0}
    assert TrainingConfig(**edges, clip=None).clip is None


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "257", "inf"])
def test_a_wrong_number_of_threads_in_the_environment_raises(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_NP_THREADS", value)
    uses: list[Callable[[], Any]] = [
        lambda: next(records(lora_of(), workers=None)),
        lambda: evaluate(lora_of(), [random_batch(lora_of())]),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=rf"LORA_NP_THREADS must be a whole number in 1\.\.256, got '{value}'"):
            use()
    assert next(records(lora_of(), workers=1)).step == 1  # an argument is asked first


# ---------------------------------------------------------------------------------------- how many pieces, unasked


def test_a_batch_is_cut_in_two_where_the_work_is_worth_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the run is that with the number of pieces given, bit for bit."""
    node = lora_of(np.float32)
    batch = random_batch(node, batch=4)
    work = matrix_multiply_adds(node.config) * batch.tokens.size
    for limit, pieces in ((work, 2), (work + 1, 1)):
        monkeypatch.setattr(lora_np.training, "WORTH_A_SHARD", limit)
        assert model_loss(node).pieces(batch) == pieces
        unasked, asked = (run(node, batches=Same(batch), steps=2, micro_batches=n) for n in (None, pieces))
        assert hashes(unasked[-1].state.trained) == hashes(asked[-1].state.trained)
    one, two = (run(node, batches=Same(batch), steps=2, micro_batches=n) for n in (1, 2))
    assert hashes(one[-1].state.trained) != hashes(two[-1].state.trained)  # contrast, by rounding


def test_a_loss_that_says_nothing_of_its_work_is_cut_in_two() -> None:
    seen = []

    class Noted(Batch):
        def shards(self, n: int) -> list[Batch]:
            seen.append(n)
            return super().shards(n)

    node = lora_of()
    batch = random_batch(node, batch=4)
    plain = model_loss(node)
    config = TrainingConfig(steps=1)
    batches = Same(Noted(batch.tokens, batch.targets, batch.weights))
    list(fit(lambda *arguments: plain(*arguments), batches, config, start(trained_of(node), config), 1))
    assert seen == [2]


def test_one_sequence_that_many_threads_share_has_the_same_bits() -> None:
    """Longer than a block of rows of every operation, so that the idle threads have something to do."""
    base = initialize(TransformerConfig(300, 600, 256, 2, 4), np.random.default_rng(0))
    node = moved(adapted(base))
    batch = random_batch(node, batch=1)
    one, *others = [run(node, workers=n, steps=2, batches=Same(batch)) for n in (1, 2, 4)]
    for other in others:
        assert [record.loss for record in other] == [record.loss for record in one]
        for name, array in one[-1].state.trained.items():
            assert np.array_equal(other[-1].state.trained[name], array), name
