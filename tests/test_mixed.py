"""The laws of a mixed batch: it is its sequences one by one, in both forms, and so are its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import assert_agree, assert_shrinks, hashes, model, random_batch, tokens_of
from serving_world import adapters_of, base_of

from lora_np.cases import operation_case, planted, spoiled
from lora_np.engine.differentiation import value_and_grad
from lora_np.gradients import check
from lora_np.model import language_model_loss
from lora_np.operations import gathered_linear
from lora_np.operations.gathered import gathered_linear_forward, runs_of
from lora_np.optimization import TrainingConfig, start
from lora_np.parameters import parameters, with_parameters
from lora_np.serving.adapter import Adapter, Factors, applied
from lora_np.serving.mixed import FORMS, form_of, mixed, mixed_maps, multiply_adds, routed, routing_mask, stacked
from lora_np.serving.together import Together, TogetherLoss, fit_together
from lora_np.tasks import Batch
from lora_np.training import fit, model_loss

EVERY_FORM = (*FORMS, None)


def mixture(base: Any) -> list[Adapter | None]:
    a = adapters_of(base)
    return [a[2], a[0], None, a[1], a[0], a[3], a[4]]


# --------------------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize("form", EVERY_FORM)
def test_a_mixed_batch_is_its_sequences_one_by_one(form: str | None) -> None:
    base = base_of()
    which, tokens = mixture(base), tokens_of(base, batch=7)
    together = mixed(base, which, form)(tokens)
    for i, adapter in enumerate(which):
        one = tokens[i : i + 1]
        assert_agree(together[i : i + 1], (base if adapter is None else applied(base, adapter))(one), f"sequence {i}")
        if adapter is not None:
            assert abs(together[i] - base(one)[0]).max() > 0.5  # contrast: its adapter does something


def test_the_two_forms_agree_up_to_rounding() -> None:
    def gap(dtype: Any) -> Any:
        base = base_of(dtype)
        tokens = tokens_of(base, batch=7)
        return mixed(base, mixture(base), "mask")(tokens) - mixed(base, mixture(base), "gather")(tokens)

    assert_shrinks(gap)


def test_a_mixed_batch_of_a_llama_is_its_sequences() -> None:
    base = model(5, architecture="llama", d_model=16, kv_heads=1)
    which, tokens = mixture(base), tokens_of(base, batch=7)
    together = mixed(base, which)(tokens)
    for i, adapter in enumerate(which):
        one = base if adapter is None else applied(base, adapter)
        assert_agree(together[i], one(tokens[i : i + 1])[0])


def test_a_sequence_without_an_adapter_is_the_bases_to_the_bit() -> None:
    base = base_of()
    tokens = tokens_of(base, batch=7)
    assert np.array_equal(mixed(base, mixture(base), "gather")(tokens)[2], base(tokens)[2])


def test_one_adapter_for_all_and_none_at_all_are_served_as_well() -> None:
    base = base_of()
    tokens, adapter = tokens_of(base, batch=3), adapters_of(base)[1]
    assert_agree(mixed(base, [adapter] * 3)(tokens), applied(base, adapter)(tokens))
    assert mixed(base, [None] * 3) is base


def test_a_wrong_route_is_another_output() -> None:
    """The comparison sees an adapter that went to its neighbour."""
    base = base_of()
    tokens, which = tokens_of(base, batch=7), mixture(base)
    right, wrong = mixed(base, which)(tokens), mixed(base, which[1:] + which[:1])(tokens)
    with pytest.raises(AssertionError):
        assert_agree(right, wrong)


def test_mixing_leaves_every_array_as_it_was() -> None:
    base = base_of()
    before = hashes(parameters(base))
    mixed(base, mixture(base))(tokens_of(base, batch=7))
    assert hashes(parameters(base)) == before


# ------------------------------------------------------------------------------------------ what it costs


def test_nothing_is_padded_for_unequal_ranks() -> None:
    base = base_of()
    for path, module in mixed_maps(mixed(base, mixture(base))).items():
        ranks = sum(a.ranks.get(path, 0) for a in adapters_of(base))
        assert len(module.A) == module.B.shape[1] == sum(module.ranks) == ranks


def test_multiply_adds_are_those_that_the_forms_make() -> None:
    """Counted in every product that is made, beside the dense map's."""
    which, ranks, scalings, rows = (1, 0, -1, 1), (2, 3), (1.0, 2.0), 5
    rng = np.random.default_rng(0)
    x, A, B = rng.standard_normal((4, rows, 6)), rng.standard_normal((5, 6)), rng.standard_normal((7, 5))
    made = 0
    for run in runs_of(which, ranks):
        n = rows * len(np.arange(4)[run.members]) // run.adapters
        made += run.adapters * n * run.rank * (6 + 7)
    assert made == multiply_adds("gather", which, ranks, rows, 7, 6) == 5 * (3 + 2 + 3) * 13
    mask = routing_mask(which, ranks, scalings)
    assert mask.shape == (4, 5)
    assert multiply_adds("mask", which, ranks, rows, 7, 6) == x[..., 0].size * mask.shape[1] * (len(B) + A.shape[1])


def test_one_adapter_is_masked_and_many_are_gathered_where_they_are_dear() -> None:
    assert form_of((0,) * 32, (8,), 1, 192, 192) == "mask"
    assert form_of(tuple(range(32)), (8,) * 32, 64, 768, 768) == "gather"


def test_adapters_of_one_rank_and_as_many_sequences_are_one_run() -> None:
    assert [(run.adapters, run.rank) for run in runs_of((0, 1, 2, 3), (2, 2, 3, 3))] == [(2, 2), (2, 3)]
    assert [run.adapters for run in runs_of((0, 0, 1, 2), (2, 2, 2))] == [1, 2]
    assert runs_of((-1, -1), (2, 2)) == ()
    assert [run.first for run in runs_of((0, 2), (2, 2, 2))] == [0, 2]  # one without a sequence is in no run


def test_a_routing_mask_holds_s_at_the_columns_of_its_adapter_and_nothing_else() -> None:
    mask = routing_mask((1, -1, 0), (2, 1), (0.5, 3.0))
    assert mask.tolist() == [[0, 0, 3.0], [0, 0, 0], [0.5, 0.5, 0]]


# ----------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("form", EVERY_FORM)
def test_gradients_of_a_mixed_batch_are_those_of_each_adapter_alone(form: str | None) -> None:
    base = base_of()
    adapters = adapters_of(base)
    which = (2, 0, -1, 1, 0, 3, 4)
    node, batch = routed(stacked(base, adapters, form), which), random_batch(base, batch=7)
    trained = parameters(node, "*.A", "*.B")
    _, gradient = value_and_grad(lambda p: language_model_loss(with_parameters(node, p), batch))(trained)
    for i, adapter in enumerate(adapters):
        rows = [row for row, owner in enumerate(which) if owner == i]
        mine = Batch(batch.tokens[rows], batch.targets[rows], batch.weights[rows])
        one = applied(base, adapter)
        own = parameters(one, "*.A", "*.B")
        _, alone = value_and_grad(lambda p: language_model_loss(with_parameters(one, p), mine))(own)  # noqa: B023
        for path, module in mixed_maps(node).items():
            if path in adapter.factors:
                stop = sum(module.ranks[: i + 1])
                at = slice(stop - module.ranks[i], stop)
                assert_agree(gradient[f"{path}.A"][at], alone[f"{path}.A"], f"{path}.A of {i}")
                assert_agree(gradient[f"{path}.B"][:, at], alone[f"{path}.B"], f"{path}.B of {i}")
                assert abs(alone[f"{path}.A"]).max() > 1e-4  # contrast


def test_an_adapter_without_a_sequence_has_a_gradient_of_exactly_zero() -> None:
    rng = np.random.default_rng(0)
    x, W, A, B = (rng.standard_normal(shape) for shape in ((2, 3, 4), (5, 4), (3, 4), (5, 3)))

    def loss(p: Any) -> Any:
        return (gathered_linear(x, W, None, p["A"], p["B"], (1, -1), (1, 2), (1.0, 2.0)) ** 2).sum()

    _, gradient = value_and_grad(loss)({"A": A, "B": B})
    assert not gradient["A"][:1].any()
    assert not gradient["B"][:, :1].any()
    assert gradient["A"][1:].all()
    assert gradient["B"][:, 1:].all()


@pytest.mark.parametrize("array", ["x", "A", "B", "W", "b"])
def test_three_witnesses_see_a_wrong_gradient_of_the_gather(array: str) -> None:
    assert all(row.holds for row in check(operation_case("gathered_linear", 0)))
    wrong = check(operation_case("gathered_linear", 0, spoiled("gathered_linear", array, lambda g: 1.001 * g)))
    assert [row.array for row in wrong if not row.holds] == [array]


def test_three_witnesses_see_rows_that_went_to_a_neighbour() -> None:
    def rolled(x: Any, W: Any, b: Any, A: Any, B: Any, which: Any, *rest: Any, wanted: Any) -> Any:
        return gathered_linear_forward(x, W, b, A, B, which[1:] + which[:1], *rest, wanted=wanted)

    faulty = planted("gathered_linear", gathered_linear.backward, rolled)
    assert not all(row.holds for row in check(operation_case("gathered_linear", 0, faulty)))


# ------------------------------------------------------------------------------------------ training together


class Own:
    """Random batches of one adapter, of a length of their own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, step: int, /) -> Any:
        return random_batch(base_of(), 100 * self.seed + step, batch=2, seq=6 + self.seed % 4)


def trained_alone(base: Any, adapter: Adapter, config: TrainingConfig, batches: Own) -> Any:
    node = applied(base, adapter)
    *_, last = fit(model_loss(node), batches, config, start(parameters(node, "*.A", "*.B"), config), 1)
    return last.state.trained


def together_gap(dtype: Any, count: int = 8, steps: int = 5) -> Any:
    """The largest difference of any trained number, and how far training moved one."""
    base = base_of(dtype)
    adapters = [a.renamed(f"t{i}") for i, a in enumerate((adapters_of(base) * 2)[:count])]
    config = TrainingConfig(steps=steps, learning_rate=1e-2, warmup=2, clip=None)
    batches = [Own(i) for i in range(count)]
    *_, (_, done) = fit_together(base, adapters, batches, config, 1)
    gap = moved = 0.0
    for before, adapter, own in zip(adapters, done, batches, strict=True):
        assert adapter.name == before.name
        alone = trained_alone(base, before, config, own)
        for path, (A, B, scaling) in adapter.factors.items():
            assert scaling == before.factors[path].scaling
            gap = max(gap, abs(A - alone[f"{path}.A"]).max(), abs(B - alone[f"{path}.B"]).max())
            moved = max(moved, abs(A - before.factors[path].A).max())
    return gap, moved


def test_eight_adapters_trained_in_one_batch_end_where_each_ends_alone() -> None:
    """Five steps of AdamW at a rate of 1e-2 move a number by 3.5e-2. Measured on six sets of batches, the two ways end
    at most 2.8e-15 apart in float64 and 6.1e-7 in float32; the bounds are ten times that."""
    gap, moved = together_gap(np.float64)
    assert moved > 0.02  # contrast: they learned
    assert gap < 3e-14
    assert 0.0 < together_gap(np.float32)[0] < 6e-6


def test_training_together_sees_another_ones_examples() -> None:
    """The comparison above is one that fails when two adapters exchange their batches."""
    base = base_of()
    adapters, config = adapters_of(base)[:2], TrainingConfig(steps=2, learning_rate=1e-2, warmup=0, clip=None)
    *_, (_, right) = fit_together(base, adapters, [Own(0), Own(1)], config, 1)
    *_, (_, wrong) = fit_together(base, adapters, [Own(1), Own(0)], config, 1)
    path = "blocks.0.attention.query"
    assert abs(right[0].factors[path].A - wrong[0].factors[path].A).max() > 1e-3


def test_training_together_leaves_the_base_to_the_bit_and_refuses_to_clip() -> None:
    base = base_of()
    before, adapters = hashes(parameters(base)), adapters_of(base)[:2]
    *_, _ = fit_together(base, adapters, [Own(0), Own(1)], TrainingConfig(steps=1, warmup=0, clip=None), 1)
    assert hashes(parameters(base)) == before
    with pytest.raises(ValueError, match="clip=None"):
        next(fit_together(base, adapters, [Own(0), Own(1)], TrainingConfig(steps=1, warmup=0)))
    with pytest.raises(ValueError, match="batches of its own"):
        next(fit_together(base, adapters, [Own(0)], TrainingConfig(steps=1, warmup=0, clip=None)))


def test_shards_of_a_batch_of_several_adapters_add_up_to_it() -> None:
    base = base_of()
    loss = TogetherLoss(stacked(base, adapters_of(base)[:3]))
    trained, batch = parameters(loss.model, "*.A", "*.B"), Together((Own(0), Own(1), Own(2)))[0]
    assert batch.which == (0, 0, 1, 1, 2, 2)
    assert batch.tokens_trained == sum(own[0].tokens_trained for own in (Own(0), Own(1), Own(2)))
    whole = loss(trained, batch, np.random.default_rng(0))
    parts = [loss(trained, shard, np.random.default_rng(0)) for shard in batch.shards(4)]
    assert len(parts) == 4
    assert_agree(sum(parts), whole)


# ------------------------------------------------------------------------------------------ what is refused


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    base, adapter = base_of(), adapters_of(base_of())[0]
    with pytest.raises(ValueError, match="form must be one of mask, gather"):
        mixed(base, [adapter], "both")
    with pytest.raises(ValueError, match=r"2 sequences were told their adapters, got a batch of 3"):
        mixed(base, [adapter, None])(tokens_of(base, batch=3))
    with pytest.raises(ValueError, match=r"0\.\.0, or -1 for none; got 1"):
        routed(stacked(base, [adapter]), (1,))
    with pytest.raises(ValueError, match="made for another base"):
        mixed(model(2, d_model=12), [adapter])
    elsewhere = Adapter("b", {"blocks.9.attention.query": Factors(np.zeros((1, 8)), np.zeros((8, 1)), 1.0)})
    with pytest.raises(ValueError, match=r"adapts blocks\.9\.attention\.query, and the base has only blocks\.0"):
        mixed(base, [elsewhere])
    with pytest.raises(ValueError, match="of one rank"):
        Adapter("c", {"blocks.0.attention.query": Factors(np.zeros((2, 8)), np.zeros((8, 1)), 1.0)})
    with pytest.raises(ValueError, match="adapts no map"):
        Adapter("d", {})


def test_a_mixed_map_keeps_the_precision_of_its_base() -> None:
    base, adapter = base_of(np.float32), adapters_of(base_of(np.float64))[0]
    tokens = tokens_of(base, batch=2)
    for form in FORMS:
        node = mixed(base, [adapter, None], form)
        assert {module.A.dtype for module in mixed_maps(node).values()} == {np.dtype(np.float32)}
        assert node(tokens).dtype == np.float32
