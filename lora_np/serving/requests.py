r"""What is asked for and what is answered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model import Transformer

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One text to write.

    prompt        token ids, at least one               adapter      its name in the bank; None: the base alone
    most          tokens to write at the most           temperature  0 takes the likeliest; above 0 draws
    seed          of its own generator, so that what it draws does not depend on who is served beside it
    end           the token that ends a text, itself not part of it; None: none does
    stop          sequences of tokens, at the first of which the text ends, without it

    Raises ValueError for a prompt that is empty, a number of tokens below 1, a temperature below 0 or not finite, a
    seed below 0, or an empty stop.
    """

    prompt: Tokens
    adapter: str | None = None
    most: int = 100
    temperature: float = 0.0
    seed: int = 0
    end: int | None = None
    stop: tuple[Tokens, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tuple(int(token) for token in self.prompt))
        if not self.prompt:
            raise ValueError("the prompt is empty: it must hold at least one token")
        for name, least in (("most", 1), ("seed", 0)):
            value: Any = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        value = self.temperature
        if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"temperature must be a number of at least 0, got {value!r}")
        if not all(self.stop):
            raise ValueError("a stop must hold at least one token")

    def check(self, model: Transformer) -> None:
        """Raise ValueError for a prompt that is longer than the context, or holds a token that is none."""
        if len(self.prompt) > model.config.context:
            raise ValueError(
                f"the context holds {model.config.context} tokens, got a prompt of {len(self.prompt)}: shorten it"
            )
        words = model.tokens.words
        if wrong := [token for token in self.prompt if not 0 <= token < words]:
            raise ValueError(f"token ids must lie in 0..{words - 1}, got {wrong[0]}")


@dataclass(frozen=True)
class Answer:
    """What came of the request of this number.

    tokens   what was written               ended    "end", "stop", "length" or "context": why it is not longer
    error    why nothing could be written; None where it could
    """

    number: int
    request: Request
    tokens: Tokens
    ended: str
    error: str | None = None


class Writing:
    """A request while it is answered: what it wrote so far, and its own generator."""

    def __init__(self, number: int, request: Request) -> None:
        self.number, self.request = number, request
        self.written: list[int] = []
        self.rng = np.random.default_rng(request.seed)

    @property
    def will_be(self) -> int:
        """How many tokens will be read of it at the most: the last one that is written never is."""
        return len(self.request.prompt) + self.request.most - 1

    def takes(self, token: int, context: int) -> str | None:
        """Append the next token; why the text ends with it, or None where it goes on."""
        request = self.request
        if token == request.end:
            return "end"
        self.written.append(token)
        for stop in request.stop:
            if tuple(self.written[-len(stop) :]) == stop:
                del self.written[-len(stop) :]
                return "stop"
        if len(self.written) == request.most:
            return "length"
        return "context" if len(request.prompt) + len(self.written) > context else None

    def answer(self, ended: str) -> Answer:
        return Answer(self.number, self.request, tuple(self.written), ended)
