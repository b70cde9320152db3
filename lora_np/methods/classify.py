r"""A method beside a fresh head of classes: what `adapt --task classify` trains.

    apply    the base with a head that tells the labels apart (`model.with_head`), and the method beside it
    trained  what the method trains, and the whole head

The head is C rows of d and C biases, behind a pooler of d² + d numbers where it reads the first position:

$$|\Theta| = |\Theta_\text{method}| + C\,(d + 1)\;[\,+\,d^2 + d\,] \tag{C15}$$

A base that classifies already keeps its head, and its labels must be these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..config import TransformerConfig, pooler_width
from ..engine.arrays import Array
from ..method import Method
from ..model import with_head
from ..names import nearest_first
from ..parameters import Arrays, parameters


@dataclass(frozen=True)
class HeadOnly(Method):
    """Nothing beside the model: only the head of classes is trained, on what the base sees."""

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        return model

    def trained(self, model: Any) -> Arrays:
        return {}

    def numbers(self, config: TransformerConfig) -> int:
        return 0


@dataclass(frozen=True)
class Classify(Method):
    """A method, the labels to tell apart, and what the head reads: a row of `config.READS`.

    pooler   the arrays of the map before its logits, {"pooler.W": …}, where the base brought one; drawn without. It is
             trained, and stored with the head: no setting of the method

    Raises ValueError for fewer than two labels, and for some that are the same.
    """

    method: Method
    labels: tuple[str, ...]
    reads: str = "first"
    pooler: Mapping[str, Array] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"a classification needs at least 2 different labels, got {self.labels}")

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        """The adapted model; raises ValueError where the base has a head of classes for other labels."""
        if not model.config.classes:
            return self.method.apply(with_head(model, self.labels, self.reads, rng, self.pooler), rng)
        known = model.config.class_names
        for label in self.labels:
            if label not in known:
                raise ValueError(f"the head of this base knows {nearest_first(label, known)}; got the label {label!r}")
        if self.labels != known or self.reads != model.config.reads:
            raise ValueError(
                f"the head of this base reads the {model.config.reads} of {', '.join(known)}: keep to that"
            )
        return self.method.apply(model, rng)

    def trained(self, model: Any) -> Arrays:
        return {**self.method.trained(model), **parameters(model, "head.*")}

    def numbers(self, config: TransformerConfig) -> int:
        """(C15)."""
        head = replace(config, classes=len(self.labels), labels=self.labels, reads=self.reads, tied=True)
        width = pooler_width(head)
        own = (config.d_model + 1) * (len(self.labels) + width)
        return self.method.numbers(replace(head, classes=0, labels=(), reads="first")) + own

    def given(self, prompt: Array, config: TransformerConfig) -> Array:
        return self.method.given(prompt, config)

    def stored(self, model: Any) -> tuple[Any, Method]:
        found, method = self.method.stored(model)
        return found, replace(self, method=method)

    def multiply_adds(self, config: TransformerConfig) -> int:
        return self.method.multiply_adds(config)

    @property
    def positions(self) -> int:  # type: ignore[override]
        return self.method.positions

    @property
    def depth(self) -> int:  # type: ignore[override]
        return self.method.depth

    @property
    def rates(self) -> Mapping[str, float]:  # type: ignore[override]
        return self.method.rates
