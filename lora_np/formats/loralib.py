r"""microsoft/LoRA's state dicts: lora_A and lora_B beside the weights that they adapt.

    lora_A (r, in), lora_B (out, r)            Ŵ = W + α/r·BA; of a table (r, vocab), (d, r), transposed
    of a fused map, g of n parts enabled       A (g·r, in), B (g·out/n, r): part k takes rows k of both
    any other tensor                           replaces that of the base: biases, a classifier

The file holds neither α nor which parts are enabled, so both must be said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import grammar
from .assembling import Assembly
from .placing import Base
from .sources import fitted_base, is_table, leaves_of, stored_type
from .tensors import Tensor, Tensors
from .updates import Adapter, peft_order
from .views import Spread


def read_loralib(
    path: Path,
    tensors: Tensors,
    base: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    alpha: float | None = None,
    enabled: Sequence[bool] | None = None,
) -> Adapter:
    """microsoft/LoRA: lora_A (r, in) and lora_B (out, r) beside a weight; of fused maps A (g·r, in), B (g·out/n, r)."""
    if alpha is None:
        raise ValueError(f"{path} is an adapter of loralib, which does not hold its alpha: say which it was")
    read = leaves_of(tensors, {"lora_A": "A", "lora_B": "B"}, others=True)
    if not read.modules:
        raise ValueError(f"{path} holds no adapter: none of its tensors is called lora_A or lora_B")
    mine, ranks = fitted_base(base, about, read), {}
    for module, leaves in read.modules.items():
        if {"A", "B"} <= set(leaves) and len(leaves["A"].shape) == len(leaves["B"].shape) == 2:
            ranks[module] = max(leaves["B"].shape[1], 1)
            if is_table(mine, module, leaves["A"].shape[1], leaves["B"].shape[0]):
                leaves |= {"EA": leaves.pop("A"), "EB": leaves.pop("B")}
            else:
                leaves["B"] = _spread(module, leaves["A"], leaves["B"], mine, enabled, read)
    settings = grammar.Settings(1, 1.0, by_rank=lambda module, rank: alpha / ranks.get(module, rank))
    updates = Assembly(read, settings, mine).run()
    held = read.leaves(settings, {})
    return Adapter("loralib", updates, peft_order(stored_type(updates)), tuple(read.findings), {}, tensors.files, held)


def _spread(
    module: str, A: Tensor, B: Tensor, base: Base | None, enabled: Sequence[bool] | None, read: grammar.Read
) -> Tensor:
    """B over all outputs of a fused map, of which the adapter holds only those that it changes."""
    name = None if base is None else base.weight(module)
    groups, rest = divmod(A.shape[0], max(B.shape[1], 1))
    if base is None or name is None or rest or not groups or B.shape[0] % groups:
        return B
    sides = [n for n in base.shapes[name] if n != A.shape[1]] or [A.shape[1]]
    width = B.shape[0] // groups
    count = sides[0] // max(width, 1)
    if count * width != sides[0] or count == groups == 1:
        return B
    chosen = [True] * count if enabled is None and count == groups else list(enabled or ())
    if len(chosen) != count or sum(chosen) != groups:
        what = f"{groups} of the {count} maps that are fused in it are adapted, and the file does not say which"
        read.note("fused", module, what, f"say which are enabled, as {count} truth values", stops=True)
        return B
    return Spread(B, tuple(k for k, one in enumerate(chosen) if one), count)
