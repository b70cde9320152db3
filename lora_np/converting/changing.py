r"""One format of adapters into another, with one effective scale, and ΔW shown to be the same.

What was written is read back, its modules get the names that they had, and every ΔW is compared with that of what was
read: see `lora_np.converting.proving`. Only then does the folder appear. What a format has no place for is refused by
name before anything is written, never left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..disk.folders import check_free, new_folder
from ..disk.marks import Kind
from ..disk.unmarked import unmarked_folder
from ..formats.adapters import read_adapter
from ..formats.disk import read_json
from ..formats.factors import Leaves
from ..formats.folders import gguf_file, is_foreign
from ..formats.grammar import BEGUN
from ..formats.huggingface import open_weights
from ..formats.renaming import heads_of, in_llama_cpp, matrices, out_of_mlx, to_ours, to_theirs, turned
from ..formats.saving import check_finite, check_held, write_gguf, write_mlx, write_peft
from ..merges.judging import same_bytes
from ..names import nearest_first
from .own import FAMILY, family_of, read_own, sizes_of, write_own
from .proving import Same, compared

FORMATS = ("peft", "mlx", "gguf", "lora_np")
ADAPTER = Kind("adapter", ("adapter.json", "adapter.safetensors"))
FILE = "adapter.gguf"


@dataclass(frozen=True)
class Converted:
    """What was written where, and module by module that its ΔW is that of what was read."""

    source: str
    to: str
    folder: Path
    modules: tuple[Same, ...]
    more: int  # arrays beside the factors: magnitudes, biases, whole tensors; equal to the bit

    @property
    def to_the_bit(self) -> bool:
        return all(one.to_the_bit for one in self.modules)


def convert(
    adapter: str | Path,
    to: str,
    out: str | Path,
    *,
    base: str | Path | None = None,
    alpha: float | None = None,
    enabled: Sequence[bool] | None = None,
) -> Converted:
    """Write an adapter of any readable format into the new folder `out`, as "peft", "mlx", "gguf" or "lora_np".

    base     its model: of an adapter of lora_np the one that ships when None; its config.json gives llama.cpp's names;
             lora_np's own format holds the digest of it
    alpha    of a loralib file, which does not hold it, and `enabled`: see `lora_np.formats.adapters.read_adapter`

    Raises ValueError, by name, for what cannot be read exactly or what the format cannot hold, and FileExistsError
    where something stands at `out`; then nothing is written.
    """
    if to not in FORMATS:
        raise ValueError(f"--to must be one of {nearest_first(to, FORMATS)}; got {to!r}")
    adapter, out, base = Path(adapter), Path(out), None if base is None else Path(base)
    check_free(out, ADAPTER, inputs=[path for path in (adapter, base) if path is not None])
    source, leaves = read_leaves(adapter, base, alpha, enabled, to=to)
    found = written(out, leaves, to, base)
    more = len(leaves.whole) + sum(len(set(parts) - {"A", "B", "EA", "EB"}) for parts in leaves.modules.values())
    return Converted(source, to, out, found, more)


def written(out: Path, leaves: Leaves, to: str, base: Path | None) -> tuple[Same, ...]:
    """Write the new folder `out`, read it back, and compare; it appears only when every module holds."""
    check_held(leaves, to)
    check_finite(leaves)
    folder = new_folder(out, ADAPTER) if to == "lora_np" else unmarked_folder(out)
    with folder as new:
        _write(new, leaves, to, base)
        _, again = read_leaves(new / FILE if to == "gguf" else new, base, None, None, to=to)
        found = tuple(compared(leaves, again))
        if wrong := next((one for one in found if not one.holds), None):
            raise ValueError(
                f"{wrong.module} cannot be written as {to}: ΔW would be off by {wrong.gap:.3g}, "
                f"where rounding explains {wrong.bound:.3g}"
            )
    return found


def _write(folder: Path, leaves: Leaves, to: str, base: Path | None) -> None:
    about = None if base is None else about_of(base)
    if to == "peft":
        write_peft(folder, leaves, None if about is None else about.get("model_type"))
    elif to == "mlx":
        write_mlx(folder, leaves)
    elif to == "gguf":
        write_gguf(folder / FILE, leaves, about)
    else:
        matrices(leaves.modules)
        family, layers = family_of(base)
        modules, scales = to_ours(leaves.modules, leaves.scales, family, layers)
        write_own(folder, Leaves(modules, scales, dora=leaves.dora), base)


def about_of(base: Path) -> Mapping[str, Any]:
    """The config.json of the base, or what one would say of a model of ours or a GGUF file; {} where none is there."""
    path = base / "config.json"
    if base.is_dir() and not path.exists() and gguf_file(base) is None:
        open_weights(base)  # raises where there are none either
        return {}
    described = read_json(path) if base.is_dir() and path.exists() else {}
    if "model_type" in described:
        return described
    sizes = sizes_of(base)
    layers = {"model_type": FAMILY[sizes.architecture], "num_hidden_layers": sizes.layers}
    return {**layers, "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads}


def read_leaves(
    path: Path, base: Path | None, alpha: float | None, enabled: Sequence[bool] | None, *, to: str
) -> tuple[str, Leaves]:
    """The format of an adapter, and what it holds under the names of transformers."""
    if (path / "adapter.json").exists():
        own, _ = read_own(path, base)
        family, layers = family_of(base)
        modules, scales = to_theirs(own.modules, own.scales, family, layers)
        return "lora_np", replace(own, modules=modules, scales=scales)
    gguf = path.suffix == ".gguf" or (path.is_dir() and not (path / "adapter_config.json").exists()
                                      and any(path.glob("*.gguf")))  # fmt: skip
    about = None if base is None else about_of(base)
    tensors = None if gguf or base is None or not is_foreign(base) else _weights(base)
    adapter = read_adapter(path, tensors, about if tensors else None, alpha=alpha, enabled=enabled)
    leaves = adapter.checked("tied_head", *(("experts",) if tensors is None else ())).leaves
    if adapter.format == "gguf":
        return "gguf", _out_of_llama_cpp(leaves, about, path)
    _check_start(leaves, path, to)
    if adapter.format == "mlx":
        modules = {out_of_mlx(module): parts for module, parts in leaves.modules.items()}
        leaves = replace(leaves, modules=modules, scales={out_of_mlx(m): s for m, s in leaves.scales.items()})
    copies = {name for name in leaves.copies if tensors and name in tensors
              and same_bytes(tensors[name], leaves.whole[name])} if to != "peft" else set()  # fmt: skip
    whole = {name: tensor for name, tensor in leaves.whole.items() if name not in copies}
    return adapter.format, replace(leaves, whole=whole)


def _weights(base: Path) -> Any:
    """The tensors of the base; None where it is but a description."""
    try:
        return open_weights(base)
    except FileNotFoundError:
        return None


def _check_start(leaves: Leaves, path: Path, to: str) -> None:
    start = str(leaves.settings.get("init_lora_weights")).lower()
    if to != "peft" and start in BEGUN:
        raise ValueError(
            f"{path}: init_lora_weights is {start!r}: the base itself was changed before training, so that ΔW is not "
            "s·BA alone; only peft can hold that"
        )
    if to != "peft" and leaves.settings.get("ensure_weight_tying"):
        raise ValueError(f"{path}: ensure_weight_tying is set: only peft can hold a head that shares a table's factors")


def _out_of_llama_cpp(leaves: Leaves, about: Mapping[str, Any] | None, path: Path) -> Leaves:
    """Modules of a GGUF file under the names of transformers, with the rows of B in their order."""
    kind, layers = (about or {}).get("model_type"), (about or {}).get("num_hidden_layers", (about or {}).get("n_layer"))
    if about is None or not isinstance(kind, str) or type(layers) is not int:
        raise ValueError(f"{path}: what llama.cpp's names stand for follows from the base: name its folder with --base")
    theirs = {new: old for old, new in in_llama_cpp(kind, layers).items()}
    modules, scales = {}, {}
    for module, parts in leaves.modules.items():
        if module not in theirs:
            raise ValueError(f"{path}: {module} is no module of a {kind} model of {layers} blocks")
        name, heads = theirs[module], heads_of(module, about)
        modules[name] = {leaf: turned(t, heads, back=True) if leaf == "B" else t for leaf, t in parts.items()}
        scales[name] = leaves.scales[module]
    return Leaves(modules, scales)
