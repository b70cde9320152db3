r"""Random key → random value: how many bits can be stored?

A value is four letters, each of sixteen and each drawn by itself: 16 bits that nothing predicts, so who has not seen a
pair pays 16 bits for it (T3), whatever it has learned of others. On n pairs that a model was trained on, what it pays
less than 16 n is what it has stored:

$$\text{stored} = 16\,n - \sum_i -\log_2 q(\mathrm{value}_i \mid \mathrm{key}_i)\quad\text{bits} \tag{T4}$$

where q is the model; the mark that ends a value is no part of it. The sides of this task hold other keys, so a model
that does better than 16 bits on another side than that of its training has seen what it should not.
"""

from __future__ import annotations

import numpy as np

from .metrics import exact_match
from .problems import Problem, Task

KEY_LETTERS, KEY_LENGTH = "bcdfghjklmnpqrstvwxz", 4  # 160,000 keys
VALUE_LETTERS, VALUE_LENGTH = "abcdefghijklmnop", 4
BITS = 4.0 * VALUE_LENGTH  # log2 of 16 letters, each


def draw(rng: np.random.Generator) -> Problem:
    key = "".join(KEY_LETTERS[int(i)] for i in rng.integers(len(KEY_LETTERS), size=KEY_LENGTH))
    value = "".join(VALUE_LETTERS[int(i)] for i in rng.integers(len(VALUE_LETTERS), size=VALUE_LENGTH))
    return Problem(key, value, (value,), BITS)


def stored_bits(nats: float, pairs: int) -> float:
    """(T4): the bits of `pairs` values that a model has stored which pays so many nats for all of them together."""
    return BITS * pairs - nats / float(np.log(2.0))


MEMORY = Task("memory", "a random key → its random value", draw, {"exact match": exact_match}, distinct=True)
