r"""What takes long is made once: a file holds what came of it and of which settings, and is read the next time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..disk.reading import read_json
from ..disk.writing import write_json


def made_once(
    path: Path,
    about: Mapping[str, Any],
    make: Callable[[], Mapping[str, Any]],
    *,
    loose: Sequence[str] = (),
) -> dict[str, Any]:
    """What `make` gives, from the file if it is there, else made now and written down.

    about   the settings that it follows from, kept beside it      loose   those of them that may be others now

    Raises ValueError for a file of other settings.
    """
    if (found := kept(path, about, loose=loose)) is not None:
        return found
    made = dict(make())
    write_json(path, {**about, "cell": made})
    return made


def kept(path: Path, about: Mapping[str, Any], *, loose: Sequence[str] = ()) -> dict[str, Any] | None:
    """What the file holds, or None where there is none; raises ValueError for one of other settings."""
    if not path.exists():
        return None
    found = read_json(path)
    if "cell" not in found or any(found.get(key) != value for key, value in about.items() if key not in loose):
        raise ValueError(f"{path} is of other settings than asked for now: choose another --out")
    return dict(found["cell"])
