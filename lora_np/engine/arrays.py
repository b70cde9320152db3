r"""The one door to NumPy and its look-alikes: which library an array belongs to, and how to walk it in blocks.

The bodies of `lora_np.operations` never name a library. They ask `array_module(x)` and write `xp.exp(...)`, so
the same line runs on every array type that has been introduced with `register`. CuPy's introduces itself when it is
first met; `lora_np.engine.devices` moves things to and fro.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from autograd.extend import Box, VSpace
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.tracer import getval

# An array of any registered library, or an autograd box around one.
Array = npt.NDArray[Any]

FEW_ROWS = 32  # of which the largest numbers are found at once: three calls would take longer than they save

_MODULES: dict[type, Any] = {np.ndarray: np}


def array_module(x: Array) -> Any:
    """The library whose functions take `x`, or what is inside a box: `numpy`, unless introduced with `register`."""
    if type(x) is np.ndarray:
        return np
    kind = type(getval(x))
    if kind not in _MODULES and kind.__module__.partition(".")[0] == "cupy":
        register(kind, sys.modules["cupy"])
    return _MODULES.get(kind, np)


def on_device(x: Array) -> bool:
    """True for an array that does not live in the memory of the host."""
    return array_module(x) is not np


def is_array(value: object) -> bool:
    """True for an array of any library and for an autograd box around one; False for settings and modules."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def register(array_type: type, module: ModuleType | Any) -> None:
    """Introduce a foreign array type to `array_module` and to autograd. Doing so twice changes nothing."""
    if array_type in _MODULES:
        return
    _MODULES[array_type] = module
    ArrayBox.register(array_type)
    VSpace.register(array_type, lambda value: ForeignVSpace(value, module))


class ForeignVSpace(VSpace):
    """What autograd must know of a foreign array: its shape, its zero and its one.

    autograd's own `ArrayVSpace` calls `np.asarray(value)`, which a device array rightly refuses.
    """

    def __init__(self, value: Array, module: Any) -> None:
        self.shape, self.dtype, self.module = value.shape, value.dtype, module

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def zeros(self) -> Array:
        return self.module.zeros(self.shape, self.dtype)

    def ones(self) -> Array:
        return self.module.ones(self.shape, self.dtype)


def blank(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array of this shape that holds one number, a zero seen everywhere: it can be counted, but not written."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def is_blank(array: Array) -> bool:
    """Is this one number seen everywhere, as `blank` makes it?"""
    return isinstance(array, np.ndarray) and array.size > 1 and not any(array.strides)


def normal(rng: np.random.Generator | None, shape: tuple[int, ...], scale: float, like: Array) -> Array:
    """N(0, scale²), drawn on the host, in the precision and the place of `like`; without rng only its shape."""
    if rng is None:
        return blank(shape, like.dtype)
    return array_module(like).asarray((rng.standard_normal(shape) * scale).astype(like.dtype))


def rows(x: Array) -> Array:
    """`(..., d)` seen as `(n, d)`, one row an example; no copy when x is contiguous."""
    return x.reshape(-1, x.shape[-1])


def largest(x: Array) -> Array:
    """The largest number along the last axis, which stays: (..., 1).

    NumPy finds *where* it stands in a third of the time in which it finds the number itself, while rows are short.
    """
    n = x.shape[-1]
    if type(x) is not np.ndarray or x.size < FEW_ROWS * n or not x.flags.c_contiguous:
        return x.max(axis=-1, keepdims=True)
    flat = x.reshape(-1)
    places = flat.reshape(-1, n).argmax(axis=1)
    places += np.arange(0, flat.size, n)
    return flat.take(places).reshape(*x.shape[:-1], 1)


def row_blocks(n: int, width: int, elements: int = 1 << 17, xp: Any = np) -> list[slice]:
    """Cut `n` rows of `width` numbers into slices of about `elements` numbers, so that one stays in cache.

    2^17 float32 numbers are 0.5 MiB: several of them fit a 2 MiB second-level cache, and a call that long is
    still worth handing to a thread. A device has no such cache, and every call costs a launch: one slice holds all.
    """
    size = max(1, elements // max(1, width) if xp is np else n)
    if 0 < n <= size:  # so it is for one token, where every microsecond is one in a hundred
        return [slice(0, n)]
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def fused(chain: Callable[..., Any]) -> Callable[..., Any]:
    """`chain(xp, *arguments)`, nothing but element-wise operations, as a function of the arguments.

    Where the library can (`cupy.fuse`), the chain becomes one kernel; elsewhere it is called as it stands. The first
    argument is an array; others may be arrays, of shapes that broadcast, Python numbers, or None. Of two numbers
    nothing may be computed inside: it would be a float64, and everything it meets as well. What the chain gives back is
    new; it may also write into arguments (`out=`, `+=`) that have the shape of all of them together.
    """
    kernels: dict[Any, Callable[..., Any]] = {}

    @functools.wraps(chain)
    def call(*arguments: Any) -> Any:
        if type(arguments[0]) is np.ndarray:
            return chain(np, *arguments)
        xp = array_module(arguments[0])
        if xp not in kernels:
            body = functools.partial(chain, xp)
            kernels[xp] = xp.fuse(kernel_name=chain.__name__)(body) if hasattr(xp, "fuse") else body
        return kernels[xp](*arguments)

    return call


def is_box(value: object) -> bool:
    """True for an autograd box: a number that is being differentiated."""
    return type(value) in Box.types
