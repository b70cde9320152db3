"""The laws of `lora`, along an adapter's life: adapt → nothing changed, train → B moved, merge → nothing changed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from builders import (
    adapted,
    assert_agree,
    assert_shrinks,
    cast,
    config,
    few_shapes,
    for_textbook,
    hashes,
    lora_linear_module,
    model,
    moved,
    random_batch,
    random_shapes,
    rescaled,
    tokens_of,
)
from hypothesis import given
from hypothesis import strategies as st

from lora_np import costs, textbook
from lora_np.engine.differentiation import value_and_grad
from lora_np.lora import LoraEmbedding, LoraLinear, adapters, delta, rounding_bound
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.model import Embedding, Linear, Transformer, dropout_mask, initialize, language_model_loss, with_dropout
from lora_np.optimization import TrainingConfig, start
from lora_np.parameters import count, parameters, with_parameters
from lora_np.training import fit, model_loss
from lora_np.wrappers import merge, unwrapped

EVERYTHING = {"targets": ("attention+mlp", "tokens", "head")}
PRECISIONS = [np.float64, np.float32]
in_both_precisions = pytest.mark.parametrize("dtype", PRECISIONS)
dimension = st.integers(1, 40)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@contextmanager
def oversize_allowed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*more than the \d+ of the matrix")
        yield


# ------------------------------------------------------------------------------------------ a fresh adapter


@in_both_precisions
@pytest.mark.parametrize("lora", [{}, EVERYTHING, {"dropout": 0.5}, {"initialization": "uniform", "rank": 1}])
def test_a_fresh_adapter_changes_no_output_bit_for_bit(dtype: Any, lora: dict[str, Any]) -> None:
    base = model(dtype=dtype, tied=False)
    fresh, tokens = adapted(base, **lora), tokens_of(base)
    assert np.abs(moved(fresh)(tokens) - base(tokens)).max() > 0.1  # contrast: B moved
    assert np.array_equal(fresh(tokens), base(tokens))


@random_shapes
@given(dimension, dimension, st.integers(0, 2**32))
def test_a_fresh_adapted_map_changes_no_output_bit_for_bit(d_out: int, d_in: int, seed: int) -> None:
    module = lora_linear_module(rng(seed), d_out, d_in, 2, np.float32)
    x = rng(seed).standard_normal((5, d_in)).astype(np.float32)
    assert not np.array_equal(module(x), module.base(x))
    assert np.array_equal(replace(module, B=0 * module.B)(x), module.base(x))


@pytest.mark.parametrize("lora", [{}, EVERYTHING], ids=["qv", "everything"])
def test_with_B_zero_every_gradient_of_A_is_exactly_zero_and_none_of_B_is(lora: dict[str, Any]) -> None:
    fresh = adapted(model(tied=False), **lora)
    batch = random_batch(fresh, batch=6)
    gradient_of = value_and_grad(lambda p: language_model_loss(with_parameters(fresh, p), batch))
    _, gradient = gradient_of(parameters(fresh, "*.A", "*.B"))
    _, later = gradient_of(parameters(moved(fresh), "*.A", "*.B"))
    for name, array in gradient.items():
        assert later[name].any(), name
        assert array.any() == name.endswith(".B"), name


def test_adapting_leaves_the_base_byte_identical_and_shares_its_arrays() -> None:
    base = model(tied=False)
    before = hashes(parameters(base))
    fresh = adapted(base, **EVERYTHING)
    assert hashes(parameters(base)) == before
    assert all(array is parameters(base)[name] for name, array in parameters(unwrapped(fresh)).items())


def test_unwrapped_is_the_base() -> None:
    base = model()
    below = unwrapped(moved(adapted(base)))
    assert not adapters(below)
    assert list(parameters(below)) == list(parameters(base))
    assert np.array_equal(below(tokens_of(base)), base(tokens_of(base)))


@in_both_precisions
def test_A_and_B_have_the_shapes_and_the_type_of_the_map(dtype: Any) -> None:
    fresh = adapted(model(dtype=dtype, tied=False), **EVERYTHING)
    for path, module in adapters(fresh).items():
        W = module.base.W.T if path == "tokens" else module.base.W
        assert (module.B.shape, module.A.shape) == ((W.shape[0], 2), (2, W.shape[1]))
        assert (module.A.dtype, module.B.dtype) == (dtype, dtype)
        assert module.A.all()
        assert not module.B.any()


def test_the_same_generator_gives_the_same_adapter_and_another_another() -> None:
    one, same, other = (parameters(adapted(model(), seed), "*.A") for seed in (0, 0, 1))
    assert hashes(one) == hashes(same)
    assert all(not np.array_equal(one[name], other[name]) for name in one)
    assert len(set(hashes(one).values())) == len(one)  # each map its own


@pytest.mark.parametrize(
    ("initialization", "times_d_in", "excess"),
    [("gaussian", 1.0, 2.0), ("uniform", 1 / 3, 0.8)],
)
def test_A_starts_with_the_stated_variance(initialization: str, times_d_in: float, excess: float) -> None:
    """Σ A² d_in has expectation n·times_d_in. Normal numbers: chi-squared, of relative variance 2/n; uniform ones:
    E x⁴ / (E x²)² − 1 = 9/5 − 1 = 0.8 in place of 2. Five deviations; a tenth more spread would be 15 or more."""
    fresh = adapted(initialize(config(d_model=64, layers=4), rng()), initialization=initialization, rank=8)
    A = np.concatenate([array.ravel() for array in parameters(fresh, "*.A").values()]).astype(np.float64)
    allowed = 5.0 * math.sqrt(excess / A.size)
    assert abs(np.mean(A**2) * 64 / times_d_in - 1.0) <= allowed
    assert abs(np.mean((1.1 * A) ** 2) * 64 / times_d_in - 1.0) > allowed
    assert abs(np.mean(A)) <= 5.0 * math.sqrt(times_d_in / 64 / A.size)
    assert (np.abs(A).max() <= 1 / 8) == (initialization == "uniform")


def test_A_of_the_mlp_starts_with_the_variance_of_its_own_d_in() -> None:
    fresh = adapted(initialize(config(d_model=64, layers=8), rng()), targets="mlp.down", rank=8)
    A = np.concatenate([array.ravel() for array in parameters(fresh, "*.A").values()]).astype(np.float64)
    assert abs(np.mean(A**2) * 256 - 1.0) <= 5.0 * math.sqrt(2.0 / A.size)


# --------------------------------------------------------------------------------------------------- delta


@random_shapes
@given(dimension, dimension, st.integers(1, 6), st.integers(0, 2**32))
def test_all_orders_of_multiplication_give_the_same_output(d_out: int, d_in: int, rank: int, seed: int) -> None:
    """(W0 + s·BA)x, W0x + s(BA)x and W0x + s·B(Ax): two at a time within `rounding_bound`, which a wrong s is not."""
    module = lora_linear_module(rng(seed), d_out, d_in, rank, bias=False)
    x = rng(seed + 1).standard_normal((3, d_in))
    W, A, B, s = module.base.W, module.A, module.B, module.scaling
    orders = [x @ (W + s * (B @ A)).T, x @ W.T + s * (x @ (B @ A).T), x @ W.T + s * ((x @ A.T) @ B.T)]
    bound = rounding_bound(module, x)
    wrong = x @ W.T + 1.01 * s * ((x @ A.T) @ B.T)
    for i in range(3):
        assert (np.abs(orders[i] - orders[i - 1]) <= bound).all()
        assert (np.abs(wrong - orders[i]) > bound).any()


@few_shapes
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32))
def test_the_rank_of_delta_is_at_most_r(d_out: int, d_in: int, rank: int, seed: int) -> None:
    module = lora_linear_module(rng(seed), d_out, d_in, rank)
    assert np.linalg.matrix_rank(delta(module)) == min(rank, d_out, d_in)  # random A and B reach the bound
    assert np.linalg.matrix_rank(module.base.W) == min(d_out, d_in)


@pytest.mark.parametrize(("d_out", "d_in"), [(3, 7), (7, 3), (5, 5)])
def test_rank_min_of_d_in_and_d_out_reaches_any_update(d_out: int, d_in: int) -> None:
    """Here for any A of full rank, when d_in is the smaller, and for any B of full rank, when d_out is."""
    update, r, s = rng().standard_normal((d_out, d_in)), min(d_out, d_in), 1.7
    free = rng(1).standard_normal((r, r))
    A, B = (free, update @ np.linalg.inv(free) / s) if r == d_in else (np.linalg.inv(free) @ update / s, free)
    module = LoraLinear(Linear(np.zeros((d_out, d_in))), A, B, s)
    assert np.linalg.matrix_rank(update) == r
    # the error of an inverse is at most r · eps times the condition number of what is inverted
    bound = 10 * r * np.finfo(float).eps * np.linalg.cond(free) * np.abs(update).max()
    assert np.abs(delta(module) - update).max() <= bound
    smaller = LoraLinear(module.base, A[:-1], B[:, :-1], s)
    assert np.abs(delta(smaller) - update).max() > 0.1


def test_delta_of_a_table_has_the_orientation_of_the_table() -> None:
    table = moved(adapted(model(), targets="tokens", tied_head="tie")).tokens
    assert delta(table).shape == table.base.W.shape == (11, 8)
    assert_agree(delta(table), table.scaling * (table.B @ table.A).T)


@pytest.mark.parametrize(("rule", "expected"), [("alpha/rank", 12.0 / 9), ("alpha/sqrt(rank)", 4.0)])
def test_the_scaling_is_alpha_over_rank_or_over_its_root(rule: str, expected: float) -> None:
    with oversize_allowed():
        fresh = adapted(model(d_model=12, heads=3), rank=9, alpha=12.0, scaling=rule)
    assert {module.scaling for module in adapters(fresh).values()} == {expected}
    assert all(np.array_equal(delta(m), expected * (m.B @ m.A)) for m in adapters(moved(fresh)).values())


@pytest.mark.parametrize("number", [np.float64, np.float32])
@pytest.mark.parametrize("rule", ["alpha/rank", "alpha/sqrt(rank)"])
def test_an_alpha_that_is_a_numpy_number_leaves_float32_float32(number: Any, rule: str) -> None:
    """np.float64 · float32 array is a float64 array: merged weights would double in size."""
    lora = moved(adapted(model(dtype=np.float32), alpha=number(3.0), scaling=rule))
    batch = random_batch(lora)
    _, gradient = value_and_grad(lambda p: language_model_loss(with_parameters(lora, p), batch))(
        parameters(lora, "*.B")
    )
    assert {array.dtype for array in parameters(merge(lora)).values()} == {np.dtype(np.float32)}
    assert {array.dtype for array in gradient.values()} == {np.dtype(np.float32)}


# ----------------------------------------------------------------------------------- it is the textbook's


TARGETS = ["qv", "qkvo", "attention+mlp", "all-linear", ("tokens", "qv"), ("attention+mlp", "tokens", "head")]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_logits_loss_and_gradients_of_A_and_B_are_the_textbooks(targets: Any) -> None:
    assert_is_the_textbooks(moved(adapted(model(tied=False), targets=targets)))


def assert_is_the_textbooks(lora: Transformer) -> None:
    batch, heads = random_batch(lora), lora.config.heads
    arrays, scaling = for_textbook(lora)
    trained = parameters(lora, "*.A", "*.B")
    assert_agree(lora(batch.tokens), textbook.logits(arrays, batch.tokens, heads, scaling))

    def theirs(p: dict[str, Any]) -> Any:
        return textbook.loss({**arrays, **p}, batch.tokens, batch.targets, batch.weights, heads, scaling)

    value, gradient = value_and_grad(lambda p: language_model_loss(with_parameters(lora, p), batch))(trained)
    their_value, their_gradient = autograd.value_and_grad(theirs)(trained)
    assert_agree(value, their_value)
    for name in trained:
        assert gradient[name].any(), name
        assert_agree(gradient[name], their_gradient[name], name)


def test_the_comparison_catches_a_scaling_off_by_a_thousandth() -> None:
    lora = moved(adapted(model()))
    arrays, scaling = for_textbook(lora)
    tokens = tokens_of(lora)
    with pytest.raises(AssertionError, match="apart"):
        assert_agree(rescaled(lora, 1.001)(tokens), textbook.logits(arrays, tokens, lora.config.heads, scaling))


# --------------------------------------------------------------------------------------------------- merging


def assert_same_output(one: Callable[..., Any], other: Callable[..., Any], module: LoraLinear, x: Any) -> None:
    """Elementwise within the rounding bound of the adapted map."""
    gap = np.abs(one(x).astype(np.float64) - other(x).astype(np.float64))
    assert (gap <= rounding_bound(module, x)).all(), "not the same map"


@in_both_precisions
@random_shapes
@given(dimension, dimension, st.integers(1, 9), st.booleans(), st.integers(0, 2**32))
def test_merged_and_adapted_output_are_equal_within_the_rounding_bound(
    dtype: Any, d_out: int, d_in: int, rank: int, bias: bool, seed: int
) -> None:
    module = lora_linear_module(rng(seed), d_out, d_in, rank, dtype, bias)
    x = rng(seed + 1).standard_normal((7, d_in)).astype(dtype)
    assert np.abs(module(x) - module.base(x)).max() > 1e-3  # contrast: the adapter does something
    merged = merge(module)
    assert type(merged) is Linear
    assert merged.W.dtype == dtype
    assert_same_output(merged, module, module, x)


FAULTS: dict[str, Callable[[LoraLinear], Linear]] = {
    "a scaling off by a hundredth": lambda m: merge(replace(m, scaling=1.01 * m.scaling)),
    "a lost scaling": lambda m: merge(replace(m, scaling=1.0)),
    "a transposed update": lambda m: replace(m.base, W=m.base.W + delta(m).T),
    "a doubled merge": lambda m: replace(m.base, W=m.base.W + 2 * delta(m)),
    "a sign": lambda m: replace(m.base, W=m.base.W - delta(m)),
    "no merge": lambda m: m.base,
    "a lost bias": lambda m: replace(merge(m), b=None),
    "one number changed by a thousandth": lambda m: replace(merge(m), W=merge(m).W * (1 + 1e-3 * np.eye(24, k=5))),
}


@in_both_precisions
@pytest.mark.parametrize("fault", FAULTS)
def test_the_rounding_bound_catches(fault: str, dtype: Any) -> None:
    module = lora_linear_module(rng(), 24, 24, 4, dtype)
    x = rng(1).standard_normal((50, 24)).astype(dtype)
    assert_same_output(merge(module), module, module, x)
    with pytest.raises(AssertionError, match="not the same map"):
        assert_same_output(cast(FAULTS[fault](module), dtype), module, module, x)


def share_of_bound(module: LoraLinear, x: Any) -> Any:
    """The gap between merged and adapted output over its bound, elementwise."""
    gap = np.abs(merge(module)(x).astype(np.float64) - module(x).astype(np.float64))
    return gap / rounding_bound(module, x)


@in_both_precisions
@pytest.mark.parametrize(("d_in", "rank", "least"), [(1, 1, 0.2), (2, 1, 0.2), (32, 4, 0.01)])
def test_the_rounding_bound_is_no_wider_than_it_must_be(dtype: Any, d_in: int, rank: int, least: float) -> None:
    """It holds in the worst case, of which n roundings at random reach about 1/√n: measured 0.26 to 0.38, and 0.04."""
    module = replace(lora_linear_module(rng(), 8, d_in, rank, dtype, bias=False), scaling=1.7)
    x = rng(1).standard_normal((4000, d_in)).astype(dtype)
    assert least < share_of_bound(module, x).max() <= 1.0


@in_both_precisions
def test_the_rounding_bound_grows_with_d_in_as_it_must(dtype: Any) -> None:
    """Among numbers of 1/u every 1 that W0 + sBA brings is lost, one after another; W0x and BAx alone lose none."""
    d_in, is_big = 8192, rng().random(8192) < 1 / 64
    W = np.where(is_big, 2.0 / np.finfo(dtype).eps, 0.0).astype(dtype)
    module = LoraLinear(Linear(W[None]), (~is_big).astype(dtype)[None], np.ones((1, 1), dtype), 1.0)
    share = share_of_bound(module, np.ones((3, d_in), dtype)).max()
    assert share <= 1.0
    assert share * (d_in + 1 + 4) / (1 + 4) > 2.0  # of a bound with n = r + 4 it is more than all: measured 3.9


@in_both_precisions
def test_the_rounding_bound_grows_with_the_rank_as_it_must(dtype: Any) -> None:
    """The same inside BA, whose columns meet only in the merged sum: A(1, 1) is 1 or 0 where its entries are 1/u."""
    rank, is_big = 16384, rng().random((16384, 1)) < 1 / 128
    A = np.where(is_big, 2.0 / np.finfo(dtype).eps * np.array([1, -1]), np.array([1, 0])).astype(dtype)
    module = LoraLinear(Linear(np.zeros((1, 2), dtype)), A, np.ones((1, rank), dtype), 1.0)
    share = share_of_bound(module, np.ones((3, 2), dtype)).max()
    assert share <= 1.0
    assert share * (2 + rank + 4) / (2 + 4) > 2.0  # measured 5.3


@in_both_precisions
def test_the_rounding_bound_grows_with_the_bias_as_it_must(dtype: Any) -> None:
    """The sum with a large b rounds at the size of b, and two sums that differ in their last bit to either side."""
    module = lora_linear_module(rng(), 8, 4, 2, dtype)
    large = replace(module, base=replace(module.base, b=1000 * module.base.b))
    x = rng(1).standard_normal((4000, 4)).astype(dtype)
    share = share_of_bound(large, x)
    assert share.max() <= 1.0
    without = rounding_bound(replace(large, base=replace(large.base, b=None)), x)
    assert (share * rounding_bound(large, x) / without).max() > 2.0


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_merging_a_whole_model_changes_no_logit_but_by_rounding(targets: Any) -> None:
    def gap(dtype: Any) -> Any:
        lora = moved(adapted(model(dtype=dtype, tied=False), targets=targets))
        tokens = tokens_of(lora)
        assert np.abs(lora(tokens) - unwrapped(lora)(tokens)).max() > 0.1
        assert not adapters(merge(lora))
        return merge(lora)(tokens) - lora(tokens)

    assert_shrinks(gap)


@pytest.mark.parametrize("factor", [1.01, 1.0001])
def test_a_wrong_scale_in_a_merged_model_does_not_shrink(factor: float) -> None:
    def gap(dtype: Any) -> Any:
        lora = moved(adapted(model(dtype=dtype)))
        return merge(rescaled(lora, factor))(tokens_of(lora)) - lora(tokens_of(lora))

    with pytest.raises(AssertionError, match="beside"):
        assert_shrinks(gap)


def test_merging_leaves_the_adapted_model_byte_identical() -> None:
    lora = moved(adapted(model(tied=False), **EVERYTHING))
    before = hashes(parameters(lora))
    merged = merge(lora)
    assert hashes(parameters(lora)) == before
    adapted_maps = {f"{path}.W" for path in adapters(lora)}
    for name, array in parameters(merged).items():
        assert (array is parameters(unwrapped(lora))[name]) == (name not in adapted_maps)


def test_a_merged_model_has_the_names_of_the_base() -> None:
    base = model(tied=False)
    merged = merge(moved(adapted(base, **EVERYTHING)))
    assert {n: a.shape for n, a in parameters(merged).items()} == {n: a.shape for n, a in parameters(base).items()}


def test_merging_what_carries_no_lora_raises_so_merging_twice_does() -> None:
    for plain in (model(), merge(moved(adapted(model())))):
        with pytest.raises(ValueError, match="nothing to merge: the model carries no adapter"):
            merge(plain)


def test_adapting_twice_raises_and_adapting_after_a_merge_does_not() -> None:
    lora = moved(adapted(model()))
    already = "the model carries a LoraLinear already, at blocks.0.attention.query: merge it first, or adapt the base"
    for targets in ("qv", "mlp.up"):
        with pytest.raises(ValueError, match=already):
            adapted(lora, targets=targets)
        with pytest.raises(ValueError, match="the model carries LoRA already: merge it first, or adapt the base"):
            LoraConfig(rank=2, targets=targets).apply(lora, rng())
    assert adapters(adapted(merge(lora)))


# -------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_training_moves_what_is_selected_and_leaves_every_other_array_byte_identical(bias: str) -> None:
    base = model(dtype=np.float32)
    lora = adapted(base, dropout=0.1, bias=bias)
    trained = LoraConfig(bias=bias).trained(lora)
    before = hashes(parameters(base)), hashes(parameters(lora))
    settings = TrainingConfig(steps=3, learning_rate=1e-2, warmup=0)
    batches = [random_batch(lora, seed) for seed in range(3)]
    *_, last = fit(model_loss(lora), batches, settings, start(trained, settings), workers=1)
    after = with_parameters(lora, last.state.trained)
    assert (hashes(parameters(base)), hashes(parameters(lora))) == before
    for name, digest in hashes(parameters(after)).items():
        if not name.endswith("key.b"):  # softmax does not see it: whether rounding moves it is chance
            assert (digest != before[1][name]) == (name in last.state.trained), name
    below, merged = hashes(parameters(unwrapped(after))), hashes(parameters(merge(after)))
    changed = {name for name in below if below[name] != merged[name]}
    assert changed == {f"{path}.W" for path in adapters(after)}


# ------------------------------------------------------------------------------------ what is adapted, and how


PRESETS = {
    "qv": ("attention.query", "attention.value"),
    "qkvo": ("attention.query", "attention.key", "attention.value", "attention.output"),
    "attention+mlp": (
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "mlp.up",
        "mlp.down",
    ),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_adapts_the_maps_of_every_block_that_it_names(preset: str) -> None:
    expected = {f"blocks.{layer}.{name}" for layer in range(2) for name in PRESETS[preset]}
    assert set(adapters(adapted(model(tied=False), targets=preset))) == expected


def test_all_linear_adapts_the_head_where_it_is_a_matrix_of_its_own() -> None:
    blocks = set(adapters(adapted(model(), targets="attention+mlp")))
    assert set(adapters(adapted(model(tied=True), targets="all-linear"))) == blocks
    assert set(adapters(adapted(model(tied=False), targets="all-linear"))) == blocks | {"head"}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("blocks.1.*", {f"blocks.1.{name}" for name in PRESETS["attention+mlp"]}),
        (("blocks.0.attention.key", "head"), {"blocks.0.attention.key", "head"}),
        (("qv", "mlp.up"), {f"blocks.{i}.{n}" for i in (0, 1) for n in (*PRESETS["qv"], "mlp.up")}),
        ("mlp.*", {f"blocks.{i}.mlp.{n}" for i in (0, 1) for n in ("up", "down")}),
        ("tokens", {"tokens"}),
    ],
)
def test_targets_are_presets_and_patterns_of_module_paths(targets: Any, expected: set[str]) -> None:
    assert set(adapters(adapted(model(tied=False), targets=targets))) == expected


@pytest.mark.parametrize("preset", ["qv", "qkvo", "attention+mlp", "all-linear"])
@pytest.mark.parametrize("tied", [True, False])
@few_shapes
@given(st.data())
def test_the_number_of_trained_numbers_is_the_closed_form(preset: str, tied: bool, data: st.DataObject) -> None:
    heads, width = data.draw(st.integers(1, 3)), st.integers(1, 5)
    sizes = config(
        vocab=data.draw(st.integers(1, 20)),
        d_model=heads * data.draw(width),
        layers=data.draw(st.integers(1, 3)),
        heads=heads,
        d_ff=data.draw(st.integers(1, 20)),
        tied=tied,
    )
    narrow = min(sizes.d_model, sizes.d_hidden if "mlp" in preset or preset == "all-linear" else sizes.d_model)
    narrow = min(narrow, sizes.vocab) if preset == "all-linear" and not tied else narrow
    rank = data.draw(st.integers(1, narrow))
    base = initialize(sizes, rng())
    with oversize_allowed():
        lora = adapt(base, LoraConfig(rank=rank, targets=preset), rng())
    predicted = costs.lora_count(sizes, rank, preset)
    assert count(LoraConfig().trained(lora)) == predicted
    assert count(lora) == costs.parameter_count(sizes) + predicted
    assert count(merge(lora)) == costs.parameter_count(sizes)


def test_the_adapted_token_table_counts_as_the_closed_form_says() -> None:
    lora = adapted(model(), targets=("tokens", "qv"), tied_head="tie")
    assert count(lora, "*.A", "*.B") == costs.lora_count(lora.config, 2, ("tokens", *PRESETS["qv"]))


def test_ranks_and_alphas_can_be_given_by_pattern_and_the_last_match_wins() -> None:
    lora = adapted(
        model(),
        targets="attention+mlp",
        rank=1,
        alpha=1.0,
        ranks={"mlp.*": 3, "attention.value": 2, "blocks.1.mlp.up": 4},
        alphas={"attention.*": 6.0, "blocks.0.attention.value": 7.0},
    )
    found = {path: (len(module.A), module.scaling) for path, module in adapters(lora).items()}
    assert found["blocks.0.mlp.up"] == (3, 1 / 3)
    assert found["blocks.1.mlp.up"] == (4, 1 / 4)
    assert found["blocks.1.mlp.down"] == (3, 1 / 3)
    assert found["blocks.0.attention.query"] == (1, 6.0)
    assert found["blocks.1.attention.value"] == (2, 3.0)
    assert found["blocks.0.attention.value"] == (2, 3.5)


def test_a_rank_or_alpha_for_what_is_no_target_raises() -> None:
    for special in ({"ranks": {"mlp.up": 3}}, {"alphas": {"mlp.up": 3.0}}):
        with pytest.raises(ValueError, match=r"'mlp\.up' matches none of the 4 names"):
            adapted(model(), targets="qv", **special)


@pytest.mark.parametrize(
    ("target", "nearest"),
    [("attention.querry", "attention.query"), ("mlp.upp", "mlp.up"), ("token", "tokens"), ("attention.q", "attention")],
)
def test_an_unknown_target_raises_and_names_the_nearest(target: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"'{target}' matches none of the 13 names; the nearest are .*{nearest}"):
        adapted(model(), targets=(target,))


def test_the_head_of_a_tied_model_is_no_target() -> None:
    with pytest.raises(ValueError, match="'head' matches none"):
        adapted(model(tied=True), targets="head")


@pytest.mark.parametrize("rank", [0, -1, 1.0, "4", True, None])
def test_a_rank_that_is_no_positive_whole_number_raises(rank: Any) -> None:
    for wrong in ({"rank": rank}, {"ranks": {"mlp.up": rank}}):
        with pytest.raises(ValueError, match=f"rank must be a whole number of at least 1, got {rank!r}"):
            LoraConfig(**wrong)


@pytest.mark.parametrize("targets", ["qv", "mlp.up", "mlp.down"])
def test_a_rank_above_the_smaller_dimension_raises_and_says_why(targets: str) -> None:
    with oversize_allowed():
        assert adapters(adapted(model(), targets=targets, rank=8))
        with pytest.raises(ValueError, match=r"rank must lie in 1\.\.min\(d_in, d_out\) = 1\.\.8 for blocks.*, got 9"):
            adapted(model(), targets=targets, rank=9)


def test_an_adapter_larger_than_its_matrix_warns() -> None:
    """8 × 8: rank 4 trains 64 numbers, which is not more; rank 5 trains 80."""
    adapted(model(), rank=4)
    with pytest.warns(UserWarning, match="rank 5 trains 80 numbers, more than the 64 of the matrix") as caught:
        adapted(model(), rank=5)
    assert len(caught) == 4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"alpha": 0.0}, "alpha must be a positive number, got 0.0"),
        ({"alpha": math.nan}, "alpha must be a positive number, got nan"),
        ({"alphas": {"mlp.up": -1.0}}, "alpha must be a positive number, got -1.0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
        ({"scaling": "alpha"}, r"scaling must be one of 'alpha/rank', 'alpha/sqrt\(rank\)', got 'alpha'"),
        ({"initialization": "zeros"}, "initialization must be one of 'gaussian', 'uniform', got 'zeros'"),
        ({"bias": "some"}, "bias must be one of 'none', 'lora_only', 'all', got 'some'"),
        ({"tied_head": "both"}, "tied_head must be one of 'refuse', 'tie', 'untie', got 'both'"),
        ({"targets": ()}, "targets must name at least one module or preset"),
    ],
)
def test_a_setting_outside_its_set_raises_and_says_the_set(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LoraConfig(**wrong)


@pytest.mark.parametrize(("A", "B"), [((2, 5), (3, 2)), ((2, 4), (4, 2)), ((2, 4), (3, 1)), ((4,), (3, 2))])
def test_A_and_B_that_do_not_fit_beside_a_map_raise(A: tuple[int, ...], B: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"A must be \(rank, 4\) and B \(3, rank\) beside this map"):
        LoraLinear(Linear(np.ones((3, 4))), np.ones(A), np.ones(B), 1.0)
    with pytest.raises(ValueError, match=r"A must be \(rank, 4\) and B \(3, rank\) beside this map"):
        LoraEmbedding(Embedding(np.ones((4, 3))), np.ones(A), np.ones(B), 1.0)


# ------------------------------------------------------------------------------------------------ the biases


def names(node: Transformer, bias: Any) -> set[str]:
    return set(LoraConfig(bias=bias).trained(node))


def test_a_bias_selection_trains_no_bias_those_of_adapted_maps_or_all() -> None:
    lora = adapted(model(), targets="qv")
    factors = {f"{path}.{leaf}" for path in adapters(lora) for leaf in "AB"}
    assert names(lora, "none") == factors
    assert names(lora, "lora_only") == factors | {f"{path}.base.b" for path in adapters(lora)}
    every = {path for path in parameters(lora) if path.endswith((".b", ".beta"))}
    assert names(lora, "all") == factors | every
    assert count({n: a for n, a in parameters(lora).items() if n in every}) == costs.bias_count(lora.config)


# --------------------------------------------------------------------------------------------- the tied head


def tied(policy: str, dtype: Any = np.float64) -> Transformer:
    return moved(adapted(model(dtype=dtype), targets=("tokens", "qv"), tied_head=policy))


def test_adapting_a_tied_table_is_refused_unless_said_what_becomes_of_the_head() -> None:
    with pytest.raises(ValueError, match="the token embedding is also the output head: say tied_head='tie'"):
        adapted(model(), targets="tokens")
    assert adapters(adapted(model(tied=False), targets="tokens"))  # nothing to say where the head is its own


def test_tie_adapts_lookup_and_head() -> None:
    lora, h = tied("tie"), rng().standard_normal((3, 8))
    table = merge(lora).tokens.W
    assert lora.head is None
    assert_agree(lora.tokens(np.arange(11)), table)
    assert_agree(lora.tokens.as_head()(h), h @ table.T)
    assert np.abs(table - lora.tokens.base.W).max() > 0.1


def test_untie_adapts_the_lookup_and_leaves_the_head_at_the_old_table() -> None:
    base = model()
    lora = moved(adapt(base, LoraConfig(rank=2, targets="tokens", tied_head="untie"), rng()))
    assert lora.head is not None
    assert lora.head.W is base.tokens.W
    assert (lora.config.tied, base.config.tied, base.head) == (False, True, None)
    assert np.abs(lora.tokens(np.arange(11)) - base.tokens.W).max() > 0.1
    merged = merge(lora)
    assert merged.head is not None
    assert merged.head.W is base.tokens.W


@pytest.mark.parametrize("policy", ["tie", "untie"])
def test_both_policies_change_no_output_when_fresh_and_none_when_merged(policy: str) -> None:
    base = model()
    fresh = adapted(base, targets="tokens", tied_head=policy)
    assert np.array_equal(fresh(tokens_of(base)), base(tokens_of(base)))

    def gap(dtype: Any) -> Any:
        lora = tied(policy, dtype)
        return merge(lora)(tokens_of(lora)) - lora(tokens_of(lora))

    assert_shrinks(gap)


def test_the_policies_are_two_different_models() -> None:
    tokens = tokens_of(tied("tie"))
    assert np.abs(tied("tie")(tokens) - tied("untie")(tokens)).max() > 0.1


@pytest.mark.parametrize("policy", ["tie", "untie"])
def test_both_policies_have_the_textbooks_logits_and_gradients(policy: str) -> None:
    assert_is_the_textbooks(tied(policy))


@in_both_precisions
def test_merged_and_adapted_table_give_the_same_rows(dtype: Any) -> None:
    """Row t is W_t + s·BA_t: rank products and sums, the factor s, one sum; (rank + 3) eps of the sizes, both ways."""
    table = tied("tie", dtype).tokens
    ids = np.arange(11)
    W, A, B = (np.abs(array.astype(np.float64)) for array in (table.base.W, table.A, table.B))
    bound = (2 + 3) * np.finfo(dtype).eps * (W + table.scaling * (B @ A).T)
    assert (np.abs(merge(table)(ids).astype(np.float64) - table(ids)) <= bound).all()
    assert (np.abs(merge(replace(table, scaling=1.01 * table.scaling))(ids) - table(ids)) > bound).any()


# --------------------------------------------------------------------------------------------------- dropout


def test_without_a_generator_nothing_is_left_out() -> None:
    base = model()
    with_, without = (moved(adapted(base, dropout=p)) for p in (0.5, 0.0))
    assert np.array_equal(with_(tokens_of(base)), without(tokens_of(base)))


def test_the_same_generator_leaves_out_the_same_and_another_other_entries() -> None:
    lora = moved(adapted(model(), dropout=0.5))
    tokens = tokens_of(lora)
    one, same, other = (with_dropout(lora, rng(seed))(tokens) for seed in (0, 0, 1))
    assert np.abs(one - lora(tokens)).max() > 0.1
    assert np.array_equal(one, same)
    assert np.abs(one - other).max() > 0.1


def test_every_map_and_every_call_draws_its_own_mask() -> None:
    lora = with_dropout(moved(adapted(model(), dropout=0.5)), rng())
    x = np.ones((4, 8))
    outputs = [module(x) for module in adapters(lora).values() for _ in range(2)]
    assert len({array.tobytes() for array in outputs}) == len(outputs)


def test_a_model_without_dropout_trains_as_it_evaluates() -> None:
    lora = moved(adapted(model(tied=False), dropout=0.0, **EVERYTHING))
    generator = rng()
    assert np.array_equal(with_dropout(lora, generator)(tokens_of(lora)), lora(tokens_of(lora)))
    assert generator.random() == rng().random()  # nothing was drawn


@in_both_precisions
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_dropout_mask_preserves_the_mean(p: float, dtype: Any) -> None:
    """An entry is 0 with probability p, else 1/(1−p): mean 1, variance p/(1−p). Five deviations of 40 000."""
    mask = dropout_mask(rng(), np.empty((200, 200), dtype), p)
    assert mask.dtype == dtype
    assert set(np.unique(mask)) == {dtype(0), dtype(1 / (1 - p))}
    assert abs(mask.mean(dtype=np.float64) - 1.0) <= 5.0 * math.sqrt(p / (1 - p) / mask.size)


def test_dropout_reaches_the_low_rank_branch_alone() -> None:
    module = replace(lora_linear_module(rng(), 3, 4, 2), dropout=0.5, generator=rng())
    x = rng(1).standard_normal((6, 4))
    mask = dropout_mask(rng(), x, 0.5)
    assert 0 < np.count_nonzero(mask) < mask.size
    frozen = module.base(x)
    assert_agree(module(x), frozen + module.scaling * (((x * mask) @ module.A.T) @ module.B.T))


def test_the_mask_reaches_every_gradient_as_the_textbook_has_it() -> None:
    module = lora_linear_module(rng(), 3, 4, 2)
    x, dy = rng(1).standard_normal((6, 4)), rng(2).standard_normal((6, 3))
    point = {"x": x, "A": module.A, "B": module.B}
    mask = dropout_mask(rng(5), x, 0.5)

    def ours(p: dict[str, Any]) -> Any:
        dropping = replace(module, A=p["A"], B=p["B"], dropout=0.5, generator=rng(5))
        return anp.sum(dropping(p["x"]) * dy)

    def theirs(p: dict[str, Any]) -> Any:
        frozen = textbook.linear({"map.W": module.base.W, "map.b": module.base.b}, "map", p["x"], {})
        low_rank = {"map.W": np.zeros((3, 4)), "map.A": p["A"], "map.B": p["B"]}
        return anp.sum((frozen + textbook.linear(low_rank, "map", p["x"] * mask, {"map": module.scaling})) * dy)

    value, gradient = value_and_grad(ours)(point)
    their_value, their_gradient = autograd.value_and_grad(theirs)(point)
    _, undropped = value_and_grad(lambda p: anp.sum(replace(module, A=p["A"], B=p["B"])(p["x"]) * dy))(point)
    assert_agree(value, their_value)
    for name in point:
        assert np.abs(undropped[name] - gradient[name]).max() > 0.1
        assert_agree(gradient[name], their_gradient[name], name)
