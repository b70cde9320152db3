r"""PyTorch's .bin, .pt and .pth files as mappings from names to tensors: without PyTorch, and nothing in them is run.

    since 2020    a zip archive of uncompressed members: NAME/data.pkl, and the numbers in NAME/data/KEY
    before        five pickles in a row (magic, version, machine, the value, the keys of its storages), then for each
                  key the count of its numbers, 8 bytes, and the numbers

The value must be a dictionary of tensors, or one that holds one such under a usual name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import Array
from .disk import File, only, shown
from .pickles import Machine, View
from .tensors import DTYPES, MAX_AXES, Tensor, Tensors, dtype_of
from .zipped import is_zip, members

MAX_PICKLE = 1 << 25  # bytes; the pickle of a checkpoint spells names and shapes, some 200 bytes a tensor
MAGIC = 0x1950A86A20F9469CFC6C
NESTED = ("model_state_dict", "state_dict", "model", "module", "lora_state_dict")
INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class Strided(Tensor):
    """A tensor in an archive: its numbers begin at byte `start`, and `strides` count numbers, not bytes."""

    file: File
    code: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return dtype_of(DTYPES[self.code][0])

    def numbers(self, start: int, stop: int) -> Array:
        if self.strides == _contiguous(self.shape):
            return self._read(start, stop)
        whole = self._read(0, span(self.shape, self.strides))
        bytes_each = whole.dtype.itemsize
        steps = tuple(bytes_each * stride for stride in self.strides)
        return np.lib.stride_tricks.as_strided(whole, self.shape, steps, writeable=False).reshape(-1)[start:stop]

    def _read(self, start: int, stop: int) -> Array:
        bytes_each = DTYPES[self.code][1]
        raw = self.file.read(self.start + start * bytes_each, (stop - start) * bytes_each)
        return raw.view(np.uint8 if self.code == "BOOL" else self.dtype).astype(self.dtype, copy=False)


def open_archive(path: str | Path) -> Tensors:
    """The tensors of a .bin or .pt file; raises OSError or ValueError, also for pickles of other things."""
    file = File.open(Path(path))
    value, starts = _zipped(file) if is_zip(file) else _legacy(file)
    views = _state_dict(value, str(path))
    return Tensors({name: _tensor(file, name, view, starts) for name, view in views.items()}, files=(file.path,))


def _zipped(file: File) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The value, and {key: (first byte, bytes)} of the storages."""
    found = members(file)
    pickles = [name for name in found if name.rpartition("/")[2] == "data.pkl" and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError(f"{file.path} is a zip archive but no checkpoint of PyTorch: it must hold one data.pkl")
    start, size = found[pickles[0]]
    folder = pickles[0].removesuffix("data.pkl")
    if size > MAX_PICKLE:
        raise ValueError(f"{file.path}: its pickle is too long: at most {MAX_PICKLE} bytes are read, got {size}")
    if f"{folder}byteorder" in found:
        at, length = found[f"{folder}byteorder"]
        if length > 8 or file.read(at, length).tobytes() != b"little":
            raise ValueError(f"{file.path} was written on a big-endian machine, which is not read")
    value = Machine(file.read(start, size).tobytes(), str(file.path)).load()
    data = f"{folder}data/"
    return value, {name.removeprefix(data): where for name, where in found.items() if name.startswith(data)}


def _legacy(file: File) -> tuple[Any, dict[str, tuple[int, int]]]:
    machine = Machine(file.read(0, min(file.size, MAX_PICKLE)).tobytes(), str(file.path))
    if machine.data[:1] != b"\x80" or machine.load() != MAGIC:
        raise ValueError(f"{file.path} is no checkpoint of PyTorch: it begins neither as a zip archive nor as a pickle")
    version, about, value, keys = (machine.load() for _ in range(4))
    if version != 1001 or not (isinstance(about, dict) and about.get("little_endian") is True):
        raise ValueError(f"{file.path} is a checkpoint of PyTorch of a version or byte order that is not read")
    kinds = machine.storages
    if not (isinstance(keys, list) and all(isinstance(key, str) and key in kinds for key in keys)):
        raise ValueError(f"{file.path} is corrupted: its storages are not those of its tensors")
    starts, at = {}, machine.at
    for key in keys:
        size = int(file.read(at, 8).view("<u8")[0]) * DTYPES[kinds[key]][1]
        starts[key] = (at + 8, size)
        at += 8 + size
    return value, starts


def _state_dict(value: Any, where: str) -> Mapping[str, View]:
    """The dictionary of tensors; it may lie under a usual name, beside plain numbers and texts."""
    if isinstance(value, dict):
        nested = [key for key in NESTED if isinstance(value.get(key), dict)]
        plain = all(isinstance(part, str | int | float | None) for key, part in value.items() if key not in nested)
        if len(nested) == 1 and plain:
            value = value[nested[0]]
    if not (isinstance(value, dict) and value):
        raise ValueError(f"{where} must hold a dictionary of tensors, got {_kind(value)}")
    for name, part in value.items():
        if not (isinstance(name, str) and isinstance(part, View)):
            raise ValueError(
                f"{where} must hold tensors by name and nothing else (or under {only(NESTED)}): "
                f"{shown(name)} is {_kind(part)}"
            )
    return value


def _kind(value: Any) -> str:
    names: dict[type, str] = {View: "a tensor", type(None): "nothing", str: "a text", tuple: "a tuple", list: "a list"}
    return "a dictionary" if isinstance(value, dict) else names.get(type(value), f"of type {type(value).__name__}")


def _tensor(file: File, name: str, view: View, starts: Mapping[str, tuple[int, int]]) -> Strided:
    where, bytes_each = f"{file.path}: {shown(name)}", DTYPES[view.code][1]
    if view.storage.key not in starts:
        raise ValueError(f"{where}: its numbers are not in the archive")
    start, size = starts[view.storage.key]
    stored = view.storage.count * DTYPES[view.storage.code][1]
    if stored > size or start + size > file.size:
        raise ValueError(f"{where} is truncated: it needs {stored} bytes, the archive has {size} for it")
    last = view.offset + span(view.shape, view.strides)
    if len(view.shape) > MAX_AXES or max(last, view.offset + math.prod(view.shape)) * bytes_each > stored:
        raise ValueError(
            f"{where}: shape {shown(view.shape)} with strides {shown(view.strides)} does not lie in its storage"
        )
    return Strided(file, view.code, view.shape, view.strides, start + view.offset * bytes_each)


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many numbers lie from the first to the last of a tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for n in reversed(shape[1:]):
        strides.append(strides[-1] * max(n, 1))
    return tuple(reversed(strides)) if shape else ()
