r"""From examples to batches: layout, loss weights, seeded splits, and shuffling that has no state.

A sequence is laid out as

    pair         END  prompt  newline  reference  END
    plain text   END  text  END

The model reads `tokens[:-1]` and predicts `tokens[1:]`. Only the reference and its final END are learned;
predicting the prompt, the newline or padding has weight zero.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..tokenizers import Tokenizer
from .sources import Example

# Sequences are sorted by length within this many batches: enough that the rows of a batch have nearly one
# length, few enough that batches still differ between epochs.
BUCKET_BATCHES = 16


@dataclass(frozen=True, eq=False)
class Sequence:
    r"""One example in tokens.

    tokens      (n,)    from END to END, or to where it was cut
    n_prompt    how many leading tokens are given, not predicted; at least 1, and fewer than n
    """

    tokens: NDArray[np.int64]
    n_prompt: int

    def __post_init__(self) -> None:
        if not 1 <= self.n_prompt < len(self.tokens):
            raise ValueError(f"n_prompt must lie in 1..{len(self.tokens) - 1}, got {self.n_prompt}")

    @property
    def length(self) -> int:
        r"""Positions that the model reads."""
        return len(self.tokens) - 1

    @property
    def learned(self) -> NDArray[np.int64]:
        r"""The tokens to predict: the reference and its END, as far as they were not cut."""
        return self.tokens[self.n_prompt :]

    @property
    def tokens_trained(self) -> int:
        r"""How many those are."""
        return len(self.tokens) - self.n_prompt


@dataclass(frozen=True, eq=False)
class Batch:
    r"""Rows of equal length whose loss is a plain sum.

    $$L = \sum_{ij} w_{ij}\,\mathrm{CE}_{ij}, \qquad \sum_{ij} w_{ij} = 1 \tag{T1}$$

    tokens     (batch, seq)    what the model reads
    targets    (batch, seq)    what it should predict
    weights    (batch, seq)    float32; zero at prompts and padding

    The weights are normalized once, over the whole batch, so the losses (and gradients) of row shards add up
    to the batch's own, however unequal the shards are.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.floating]

    @property
    def tokens_trained(self) -> int:
        r"""How many tokens the loss counts."""
        return int(np.count_nonzero(self.weights))

    def shards(self, n: int) -> list[Batch]:
        r"""At most `n` contiguous, nearly equal parts by rows, with the weights as they are."""
        if n < 1:
            raise ValueError(f"a batch is cut into at least 1 shard, got n = {n}")
        parts = np.array_split(np.arange(len(self.tokens)), min(n, len(self.tokens)))
        rows = [slice(part[0], part[-1] + 1) for part in parts]
        return [Batch(self.tokens[r], self.targets[r], self.weights[r]) for r in rows]


def prompt_tokens(prompt: str, tokenizer: Tokenizer) -> NDArray[np.int64]:
    r"""What stands before a reference: END, prompt, newline; or END alone. Generation starts from it."""
    given = tokenizer.encode(prompt + "\n") if prompt else np.empty(0, dtype=np.int64)
    return np.concatenate([[tokenizer.end], given]).astype(np.int64)


def encode(
    examples: abc.Sequence[Example],
    tokenizer: Tokenizer,
    context: int,
    *,
    truncate: bool = False,
    given: abc.Callable[[NDArray[np.int64]], NDArray[np.int64]] = lambda prompt: prompt,
) -> list[Sequence]:
    r"""Lay out every example; one longer than `context` raises, or with `truncate` loses its end.

    given  what a method makes of the tokens of a prompt
    """
    sequences = []
    for number, example in enumerate(examples, 1):
        prompt = given(prompt_tokens(example.prompt, tokenizer))
        tokens = np.concatenate([prompt, tokenizer.encode(example.reference), [tokenizer.end]]).astype(np.int64)
        length = len(tokens) - 1
        if length > context and not truncate:
            raise ValueError(
                f"example {number} is {length} tokens long, and the context holds {context}: "
                f"shorten it, or cut its end with truncate=True (--truncate)"
            )
        if len(prompt) > context:
            raise ValueError(
                f"example {number} has a prompt of {len(prompt)} tokens, which fills the context of {context} "
                f"and leaves no room for its reference: shorten the prompt"
            )
        sequences.append(Sequence(tokens[: context + 1], len(prompt)))
    return sequences


def collate(sequences: abc.Sequence[Sequence], end: int, weight: str = "token") -> Batch:
    r"""One batch, padded with `end` to its longest sequence; a target is `end` wherever nothing is learned.

    weight    "token": every learned token counts the same; "sequence": every sequence counts the same
    """
    if not sequences:
        raise ValueError("a batch needs at least one sequence, got none")
    if weight not in ("token", "sequence"):
        raise ValueError(f'weight must be "token" or "sequence", got {weight!r}')
    longest = max(sequence.length for sequence in sequences)
    tokens = np.full((len(sequences), longest + 1), end, dtype=np.int64)
    shares = np.zeros((len(sequences), longest))
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence.tokens)] = sequence.tokens
        share = 1.0 if weight == "token" else 1.0 / sequence.tokens_trained
        shares[row, sequence.n_prompt - 1 : sequence.length] = share  # column j weighs the prediction of token j + 1
    targets = np.where(shares > 0.0, tokens[:, 1:], end)  # what is not learned may be no word at all
    return Batch(tokens[:, :-1].copy(), targets, (shares / shares.sum()).astype(np.float32))


def split(examples: abc.Sequence[Example], held_out: float = 0.1, seed: int = 0) -> tuple[list[Example], list[Example]]:
    r"""`(train, held_out)`, each in the order of `examples`; no prompt stands on both sides.

    Examples with one prompt form a group (plain text: every example is its own), and about the fraction
    `held_out` of the groups, at least one, is held out. So no held-out meaning has been seen in training.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie between 0 and 1, got {held_out}")
    keys = [example.prompt or number for number, example in enumerate(examples)]
    groups = list(dict.fromkeys(keys))
    if len(groups) < 2:
        raise ValueError(
            f"splitting needs at least 2 different prompts (or pieces of plain text), got {len(groups)}: "
            f"one side would be empty"
        )
    n_held = min(max(round(held_out * len(groups)), 1), len(groups) - 1)
    chosen = {groups[i] for i in np.random.default_rng(seed).permutation(len(groups))[:n_held]}
    train = [example for key, example in zip(keys, examples, strict=True) if key not in chosen]
    return train, [example for key, example in zip(keys, examples, strict=True) if key in chosen]


@dataclass(frozen=True, eq=False)
class Batches:
    r"""Endless shuffled batches, addressed by step: `batches[step]`.

    A batch is a function of (seed, step) alone, so resuming needs nothing but the step. Every epoch is a new
    shuffle and holds every sequence once; one batch may be smaller. Rows of a batch have similar lengths.
    """

    sequences: abc.Sequence[Sequence]
    batch_size: int
    seed: int
    end: int
    # The plan of the epoch asked for last. It only saves time: a plan is always recomputed to the same value.
    _plans: dict[int, list[NDArray[np.int64]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.sequences:
            raise ValueError("batches need at least one sequence, got none")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.sequences) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"step must not be negative, got {step}")
        number, index = divmod(step, self.steps_per_epoch)
        return collate([self.sequences[i] for i in self._plan(number)[index]], self.end)

    def _plan(self, number: int) -> list[NDArray[np.int64]]:
        plan = self._plans.get(number)
        if plan is None:
            lengths = np.array([sequence.length for sequence in self.sequences])
            plan = _bucketed(lengths, self.batch_size, np.random.default_rng([self.seed, number]))
            self._plans.clear()
            self._plans[number] = plan
        return plan


def _bucketed(lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    r"""Indices of batches: shuffle, sort by length within buckets, cut, shuffle the batches."""
    shuffled = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(lengths), BUCKET_BATCHES * batch_size):
        bucket = shuffled[start : start + BUCKET_BATCHES * batch_size]
        by_length = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def epoch(sequences: abc.Sequence[Sequence], batch_size: int, end: int) -> Iterator[Batch]:
    r"""Every sequence once, in order of length, without chance: for evaluation."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    by_length = sorted(sequences, key=lambda sequence: sequence.length)
    for start in range(0, len(by_length), batch_size):
        yield collate(by_length[start : start + batch_size], end)
