r"""A file is opened once and read once, up to a stated size; what was read is what is parsed and digested.

A regular file, that is: a device has no end, and a folder or a socket holds no text. Where it says so, a pipe as well,
which gives what it holds one time only: it is read to its end and kept.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

MOST = 1 << 30  # bytes: a text of that size becomes 8 GiB of token ids
MOST_JSON = 1 << 26  # bytes of a description, which of the largest model is a thousandth of that
WAIT = 2.0  # seconds for the first byte of a pipe: what was started together with us writes by then, or never

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFREG: "a regular file",
}


@dataclass(frozen=True)
class Contents:
    """What one reading of a file gave."""

    path: Path
    data: bytes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes."""
        return hashlib.sha256(self.data).hexdigest()


def kind_of(found: os.stat_result) -> str:
    """What stands there, in words."""
    return KINDS.get(stat.S_IFMT(found.st_mode), "something that is no file")


def check_regular(path: Path) -> None:
    """Raise FileNotFoundError or ValueError unless `path` leads to a regular file."""
    _found(path, (stat.S_IFREG,))


def read_regular(path: Path, most: int = MOST) -> Contents:
    """A regular file of at most so many bytes. Raises OSError or ValueError, which name it."""
    return Contents(path, _read(path, (stat.S_IFREG,), most))


def read_once(path: Path, most: int = MOST) -> Contents:
    """A regular file, or a pipe to its end, of at most so many bytes. Raises OSError or ValueError, which name it."""
    return Contents(path, _read(path, (stat.S_IFREG, stat.S_IFIFO), most))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a regular file. Raises OSError or ValueError, which name it."""
    data = read_regular(path, MOST_JSON).data
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _found(path: Path, allowed: tuple[int, ...]) -> os.stat_result:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: no such file") from None
    _check(path, found, allowed)
    return found


def _check(path: Path, found: os.stat_result, allowed: tuple[int, ...]) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path} is a directory: name one file in it")
    if stat.S_IFMT(found.st_mode) not in allowed:
        raise ValueError(f"{path} is {kind_of(found)}: it must be {' or '.join(KINDS[kind] for kind in allowed)}")


def _read(path: Path, allowed: tuple[int, ...], most: int) -> bytes:
    _found(path, allowed)  # before it is opened: to open a device can already do something
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        found = os.fstat(file)
        _check(path, found, allowed)
        if stat.S_ISFIFO(found.st_mode):
            _wait_for_a_writer(path, file)
        return _to_the_end(path, file, most)
    finally:
        os.close(file)


def _wait_for_a_writer(path: Path, file: int) -> None:
    """Raise ValueError where nothing comes out of a pipe: one without a writer would be waited for without end."""
    ready, _, _ = select.select([file], [], [], WAIT)
    if not ready:
        raise ValueError(f"{path} is a pipe that nothing was written into for {WAIT:g} seconds")
    os.set_blocking(file, True)


def _to_the_end(path: Path, file: int, most: int) -> bytes:
    parts, size = [], 0
    while part := _next(path, file):
        parts.append(part)
        size += len(part)
        if size > most:
            raise ValueError(f"{path} holds more than {most:,} bytes, the most that is read")
    return b"".join(parts)


def _next(path: Path, file: int) -> bytes:
    try:
        return os.read(file, 1 << 20)
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror, str(path)) from None
