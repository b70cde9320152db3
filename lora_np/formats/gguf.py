r"""llama.cpp's GGUF files: models and adapters as mappings from names to tensors, dequantised when they are used.

    file      "GGUF" | version 3 | number of tensors | of settings | settings | tensors | padding | numbers
    setting   name, type, value                         text: length, 8 bytes, and UTF-8
    tensor    name, axes, lengths (fastest first), type, offset

The header is walked here, each length against what is left of the file before it is believed; only the numbers of
quantised blocks are left to the `gguf` package. Shapes are given slowest axis first, as everywhere in this package.

Source: the specification of GGUF in the repository of ggml; adapters as llama.cpp's export-lora merges them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import Array
from . import grammar
from .assembling import Assembly
from .disk import File, shown
from .placing import Base
from .tensors import Tensor, Tensors, dtype_of
from .updates import Adapter, Order
from .views import Turned

MAX_HEADER = 1 << 27  # bytes; a vocabulary of 256,000 tokens with its merges takes some 15 MB
MAX_AXES, ALIGNMENT, KEPT = 4, 32, 64  # of a long list only the first KEPT entries are kept
AT_ONCE = 1024  # blocks in a row that is handed to the gguf package, which works on sixteen rows a call
PLAIN = {"F32": "float32", "F16": "float16", "F64": "float64", "I8": "int8", "I16": "int16", "I32": "int32",
         "I64": "int64", "BF16": "bfloat16"}  # fmt: skip
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, LIST = 8, 9


@dataclass(frozen=True)
class Quantised(Tensor):
    """A tensor of a GGUF file: blocks of `block` numbers in `size` bytes each; float32 once they are dequantised."""

    file: File
    kind: str
    shape: tuple[int, ...]
    start: int
    block: int
    size_of_block: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return dtype_of(PLAIN.get(self.kind, "float32"))

    def numbers(self, start: int, stop: int) -> Array:
        first, last = start // self.block, -(-stop // self.block)
        raw = self.file.read(self.start + first * self.size_of_block, (last - first) * self.size_of_block)
        if self.kind in PLAIN:
            return raw.view(self.dtype)
        try:
            values = _dequantised(raw.reshape(last - first, self.size_of_block), self.kind)
        except NotImplementedError:
            raise ValueError(f"{self.file.path}: {_undone(self.kind)}") from None
        return values.reshape(-1)[start - first * self.block : stop - first * self.block]


def _dequantised(blocks: Array, kind: str) -> Array:
    package = _package()
    whole = len(blocks) // AT_ONCE * AT_ONCE
    parts = (blocks[:whole].reshape(-1, AT_ONCE * blocks.shape[1]), blocks[whole:].reshape(1, -1))
    found = [package.dequantize(part, package.GGMLQuantizationType[kind]) for part in parts if part.size]
    return np.concatenate([part.reshape(-1) for part in found] or [np.zeros(0, np.float32)])


def _undone(kind: str) -> str:
    return f"blocks of type {kind} are not read: the gguf package does not dequantise them"


def check_kinds(path: Path, tensors: Tensors) -> None:
    """Raise ValueError for the first tensor whose blocks the gguf package cannot dequantise, before one is read."""
    done = set(PLAIN)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Quantised) or tensor.kind in done:
            continue
        try:
            _dequantised(np.zeros((1, tensor.size_of_block), np.uint8), tensor.kind)
        except NotImplementedError:
            raise ValueError(f"{path}: {shown(name)}: {_undone(tensor.kind)}") from None
        done.add(tensor.kind)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError('GGUF files need the gguf package: pip install "lora_np[checkpoints]"') from None
    return gguf


class Walk:
    """Reads a header in order, never past its end; of a long list it keeps the first `kept` entries."""

    def __init__(self, file: File, kept: int = KEPT) -> None:
        self.path, self.at, self.kept = file.path, 0, kept
        self.data = file.read(0, min(file.size, MAX_HEADER)).tobytes()

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError(f"{self.path} is truncated or corrupted: its header ends in the middle")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", errors="backslashreplace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != LIST or depth > 2:
            raise ValueError(f"{self.path} is corrupted: a setting has the type {kind}, which GGUF does not have")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in SCALARS:
            raw = self.take(count * struct.calcsize(SCALARS[inner]))
            width = struct.calcsize(SCALARS[inner])
            return [struct.unpack_from(SCALARS[inner], raw, k * width)[0] for k in range(min(count, self.kept))]
        if count > len(self.data) - self.at:
            raise ValueError(f"{self.path} is truncated or corrupted: a list of {count} entries does not lie in it")
        kept = []
        for k in range(count):
            entry = self.value(inner, depth + 1)
            if k < self.kept:
                kept.append(entry)
        return kept


def open_gguf(path: str | Path, *, whole: bool = False) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and the settings of a GGUF file, of long lists the first entries; raises OSError or ValueError.

    whole   long lists whole: a vocabulary, say
    """
    file = File.open(Path(path))
    walk = Walk(file, MAX_HEADER if whole else KEPT)
    if walk.data[:4] != b"GGUF":
        raise ValueError(f"{path} is no GGUF file: it does not begin with GGUF")
    walk.take(4)
    version, n_tensors, n_settings = walk.number("<I"), walk.number("<Q"), walk.number("<Q")
    if version not in (2, 3):
        raise ValueError(f"{path} is a GGUF file of version {version}: only 2 and 3, little-endian, are read")
    settings: dict[str, Any] = {}
    for _ in range(n_settings):
        name = walk.text()
        if name in settings:
            raise ValueError(f"{path} is corrupted: the setting {shown(name)} stands in it twice")
        settings[name] = walk.value(walk.number("<I"))
    entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(n_tensors):
        name, axes = walk.text(), walk.number("<I")
        if axes > MAX_AXES or name in entries:
            raise ValueError(f"{path}: {shown(name)} has {axes} axes or stands in it twice")
        lengths = [walk.number("<Q") for _ in range(axes)]
        entries[name] = (tuple(reversed(lengths)), walk.number("<I"), walk.number("<Q"))
    align = settings.get("general.alignment", ALIGNMENT)
    if type(align) is not int or not 0 < align <= 1 << 20:
        raise ValueError(f"{path}: general.alignment must be a small whole number, got {shown(align)}")
    origin = -(-walk.at // align) * align
    found = {name: _tensor(file, origin, name, *entry) for name, entry in entries.items()}
    _check_apart(file, found)
    return Tensors(found, {k: v for k, v in settings.items() if isinstance(v, str)}, (file.path,)), settings


def _tensor(file: File, origin: int, name: str, shape: tuple[int, ...], number: int, offset: int) -> Quantised:
    package = _package()
    kinds = {kind.value: kind for kind in package.GGMLQuantizationType}
    if number not in kinds:
        raise ValueError(f"{file.path}: {shown(name)} is of type {number}, which the gguf package does not know")
    block, size = package.GGML_QUANT_SIZES[kinds[number]]
    count, width = math.prod(shape), shape[-1] if shape else 1
    if width % block:
        raise ValueError(f"{file.path}: {shown(name)} has rows of {width} numbers, in blocks of {block}")
    if origin + offset + count // block * size > file.size:
        raise ValueError(f"{file.path} is truncated: {shown(name)}, of shape {shown(shape)}, is not all in it")
    return Quantised(file, kinds[number].name, shape, origin + offset, block, size)


def _check_apart(file: File, found: Mapping[str, Quantised]) -> None:
    end = 0
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start < end:
            raise ValueError(f"{file.path} is corrupted: {shown(name)} overlaps another tensor")
        end = tensor.start + tensor.size // tensor.block * tensor.size_of_block


def read_gguf_adapter(path: Path, base: Mapping[str, Any] | None = None) -> Adapter:
    """An adapter of llama.cpp, against a base with GGUF's names; s = alpha/rank, and 1 where alpha is 0."""
    tensors, settings = open_gguf(path)
    for name, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if settings.get(name) != wanted:
            raise ValueError(f"{path} is no LoRA adapter: {name} must be {wanted}, got {shown(settings.get(name))}")
    alpha = settings.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, int | float) or not abs(alpha) < 1e30:
        raise ValueError(f"{path}: adapter.lora.alpha must be a number, got {shown(alpha)}")
    read = grammar.Read()
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf in ("lora_a", "lora_b") and module.endswith(".weight"):
            read.modules.setdefault(module.removesuffix(".weight"), {})[leaf[-1].upper()] = tensor
        else:
            read.note("ignored", name, "it is neither lora_a nor lora_b, and llama.cpp leaves it out", "none")
    for module, leaves in read.modules.items():
        if module == "token_embd" and {"A", "B"} <= set(leaves) and len(leaves["A"].shape) == 2:
            leaves |= {"EA": Turned(leaves.pop("A")), "EB": leaves.pop("B")}
    mine = None if base is None else Base({name: tuple(t.shape) for name, t in base.items()}, "gguf")
    rule = grammar.Settings(1, 1.0, by_rank=lambda _, rank: alpha / rank if alpha else 1.0)
    updates = Assembly(read, rule, mine).run()
    held = read.leaves(rule, settings)
    return Adapter("gguf", updates, Order("float32"), tuple(read.findings), settings, tensors.files, held)
