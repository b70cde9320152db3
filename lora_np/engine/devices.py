r"""Where arrays live: "cpu", in NumPy, or "gpu", in CuPy; and the way from one to the other.

    model = to_device(model, "gpu")    # the one line to add; adapting, training, generating, merging read as before

Two rules. Nothing is copied in secret: arrays that meet while they live in different places raise TypeError, and only
`to_device`, `to_host`, a batch on its way into training and a prompt on its way into generation are moved. And nothing
waits without need: what a device has computed stays there as an array until somebody asks for the number.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np

from .arrays import Array, array_module, is_array, on_device, register

Device = Literal["cpu", "gpu"]
Thing = TypeVar("Thing")

OLDEST = 14  # the first CuPy with NumPy 2's rules: before it, a NumPy number could turn float32 into float64


class DeviceError(OSError):
    """There is no device to compute on."""


class DeviceMemoryError(MemoryError):
    """The memory of the device is used up; the message says what was asked for and what is free."""


def to_device(thing: Thing, device: str) -> Thing:
    """The same model, state, batch, dict or array on "gpu" or "cpu"; what is there already is shared, not copied.

    Raises ValueError for another device, ImportError without CuPy or with one that is too old, DeviceError where CuPy
    finds no device, and DeviceMemoryError where the device has no room.

    Nothing changes its shape, (vocab, d_model) stays (vocab, d_model).

    >>> import numpy as np
    >>> from lora_np import to_device
    >>> arrays = {"A": np.ones((2, 8))}
    >>> to_device(arrays, "cpu")["A"] is arrays["A"]
    True
    >>> to_device(arrays, "tpu")
    Traceback (most recent call last):
    ValueError: device must be 'cpu' or 'gpu', got 'tpu'
    """
    xp = library(device)
    with explained_memory():
        return _moved(thing, to_host if xp is np else xp.asarray, {})


def to_host(x: Array) -> Array:
    """A NumPy array of the same numbers; x itself when it is one."""
    return array_module(x).asnumpy(x) if on_device(x) else x


def device_of(x: Array) -> Device:
    """Where one array lives."""
    return "gpu" if on_device(x) else "cpu"


def library(device: str) -> Any:
    """NumPy for "cpu"; for "gpu" CuPy, once it has been found to work and been introduced to autograd."""
    if device == "cpu":
        return np
    if device != "gpu":
        raise ValueError(f"device must be 'cpu' or 'gpu', got {device!r}")
    try:
        import cupy
    except ImportError as error:
        why = str(error).strip().partition("\n")[0]
        raise ImportError(f'device "gpu" needs CuPy ({why}): pip install "lora_np[gpu]"') from None
    if int(cupy.__version__.partition(".")[0]) < OLDEST:
        raise ImportError(
            f'device "gpu" needs CuPy {OLDEST} or newer, got {cupy.__version__}: pip install --upgrade "lora_np[gpu]"'
        )
    if not cupy.is_available():
        raise DeviceError(
            f"CuPy {cupy.__version__} finds no CUDA device: see whether nvidia-smi lists one, or compute on the cpu"
        )
    register(cupy.ndarray, cupy)
    return cupy


def check_together(**arrays: Any) -> None:
    """Raise TypeError unless all these arrays live in one place; None and what is no array lives anywhere."""
    places = {name: device_of(array) for name, array in arrays.items() if is_array(array)}
    if len(set(places.values())) > 1:
        found = ", ".join(f"{name} on the {place}" for name, place in places.items())
        raise TypeError(f"what is computed together must live in one place, got {found}: move it with to_device")


@contextmanager
def explained_memory() -> Iterator[None]:
    """Turn CuPy's error of memory into one that says what can be done about it."""
    try:
        yield
    except MemoryError as error:
        cupy = sys.modules.get("cupy")
        if cupy is None or not isinstance(error, cupy.cuda.memory.OutOfMemoryError):
            raise
        raise DeviceMemoryError(_out_of_memory(cupy, str(error))) from None


def _out_of_memory(cupy: Any, text: str) -> str:
    asked = re.search(r"allocating ([\d,]+) bytes", text)
    free, total = cupy.cuda.runtime.memGetInfo()
    free += cupy.get_default_memory_pool().free_bytes()  # kept for reuse, though perhaps in pieces
    wanted = f"{int(asked[1].replace(',', '')) / 1e6:,.1f} MB more" if asked else "more"
    return (
        f"the device has no room: {wanted} were asked for, {free / 1e6:,.1f} of {total / 1e6:,.1f} MB are free; "
        "use a smaller batch or more micro-batches, or continue on the cpu"
    )


def _moved(node: Any, move: Callable[[Array], Array], done: dict[int, Array]) -> Any:
    """`node` with every array in it moved, once each, so that what was shared still is; other parts are kept."""
    if is_array(node):
        if id(node) not in done:
            done[id(node)] = move(node)
        return done[id(node)]
    if isinstance(node, dict):
        return {name: _moved(child, move, done) for name, child in node.items()}
    if isinstance(node, tuple):
        return tuple(_moved(child, move, done) for child in node)
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    old = {field.name: getattr(node, field.name) for field in dataclasses.fields(node) if field.init}
    new = {name: _moved(child, move, done) for name, child in old.items()}
    changed = {name: child for name, child in new.items() if child is not old[name]}
    return dataclasses.replace(node, **changed) if changed else node
