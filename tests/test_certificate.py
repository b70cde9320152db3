"""The laws of `certificate`: a correct merge is certified, and whatever else is handed in is found and named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import adapted, cast, config, hashes, model, moved, rescaled, tokens_of

from lora_np import certificate, lora
from lora_np.certificate import ArrayVerdict, Certificate, certify
from lora_np.lora import adapters, delta
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.model import Linear, Transformer, initialize
from lora_np.parameters import parameters, with_modules, with_parameters
from lora_np.wrappers import merge, unwrapped

PRECISIONS = [np.float64, np.float32]
in_both_precisions = pytest.mark.parametrize("dtype", PRECISIONS)
EVERYTHING = {"targets": ("attention+mlp", "tokens", "head")}
QUERY = "blocks.0.attention.query"
SMALL = 1e-4  # of a number: far above its rounding in float32, and far below the update
REASON = {
    0.0: "nothing was merged",
    2.0: "it was merged twice, or with twice the scale",
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def lora_of(dtype: Any = np.float32, **settings: Any) -> Transformer:
    """A model with B far from zero."""
    return moved(adapted(model(dtype=dtype, tied=False), **settings))


def certified(node: Transformer, merged: Transformer) -> Certificate:
    return certify(node, merged, tokens_of(node))


def verdict_of(verdict: Certificate, name: str) -> ArrayVerdict:
    return next(array for array in verdict.arrays if array.name == name)


def wrong_names(verdict: Certificate) -> list[str]:
    return [array.name for array in verdict.arrays if not array.holds]


def assert_holds(verdict: Certificate) -> None:
    assert verdict.holds, verdict.diagnosis
    assert verdict.diagnosis == "every array is W0 + s·BA within its rounding bound"


# ---------------------------------------------------------------------------------------------- a correct merge


@in_both_precisions
@pytest.mark.parametrize(
    "settings", [{}, EVERYTHING, {"rank": 1}, {"scaling": "alpha/sqrt(rank)", "targets": "all-linear"}]
)
def test_a_correct_merge_is_certified(dtype: Any, settings: dict[str, Any]) -> None:
    node = lora_of(dtype, **settings)
    verdict = certified(node, merge(node))
    assert verdict.model.contrast > 0.1  # the adapter does something
    assert_holds(verdict)
    assert verdict.model.is_rounding


def test_a_correct_merge_uses_its_bound_and_not_all_of_it() -> None:
    """Measured in float32: 0.18 to 0.45. (In float64 the check rounds as the merge does, and the gap is 0.)"""
    node = lora_of(**EVERYTHING)
    used = [array.used for array in certified(node, merge(node)).arrays if array.adapted]
    assert len(used) == len(adapters(node))
    assert 0.05 < min(used) <= max(used) < 1


def test_every_array_has_a_verdict_and_the_adapted_ones_a_factor_of_one() -> None:
    node = lora_of()
    verdict = certified(node, merge(node))
    assert [array.name for array in verdict.arrays] == list(parameters(unwrapped(node)))
    assert {array.name for array in verdict.arrays if array.adapted} == {f"{path}.W" for path in adapters(node)}
    for array in verdict.arrays:
        assert (array.factor is not None) == array.adapted
        assert array.factor is None or abs(array.factor - 1) < 1e-6  # measured: below 1e-7


def test_frozen_arrays_of_a_correct_merge_have_no_gap_and_no_bound() -> None:
    node = lora_of()
    frozen = [array for array in certified(node, merge(node)).arrays if not array.adapted]
    assert len(frozen) > 10
    assert {(array.gap, array.bound, array.used) for array in frozen} == {(0.0, 0.0, 0.0)}


@in_both_precisions
@pytest.mark.parametrize("policy", ["tie", "untie"])
def test_an_adapted_token_table_is_certified_under_both_policies(dtype: Any, policy: str) -> None:
    node = moved(adapted(model(dtype=dtype), targets=("tokens",), tied_head=policy))
    verdict = certified(node, merge(node))
    assert_holds(verdict)
    assert verdict_of(verdict, "tokens.W").adapted
    assert ("head.W" in {array.name for array in verdict.arrays}) == (policy == "untie")
    other = certified(node, unwrapped(node))
    assert wrong_names(other) == ["tokens.W"]


@in_both_precisions
def test_a_fresh_adapter_merges_to_its_base(dtype: Any) -> None:
    fresh = adapted(model(dtype=dtype))
    verdict = certified(fresh, merge(fresh))
    assert_holds(verdict)
    assert verdict.model.contrast == 0.0
    assert all(array.factor is None for array in verdict.arrays)


@in_both_precisions
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_the_merge_of_an_adapter_that_hardly_moved_is_certified(dtype: Any, size: float) -> None:
    """Rounding is of the size of the logits, however little the adapter does to them."""
    node = lora_of(dtype)
    node = with_parameters(node, {n: array * dtype(size) for n, array in parameters(node, "*.B").items()})
    verdict = certified(node, merge(node))
    assert 0 < verdict.model.contrast < 10 * size
    assert_holds(verdict)


def test_biases_that_were_trained_belong_to_the_adapted_model() -> None:
    node = lora_of(bias="all")
    node = with_parameters(node, {name: array + 1 for name, array in parameters(node, "*.b").items()})
    assert_holds(certified(node, merge(node)))


# ----------------------------------------------------------------------------------------------- what is not one


Plant = Callable[[Transformer], Transformer]


def with_factor(factor: float) -> Plant:
    return lambda node: merge(rescaled(node, factor))


def each(change: Callable[[Any], Any]) -> Plant:
    """Merge with every adapted map changed first."""
    return lambda node: merge(with_modules(node, {path: change(m) for path, m in adapters(node).items()}))


def merged_with(name: str, change: Callable[[Any], Any]) -> Plant:
    """A correct merge of which one array was changed afterwards."""
    return lambda node: with_parameters(merge(node), {name: change(parameters(merge(node))[name])})


FACTORS = {
    "not merged": (unwrapped, 0.0),
    "merged twice": (with_factor(2.0), 2.0),
    "scaled by the root of the rank": (with_factor(math.sqrt(2)), math.sqrt(2)),
    "scaled by the inverse root of the rank": (with_factor(math.sqrt(0.5)), math.sqrt(0.5)),
    "subtracted": (with_factor(-1.0), -1.0),
    "scaled without alpha": (with_factor(1 / 3), 1 / 3),
}


@in_both_precisions
@pytest.mark.parametrize("fault", FACTORS)
def test_the_factor_of_what_was_merged_is_named(fault: str, dtype: Any) -> None:
    plant, factor = FACTORS[fault]
    node = lora_of(dtype)
    verdict = certified(node, plant(node))
    assert not verdict.holds
    assert wrong_names(verdict) == [f"{path}.W" for path in adapters(node)]
    assert all(abs(array.factor - factor) < 1e-6 for array in verdict.arrays if array.adapted)  # measured: 1e-7
    assert not any(array.factor_holds for array in verdict.arrays if array.adapted)
    worst = max(verdict.arrays, key=lambda array: array.used)
    reason = REASON.get(factor, "another scale, or another adapter")
    assert verdict.diagnosis == (
        f"{worst.name} is not W0 + s·BA: the update found is {factor:.4g} times the one expected ({reason}); "
        f"entry {list(worst.entry)} is off by {worst.gap:.3g}, where rounding explains {worst.bound:.3g}"
    )


def test_A_and_B_merged_in_the_wrong_order_are_found() -> None:
    """(BA)ᵀ has the shape of BA where the matrix is square."""
    node = lora_of()
    verdict = certified(node, each(lambda m: replace(m, A=m.B.T, B=m.A.T))(node))
    assert wrong_names(verdict) == [f"{path}.W" for path in adapters(node)]
    assert "another scale, or another adapter" in verdict.diagnosis


def test_the_adapter_of_another_seed_is_found() -> None:
    base = model(tied=False, dtype=np.float32)
    one, other = (moved(adapted(base, seed=seed)) for seed in (2, 3))
    assert "another scale, or another adapter" in certified(one, merge(other)).diagnosis


def test_one_adapter_of_many_that_was_forgotten_is_named() -> None:
    node, name = lora_of(), "blocks.1.attention.value"
    verdict = certified(node, merged_with(f"{name}.W", lambda W: adapters(node)[name].base.W)(node))
    assert wrong_names(verdict) == [f"{name}.W"]
    assert verdict.diagnosis.startswith(f"{name}.W is not W0 + s·BA: the update found is 0 times the one expected")
    assert "(nothing was merged)" in verdict.diagnosis


@in_both_precisions
def test_one_number_off_by_a_hundred_bounds_is_found_by_its_place_and_by_how_much(dtype: Any) -> None:
    node = lora_of(dtype)
    bound = verdict_of(certified(node, merge(node)), f"{QUERY}.W").bound

    def change(W: Any) -> Any:
        wrong = W.copy()
        wrong[3, 5] += 100 * bound
        return wrong

    verdict = certified(node, merged_with(f"{QUERY}.W", change)(node))
    assert wrong_names(verdict) == [f"{QUERY}.W"]
    found = verdict_of(verdict, f"{QUERY}.W")
    assert found.used > 10  # the bound is elementwise, and that entry has another
    assert (found.entry, found.wrong) == ((3, 5), 1)
    assert found.gap == pytest.approx(100 * bound, rel=0.02)  # it was off by up to a bound before
    assert verdict.diagnosis == (
        f"{QUERY}.W is not W0 + s·BA: "
        f"entry [3, 5] is off by {found.gap:.3g}, where rounding explains {found.bound:.3g}; "
        f"on the whole the update is there ({found.factor:.7g} times the one expected)"
    )


def test_how_many_entries_are_off_is_said() -> None:
    node, name = lora_of(), f"{QUERY}.W"

    def change(W: Any) -> Any:
        wrong = W.copy()
        wrong[2, :4] *= 1 + SMALL
        wrong[7, 0] *= 1 + 2 * SMALL
        return wrong

    verdict = certified(node, merged_with(name, change)(node))
    assert verdict_of(verdict, name).wrong == 5
    assert ", and so are 4 others; on the whole the update is there" in verdict.diagnosis


@in_both_precisions
@pytest.mark.parametrize(
    "name", ["blocks.0.attention.key.W", "norm.gamma", "blocks.1.mlp.up.b", "positions.W", "head.W"]
)
def test_a_frozen_array_changed_by_the_smallest_step_is_found(name: str, dtype: Any) -> None:
    def change(array: Any) -> Any:
        wrong = array.copy()
        wrong.flat[-1] = np.nextafter(wrong.flat[-1], dtype(9))
        return wrong

    node = lora_of(dtype)
    verdict = certified(node, merged_with(name, change)(node))
    assert wrong_names(verdict) == [name]
    assert verdict.diagnosis == f"{name} is not adapted and yet differs from the base"


def test_a_merge_into_another_base_is_found() -> None:
    node = lora_of()
    other = moved(adapted(model(seed=5, tied=False, dtype=np.float32)))
    assert not certified(node, merge(other)).holds


def test_an_adapter_that_should_change_nothing_and_yet_does_is_named() -> None:
    base = model(tied=False, dtype=np.float32)
    verdict = certified(adapted(base), merge(moved(adapted(base))))
    assert "W is not W0 + s·BA: the adapter changes nothing here, and yet entry [" in verdict.diagnosis


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [f"{QUERY}.W", "blocks.0.mlp.up.W"], ids=["adapted", "frozen"])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_number_that_is_not_finite_does_not_hold(name: str, value: float) -> None:
    def change(array: Any) -> Any:
        wrong = array.copy()
        wrong[0, 0] = value
        return wrong

    node = lora_of()
    verdict = certified(node, merged_with(name, change)(node))
    assert not verdict.holds
    assert wrong_names(verdict) == [name]


def test_a_wrong_token_table_is_found() -> None:
    node = moved(adapted(model(dtype=np.float32), targets=("tokens",), tied_head="tie"))
    verdict = certified(node, with_factor(2.0)(node))
    assert verdict.diagnosis.startswith("tokens.W is not W0 + s·BA: the update found is 2 times the one expected")


# ------------------------------------------------------------------------------------------------- what is refused


def test_a_merged_model_that_still_carries_lora_is_refused() -> None:
    node = lora_of()
    with pytest.raises(ValueError, match="the merged model still carries a LoraLinear"):
        certified(node, node)


def test_a_merged_model_of_other_shapes_or_arrays_is_refused() -> None:
    node = lora_of()
    small = merge(moved(adapted(model(dtype=np.float32, tied=False, vocab=10))))
    tied = replace(merge(node), head=None)
    without_bias = with_modules(merge(node), {QUERY: Linear(merge(node).blocks[0].attention.query.W)})
    for other in (small, tied, without_bias):
        with pytest.raises(ValueError, match="the merged model has other arrays than this base and adapter merge to"):
            certified(node, other)


def test_an_untied_merge_is_not_taken_for_a_tied_one() -> None:
    tied, untied = (moved(adapted(model(), targets=("tokens",), tied_head=policy)) for policy in ("tie", "untie"))
    with pytest.raises(ValueError, match="has other arrays"):
        certified(tied, merge(untied))


# ------------------------------------------------------------------------------------------------ the whole model


@in_both_precisions
def test_the_gap_of_a_correct_merge_is_rounding(dtype: Any) -> None:
    gaps = certified(lora_of(dtype), merge(lora_of(dtype))).model
    assert gaps.is_rounding
    assert 0 < gaps.gap64 < 1e-5 * gaps.contrast
    assert 0 < gaps.gap < 1e-5 * gaps.contrast


@in_both_precisions
@pytest.mark.parametrize("factor", [2.0, 1 + 1e-6, 0.0])
def test_a_merge_with_a_wrong_scale_leaves_a_gap_that_is_not_rounding(
    factor: float, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = lora_of(dtype)
    wrong = with_factor(factor)
    monkeypatch.setattr(certificate, "merge", wrong)
    verdict = certified(node, merge(node))
    assert not wrong_names(verdict)  # the file is right; it is the library's own merge that is not
    assert not verdict.model.is_rounding
    assert not verdict.holds
    assert verdict.diagnosis.endswith("but the logits differ by more than rounding")


@in_both_precisions
def test_a_wrong_delta_that_merge_and_judge_share_is_found_by_the_whole_model(
    dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, expected = lora_of(dtype), lora._expected
    assert {module.scaling for module in adapters(node).values()} == {1.5}
    monkeypatch.setattr(lora, "delta", lambda m: delta(replace(m, scaling=1.0)))
    monkeypatch.setattr(lora, "_expected", lambda W, left, right, scaling: expected(W, left, right, 1.0))
    verdict = certified(node, merge(node))
    assert not wrong_names(verdict)
    assert not verdict.model.is_rounding


SETTINGS: dict[str, Callable[[Transformer], dict[str, Any]]] = {
    "other heads": lambda node: {"blocks.1.attention": replace(node.blocks[1].attention, heads=4)},
    "no causal mask": lambda node: {"blocks.0.attention": replace(node.blocks[0].attention, causal=False)},
    "another epsilon": lambda node: {"norm": replace(node.norm, eps=1e-3)},
}


@in_both_precisions
@pytest.mark.parametrize("setting", SETTINGS)
def test_right_arrays_under_other_settings_are_found_by_the_whole_model(setting: str, dtype: Any) -> None:
    node = lora_of(dtype)
    merged = merge(node)
    verdict = certified(node, with_modules(merged, SETTINGS[setting](merged)))
    assert not wrong_names(verdict)
    assert not verdict.model.is_rounding
    assert verdict.diagnosis.endswith("but the logits differ by more than rounding")


def test_the_models_own_numbers_stand_in_the_certificate() -> None:
    node = lora_of()
    tokens = tokens_of(node)
    gaps = certify(node, merge(node), tokens).model
    assert gaps.size == abs(node(tokens)).max()
    assert gaps.contrast == abs(node(tokens) - unwrapped(node)(tokens)).max()
    assert gaps.gap == abs(node(tokens) - merge(node)(tokens)).max()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_honest_merge_is_made_in_the_models_own_precision_and_in_another(dtype: Any) -> None:
    """In float64 it would hardly differ, and every merge in float32 would look dishonest beside it."""
    node = lora_of(dtype)
    tokens = tokens_of(node)

    def gap_in(precision: Any) -> float:
        same = cast(node, precision)
        return float(abs(same(tokens) - merge(same)(tokens)).max())

    found = certify(node, merge(node), tokens)
    assert_holds(found)
    gaps, own = found.model, gap_in(dtype)
    assert (gaps.precision, gaps.own, gaps.gap) == (np.dtype(dtype).name, own, own)
    assert gaps.gap64 == gap_in(np.float64)
    assert gaps.coarse == (gap_in(np.float32) if dtype is np.float64 else own)
    assert gaps.gap64 < 1e-5 * gaps.coarse


def test_judging_changes_neither_model() -> None:
    node = lora_of()
    merged = merge(node)
    before = hashes(parameters(node)), hashes(parameters(merged))
    certified(node, merged)
    assert (hashes(parameters(node)), hashes(parameters(merged))) == before


# ------------------------------------------------------------------------------------------------- the bound (V1)


def exact_gap(module: Any, W: Any) -> Any:
    wide = replace(module, A=np.float64(module.A), B=np.float64(module.B))
    return abs(np.float64(W) - (np.float64(module.base.W) + delta(wide)))


@pytest.mark.parametrize("rank", [1, 2, 8, 32])
def test_no_merge_in_float32_comes_near_its_bound(rank: int) -> None:
    """What rounding does grows as the root of the rank, the bound as the rank. Measured: at most half is used."""
    base = initialize(config(d_model=64, heads=4, layers=1), rng(), np.float32)
    node = moved(adapt(base, LoraConfig(rank=rank, alpha=2.0 * rank), rng()))
    verdict = certified(node, merge(node))
    assert_holds(verdict)
    for path, module in adapters(node).items():
        array = verdict_of(verdict, f"{path}.W")
        assert array.gap in exact_gap(module, parameters(merge(node))[f"{path}.W"])
        assert array.used == array.gap / array.bound


# ------------------------------------------------------------------------------------------------------- as JSON


def test_a_certificate_is_json() -> None:
    node = lora_of()
    verdict = certified(node, merge(node))
    read = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert (read["holds"], read["diagnosis"]) == (True, verdict.diagnosis)
    assert [array["name"] for array in read["arrays"]] == [array.name for array in verdict.arrays]
    assert read["model"]["contrast"] == verdict.model.contrast


def test_a_certificate_that_does_not_hold_is_json_as_well() -> None:
    """A frozen array has a bound of zero, and gap over bound is infinite: JSON has no such number."""
    node = lora_of()
    verdict = certified(node, merged_with("norm.gamma", lambda gamma: 2 * gamma)(node))
    assert not json.loads(json.dumps(verdict.as_dict(), allow_nan=False))["holds"]
