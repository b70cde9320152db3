r"""NumPy's .npz files as mappings from names to tensors: a zip archive of .npy members, no pickle in any of them.

Members may be compressed, so each is unpacked only as far as its directory says, within a stated limit, and its header
is held against what came out before an array is made of it.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import Array
from .disk import File, json_object, shown
from .tensors import Tensor, Tensors

MOST = 1 << 30  # bytes that a whole file may unpack to
SETTINGS = "__config__"  # the member that holds a JSON text in place of numbers


@dataclass(frozen=True)
class Held(Tensor):
    """A tensor that is in memory already."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def numbers(self, start: int, stop: int) -> Array:
        return self.array.reshape(-1)[start:stop]


def open_npz(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and settings of a file; raises ValueError for one that is corrupted, too large or holds a pickle."""
    file = File.open(path)
    try:
        with zipfile.ZipFile(io.BytesIO(file.read(0, file.size).data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > MOST:
                raise ValueError(f"{path} unpacks to more than {MOST} bytes, which is not read")
            arrays = {
                info.filename.removesuffix(".npy"): _array(_unpacked(archive, info), f"{path}: {shown(info.filename)}")
                for info in archive.infolist()
            }
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no .npz file that can be read: {shown(str(error), quoted=False)}") from None
    about = arrays.pop(SETTINGS, None)
    if about is None or about.dtype.kind != "U" or about.ndim:
        raise ValueError(f"{path} holds no {SETTINGS}, the text that says what model it is")
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise ValueError(f"{path}: {shown(name)} must hold floating-point numbers, got {array.dtype}")
    settings = json_object(str(about).encode(), f"{path}: {SETTINGS}")
    return Tensors({name: Held(array) for name, array in arrays.items()}, files=(path,)), settings


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """At most as many bytes as the directory says, whatever the stream would give."""
    with archive.open(info) as member:
        return member.read(info.file_size)


def _array(data: bytes, where: str) -> Array:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{where} is no .npy member: {shown(str(error), quoted=False)}") from None
    if dtype.hasobject:
        raise ValueError(f"{where} holds a pickle, which is never run")
    rest = data[stream.tell() :]
    if len(rest) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{where}: shape {shape} of {dtype} does not fill its {len(rest)} bytes")
    array = np.frombuffer(rest, dtype)
    return array.reshape(shape, order="F" if fortran else "C")
