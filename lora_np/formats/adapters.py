r"""Adapters of every format that can be read exactly, told apart by what lies in the folder; the others by name.

PEFT        adapter_config.json with peft_type, adapter_model.safetensors or .bin
mlx-lm      adapter_config.json with lora_parameters, adapters.safetensors       Ŵ = W + scale·bᵀaᵀ, scale is raw
llama.cpp   a .gguf file whose general.type is adapter                           s = alpha/rank; alpha 0 means s = 1
loralib     a .pt or .bin file with .lora_A and .lora_B; alpha is not in it, so it must be given
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import grammar
from .archive import open_archive
from .disk import read_json
from .gguf import read_gguf_adapter
from .loralib import read_loralib
from .mlx import read_mlx
from .peft import read_peft
from .sources import refuse_foreign
from .tensors import open_tensors
from .updates import Adapter


def read_adapter(
    path: str | Path,
    base: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    *,
    alpha: float | None = None,
    enabled: Sequence[bool] | None = None,
    start: str | Path | None = None,
) -> Adapter:
    r"""The adapter in a folder or file, resolved against the tensors of its base.

    base     names to tensors, of which only shapes and types are looked at; None where there is none: then what only
             shapes can tell is taken as the adapter's own description says
    about    the base's config.json, which tells a square matrix of Conv1D from one of Linear
    alpha    of a loralib file, which does not hold it; `enabled` which of the fused query, key and value it adapts
    start    the adapter as it was before training, where it changed the base to begin with (pissa_niter, corda, ...)

    Raises OSError or ValueError of one line for what is no adapter that can be read exactly.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "adapter.json").exists():
            raise ValueError(f"{path} is an adapter of lora_np itself: load it with load_adapter")
        if not (path / "adapter_config.json").exists():
            return _single(path, base, about, alpha, enabled)
        config = read_json(path / "adapter_config.json")
        if "peft_type" in config:
            return read_peft(path, config, base, about, start)
        if "lora_parameters" in config or "fine_tune_type" in config:
            return read_mlx(path, config, base, about)
        raise ValueError(f"{path / 'adapter_config.json'} names neither peft_type (PEFT) nor lora_parameters (mlx-lm)")
    return _of_file(path, base, about, alpha, enabled)


def _single(path: Path, *rest: Any) -> Adapter:
    """The one file of a folder that has no description."""
    kinds = (".gguf", ".safetensors", ".bin", ".pt", ".pth")
    files = sorted(file for file in path.iterdir() if file.suffix in kinds)
    if len(files) != 1:
        found = "none" if not files else f"{len(files)} files of weights"
        raise ValueError(f"{path} holds no adapter_config.json, and {found}: name an adapter")
    return _of_file(files[0], *rest)


def _of_file(
    path: Path,
    base: Mapping[str, Any] | None,
    about: Mapping[str, Any] | None,
    alpha: float | None,
    enabled: Sequence[bool] | None,
) -> Adapter:
    if path.suffix == ".gguf":
        return read_gguf_adapter(path, base)
    tensors = open_tensors(path) if path.suffix == ".safetensors" else open_archive(path)
    refuse_foreign(path, tensors)
    if any(name.startswith(grammar.PREFIX) for name in tensors):
        raise ValueError(f"{path} is an adapter of PEFT without its adapter_config.json, which holds alpha")
    return read_loralib(path, tensors, base, about, alpha, enabled)
