r"""A machine for the pickles of PyTorch's checkpoints: it makes tensors, texts, numbers and containers, nothing else.

A pickle is a program for a stack machine. Python's own `pickle` runs any function that the program names; here a
name that is not in the table below is an error before anything is made of it, so no code of the file's choosing can
run. Python's machine also allocates what a program asks for; this one holds at most a value a byte, and MAX_STEPS.

    allowed    collections.OrderedDict, torch.Size, torch._utils._rebuild_tensor_v2, _rebuild_tensor_v3,
               _rebuild_parameter, torch.FloatStorage and its likes, torch.float32 and its likes

Source: the opcodes are those of Python's `pickletools`; the functions are those that PyTorch's `torch.save` writes.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from .disk import shown

# What a storage or a type is called in a pickle -> what safetensors calls it.
STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "UntypedStorage": "U8",
}  # fmt: skip
TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
}  # fmt: skip
MAX_STEPS = 1 << 22  # opcodes; a tensor takes about forty


@dataclass(frozen=True)
class Name:
    """A function, class or type that the pickle names; `code` for a storage or a type."""

    path: str
    code: str = ""


@dataclass(frozen=True)
class Storage:
    """Numbers of one type that lie together in the archive under a key."""

    key: str
    code: str
    count: int


@dataclass(frozen=True)
class View:
    """A tensor: `shape` and `strides` over a storage, both counted in numbers of type `code`."""

    storage: Storage
    code: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Dict(dict[Any, Any]):
    """What collections.OrderedDict makes; the attributes that a state dict carries beside are left out."""


class Machine:
    """Runs the pickles that stand one after the other in `data`; `where` names the file in errors."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at, self.steps = data, where, 0, 0
        self.storages: dict[str, str] = {}  # key -> type of its numbers

    def load(self) -> Any:
        """The value of the next pickle; `at` then stands behind it."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        try:
            while (code := self.take(1)) != pickle.STOP:
                if code not in OPCODES:
                    raise ValueError(f"the opcode {code!r} at byte {self.at - 1} is not one that PyTorch writes")
                self.steps += 1
                if self.steps > MAX_STEPS:
                    raise ValueError(f"it has more than {MAX_STEPS} steps")
                OPCODES[code](self)
            return self.pop()
        except (ValueError, struct.error, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            raise ValueError(f"{self.where}: a pickle in it cannot be read: {error}") from None

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError("it ends in the middle")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, form: str) -> str:
        return self.take(self.number(form)).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise ValueError("it ends in the middle")
        return self.take(end + 1 - self.at)[:-1].decode("ascii")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("it takes more from its stack than there is")
        return self.stack.pop()

    def popped(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("it asks for a mark that it never made")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def top(self, kind: type) -> Any:
        value = self.pop()
        if not isinstance(value, kind):
            raise ValueError(f"it adds to a {type(value).__name__}")
        self.push(value)
        return value

    def remember(self, place: int) -> None:
        value = self.pop()
        self.push(value)
        self.memo[place] = value

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise ValueError(f"it recalls place {place}, where nothing is")
        self.push(self.memo[place])

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def update(self, values: list[Any]) -> None:
        if len(values) % 2 or not all(isinstance(key, str | int | float | bool | None) for key in values[::2]):
            raise ValueError("the keys of its dictionaries must be texts or numbers")
        self.top(dict).update(zip(values[::2], values[1::2], strict=True))

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("it names a function by what is no text")
        path = f"{module}.{name}"
        if path in CALLS:
            return self.push(Name(path))
        for prefix, codes in (("torch.", STORAGES), ("torch.storage.", STORAGES), ("torch.", TYPES)):
            if path.startswith(prefix) and path.removeprefix(prefix) in codes:
                return self.push(Name(path, codes[path.removeprefix(prefix)]))
        raise ValueError(f"it names {shown(path)}; only tensors are read, and nothing in a pickle is run")

    def call(self) -> None:
        function, arguments = self.popped(2)
        if not (isinstance(function, Name) and function.path in CALLS and isinstance(arguments, tuple)):
            raise ValueError("it calls what is no function that makes tensors")
        self.push(CALLS[function.path](arguments))

    def build(self) -> None:
        state = self.pop()
        if not (isinstance(state, dict) and set(state) <= {"_metadata"}):
            raise ValueError("it sets attributes, which only a state dict has")
        self.top(Dict)

    def persistent(self) -> None:
        match self.pop():
            case ("storage", Name(code=code), str(key), str(), int(count), *rest) if (
                code and rest in ([], [None]) and type(count) is int and 0 <= count < 1 << 63
            ):
                if self.storages.setdefault(key, code) != code:
                    raise ValueError(f"the storage {shown(key)} has two types")
                self.push(Storage(key, code, count))
            case found:
                raise ValueError(f"it refers to what is no storage of numbers, a {type(found).__name__}")

    def long(self, form: str) -> None:
        self.push(int.from_bytes(self.take(self.number(form)), "little", signed=True))


def _tensor(arguments: tuple[Any, ...]) -> View:
    """torch._utils._rebuild_tensor_v2 and _v3: the second gives the type beside an untyped storage."""
    storage, offset, shape, strides, *rest = (*arguments, None, None, None, None)[: max(4, len(arguments))]
    code = rest[2].code if len(rest) > 2 and isinstance(rest[2], Name) else getattr(storage, "code", "")
    whole = [offset, *(shape if isinstance(shape, tuple) else "x"), *(strides if isinstance(strides, tuple) else "x")]
    if not (isinstance(storage, Storage) and code and all(type(n) is int and 0 <= n < 1 << 63 for n in whole)):
        raise ValueError("it makes a tensor of what is no storage, shape and strides")
    if len(shape) != len(strides):
        raise ValueError(f"it makes a tensor of shape {shown(shape)} with strides {shown(strides)}")
    return View(storage, code, offset, shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> View:
    if not (arguments and isinstance(arguments[0], View)):
        raise ValueError("it makes a parameter of what is no tensor")
    return arguments[0]


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arguments[0]) if arguments and isinstance(arguments[0], tuple | list) else ()


CALLS: dict[str, Callable[[tuple[Any, ...]], Hashable | Dict]] = {
    "collections.OrderedDict": lambda _: Dict(),
    "torch.Size": _size,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}

OPCODES: dict[bytes, Callable[[Machine], object]] = {
    pickle.PROTO: lambda m: m.take(1),
    pickle.FRAME: lambda m: m.take(8),
    pickle.MARK: lambda m: m.marks.append(len(m.stack)),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.LONG1: lambda m: m.long("<B"),
    pickle.LONG4: lambda m: m.long("<I"),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.text("<B")),
    pickle.BINUNICODE: lambda m: m.push(m.text("<I")),
    pickle.BINUNICODE8: lambda m: m.push(m.text("<Q")),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.TUPLE: lambda m: m.push(tuple(m.since_mark())),
    pickle.TUPLE1: lambda m: m.push(m.popped(1)),
    pickle.TUPLE2: lambda m: m.push(m.popped(2)),
    pickle.TUPLE3: lambda m: m.push(m.popped(3)),
    pickle.APPEND: lambda m: m.extend([m.pop()]),
    pickle.APPENDS: lambda m: m.extend(m.since_mark()),
    pickle.SETITEM: lambda m: m.update(list(m.popped(2))),
    pickle.SETITEMS: lambda m: m.update(m.since_mark()),
    pickle.BINPUT: lambda m: m.remember(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.BINGET: lambda m: m.recall(m.number("<B")),
    pickle.LONG_BINGET: lambda m: m.recall(m.number("<I")),
    pickle.GLOBAL: lambda m: m.name(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.name(*m.popped(2)),
    pickle.REDUCE: lambda m: m.call(),
    pickle.BUILD: lambda m: m.build(),
    pickle.BINPERSID: lambda m: m.persistent(),
}
