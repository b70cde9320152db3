r"""Files are written whole or not at all: beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .renaming import rename_new

LEFT = re.compile(r"\.(.+)\.[0-9a-f]+")  # the name under which a killed process leaves a file that it was writing


def write_atomically(path: Path, data: bytes) -> None:
    """A reader meets the old file or the new one, never a part. Raises OSError that names the file."""
    with _beside(path, data) as written:
        os.replace(written, path)


def write_new(path: Path, data: bytes) -> None:
    """The same for a file that is not there yet; raises FileExistsError where anything stands at `path`."""
    with _beside(path, data) as written:
        rename_new(written, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(beside, "xb") as file:  # x: whatever already has that name is not ours
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield beside
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # so that the message names the file
    finally:
        beside.unlink(missing_ok=True)
