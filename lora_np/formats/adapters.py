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

from . import gguf, peft
from .archive import open_archive
from .assembling import Assembly
from .disk import read_json, shown
from .patterns import targeted
from .placing import Base, fitted
from .tensors import Tensor, Tensors, open_tensors
from .updates import Adapter, Finding, Order, Update, peft_order
from .views import Spread, Turned

FOREIGN = {
    "kohya": ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_transformer_"),
    "diffusers": ("unet.", "text_encoder.", "text_encoder_2.", "transformer.single_transformer_blocks."),
}
FOREIGN_PARTS = {
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "diffusers": ("_lora.down.weight", "_lora.up.weight", ".lora.down.weight", ".lora_linear_layer.down.weight"),
}


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
        return gguf.read_gguf_adapter(path, base)
    tensors = open_tensors(path) if path.suffix == ".safetensors" else open_archive(path)
    refuse_foreign(path, tensors)
    if any(name.startswith(peft.PREFIX) for name in tensors):
        raise ValueError(f"{path} is an adapter of PEFT without its adapter_config.json, which holds alpha")
    return read_loralib(path, tensors, base, about, alpha, enabled)


def refuse_foreign(path: Path, names: Mapping[str, Any]) -> None:
    """Raise ValueError for the names of kohya's and diffusers' adapters, whose bases are not read."""
    for name in names:
        for kind in FOREIGN:
            if name.startswith(FOREIGN[kind]) or any(part in name for part in FOREIGN_PARTS[kind]):
                raise ValueError(
                    f"{path} is an adapter of {kind} ({shown(name)}), for a model that makes images: it is not read"
                )


def _base(base: Mapping[str, Any] | None, about: Mapping[str, Any] | None) -> Base | None:
    if base is None:
        return None
    kind = (about or {}).get("model_type")
    return Base({name: tuple(tensor.shape) for name, tensor in base.items()}, kind if isinstance(kind, str) else None)


def _weights(folder: Path, stem: str) -> Tensors:
    found = [file for suffix in (".safetensors", ".bin") if (file := folder / f"{stem}{suffix}").exists()]
    if not found:
        raise FileNotFoundError(f"{folder} has an adapter_config.json, but no {stem}.safetensors beside it")
    return open_tensors(found[0]) if found[0].suffix == ".safetensors" else open_archive(found[0])


def read_peft(
    folder: Path,
    config: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    start: str | Path | None = None,
) -> Adapter:
    """PEFT's adapter; see `lora_np.formats.peft` for its grammar."""
    settings = peft.settings(config, str(folder / "adapter_config.json"))
    if settings.start == "loftq" or (settings.start == "given" and start is None):
        raise ValueError(
            f"{folder}: init_lora_weights is {shown(config['init_lora_weights'])}: the base itself was changed before "
            "training, by numbers that are not in this folder; "
            + (
                "it was quantised, which is not read"
                if settings.start == "loftq"
                else "give the initial adapter (start)"
            )
        )
    tensors = _weights(folder, "adapter_model")
    refuse_foreign(folder, tensors)
    read = peft.read_keys(tensors)
    mine = _fitted(base, about, read)
    assembly = Assembly(read, settings, mine)
    if start is not None and settings.start == "given":
        assembly.start = peft.read_keys(_weights(Path(start), "adapter_model")).modules
    updates = assembly.run()
    for name in sorted(set(config) - peft.KNOWN - set(peft.REFUSED)):
        if config[name]:
            what = f"it is set to {shown(config[name])}, and this reader does not know it"
            read.note("unknown_setting", name, what, "see whether it bears on the merged weights")
    read.findings.extend(_untargeted(config, read, updates, mine))
    stored = _stored(updates)
    return Adapter("peft", updates, peft_order(stored), tuple(read.findings), config, tensors.files)


def _stored(updates: Mapping[str, Update]) -> str:
    """The type that most of its factors are stored in."""
    kinds = [part.B.dtype.name for update in updates.values() for part in update.parts]
    return max(set(kinds), key=kinds.count) if kinds else "float32"


def _untargeted(
    config: Mapping[str, Any], read: peft.Read, updates: Mapping[str, Update], base: Base | None
) -> list[Finding]:
    """Modules that the configuration targets and the file has no tensors for, of a base that is known."""
    names = config.get("target_modules")
    if base is None or not isinstance(names, str | list) or names == "all-linear":
        return []
    lacking = []
    for name, shape in base.shapes.items():
        path = name.removesuffix(".weight")
        theirs = base.old + path.removeprefix(base.new)
        if len(shape) < 2 or path == name or name in updates:
            continue
        try:
            chosen = targeted(theirs, names) and not targeted(theirs, config.get("exclude_modules") or [])
        except ValueError as error:
            return [Finding("pattern", "target_modules", str(error), "see yourself whether all targets have tensors")]
        if chosen and _in_layers(config, path):
            lacking.append(path)
    if not lacking:
        return []
    what = f"the configuration targets it and {len(lacking) - 1} more, but the file has no tensors for them"
    return [Finding("untrained", lacking[0], what, "see whether the file was saved whole")]


def _in_layers(config: Mapping[str, Any], path: str) -> bool:
    chosen = config.get("layers_to_transform")
    if not isinstance(chosen, int | list):
        return True
    number = next((int(part) for part in path.split(".") if part.isdecimal() and len(part) < 9), None)
    return number in (chosen if isinstance(chosen, list) else [chosen])


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
    tensors = _weights(folder, "adapters")
    read = _leaves(tensors, {"lora_a": "A", "lora_b": "B", "m": "m"})
    mine = _fitted(base, about, read)
    for module, leaves in read.modules.items():
        if {"A", "B"} <= set(leaves) and len(leaves["A"].shape) == len(leaves["B"].shape) == 2:
            A, B = Turned(leaves.pop("A")), Turned(leaves.pop("B"))
            table = _is_table(mine, module, A.shape[1], B.shape[0])
            leaves |= {"EA": A, "EB": B} if table else {"A": A, "B": B}
    settings = peft.Settings(1, 1.0, dora=kind == "dora", by_rank=lambda *_: float(scale))
    updates = Assembly(read, settings, mine).run()
    order = Order(_stored(updates), scale_first=True)
    return Adapter("mlx", updates, order, tuple(read.findings), config, tensors.files)


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
    read = _leaves(tensors, {"lora_A": "A", "lora_B": "B"}, others=True)
    if not read.modules:
        raise ValueError(f"{path} holds no adapter: none of its tensors is called lora_A or lora_B")
    mine, ranks = _fitted(base, about, read), {}
    for module, leaves in read.modules.items():
        if {"A", "B"} <= set(leaves) and len(leaves["A"].shape) == len(leaves["B"].shape) == 2:
            ranks[module] = max(leaves["B"].shape[1], 1)
            if _is_table(mine, module, leaves["A"].shape[1], leaves["B"].shape[0]):
                leaves |= {"EA": leaves.pop("A"), "EB": leaves.pop("B")}
            else:
                leaves["B"] = _spread(module, leaves["A"], leaves["B"], mine, enabled, read)
    settings = peft.Settings(1, 1.0, by_rank=lambda module, rank: alpha / ranks.get(module, rank))
    updates = Assembly(read, settings, mine).run()
    return Adapter("loralib", updates, peft_order(_stored(updates)), tuple(read.findings), {}, tensors.files)


def _spread(
    module: str, A: Tensor, B: Tensor, base: Base | None, enabled: Sequence[bool] | None, read: peft.Read
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


def _leaves(tensors: Mapping[str, Tensor], names: Mapping[str, str], *, others: bool = False) -> peft.Read:
    """Tensors by module and leaf; of other names a replacement of the base's tensor, or an unknown one."""
    read = peft.Read()
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf in names and module:
            read.modules.setdefault(module, {})[names[leaf]] = tensor
        elif others:
            read.whole[name] = tensor
        else:
            read.note("unknown_tensor", name, "it is no leaf of this format", "see what wrote it", stops=True)
    return read


def _fitted(base: Mapping[str, Any] | None, about: Mapping[str, Any] | None, read: peft.Read) -> Base | None:
    mine = _base(base, about)
    names = [*read.modules, *(name.rpartition(".")[0] for name in read.whole)]
    if mine is None or not names:
        return mine
    mine, findings = fitted(mine, [name.replace(".base_layer", "") for name in names])
    read.findings.extend(findings)
    return mine


def _is_table(base: Base | None, module: str, d_in: int, d_out: int) -> bool:
    """Is the module a table (vocab, d), not a linear map (d_out, d_in)? Its name says so, and then its shape."""
    named = any(part in module.rpartition(".")[2] for part in ("emb", "wte", "wpe"))
    name = None if base is None else base.weight(module)
    if base is None or name is None:
        return named
    return named and base.shapes[name] == (d_in, d_out)
