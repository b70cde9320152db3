r"""The tasks of the study, by name: drawn from a seed, each with three sides that share no prompt.

What a task must be: `problems(n, seed, of)` gives examples of a side, the first n of any longer list; `score(problems,
texts)` judges what was written, metric by metric; where the task knows it, a bound.
"""

from __future__ import annotations

import string
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..tasks import Example, generate

SIDES = ("train", "validation", "test")


@dataclass(frozen=True)
class Generated:
    """A task that is drawn: a prompt lies on one side by what it reads alone."""

    name: str
    draw: Callable[[np.random.Generator], Example]

    def problems(self, n: int, seed: int = 0, of: str = "train") -> list[Example]:
        rng = np.random.default_rng([seed, SIDES.index(of), zlib.crc32(self.name.encode())])
        found: list[Example] = []
        while len(found) < n:
            example = self.draw(rng)
            number = zlib.crc32(example.prompt.encode()) % 10
            if SIDES[max(0, number - 7)] == of:
                found.append(example)
        return found

    def score(self, problems: Sequence[Example], texts: Sequence[str]) -> dict[str, float | None]:
        right = [p.reference.strip() == text.strip() for p, text in zip(problems, texts, strict=True)]
        return {"exact match": sum(right) / len(right)}


def _short(rng: np.random.Generator) -> Example:
    """A short task, for what asks for many runs: a word spelled backwards between its first and last letter."""
    letters = rng.choice(list(string.ascii_lowercase[:12]), 5)
    word = "".join(letters)
    return Example(word, word[::-1].upper())


TASKS = {
    task.name: task
    for task in (
        Generated("labels", lambda rng: generate(1, rng)[0]),
        Generated("reversal", _short),
    )
}
