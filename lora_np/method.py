r"""A method of adaptation is settings that can be applied: what is put beside a frozen model, and what is trained.

LoRA is one (`lora_np.lora`); the others are in `lora_np.methods`, where `METHODS` gives each its name. All that
the rest of the package asks of a method is here: files, gradient checks, costs and the command line know no other way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .config import TransformerConfig
from .engine.arrays import Array
from .parameters import Arrays

NUMBER = int | float | np.integer | np.floating  # one of NumPy as well, whatever its precision


class Method:
    r"""The settings of a method: a frozen dataclass, checked when it is made, with these members.

    apply(model, rng)      the model with what is new beside it; `model` is untouched and its arrays are shared. Without
                           rng nothing is drawn: for a skeleton, or where the new arrays will be replaced
    trained(model)         of an applied model, what is trained, by path
    numbers(config)        how many numbers that is, in closed form
    in_file(config)        how many numbers its file holds: those, unless it is stored as another method
    given(prompt, config)  the token ids of a prompt as the adapted model is to read them
    positions              how many places of the context the method takes for itself
    multiply_adds(config)  how many multiply-adds a token costs more while the method stands beside the model; what is
                           made once a call, whatever the number of its tokens, is not among them
    depth                  how many matrix products one block gets longer by, one after another, as the adapted model
                           is served: what can be merged is, and adds none
    grows_by, step         the setting that makes it larger, and in what steps; None where there is but one size
    rates                  {pattern: factor} of the learning rate, for what shall learn at another pace
    stored(model)          the adapted model and the method as which they are saved, if not as themselves
    """

    positions: ClassVar[int] = 0
    depth: ClassVar[int] = 0
    grows_by: ClassVar[str | None] = None
    step: ClassVar[int] = 1
    rates: ClassVar[Mapping[str, float]] = {}

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        raise NotImplementedError

    def trained(self, model: Any) -> Arrays:
        raise NotImplementedError

    def numbers(self, config: TransformerConfig) -> int:
        raise NotImplementedError

    def in_file(self, config: TransformerConfig) -> int:
        return self.numbers(config)

    def given(self, prompt: Array, config: TransformerConfig) -> Array:
        return prompt

    def stored(self, model: Any) -> tuple[Any, Method]:
        return model, self

    def multiply_adds(self, config: TransformerConfig) -> int:
        return 0


def one_of(name: str, value: object, allowed: Any) -> None:
    """Raise ValueError unless the value of this setting is an allowed one."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def whole(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless the value of this setting is a whole number of at least `least`."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def positive(name: str, value: object) -> None:
    """Raise ValueError unless the value of this setting is a finite number above 0."""
    try:
        number = float(value) if isinstance(value, NUMBER) and type(value) is not bool else -1.0
    except OverflowError:
        number = -1.0
    if not 0.0 < number < float("inf"):
        raise ValueError(f"{name} must be a positive number, got {str(value)[:40]}")
