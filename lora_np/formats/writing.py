r"""Safetensors files written as a stream, one block of numbers in memory at a time, and whole or not at all.

The header is known before the first number: it follows from the types and shapes alone. Each file is written beside
its name and renamed when all of them are complete, the index last.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..engine.arrays import Array
from .tensors import DTYPES

Layout = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> type, as in DTYPES, and shape
Blocks = Callable[[str], Iterable[Array]]  # name -> its numbers, row by row, in as many arrays as one likes
CODES = {name: code for code, (name, _) in DTYPES.items()}
SHARD = 5 * 10**9  # bytes of numbers in one file
ALIGNED = 8  # bytes: the numbers begin at a multiple


def write_tensors(
    folder: str | Path,
    layout: Layout,
    blocks: Blocks,
    *,
    metadata: Mapping[str, str] | None = None,
    shard: int = SHARD,
    stem: str = "model",
) -> list[Path]:
    r"""Write a safetensors file, or several of at most `shard` bytes and their index, into an existing folder.

    layout    what is to be written, in order; wider types come first, so that every tensor is aligned
    blocks    gives the numbers of a tensor when its turn has come; they are checked against its type and shape
    metadata  {"format": "pt"} when None, without which transformers loads no file

    Gives back the files. Raises FileExistsError for one that is there, ValueError for numbers that do not fit, and
    leaves nothing behind when anything fails, a full disk included.
    """
    groups = _shards(layout, shard)
    names = _names(stem, len(groups))
    finals = [Path(folder) / name for name in names]
    if len(groups) > 1:
        finals.append(Path(folder) / f"{stem}.safetensors.index.json")
    for path in finals:
        if path.exists():
            raise FileExistsError(f"{path} exists: write into an empty folder")
    about = {"format": "pt"} if metadata is None else dict(metadata)
    parts = [path.with_name(f".{path.name}.{os.getpid()}") for path in finals]
    done: list[Path] = []
    try:
        for part, group in zip(parts, groups, strict=False):
            _written(part, lambda file, group=group: _write_shard(file, group, blocks, about))  # type: ignore[misc]
        if len(groups) > 1:
            index = json.dumps(_index(layout, groups, names), indent=2) + "\n"
            _written(parts[-1], lambda file: file.write(index.encode()))
        for part, final in zip(parts, finals, strict=True):
            os.replace(part, final)
            done.append(final)
    except BaseException:
        for path in [*parts, *done]:
            path.unlink(missing_ok=True)
        raise
    return finals


def _bytes(entry: tuple[str, tuple[int, ...]]) -> int:
    return math.prod(entry[1]) * DTYPES[entry[0]][1]


def _shards(layout: Layout, limit: int) -> list[dict[str, tuple[str, tuple[int, ...]]]]:
    """The layout cut where a file would grow beyond the limit; a tensor is never cut."""
    groups: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    size = 0
    for name, entry in sorted(layout.items(), key=lambda item: -DTYPES[item[1][0]][1]):
        if groups[-1] and size + _bytes(entry) > limit:
            groups.append({})
            size = 0
        groups[-1][name] = entry
        size += _bytes(entry)
    return groups


def _names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _index(layout: Layout, groups: list[Any], names: list[str]) -> dict[str, Any]:
    where = {name: file for group, file in zip(groups, names, strict=True) for name in group}
    return {"metadata": {"total_size": sum(map(_bytes, layout.values()))}, "weight_map": dict(sorted(where.items()))}


def _written(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write and flush to disk; an error of the disk names the file."""
    try:
        with open(path, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_shard(file: BinaryIO, group: Layout, blocks: Blocks, metadata: Mapping[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (code, shape) in group.items():
        start, end = end, end + _bytes((code, shape))
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, (code, shape) in group.items():
        count = 0
        for block in blocks(name):
            if block.dtype.name != DTYPES[code][0]:
                raise ValueError(f"{name} is to be written as {DTYPES[code][0]}, got numbers of {block.dtype}")
            count += block.size
            file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        if count != math.prod(shape):
            raise ValueError(f"{name} must have {math.prod(shape)} numbers for its shape {shape}, got {count}")
