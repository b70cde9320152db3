r"""Model folders of transformers: config.json <-> our sizes, and the weights beside it under their names or ours.

vocab context d_model layers heads d_ff causal tied      as TransformerConfig knows them
kv_heads d_head                                           attention whose keys and values are shared
norm eps order                                            "layer" or "rms"; "pre" or "post" the sum
positions rope_base rope_scaling                          "learned" or "rotary", its base, and how angles shrink
mlp                                                       "gelu", "gelu_tanh" or "swiglu"
experts experts_used                                      of a mixture
labels                                                    of a classifier, where id2label names them
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import names
from .archive import INDEX as BIN_INDEX
from .archive import open_archive
from .disk import only, read_json, shown
from .gguf import open_gguf
from .npz import open_npz
from .tensors import INDEX, SINGLE, Tensors, open_tensors, read_sharded

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}

# Our name -> theirs, a family; what is not in a table has the value beside it.
_GPT2 = {
    "vocab": "vocab_size", "context": "n_positions", "d_model": "n_embd", "layers": "n_layer", "heads": "n_head",
    "d_ff": "n_inner", "tied": "tie_word_embeddings", "eps": "layer_norm_epsilon",
}  # fmt: skip
_COMMON = {
    "vocab": "vocab_size", "context": "max_position_embeddings", "d_model": "hidden_size", "d_ff": "intermediate_size",
    "layers": "num_hidden_layers", "heads": "num_attention_heads", "tied": "tie_word_embeddings",
}  # fmt: skip
_LLAMA = {**_COMMON, "kv_heads": "num_key_value_heads", "d_head": "head_dim", "eps": "rms_norm_eps"}
_BERT = {**_COMMON, "eps": "layer_norm_eps"}
_ROTARY = {"causal": True, "norm": "rms", "order": "pre", "positions": "rotary", "mlp": "swiglu"}
_MASKED = {"causal": False, "norm": "layer", "order": "post", "positions": "learned"}
FAMILIES: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, Any]]] = {  # names, fixed values, their defaults
    "gpt2": (_GPT2, {"causal": True, "norm": "layer", "order": "pre", "positions": "learned"},
             {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}),
    "llama": (_LLAMA, _ROTARY, {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}),
    "mistral": (_LLAMA, _ROTARY, {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}),
    "qwen2": (_LLAMA, _ROTARY, {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}),
    "mixtral": ({**_LLAMA, "experts": "num_local_experts", "experts_used": "num_experts_per_tok"}, _ROTARY,
                {"tie_word_embeddings": False, "rms_norm_eps": 1e-5, "num_experts_per_tok": 2}),
    "bert": (_BERT, _MASKED, {"tie_word_embeddings": True, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}),
    "roberta": (_BERT, _MASKED, {"tie_word_embeddings": True, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}),
}  # fmt: skip
OPTIONAL = ("d_ff", "kv_heads", "d_head")
NEEDS_NONE = {  # settings that change what a model computes, with the values under which it is the one described here
    "scale_attn_by_inverse_layer_idx": (False, None), "reorder_and_upcast_attn": (False, None),
    "add_cross_attention": (False, None), "partial_rotary_factor": (1.0, None),
    "use_sliding_window": (False, None), "position_embedding_type": ("absolute", None), "is_decoder": (False, None),
    "problem_type": ("single_label_classification", None),
}  # fmt: skip
ROPE_SCALINGS = {  # how they call a way of making rotary angles slower, and its numbers
    "linear": {"rope_factor": "factor"},
    "llama3": {"rope_factor": "factor", "rope_low": "low_freq_factor", "rope_high": "high_freq_factor",
               "rope_context": "original_max_position_embeddings"},
}  # fmt: skip
ROPE_BASE = {"mixtral": 1e6}


def sizes(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """Our sizes out of a config.json; raises ValueError for a family, or a setting of one, that is not known here."""
    kind = config.get("model_type")
    if not (isinstance(kind, str) and kind in FAMILIES):
        raise ValueError(f"{where}: model_type must be one of {only(FAMILIES)}, got {shown(kind)}")
    table, fixed, defaults = FAMILIES[kind]
    if quantised := config.get("quantization_config"):
        kind = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"{where}: its weights are quantised (quantization_config: {shown(kind)}), which is not read: dequantise "
            "them first"
        )
    for name, allowed in NEEDS_NONE.items():
        if all(config.get(name) is not value for value in allowed) and config.get(name) != allowed[0]:
            raise ValueError(
                f"{where}: {name} is {shown(config[name])}, which is not read: {shown(allowed[0])} would be"
            )
    found: dict[str, Any] = {}
    for ours, theirs in table.items():
        value = config.get(theirs, defaults.get(theirs))
        right = {"tied": bool, "eps": float}.get(ours, int)
        if value is None and ours in OPTIONAL:
            continue
        if type(value) is not right or (right is not bool and not 0 < value < 1 << 40):
            raise ValueError(
                f"{where}: {theirs} must be a positive number of type {right.__name__}, got {shown(value)}"
            )
        found[ours] = value
    found |= fixed
    if found["heads"] > found["d_model"] or ("d_head" not in found and found["d_model"] % found["heads"]):
        raise ValueError(f"{where}: {found['heads']} heads do not divide a width of {found['d_model']}")
    if "mlp" not in found:
        act = config.get("activation_function", config.get("hidden_act", defaults.get("hidden_act", "gelu_new")))
        if not (isinstance(act, str) and act in ACTIVATIONS):
            raise ValueError(f"{where}: the activation {shown(act)} is not known: one of {only(ACTIVATIONS)}")
        found["mlp"] = ACTIVATIONS[act]
    elif config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{where}: hidden_act is {shown(config['hidden_act'])}, and only silu is read here")
    if found["positions"] == "rotary":
        found["rope_base"] = _rope_base(config, kind, where)
        if scaled := _rope_scaling(config, where):
            found["rope_scaling"] = scaled
    window = config.get("sliding_window")
    if type(window) is int and window > 0:
        found["context"] = min(found["context"], window)  # up to there, attention that slides is attention
    if kind == "roberta":
        found["context"] -= 2  # its positions begin at 2
    return found | _labels(config, where)


def _labels(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the classes of a head are called; nothing where nobody did, which is written as LABEL_0, LABEL_1, …"""
    named = config.get("id2label")
    if named is None:
        return {}
    numbers = list(map(str, range(len(named)))) if isinstance(named, dict) else []
    labels = tuple(named[number] for number in numbers) if numbers and set(named) == set(numbers) else ()
    if not labels or not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise ValueError(f"{where}: id2label must give the classes 0, 1, … different names, got {shown(named)}")
    return {} if labels == tuple(f"LABEL_{number}" for number in numbers) else {"labels": labels}


def _rope_base(config: Mapping[str, Any], kind: str, where: str) -> float:
    rope = config.get("rope_parameters")
    if rope is not None and not isinstance(rope, dict):
        raise ValueError(f"{where}: rope_parameters must be an object, got {shown(rope)}")
    base = config.get("rope_theta", (rope or {}).get("rope_theta", ROPE_BASE.get(kind, 10_000.0)))
    return _positive(base, "rope_theta", where)


def _rope_scaling(config: Mapping[str, Any], where: str) -> dict[str, float]:
    """How rotary angles shrink, as TransformerConfig names it; nothing where they do not."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind == "default":
        return {}
    if not (isinstance(kind, str) and kind in ROPE_SCALINGS):
        raise ValueError(
            f"{where}: its rotary positions are scaled by {shown(kind)}, which is not read: {only(ROPE_SCALINGS)} are"
        )
    names = ROPE_SCALINGS[kind]
    found = {ours: _positive(rope.get(theirs), f"{theirs} of {kind}", where) for ours, theirs in names.items()}
    return {ours: int(value) if ours == "rope_context" else value for ours, value in found.items()}


def _positive(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{where}: {name} must be a positive number, got {shown(value)}")
    return float(value)


def config_json(values: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """A config.json for these sizes, the inverse of `sizes`; raises ValueError where the family has another layout."""
    if model_type not in FAMILIES:
        raise ValueError(f"model_type must be one of {only(FAMILIES)}, got {shown(model_type)}")
    table, fixed, _ = FAMILIES[model_type]
    for name, value in fixed.items():
        if name in values and values[name] != value:
            raise ValueError(f"a {model_type} model has {name} = {value!r}, got {values[name]!r}")
    config: dict[str, Any] = {"model_type": model_type}
    config |= {theirs: values[ours] for ours, theirs in table.items() if values.get(ours) is not None}
    if "mlp" not in fixed:
        act = next((name for name, ours in ACTIVATIONS.items() if ours == values["mlp"]), None)
        if act is None:
            raise ValueError(f"a {model_type} model has no MLP of kind {values['mlp']!r}")
        config["activation_function" if model_type == "gpt2" else "hidden_act"] = act
    if fixed["positions"] == "rotary":
        config |= {"hidden_act": "silu", "rope_theta": values["rope_base"]}
        if scaled := values.get("rope_scaling"):
            kind = "llama3" if "rope_context" in scaled else "linear"
            config["rope_scaling"] = {theirs: scaled[ours] for ours, theirs in ROPE_SCALINGS[kind].items()}
            config["rope_scaling"]["rope_type"] = kind
    if model_type == "roberta":
        config["max_position_embeddings"] += 2
    return config


def open_weights(path: str | Path) -> Tensors:
    """The weights of a folder or file under their own names: safetensors, PyTorch's .bin, GGUF; single or sharded."""
    path = Path(path)
    if not path.is_dir():
        if path.suffix == ".gguf":
            return open_gguf(path)[0]
        if path.suffix == ".npz":
            return open_npz(path)[0]
        return open_archive(path) if path.suffix in (".bin", ".pt", ".pth") else open_tensors(path)
    if any((path / name).exists() for name in (SINGLE, INDEX)):
        return open_tensors(path)
    if (path / BIN_INDEX).exists():
        return read_sharded(path / BIN_INDEX, open_archive)
    single = path / "pytorch_model.bin"
    found = [single] if single.exists() else sorted(path.glob("*.gguf"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{path} holds no weights: no {SINGLE}, no {INDEX}, no pytorch_model.bin, no one .gguf file"
        )
    return open_weights(found[0])


def open_model(path: str | Path) -> tuple[Tensors, dict[str, Any], str]:
    """A model folder under our names: its arrays, its sizes, and its family."""
    config = read_json(Path(path) / "config.json")
    found = sizes(config, str(Path(path) / "config.json"))
    kind = config["model_type"]
    return names.ours(open_weights(path), kind, found["layers"], found.get("experts", 0)), found, kind
