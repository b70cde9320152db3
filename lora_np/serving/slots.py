r"""Keys and values of sequences of unequal lengths, a row each, which others take over when a sequence leaves.

Rows 0 … n−1 are in use, always: the last one moves into the place of one that leaves. So a batch reads them without
gathering, and only what is longer than a sequence is hidden from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.arrays import Array
from ..modules import Cache


@dataclass
class Slots:
    """Of one attention layer: what a block sees as its cache, for one further token of each sequence.

    lengths   how many tokens each sequence has, one array for all layers
    """

    lengths: npt.NDArray[np.int64]
    keys: Array
    values: Array

    @property
    def length(self) -> Array:
        """What each sequence has seen, (batch, 1): the position of its next token."""
        return self.lengths[:, None]

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Put k and v (batch, 1, width) behind those of each sequence; all up to the longest, (batch, longest, width).

        What lies beyond a sequence's own end is whatever was there: `Rows.mask` hides it.
        """
        n, stop = len(k), int(self.lengths.max()) + 1
        at = np.arange(n), self.lengths
        self.keys[at], self.values[at] = k[:, 0], v[:, 0]
        return self.keys[:n, :stop], self.values[:n, :stop]


class Rows:
    """The rows of all layers together.

    most   sequences at once           lengths   of those that are there
    room   tokens that a row has place for; it doubles, up to the context, as a longer sequence comes
    """

    def __init__(self, layers: int, most: int, context: int) -> None:
        self.layers, self.most, self.context = layers, most, context
        self.lengths = np.zeros(0, np.int64)
        self.room = 0
        self._arrays: list[list[Array]] = []  # [keys, values] of each layer

    def caches(self) -> tuple[Slots, ...]:
        """For one further token of every sequence; `advance` counts it afterwards."""
        return tuple(Slots(self.lengths, keys, values) for keys, values in self._arrays)

    def mask(self) -> Array | None:
        """True at what each sequence will have seen after its next token; None where all are of one length."""
        if not len(self.lengths) or self.lengths.min() == self.lengths.max():
            return None
        seen: Array = np.arange(int(self.lengths.max()) + 1) <= self.lengths[:, None]
        return seen

    def advance(self) -> None:
        """Every sequence has one token more."""
        self.lengths += 1

    def join(self, caches: tuple[Cache, ...], row: int, length: int, will_be: int) -> None:
        """Take over the first `length` positions of one row of ordinary caches, of a sequence that will be so long."""
        self._make_room(will_be, caches)
        place = len(self.lengths)
        for pair, cache in zip(self._arrays, caches, strict=True):
            for array, source in zip(pair, (cache.keys, cache.values), strict=True):
                assert source is not None
                array[place, :length] = source[row, :length]
        self.lengths = np.append(self.lengths, length)

    def leave(self, place: int) -> None:
        """Let go of one row; the last one moves there."""
        last = len(self.lengths) - 1
        if place != last:
            length = int(self.lengths[last])
            for pair in self._arrays:
                for array in pair:
                    array[place, :length] = array[last, :length]
            self.lengths[place] = length
        self.lengths = self.lengths[:last].copy()

    def _make_room(self, wanted: int, caches: tuple[Cache, ...]) -> None:
        if wanted <= self.room:
            return
        room = min(self.context, max(wanted, 2 * self.room))
        grown = []
        for i, cache in enumerate(caches):
            assert cache.keys is not None
            shape = self.most, room, cache.keys.shape[2]
            pair = [np.zeros(shape, cache.keys.dtype) for _ in "kv"]  # what is hidden must be a number: 0 · NaN is NaN
            for new, old in zip(pair, self._arrays[i] if self._arrays else (), strict=False):
                new[: len(self.lengths), : self.room] = old[: len(self.lengths)]
            grown.append(pair)
        self._arrays, self.room = grown, room


def right_padded(prompts: list[Any]) -> Array:
    """Prompts of unequal lengths in one array, (batch, longest): causal positions never see what stands behind them."""
    tokens = np.zeros((len(prompts), max(map(len, prompts))), np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens
