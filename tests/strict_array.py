r"""A stand-in for CuPy that needs no device: it refuses what CuPy refuses, and counts what costs.

`StrictArray` wraps a NumPy array and computes with NumPy, so results can be compared bit for bit. `strict` is the
module around it; `sys.modules["cupy"] = strict` is all that a test must do to compute on "gpu". What it imitates was
read in the source of CuPy 14.2, and `test_strict_array.py` holds a table that runs on the real one as well.

What it cannot show: the rounding of kernels and of cuBLAS, the order of atomic additions, memory, and time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from autograd.tracer import isbox

# The names of CuPy that lora_np may use: all of them, and no others. One that is not here raises AttributeError.
# The last set is what autograd asks of an operand of a plain operator.
FUNCTIONS = frozenset(
    ("absolute", "copyto", "divide", "exp", "isfinite", "log", "maximum", "minimum", "sqrt", "tanh", "where")
)
OPERATORS = frozenset(("add", "greater", "multiply", "subtract"))
ELEMENTWISE = FUNCTIONS | OPERATORS
CREATION = frozenset(("empty", "empty_like", "full", "ones", "ones_like", "zeros", "zeros_like", "arange", "asarray"))
OTHERS = frozenset(("ascontiguousarray", "concatenate", "matmul", "take_along_axis", "transpose", "triu", "vdot"))
WITHOUT_LAUNCH = frozenset(
    ("asnumpy", "cuda", "finfo", "float64", "fuse", "get_default_memory_pool", "is_available", "ndarray")
)
FOR_AUTOGRAD = frozenset(("iscomplexobj", "ndim", "result_type", "shape", "sum"))
ALLOWED = ELEMENTWISE | CREATION | OTHERS | WITHOUT_LAUNCH | FOR_AUTOGRAD

SCALARS = (bool, int, float, np.generic)
IMPLICIT = "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array"


@dataclass
class Counts:
    """h2d, d2h: copies to the device and back; index_copies: hidden ones, of an index or a value on the host."""

    h2d: int = 0
    d2h: int = 0
    index_copies: int = 0
    launches: int = 0


_counts = [Counts()]
_fusing = [False]
_written: list[StrictArray] = []  # by the chain that is being fused
names_used: set[str] = set()


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """The counts of what happens in the block, also counted by the blocks around it."""
    counts = Counts()
    _counts.append(counts)
    try:
        yield counts
    finally:
        _counts.pop()


def _count(**events: int) -> None:
    if _fusing[0] and any(events.get(name) for name in ("h2d", "d2h", "index_copies")):
        raise TypeError("Cannot convert to Python scalar in cupy.fuse")
    for counts in _counts:
        for name, n in events.items():
            if not (_fusing[0] and name == "launches"):
                setattr(counts, name, getattr(counts, name) + n)


class OutOfMemoryError(MemoryError):
    """As `cupy.cuda.memory.OutOfMemoryError`."""


class StrictArray:
    """An array on a device that is not there."""

    __slots__ = ("_a",)
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, a: Any) -> None:
        self._a = np.asarray(a)
        if strict.room is not None and self._a.base is None and self._a.nbytes > strict.room:
            raise OutOfMemoryError(f"Out of memory allocating {self._a.nbytes:,} bytes (allocated so far: 512 bytes).")

    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    nbytes = property(lambda self: self._a.nbytes)
    T = property(lambda self: StrictArray(self._a.T))

    def __len__(self) -> int:
        return len(self._a)

    # ------------------------------------------------------------------------------- the way back to the host

    def get(self) -> Any:
        _count(d2h=1)
        return self._a.copy()

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return self.get().__index__()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(IMPLICIT)

    # ------------------------------------------------------------------------------------------------- shapes

    def reshape(self, *shape: Any, order: str = "C") -> StrictArray:
        if order is None:
            raise TypeError("object of type 'NoneType' has no len()")
        _refuse_in_fusion("reshape")
        new = self._a.reshape(*shape, order=order)
        _count(launches=int(new.size > 0 and not np.shares_memory(new, self._a)))
        return StrictArray(new)

    def swapaxes(self, one: int, other: int) -> StrictArray:
        return StrictArray(self._a.swapaxes(one, other))

    def transpose(self, *axes: Any) -> StrictArray:
        return StrictArray(self._a.transpose(*axes))

    def view(self, dtype: Any = None) -> StrictArray:
        if dtype is np.ndarray:
            raise TypeError("Cannot construct a dtype from an array")
        return StrictArray(self._a.view() if dtype is None else self._a.view(dtype))

    def copy(self) -> StrictArray:
        return _launched(self._a.copy())

    def astype(self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True) -> Any:
        return self if not copy and self.dtype == dtype else _launched(self._a.astype(dtype))

    # --------------------------------------------------------------------------------------------- reductions

    def _reduced(self, name: str, axis: Any, out: Any, keepdims: bool, **more: Any) -> StrictArray:
        _refuse_in_fusion(name)
        if out is not None:
            raise NotImplementedError("no operation reduces into an array: allow it when one does")
        with np.errstate(all="ignore"):
            return _launched(getattr(self._a, name)(axis=axis, keepdims=keepdims, **more))

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> StrictArray:
        return self._reduced("sum", axis, out, keepdims, dtype=dtype)

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> StrictArray:
        return self._reduced("mean", axis, out, keepdims, dtype=dtype)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> StrictArray:
        return self._reduced("max", axis, out, keepdims)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> StrictArray:
        return self._reduced("min", axis, out, keepdims)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> StrictArray:
        return self._reduced("all", axis, out, keepdims)

    def argmax(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> StrictArray:
        return self._reduced("argmax", axis, out, keepdims)

    # ----------------------------------------------------------------------------------------------- indexing

    def __getitem__(self, key: Any) -> StrictArray:
        _refuse_in_fusion("an index")
        found = self._a[self._index(key)]
        _count(launches=int(_is_advanced(key)))
        return StrictArray(found)

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse_in_fusion("an index")
        index = self._index(key)
        if isinstance(value, np.ndarray | list):
            if not _is_advanced(key):
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            _count(index_copies=1)
        elif not _is_advanced(key) and isinstance(value, StrictArray) and _same_place(self._a[index], value._a):
            return  # what is left of `x[a:b] += y`
        _count(launches=1)
        self._a[index] = value._a if isinstance(value, StrictArray) else value

    def _index(self, key: Any) -> Any:
        """The index on the raw array: arrays of the host are copied and counted, and what is out of range wraps."""
        parts, axis = [], 0
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, np.ndarray | list):
                _count(index_copies=1)
            raw = part._a if isinstance(part, StrictArray) else np.asarray(part) if isinstance(part, list) else part
            is_mask = isinstance(raw, np.ndarray) and raw.dtype.kind == "b"
            if is_mask:
                _count(d2h=1)  # how many are true
            elif isinstance(raw, np.ndarray):
                raw = raw % self.shape[axis]
            parts.append(raw)
            axis += raw.ndim if is_mask else int(part is not None)
        return tuple(parts) if isinstance(key, tuple) else parts[0]

    # --------------------------------------------------------------------------------- what NumPy hands over

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **settings: Any) -> Any:
        if method == "at" and not isinstance(inputs[1], tuple | slice | type(None)):
            return strict.add.at(*inputs) if ufunc is np.add else NotImplemented
        if method != "__call__" or any(isbox(x) for x in inputs):
            return NotImplemented
        if out is not None:
            (settings["out"],) = out
        return getattr(strict, ufunc.__name__)(*inputs, **settings)

    def __array_function__(self, function: Any, types: Any, arguments: Any, settings: Any) -> Any:
        name = function.__name__
        if name not in ALLOWED or any(kind is not StrictArray for kind in types):
            return NotImplemented
        return getattr(strict, name)(*arguments, **settings)


def _operator(name: str, *, swapped: bool = False, in_place: bool = False) -> Callable[[Any, Any], Any]:
    def operate(self: StrictArray, other: Any) -> Any:
        if isbox(other):
            return NotImplemented
        pair = (other, self) if swapped else (self, other)
        return _called(name, *pair, out=self) if in_place else _called(name, *pair)

    return operate


for _symbol, _name in (
    *(("add", "add"), ("sub", "subtract"), ("mul", "multiply"), ("truediv", "divide")),
    *(("pow", "power"), ("matmul", "matmul")),
):
    setattr(StrictArray, f"__{_symbol}__", _operator(_name))
    setattr(StrictArray, f"__r{_symbol}__", _operator(_name, swapped=True))
    setattr(StrictArray, f"__i{_symbol}__", _operator(_name, in_place=True))
for _symbol, _name in (
    ("eq", "equal"),
    ("ne", "not_equal"),
    ("gt", "greater"),
    ("ge", "greater_equal"),
    ("lt", "less"),
):
    setattr(StrictArray, f"__{_symbol}__", _operator(_name))
StrictArray.__neg__ = lambda self: _called("negative", self)  # type: ignore[attr-defined]
StrictArray.__abs__ = lambda self: _called("absolute", self)  # type: ignore[attr-defined]
StrictArray.__invert__ = lambda self: _called("invert", self)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------- functions


def _called(name: str, *arguments: Any, **settings: Any) -> Any:
    """An element-wise function or a product, of what is on the device and of plain numbers."""
    names_used.add(name)
    if not set(settings) <= {"out", "dtype", "where", "casting"} or ("where" in settings and name != "copyto"):
        raise TypeError(f"Wrong arguments {settings}")
    out = settings.get("out")
    if out is not None:
        if type(out) is not StrictArray:
            raise TypeError(f"Unsupported type {type(out)}")
        if _fusing[0]:
            _written.append(out)
    raw = [_raw(argument, name) for argument in arguments]
    if name == "where" and isinstance(raw[0], SCALARS):
        raise TypeError(f"Unsupported type {type(arguments[0])}")
    kept = {key: value if key == "dtype" or value is None else _raw(value, name) for key, value in settings.items()}
    if name == "matmul":
        _refuse_in_fusion(name)
        batched = max(array.ndim for array in raw) > 2
        _count(launches=batched * sum(not array.flags.c_contiguous for array in raw))  # it makes them contiguous
        if out is not None and not out._a.flags.c_contiguous:
            _count(launches=1)
    _count(launches=1)
    with np.errstate(all="ignore"):
        result = getattr(np, name)(*raw, **kept)
    return out if out is not None else None if result is None else StrictArray(result)


def _raw(value: Any, name: str = "") -> Any:
    if type(value) is StrictArray:
        return value._a
    compares_number = (
        name in ("equal", "not_equal", "greater", "greater_equal", "less") and getattr(value, "ndim", 1) == 0
    )
    if isinstance(value, SCALARS) or compares_number:
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def _launched(array: Any) -> StrictArray:
    _count(launches=1)
    return StrictArray(array)


def _is_advanced(key: Any) -> bool:
    return any(
        isinstance(part, StrictArray | np.ndarray | list) for part in (key if isinstance(key, tuple) else (key,))
    )


def _same_place(one: Any, other: Any) -> bool:
    where = [(a.__array_interface__["data"][0], a.shape, a.strides) for a in (one, other)]
    return where[0] == where[1]


def _refuse_in_fusion(what: str) -> None:
    if _fusing[0]:
        raise TypeError(f"{what} in a chain of element-wise operations")


class _Ufunc:
    """An element-wise function with, for `add`, its `at`."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return _called(self.__name__, *arguments, **settings)

    def at(self, target: StrictArray, index: Any, values: Any) -> None:
        if type(target) is not StrictArray or self.__name__ != "add" or target.dtype.kind != "f":
            raise TypeError(f"`{self.__name__}.at` of {type(target)} is not supported")
        raw, values = _raw(target), _raw(values)
        _count(launches=1)
        np.add.at(raw, target._index(index), values)


class StrictModule:
    """What `import cupy` gives; `room` is the largest array that can be had, in bytes."""

    __version__ = "14.2.0"
    float64, finfo = np.float64, staticmethod(np.finfo)
    ndarray = StrictArray
    room: int | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in ALLOWED:
            raise AttributeError(f"module 'cupy' may not be used for {name!r}: it is not in the list of allowed names")
        names_used.add(name)
        return _Ufunc(name) if name in ELEMENTWISE else getattr(StrictModule, f"_{name}").__get__(self)

    def __getattribute__(self, name: str) -> Any:
        if name in WITHOUT_LAUNCH:
            names_used.add(name)
        return object.__getattribute__(self, name)

    cuda = SimpleNamespace(
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(memGetInfo=lambda: (strict.room or 0, 8_000_000_000)),
    )

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def get_default_memory_pool() -> Any:
        return SimpleNamespace(free_bytes=lambda: 0)

    @staticmethod
    def asnumpy(x: Any) -> Any:
        return x.get() if type(x) is StrictArray else np.asarray(x)

    @staticmethod
    def fuse(*, kernel_name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """One launch for the whole chain; every result has the shape of all arguments together, and so has every
        argument that is written into."""
        assert kernel_name.isidentifier()

        def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
            def kernel(*arguments: Any) -> Any:
                arrays = [x for x in arguments if type(x) is StrictArray]
                for x in arguments:
                    if x is not None:
                        _raw(x)
                _count(launches=1)
                _fusing[0] = True
                _written.clear()
                try:
                    found = body(*arguments)
                finally:
                    _fusing[0] = False
                shape = np.broadcast_shapes(*(x.shape for x in arrays))
                for out in _written:
                    if any(out is x for x in arrays) and out.shape != shape:
                        raise ValueError("non-broadcastable output operand")
                if found is None:
                    return None
                outputs = found if isinstance(found, tuple) else (found,)
                whole = [StrictArray(np.array(np.broadcast_to(x._a, shape))) for x in outputs]
                return tuple(whole) if isinstance(found, tuple) else whole[0]

            return kernel

        return decorate

    # ----------------------------------------------------------------------------------------------- creation

    def _asarray(self, x: Any, dtype: Any = None) -> StrictArray:
        if type(x) is StrictArray:
            return x if dtype is None else x.astype(dtype, copy=False)
        _count(h2d=1)
        return StrictArray(np.array(x, dtype))

    def _ascontiguousarray(self, x: Any, dtype: Any = None) -> StrictArray:
        return x if _raw(x).flags.c_contiguous else _launched(np.ascontiguousarray(x._a, dtype))

    def _empty(self, shape: Any, dtype: Any = float) -> StrictArray:
        return StrictArray(np.full(shape, 123, dtype))  # whoever reads it before writing it is wrong

    def _empty_like(self, x: Any, dtype: Any = None) -> StrictArray:
        return StrictArray(np.full_like(_raw(x), 123, dtype))

    def _zeros(self, shape: Any, dtype: Any = float) -> StrictArray:
        return _launched(np.zeros(shape, dtype))

    def _ones(self, shape: Any, dtype: Any = float) -> StrictArray:
        return _launched(np.ones(shape, dtype))

    def _zeros_like(self, x: Any, dtype: Any = None) -> StrictArray:
        return _launched(np.zeros_like(_raw(x), dtype))

    def _ones_like(self, x: Any, dtype: Any = None) -> StrictArray:
        return _launched(np.ones_like(_raw(x), dtype))

    def _full(self, shape: Any, value: Any, dtype: Any = None) -> StrictArray:
        return _launched(np.full(shape, _raw(value), dtype))

    def _arange(self, *numbers: Any, dtype: Any = None) -> StrictArray:
        return _launched(np.arange(*numbers, dtype=dtype))

    # ------------------------------------------------------------------------------------------------- others

    def _sum(self, x: Any, **settings: Any) -> StrictArray:
        return x.sum(**settings)

    def _shape(self, x: Any) -> Any:
        return x.shape

    def _ndim(self, x: Any) -> int:
        return x.ndim

    def _result_type(self, *x: Any) -> Any:
        return np.result_type(*map(_raw, x))

    def _iscomplexobj(self, x: Any) -> bool:
        return x.dtype.kind == "c"

    def _matmul(self, *arguments: Any, **settings: Any) -> Any:
        return _called("matmul", *arguments, **settings)

    def _concatenate(self, arrays: Any, axis: int = 0) -> StrictArray:
        return _launched(np.concatenate([_raw(array) for array in arrays], axis))

    def _transpose(self, x: Any, axes: Any = None) -> StrictArray:
        return x.transpose(axes)

    def _triu(self, x: Any, k: int = 0) -> StrictArray:
        return _launched(np.triu(_raw(x), k))

    def _vdot(self, x: Any, y: Any) -> StrictArray:
        return _launched(np.asarray(np.vdot(_raw(x), _raw(y))))

    def _take_along_axis(self, x: Any, indices: Any, axis: int) -> StrictArray:
        wrapped = _raw(indices) % x.shape[axis]
        _count(launches=x.ndim - 1)  # an arange for every other axis
        return _launched(np.take_along_axis(_raw(x), wrapped, axis))


strict: Any = StrictModule()


def real_cupy() -> Any:
    """CuPy, where there is a device; anywhere else the test is skipped."""
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("CuPy finds no CUDA device")
    return cupy
