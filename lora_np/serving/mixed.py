r"""A batch in which every sequence uses its own adapter, or none: one forward over one frozen base.

The factors of all adapters of a batch stand side by side, $A$ (R, d_in) and $B$ (d_out, R) with R the sum of their
ranks, and the batch is computed in one of two forms, equal up to rounding:

    mask      $Y = XW_0^T + (XA^T \odot M)\,B^T$, M (batch, R) holding s where a column belongs to the adapter of the
              sequence and 0 elsewhere: the routing mask of A Note on LoRA (arXiv:2404.05086, section 2.2)     (J6)
    gather    (J1) of `lora_np.operations.gathered`: the rows of each adapter by its own factors

For n rows the first costs n R (d_in + d_out) multiply-adds beside the base, the second Σ n_i r_i (d_in + d_out), and
for each run of adapters of one rank and one number of sequences its calls and copies. `form_of` counts both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.arrays import Array, array_module
from ..model import Linear, Transformer
from ..operations import gathered_linear, linear
from ..operations.gathered import Which, runs_of
from ..parameters import outline, walk, with_modules
from .adapter import Adapter, Factors, adapted_maps

FORMS = ("mask", "gather")

# What gathering takes beside its products, as multiply-adds that one large product does in that time (30 thousand a
# microsecond, float32, one thread): the calls of a run, each product of its stack, and a number of x or y that is moved
# because the sequences of an adapter are no neighbours. Fitted to 34 batches at widths 192 and 768 on a busy machine: a
# rough guide, and it need be no more, since where it errs the two forms are close.
RUN, PRODUCT, MOVED = 200_000, 5_000, 8


@dataclass(frozen=True)
class Mixed:
    """A frozen map with the factors of many adapters beside it, and which of them each sequence of the batch uses.

    A, B              (R, d_in) and (d_out, R), those of all adapters one beside the other
    which             the adapter of each sequence, −1 for none    ranks, scalings   of each adapter; rank 0: not here
    form              "mask" or "gather"; None: the cheaper of the two, as counted

    Calling it raises ValueError for a batch of another size than `which`.
    """

    base: Linear
    A: Array
    B: Array
    which: Which
    ranks: tuple[int, ...]
    scalings: tuple[float, ...]
    form: str | None = None

    __repr__ = outline

    def __call__(self, x: Array) -> Array:
        if len(x) != len(self.which):
            raise ValueError(f"{len(self.which)} sequences were told their adapters, got a batch of {len(x)}")
        rows = int(np.prod(x.shape[1:-1]))
        form = self.form or form_of(self.which, self.ranks, rows, *self.base.W.shape)
        rest = self.which, self.ranks, self.scalings
        if form == "mask":
            return masked_linear(x, self.base, self.A, self.B, *rest)
        return gathered_linear(x, self.base.W, self.base.b, self.A, self.B, *rest)


def masked_linear(
    x: Array, base: Linear, A: Array, B: Array, which: Which, ranks: tuple[int, ...], scalings: tuple[float, ...]
) -> Array:
    """(J6)."""
    mask = routing_mask(which, ranks, scalings, x.dtype)
    M = array_module(x).asarray(mask).reshape(len(which), *(1,) * (x.ndim - 2), -1)
    return base(x) + linear(linear(x, A, None) * M, B, None)


@lru_cache(maxsize=64)
def routing_mask(
    which: Which, ranks: tuple[int, ...], scalings: tuple[float, ...], dtype: npt.DTypeLike = np.float64
) -> Array:
    """M (batch, R): s of the adapter of the sequence at the columns of its factors, 0 at those of all others."""
    owner = np.repeat(np.arange(len(ranks)), ranks)
    mask = (np.array(which)[:, None] == owner) * np.repeat(scalings, ranks)
    mask = mask.astype(dtype)
    mask.flags.writeable = False
    return mask


def multiply_adds(form: str, which: Which, ranks: tuple[int, ...], rows: int, d_out: int, d_in: int) -> int:
    """What a form costs beside the base, for `rows` rows of each sequence: products alone."""
    if form == "mask":
        return len(which) * rows * sum(ranks) * (d_in + d_out)
    return sum(rows * ranks[adapter] * (d_in + d_out) for adapter in which if adapter >= 0)


@lru_cache(maxsize=512)
def form_of(which: Which, ranks: tuple[int, ...], rows: int, d_out: int, d_in: int) -> str:
    """The form that costs less: its multiply-adds, and for gathering what its calls and copies take as well."""
    rest = which, ranks, rows, d_out, d_in
    beside = 0
    for run in runs_of(which, ranks):
        moved = 0 if isinstance(run.members, slice) else len(run.members) * rows * (d_in + 2 * d_out)
        beside += RUN + run.adapters * PRODUCT + moved * MOVED
    return "mask" if multiply_adds("mask", *rest) <= multiply_adds("gather", *rest) + beside else "gather"


def mixed(base: Transformer, adapters: Sequence[Adapter | None], form: str | None = None) -> Transformer:
    """The base whose batches hold one sequence for each of `adapters`, and each uses its own; None: the base alone.

    Adapters are told apart by their digest. Raises ValueError for one that does not fit the base, or another form.
    """
    distinct = {adapter.digest: adapter for adapter in adapters if adapter is not None}
    sequences = [None if adapter is None else adapter.digest for adapter in adapters]
    order = sorted(distinct, key=lambda each: (sequences.count(each), sorted(distinct[each].ranks.items())))
    which = tuple(-1 if each is None else order.index(each) for each in sequences)
    return routed(stacked(base, [distinct[each] for each in order], form), which) if distinct else base


def stacked(base: Transformer, adapters: Sequence[Adapter], form: str | None = None) -> Transformer:
    """The base with the factors of all these adapters side by side, in their order, for batches of no sequence yet."""
    if form is not None and form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, or None; got {form!r}")
    maps = adapted_maps(base, *adapters)
    return with_modules(base, {path: _stack(path, module, adapters, form) for path, module in maps.items()})


def _stack(path: str, base: Linear, adapters: Sequence[Adapter], form: str | None) -> Mixed:
    xp = array_module(base.W)
    nothing = Factors(base.W[:0], base.W[:, :0], 1.0)
    mine = [adapter.factors.get(path, nothing) for adapter in adapters]
    A = xp.concatenate([f.A for f in mine]).astype(base.W.dtype, copy=False)
    B = xp.concatenate([f.B for f in mine], axis=1).astype(base.W.dtype, copy=False)
    return Mixed(base, A, B, (), tuple(len(f.A) for f in mine), tuple(float(f.scaling) for f in mine), form)


def routed(model: Transformer, which: Which) -> Transformer:
    """A stacked model for batches whose sequences use these adapters, by their number in the stack, −1 for none.

    Raises ValueError for a number that no adapter has.
    """
    found = mixed_maps(model)
    count = len(next(iter(found.values())).ranks)
    if wrong := [adapter for adapter in which if not -1 <= adapter < count]:
        raise ValueError(f"a sequence has one of {count} adapters, 0..{count - 1}, or -1 for none; got {wrong[0]}")
    return with_modules(model, {f"{path}.which": tuple(which) for path in found})


def mixed_maps(model: Any) -> dict[str, Mixed]:
    """The maps of a stacked model that hold many adapters, by path."""
    return {path: node for path, node in walk(model) if isinstance(node, Mixed)}


def separated(model: Any, names: Sequence[str]) -> list[Adapter]:
    """The adapters of a stacked model apart again, under these names, in the order of the stack."""
    parts: list[dict[str, Factors]] = [{} for _ in names]
    for path, module in mixed_maps(model).items():
        ends = np.cumsum(module.ranks)
        for i, (end, rank) in enumerate(zip(ends, module.ranks, strict=True)):
            at = slice(int(end) - rank, int(end))
            if rank:
                parts[i][path] = Factors(module.A[at].copy(), module.B[:, at].copy(), module.scalings[i])
    return [Adapter(name, factors) for name, factors in zip(names, parts, strict=True)]
