r"""Findings that only the numbers of an adapter can give: factors that are zero, or hold what is not finite.

Everything else is found by `read_adapter`, which looks at names, shapes and settings and reads no number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..engine.arrays import Array
from .tensors import Tensor, flat
from .updates import Adapter, Finding, Numbers, Update, in_type

BLOCK = 1 << 20  # numbers that are looked at together
BROKEN = "the adapter is broken: train or save it again"


def examined(adapter: Adapter) -> list[Finding]:
    """Look at each array of the adapter once, a block at a time."""
    findings: list[Finding] = []
    seen: set[int] = set()
    for name, update in adapter.updates.items():
        for what, array in _arrays(update):
            if id(array) in seen:  # experts share theirs
                continue
            seen.add(id(array))
            zero, finite = _looked_at(array)
            if not finite:
                findings.append(Finding("not_finite", name, f"{what} holds a number that is not finite", BROKEN, True))
            elif zero and what == "B":
                findings.append(Finding("zero", name, "B is zero, so nothing changes", "see whether it was trained"))
    return findings


def _arrays(update: Update) -> Iterator[tuple[str, Numbers]]:
    """Every array of an update by what it is."""
    for part in update.parts:
        yield "A", part.A
        yield "B", part.B
    if update.replacement is not None:
        yield "what replaces it", update.replacement
    if update.magnitude is not None:
        yield "its magnitude", update.magnitude.m
    if update.shift is not None:
        yield "the bias of B", update.shift.b
    if update.tokens is not None:
        yield "its token rows", update.tokens.rows


def _looked_at(array: Array | Tensor) -> tuple[bool, bool]:
    """Is all of it zero, and is all of it finite?"""
    zero = finite = True
    size = int(np.prod(array.shape))
    for start in range(0, size, BLOCK):
        block = in_type(flat(array, start, min(start + BLOCK, size)), np.float64)
        zero, finite = zero and not block.any(), finite and bool(np.isfinite(block).all())
    return zero, finite
