r"""Any cell of the study to its row: `row_of(base, cell)` is what a map is given, in whichever process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from ..methods import METHODS
from ..model import Transformer
from ..names import nearest_first
from ..tasks.table import task_named
from . import runs, runs_intrinsic, runs_lessons, runs_subspaces
from .cells import Cell, Row
from .variants import VARIANTS

KINDS: dict[str, Callable[[Cell, Transformer], Row]] = {
    "run": runs.run,
    "scored": runs.scored,
    "subspaces": runs_subspaces.subspaces,
    "intrinsic": runs_intrinsic.intrinsic,
    "memory": runs_lessons.memory,
    "untied": runs_lessons.untied,
    "progressive": runs_lessons.progressive,
    "pruned": runs_lessons.pruned,
    "carried": runs_lessons.carried,
    "sizes": runs_lessons.sizes,
}


def row_of(base: Transformer, cell: Cell) -> Row:
    """The row of a cell: of its settings and the base alone, to the bit, however many threads and processes there are.

    Raises ValueError, with the nearest names, for an unknown kind, task or method.
    """
    from threadpoolctl import threadpool_limits

    check_name("kind", cell.kind, KINDS)
    check_name("method", cell.method, {**METHODS, **VARIANTS})
    task_named(cell.task)
    with warnings.catch_warnings(), threadpool_limits(limits=1, user_api="blas"):  # no sum depends on how many threads
        warnings.filterwarnings("ignore", ".* more than the .* of the matrix")  # here that is asked for
        return KINDS[cell.kind](cell, base)


def check_name(what: str, name: str, allowed: Any) -> None:
    """Raises ValueError, with the nearest names, for one that is not allowed."""
    if name not in allowed:
        raise ValueError(f"{what} must be one of {nearest_first(name, allowed)}; got {name!r}")
