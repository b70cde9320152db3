"""A picture as a file: refused before anything is computed, written whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..disk.writing import write_atomically, write_new


def check_picture(out: Path, option: str = "--out", *, overwrite: bool = False, able: bool = True) -> None:
    """Raise ValueError or OSError where no picture can be written; `able`: is there an --overwrite to allow?"""
    if out.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"{option} must name a picture, FILE.svg or FILE.png, got {out}")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out.absolute().parent} is no folder: make it, or choose another {option}")
    if (out.exists() or out.is_symlink()) and not (overwrite and out.is_file()):
        todo = f"choose another {option}, or " + ("allow --overwrite" if able else "remove it")
        raise FileExistsError(f"{out} exists: {todo}")


def write_picture(figure: Any, out: Path, *, overwrite: bool = False) -> None:
    """In the format of its suffix."""
    from matplotlib import rc_context

    from ..figures import STYLE

    kind = out.suffix.lower()[1:]
    file, metadata = io.BytesIO(), {"Date": None} if kind == "svg" else None
    with rc_context(STYLE):
        figure.savefig(file, format=kind, dpi=160, metadata=metadata)
    (write_atomically if overwrite else write_new)(out, file.getvalue())
