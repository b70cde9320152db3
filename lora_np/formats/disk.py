r"""A regular file that is read in parts, and JSON that is read with suspicion.

Whoever reads a foreign file does it through these two: a part is read only where the file has it, so that nothing is
allocated on the word of a header.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class File:
    """A regular file as it was when it was opened: its size, and what tells whether it is still the same."""

    path: Path
    size: int
    stamp: tuple[int, int, int]

    @classmethod
    def open(cls, path: Path) -> File:
        """Raises OSError for what is missing, may not be read or is no regular file: a pipe would wait for ever."""
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            kind = "a directory" if stat.S_ISDIR(about.st_mode) else "not a regular file"
            raise OSError(f"{path} is {kind}: name a file")
        return cls(path, about.st_size, _stamp(about))

    def read(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `start + count`; raises ValueError where the file has them not, or has changed since."""
        if not 0 <= start <= start + count <= self.size:
            raise ValueError(f"{self.path} has {self.size} bytes: {count} from byte {start} on are not in it")
        into = np.empty(count, np.uint8)
        with open(self.path, "rb", buffering=0) as file:
            if _stamp(os.fstat(file.fileno())) != self.stamp:
                raise ValueError(f"{self.path} has changed since it was opened: read it again")
            file.seek(start)
            view, done = into.data, 0
            while done < count and (got := file.readinto(view[done:])):
                done += got
        if done < count:
            raise ValueError(f"{self.path} was cut while it was read")
        return into


def _stamp(about: os.stat_result) -> tuple[int, int, int]:
    return about.st_ino, about.st_size, about.st_mtime_ns


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in these bytes of `where`; raises ValueError, also for a name that stands in it twice."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} holds no JSON that can be read: {shown(str(error), 200, quoted=False)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(value).__name__}")
    return value


def read_json(path: Path, limit: int = 1 << 25) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes."""
    file = File.open(path)
    if file.size > limit:
        raise ValueError(f"{path} is too long: at most {limit} bytes of JSON are read, got {file.size}")
    return json_object(file.read(0, file.size).tobytes(), str(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} stands in it twice")
    return found


def shown(value: object, limit: int = 80, *, quoted: bool = True) -> str:
    """A value out of a foreign file as it may stand in a message: on one line, printable and not too long."""
    head = value[: limit + 1] if isinstance(value, str | list | tuple) else value
    text = ascii(head) if quoted or not str(head).isprintable() else str(head)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def only(names: Iterable[object], limit: int = 24) -> str:
    """Names in a row, for a message; many are cut short."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
