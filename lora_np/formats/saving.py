r"""Adapters written as other programs read them: PEFT's folders, mlx-lm's, llama.cpp's GGUF.

PEFT        a rank and an alpha for each module, where they differ as patterns of full paths; magnitudes, whole tensors
mlx-lm      one rank and one raw scale for all modules: lower ranks are filled with zeros, other scales go into lora_b
llama.cpp   s = alpha/r with one alpha: the same, and alpha is float32

`fitted` says what a format has no place for, before anything is written.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import Array
from .disk import shown
from .factors import LINEAR, TABLE, Leaves, in_types, is_table, padded, pair_of, times
from .grammar import PREFIX
from .placing import CONV1D
from .renaming import LLAMA_CPP, heads_of, in_llama_cpp, in_mlx, matrices, turned
from .updates import Numbers
from .views import Turned
from .writing import CODES, write_tensors

PEFT_LEAVES = {
    "A": "lora_A.weight", "B": "lora_B.weight", "b": "lora_B.bias", "EA": "lora_embedding_A", "EB": "lora_embedding_B",
    "m": "lora_magnitude_vector", "tokens": "token_adapter.trainable_tokens_delta",
}  # fmt: skip
GGUF_TYPES = ("float32", "float16", "bfloat16")
# format: {what it has no place for: why}. "whole" are tensors that replace those of the base.
NOT_HELD: dict[str, dict[str, str]] = {
    "peft": {},
    "mlx": {
        "b": "mlx-lm has no bias beside lora_b",
        "tokens": "mlx-lm has no rows of single tokens",
        "whole": "an adapter of mlx-lm holds factors only (modules_to_save, biases): merge it instead",
        "table m": "mlx-lm measures the rows of a table, one length a token, PEFT its columns",
    },
    "gguf": {
        "m": "llama.cpp has no magnitude of DoRA: merge it instead",
        "b": "llama.cpp has no bias beside lora_b",
        "tokens": "llama.cpp has no rows of single tokens",
        "whole": "llama.cpp leaves whole tensors of an adapter out (modules_to_save, biases): merge it instead",
    },
    "lora_np": {
        "b": "an adapter of lora_np has no bias beside B",
        "tokens": "an adapter of lora_np has no rows of single tokens",
        "whole": "an adapter of lora_np holds factors only (modules_to_save, biases): merge it instead",
        "table m": "an adapter of lora_np has no magnitude beside a table",
    },
}


def check_held(leaves: Leaves, to: str) -> None:
    """Raise ValueError, by name and with the reason, for what the format cannot hold."""
    reasons = NOT_HELD[to]
    for module, parts in leaves.modules.items():
        kinds = [*parts, *(["table m"] if is_table(parts) and "m" in parts else [])]
        if bad := next((kind for kind in kinds if kind in reasons), None):
            raise ValueError(f"{shown(module, quoted=False)} cannot be written as {to}: {reasons[bad]}")
    if leaves.whole and "whole" in reasons:
        name = next(iter(leaves.whole))
        copy = "; give --base if it is but a copy of the base's" if name in leaves.copies else ""
        raise ValueError(f"{shown(name, quoted=False)} cannot be written as {to}: {reasons['whole']}{copy}")
    lengths = {"m" in parts for parts in leaves.modules.values() if pair_of(parts)}
    if to != "gguf" and len(lengths) > 1:
        raise ValueError(f"only some modules have a magnitude: {to} has DoRA for all of an adapter or for none")
    if not leaves.scales and not leaves.whole:
        raise ValueError("the adapter holds nothing that could be written")


def check_finite(leaves: Leaves) -> None:
    """Raise ValueError for a number that is not finite: no ΔW is equal to one of those."""
    for module, parts in [*leaves.modules.items(), *((name, {"it": t}) for name, t in leaves.whole.items())]:
        for leaf, tensor in parts.items():
            if not np.isfinite(np.asarray(tensor)).all():
                what = {"it": "it"}.get(leaf, leaf.removeprefix("E"))
                raise ValueError(
                    f"{shown(module, quoted=False)}: {what} holds a number that is not finite; train or save it again"
                )


# --------------------------------------------------------------------------------------------------------------- PEFT


def write_peft(folder: Path, leaves: Leaves, model_type: str | None) -> None:
    """adapter_config.json and adapter_model.safetensors; a description that came from PEFT is kept as it was."""
    arrays = {
        f"{PREFIX}{module}.{PEFT_LEAVES[leaf]}": tensor
        for module, parts in leaves.modules.items()
        for leaf, tensor in parts.items()
    }
    adapted = {module for module, parts in leaves.modules.items() if pair_of(parts)}
    for name, tensor in leaves.whole.items():
        module, _, leaf = name.rpartition(".")
        inside = f"{module}.base_layer.{leaf}" if module in adapted or name in leaves.copies else name
        arrays[PREFIX + inside] = tensor
    config = dict(leaves.settings) if "peft_type" in leaves.settings else peft_config(leaves, model_type)
    _write(folder, "adapter_model", arrays, {"format": "pt"})
    _write_json(folder / "adapter_config.json", config)


def peft_config(leaves: Leaves, model_type: str | None) -> dict[str, Any]:
    """A description out of ranks and scales. The commonest are the general ones; the others become patterns."""
    ranks = {module: pair[0].shape[0] for module, parts in leaves.modules.items() if (pair := pair_of(parts))}
    rules = {rs: {m: alpha_for(leaves.scales[m], r, rslora=rs) for m, r in ranks.items()} for rs in (False, True)}
    rslora = bool(ranks) and _wrong(leaves, ranks, rules[True], True) < _wrong(leaves, ranks, rules[False], False)
    alphas = rules[rslora]
    r, alpha = (Counter(values.values()).most_common(1)[0][0] if values else 1 for values in (ranks, alphas))
    whole = [name.rpartition(".") for name in leaves.whole if name.rpartition(".")[0] not in ranks]
    saved = sorted({module for module, _, leaf in whole if leaf != "bias"})
    biases = any(name.endswith(".bias") and name.rpartition(".")[0] not in saved for name in leaves.whole)
    return {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True,
        "r": r, "lora_alpha": alpha, "use_rslora": rslora, "lora_dropout": 0.0, "target_modules": sorted(ranks),
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != r},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "fan_in_fan_out": model_type in CONV1D, "bias": "all" if biases else "none", "use_dora": leaves.dora,
        "init_lora_weights": True, "modules_to_save": saved or None,
        "lora_bias": any("b" in parts for parts in leaves.modules.values()),
    }  # fmt: skip


def alpha_for(scale: float, rank: int, *, rslora: bool = False) -> float:
    """The alpha from which the rule gives this scale, to the bit where there is one, else the nearest."""
    divisor = math.sqrt(rank) if rslora else rank
    middle = scale * divisor
    near = [middle]
    for _ in range(2):
        near = [float(np.nextafter(near[0], -math.inf)), *near, float(np.nextafter(near[-1], math.inf))]
    best = min(near, key=lambda alpha: (abs(alpha / divisor - scale), alpha != round(alpha), abs(alpha - middle)))
    return int(best) if best == round(best) and abs(best) < 1 << 31 else best


def _wrong(leaves: Leaves, ranks: Mapping[str, int], alphas: Mapping[str, float], rslora: bool) -> tuple[int, int]:
    """How many scales a rule misses, and how many values of alpha it takes."""
    missed = sum(alphas[m] / (math.sqrt(r) if rslora else r) != leaves.scales[m] for m, r in ranks.items())
    return missed, len(set(alphas.values()))


# ------------------------------------------------------------------------------------------------- one rank, one scale


def levelled(leaves: Leaves) -> tuple[dict[str, dict[str, Numbers]], int, float]:
    """Factors of one rank and one scale, the commonest: zeros fill the others up, and B takes the rest of the scale."""
    matrices(leaves.modules)
    rank = max(leaves.modules[module][_first(leaves, module)].shape[0] for module in leaves.scales)
    scale = Counter(leaves.scales.values()).most_common(1)[0][0]
    if not scale:
        raise ValueError("its scale is 0, so it changes nothing: there is nothing to write")
    found = {}
    for module, parts in leaves.modules.items():
        part = padded(parts, rank)
        found[module] = part if leaves.scales[module] == scale else times(part, leaves.scales[module] / scale)
    return found, rank, scale


def _first(leaves: Leaves, module: str) -> str:
    return (TABLE if is_table(leaves.modules[module]) else LINEAR)[0]


def write_mlx(folder: Path, leaves: Leaves) -> None:
    """adapter_config.json and adapters.safetensors; the keys are full paths, so nothing else becomes an adapter."""
    modules, rank, scale = levelled(leaves)
    arrays: dict[str, Numbers] = {}
    for module, parts in modules.items():
        one, other = TABLE if is_table(parts) else LINEAR
        name = in_mlx(module)
        arrays |= {f"{name}.lora_a": _turned(parts[one]), f"{name}.lora_b": _turned(parts[other])}
        if "m" in parts:
            arrays[f"{name}.m"] = parts["m"]
    numbers = [int(part) for module in modules for part in module.split(".") if part.isdecimal() and len(part) < 6]
    config = {
        "fine_tune_type": "dora" if leaves.dora else "lora",
        "num_layers": max(numbers, default=0) + 1,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": sorted(map(in_mlx, modules))},
    }
    _write(folder, "adapters", arrays, {"format": "mlx"})
    _write_json(folder / "adapter_config.json", config)


def _turned(tensor: Numbers) -> Numbers:
    return Turned(tensor) if not isinstance(tensor, np.ndarray) else np.ascontiguousarray(tensor.T)


def write_gguf(path: Path, leaves: Leaves, about: Mapping[str, Any] | None) -> None:
    """One GGUF file, with llama.cpp's names and order of rows, for which the config.json of the base must be known."""
    kind, layers = (about or {}).get("model_type"), (about or {}).get("num_hidden_layers", (about or {}).get("n_layer"))
    if about is None or not isinstance(kind, str) or type(layers) is not int or not 0 < layers < 1 << 16:
        raise ValueError("llama.cpp's names follow from the config.json of the base: name its folder with --base")
    names = in_llama_cpp(kind, layers)
    modules, rank, scale = levelled(leaves)
    alpha = float(np.float32(scale * rank))
    if not 0.0 < abs(alpha) < math.inf:
        raise ValueError(f"alpha would be {scale * rank:.3g}, which is none that llama.cpp takes")
    arrays: dict[str, Numbers] = {}
    for module, parts in modules.items():
        if module not in names:
            raise ValueError(f"llama.cpp has no name for {shown(module, quoted=False)} of a {kind} model")
        part = in_types(parts, GGUF_TYPES)
        A, B = part[_first(leaves, module)], turned(part["EB" if is_table(part) else "B"], heads_of(module, about))
        weight = f"{names[module]}.weight"
        arrays |= {f"{weight}.lora_a": _turned(A) if is_table(part) else A, f"{weight}.lora_b": B}
    _write_gguf(path, LLAMA_CPP[kind][0], alpha, arrays)


def _write_gguf(path: Path, architecture: str, alpha: float, arrays: Mapping[str, Numbers]) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for name, tensor in arrays.items():
            array = np.ascontiguousarray(tensor)
            if array.dtype.name == "bfloat16":
                writer.add_tensor(name, array.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


# ---------------------------------------------------------------------------------------------------------------------


def _write(folder: Path, stem: str, arrays: Mapping[str, Numbers], metadata: Mapping[str, str]) -> None:
    layout = {name: (CODES[tensor.dtype.name], tuple(tensor.shape)) for name, tensor in arrays.items()}
    blocks: Callable[[str], list[Array]] = lambda name: [np.asarray(arrays[name])]  # noqa: E731
    write_tensors(folder, layout, blocks, metadata=metadata, stem=stem)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
