r"""What the readers of all formats share: the files, the base as it is asked, leaves by module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .archive import open_archive
from .disk import shown
from .grammar import Read
from .placing import Base, fitted
from .tensors import Tensor, Tensors, open_tensors
from .updates import Update

FOREIGN = {
    "kohya": ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_transformer_"),
    "diffusers": ("unet.", "text_encoder.", "text_encoder_2.", "transformer.single_transformer_blocks."),
}
FOREIGN_PARTS = {
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "diffusers": ("_lora.down.weight", "_lora.up.weight", ".lora.down.weight", ".lora_linear_layer.down.weight"),
}


def weights_of(folder: Path, stem: str) -> Tensors:
    """The tensors of `stem`.safetensors or, where that is not there, of `stem`.bin."""
    found = [file for suffix in (".safetensors", ".bin") if (file := folder / f"{stem}{suffix}").exists()]
    if not found:
        raise FileNotFoundError(f"{folder} has an adapter_config.json, but no {stem}.safetensors beside it")
    return open_tensors(found[0]) if found[0].suffix == ".safetensors" else open_archive(found[0])


def base_of(base: Mapping[str, Any] | None, about: Mapping[str, Any] | None) -> Base | None:
    """Shapes and family of the base."""
    if base is None:
        return None
    kind = (about or {}).get("model_type")
    return Base({name: tuple(tensor.shape) for name, tensor in base.items()}, kind if isinstance(kind, str) else None)


def fitted_base(base: Mapping[str, Any] | None, about: Mapping[str, Any] | None, read: Read) -> Base | None:
    """The base as the modules that were read are called in it; what that took is a finding."""
    mine = base_of(base, about)
    names = [*read.modules, *(name.rpartition(".")[0] for name in read.whole)]
    if mine is None or not names:
        return mine
    mine, findings = fitted(mine, [name.replace(".base_layer", "") for name in names])
    read.findings.extend(findings)
    return mine


def leaves_of(tensors: Mapping[str, Tensor], names: Mapping[str, str], *, others: bool = False) -> Read:
    """Tensors by module and leaf; of other names a replacement of the base's tensor, or an unknown one."""
    read = Read()
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf in names and module:
            read.modules.setdefault(module, {})[names[leaf]] = tensor
        elif others:
            read.whole[name] = tensor
        else:
            read.note("unknown_tensor", name, "it is no leaf of this format", "see what wrote it", stops=True)
    return read


def is_table(base: Base | None, module: str, d_in: int, d_out: int) -> bool:
    """Is the module a table (vocab, d), not a linear map (d_out, d_in)? Its name says so, and then its shape."""
    named = any(part in module.rpartition(".")[2] for part in ("emb", "wte", "wpe"))
    name = None if base is None else base.weight(module)
    if base is None or name is None:
        return named
    return named and base.shapes[name] == (d_in, d_out)


def stored_type(updates: Mapping[str, Update]) -> str:
    """The type that most of its factors are stored in."""
    kinds = [part.B.dtype.name for update in updates.values() for part in update.parts]
    return max(set(kinds), key=kinds.count) if kinds else "float32"


def refuse_foreign(path: Path, names: Mapping[str, Any]) -> None:
    """Raise ValueError for the names of kohya's and diffusers' adapters, whose bases are not read."""
    for name in names:
        for kind in FOREIGN:
            if name.startswith(FOREIGN[kind]) or any(part in name for part in FOREIGN_PARTS[kind]):
                raise ValueError(
                    f"{path} is an adapter of {kind} ({shown(name)}), for a model that makes images: it is not read"
                )
