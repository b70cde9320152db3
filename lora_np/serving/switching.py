r"""Serving one task at a time with merged weights, and switching between tasks exactly.

Hu et al. 2021, section 4.2, recover W0 by subtracting BA and then add another B'A'. In floating point that does not
give W0 back: what rounding took when BA was added does not return. Here the base stays as it is, W0 + s·BA is made
beside it for the maps that are adapted, and switching back is letting go of those: W0 is the same to the bit, always.
The price is one copy of the adapted maps: that of `Switched.nbytes`, whatever the number of tasks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ..model import Transformer
from ..parameters import walk
from ..wrappers import merge
from .adapter import Adapter, adapted_maps, applied


@dataclass(frozen=True)
class Switched:
    """A plain model that serves one task at full speed.

    model    W0 + s·BA, the arrays that are not adapted shared with the base
    nbytes   of the merged arrays, held beside the base's        seconds   that merging took
    """

    model: Transformer
    nbytes: int
    seconds: float


def switched(base: Transformer, adapter: Adapter) -> Switched:
    """The base merged with this adapter; the base itself is left as it is, bit for bit."""
    began = time.perf_counter()
    model = merge(applied(base, adapter))
    seconds = time.perf_counter() - began
    nbytes = sum(module.W.nbytes for module in adapted_maps(base, adapter).values())
    return Switched(model, nbytes, seconds)


def lost_by_subtracting(base: Transformer, adapter: Adapter) -> tuple[int, int]:
    """Of the numbers of adapted maps, how many are another one after s·BA was added and subtracted again; and of how
    many: why the base is kept instead."""
    merged = dict(walk(switched(base, adapter).model))
    changed = count = 0
    for path, module in adapted_maps(base, adapter).items():
        A, B, scaling = adapter.factors[path]
        again = merged[path].W - scaling * (B @ A)
        changed += int(np.count_nonzero(again != module.W))
        count += module.W.size
    return changed, count
