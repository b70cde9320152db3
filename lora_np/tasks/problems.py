r"""What a generated task is: endless problems drawn from a seed, three sides that share no prompt, and a known bound.

A problem is an example whose maker knows all texts that answer it, how likely each is, and so the bits that the best
possible predictor pays for it: one that knows the task, and has not seen this problem,

$$b = -\log_2 p(\mathrm{reference} \mid \mathrm{prompt}) \tag{T3}$$

Where the prompt decides the answer, b = 0; of K equally likely sentences, b = log2 K.

A prompt lies on one side, train, validation or test, by what it reads alone (`side`). So the sides are disjoint whoever
draws from them, how often, and from whatever seed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .sources import Example

SIDES = ("train", "validation", "test")
PATIENCE = 10_000  # draws for one problem that is new, before a task counts as exhausted: of ten, at least one is right


@dataclass(frozen=True)
class Problem(Example):
    """An example, all texts that would have been as right (this one among them), and its bits (T3)."""

    references: tuple[str, ...]
    bits: float


Score = float | None  # None: cannot be said
Metric = Callable[[Sequence[Any], Sequence[str]], Score]


def chosen(prompt: str, references: Sequence[str], rng: np.random.Generator) -> Problem:
    """The problem whose reference is one of these, drawn uniformly; a text that stands twice is twice as likely."""
    text = references[int(rng.integers(len(references)))]
    return Problem(prompt, text, tuple(dict.fromkeys(references)), math.log2(len(references) / references.count(text)))


def side(prompt: str) -> str:
    """Which side a prompt lies on: of ten prompts, eight are to train on and one each to validate and to test."""
    number = zlib.crc32(prompt.encode()) % 10
    return SIDES[max(0, number - 7)]


@dataclass(frozen=True)
class Task:
    """A generated task.

    draw      a problem of any side, from a generator       metrics   name → what is asked of texts, beside problems
    labels    of a classification, else none                distinct  is every prompt drawn once only?
    """

    name: str
    about: str
    draw: Callable[[np.random.Generator], Problem]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    distinct: bool = False

    def problems(self, n: int, seed: int = 0, of: str = "train") -> list[Problem]:
        """The first `n` problems of a side, the same for the same seed, and the beginning of any longer list.

        Raises ValueError for an unknown side, an n below 1, a negative seed, and more than the task has.
        """
        if of not in SIDES:
            raise ValueError(f"a side is one of {', '.join(SIDES)}, got {of!r}")
        if type(n) is not int or n < 1:
            raise ValueError(f"n must be a whole number of at least 1, got {n!r}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        rng = np.random.default_rng([seed, SIDES.index(of), zlib.crc32(self.name.encode())])
        found: list[Problem] = []
        seen: set[str] = set()
        for _ in range(n):
            found.append(self._next(rng, of, seen))
            if self.distinct:
                seen.add(found[-1].prompt)
        return found

    def _next(self, rng: np.random.Generator, of: str, seen: set[str]) -> Problem:
        for _ in range(PATIENCE):
            problem = self.draw(rng)
            if side(problem.prompt) == of and problem.prompt not in seen:
                return problem
        raise ValueError(f"{self.name} has no more than {len(seen)} different prompts of the side {of}: ask for fewer")

    def score(self, problems: Sequence[Example], texts: Sequence[str]) -> dict[str, Score]:
        """Every metric of the task, of one text a problem; None where it cannot be said."""
        if len(problems) != len(texts) or not problems:
            raise ValueError(f"a score needs one text a problem, got {len(texts)} for {len(problems)}")
        return {name: metric(problems, texts) for name, metric in self.metrics.items()}


def bits_per_byte(problems: Sequence[Problem]) -> float:
    r"""Bits per byte that the best predictor pays for these references, and one END each: the bound of `adapt`'s score.

    No model can beat it on average over fresh problems; on a finite set only by having guessed what was drawn.
    """
    if not problems:
        raise ValueError("a bound needs at least one problem, got none")
    return sum(p.bits for p in problems) / sum(len(p.reference.encode()) + 1 for p in problems)
