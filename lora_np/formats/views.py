r"""Small tensors seen in another way: read whole each time they are used."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.arrays import Array
from .tensors import Tensor


class Turned(Tensor):
    """The transpose of a matrix."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape = tensor, (tensor.shape[1], tensor.shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.tensor.dtype

    def numbers(self, start: int, stop: int) -> Array:
        return np.asarray(self.tensor).T.reshape(-1)[start:stop]


class Spread(Tensor):
    r"""B of a fused map, of which only some blocks of outputs are adapted, over all of its outputs.

    B (g·w, r), whose blocks of w rows belong to the enabled of n blocks, becomes (n·w, g·r): block k of B stands at
    the rows of its own and in the columns k·r to (k+1)·r, so that it meets rows k·r to (k+1)·r of A (g·r, d_in).
    """

    def __init__(self, B: Tensor, enabled: tuple[int, ...], count: int) -> None:
        self.B, self.enabled, self.width = B, enabled, B.shape[0] // len(enabled)
        self.shape = (count * self.width, len(enabled) * B.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.B.dtype

    def numbers(self, start: int, stop: int) -> Array:
        whole, B, rank = np.zeros(self.shape, self.dtype), np.asarray(self.B), self.B.shape[1]
        for k, block in enumerate(self.enabled):
            rows = slice(block * self.width, (block + 1) * self.width)
            whole[rows, k * rank : (k + 1) * rank] = B[k * self.width : (k + 1) * self.width]
        return whole.reshape(-1)[start:stop]
