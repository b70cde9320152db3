r"""Prompts that were read before: their keys, values and last logits, by base, adapter and tokens."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from ..engine.arrays import Array
from ..modules import Cache
from .requests import Tokens

Key = tuple[str, str, Tokens]  # the digest of the base, that of the adapter or "", and the prompt


class Read(NamedTuple):
    """What reading a prompt gave: caches of one row, no longer than it, and logits (vocab,) of what follows."""

    caches: tuple[Cache, ...]
    logits: Array

    @property
    def nbytes(self) -> int:
        arrays = [array for cache in self.caches for array in (cache.keys, cache.values) if array is not None]
        return sum(array.nbytes for array in arrays) + self.logits.nbytes


class PromptMemory:
    """At most so many bytes of prompts; the one met longest ago is let go. By digests, not by names: an adapter that
    was trained again under its old name shares nothing with what it was, and two names of one adapter share all."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes, self.found = most_bytes, 0, 0
        self._kept: OrderedDict[Key, Read] = OrderedDict()

    def get(self, key: Key) -> Read | None:
        if key not in self._kept:
            return None
        self.found += 1
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: Key, caches: tuple[Cache, ...], row: int, logits: Array) -> None:
        """Keep a copy of one row of these caches, as far as the prompt goes."""
        length = len(key[2])
        own = []
        for cache in caches:
            assert cache.keys is not None
            assert cache.values is not None
            at = slice(row, row + 1), slice(length)
            own.append(Cache(length, cache.keys[at].copy(), cache.values[at].copy(), length))
        read = Read(tuple(own), logits.copy())
        if read.nbytes > self.most_bytes or key in self._kept:
            return
        self._kept[key] = read
        self.bytes += read.nbytes
        while self.bytes > self.most_bytes:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
