r"""mlx-lm's folders: adapter_config.json with lora_parameters, and adapters.safetensors.

    lora_a (in, r), lora_b (r, out)          Ŵ = W + (scale·lora_bᵀ)·lora_aᵀ, the scale as it stands
    of a table  (vocab, r), (r, d)           Ŵ = W + (scale·lora_a)·lora_b
    of experts  (E, r, in), (E, out, r)      each its own
    m (out,)                                 DoRA's magnitude

Source: mlx_lm/tuner/lora.py and dora.py, whose `fuse` these lines repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import grammar
from .assembling import Assembly
from .disk import shown
from .sources import fitted_base, is_table, leaves_of, stored_type, weights_of
from .updates import Adapter, Order
from .views import Turned


def read_mlx(
    folder: Path,
    config: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Adapter:
    """mlx-lm: lora_a (in, r), lora_b (r, out), one raw scale; DoRA's m; experts (E, r, in) and (E, out, r)."""
    where = folder / "adapter_config.json"
    kind, parameters = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    if kind not in ("lora", "dora"):
        raise ValueError(
            f"{where}: fine_tune_type must be lora or dora, got {shown(kind)}: full weights are no adapter"
        )
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) < 1e30:
        raise ValueError(f"{where}: lora_parameters must hold a number, scale, got {shown(scale)}")
    tensors = weights_of(folder, "adapters")
    read = leaves_of(tensors, {"lora_a": "A", "lora_b": "B", "m": "m"})
    mine = fitted_base(base, about, read)
    for module, leaves in read.modules.items():
        if {"A", "B"} <= set(leaves) and len(leaves["A"].shape) == len(leaves["B"].shape) == 2:
            A, B = Turned(leaves.pop("A")), Turned(leaves.pop("B"))
            table = is_table(mine, module, A.shape[1], B.shape[0])
            leaves |= {"EA": A, "EB": B} if table else {"A": A, "B": B}
    settings = grammar.Settings(1, 1.0, dora=kind == "dora", by_rank=lambda *_: float(scale))
    updates = Assembly(read, settings, mine).run()
    order = Order(stored_type(updates), scale_first=True)
    held = read.leaves(settings, config)
    return Adapter("mlx", updates, order, tuple(read.findings), config, tensors.files, held)
