r"""PEFT's folders: what stands in the grammar of `lora_np.formats.grammar`, placed on the tensors of the base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import grammar
from .assembling import Assembly
from .disk import shown
from .patterns import targeted
from .placing import Base
from .sources import fitted_base, refuse_foreign, stored_type, weights_of
from .updates import Adapter, Finding, Update, peft_order


def read_peft(
    folder: Path,
    config: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    start: str | Path | None = None,
) -> Adapter:
    """PEFT's adapter; see `lora_np.formats.peft` for its grammar."""
    settings = grammar.settings(config, str(folder / "adapter_config.json"))
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
    tensors = weights_of(folder, "adapter_model")
    refuse_foreign(folder, tensors)
    read = grammar.read_keys(tensors)
    mine = fitted_base(base, about, read)
    assembly = Assembly(read, settings, mine)
    if start is not None and settings.start == "given":
        assembly.start = grammar.read_keys(weights_of(Path(start), "adapter_model")).modules
    updates = assembly.run()
    if config.get("lora_alpha") is None:
        what = "it is missing, so the default of PEFT is taken, 8"
        read.note("alpha_missing", "lora_alpha", what, "see what it was trained with")
    for name in sorted(set(config) - grammar.KNOWN - set(grammar.REFUSED)):
        if config[name]:
            what = f"it is set to {shown(config[name])}, and this reader does not know it"
            read.note("unknown_setting", name, what, "see whether it bears on the merged weights")
    read.findings.extend(untargeted(config, read, updates, mine))
    stored = stored_type(updates)
    leaves = read.leaves(settings, config)
    return Adapter("peft", updates, peft_order(stored), tuple(read.findings), config, tensors.files, leaves)


def untargeted(
    config: Mapping[str, Any], read: grammar.Read, updates: Mapping[str, Update], base: Base | None
) -> list[Finding]:
    """Targets that the base does not have, and modules that are targeted and have no tensors in the file."""
    names = config.get("target_modules")
    if base is None or not isinstance(names, str | list) or names == "all-linear":
        return []
    paths = {base.old + name.removesuffix(".weight").removeprefix(base.new): name for name, shape in base.shapes.items()
             if len(shape) >= 2 and name.endswith(".weight")}  # fmt: skip
    try:
        chosen = [path for path in paths if targeted(path, names)]
        spared = [path for path in chosen if targeted(path, config.get("exclude_modules") or [])]
    except ValueError as error:
        return [Finding("pattern", "target_modules", str(error), "see yourself whether all targets have tensors")]
    findings = []
    for name in names if isinstance(names, list) else []:
        if not any(targeted(path, [name]) for path in (*paths, *read.modules)):
            todo = "see whether it is misspelt, or the base is another"
            findings.append(Finding("unknown_target", shown(name), "the base has no module of this name", todo))
    lacking = [
        path for path in chosen if paths[path] not in updates and path not in spared and _in_layers(config, path)
    ]
    if lacking:
        what = f"the configuration targets it and {len(lacking) - 1} more, but the file has no tensors for them"
        findings.append(Finding("untrained", lacking[0], what, "see whether the file was saved whole"))
    return findings


def _in_layers(config: Mapping[str, Any], path: str) -> bool:
    chosen = config.get("layers_to_transform")
    if not isinstance(chosen, int | list):
        return True
    number = next((int(part) for part in path.split(".") if part.isdecimal() and len(part) < 9), None)
    return number in (chosen if isinstance(chosen, list) else [chosen])
