r"""Foreign files for tests, written byte by byte: no PyTorch, no PEFT and no real model is needed to make one."""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_np.formats.tensors import DTYPES
from lora_np.formats.writing import CODES, write_tensors

Arrays = Mapping[str, np.ndarray]


def numbers(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def refused(read: Callable[[], Any], *words: str) -> str:
    """It raises ValueError or OSError of one line, not too long, that holds all the words."""
    with pytest.raises((ValueError, OSError)) as found:
        read()
    line = str(found.value)
    assert line
    assert "\n" not in line
    assert len(line) < 600
    assert all(word in line for word in words), line
    return line


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    """A file of this header, which may be anything that JSON holds, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_file(path: Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file of that name, by the writer of the library; it has its own tests."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = {name: (CODES[a.dtype.name], a.shape) for name, a in arrays.items()}
    write_tensors(path.parent, layout, lambda name: [arrays[name]], stem=path.stem, metadata=metadata)
    return path


def write_peft(folder: Path, arrays: Arrays, prefix: str = "base_model.model.", **config: Any) -> Path:
    """A folder as PEFT saves it; the keys are given without their prefix."""
    write_file(folder / "adapter_model.safetensors", {prefix + name: a for name, a in arrays.items()})
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "int64": "LongStorage",
    "bfloat16": "BFloat16Storage", "bool": "BoolStorage", "uint8": "ByteStorage",
}  # fmt: skip


class Pickled:
    """Emits the pickle of what a checkpoint holds, protocol 2, with the opcodes that `torch.save` uses.

    arrays become torch._utils._rebuild_tensor_v2 of a storage of their own; `spell(value)` gives the opcodes of one.
    """

    def __init__(self, legacy: bool = False) -> None:
        self.storages: dict[str, np.ndarray] = {}
        self.legacy = legacy

    def dump(self, value: Any) -> bytes:
        return pickle.PROTO + b"\x02" + self.spell(value) + pickle.STOP

    def spell(self, value: Any) -> bytes:
        match value:
            case bytes():
                return value  # opcodes as they are
            case None | True | False:
                return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
            case int():
                raw = value.to_bytes(16, "little", signed=True)
                small = -(1 << 31) <= value < 1 << 31
                return pickle.BININT + struct.pack("<i", value) if small else pickle.LONG1 + b"\x10" + raw
            case float():
                return pickle.BINFLOAT + struct.pack(">d", value)
            case str():
                return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
            case tuple():
                return pickle.MARK + b"".join(map(self.spell, value)) + pickle.TUPLE
            case list():
                return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(self.spell, value)) + pickle.APPENDS
            case dict():
                pairs = b"".join(self.spell(part) for pair in value.items() for part in pair)
                return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS
            case np.ndarray():
                return self.tensor(value)
        raise TypeError(type(value))

    def tensor(self, array: np.ndarray) -> bytes:
        """Of a Fortran-ordered matrix, the strides of one; of all others, those of C order."""
        turned = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
        key = str(len(self.storages))
        self.storages[key] = np.ascontiguousarray(array.T if turned else array).reshape(-1)
        strides = [math.prod(array.shape[k + 1 :]) for k in range(array.ndim)]
        strides = [1, array.shape[0]] if turned else strides
        storage = self.reference(key, STORAGES[array.dtype.name], array.size)
        ordered = self.named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
        arguments = (storage, 0, tuple(array.shape), tuple(strides), False, ordered)
        return self.named("torch._utils", "_rebuild_tensor_v2") + self.spell(arguments) + pickle.REDUCE

    def reference(self, key: str, storage: str, count: int) -> bytes:
        about = ("storage", self.named("torch", storage), key, "cpu", count)
        return self.spell((*about, None) if self.legacy else about) + pickle.BINPERSID

    @staticmethod
    def named(module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def archive_bytes(value: Any, compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """A checkpoint as PyTorch writes it since 2020; `more` replaces or adds members of the archive."""
    pickled, buffer = Pickled(), io.BytesIO()
    members = {"data.pkl": pickled.dump(value), "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{key}": array.tobytes() for key, array in pickled.storages.items()}
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in {**members, **{key.replace("__", "/"): data for key, data in more.items()}}.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def legacy_bytes(value: Any) -> bytes:
    """A checkpoint as PyTorch wrote it before 2020."""
    pickled = Pickled(legacy=True)
    body = pickled.dump(value)
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    heads = [pickled.dump(head) for head in (0x1950A86A20F9469CFC6C, 1001, about)]
    keys = pickled.dump(list(pickled.storages))
    data = b"".join(struct.pack("<q", a.size) + a.tobytes() for a in pickled.storages.values())
    return b"".join(heads) + body + keys + data


def gguf_bytes(arrays: Arrays, settings: Mapping[str, Any], align: int = 32) -> bytes:
    """A GGUF file of float32 or float16; settings are texts, whole numbers, numbers, truths or lists of one kind."""
    kinds = {"float32": 0, "float16": 1}

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def value(one: Any) -> bytes:
        match one:
            case bool():
                return struct.pack("<I?", 7, one)
            case str():
                return struct.pack("<I", 8) + text(one)
            case int():
                return struct.pack("<II", 4, one)
            case float():
                return struct.pack("<If", 6, one)
            case [int(), *_]:
                return struct.pack("<IIQ", 9, 5, len(one)) + struct.pack(f"<{len(one)}i", *one)
            case list():
                return struct.pack("<IIQ", 9, 8, len(one)) + b"".join(map(text, one))
        raise TypeError(type(one))

    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(settings))
    head += b"".join(text(name) + value(one) for name, one in settings.items())
    data = b""
    for name, array in arrays.items():
        data += b"\0" * (-len(data) % align)
        head += text(name) + struct.pack("<I", array.ndim)
        head += b"".join(struct.pack("<Q", n) for n in reversed(array.shape))
        head += struct.pack("<IQ", kinds[array.dtype.name], len(data))
        data += array.tobytes()
    return head + b"\0" * (-len(head) % align) + data


def itemsize(code: str) -> int:
    return DTYPES[code][1]
