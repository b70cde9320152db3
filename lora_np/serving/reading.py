r"""Adapters out of folders: ours, and PEFT's beside a base of transformers. Their descriptions first, numbers later."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.reading import check_regular, read_json
from ..files import load_adapter
from ..formats.updates import Update
from ..model import Transformer, place_of
from .adapter import Adapter, Factors, adapted_maps, adapter_of, cast

OURS, PEFTS = "adapter.json", "adapter_config.json"


def check_name(name: str) -> str:
    """The name, if it may be one of a folder inside another and nothing else; raises ValueError."""
    tricks = not name or name.startswith(".") or any(c in "/\\:" or not c.isprintable() for c in name)
    if tricks:
        raise ValueError(f"an adapter's name is the name of its folder, without a path or a leading dot; got {name!r}")
    return name


def folders_in(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The adapter folders in a folder by name, and why each of the others is none. Plain files are passed by.

    A name is told by what is seen: two that differ only in how a letter is encoded are one name. What a link leads to
    outside of the folder is not followed.
    """
    found: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    root = folder.resolve()
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    for own in names:
        name = unicodedata.normalize("NFC", own)
        try:
            check_name(name)
            if name in found or name in skipped:
                first = found.pop(name, folder / name)
                raise ValueError(f"two folders have this one name, {first.name!a} and {own!a}: rename one")
            if (folder / own).resolve().parent != root:
                raise ValueError(f"{folder / own} is a link that leads out of {folder}")
            found[name] = folder / own
        except ValueError as error:
            skipped[name] = str(error)
    return found, skipped


def check_description(path: Path, base_digest: str, foreign: bool) -> None:
    """Raise OSError or ValueError unless what describes this folder can be read, and names this base."""
    if (path / OURS).exists():
        about = read_json(path / OURS)
        if about.get("base") != base_digest:
            theirs = str(about.get("base"))[:12]
            raise ValueError(
                f"{path} was trained on another base: its digest is {theirs}, this base's {base_digest[:12]}"
            )
        check_regular(path / "adapter.safetensors")
        return
    if not (path / PEFTS).exists():
        raise ValueError(f"{path} is no adapter folder: it holds neither {OURS} nor {PEFTS}")
    read_json(path / PEFTS)
    if not foreign:
        raise ValueError(f"{path} is an adapter of PEFT, which names the maps of a base of transformers: this is none")


def read_folder(path: Path, name: str, base: Transformer, base_digest: str, source: Path | None = None) -> Adapter:
    """The adapter in a folder. Raises OSError or ValueError in one line.

    source   the folder of other software that the base was read from, whose names a PEFT adapter uses
    """
    if (path / OURS).exists():
        model, method = load_adapter(path, base, base_digest=base_digest)
        return adapter_of(model, name, method.trained(model))
    if source is None:
        raise ValueError(f"{path} is an adapter of PEFT, which names the maps of a base of transformers: this is none")
    adapter = cast(_of_peft(path, name, source), place_of(base).dtype)
    adapted_maps(base, adapter)
    return adapter


def _of_peft(path: Path, name: str, source: Path) -> Adapter:
    """Every s·BA of a PEFT adapter beside the map of ours that it belongs to; raises ValueError for anything else."""
    from ..formats.adapters import read_adapter
    from ..formats.huggingface import open_weights
    from ..formats.names import entries
    from ..loading import open_foreign

    about = read_json(source / "config.json")
    adapter = read_adapter(path, open_weights(source), about)
    if stops := [finding for finding in adapter.findings if finding.stops]:
        raise ValueError(f"{path}: {stops[0]}")
    factors: dict[str, Factors] = {}
    used: set[str] = set()
    for entry in entries(str(about.get("model_type")), open_foreign(source).config.layers):
        update = _update(adapter.updates, entry.theirs)
        if update is None or not entry.ours.endswith(".W"):
            continue
        used.add(update.name)
        if found := _factors(update, *entry.range(update.shape[-1 if entry.transposed else 0])):
            factors[entry.ours.removesuffix(".W")] = found
    if left := sorted(set(adapter.updates) - used):
        raise ValueError(f"{path}: {left[0]} is changed, which is no map of this model")
    return Adapter(name, factors)


def _update(updates: Mapping[str, Update], theirs: str) -> Update | None:
    """By the name of the table, with the prefix of the model or without."""
    return updates.get(theirs) or updates.get(theirs.partition(".")[2])


def _factors(update: Update, start: int, stop: int) -> Factors | None:
    """The outputs `start` to `stop` of an update as A, B and s; None where it leaves them alone."""
    if not update.only_sums:
        raise ValueError(f"{update.name} is changed by more than s·BA: that cannot be chosen for each sequence")
    found: list[tuple[Any, Any, float]] = []
    for part in update.prepared(np.zeros(0)).parts:
        at = 0 if part.transposed else part.at
        low, high = max(start, at), min(stop, at + part.d_out)
        if low < high:
            B = np.zeros((stop - start, part.rank), np.asarray(part.b(0, 1)).dtype)
            B[low - start : high - start] = part.b(low - at, high - at)
            found.append((part.a(), B, part.scale))
    if not found:
        return None
    if len(found) == 1:
        return Factors(*found[0])
    return Factors(np.concatenate([A for A, _, _ in found]), np.concatenate([s * B for _, B, s in found], axis=1), 1.0)
