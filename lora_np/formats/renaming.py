r"""Modules of one program under the names of another, and their factors as that one stores the map.

    transformers   model.layers.0.self_attn.q_proj     transformer.h.0.attn.c_attn
    ours           blocks.0.attention.query            blocks.0.attention.query, .key, .value: parts of the outputs
    mlx-lm         model.layers.0.self_attn.q_proj     model.h.0.attn.c_attn
    llama.cpp      blk.0.attn_q                        blk.0.attn_qkv

A map that is fused there and parted here: each part takes its own rows of B; back, the parts stand beside each other,
A one below the other and B block by block, and parts with one A share it. llama.cpp stores the rows of Llama's queries
and keys as neighbours that turn together, where transformers has two halves of a head; the rows of B follow.

Source: `names` for ours; mlx-lm's models (`sanitize`); llama.cpp's convert_hf_to_gguf (`permute`), and for its names
the `gguf` package itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..engine.arrays import Array
from .disk import only, shown
from .factors import Made, is_table, pair_of
from .names import FAMILIES, Entry, entries
from .updates import Numbers

Modules = Mapping[str, Mapping[str, Numbers]]
# model_type -> llama.cpp's name of the architecture, and whether it turns neighbours (see above).
LLAMA_CPP = {"llama": ("llama", True), "mistral": ("llama", True), "qwen2": ("qwen2", False), "gpt2": ("gpt2", False)}
MLX = (("transformer.h.", "model.h."), ("transformer.wte", "model.wte"), ("transformer.wpe", "model.wpe"))


def in_mlx(module: str) -> str:
    """The module as mlx-lm calls it; only GPT-2 is called otherwise there."""
    return next((new + module.removeprefix(old) for old, new in MLX if module.startswith(old)), module)


def out_of_mlx(module: str) -> str:
    return next((old + module.removeprefix(new) for old, new in MLX if module.startswith(new)), module)


# ---------------------------------------------------------------------------------------------------------- llama.cpp


def in_llama_cpp(model_type: str, layers: int) -> dict[str, str]:
    """{module of transformers: module of llama.cpp}; raises ValueError for a family that is not known here."""
    if model_type not in LLAMA_CPP:
        raise ValueError(f"llama.cpp's names are known here for {only(LLAMA_CPP)}, not for {shown(model_type)}")
    known = _name_map(LLAMA_CPP[model_type][0], layers)
    weights = [entry.theirs for entry in entries(model_type, layers) if entry.theirs.endswith(".weight")]
    found = {name: known.get_name(name, (".weight",)) for name in dict.fromkeys(weights)}
    return {name.removesuffix(".weight"): new.removesuffix(".weight") for name, new in found.items() if new is not None}


def _name_map(architecture: str, layers: int) -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError('GGUF files need the gguf package: pip install "lora_np[checkpoints]"') from None
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(kind, layers)


def heads_of(module: str, about: Mapping[str, Any]) -> int:
    """Into how many heads llama.cpp's order of the outputs of this module is cut; 0 where it keeps their order."""
    kind, heads = str(about.get("model_type")), about.get("num_attention_heads", 0)
    if kind not in LLAMA_CPP or not LLAMA_CPP[kind][1]:
        return 0
    last = module.rpartition(".")[2]
    if last in ("q_proj", "attn_q"):
        return int(heads)
    return int(about.get("num_key_value_heads") or heads) if last in ("k_proj", "attn_k") else 0


def turned(B: Numbers, heads: int, *, back: bool = False) -> Numbers:
    """B (d_out, r) with the two halves of each head woven into neighbours, or back."""
    if not heads:
        return B
    if B.shape[0] % (2 * heads):
        raise ValueError(f"{heads} heads do not divide {B.shape[0]} outputs in pairs: take the config.json of the base")

    def make() -> Array:
        whole = np.asarray(B)
        halves = (heads, -1, 2) if back else (heads, 2, whole.shape[0] // heads // 2)
        return whole.reshape(*halves, whole.shape[1]).swapaxes(1, 2).reshape(whole.shape)

    return Made(tuple(B.shape), B.dtype, make)


# --------------------------------------------------------------------------------------------------------------- ours


def to_ours(
    modules: Modules, scales: Mapping[str, float], family: str, layers: int
) -> tuple[Modules, dict[str, float]]:
    """Modules of transformers under our names; raises ValueError for one that our model does not have."""
    table = _by_theirs(family, layers)
    found: dict[str, dict[str, Numbers]] = {}
    of: dict[str, float] = {}
    for module, leaves in modules.items():
        if module not in table:
            raise ValueError(f"{shown(module, quoted=False)} is no map of a {family} model that lora_np knows")
        for entry in table[module]:
            part = _part(leaves, entry) if entry.rows else dict(leaves)
            if part is not None:
                ours = entry.ours.removesuffix(".W")
                found[ours], of[ours] = part, scales[module]
    return found, of


def _by_theirs(family: str, layers: int) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries(family, layers):
        if entry.ours.endswith(".W") and entry.theirs.endswith(".weight"):
            found.setdefault(entry.theirs.removesuffix(".weight"), []).append(entry)
    return found


def _part(leaves: Mapping[str, Numbers], entry: Entry) -> dict[str, Numbers] | None:
    """The factors of some outputs of a fused map, without what is zero there; None where all is."""
    A, B = np.asarray(leaves["A"]), np.asarray(leaves["B"])
    start, stop = entry.range(B.shape[0])
    used = np.flatnonzero(B[start:stop].any(axis=0))
    if not used.size:
        return None
    rest = {"m": np.asarray(leaves["m"]).reshape(-1)[start:stop]} if "m" in leaves else {}
    return {"A": A[used], "B": np.ascontiguousarray(B[start:stop, used]), **rest}


def to_theirs(
    modules: Modules, scales: Mapping[str, float], family: str, layers: int
) -> tuple[Modules, dict[str, float]]:
    """Our modules under the names of transformers; parts of a fused map become one pair of factors."""
    where = {
        entry.ours.removesuffix(".W"): entry for entries_ in _by_theirs(family, layers).values() for entry in entries_
    }
    found: dict[str, dict[str, Numbers]] = {}
    of: dict[str, float] = {}
    fused: dict[str, list[tuple[str, Entry]]] = {}
    for module, leaves in modules.items():
        if module not in where:
            raise ValueError(f"{module} has no name among those of a {family} model: {only(FAMILIES)} are known")
        theirs = where[module].theirs.removesuffix(".weight")
        if where[module].rows:
            fused.setdefault(theirs, []).append((module, where[module]))
        else:
            found[theirs], of[theirs] = dict(leaves), scales[module]
    for theirs, parts in fused.items():
        found[theirs], of[theirs] = _beside(theirs, [(modules[name], scales[name], entry) for name, entry in parts])
    return found, of


def _beside(name: str, parts: Iterable[tuple[Mapping[str, Numbers], float, Entry]]) -> tuple[dict[str, Numbers], float]:
    """One pair of factors out of those of the parts of a fused map."""
    parts = list(parts)
    count = int(parts[0][2].rows.partition("/")[2])
    scale, width = parts[0][1], parts[0][0]["B"].shape[0]
    if any("m" in leaves for leaves, _, _ in parts) and len(parts) < count:
        raise ValueError(f"{name} is fused of {count} maps of which only some have a magnitude: DoRA has one for all")
    As: list[Array] = []
    columns: list[Array] = []
    for leaves, s, entry in parts:
        A, B = np.asarray(leaves["A"]), np.asarray(leaves["B"])
        start, stop = entry.range(count * width)
        if s != scale:
            B = B * B.dtype.type(s / scale)
        k = next((k for k, other in enumerate(As) if np.array_equal(other, A)), len(As))
        if k == len(As):
            As.append(A)
            columns.append(np.zeros((count * width, len(A)), B.dtype))
        columns[k][start:stop] = B
    rest = {"m": np.concatenate([np.asarray(leaves["m"]) for leaves, _, _ in parts])} if "m" in parts[0][0] else {}
    return {"A": np.concatenate(As), "B": np.concatenate(columns, axis=1), **rest}, scale


def matrices(modules: Modules) -> None:
    """Raise ValueError for factors that are not two matrices: of convolutions and of experts."""
    for module, leaves in modules.items():
        pair = pair_of(leaves)
        if pair is None:
            raise ValueError(f"{shown(module, quoted=False)} has not both of its factors: {only(leaves)}")
        A, B = pair
        if len(A.shape) != 2 or len(B.shape) != 2:
            raise ValueError(
                f"{shown(module, quoted=False)} has factors of shapes {tuple(A.shape)} and {tuple(B.shape)}: those of "
                "convolutions and experts are packed otherwise by each program, and are not converted"
            )
        if A.shape[0] != B.shape[1]:
            wanted = "(r, vocab) and (d, r)" if is_table(leaves) else "(r, d_in) and (d_out, r)"
            raise ValueError(
                f"{shown(module, quoted=False)} has factors of shapes {tuple(A.shape)} and {tuple(B.shape)}, "
                f"and should have {wanted}"
            )
