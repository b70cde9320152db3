r"""Texts with labels in tokens: what a classifier reads, and batches of it.

A text is laid out as its tokenizer says; two texts, between which a tab stands in a prompt, are told apart by their
types or by what the tokenizer puts between them.

    bytes        END  text  END         END  text  tab  text  END
    WordPiece    [CLS]  text  [SEP]     [CLS]  text  [SEP]  text  [SEP], the second of type 1
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..names import nearest_first
from ..tokenizers import Tokenizer
from .batches import Batch
from .sources import PAIR, Example

MOST_LABELS = 100  # more than that are no labels, but texts


@dataclass(frozen=True, eq=False)
class Labelled:
    """One text in tokens (n,) of these types (n,), and the number of its label."""

    tokens: NDArray[np.int64]
    types: NDArray[np.int64]
    label: int

    @property
    def length(self) -> int:
        """Positions that the model reads."""
        return len(self.tokens)


def labels_of(examples: abc.Sequence[Example]) -> tuple[str, ...]:
    """The different labels, in order. Raises ValueError where there is but one, or so many that they are none."""
    found = sorted({example.reference for example in examples})
    if not 2 <= len(found) <= MOST_LABELS:
        some = " and ".join(repr(label[:30]) for label in found[:2])
        what = f"only {some}" if len(found) < 2 else f"{len(found)} of them, as {some}"
        raise ValueError(f"a classification needs 2 to {MOST_LABELS} different labels, got {what}: is this the column?")
    return tuple(found)


def label_all(
    examples: abc.Sequence[Example], labels: tuple[str, ...], tokenizer: Tokenizer, longest: int, *, truncate: bool
) -> list[Labelled]:
    """Every example in tokens; one longer than `longest` raises, or with `truncate` loses the end of its longer text.

    Raises ValueError, which names it, for a label that is none of these.
    """
    found = []
    for number, example in enumerate(examples, 1):
        if example.reference not in labels:
            known = nearest_first(example.reference, labels)
            raise ValueError(f"example {number} has the label {example.reference[:40]!r}, which is none of {known}")
        first, _, second = example.prompt.partition(PAIR)
        tokens, types = tokenizer.classified(first, second, longest if truncate else None)
        if len(tokens) > longest:
            raise ValueError(
                f"example {number} is {len(tokens)} tokens long, and {longest} are read at most: shorten it, or cut it "
                "with truncate=True (--truncate)"
            )
        found.append(Labelled(tokens, types, labels.index(example.reference)))
    return found


def collate_labelled(sequences: abc.Sequence[Labelled], end: int) -> Batch:
    """One batch, padded with `end` to its longest text; every text counts the same."""
    if not sequences:
        raise ValueError("a batch needs at least one text, got none")
    longest, n = max(sequence.length for sequence in sequences), len(sequences)
    tokens = np.full((n, longest), end, dtype=np.int64)
    types, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    for row, sequence in enumerate(sequences):
        place = row, slice(sequence.length)
        tokens[place], types[place], mask[place] = sequence.tokens, sequence.types, True
    targets = np.array([[sequence.label] for sequence in sequences])
    weights = np.full((n, 1), 1.0 / n, np.float32)
    return Batch(tokens, targets, weights, None if mask.all() else mask, types if types.any() else None)
