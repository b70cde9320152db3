r"""Arrays on disk as mappings from names, read when they are used: safetensors files, single and sharded.

    tensors = open_tensors("folder")        names, shapes and types; not one number is read
    tensors["a.weight"][10:20]              rows 10 to 19, read now
    np.asarray(tensors["a.weight"])         all of it

A file is a header and then numbers:

    length of the header, 8 bytes, little-endian | JSON header | numbers
    header   {"name": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}, "__metadata__": {text: text}}

A header is believed only after it was checked: its length against the file before it is read, each shape against
its bytes, and all offsets together, which must cover the numbers without a gap or an overlap.

Source: the section "Format" of the safetensors README.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..engine.arrays import Array
from .disk import File, json_object, only, shown

MAX_HEADER = 1 << 25  # bytes; a header of 2^25 names some 300,000 tensors, and as Python objects takes ten times that
MAX_AXES = 32  # what NumPy 1 and PyTorch hold
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

# What the format calls a type -> what NumPy (with ml_dtypes) calls it, and its bytes.
DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "C64": ("complex64", 8),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
_EXTRA = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # of which NumPy knows only with ml_dtypes


def dtype_of(name: str) -> np.dtype[Any]:
    """The NumPy type of this name; raises ImportError for one that needs ml_dtypes where that is not installed."""
    if name not in _EXTRA:
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(f'{name} numbers need ml_dtypes: pip install "lora_np[checkpoints]"') from None
    return np.dtype(getattr(ml_dtypes, name))


class Tensor:
    """An array that is not in memory: `shape` and `dtype` are known, `t[a:b]` and `np.asarray(t)` read.

    A kind of file says what `shape`, `dtype` and `numbers` are; all else follows.
    """

    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        raise NotImplementedError

    def numbers(self, start: int, stop: int) -> Array:
        """The numbers `start` to `stop` of the array laid out row by row, (stop - start,)."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __getitem__(self, where: slice) -> Array:
        """Rows along the first axis; only what is asked for is read."""
        if not (isinstance(where, slice) and self.shape):
            raise TypeError(f"a tensor on disk is read by a slice of its first axis, got {where!r} for {self.shape}")
        start, stop, step = where.indices(self.shape[0])
        stop, width = max(start, stop), math.prod(self.shape[1:])
        block = self.numbers(start * width, stop * width).reshape(stop - start, *self.shape[1:])
        return block[::step] if step > 0 else self[:][where]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = self.numbers(0, self.size).reshape(self.shape)
        return whole if dtype is None else whole.astype(dtype, copy=False)


@dataclass(frozen=True)
class Stored(Tensor):
    """A tensor whose numbers lie in a file as they are in memory: from byte `start` on, of the type DTYPES[code]."""

    file: File
    code: str
    shape: tuple[int, ...]
    start: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return dtype_of(DTYPES[self.code][0])

    def numbers(self, start: int, stop: int) -> Array:
        bytes_each = DTYPES[self.code][1]
        raw = self.file.read(self.start + start * bytes_each, (stop - start) * bytes_each)
        return raw.view(np.uint8 if self.code == "BOOL" else self.dtype).astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Tensors(Mapping[str, Tensor]):
    """Names to tensors, in the order of the file; `metadata` is the text that a safetensors header carries beside."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    files: tuple[Path, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Any:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def flat(array: Array | Tensor, start: int, stop: int) -> Array:
    """The numbers `start` to `stop` of an array in memory or on disk, laid out row by row."""
    return array.numbers(start, stop) if isinstance(array, Tensor) else np.asarray(array).reshape(-1)[start:stop]


def open_tensors(path: str | Path) -> Tensors:
    """A safetensors file, or a folder that holds model.safetensors or an index of shards, as a mapping.

    Raises OSError for what is not there or no regular file, ValueError of one line for everything else.
    """
    path = Path(path)
    if not path.is_dir():
        return read_file(path)
    found = [name for name in (INDEX, SINGLE) if (path / name).exists()]
    if len(found) == 2:
        raise ValueError(f"{path} holds both {SINGLE} and {INDEX}: remove the one that does not belong there")
    if not found:
        raise FileNotFoundError(f"{path} holds no weights: neither {SINGLE} nor {INDEX} is there")
    return read_sharded(path / INDEX) if found == [INDEX] else read_file(path / SINGLE)


def read_file(path: str | Path) -> Tensors:
    """The tensors of one safetensors file."""
    file = File.open(Path(path))
    if file.size < 8:
        raise ValueError(f"{path} is no safetensors file: it must hold at least 8 bytes, got {file.size}")
    length = int(file.read(0, 8).view("<u8")[0])
    if length > min(MAX_HEADER, file.size - 8):
        raise ValueError(
            f"{path} is truncated or no safetensors file: its header would be {length} bytes long, "
            f"in a file of {file.size} (at most {MAX_HEADER} are read)"
        )
    header = json_object(file.read(8, length).tobytes(), str(path))
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise ValueError(f"{path}: __metadata__ must be an object of texts")
    tensors = {name: _entry(file, 8 + length, name, entry) for name, entry in header.items()}
    _check_cover(file, 8 + length, tensors)
    return Tensors(tensors, metadata, (file.path,))


def _entry(file: File, origin: int, name: str, entry: Any) -> Stored:
    where = f"{file.path}: {shown(name)}"
    if not (isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}):
        raise ValueError(f"{where} must have dtype, shape and data_offsets, and nothing else")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(code, str) and code in DTYPES):
        raise ValueError(f"{where} is of type {shown(code)}, which this reader does not know: one of {only(DTYPES)}")
    if not (_whole(shape) and len(shape) <= MAX_AXES):
        raise ValueError(f"{where}: shape must be at most {MAX_AXES} whole numbers, got {shown(shape)}")
    if not (_whole(offsets) and len(offsets) == 2):
        raise ValueError(f"{where}: data_offsets must be two whole numbers, got {shown(offsets)}")
    start, stop = offsets
    if stop - start != math.prod(shape) * DTYPES[code][1]:
        raise ValueError(f"{where}: shape {shown(shape)} of {code} does not fill the bytes {start} to {stop}")
    return Stored(file, code, tuple(shape), origin + start)


def _whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in value)


def _check_cover(file: File, origin: int, tensors: Mapping[str, Stored]) -> None:
    """Tensors in the order of their bytes must lie end to end from the header to the end of the file."""
    end = origin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != end:
            fault = "overlaps another tensor" if tensor.start < end else "leaves a gap before it"
            raise ValueError(f"{file.path}: {shown(name)} {fault}, at byte {tensor.start - origin} of the numbers")
        end += tensor.size * DTYPES[tensor.code][1]
    if end != file.size:
        raise ValueError(f"{file.path} is truncated or too long: its header asks for {end} bytes, it has {file.size}")


def read_index(path: Path) -> dict[str, str]:
    """{tensor: file} of an index of shards; the files lie beside it, whatever the index says."""
    file = File.open(path)
    if file.size > MAX_HEADER:
        raise ValueError(f"{path} is too long for an index: at most {MAX_HEADER} bytes are read, got {file.size}")
    weights = json_object(file.read(0, file.size).tobytes(), str(path)).get("weight_map")
    if not (isinstance(weights, dict) and weights and all(isinstance(shard, str) for shard in weights.values())):
        raise ValueError(f"{path}: weight_map must be an object that names the file of each tensor")
    for shard in set(weights.values()):
        if shard in ("", ".", "..") or set(shard) & set("/\\\0") or not shard.isprintable():
            raise ValueError(f"{path}: a shard must be the name of a file beside the index, got {shown(shard)}")
    return weights


def read_sharded(path: Path, read: Callable[[Path], Tensors] = read_file) -> Tensors:
    """The tensors of all shards that an index names, which must be in the files that it says, and no others."""
    weights = read_index(path)
    shards = {shard: read(path.parent / shard) for shard in sorted(set(weights.values()))}
    for shard, tensors in shards.items():
        for name in tensors:
            if weights.get(name) != shard:
                says = f"says it is in {shown(weights[name])}" if name in weights else "does not name it"
                raise ValueError(f"{path.parent / shard} holds {shown(name)}, but {path.name} {says}")
    for name, shard in weights.items():
        if name not in shards[shard]:
            raise ValueError(f"{path}: {shown(name)} is not in {shown(shard)}")
    return Tensors(
        {name: shards[shard][name] for name, shard in weights.items()},
        next(iter(shards.values())).metadata,
        (path, *(path.parent / shard for shard in shards)),
    )
