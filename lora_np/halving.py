r"""A frozen model whose matrices are held in 16 bits: half the memory; computed as `lora_np.engine.halves` says.

    model = in_16_bits(model, "bfloat16")     or, without ever holding it in float32: load_model(path, held="bfloat16")

Every matrix of the plain model and its tables become a `HalfArray`; vectors (gains, shifts, biases), a hundredth of a
percent of a large model, stay as they are, and so does a head of classes, which is trained. Its outputs are those of
the float32 model with the same rounded matrices: see `rounded`.
"""

from __future__ import annotations

from typing import TypeVar

from .engine.arrays import Array
from .engine.halves import HALVES, half, is_half
from .names import nearest_first
from .parameters import parameters, with_parameters

Model = TypeVar("Model")

TRAINED = "head."  # of a classifier; the head of words is `head.W`


def check_kind(kind: str | None) -> None:
    """Raise ValueError for a type in which a base cannot be held."""
    if kind is not None and kind not in HALVES:
        raise ValueError(f"a base is held in float32 or in {nearest_first(kind, HALVES)}; got {kind!r}")


def is_held(name: str, axes: int) -> bool:
    """Is this array one of those that are held in 16 bits?"""
    return axes == 2 and (name == "head.W" or not name.startswith(TRAINED))


def in_16_bits(model: Model, kind: str) -> Model:
    """The model with its matrices in float16 or bfloat16; raises ValueError, naming the array, where one overflows."""
    check_kind(kind)
    return with_parameters(model, {n: held_as(n, a, kind) for n, a in parameters(model).items() if is_held(n, a.ndim)})


def held_as(name: str, array: Array, kind: str) -> Array:
    """One array in 16 bits."""
    try:
        return half(array, kind)  # type: ignore[return-value]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def rounded(model: Model) -> Model:
    """The same model with every matrix that is held in 16 bits as the ordinary array of its numbers."""
    held = {name: array for name, array in parameters(model).items() if is_half(array)}
    return with_parameters(model, {name: array[...] for name, array in held.items()})
