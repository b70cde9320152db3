r"""What tutorial 11 works with: folders as PEFT writes them, merges by a formula, verdicts, what rounding leaves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..formats.npz import Held
from ..formats.tensors import Tensor, dtype_of
from ..formats.updates import Adapter, in_type
from ..formats.writing import CODES, write_tensors
from ..lora import adapters
from ..merges.faults import times
from ..merges.judging import Judged, judged
from ..model import Linear, Transformer
from ..parameters import parameters, walk
from ..rounding import rounded

PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
Formula = Callable[[Array, Array, Array, Any], Array]  # of W, A, B and s, in float32
Folder = Mapping[str, Any]  # names to tensors, on disk or in memory


def their_name(path: str) -> str:
    """`blocks.0.attention.query` as a Llama calls it: `model.layers.0.self_attn.q_proj`."""
    _, layer, _, leaf = path.split(".")
    return f"model.layers.{layer}.self_attn.{PROJECTIONS[leaf]}"


def write_base(folder: Path, model: Transformer, dtype: str = "bfloat16") -> None:
    """The attention matrices of a model and its last norm, as the folder of a Llama: names, shapes and numbers."""
    kind, maps = dtype_of(dtype), {p: node for p, node in walk(model) if isinstance(node, Linear) and "attention" in p}
    arrays = {f"{their_name(path)}.weight": node.W.astype(kind) for path, node in maps.items()}
    write(folder, arrays | {"model.norm.weight": parameters(model)["norm.gamma"].astype(kind)})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def write_adapter(folder: Path, model: Transformer, **about: Any) -> None:
    """The A and B of an adapted model as a folder of PEFT; `about` is what adapter_config.json says."""
    arrays: dict[str, Array] = {}
    for path, module in adapters(model).items():
        start = f"base_model.model.{their_name(path)}"
        arrays |= {f"{start}.lora_A.weight": module.A, f"{start}.lora_B.weight": module.B}
    write(folder, arrays, "adapter_model")
    (folder / "adapter_config.json").write_text(json.dumps(about, indent=1))


def write(folder: Path, arrays: Mapping[str, Array], stem: str = "model") -> None:
    """A new folder with one safetensors file."""
    folder.mkdir()
    layout = {name: (CODES[array.dtype.name], array.shape) for name, array in arrays.items()}
    write_tensors(folder, layout, lambda name: [arrays[name]], stem=stem)


def merged_by(formula: Formula, adapter: Adapter, base: Folder) -> dict[str, Array]:
    """Every adapted tensor by a formula of (W, A, B, s), in float32 and cast once to the type of the base; the others
    as they are."""
    merged = {name: np.asarray(tensor) for name, tensor in base.items()}
    for name, update in adapter.updates.items():
        (part,) = update.parts
        W, A, B = (in_type(np.asarray(array), np.float32) for array in (merged[name], part.A, part.B))
        merged[name] = in_type(formula(W, A, B, np.float32(part.scale)), merged[name].dtype)
    return merged


@dataclass(frozen=True)
class Verdict:
    """What `judged` found of all tensors: `gap` and `bound` are those of the worst one."""

    found: tuple[Judged, ...]

    @property
    def holds(self) -> bool:
        return all(one.holds for one in self.found)

    @property
    def worst(self) -> Judged:
        return max((one for one in self.found if one.array is not None), key=lambda one: one.weight)

    @property
    def gap(self) -> float:
        return max(one.array.gap for one in self.found if one.array is not None)

    @property
    def used(self) -> float:
        """The largest gap / bound."""
        return max(one.array.used for one in self.found if one.array is not None)

    @property
    def faults(self) -> dict[str, int]:
        return dict(Counter(one.fault for one in self.found if not one.holds))

    def __str__(self) -> str:
        if self.holds:
            return f"EQUAL: gaps up to {self.gap:.1e}, at most {self.used:.3f} of the bound"
        counts = ", ".join(f"{count} {fault}" for fault, count in self.faults.items())
        return f"NOT EQUAL ({counts}): {self.worst.words.partition(';')[0]}"


def verify(adapter: Adapter, base: Folder, merged: Folder) -> Verdict:
    """Every tensor of a merged model beside W0 + ΔW, as `lora-np verify` judges it."""
    return Verdict(tuple(judged(adapter, _held(base), _held(merged))))


def _held(folder: Folder) -> dict[str, Tensor]:
    return {name: t if isinstance(t, Tensor) else Held(np.ascontiguousarray(t)) for name, t in folder.items()}


def nudged(tensor: Any, rng: np.random.Generator) -> Array:
    """The same tensor of another base: each number off by about one part in a hundred."""
    array = np.asarray(tensor)
    return in_type(in_type(array, np.float64) * (1.0 + 0.01 * rng.standard_normal(array.shape)), array.dtype)


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """The same adapter, as if its B had been trained to this much of what it is."""
    return replace(adapter, updates={name: times(update, factor) for name, update in adapter.updates.items()})


def drawn_update(rng: np.random.Generator, shape: tuple[int, int], size: float, rank: int = 8) -> Array:
    """A ΔW of this rank and this size, root mean square, in float64."""
    change = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    return change * (size / _rms(change))


def kept(W: Array, change: Array, dtype: str) -> float:
    r"""$\hat c$ of (V2): how much of ΔW there is in a merge of W, stored in this type, and ΔW, rounded once."""
    before = rounded(np.asarray(W, np.float64), dtype_of(dtype))
    after = rounded(before + change, dtype_of(dtype))
    return float(np.vdot(after - before, change) / np.vdot(change, change))


def errors_in_a_row(W: Array, changes: Sequence[Array], dtype: str) -> dict[str, list[float]]:
    """Updates merged one after another, cast every time or once: how far either lies from W and the sum of them so
    far, root mean square beside that sum, after each update."""
    kind = dtype_of(dtype)
    start = rounded(np.asarray(W, np.float64), kind)
    each, total = start, np.zeros(start.shape)
    errors: dict[str, list[float]] = {"cast every time": [], "cast once": []}
    for change in changes:
        total = total + change
        each = rounded(each + change, kind)
        errors["cast every time"].append(_rms(each - start - total) / _rms(total))
        errors["cast once"].append(_rms(rounded(start + total, kind) - start - total) / _rms(total))
    return errors


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array))))
