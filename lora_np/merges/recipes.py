r"""How known programs merge, rounding by rounding; to say which one wrote a file, and to write one.

peft        ΔW = (BA)·s in float32 for factors of 16 bits, else in their own type; cast to that of the adapter; added
peft_safe   the same, cast to the type of the base before it is added (`safe_merge=True`)
float32     all in float32, then rounded once to the type of the file
float64     all in float64: the nearest number to W0 + ΔW, but for a double rounding in very few entries
mlx         (s·B)A in float32, cast to the type of the base, then added
llama_cpp   all in float32, and the file is float16, whatever the base is

Only updates that are sums of s·BA are told apart by this; what replaces numbers is the same in all of them, and what
scales them (DoRA) is made in float64. A product in float32 depends on the order of its sums, which differs from one
library of linear algebra to another: a float32 file may be equal but for some last bits, and then it is said how many.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..disk.unmarked import unmarked_folder
from ..engine.arrays import Array, row_blocks
from ..formats.disk import read_json
from ..formats.tensors import Tensor, flat
from ..formats.updates import Adapter, Numbers, Order, Update, in_type, peft_order
from ..formats.writing import CODES, SHARD, write_tensors

ENTRIES = 1 << 18
BESIDE = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
          "vocab.*", "merges.txt", "*.model", "chat_template*", "preprocessor_config.json")  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """product: None as PEFT chooses it; cast: to the base's type before the sum; file: the only type it writes."""

    words: str
    product: str | None
    cast: bool = False
    scale_first: bool = False
    file: str | None = None


RECIPES = {
    "peft": Recipe("PEFT, merge_and_unload()", None),
    "peft_safe": Recipe("PEFT, safe_merge=True", None, cast=True),
    "float32": Recipe("a merge in float32, rounded once", "float32"),
    "float64": Recipe("a merge in float64, rounded once", "float64"),
    "mlx": Recipe("mlx-lm, fuse", "float32", cast=True, scale_first=True),
    "llama_cpp": Recipe("llama.cpp, export-lora to F16", "float32", file="float16"),
}


def merged_rows(
    recipe: Recipe, ready: Update, W: Numbers, rows: slice, dtype: npt.DTypeLike, made: dict[Order, Array] | None = None
) -> Array:
    """These rows of the merged tensor as this program makes them, in the type of the file.

    made   products of these rows that other recipes have formed, and where this one leaves its own
    """
    if not only_sums(ready):
        return in_type(ready.expected(W, rows), dtype)
    before = ready.base_rows(W, rows)
    order, made = order_of(recipe, ready), {} if made is None else made
    if order not in made:
        made[order] = ready.change(rows, order)
    return added(recipe, before, made[order], dtype)


def added(recipe: Recipe, before: Array, delta: Array, dtype: npt.DTypeLike) -> Array:
    """The base, as it is stored, and an update in this recipe's order, as one tensor of this type."""
    if recipe.cast:
        delta = in_type(delta, before.dtype)
    elif recipe.product is not None:
        before = in_type(before, np.promote_types(recipe.product, np.float32))
    with np.errstate(over="ignore"):
        return in_type(before + delta, dtype)


def only_sums(update: Update) -> bool:
    """Is nothing done but adding s·BA?"""
    return update.only_sums


def order_of(recipe: Recipe, update: Update) -> Order:
    """In which order it computes this update."""
    if recipe.product is not None:
        return Order(recipe.product, scale_first=recipe.scale_first)
    order = peft_order(update.parts[0].B.dtype.name)
    return order if order.cast != order.product else Order(order.product)


def replayed(
    adapter: Adapter,
    base: Mapping[str, Tensor],
    merged: Mapping[str, Tensor],
    counted: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, float]:
    """For each recipe, the share of the numbers of all sums of s·BA that it gives to the bit; {} where there are none.

    Left out are recipes that write another type than what is found.

    counted   {tensor: {recipe: numbers}} of tensors that were compared before
    """
    equal, total = dict.fromkeys(RECIPES, 0), 0
    for name, update in adapter.updates.items():
        if not only_sums(update) or name not in base or name not in merged:
            continue
        found, total = merged[name], total + merged[name].size
        equal = {key: n for key, n in equal.items() if RECIPES[key].file in (None, found.dtype.name)}
        if counted and name in counted:
            equal = {key: n + counted[name][key] for key, n in equal.items()}
            continue
        ready = update.prepared(base[name])
        for rows in row_blocks(*update.matrix, ENTRIES):
            there = flat(found, rows.start * update.matrix[1], rows.stop * update.matrix[1])
            made: dict[Order, Array] = {}
            for key in equal:
                ours = merged_rows(RECIPES[key], ready, base[name], rows, found.dtype, made).reshape(-1)
                equal[key] += int(np.count_nonzero(ours == there))
    return {key: count / total for key, count in equal.items()} if total else {}


def who_wrote(shares: Mapping[str, float]) -> str:
    """The programs to which a file is equal bit for bit, or the nearest one."""
    if not shares:
        return "no tensor is only a sum, so no program can be told from another"
    same = [RECIPES[key].words for key, share in shares.items() if share == 1.0]
    if same:
        return f"equal to the bit to {'; and to '.join(same)}"
    near = max(shares, key=lambda key: shares[key])
    return (
        f"equal to the bit to no known program; nearest is {RECIPES[near].words}, in {shares[near]:.4%} of the numbers"
    )


def merge_files(
    adapter: Adapter, base: Mapping[str, Tensor], folder: str | Path, recipe: Recipe, out: str | Path, *,
    shard: int = SHARD, dtype: str | None = None,
) -> int:  # fmt: skip
    """Write the merged model of a folder into the new folder `out`, streamed; give back how many tensors changed.

    dtype   of all numbers but whole ones, and of what config.json says of them; that of the base when None

    Raises FileExistsError where something stands at `out` or its partial folder; after an error nothing is left.
    """
    if dtype is not None:
        recipe = replace(recipe, file=dtype)
    names = [*base, *(name for name in adapter.updates if name not in base)]
    shapes = {name: adapter.updates[name].shape if name in adapter.updates else base[name].shape for name in names}
    layout = {name: (CODES[_type(name, adapter, base, recipe)], shape) for name, shape in shapes.items()}
    with unmarked_folder(out) as partial:
        write_tensors(partial, layout, lambda name: _blocks(name, adapter, base, recipe), shard=shard)
        for file in {file for pattern in BESIDE for file in Path(folder).glob(pattern) if file.is_file()}:
            shutil.copyfile(file, partial / file.name)
        if recipe.file is not None and (partial / "config.json").exists():
            _say_type(partial / "config.json", recipe.file)
    return len(adapter.updates)


def _say_type(path: Path, dtype: str) -> None:
    """Put the type into a config.json, under the names that transformers has for it."""
    about = read_json(path)
    names = [name for name in ("dtype", "torch_dtype") if name in about] or ["torch_dtype"]
    path.write_text(json.dumps({**about, **dict.fromkeys(names, dtype)}, indent=2) + "\n", encoding="utf-8")


def _type(name: str, adapter: Adapter, base: Mapping[str, Tensor], recipe: Recipe) -> str:
    if name in base:
        own = base[name].dtype
        return own.name if own.kind in "biu" else recipe.file or own.name
    replacement = adapter.updates[name].replacement
    return recipe.file or ("float32" if replacement is None else replacement.dtype.name)


def _blocks(name: str, adapter: Adapter, base: Mapping[str, Tensor], recipe: Recipe) -> Iterator[Array]:
    """The merged numbers of one tensor, a block at a time."""
    from ..formats.tensors import dtype_of

    dtype = dtype_of(_type(name, adapter, base, recipe))
    update = adapter.updates.get(name)
    if update is None:
        tensor = base[name]
        for start in range(0, tensor.size, ENTRIES):
            yield in_type(flat(tensor, start, min(start + ENTRIES, tensor.size)), dtype)
        return
    W = base[name] if name in base else np.zeros(update.shape, dtype)
    ready = update.prepared(W)
    for rows in row_blocks(*update.matrix, ENTRIES):
        yield merged_rows(recipe, ready, W, rows, dtype)
