"""The rows of ARCHITECTURES: what sizes they have, what every method makes of them, and GPT-2 as it was."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from builders import assert_agree, model, moved, random_batch, tokens_of

from lora_np.cases import ARCHITECTURE_CASES, METHOD_CASES, model_case
from lora_np.config import ARCHITECTURES, TransformerConfig, bias_count, described, maps, parameter_count
from lora_np.costs import bill, matrix_multiply_adds
from lora_np.files import digest, load_model, save_model
from lora_np.generation import generate
from lora_np.gradients import check
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.model import Linear, Transformer, initialize, language_model_loss, skeleton
from lora_np.names import targeted
from lora_np.parameters import count, parameters, walk, with_parameters
from lora_np.wrappers import merge, wrappers

SIZES: dict[str, Any] = {"vocab": 11, "context": 12, "d_model": 8, "layers": 2, "heads": 4, "d_ff": 6}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"architecture": "llama", "kv_heads": 2, "theta": 50.0},
    "llama, untied": {"architecture": "llama", "kv_heads": 2, "tied": False},
    "llama, wide heads": {"architecture": "llama", "kv_heads": 2, "heads": 6, "head_dim": 4},
    "qwen2": {"architecture": "qwen2", "kv_heads": 2},
    "bert": {"architecture": "bert", "causal": False, "types": 2, "classes": 3},
    "roberta": {"architecture": "bert", "causal": False, "types": 1},
}
every_model = pytest.mark.parametrize("name", MODELS)


def config_of(name: str) -> TransformerConfig:
    return TransformerConfig(**{**SIZES, **MODELS[name]})


def small(name: str) -> Transformer:
    return model(**{**SIZES, **MODELS[name]})


def test_every_row_of_the_table_has_a_model_here() -> None:
    assert {config_of(name).architecture for name in MODELS} == set(ARCHITECTURES)


def test_the_base_that_ships_is_what_it_was() -> None:
    base = load_model()
    assert digest(base).startswith("c328e6df9f11")
    assert list(described(base.config)) == ["vocab", "context", "d_model", "layers", "heads", "d_ff", "causal", "tied"]
    assert "architecture" not in repr(base.config)
    other = replace(base, config=replace(base.config, eps=1e-6))
    assert digest(other) != digest(base)


@every_model
def test_sizes_that_are_written_down_are_read_again(name: str) -> None:
    config = config_of(name)
    assert TransformerConfig(**json.loads(json.dumps(described(config)))) == config
    assert TransformerConfig(**asdict(config)) == config


@every_model
def test_closed_forms_are_what_a_skeleton_holds(name: str) -> None:
    config = config_of(name)
    arrays = parameters(skeleton(config))
    assert parameter_count(config) == count(arrays)
    assert bias_count(config) == sum(a.size for path, a in arrays.items() if path.endswith((".b", ".beta")))
    linear = {path: node.W.shape[::-1] for path, node in walk(skeleton(config)) if isinstance(node, Linear)}
    assert maps(config) == {"tokens": (config.vocab, config.d_model), **linear}
    in_blocks = sum(d_in * d_out for path, (d_in, d_out) in linear.items() if path.startswith("blocks"))
    head = 0 if config.classes else config.vocab * config.d_model
    assert matrix_multiply_adds(config) == in_blocks + head


def test_all_linear_maps_have_the_gate_among_them() -> None:
    found = targeted(maps(config_of("llama")), "all-linear")
    assert len(found) == 2 * 7
    assert "blocks.1.mlp.gate" in found
    assert "head" in targeted(maps(config_of("llama, untied")), "all-linear")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an architecture unknown": ({"architecture": "lama"}, "one of llama"),
    "key heads that do not divide": ({"kv_heads": 3}, "kv_heads must divide"),
    "no key heads": ({"kv_heads": 0}, "kv_heads must be a positive"),
    "half a pair": ({"architecture": "llama", "d_model": 12}, "pairs of columns"),
    "half a pair in a head": ({"architecture": "llama", "head_dim": 3}, "pairs of columns"),
    "heads of no columns": ({"head_dim": 0}, "head_dim must be a positive"),
    "θ of zero": ({"theta": 0.0}, "theta must be"),
    "eps of text": ({"eps": "1e-5"}, "eps must be"),
    "classes below zero": ({"classes": -1}, "classes must be"),
}


@pytest.mark.parametrize(("changes", "word"), WRONG.values(), ids=WRONG)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        TransformerConfig(**{**SIZES, **changes})


@every_model
def test_a_stored_model_is_read_again_and_is_the_same(name: str, tmp_path: Any) -> None:
    node = initialize(config_of(name), np.random.default_rng(0))
    save_model(tmp_path / "model", node)
    again = load_model(tmp_path / "model")
    assert digest(again) == digest(node)
    assert np.array_equal(again(tokens_of(node)), node(tokens_of(node)))


REFUSED = {
    ("llama", "bitfit"): "has none", ("llama, untied", "bitfit"): "has none",
    ("llama, wide heads", "bitfit"): "has none",
    ("bert", "prefix-embedding"): "classifies", ("bert", "prefix-layer"): "classifies",
    ("bert", "lora+prefix-embedding"): "classifies", ("bert", "lora+prefix-layer"): "classifies",
}  # fmt: skip


@every_model
@pytest.mark.parametrize("method_name", METHOD_CASES)
def test_every_method_trains_what_it_says_on_every_architecture(name: str, method_name: str) -> None:
    method, node = METHOD_CASES[method_name], small(name)
    if isinstance(method, LoraConfig) and method.bias == "all":
        method = replace(method, bias="none")
    if isinstance(method, LoraConfig) and not node.config.tied:
        method = replace(method, tied_head="refuse")
    if word := REFUSED.get((name, method_name)):
        with pytest.raises(ValueError, match=word):
            bill(node.config, method)
        return
    assert bill(node.config, method).holds
    fresh, tokens = adapt(node, method, np.random.default_rng(0)), tokens_of(node, seq=4)
    special = np.arange(node.config.vocab, fresh.tokens.words)
    tokens[:, : len(special)] = special
    logits = fresh(tokens)
    assert logits.shape == ((3, 1, 3) if name == "bert" else (3, 4, 11))
    trained = method.trained(fresh)
    assert count(trained) == method.numbers(node.config)
    rng = np.random.default_rng(1)
    far = with_parameters(fresh, {path: a + 0.5 * rng.standard_normal(a.shape) for path, a in trained.items()})
    assert abs(far(tokens) - logits).max() > 1e-3
    if wrappers(far) and bill(node.config, method).merged:
        assert_agree(merge(far)(tokens), far(tokens))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("method_name", ["lora", "prefix-kv", "adapter-h"])
def test_an_adapted_model_writes_with_caches_what_it_writes_without(name: str, method_name: str) -> None:
    node, rng = small(name), np.random.default_rng(0)
    method = LoraConfig(rank=2) if method_name == "lora" else METHOD_CASES[method_name]
    node = adapt(node, method, rng)
    node = moved(node) if method_name == "lora" else with_parameters(
        node, {path: a + 0.5 * rng.standard_normal(a.shape) for path, a in method.trained(node).items()}
    )  # fmt: skip
    tokens = tokens_of(node, batch=1)
    caches = node.caches()
    parts = [node(tokens[:, a:b], caches=caches) for a, b in ((0, 5), (5, 6), (6, 12))]
    assert_agree(np.concatenate(parts, axis=1), node(tokens))
    greedy = list(generate(node, tokens[0, :3], 4))
    for token in greedy[:1]:
        assert token == int(node(tokens[:, :3])[0, -1].argmax())


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_model_that_sees_what_follows_writes_no_text(name: str) -> None:
    with pytest.raises(ValueError, match="causal"):
        next(generate(small(name), np.array([1]), 1))


def test_labels_that_the_head_does_not_know_and_types_that_are_not_there_are_refused() -> None:
    node, batch = small("bert"), random_batch(small("bert"))
    one = replace(batch, targets=np.full((3, 1), 3), weights=np.full((3, 1), 1 / 3, np.float32))
    with pytest.raises(ValueError, match=r"0\.\.2"):
        language_model_loss(node, one)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        node(batch.tokens, types=np.full_like(batch.tokens, 2))
    with pytest.raises(ValueError, match="types must be"):
        node(batch.tokens, types=np.zeros(3, int))
    with pytest.raises(ValueError, match="no types"):
        small("llama")(batch.tokens, types=np.zeros_like(batch.tokens))


def test_recomputing_blocks_changes_no_loss_of_any_architecture() -> None:
    for name in ("llama", "roberta"):
        node, batch = small(name), random_batch(small(name))
        assert language_model_loss(node, batch) == language_model_loss(node, batch, recompute=True)


@pytest.mark.parametrize("name", ["llama, lora", "bert, lora"])
def test_three_witnesses_agree_on_other_architectures_and_find_a_wrong_setting(name: str) -> None:
    config, method = ARCHITECTURE_CASES[name]
    rng = np.random.default_rng(5)
    case = model_case(name, initialize(config, rng, np.float64), method, rng)
    assert all(row.holds for row in check(case))
    spoiled = replace(config, theta=90.0) if config.architecture == "llama" else replace(config, eps=2e-5)
    same, rng = initialize(spoiled, np.random.default_rng(5), np.float64), np.random.default_rng(5)
    other = model_case(name, replace(same, config=config), method, rng)
    assert any(row.verdict == "different" for row in check(other))
