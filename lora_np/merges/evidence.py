r"""What a picture of a fault shows: entries, singular values and places of one tensor, read once in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..certificate import Stages, error_of_check, error_of_update
from ..engine.arrays import Array, row_blocks
from ..formats.tensors import Tensor, flat
from ..formats.updates import Adapter, in_type
from ..rounding import spacing
from .expecting import ENTRIES, expectation, found_rows, stages_of
from .judging import Judged

CELLS, POINTS, SIDE, VALUES = 40, 250, 256, 16  # of a grid, a cloud, a block for singular values, and how many of them
Rows = Callable[[slice], tuple[Array, Array, Array, Array]]  # rows -> ΔW, Ŵ − W0, bound and gap, all in float64


@dataclass(frozen=True)
class Evidence:
    """Of one tensor (n, width).

    expected, measured   entries of ΔW and of Ŵ − W0: some by chance, and those that are furthest off
    half                 half a unit in the last place of a middling entry
    spectra              singular values of both, of a block of rows and columns spread over the tensor; None where
                         no update is expected
    grid                 gap over bound at the worst entry of each cell
    """

    shape: tuple[int, int]
    expected: Array
    measured: Array
    half: float
    spectra: tuple[Array, Array] | None
    grid: Array


def gathered(shape: tuple[int, int], rows_of: Rows, precision: Any) -> Evidence:
    """Walk over all rows once."""
    n, width = shape
    rng, grid = np.random.default_rng(0), np.zeros((min(CELLS, n), min(CELLS, width)))
    starts = -(-np.arange(grid.shape[1]) * width // grid.shape[1])  # of the columns of each cell
    kept: list[Array] = []
    chosen, across = (np.unique(np.linspace(0, m - 1, min(SIDE, m)).astype(int)) for m in shape)
    blocks: list[tuple[Array, Array]] = []
    share = max(1, POINTS // max(1, -(-n * width // ENTRIES)))
    for rows in row_blocks(n, width, ENTRIES):
        expected, measured, bound, gap = rows_of(rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            used = np.where(gap == 0.0, 0.0, gap / bound)
        used = np.where(np.isnan(used), np.inf, used)
        by_column = np.maximum.reduceat(used, starts, axis=1)
        np.maximum.at(grid, (np.arange(rows.start, rows.stop) * grid.shape[0]) // n, by_column)
        size = expected.size
        worst = np.argpartition(used.reshape(-1), -min(share, size))[-min(share, size) :]
        some = np.concatenate([rng.integers(0, size, min(share, size)), worst])
        kept.append(np.stack([expected.reshape(-1)[some], measured.reshape(-1)[some]]))
        mine = chosen[(chosen >= rows.start) & (chosen < rows.stop)] - rows.start
        blocks.append((expected[mine][:, across], measured[mine][:, across]))
    entries = np.concatenate(kept, axis=1)
    entries = entries[:, np.isfinite(entries).all(axis=0)]
    both = [np.concatenate(parts) for parts in zip(*blocks, strict=True)]
    middling = float(np.median(abs(entries))) if entries.size else 0.0
    spectra = _spectra(*both) if both[0].any() else None
    return Evidence(shape, entries[0], entries[1], 0.5 * float(spacing(np.asarray(middling), precision)), spectra, grid)


def _spectra(expected: Array, measured: Array) -> tuple[Array, Array]:
    one, other = (np.linalg.svd(np.nan_to_num(side, posinf=0.0, neginf=0.0), compute_uv=False)[:VALUES]
                  for side in (expected, measured))  # fmt: skip
    return one, other


def of_foreign(
    adapter: Adapter, base: Mapping[str, Tensor], merged: Mapping[str, Tensor], one: Judged
) -> Evidence | None:
    """Evidence for a tensor that does not hold; None where there are no two tensors of one shape to compare."""
    update = adapter.updates.get(one.name)
    found, W = merged.get(one.name), base.get(one.name)
    if found is None or W is None or not found.size:
        return None
    if update is None:
        return None if found.shape != W.shape else _of_untouched(W, found)
    if found.shape != update.shape:
        return None
    ready, stages = update.prepared(W), stages_of(update, W, found)

    def rows_of(rows: slice) -> tuple[Array, Array, Array, Array]:
        made, there = expectation(ready, W, rows, stages), found_rows(ready, found, rows)
        bound = made.E + 0.5 * spacing(abs(made.value) + made.E, found.dtype) + made.e
        return made.update, there - made.before, bound, abs(there - made.value)

    return gathered(ready.matrix, rows_of, found.dtype)


def _of_untouched(W: Tensor, found: Tensor) -> Evidence:
    width = W.shape[-1] if W.shape else 1
    n = W.size // max(width, 1)

    def rows_of(rows: slice) -> tuple[Array, Array, Array, Array]:
        here, there = (
            in_type(flat(t, rows.start * width, rows.stop * width), np.float64).reshape(-1, width) for t in (W, found)
        )
        gap = there - here
        return np.zeros(gap.shape), gap, np.zeros(gap.shape), abs(gap)

    return gathered((n, width), rows_of, found.dtype)


def of_ours(base: Array, wrapper: Any, found: Array) -> Evidence:
    """Evidence for an array of a model of ours; without a wrapper it should be the base's."""
    shape = (found.shape[0], int(np.prod(found.shape[1:])))

    def rows_of(rows: slice) -> tuple[Array, Array, Array, Array]:
        here, there = (np.asarray(array[rows], np.float64).reshape(-1, shape[1]) for array in (base, found))
        if wrapper is None:
            return np.zeros(here.shape), there - here, np.zeros(here.shape), abs(there - here)
        made = wrapper.expected(rows)
        stages = Stages(made.precision, found.dtype)
        E = error_of_update(made, stages)
        bound = E + 0.5 * spacing(abs(made.value) + E, found.dtype) + error_of_check(made)
        return made.update, there - here, bound, abs(there - made.value)

    return gathered(shape, rows_of, found.dtype)
