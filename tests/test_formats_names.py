r"""Names: a table a family, read in both directions; sizes: config.json, and back. Nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_files import archive_bytes, refused, write_file

from lora_np.formats import names
from lora_np.formats.huggingface import FAMILIES, config_json, open_model, open_weights, sizes
from lora_np.formats.tensors import Tensors, open_tensors
from lora_np.formats.writing import write_tensors
from lora_np.model import TransformerConfig, initialize
from lora_np.parameters import parameters

D, F, V, N, L, E_ = 4, 6, 10, 7, 2, 3
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": V, "n_positions": N, "n_embd": D, "n_layer": L, "n_head": 2},
    **{kind: {"vocab_size": V, "max_position_embeddings": N, "hidden_size": D, "num_hidden_layers": L,
              "num_attention_heads": 2, "intermediate_size": F} for kind in FAMILIES if kind != "gpt2"},
}  # fmt: skip
for kind in ("llama", "mistral", "qwen2", "mixtral"):
    CONFIGS[kind] |= {"num_key_value_heads": 1, "rope_theta": 5e5}
CONFIGS["mixtral"] |= {"num_local_experts": E_}


def shape_of(ours: str, kind: str) -> tuple[int, ...]:
    """The shape of an array under our name."""
    wide = D if kind in ("bert", "roberta", "gpt2") else D // 2  # keys and values are shared
    d_ff = 4 * D if kind == "gpt2" else F
    table = {
        "tokens": (V, D),
        "positions": (N - 2 if kind == "roberta" else N, D),
        "types": (2, D),
        "head": (V, D),
    }
    maps = {
        "up": (d_ff, D),
        "gate": (d_ff, D),
        "down": (D, d_ff),
        "key": (wide, D),
        "value": (wide, D),
        "router": (E_, D),
    }
    module, leaf = ours.split(".")[-2:]
    whole = (3, D) if ours.startswith("head.output") else (table | maps).get(module, (D, D))
    return whole if leaf == "W" else whole[:1]


def checkpoint(kind: str, layers: int = L) -> dict[str, np.ndarray]:
    """Random arrays under our names."""
    rng, found = np.random.default_rng(0), {}
    for entry in names.entries(kind, layers, E_ if kind == "mixtral" else 0):
        if not entry.optional or kind == "qwen2" or "head" in entry.ours:
            found[entry.ours] = rng.standard_normal(shape_of(entry.ours, kind)).astype(np.float32)
    return found


def folder_of(path: Path, kind: str, **changes: Any) -> dict[str, np.ndarray]:
    arrays = checkpoint(kind)
    write_file(path / "model.safetensors", names.theirs(arrays, kind, L, E_ if kind == "mixtral" else 0))
    (path / "config.json").write_text(json.dumps({"model_type": kind, **CONFIGS[kind], **changes}))
    return arrays


@pytest.mark.parametrize("kind", FAMILIES)
def test_names_there_and_back_give_the_same_arrays(tmp_path: Path, kind: str) -> None:
    arrays = folder_of(tmp_path, kind)
    tensors, found, family = open_model(tmp_path)
    assert family == kind
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape
        assert (np.asarray(tensors[name]) == array).all(), name
        assert (tensors[name][1:3] == array[1:3]).all(), name
    assert found["layers"] == L


def test_gpt2_fuses_query_key_and_value_and_stores_them_by_columns() -> None:
    arrays = checkpoint("gpt2")
    theirs = names.theirs(arrays, "gpt2", L)
    fused = theirs["transformer.h.1.attn.c_attn.weight"]
    assert fused.shape == (D, 3 * D)
    for k, part in enumerate(("query", "key", "value")):
        assert (fused[:, k * D : (k + 1) * D].T == arrays[f"blocks.1.attention.{part}.W"]).all()
    assert (theirs["transformer.h.0.mlp.c_fc.weight"] == arrays["blocks.0.mlp.up.W"].T).all()


def test_positions_of_roberta_begin_at_two() -> None:
    arrays = checkpoint("roberta")
    theirs = names.theirs(arrays, "roberta", L)["roberta.embeddings.position_embeddings.weight"]
    assert len(theirs) == N
    assert (theirs[2:] == arrays["positions.W"]).all()


def test_gate_and_up_of_mixtral_are_w1_and_w3() -> None:
    arrays = checkpoint("mixtral")
    theirs = names.theirs(arrays, "mixtral", L, E_)
    at = "model.layers.1.block_sparse_moe.experts.2."
    for own, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        assert (theirs[f"{at}{own}.weight"] == arrays[f"blocks.1.mlp.experts.2.{ours}.W"]).all()


def test_our_names_of_gpt2_are_those_of_our_transformer() -> None:
    model = initialize(TransformerConfig(V, N, D, L, 2), np.random.default_rng(0))
    tied = {entry.ours for entry in names.entries("gpt2", L) if not entry.optional}
    assert tied == set(parameters(model))
    untied = initialize(TransformerConfig(V, N, D, L, 2, tied=False), np.random.default_rng(0))
    assert {entry.ours for entry in names.entries("gpt2", L)} == set(parameters(untied))
    assert set(names.theirs(parameters(untied), "gpt2", L)) > set(names.theirs(parameters(model), "gpt2", L))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_checkpoint_without_its_prefix_is_the_same(tmp_path: Path, kind: str) -> None:
    arrays = folder_of(tmp_path, kind)
    prefix = names.FAMILIES[kind][1]
    bare = {name.removeprefix(prefix): tensor for name, tensor in open_tensors(tmp_path).items()}
    found = names.ours(bare, kind, L, E_ if kind == "mixtral" else 0)
    assert {name: np.asarray(t).tobytes() for name, t in found.items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_buffers_are_no_arrays_of_the_model(tmp_path: Path) -> None:
    folder_of(tmp_path, "gpt2")
    with_buffers = dict(open_tensors(tmp_path))
    with_buffers |= {"transformer.h.0.attn.bias": with_buffers["transformer.wte.weight"]}
    assert len(names.ours(with_buffers, "gpt2", L)) == len(names.ours(open_tensors(tmp_path), "gpt2", L))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_tensor_too_few_too_many_or_misshapen_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder_of(tmp_path, kind)
    tensors, n = dict(open_tensors(tmp_path)), E_ if kind == "mixtral" else 0
    needed = [entry.theirs for entry in names.entries(kind, L, n) if not entry.optional][-1]
    refused(lambda: names.ours({k: t for k, t in tensors.items() if k != needed}, kind, L, n), needed)
    refused(lambda: names.ours({**tensors, "extra.weight": tensors[needed]}, kind, L, n), "extra.weight")
    refused(lambda: names.ours(tensors, kind, L - 1, n), "blocks")
    refused(lambda: names.ours(tensors, kind, L + 1, n), f"{L}")
    turned = write_file(tmp_path / "x.safetensors", {"x": np.zeros((1, 2, 3, 4), np.float32)})
    refused(lambda: names.ours({**tensors, needed: open_tensors(turned)["x"]}, kind, L, n), "axes")


def test_arrays_too_few_or_too_many_for_a_family_are_refused() -> None:
    arrays = checkpoint("llama")
    refused(lambda: names.theirs({**arrays, "positions.W": arrays["tokens.W"]}, "llama", L), "positions.W")
    refused(lambda: names.theirs({k: a for k, a in arrays.items() if k != "norm.gamma"}, "llama", L), "norm.gamma")
    refused(lambda: list(names.entries("bloom", 1)), "bloom")


def test_a_fused_tensor_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", {"x": np.zeros((D, 3 * D + 1), np.float32)})
    part = names.Part(open_tensors(path)["x"], next(e for e in names.entries("gpt2", 1) if e.rows))
    refused(lambda: part[:], "equal parts")


# sizes


@pytest.mark.parametrize("kind", FAMILIES)
def test_sizes_there_and_back_are_the_same(kind: str) -> None:
    found = sizes({"model_type": kind, **CONFIGS[kind]})
    assert sizes(config_json(found, kind)) == found
    assert (found["vocab"], found["d_model"], found["layers"], found["heads"]) == (V, D, L, 2)
    assert found["context"] == (N - 2 if kind == "roberta" else N)


def test_sizes_are_what_our_transformer_takes() -> None:
    found = sizes({"model_type": "gpt2", **CONFIGS["gpt2"]})
    ours = {name: found[name] for name in ("vocab", "context", "d_model", "layers", "heads", "causal", "tied")}
    assert TransformerConfig(**ours).d_hidden == 4 * D


def test_what_a_family_computes_is_part_of_its_sizes() -> None:
    told = {kind: sizes({"model_type": kind, **CONFIGS[kind]}) for kind in FAMILIES}
    assert told["llama"]["rope_base"] == 5e5
    assert (told["mixtral"]["experts"], told["mixtral"]["experts_used"]) == (E_, 2)
    assert (told["gpt2"]["mlp"], told["bert"]["mlp"], told["llama"]["mlp"]) == ("gelu_tanh", "gelu", "swiglu")
    assert (told["gpt2"]["order"], told["bert"]["order"]) == ("pre", "post")
    assert (told["gpt2"]["causal"], told["roberta"]["causal"]) == (True, False)
    assert (told["llama"]["norm"], told["gpt2"]["norm"], told["llama"]["kv_heads"]) == ("rms", "layer", 1)


def test_new_files_hold_the_rotary_base_elsewhere() -> None:
    new = {**CONFIGS["llama"], "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    new.pop("rope_theta")
    assert sizes({"model_type": "llama", **new})["rope_base"] == 1e6
    assert (
        sizes({"model_type": "llama", **{k: v for k, v in CONFIGS["llama"].items() if k != "rope_theta"}})["rope_base"]
        == 1e4
    )


def test_a_window_that_slides_bounds_the_context() -> None:
    assert sizes({"model_type": "mistral", **CONFIGS["mistral"], "sliding_window": 3})["context"] == 3


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "a family unknown": ("bloom", {"model_type": "bloom"}),
    "no family": ("model_type", {"model_type": None}),
    "a size missing": ("vocab_size", {"vocab_size": None}),
    "a size of text": ("vocab_size", {"vocab_size": "10"}),
    "a size of zero": ("num_hidden_layers", {"num_hidden_layers": 0}),
    "a size below zero": ("hidden_size", {"hidden_size": -4}),
    "a size too large": ("hidden_size", {"hidden_size": 1 << 60}),
    "a size of truth": ("hidden_size", {"hidden_size": True}),
    "heads that do not divide": ("heads", {"num_attention_heads": 3}),
    "scaled positions": ("'yarn'", {"rope_parameters": {"rope_type": "yarn", "factor": 8}}),
    "scaled positions, old": ("'dynamic'", {"rope_scaling": {"type": "dynamic", "factor": 2}}),
    "scaled positions, no numbers": ("low_freq_factor", {"rope_parameters": {"rope_type": "llama3", "factor": 8}}),
    "scaled positions by text": ("factor of linear", {"rope_scaling": {"type": "linear", "factor": "2"}}),
    "scaling that is no object": ("rope_parameters", {"rope_parameters": ["llama3"]}),
    "a base of text": ("rope_theta", {"rope_theta": "1e4"}),
    "quantised": ("quantization_config", {"quantization_config": {"quant_method": "gptq"}}),
    "an activation unknown": ("hidden_act", {"hidden_act": "relu2"}),
    "tied of text": ("tie_word_embeddings", {"tie_word_embeddings": "no"}),
}


@pytest.mark.parametrize(("word", "change"), WRONG.values(), ids=WRONG)
def test_a_description_that_is_not_understood_is_refused_by_name(word: str, change: dict[str, Any]) -> None:
    refused(lambda: sizes({"model_type": "llama", **CONFIGS["llama"], **change}), word)


def test_an_activation_of_bert_that_is_not_known_is_refused() -> None:
    refused(lambda: sizes({"model_type": "bert", **CONFIGS["bert"], "hidden_act": "mish"}), "mish")
    refused(
        lambda: sizes({"model_type": "bert", **CONFIGS["bert"], "position_embedding_type": "relative_key"}), "relative"
    )


def test_sizes_of_another_layout_are_not_written() -> None:
    found = sizes({"model_type": "llama", **CONFIGS["llama"]})
    refused(lambda: config_json({**found, "norm": "layer"}, "llama"), "norm")
    refused(lambda: config_json(found, "bloom"), "bloom")
    gpt2 = sizes({"model_type": "gpt2", **CONFIGS["gpt2"]})
    refused(lambda: config_json({**gpt2, "mlp": "swiglu"}, "gpt2"), "swiglu")


# where weights lie


def test_weights_are_found_in_whatever_files_a_folder_has(tmp_path: Path) -> None:
    arrays = names.theirs(checkpoint("llama"), "llama", L)
    layout = {name: ("F32", a.shape) for name, a in arrays.items()}
    for form in ("single", "sharded", "bin", "bins"):
        folder = tmp_path / form
        folder.mkdir()
        if form in ("single", "sharded"):
            write_tensors(folder, layout, lambda name: [arrays[name]], shard=10**9 if form == "single" else 300)
        elif form == "bin":
            (folder / "pytorch_model.bin").write_bytes(archive_bytes(arrays))
        else:
            halves = [dict(list(arrays.items())[k::2]) for k in range(2)]
            for k, half in enumerate(halves):
                (folder / f"pytorch_model-{k}.bin").write_bytes(archive_bytes(half))
            weight_map = {name: f"pytorch_model-{k}.bin" for k, half in enumerate(halves) for name in half}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        found = open_weights(folder)
        assert isinstance(found, Tensors)
        assert {n: np.asarray(t).tobytes() for n, t in found.items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert set(open_weights(tmp_path / "bin" / "pytorch_model.bin")) == set(arrays)
    (tmp_path / "none").mkdir()
    refused(lambda: open_weights(tmp_path / "none"), "no weights")
    refused(lambda: open_weights(tmp_path / "nowhere"), "nowhere")
