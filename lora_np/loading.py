r"""Models of other software as ours: folders of transformers, GGUF files of Llama, and the .npz files of glassllm.

    config.json, or the settings of a GGUF file → TransformerConfig → its skeleton → arrays in place of what is blank

A file is held against the skeleton before one number is read: every array must be there, in its shape, and no other;
and what the arrays will take is predicted, and refused where there is not so much memory. What a table of
`lora_np.formats.names` knows and this model has no place for, the heads with which an encoder guesses hidden words, is
left out, and a warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import ARCHITECTURES, TransformerConfig
from .engine.arrays import Array
from .engine.memory import available_bytes
from .formats import names
from .formats.disk import only, shown
from .formats.folders import gguf_file, npz_file
from .formats.gguf import check_kinds, open_gguf
from .formats.huggingface import open_model
from .formats.npz import open_npz
from .formats.tensors import Tensor
from .halving import check_kind, held_as, is_held
from .model import Transformer, skeleton, with_head
from .parameters import Arrays, parameters, with_parameters

# Their family → our architecture, and how its MLP must be described for that to be true.
FAMILIES = {
    "gpt2": ("gpt2", "gelu_tanh"),
    "llama": ("llama", "swiglu"),
    "mistral": ("llama", "swiglu"),
    "qwen2": ("qwen2", "swiglu"),
    "bert": ("bert", "gelu"),
    "roberta": ("bert", "gelu"),
}
TURNED = ("attention.query.W", "attention.key.W")
LEFT_OUT = ("pooler.", "masked.")  # of an encoder: what only its training needed
SETTINGS = {  # of a GGUF file, each behind "llama."
    "context": "context_length", "d_model": "embedding_length", "layers": "block_count",
    "heads": "attention.head_count", "kv_heads": "attention.head_count_kv", "d_ff": "feed_forward_length",
    "eps": "attention.layer_norm_rms_epsilon",
}  # fmt: skip
NPZ_SETTINGS = {  # of a .npz file
    "vocab": "vocab_size", "context": "max_len", "d_model": "d_model", "layers": "n_layers", "heads": "n_heads",
    "kv_heads": "n_kv_heads", "theta": "rope_base", "eps": "eps",
}  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """A model that was not read yet: its sizes, and where each of its arrays is.

    family   what transformers calls its kind; "" where it knows none like it
    turned   what becomes of an array after it was read, by its name, where the file keeps it otherwise
    """

    path: Path
    config: TransformerConfig
    tensors: Mapping[str, Tensor]
    family: str = ""
    turned: Callable[[str, Array], Array] = lambda name, array: array


def open_foreign(path: str | Path) -> Foreign:
    """The sizes of a model of other software and where its arrays are; not one number is read.

    Raises ValueError or OSError in one line for a family that is not known, or a setting that is not read here.
    """
    path = Path(path)
    if gguf := gguf_file(path):
        return _opened_gguf(gguf)
    if npz := npz_file(path):
        return _opened_npz(npz)
    tensors, found, family = open_model(path)
    return Foreign(path, _config(found, family, tensors, str(path / "config.json")), tensors, family)


def load_foreign(
    path: str | Path,
    dtype: npt.DTypeLike = np.float32,
    *,
    held: str | None = None,
    classes: int = 0,
    rng: np.random.Generator | None = None,
) -> Transformer:
    """A model of other software, computed in `dtype` whatever it is stored in.

    held           "float16" or "bfloat16": its matrices are held in that, each rounded as it is read
    classes, rng   a fresh head for so many classes, drawn by rng, where the file has none

    Raises ValueError or OSError in one line, before an array is allocated, for a file that is not as its description
    says, or a model that does not fit into memory; and for numbers that are not finite.
    """
    check_kind(held)
    foreign = open_foreign(path)
    expected = parameters(skeleton(foreign.config, dtype))
    found = {name: tensor for name, tensor in foreign.tensors.items() if name in expected or not _unused(name)}
    _check_shapes(found, expected, foreign)
    check_memory(foreign, np.dtype(dtype), held)
    _warn_of_left_out(foreign)
    model = with_parameters(skeleton(foreign.config, dtype), _read(found, foreign, np.dtype(dtype), held))
    if not classes:
        return model
    if rng is None:
        raise ValueError("a fresh head is drawn: pass rng, a numpy.random.Generator")
    return with_head(model, classes, rng=rng, pooler=_pooler(foreign, np.dtype(dtype)))


def pooler_of(path: str | Path, dtype: npt.DTypeLike = np.float32) -> Arrays:
    """The pooler that the file of an encoder without a head brings, as `model.with_head` takes it; {} without one."""
    foreign = open_foreign(path)
    return {} if foreign.config.classes else _pooler(foreign, np.dtype(dtype))


def check_memory(foreign: Foreign, dtype: np.dtype[Any], held: str | None = None) -> None:
    """Raise ValueError where the arrays, and beside them the largest as it is read, need more memory than there is."""
    sizes = {
        name: tensor.size * (2 if held and is_held(name, len(tensor.shape)) else dtype.itemsize)
        for name, tensor in foreign.tensors.items()
    }
    needed = sum(sizes.values()) + 2 * max(tensor.size for tensor in foreign.tensors.values()) * max(dtype.itemsize, 4)
    free = available_bytes()
    if free is not None and needed > free:
        less = "" if held else ", hold it in 16 bits (--base-dtype bfloat16)"
        raise ValueError(
            f"{foreign.path}: reading it takes {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are available: "
            f"free some{less}, or take a smaller model"
        )


# --------------------------------------------------------------------------------------------------------- sizes


def _config(found: Mapping[str, Any], family: str, tensors: Mapping[str, Tensor], where: str) -> TransformerConfig:
    """Our sizes, those that only the arrays tell among them."""
    if family not in FAMILIES:
        raise ValueError(
            f"{where}: a model of type {shown(family)} can be merged into, not run: one of {only(FAMILIES)} can"
        )
    architecture, mlp = FAMILIES[family]
    if found["mlp"] != mlp:
        raise ValueError(f"{where}: {family} models are run with {mlp} in the MLP, and this one has {found['mlp']}")
    sizes = {name: found[name] for name in ("vocab", "context", "d_model", "layers", "heads", "causal", "tied", "eps")}
    more = {name: found[name] for name in ("d_ff", "kv_heads") if name in found}
    if found.get("d_head", 0) * found["heads"] not in (0, found["d_model"]):
        more["head_dim"] = found["d_head"]
    theta = {"theta": found["rope_base"], **found.get("rope_scaling", {})} if "rope_base" in found else {}
    types = {"types": tensors["types.W"].shape[0]} if "types.W" in tensors else {}
    classes = _classes(found, tensors["head.output.W"].shape[0], where) if "head.output.W" in tensors else {}
    return _made({**sizes, **more, **theta, **types, **classes, "architecture": architecture}, where)


def _classes(found: Mapping[str, Any], outputs: int, where: str) -> dict[str, Any]:
    """How many classes a head tells apart, and what they are called where somebody named them."""
    if outputs < 2:
        raise ValueError(f"{where}: its head has one output, which is a number and no class")
    labels = found.get("labels", ())
    if labels and len(labels) != outputs:
        raise ValueError(f"{where}: id2label names {len(labels)} classes, and its head tells {outputs} apart")
    return {"classes": outputs, "labels": labels}


def _as_written(value: Any) -> Any:
    """A number that was written as float32, as the shortest decimal that is: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _made(sizes: Mapping[str, Any], where: str) -> TransformerConfig:
    try:
        return TransformerConfig(**sizes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _opened_gguf(path: Path) -> Foreign:
    """llama.cpp turns neighbours where this package turns halves."""
    tensors, settings = open_gguf(path)
    kind = settings.get("general.architecture")
    if kind != "llama":
        raise ValueError(f"{path}: general.architecture must be llama to be read here, got {shown(kind)}")
    check_kinds(path, tensors)
    if "rope_freqs.weight" in tensors or settings.get("llama.rope.scaling.type", "none") != "none":
        raise ValueError(f"{path}: its rotary positions are scaled, which is not read")
    sizes: dict[str, Any] = {name: settings.get(f"llama.{theirs}") for name, theirs in SETTINGS.items()}
    missing = [name for name, value in sizes.items() if value is None and name != "kv_heads"]
    if missing or type(sizes["layers"]) is not int or not 0 < sizes["layers"] < 1 << 16:
        raise ValueError(f"{path}: llama.{SETTINGS[(missing or ['layers'])[0]]} is missing or no size of a model")
    ours = names.ours(tensors, "llama of llama.cpp", sizes["layers"])
    sizes |= {"vocab": ours["tokens.W"].shape[0], "tied": "head.W" not in ours, "architecture": "llama"}
    sizes |= {"theta": settings.get("llama.rope.freq_base", 1e4)}
    sizes |= {name: _as_written(sizes[name]) for name in ("theta", "eps")}
    config = _made(sizes, str(path))
    return Foreign(path, config, ours, "llama", _halves(config.d_head))


def _halves(d_head: int) -> Callable[[str, Array], Array]:
    """Rows of queries and keys from the order of those who turn neighbours to that of who turns halves."""

    def turned(name: str, array: Array) -> Array:
        if not name.endswith(TURNED):
            return array
        pairs = array.reshape(-1, d_head // 2, 2, array.shape[1])
        return pairs.swapaxes(1, 2).reshape(array.shape)

    return turned


def _opened_npz(path: Path) -> Foreign:
    """A Llama as glassllm stores it: matrices (d_in, d_out), a tied head; it turns neighbours, as llama.cpp does."""
    tensors, settings = open_npz(path)
    missing = [theirs for theirs in NPZ_SETTINGS.values() if theirs not in settings]
    if missing or type(settings["n_layers"]) is not int or not 0 < settings["n_layers"] < 1 << 16:
        raise ValueError(f"{path}: {(missing or ['n_layers'])[0]} is missing or no size of a model")
    ours = names.ours(tensors, "llama of glassllm", settings["n_layers"])
    sizes = {name: settings[theirs] for name, theirs in NPZ_SETTINGS.items()}
    sizes |= {"d_ff": ours["blocks.0.mlp.up.W"].shape[0], "tied": True, "architecture": "llama"}
    config = _made(sizes, str(path))
    return Foreign(path, config, ours, turned=_halves(config.d_head))


# -------------------------------------------------------------------------------------------------------- arrays


def _warn_of_left_out(foreign: Foreign) -> None:
    """Warn of a head that guesses hidden words, which was trained and is not read."""
    if dropped := [name for name in foreign.tensors if name.startswith(LEFT_OUT[1])]:
        warnings.warn(
            f"{foreign.path}: its head that guesses hidden words ({', '.join(dropped)}) is left out: nothing here "
            "trains or asks one",
            stacklevel=3,
        )


def _unused(name: str) -> bool:
    return name.startswith(LEFT_OUT) or name.startswith("head.pooler.")


def _check_shapes(found: Mapping[str, Tensor], expected: Arrays, foreign: Foreign) -> None:
    """Raise ValueError, naming the first array, where description and file contradict each other."""
    for name in [*expected, *found]:
        if name not in found:
            raise ValueError(f"{foreign.path}: {name} is missing, which {foreign.config} has")
        if name == "head.W" and name not in expected:
            raise ValueError(f"{foreign.path}: it has a head of its own, and its description says that it has none")
        if name not in expected:
            raise ValueError(
                f"{foreign.path}: {name} is not read: no {foreign.config.architecture} model of "
                f"{only(ARCHITECTURES)} has one"
            )
        if found[name].shape != expected[name].shape:
            raise ValueError(
                f"{foreign.path}: {name} has shape {found[name].shape}, and its description says {expected[name].shape}"
            )


def _read(found: Mapping[str, Tensor], foreign: Foreign, dtype: np.dtype[Any], held: str | None = None) -> Arrays:
    arrays = {}
    for name, tensor in found.items():
        array = np.ascontiguousarray(foreign.turned(name, np.asarray(tensor)), dtype=dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"{foreign.path}: {name} holds a number that is not finite in {dtype}")
        arrays[name] = held_as(name, array, held) if held and is_held(name, array.ndim) else array
    return arrays


def _pooler(foreign: Foreign, dtype: np.dtype[Any]) -> Arrays:
    """The pooler of an encoder, by its name in a head of classes; nothing where the file has none."""
    prefix = "head."
    found = {name: tensor for name, tensor in foreign.tensors.items() if name.startswith("head.pooler.")}
    return {name.removeprefix(prefix): array for name, array in _read(found, foreign, dtype).items()}
