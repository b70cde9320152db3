r"""Whose model lies in a folder, told from what lies there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .disk import read_json


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that this is, or the one in a folder that describes no other model; else None."""
    if path.suffix == ".gguf":
        return path
    found = [] if not path.is_dir() or (path / "config.json").exists() else list(path.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


def npz_file(path: Path) -> Path | None:
    """The .npz file that this is; else None."""
    return path if path.suffix == ".npz" else None


def is_foreign(path: str | Path) -> bool:
    """Is this a GGUF or .npz file, a folder with one GGUF file and no description, or one of transformers?

    A folder of transformers has a config.json that says its model_type.
    """
    path = Path(path)
    about = path / "config.json"
    return (gguf_file(path) or npz_file(path)) is not None or (about.exists() and "model_type" in _described(about))


def _described(path: Path) -> Mapping[str, Any]:
    """What a description says; nothing where it is none that can be read: whoever reads it next says so."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
