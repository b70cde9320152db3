r"""What a model must beat to be worth shipping: gzip, and a byte 5-gram, on the same held-out text."""

from __future__ import annotations

import gzip

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int64]


def gzip_bits_per_byte(held_out: Bytes) -> float:
    """The size of the held-out text compressed by gzip at its best level."""
    return 8.0 * len(gzip.compress(held_out.tobytes(), 9)) / len(held_out)


def ngram_bits_per_byte(train: Bytes, held_out: Bytes, order: int = 5) -> float:
    r"""A byte n-gram with interpolated Witten-Bell smoothing, counted on `train`, scored on `held_out`.

    $$P_n(c \mid h) = \frac{N(hc) + T(h)\,P_{n-1}(c \mid h')}{N(h) + T(h)},\qquad P_0 = 1/256$$

    N counts occurrences, T(h) counts the distinct bytes seen after h, and h' is h without its oldest byte.
    Source: Witten and Bell 1991, The zero-frequency problem, method C.
    """
    probability = np.full(len(held_out) - order + 1, 1.0 / 256.0)
    for n in range(1, order + 1):
        grams, counts = np.unique(_codes(train, n), return_counts=True)
        histories, first = np.unique(grams >> 8, return_index=True)
        total, distinct = np.add.reduceat(counts, first), np.diff(np.append(first, len(grams)))
        gram = _codes(held_out, n)[order - n :]  # the bytes that have a full history behind them
        seen, N_h, T_h = _look_up(gram, grams, counts), *_look_up_all(gram >> 8, histories, total, distinct)
        known = N_h > 0
        smoothed = (seen + T_h * probability) / np.where(known, N_h + T_h, 1)
        probability = np.where(known, smoothed, probability)
    return float(-np.log2(probability).mean())


def _codes(text: Bytes, n: int) -> Codes:
    """Each run of n bytes as one integer, oldest byte first."""
    codes = np.zeros(len(text) - n + 1, np.int64)
    for i in range(n):
        codes = (codes << 8) | text[i : len(text) - n + 1 + i]
    return codes


def _look_up(keys: Codes, table: Codes, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[at] == keys, values[at], 0)


def _look_up_all(keys: Codes, table: Codes, *columns: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return [_look_up(keys, table, column) for column in columns]
