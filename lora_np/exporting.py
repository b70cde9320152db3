r"""An adapter trained here, as a folder that PEFT loads beside the model of transformers it was trained on.

    blocks.0.attention.query.A  →  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight

Names follow from the table of the family (`lora_np.formats.names`). Where a family fuses maps, GPT-2 its queries, keys
and values, one adapter stands for all of them, with the ranks added up:

$$A = \begin{pmatrix} A_q \\ A_v \end{pmatrix},\qquad
  B = \begin{pmatrix} B_q & 0 \\ 0 & 0 \\ 0 & B_v \end{pmatrix},\qquad s = \frac{\alpha}{r_q + r_v} \tag{X1}$$

Not one number changes, so ΔW is the same to the bit.

Source: the format as PEFT 0.21 reads it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .config import TransformerConfig
from .disk.folders import new_folder
from .disk.marks import Kind
from .disk.writing import write_atomically
from .engine.arrays import Array
from .engine.devices import to_host
from .formats import names
from .formats.writing import CODES, write_tensors
from .lora import LoraEmbedding, adapters
from .method import Method
from .methods import name_of
from .wrappers import wrappers

PEFT = Kind("adapter for PEFT", ("adapter_config.json", "adapter_model.safetensors"))
PREFIX = "base_model.model."
CONV1D = ("gpt2",)  # whose maps are stored (d_in, d_out), of which PEFT wants to be told


@dataclass(frozen=True)
class Beside:
    """The factors beside one module of theirs, and the scale s of their product."""

    A: Array
    B: Array
    scaling: float
    table: bool = False

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def alpha(self) -> float:
        """The α with α/r = s, to the bit where there is one."""
        middle = self.scaling * self.rank
        near = (round(middle, 9), middle, np.nextafter(middle, 0.0), np.nextafter(middle, np.inf))
        best = float(next((alpha for alpha in near if alpha / self.rank == self.scaling), middle))
        return int(best) if best == int(best) else best


def export_peft(folder: str | Path, model: Any, method: Method, family: str, base: str = "", **options: bool) -> int:
    """Write the adapter of this model; gives back how many modules of theirs carry it. `options`: those of new_folder.

    family   what transformers calls the kind of the base        base   what the description says of it
    Raises ValueError for what PEFT has no place for.
    """
    modules = beside_theirs(model, method, family)
    arrays: dict[str, Array] = {}
    for name, pair in modules.items():
        leaves = ("lora_embedding_A", "lora_embedding_B") if pair.table else ("lora_A.weight", "lora_B.weight")
        arrays |= {f"{PREFIX}{name}.{leaf}": array for leaf, array in zip(leaves, (pair.A, pair.B), strict=True)}
    about = peft_config(modules, model.config, family, base)
    layout = {name: (CODES[array.dtype.name], array.shape) for name, array in arrays.items()}
    with new_folder(folder, PEFT, **options) as new:
        write_tensors(new, layout, lambda name: [arrays[name]], stem="adapter_model")
        write_atomically(new / "adapter_config.json", (json.dumps(about, indent=2) + "\n").encode())
    return len(modules)


def check_exportable(model: Any, method: Method, family: str) -> None:
    """Raise ValueError, before anything is trained, for what `export_peft` would refuse."""
    beside_theirs(model, method, family)


def beside_theirs(model: Any, method: Method, family: str) -> dict[str, Beside]:
    """The factors by the names of their modules; raises ValueError for an adapter that is no LoRA of linear maps."""
    model, method = method.stored(model)
    if family not in names.FAMILIES or not family.isalnum():
        raise ValueError("an adapter for PEFT needs a base that transformers knows: --base FOLDER, or a name")
    found = adapters(model)
    other = sorted(set(wrappers(model)) - set(found))
    extra = [name for name in method.trained(model) if not name.endswith((".A", ".B"))]
    if not found or other or extra:
        what = (other or extra or [name_of(method)])[0]
        raise ValueError(f"{what} has no place in an adapter of PEFT: it takes the A and B of LoRA, and nothing else")
    if "tokens" in found and model.head is None and model.config.causal:
        raise ValueError("PEFT adapts no tied head along with the token table: say --tied-head untie, or leave it out")
    bare = not model.config.causal and not model.config.classes
    entries = {e.ours: e for e in names.entries(family, model.config.layers, prefixed=not bare)}
    groups: dict[str, dict[str, Any]] = {}
    for path in found:
        groups.setdefault(entries[f"{path}.W"].theirs.removesuffix(".weight"), {})[path] = entries[f"{path}.W"]
    return {name: _joined({path: found[path] for path in parts}, parts) for name, parts in groups.items()}


def _joined(parts: Mapping[str, Any], entries: Mapping[str, names.Entry]) -> Beside:
    """(X1); of one part that fills its module, that part."""
    pairs = {path: (to_host(part.A), to_host(part.B)) for path, part in parts.items()}
    scales = {part.scaling for part in parts.values()}
    if len(scales) > 1:
        raise ValueError(f"{', '.join(parts)} are one module in PEFT, and have scales of their own: {sorted(scales)}")
    path, part = next(iter(parts.items()))
    if not entries[path].rows or isinstance(part, LoraEmbedding):
        return Beside(*pairs[path], part.scaling, isinstance(part, LoraEmbedding))
    count = int(entries[path].rows.partition("/")[2])
    A = np.concatenate([A for A, _ in pairs.values()])
    B = np.zeros((count * len(pairs[path][1]), len(A)), A.dtype)
    column = 0
    for path, (below, beside) in pairs.items():
        start, stop = entries[path].range(len(B))
        B[start:stop, column : column + len(below)] = beside
        column += len(below)
    return Beside(A, B, part.scaling)


def peft_config(modules: Mapping[str, Beside], config: TransformerConfig, family: str, base: str) -> dict[str, Any]:
    """A description: the commonest rank and α for all, the others by the full names of their modules."""
    r, alpha = (Counter(getattr(p, key) for p in modules.values()).most_common(1)[0][0] for key in ("rank", "alpha"))
    task = "CAUSAL_LM" if config.causal else "SEQ_CLS" if config.classes else "FEATURE_EXTRACTION"
    return {
        "peft_type": "LORA", "task_type": task, "base_model_name_or_path": base or None, "inference_mode": True,
        "r": r, "lora_alpha": alpha, "use_rslora": False, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted(modules), "fan_in_fan_out": family in CONV1D, "init_lora_weights": True,
        "rank_pattern": {name: pair.rank for name, pair in modules.items() if pair.rank != r},
        "alpha_pattern": {name: pair.alpha for name, pair in modules.items() if pair.alpha != alpha},
        "modules_to_save": None, "use_dora": False,
    }  # fmt: skip
