"""The laws of `costs`: exact values of known models, and how every closed form grows."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import json
import math
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import few_shapes, random_batch
from hypothesis import given
from hypothesis import strategies as st

from lora_np import costs
from lora_np.config import SHAPES, TransformerConfig, shape_name
from lora_np.engine.differentiation import value_and_grad
from lora_np.method import Method
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.methods.tuning import BitFit, Full, Top
from lora_np.model import initialize, language_model_loss, skeleton
from lora_np.names import ATTENTION, MLP, PRESETS
from lora_np.optimization import TrainingConfig, start
from lora_np.parameters import parameters, with_parameters
from lora_np.tasks import Batch
from lora_np.training import fit, model_loss
from lora_np.wrappers import merge


def sized(
    layers: int, d_model: int, heads: int, d_ff: int, vocab: int, context: int, tied: bool = True
) -> TransformerConfig:
    return TransformerConfig(vocab, context, d_model, layers, heads, d_ff, tied=tied)


ROBERTA_BASE = sized(12, 768, 12, 3072, 50265, 512)
MODULES = (*ATTENTION, *MLP, "tokens")


@st.composite
def shapes(draw: st.DrawFn) -> TransformerConfig:
    size = st.integers(1, 9)
    heads = draw(size)
    return sized(
        layers=draw(size),
        d_model=heads * draw(size),
        heads=heads,
        d_ff=draw(st.integers(1, 99)),
        vocab=draw(st.integers(1, 99)),
        context=draw(st.integers(1, 99)),
        tied=draw(st.booleans()),
    )


@st.composite
def adapters(draw: st.DrawFn) -> tuple[TransformerConfig, int, tuple[str, ...]]:
    """A shape, and a rank and targets that it allows."""
    shape = draw(shapes())
    targets = draw(st.lists(st.sampled_from(MODULES), min_size=1, unique=True))
    return shape, draw(st.integers(1, min(shape.d_model, shape.d_hidden, shape.vocab))), tuple(targets)


# ------------------------------------------------------------------------------------------- known values


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("gpt3", 174_604_259_328),
        ("base", 1_951_872),
    ],
)
def test_parameter_counts_are_those_of_the_published_models(model: str, count: int) -> None:
    assert costs.parameter_count(SHAPES[model]) == count


@pytest.mark.parametrize(
    ("shape", "rank", "targets", "count"),
    [
        (SHAPES["gpt2-medium"], 4, "qv", 393_216),
        (SHAPES["gpt2-large"], 4, "qv", 737_280),
        (ROBERTA_BASE, 8, "qv", 294_912),
        (SHAPES["gpt3"], 1, "qv", 4_718_592),
        (SHAPES["gpt3"], 2, "qv", 9_437_184),
        (SHAPES["gpt3"], 4, "qv", 18_874_368),
        (SHAPES["gpt3"], 8, "qv", 37_748_736),
        (SHAPES["gpt3"], 64, "qv", 301_989_888),
        (SHAPES["gpt3"], 64, "qkvo", 603_979_776),
    ],
    ids=lambda value: shape_name(value) if isinstance(value, TransformerConfig) else str(value),
)
def test_adapter_counts_are_those_of_the_papers_tables(
    shape: TransformerConfig, rank: int, targets: str, count: int
) -> None:
    assert costs.lora_count(shape, rank, targets) == count


def test_every_placement_of_the_papers_table_5_has_one_budget() -> None:
    gpt3 = SHAPES["gpt3"]
    one = [costs.lora_count(gpt3, 8, [name]) for name in ATTENTION]
    two = [costs.lora_count(gpt3, 4, pair) for pair in (("attention.query", "attention.key"), PRESETS["qv"])]
    four = costs.lora_count(gpt3, 2, "qkvo")
    assert {*one, *two, four} == {18_874_368}


def test_bias_counts_are_those_of_bitfit() -> None:
    assert costs.bias_count(ROBERTA_BASE) == 102_144  # 0.1M in the paper's Table 2
    assert costs.bias_count(SHAPES["gpt3"]) == 12_988_416


def test_an_adapter_file_is_its_count_times_the_item_size() -> None:
    sizes = {dtype: costs.adapter_bytes(393_216, dtype) for dtype in costs.ITEM_SIZE}
    assert sizes == {"float64": 3_145_728, "float32": 1_572_864, "float16": 786_432, "bfloat16": 786_432}


# ----------------------------------------------------------------------------------------- how they grow


@given(shapes())
def test_the_parameter_count_is_a_sum_over_named_arrays(shape: TransformerConfig) -> None:
    d, f = shape.d_model, shape.d_hidden
    block = {
        **{f"{name}.{leaf}": size for name in ATTENTION for leaf, size in (("W", d * d), ("b", d))},
        "mlp.up.W": f * d,
        "mlp.up.b": f,
        "mlp.down.W": d * f,
        "mlp.down.b": d,
        **{f"norm{i}.{leaf}": d for i in (1, 2) for leaf in ("gain", "b")},
    }
    outside = {"tokens": shape.vocab * d, "positions": shape.context * d, "norm.gain": d, "norm.b": d}
    head = 0 if shape.tied else shape.vocab * d
    assert costs.parameter_count(shape) == shape.layers * sum(block.values()) + sum(outside.values()) + head
    biases = shape.layers * sum(size for name, size in block.items() if name.endswith(".b")) + d
    assert costs.bias_count(shape) == biases


@given(shapes(), st.integers(1, 64))
def test_with_four_d_and_a_tied_head_the_count_is_the_familiar_one(shape: TransformerConfig, d: int) -> None:
    known = dataclasses.replace(shape, d_model=d, heads=1, d_ff=4 * d, tied=True)
    layers, vocab, context = known.layers, known.vocab, known.context
    familiar = layers * (12 * d**2 + 13 * d) + (vocab + context) * d + 2 * d
    assert costs.parameter_count(known) == familiar


@given(adapters())
def test_the_adapter_count_is_linear_in_rank_and_additive_over_targets(
    adapter: tuple[TransformerConfig, int, tuple[str, ...]],
) -> None:
    shape, rank, targets = adapter
    count = costs.lora_count(shape, rank, targets)
    assert count == rank * costs.lora_count(shape, 1, targets)
    assert count == sum(costs.lora_count(shape, rank, [name]) for name in targets)
    assert count == costs.lora_count(shape, rank, targets[::-1] + targets)  # order and repetition do not matter


@given(adapters(), st.integers(2, 7))
def test_copies_in_more_layers_cost_proportionally_more(
    adapter: tuple[TransformerConfig, int, tuple[str, ...]], factor: int
) -> None:
    shape, rank, targets = adapter
    in_blocks = [name for name in targets if name != "tokens"] or ["mlp.up"]
    deeper = dataclasses.replace(shape, layers=factor * shape.layers)
    assert costs.lora_count(deeper, rank, in_blocks) == factor * costs.lora_count(shape, rank, in_blocks)


def test_all_linear_reaches_the_head_only_when_it_is_untied() -> None:
    tied = SHAPES["base"]
    untied = dataclasses.replace(tied, tied=False)
    assert costs.lora_count(tied, 4, "all-linear") == costs.lora_count(tied, 4, "attention+mlp")
    extra = costs.lora_count(untied, 4, "all-linear") - costs.lora_count(tied, 4, "all-linear")
    assert extra == 4 * (tied.d_model + tied.vocab)


# -------------------------------------------------------------------------------- bytes and multiply-adds


@given(st.integers(0, 10**12), st.integers(0, 10**9), st.sampled_from([2, 4, 8]))
def test_training_state_is_one_number_per_frozen_and_four_per_trained_parameter(
    frozen: int, trained: int, item_size: int
) -> None:
    state = costs.training_state_bytes(frozen, trained, item_size)
    assert state == item_size * (frozen + 4 * trained)
    assert costs.optimizer_bytes(trained, item_size) == 2 * costs.gradient_bytes(trained, item_size)


@given(shapes())
def test_attention_costs_the_mean_of_a_count_over_every_token(shape: TransformerConfig) -> None:
    keys_met = sum(2 * shape.d_model * token for token in range(1, shape.context + 1))
    attention = costs.forward_multiply_adds(shape) - costs.matrix_multiply_adds(shape)
    assert attention * shape.context == shape.layers * keys_met


@given(shapes())
def test_every_weight_but_the_looked_up_ones_is_multiplied_once(shape: TransformerConfig) -> None:
    untied = dataclasses.replace(shape, tied=False)
    vectors = shape.layers * (shape.d_hidden + 9 * shape.d_model) + 2 * shape.d_model
    looked_up = (shape.vocab + shape.context) * shape.d_model
    assert costs.matrix_multiply_adds(shape) == costs.parameter_count(untied) - vectors - looked_up


@given(adapters())
def test_lora_skips_exactly_the_frozen_weight_gradients(
    adapter: tuple[TransformerConfig, int, tuple[str, ...]],
) -> None:
    shape, rank, targets = adapter
    added = costs.adapter_multiply_adds(shape, rank, targets)
    full, lora = costs.step_multiply_adds(shape), costs.step_multiply_adds(shape, rank, targets)
    assert full == 3 * costs.forward_multiply_adds(shape)
    assert full + 3 * added - lora == costs.matrix_multiply_adds(shape)


def test_a_lora_step_costs_two_thirds_of_a_full_one_at_scale_and_never_less() -> None:
    gpt3 = SHAPES["gpt3"]
    ratio = costs.step_multiply_adds(gpt3, 4, "qv", length=1) / costs.step_multiply_adds(gpt3, length=1)
    assert 2 / 3 < ratio < 2 / 3 + 2e-4  # Θ / M = 1.1e-4 is the adapter's own share


def test_an_adapted_embedding_is_looked_up_and_a_tied_head_carries_it_too() -> None:
    tied = SHAPES["base"]
    untied = dataclasses.replace(tied, tied=False)
    lookup = costs.adapter_multiply_adds(untied, 4, "tokens")
    assert lookup == 4 * tied.d_model
    assert costs.adapter_multiply_adds(tied, 4, "tokens") == lookup + 4 * (tied.vocab + tied.d_model)


# ------------------------------------------------------------------------------------------------ the whole bill


def billed(adapter: tuple[TransformerConfig, int, tuple[str, ...]], item_size: int = 4, **lora: Any) -> costs.Bill:
    shape, rank, targets = adapter
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* trains .* numbers, more than", UserWarning)  # larger than its matrix
        return costs.bill(shape, LoraConfig(rank=rank, targets=targets, tied_head="tie", **lora), item_size)


@few_shapes
@given(adapters(), st.sampled_from(["none", "lora_only", "all"]))
def test_the_closed_form_is_what_an_adapted_skeleton_holds(
    adapter: tuple[TransformerConfig, int, tuple[str, ...]], bias: str
) -> None:
    report = billed(adapter, bias=bias)
    assert report.trained == report.counted
    assert (report.trained > costs.lora_count(*adapter)) == (bias == "all" or (bias != "none" and has_map(adapter)))


def has_map(adapter: tuple[TransformerConfig, int, tuple[str, ...]]) -> bool:
    return any(name != "tokens" for name in adapter[2])


@few_shapes
@given(shapes(), st.data())
def test_the_closed_forms_of_what_trains_the_model_itself_are_what_a_skeleton_holds(
    shape: TransformerConfig, data: st.DataObject
) -> None:
    for method in (Full(), Top(data.draw(st.integers(1, shape.layers))), BitFit()):
        report = costs.bill(shape, method)
        assert report.trained == report.counted
        assert (report.added, report.depth, report.context) == (0, 0, shape.context)
    assert costs.bill(shape, Full()).trained == costs.parameter_count(shape)
    assert costs.bill(shape, Top(shape.layers)).trained < costs.parameter_count(shape)


@given(adapters())
def test_an_adapter_beside_its_base_costs_more_and_merged_it_costs_what_the_base_costs(
    adapter: tuple[TransformerConfig, int, tuple[str, ...]],
) -> None:
    report, shape = billed(adapter), adapter[0]
    assert report.forward == costs.forward_multiply_adds(shape)
    assert report.added == costs.adapter_multiply_adds(*adapter) > 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* trains .* numbers, more than", UserWarning)
        merged = merge(LoraConfig(rank=adapter[1], targets=adapter[2], tied_head="tie").apply(skeleton(shape), None))
    assert merged.config == shape
    assert {n: a.shape for n, a in parameters(merged).items()} == {
        n: a.shape for n, a in parameters(skeleton(shape)).items()
    }


@given(adapters(), st.sampled_from([2, 4, 8]))
def test_the_bill_agrees_with_itself(adapter: tuple[TransformerConfig, int, tuple[str, ...]], item_size: int) -> None:
    report = billed(adapter, item_size)
    assert report.share * report.parameters == pytest.approx(report.trained)
    assert report.optimizer_bytes == 2 * item_size * report.trained
    assert report.optimizer_bytes_full == 2 * item_size * report.parameters
    assert report.adapter_bytes == {
        name: costs.adapter_bytes(report.trained, name) for name in ("float64", "float32", "float16", "bfloat16")
    }
    assert (report.method, report.settings["rank"], report.depth) == ("lora", adapter[1], 0)


def test_the_bill_can_be_written_as_json() -> None:
    report = costs.bill(SHAPES["gpt3"], LoraConfig(rank=4, targets="qv"))
    again = json.loads(json.dumps(dataclasses.asdict(report)))
    assert again["trained"] == again["counted"] == 18_874_368
    assert (again["method"], again["settings"]["targets"], again["context"]) == ("lora", "qv", 2048)


def test_no_model_is_allocated() -> None:
    """GPT-3, whose arrays would be 700 GB, is counted twice within a few megabytes of Python objects."""
    tracemalloc.start()
    report = costs.bill(SHAPES["gpt3"], LoraConfig(rank=4, targets="qkvo"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.counted == 37_748_736
    assert peak < 2**25 < 1e-4 * 4 * report.parameters


def test_the_examples_in_the_docstrings_are_true() -> None:
    names = ("config", "costs.counts", "costs.memory", "costs.bill")
    modules = [importlib.import_module(f"lora_np.{name}") for name in names]
    known = {**vars(costs), "LoraConfig": LoraConfig}
    failed, attempted = map(sum, zip(*(doctest.testmod(m, extraglobs=known) for m in modules), strict=True))
    assert attempted >= 5
    assert failed == 0


def test_the_sizes_of_a_model_need_nothing_but_the_standard_library() -> None:
    folder = str(Path(costs.__file__).parents[1])
    program = (
        "import sys, types; before = set(sys.modules);"
        f"package = types.ModuleType('sizes'); package.__path__ = [{folder!r}]; sys.modules['sizes'] = package;"
        "from sizes.config import SHAPES, parameter_count;"
        "assert parameter_count(SHAPES['gpt2']) == 124_439_808;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - {'sizes'};"
        "assert new <= sys.stdlib_module_names, new"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# ------------------------------------------------------------------------------------------- what raises


def test_an_unknown_target_raises_with_the_nearest_name_first() -> None:
    with pytest.raises(ValueError, match=r"'attention\.qurey' matches none of .* nearest are attention\.query,"):
        costs.lora_count(SHAPES["base"], 4, ["attention.qurey"])
    with pytest.raises(ValueError, match=r"'qx' matches none of .* nearest are .*qv"):
        costs.lora_count(SHAPES["base"], 4, "qx")


def test_a_tied_head_is_no_target_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"'head' matches none of .* nearest are tokens,"):
        costs.lora_count(SHAPES["base"], 4, ["head"])


def test_no_target_raises() -> None:
    with pytest.raises(ValueError, match="at least one module"):
        costs.lora_count(SHAPES["base"], 4, [])


def test_a_rank_that_no_matrix_can_have_raises() -> None:
    with pytest.raises(ValueError, match=r"1\.\.192 for blocks\.0\.attention\.query, got 193"):
        costs.lora_count(SHAPES["base"], 193, "qv")
    assert costs.lora_count(SHAPES["base"], 192, "qv") > 0


@pytest.mark.parametrize("rank", [-1, 0, 4.0, True, "4"])
def test_a_rank_that_is_no_whole_number_of_at_least_one_raises(rank: object) -> None:
    with pytest.raises(ValueError, match=f"rank must be a whole number of at least 1, got {rank!r}"):
        costs.lora_count(SHAPES["base"], rank, "qv")  # type: ignore[arg-type]


def test_an_unknown_model_raises_with_the_nearest_name_first() -> None:
    assert costs.named_shape("gpt2-xl") is SHAPES["gpt2-xl"]
    with pytest.raises(ValueError, match=r"one of gpt2-medium, .*got 'gpt2-meduim'"):
        costs.named_shape("gpt2-meduim")


def test_an_unknown_dtype_raises_with_the_nearest_name_first() -> None:
    with pytest.raises(ValueError, match=r"one of float16, .*got 'flaot16'"):
        costs.adapter_bytes(1, "flaot16")


@pytest.mark.parametrize("length", [0, 641])
def test_a_length_outside_the_context_raises(length: int) -> None:
    with pytest.raises(ValueError, match=rf"length must .*got {length}"):
        costs.forward_multiply_adds(SHAPES["base"], length)


def test_a_shape_that_cannot_be_raises() -> None:
    base = SHAPES["base"]
    with pytest.raises(ValueError, match="heads must divide d_model, got 5 heads for d_model 192"):
        dataclasses.replace(base, heads=5)
    with pytest.raises(ValueError, match="layers must be a positive whole number, got 0"):
        dataclasses.replace(base, layers=0)
    with pytest.raises(ValueError, match=r"vocab must be a positive whole number, got 256\.0"):
        dataclasses.replace(base, vocab=256.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="causal must be true or false, got 1"):
        dataclasses.replace(base, causal=1)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- the memory of a step


@pytest.mark.parametrize("heads", [1, 32])
@pytest.mark.parametrize("targets", ["qv", "attention.output", "attention+mlp", "mlp.down", None], ids=str)
def test_the_numbers_a_block_keeps_are_the_predicted_ones(targets: str | None, heads: int) -> None:
    """Held between forward and backward: what two blocks more add, in float64, is (C10) to the byte."""
    kept_between_forward_and_backward(1, targets, heads)  # what is made once for all steps is there from now on
    two, four = (kept_between_forward_and_backward(layers, targets, heads) for layers in (2, 4))
    shape = sized(1, 64, heads, 256, 32, 64)
    assert four - two == 2 * 128 * 8 * costs.saved_numbers(shape, None if targets is None else 3, targets or "qv")


@pytest.mark.parametrize("targets", ["qv", "attention.output", None], ids=str)
def test_queries_wider_than_the_stream_are_kept_as_wide_as_they_are(targets: str | None) -> None:
    two, four = (kept_between_forward_and_backward(layers, targets, 4, head_dim=24) for layers in (2, 4))
    shape = dataclasses.replace(sized(1, 64, 4, 256, 32, 64), head_dim=24)
    assert four - two == 2 * 128 * 8 * costs.saved_numbers(shape, None if targets is None else 3, targets or "qv")


def kept_between_forward_and_backward(layers: int, targets: str | None, heads: int, **more: Any) -> int:
    """The bytes of arrays; the objects of Python around them are counted apart."""
    base = initialize(TransformerConfig(32, 64, 64, layers, heads, **more), np.random.default_rng(0), np.float64)
    method: Method = Full() if targets is None else LoraConfig(rank=3, targets=targets)
    node = adapt(base, method, np.random.default_rng(1))
    tokens = np.random.default_rng(2).integers(0, 32, (2, 64))
    batch = Batch(tokens, tokens, np.full((2, 64), 1 / 128))
    arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    held = []

    def loss(p: dict[str, Any]) -> Any:
        tracemalloc.start()
        value = language_model_loss(with_parameters(node, p), batch)
        held.append(sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces))
        tracemalloc.stop()
        return value

    value_and_grad(loss)(method.trained(node))
    return held[0]


@given(adapters(), st.booleans(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_a_step_holds_what_its_equation_says(
    adapter: tuple[TransformerConfig, int, tuple[str, ...]],
    full: bool,
    batch: int,
    length: int,
    pieces: int,
    recomputed: bool,
) -> None:
    """(C11) and (C12), part by part: the share of some is less than the margin of what is measured below."""
    shape, rank, targets = adapter
    d, f, layers = shape.d_model, shape.d_ff, shape.layers
    every = costs.parameter_count(shape)
    trained = every if full else costs.lora_count(shape, rank, targets)
    block = costs.saved_numbers(shape, None if full else rank, targets)
    inputs_of_blocks = layers * d + block
    inside_one_mlp = 2 * f + 3 * d
    head = 2 * d
    a_token = (inputs_of_blocks if recomputed else layers * block) + inside_one_mlp + head
    moments = 2 * trained
    for at_once in range(1, pieces + 1):
        tokens = at_once * math.ceil(batch / pieces) * length
        gradients = every + trained + moments + pieces * trained + tokens * a_token
        update = every + 2 * (trained + moments) + trained
        found = costs.step_bytes(
            shape, batch, length, None if full else rank, targets, pieces=pieces, at_once=at_once, recomputed=recomputed
        )
        assert found == 4 * max(gradients, update)


STEPS = {
    "LoRA, one piece": ({}, 1, False),
    "LoRA, two pieces at once": ({}, 2, False),
    "LoRA on every map": ({"targets": "attention+mlp"}, 1, False),
    "LoRA, recomputed": ({}, 1, True),
    "every parameter": (None, 2, False),
    "every parameter, recomputed": (None, 1, True),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_bytes_of_a_step_are_predicted_within_fifteen_percent(name: str) -> None:
    """Measured: 1.01 to 1.08 of what Python counts. Half of the kept numbers would be 0.6 of it."""
    lora, pieces, recomputed = STEPS[name]
    shape = TransformerConfig(512, 128, 128, 4, 4)
    method = Full() if lora is None else LoraConfig(**{"rank": 8, "targets": "qv", **lora})
    measured = peak_of_a_step(shape, method, 8, pieces, recompute=recomputed)
    rank, targets = (None, "qv") if lora is None else (8, lora.get("targets", "qv"))
    settings = {"pieces": pieces, "at_once": pieces, "recomputed": recomputed}
    predicted = costs.step_bytes(shape, 8, 128, rank, targets, **settings)
    if pieces == 1:
        assert abs(predicted / measured - 1) <= 0.15
    else:  # two threads need not be at their largest at the same moment: between one and two of them
        one = costs.step_bytes(shape, 8, 128, rank, targets, **{**settings, "at_once": 1})
        assert one / 1.15 <= measured <= 1.15 * predicted


# layers, d_ff, rank (None: every parameter), recomputed, the smaller batch; and which share of the prediction is used.
# Measured: 1.030, 1.020, 0.88, 0.93; the first was 1.012 while a smaller batch held 0.5 MB more, the larger one as now.
FURTHER = {
    "a narrow MLP": (1, 16, None, False, 128, (0.98, 1.04)),
    "a narrow MLP, recomputed": (3, 16, 2, True, 64, (0.98, 1.03)),
    "a wide MLP": (1, 256, 2, False, 64, (0.8, 1.0)),
    "a wide MLP, recomputed": (2, 256, 2, True, 64, (0.8, 1.0)),
}


@pytest.mark.parametrize("name", FURTHER)
def test_a_further_token_costs_a_step_what_is_predicted(name: str) -> None:
    """Beside a narrow MLP the arrays of (C11) are all held at one moment: one d more or less would be 6 % off. Beside a
    wide one they are not, and it is a bound. Blocks of scores and logits are as large in both batches, and cancel."""
    layers, d_ff, rank, recomputed, batch, (least, most) = FURTHER[name]
    shape = TransformerConfig(64, 64, 64, layers, 4, d_ff)
    method = Full() if rank is None else LoraConfig(rank=rank)
    peak_of_a_step(shape, method, 1, recompute=recomputed)  # what is made once for all steps is there from now on
    few, many = (peak_of_a_step(shape, method, n, recompute=recomputed) for n in (batch, 2 * batch))
    fewer, more = (costs.step_bytes(shape, n, 64, rank, recomputed=recomputed) for n in (batch, 2 * batch))
    assert least <= (many - few) / (more - fewer) <= most


def peak_of_a_step(
    shape: TransformerConfig, method: Method, batch: int, pieces: int = 1, *, recompute: bool = False
) -> int:
    """The most that Python and NumPy hold during the second step of a run."""
    rng = np.random.default_rng(0)
    tracemalloc.start()
    node = adapt(initialize(shape, rng), method, rng)
    training = TrainingConfig(steps=3, micro_batches=pieces, clip=None)
    batches = [random_batch(node, batch=batch, seq=shape.context)] * 3
    loss = model_loss(node, recompute=recompute)
    records = fit(loss, batches, training, start(method.trained(node), training), pieces)
    next(records)
    tracemalloc.reset_peak()
    next(records)
    measured = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return measured


def test_recomputing_keeps_less_the_more_blocks_there_are() -> None:
    for layers in (2, 12, 48):
        shape = sized(layers, 768, 12, 3072, 50257, 1024)
        kept, recomputed = (costs.step_bytes(shape, 4, 1024, 8, recomputed=r) for r in (False, True))
        assert recomputed < kept
    assert kept - recomputed > 0.8 * (kept - costs.parameter_count(shape) * 4)  # of the activations of 48 blocks


def test_with_all_parameters_trained_the_update_is_the_largest_moment_of_a_small_batch() -> None:
    shape = sized(12, 768, 12, 3072, 50257, 1024)
    assert costs.step_bytes(shape, 1, 16) == 4 * 8 * costs.parameter_count(shape)
    assert costs.step_bytes(shape, 1, 16, 8) < 4 * 1.1 * costs.parameter_count(shape)
