r"""A model as a flat dict of arrays, and back.

A model is a tree of frozen dataclasses. Each array in it has a dotted path, the names of the fields that lead to it:
`blocks.0.attention.query.W`. The dict {path: array} is what `value_and_grad` differentiates, what AdamW steps, what
a safetensors file stores and what a gradient report names. **Freezing is selection**: what is not selected is never
differentiated. What a pattern matches is said in `lora_np.names`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from .engine.arrays import Array, is_array
from .names import matching

Arrays = dict[str, Array]
Model = TypeVar("Model")


def parameters(model: Any, *select: str) -> Arrays:
    r"""The arrays of `model` by dotted path, in the order of the fields; all of them, or those that `select` matches.

    Beside W (d_out, d_in), LoRA's are A (rank, d_in) and B (d_out, rank). Raises ValueError, with the nearest real
    names, when a pattern matches nothing.

    >>> import numpy as np
    >>> from lora_np import LoraConfig, TransformerConfig, adapt, initialize, parameters
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> base = initialize(config, np.random.default_rng(0))
    >>> model = adapt(base, LoraConfig(rank=2, targets="query"), np.random.default_rng(1))
    >>> for path, array in parameters(model, "*.A", "*.B").items():
    ...     print(path, array.shape)
    blocks.0.attention.query.A (2, 8)
    blocks.0.attention.query.B (8, 2)
    blocks.1.attention.query.A (2, 8)
    blocks.1.attention.query.B (8, 2)
    """
    arrays = {path: node for path, node in walk(model) if is_array(node)}
    if not select:
        return arrays
    chosen = set(matching(arrays, select))
    return {path: array for path, array in arrays.items() if path in chosen}


def with_parameters(model: Model, arrays: Mapping[str, Array]) -> Model:
    r"""The same model with the arrays at these paths replaced; `model` itself is left as it was.

    A matrix (d_out, d_in) gives way to one (d_out, d_in). Raises ValueError when a path leads nowhere or an array has
    another shape than the one it replaces.

    >>> import numpy as np
    >>> from lora_np import LoraConfig, TransformerConfig, adapt, initialize, with_parameters
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> base = initialize(config, np.random.default_rng(0))
    >>> model = adapt(base, LoraConfig(rank=2, targets="qv"), np.random.default_rng(1))
    >>> path = "blocks.0.attention.query.B"
    >>> moved = with_parameters(model, {path: np.ones((8, 2), np.float32)})
    >>> float(moved.blocks[0].attention.query.B.sum()), float(model.blocks[0].attention.query.B.sum())
    (16.0, 0.0)
    >>> with_parameters(model, {path: np.ones((2, 8))})
    Traceback (most recent call last):
    ValueError: blocks.0.attention.query.B has shape (8, 2), and cannot become (2, 8)
    """
    return _replaced(model, arrays, "", check_shape=True)


def with_modules(model: Model, modules: Mapping[str, Any]) -> Model:
    """The same model with whole modules at these dotted paths replaced; `model` itself is left as it was."""
    return _replaced(model, modules, "", check_shape=False)


def count(model: Any, *select: str) -> int:
    """How many numbers the selected arrays of a model hold, all of them without a selection; or those of a dict.

    An array (d_out, d_in) holds d_out · d_in. Raises ValueError, with the nearest real names, when a pattern matches
    nothing.

    >>> import numpy as np
    >>> from lora_np import TransformerConfig, count, initialize
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> model = initialize(config, np.random.default_rng(0))
    >>> count(model, "blocks.0.attention.query.*"), count({"A": np.ones((2, 8))})
    (72, 16)
    """
    arrays = model if isinstance(model, Mapping) else parameters(model, *select)
    return sum(int(array.size) for array in arrays.values())


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every module and every array below `node` with its dotted path, `node` itself (path '') first."""
    if dataclasses.is_dataclass(node) or isinstance(node, tuple) or is_array(node):
        yield path, node
    for name, child in _children(node):
        yield from walk(child, f"{path}.{name}" if path else name)


def outline(node: Any) -> str:
    r"""The tree of a model in words: the kind of each module, its settings, the shapes of its arrays.

    Blocks that are alike are said once.

    It is what `print(model)` shows:

        Transformer of 1,951,872 numbers, float32
          tokens             Embedding(W 256×192)
          blocks.0…3         Block
            attention        Attention(heads=6)
              query          Linear(W 192×192, b 192)
    """
    lines = list(_lines(node, "", 0))
    if len(lines) == 1:
        return lines[0][2]
    arrays = parameters(node)
    kinds = ", ".join(dict.fromkeys(str(getattr(array, "kind", array.dtype)) for array in arrays.values()))
    lines[0] = (0, "", f"{lines[0][2]} of {count(arrays):,} numbers{f', {kinds}' if kinds else ''}")
    width = max(2 * depth + len(name) for depth, name, _ in lines)
    return "\n".join(
        f"{'  ' * depth}{name:{width - 2 * depth}}  {said}" if name else said for depth, name, said in lines
    )


def _lines(node: Any, name: str, depth: int) -> Iterator[tuple[int, str, str]]:
    """(depth, name, kind) of a module and of all modules below it, those of a tuple that are alike only once."""
    children = [(label, child) for label, child in _children(node) if _has_parts(child)]
    yield depth, name, _in_words(node)
    for label, child in children:
        if not isinstance(child, tuple):
            yield from _lines(child, label, depth + 1)
            continue
        for first, last, part in _alike(child):
            yield from _lines(part, f"{label}.{first}" + (f"…{last}" if last > first else ""), depth + 1)


def _alike(parts: tuple[Any, ...]) -> Iterator[tuple[int, int, Any]]:
    """(first, last, one of them) of neighbours that look the same."""
    looks = [[*_lines(part, "", 0)] for part in parts]
    first = 0
    for i in range(len(parts)):
        if i + 1 == len(parts) or looks[i + 1] != looks[first]:
            yield first, i, parts[first]
            first = i + 1


def _has_parts(node: Any) -> bool:
    """Is this a module, or some of them?"""
    if isinstance(node, tuple):
        return bool(node) and all(_has_parts(part) for part in node)
    return dataclasses.is_dataclass(node) and not is_array(node)


def _in_words(node: Any) -> str:
    """`Linear(W 192×192, b 192)`: its kind, its arrays, and what is set otherwise than it would be."""
    said = []
    for field in dataclasses.fields(node) if dataclasses.is_dataclass(node) else ():
        value = getattr(node, field.name)
        if is_array(value):
            said.append(f"{field.name} {'×'.join(map(str, value.shape)) or 'a number'}")
        elif isinstance(value, bool | int | float | str) and value != field.default:
            said.append(f"{field.name}={value:g}" if isinstance(value, float) else f"{field.name}={value!r}")
    return f"{type(node).__name__}({', '.join(said)})" if said else type(node).__name__


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            yield field.name, getattr(node, field.name)
    elif isinstance(node, tuple):
        for index, child in enumerate(node):
            yield str(index), child


def _replaced(node: Any, new: Mapping[str, Any], path: str, *, check_shape: bool) -> Any:
    """`node` with what stands at the dotted keys of `new` exchanged; parts that hold none of them are shared."""
    if set(new) == {""}:
        if check_shape and not (is_array(node) and node.shape == new[""].shape):
            found = f"has shape {node.shape}" if is_array(node) else "is no array"
            raise ValueError(f"{path} {found}, and cannot become {new[''].shape}")
        return new[""]
    by_child: dict[str, dict[str, Any]] = {}
    for key, value in new.items():
        name, _, rest = key.partition(".")
        by_child.setdefault(name, {})[rest] = value
    if isinstance(node, tuple):
        children = {str(index): child for index, child in enumerate(node)}
    else:  # every step passes here: only what is asked for is looked at
        fields = getattr(node, "__dataclass_fields__", {})
        children = {name: getattr(node, name) for name in by_child if name in fields}
    if not by_child.keys() <= children.keys():
        unknown = min(by_child.keys() - children.keys())
        raise ValueError(f"{path or type(node).__name__} has no part named {unknown!r}")
    changed = {
        name: _replaced(children[name], parts, f"{path}.{name}" if path else name, check_shape=check_shape)
        for name, parts in by_child.items()
    }
    if isinstance(node, tuple):
        return tuple(changed.get(name, child) for name, child in children.items())
    return dataclasses.replace(node, **changed)
