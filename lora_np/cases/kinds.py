r"""What a case is: a loss written twice, and the point at which its gradients are compared; and how one is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..parameters import Arrays


@dataclass(frozen=True)
class Sample:
    """An operation and its textbook, two functions of the same positional arguments, at one point.

    arguments  by name, in order        arrays  those of them that can be differentiated
    """

    operation: str
    book: Callable[..., Any]
    arguments: dict[str, Any]
    arrays: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One scalar loss written twice, and the point (arrays by name) at which its gradients are compared."""

    name: str
    hand: Callable[[Arrays], Any]
    textbook: Callable[[Arrays], Any]
    point: Arrays
    size: float  # the sum of the absolute values of the terms of the loss, by which its rounding is judged
    device: str = "cpu"  # where `hand` takes its arrays; the textbook's stay on the host


@dataclass(frozen=True)
class Draw:
    """Random shapes and numbers for a sample: a few of each, or, `wide`, with all the shapes that have edges."""

    rng: np.random.Generator
    wide: bool = False

    def size(self, low: int = 2, high: int = 4) -> int:
        return int(self.rng.integers(1, 10) if self.wide else self.rng.integers(low, high + 1))

    def lead(self) -> tuple[int, ...]:
        """The leading axes of what an operation does row by row."""
        if not self.wide:
            return self.size(), self.size()
        shapes: list[tuple[int, ...]] = [(), (1,), (7,), (1, 1), (2, 5), (2, 1, 3)]
        return shapes[self.rng.integers(len(shapes))]

    def some(self) -> tuple[int, ...]:
        """Leading axes, at least one."""
        return self.lead() or (4,)

    def maybe(self) -> bool:
        """True; or, wide, true as often as not."""
        return not self.wide or bool(self.rng.random() < 0.5)

    def normal(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape)
