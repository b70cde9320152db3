r"""A wrapper stands where another module did, and calls it `base`; what else it holds is new, in fields of its own.

That is the one rule by which every method of adaptation puts something beside a frozen model. What follows from it,
for all of them, is here: which wrappers a model carries, the model below them, and the model they merge to.

    wrapper.merged()        a module of base's kind that computes the same; a wrapper without this method cannot merge
    wrapper.expected(rows)  what rows of the merged array should be, and how far rounding may move them: `Expected`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy.typing as npt

from .engine.arrays import Array, is_array
from .parameters import walk

Model = TypeVar("Model")


class Expected(NamedTuple):
    """Rows of a merged array as they should be, in float64; see equation (V1) of `lora_np.certificate`.

    value   what they are in exact arithmetic
    update  value − W0: what merging adds
    terms   Σ|terms| of the update, of which each has `roundings` roundings in `precision` behind it
    lost    how often η, half the smallest number of that precision, underflow may add to it
    """

    value: Array
    update: Array
    terms: Array
    roundings: int
    precision: npt.DTypeLike
    lost: Array | float


def is_wrapper(node: Any) -> bool:
    """Does this module stand around another?"""
    return dataclasses.is_dataclass(node) and hasattr(node, "base")


def wrappers(model: Any) -> dict[str, Any]:
    """The wrappers of a model by dotted path, one that stands around another before it."""
    return {path: node for path, node in walk(model) if is_wrapper(node)}


def frozen_parts(model: Any) -> dict[str, Any]:
    """The modules of the model itself by dotted path: those below a `base`, and not what wrappers added beside it."""
    added: tuple[str, ...] = ()
    found = {}
    for path, node in walk(model):
        if path.startswith(added):
            continue
        found[path] = node
        if is_wrapper(node):
            names = [field.name for field in dataclasses.fields(node) if field.name != "base"]
            added += tuple(f"{path}.{name}" if path else name for name in names)
    return found


def unwrapped(model: Model) -> Model:
    """The frozen model below every wrapper, sharing its arrays."""
    return _rebuilt(model, lambda wrapper, base: base)


def merge(model: Model) -> Model:
    r"""The model with every wrapper that can be merged replaced by what it merges to; `model` is left as it was.

    For LoRA that is $W = W_0 + s\,B A$ in place of every adapted map. Merged and adapted outputs are equal up to
    rounding: see `rounding_bound`. Raises ValueError when there is nothing to merge, which is also what merging twice
    meets, and for a model that carries nothing but what cannot be merged.

    >>> import numpy as np
    >>> from lora_np import LoraConfig, TransformerConfig, adapt, initialize, merge
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> base = initialize(config, np.random.default_rng(0))
    >>> model = adapt(base, LoraConfig(rank=2, targets="qv"), np.random.default_rng(1))
    >>> type(model.blocks[0].attention.query).__name__, type(merge(model).blocks[0].attention.query).__name__
    ('LoraLinear', 'Linear')
    >>> merge(base)
    Traceback (most recent call last):
    ValueError: nothing to merge: the model carries no adapter (is it merged already?)
    """
    found = wrappers(model)
    if not found:
        raise ValueError("nothing to merge: the model carries no adapter (is it merged already?)")
    if not any(hasattr(wrapper, "merged") for wrapper in found.values()):
        raise _unmergeable(found)
    return _rebuilt(model, _merged)


def merge_whole(model: Model) -> Model:
    """The plain model that this one merges to; raises ValueError, as `merge` does, and where anything would be left."""
    merged = merge(model)
    if left := wrappers(merged):
        raise _unmergeable(left)
    return merged


def can_be_merged(model: Any) -> bool:
    """Is there a plain model that computes the same? So it is for one that carries no wrapper."""
    return all(hasattr(wrapper, "merged") for wrapper in wrappers(model).values())


def _unmergeable(found: dict[str, Any]) -> ValueError:
    path, wrapper = next(iter(found.items()))
    return ValueError(
        f"{path} carries {type(wrapper).__name__}, which no plain module equals: it cannot be merged, so keep the "
        "adapter beside its base"
    )


def _merged(wrapper: Any, base: Any) -> Any:
    around = wrapper if base is wrapper.base else dataclasses.replace(wrapper, base=base)
    return around.merged() if hasattr(wrapper, "merged") else around


def _rebuilt(node: Any, of: Callable[[Any, Any], Any]) -> Any:
    """`node` with each wrapper replaced by of(wrapper, its base, rebuilt); parts that hold none are shared."""
    if is_wrapper(node):
        return of(node, _rebuilt(node.base, of))
    if isinstance(node, tuple):
        parts = tuple(_rebuilt(child, of) for child in node)
        return node if all(new is old for new, old in zip(parts, node, strict=True)) else parts
    if not dataclasses.is_dataclass(node) or is_array(node):
        return node
    old = {field.name: getattr(node, field.name) for field in dataclasses.fields(node) if field.init}
    changed = {name: new for name, child in old.items() if (new := _rebuilt(child, of)) is not child}
    return dataclasses.replace(node, **changed) if changed else node  # type: ignore[type-var]
