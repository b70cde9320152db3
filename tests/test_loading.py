"""Models of other software: what is read is what was stored, and what does not fit is refused before it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import model, tokens_of
from formats_files import write_file

from lora_np import loading
from lora_np.cli import code_of
from lora_np.config import TransformerConfig
from lora_np.files import digest, load_model, save_model
from lora_np.formats import names
from lora_np.formats.folders import is_foreign
from lora_np.formats.huggingface import config_json
from lora_np.loading import load_foreign, open_foreign
from lora_np.model import Transformer
from lora_np.parameters import parameters

SIZES: dict[str, Any] = {"vocab": 11, "context": 12, "d_model": 8, "layers": 2, "heads": 4, "d_ff": 6}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"architecture": "llama", "kv_heads": 2, "tied": False, "eps": 1e-6},
    "mistral": {"architecture": "llama", "kv_heads": 1, "tied": False, "eps": 1e-6},
    "qwen2": {"architecture": "qwen2", "kv_heads": 2, "theta": 1e6, "eps": 1e-6},
    "bert": {"architecture": "bert", "causal": False, "types": 2, "classes": 3, "eps": 1e-12},
    "roberta": {"architecture": "bert", "causal": False, "types": 1, "classes": 3, "eps": 1e-12},
}
MLPS = {"gelu": "gelu_tanh", "gelu, exact": "gelu", "swiglu": "swiglu"}
every_family = pytest.mark.parametrize("family", FAMILIES)


def small(family: str) -> Transformer:
    return model(dtype=np.float32, **{**SIZES, **FAMILIES[family]})


def stored(folder: Path, family: str, **changes: Any) -> Transformer:
    """A model of ours as a folder of theirs; `changes` are made in its config.json."""
    node = small(family)
    write_file(folder / "model.safetensors", names.theirs(parameters(node), family, 2))
    sizes = {name: getattr(node.config, name) for name in (*SIZES, "causal", "tied", "eps", "kv_heads")}
    about = config_json({**sizes, "mlp": MLPS[node.config.kind.mlp], "rope_base": node.config.theta}, family)
    (folder / "config.json").write_text(json.dumps({**about, **changes}))
    return node


@every_family
def test_a_folder_of_theirs_is_the_model_that_was_stored_in_it(family: str, tmp_path: Path) -> None:
    node = stored(tmp_path, family)
    read = load_model(tmp_path)
    assert read.config == node.config
    assert digest(read) == digest(node)
    assert np.array_equal(read(tokens_of(node)), node(tokens_of(node)))
    assert load_model(tmp_path, np.float64).tokens.W.dtype == np.float64
    assert read.tokens.W.flags.c_contiguous


def test_heads_may_have_another_width_than_the_stream_gives_them(tmp_path: Path) -> None:
    sizes = {**SIZES, **FAMILIES["llama"], "head_dim": 6}
    node = model(dtype=np.float32, **sizes)
    assert parameters(node)["blocks.0.attention.query.W"].shape == (24, 8)
    write_file(tmp_path / "model.safetensors", names.theirs(parameters(node), "llama", 2))
    about = {name: getattr(node.config, name) for name in (*SIZES, "causal", "tied", "eps", "kv_heads")}
    about |= {"d_head": 6, "mlp": "swiglu", "rope_base": node.config.theta}
    (tmp_path / "config.json").write_text(json.dumps(config_json(about, "llama")))
    read = load_model(tmp_path)
    assert read.config == node.config
    assert np.array_equal(read(tokens_of(node)), node(tokens_of(node)))


LABELS = {"0": "entailment", "1": "neutral", "2": "contradiction"}


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_classes_of_a_classifier_are_called_as_it_calls_them(family: str, tmp_path: Path) -> None:
    stored(tmp_path, family, id2label=LABELS)
    assert load_model(tmp_path).config.class_names == tuple(LABELS.values())
    save_model(tmp_path / "ours", load_model(tmp_path))
    assert load_model(tmp_path / "ours").config.labels == tuple(LABELS.values())


def test_names_that_nobody_gave_are_numbers(tmp_path: Path) -> None:
    stored(tmp_path, "bert", id2label={str(i): f"LABEL_{i}" for i in range(3)})
    config = load_model(tmp_path).config
    assert (config.labels, config.class_names) == ((), ("0", "1", "2"))


def test_a_head_with_one_output_tells_no_classes_apart(tmp_path: Path) -> None:
    node = model(dtype=np.float32, **{**SIZES, **FAMILIES["bert"]})
    arrays = names.theirs(parameters(node), "bert", 2)
    stored(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    write_file(
        tmp_path / "model.safetensors", {n: a[:1] if n.startswith("classifier") else a for n, a in arrays.items()}
    )
    with pytest.raises(ValueError, match="one output, which is a number and no class"):
        load_model(tmp_path)


@every_family
def test_what_was_read_is_stored_as_ours_and_read_again(family: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    node = stored(tmp_path / "theirs", family)
    save_model(tmp_path / "ours", load_model(tmp_path / "theirs"))
    assert (is_foreign(tmp_path / "theirs"), is_foreign(tmp_path / "ours")) == (True, False)
    assert digest(load_model(tmp_path / "ours")) == digest(node)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a family unknown": ("llama", {"model_type": "bloom"}, "gpt2, llama, mistral"),
    "other tensors": ("llama", {"model_type": "mixtral", "num_local_experts": 2}, "lacks"),
    "another width": ("gpt2", {"n_inner": 7}, r"mlp.up.W has shape \(6, 8\), and its description says \(7"),
    "another vocabulary": ("gpt2", {"vocab_size": 12}, "tokens.W has shape"),
    "other key heads": ("llama", {"num_key_value_heads": 4}, "attention.key.W has shape"),
    "tied, and a head all the same": ("llama", {"tie_word_embeddings": True}, "a head of its own"),
    "one block fewer": ("gpt2", {"n_layer": 1}, "blocks"),
    "heads of another width": ("llama", {"head_dim": 4}, r"query.W has shape \(8, 8\), .* says \(16, 8\)"),
    "fewer labels than classes": ("bert", {"id2label": {"0": "no", "1": "yes"}}, "names 2 classes, and .* 3 apart"),
    "labels that are no names": ("bert", {"id2label": ["a", "b", "c"]}, "id2label must give the classes 0, 1"),
    "a label twice": ("bert", {"id2label": {"0": "a", "1": "a", "2": "b"}}, "different names"),
    "a class without a name": ("bert", {"id2label": {"0": "a", "1": "b", "3": "c"}}, "different names"),
    "several labels at once": ("bert", {"problem_type": "multi_label_classification"}, "problem_type is 'multi_label"),
    "quantised": ("llama", {"quantization_config": {"bits": 4, "quant_method": "gptq"}}, "quantised .*: 'gptq'"),
    "another activation": ("gpt2", {"activation_function": "gelu"}, "run with gelu_tanh"),
    "a GELU that is not exact": ("bert", {"hidden_act": "gelu_new"}, "run with gelu in"),
    "key heads that do not divide": ("llama", {"num_key_value_heads": 3}, "kv_heads must divide"),
}  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "word"), WRONG.values(), ids=WRONG)
def test_a_description_that_contradicts_the_file_is_refused(
    family: str, changes: dict[str, Any], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, family, **changes)
    monkeypatch.setattr(loading, "_read", lambda *_: pytest.fail("numbers were read"))
    with pytest.raises(ValueError, match=word) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


ZEROS = np.zeros(8, np.float32)
CHANGED: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "a bias that llama has not": ("llama", lambda a: a | {"model.layers.0.self_attn.q_proj.bias": ZEROS},
                                  "attention.query.b is not read"),
    "a head missing": ("llama", lambda a: {n: t for n, t in a.items() if n != "lm_head.weight"}, "head.W is missing"),
    "not a number": ("gpt2", lambda a: a | {"transformer.ln_f.bias": np.full(8, np.nan, np.float32)}, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize(("family", "change", "word"), CHANGED.values(), ids=CHANGED)
def test_arrays_that_are_not_those_of_the_family_are_refused(
    family: str, change: Callable[[dict[str, Any]], Any], word: str, tmp_path: Path
) -> None:
    node = stored(tmp_path, family)
    (tmp_path / "model.safetensors").unlink()
    write_file(tmp_path / "model.safetensors", change(names.theirs(parameters(node), family, 2)))
    with pytest.raises(ValueError, match=word):
        load_model(tmp_path)


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, "gpt2")
    numbers = sum(tensor.size for tensor in open_foreign(tmp_path).tensors.values())
    monkeypatch.setattr(loading, "available_bytes", lambda: 4 * numbers)
    monkeypatch.setattr(loading, "_read", lambda *_: pytest.fail("numbers were read"))
    with pytest.raises(ValueError, match="GB are available"):
        load_model(tmp_path)
    monkeypatch.setattr(loading, "_read", lambda *_: {})
    monkeypatch.setattr(loading, "available_bytes", lambda: 8 * numbers)
    load_model(tmp_path)


def test_an_encoder_without_a_head_gets_one_on_request(tmp_path: Path) -> None:
    node = stored(tmp_path, "bert")
    arrays = {n: t for n, t in names.theirs(parameters(node), "bert", 2).items() if "classifier" not in n}
    (tmp_path / "model.safetensors").unlink()
    write_file(tmp_path / "model.safetensors", arrays)
    assert load_foreign(tmp_path).config.classes == 0
    headed = load_foreign(tmp_path, classes=5, rng=np.random.default_rng(0))
    assert headed(tokens_of(node)).shape == (3, 1, 5)
    assert np.array_equal(parameters(headed)["head.pooler.W"], parameters(node)["head.pooler.W"])
    assert {n: a.shape for n, a in parameters(headed).items()} == {
        n: a.shape for n, a in parameters(model(**{**SIZES, **FAMILIES["bert"], "classes": 5})).items()
    }
    with pytest.raises(ValueError, match="pass rng"):
        load_foreign(tmp_path, classes=5)


@pytest.mark.parametrize(("family", "theirs"), [("bert", "cls.predictions.bias"), ("roberta", "lm_head.bias")])
def test_a_head_that_guesses_hidden_words_is_not_left_out_in_silence(family: str, theirs: str, tmp_path: Path) -> None:
    node = stored(tmp_path, family)
    plain = load_model(tmp_path)  # contrast: no warning, which would be an error here
    (tmp_path / "model.safetensors").unlink()
    arrays = names.theirs(parameters(node), family, 2) | {theirs: np.zeros(SIZES["vocab"], np.float32)}
    write_file(tmp_path / "model.safetensors", arrays)
    with pytest.warns(UserWarning, match=r"head that guesses hidden words \(masked.b\) is left out"):
        read = load_model(tmp_path)
    assert digest(read) == digest(plain)


def test_of_an_encoder_only_labels_are_learned_and_a_command_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = model(dtype=np.float32, **{**SIZES, **FAMILIES["bert"], "classes": 0, "vocab": 256})
    save_model(tmp_path / "base", node)
    (tmp_path / "pairs.tsv").write_text("a\tb\n" * 20)
    line = ["adapt", str(tmp_path / "pairs.tsv"), "--base", str(tmp_path / "base"), "--out", str(tmp_path / "out")]
    assert code_of([*line, "--steps", "1", "--rank", "2"]) == 2
    said = capsys.readouterr().err
    assert "a model must be causal to write text, and this one (bert) is not" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    (tmp_path / "pairs.tsv").write_text("a\tb\nb\ta\n" * 10)
    assert code_of([*line, "--steps", "1", "--rank", "2", "--task", "classify"]) == 0  # contrast


# ---------------------------------------------------------------------------------------------------------- GGUF


def gguf_of(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Transformer:
    """What stands in for a GGUF file: a Llama with the rows of queries and keys as llama.cpp orders them."""
    node = model(dtype=np.float32, **{**SIZES, **FAMILIES["llama"], "tied": True, "theta": 300.0, "d_model": 16})

    def order(name: str, W: Any) -> Any:
        if "attn_q" not in name and "attn_k" not in name:
            return W
        return W.reshape(-1, 2, 2, W.shape[1]).swapaxes(1, 2).reshape(W.shape)  # (heads, halves, pairs)

    arrays = {n: order(n, W) for n, W in names.theirs(parameters(node), "llama of llama.cpp", 2).items()}
    settings: dict[str, Any] = {"general.architecture": "llama", "llama.rope.freq_base": 300.0}
    settings |= {f"llama.{theirs}": getattr(node.config, ours) for ours, theirs in loading.SETTINGS.items()}
    settings["llama.attention.layer_norm_rms_epsilon"] = float(np.float32(1e-6))
    settings |= {f"{key.replace('__', '.')}": value for key, value in changes.items()}
    monkeypatch.setattr(loading, "open_gguf", lambda path: (arrays, settings))
    return node


def test_a_llama_of_llama_cpp_is_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = gguf_of(monkeypatch)
    (tmp_path / "model.gguf").touch()
    for path in (tmp_path, tmp_path / "model.gguf"):
        assert is_foreign(path)
        read = load_model(path)
        assert read.config == node.config
        assert np.array_equal(read(tokens_of(node)), node(tokens_of(node)))


GGUF_WRONG = {
    "another architecture": ({"general__architecture": "falcon"}, "must be llama"),
    "a size missing": ({"llama__embedding_length": None}, "llama.embedding_length is missing"),
    "blocks of text": ({"llama__block_count": "2"}, "llama.block_count is missing or no size"),
    "scaled positions": ({"llama__rope__scaling__type": "yarn"}, "scaled"),
    "a θ of text": ({"llama__rope__freq_base": "x"}, "theta must be"),
}


@pytest.mark.parametrize(("changes", "word"), GGUF_WRONG.values(), ids=GGUF_WRONG)
def test_settings_of_a_gguf_file_that_are_not_read_are_refused(
    changes: dict[str, Any], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_of(monkeypatch, **changes)
    with pytest.raises(ValueError, match=word):
        open_foreign("model.gguf")


def test_memory_is_predicted_for_the_precision_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors: Any = {"a": SimpleNamespace(size=1000), "b": SimpleNamespace(size=500)}
    of = loading.Foreign(Path("x"), TransformerConfig(5, 5, 4, 1, 2), tensors)
    monkeypatch.setattr(loading, "available_bytes", lambda: 1500 * 4 + 2 * 1000 * 4)
    loading.check_memory(of, np.dtype(np.float32))
    with pytest.raises(ValueError, match="available"):
        loading.check_memory(of, np.dtype(np.float64))
    monkeypatch.setattr(loading, "available_bytes", lambda: None)
    loading.check_memory(of, np.dtype(np.float64))
