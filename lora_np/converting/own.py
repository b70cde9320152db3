r"""Our own adapter folders as leaves, and leaves as our own adapter folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import TransformerConfig
from ..disk.reading import read_json
from ..disk.writing import write_json
from ..files import ABOUT, digest, load_config, load_model, read_arrays, write_arrays
from ..formats.factors import TABLE, Leaves, in_types, pair_of
from ..formats.folders import is_foreign
from ..formats.saving import alpha_for
from ..lora import LoraEmbedding, adapters
from ..methods import described, method_from
from ..methods.lora import LoraConfig
from ..methods.variants import DoRA, DoraLinear
from ..model import skeleton
from ..parameters import Arrays
from ..wrappers import wrappers

TYPES = ("float16", "float32", "float64")
FAMILY = {"gpt2": "gpt2", "llama": "llama", "qwen2": "qwen2", "bert": "bert"}  # our architecture -> model_type


def family_of(base: Path | None) -> tuple[str, int]:
    """What transformers calls the family of a base of either kind, and how many blocks it has."""
    config = sizes_of(base)
    if base is not None and is_foreign(base) and (base / "config.json").exists():
        return str(read_json(base / "config.json").get("model_type")), config.layers
    return FAMILY[config.architecture], config.layers


def sizes_of(base: Path | None) -> TransformerConfig:
    from ..files import BASE

    return load_config(BASE if base is None else base)


def read_own(folder: Path, base: Path | None) -> tuple[Leaves, Mapping[str, Any]]:
    """Factors by our paths, and what adapter.json says; the numbers of the base are not read.

    Raises ValueError for a method that is not LoRA or DoRA: its ΔW is not the product of two factors.
    """
    about = read_json(folder / "adapter.json")
    method = method_from({"method": "lora", "settings": about["lora"]} if "lora" in about else about)
    if not isinstance(method, LoraConfig) or "vera" in str(about.get("method")):
        raise ValueError(f"{folder} was trained by {about.get('method')}: only LoRA and DoRA are of two factors")
    if method.bias != "none":
        raise ValueError(
            f"{folder} holds trained biases (bias={method.bias!r}), which are no factors: merge it instead"
        )
    adapted = method.apply(skeleton(sizes_of(base)), None)
    found = {**adapters(adapted), **{p: w for p, w in wrappers(adapted).items() if isinstance(w, DoraLinear)}}
    arrays, _ = read_arrays(folder / "adapter.safetensors")
    modules = {path: _parts(path, wrapper, arrays, folder) for path, wrapper in found.items()}
    scales = {path: wrapper.scaling for path, wrapper in found.items()}
    return Leaves(modules, scales, dora=isinstance(method, DoRA)), about


def _parts(path: str, wrapper: Any, arrays: Arrays, folder: Path) -> dict[str, Any]:
    """The factors of one wrapper, as they lie in the file; in the shapes that the base asks for."""
    names = {"A": "EA", "B": "EB"} if isinstance(wrapper, LoraEmbedding) else {"A": "A", "B": "B", "m": "m"}
    parts: dict[str, Any] = {}
    for name, leaf in names.items():
        blank = getattr(wrapper, name, None)
        if blank is None:
            continue
        array = arrays.get(f"{path}.{name}")
        if array is None or array.shape != blank.shape:
            found = "missing" if array is None else f"of shape {array.shape}"
            raise ValueError(
                f"{folder}: {path}.{name} is {found}, and this base asks for {blank.shape}: name the one that it was "
                "trained on, --base"
            )
        parts[leaf] = array
    return parts


def write_own(folder: Path, leaves: Leaves, base: Path | None) -> None:
    """adapter.json and adapter.safetensors, for this base and no other: its digest is taken, so it is read whole."""
    model = load_model(base)
    pairs = {path: pair for path, parts in leaves.modules.items() if (pair := pair_of(parts))}
    ranks = {path: int(A.shape[0]) for path, (A, _) in pairs.items()}
    alphas = {path: float(alpha_for(leaves.scales[path], rank)) for path, rank in ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    kind = DoRA if leaves.dora else LoraConfig
    method = kind(
        rank=int(rank), alpha=float(alpha), targets=tuple(pairs),
        ranks={path: r for path, r in ranks.items() if r != rank},
        alphas={path: a for path, a in alphas.items() if a != alpha},
        tied_head="untie" if "tokens" in pairs and model.config.tied else "refuse",
    )  # fmt: skip
    blank = method.trained(method.apply(skeleton(model.config), None))
    arrays: Arrays = {}
    for path, parts in leaves.modules.items():
        for leaf, tensor in in_types(parts, TYPES).items():
            name = f"{path}.{leaf.removeprefix('E') if leaf in TABLE else leaf}"
            arrays[name] = np.ascontiguousarray(np.asarray(tensor))
            if name not in blank or blank[name].shape != arrays[name].shape:
                there = f"of shape {blank[name].shape}" if name in blank else "not there"
                raise ValueError(f"{name} has shape {arrays[name].shape}, and in this base it is {there}")
    about = {"base": digest(model), **described(method)}
    write_arrays(folder / "adapter.safetensors", arrays, {ABOUT: json.dumps(about)})
    write_json(folder / "adapter.json", about)
