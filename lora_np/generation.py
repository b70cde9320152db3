r"""Generation: one token after another, each from the logits of the last position.

Keys and values of what has been read are kept in preallocated arrays (`Transformer.caches`), so a further token costs
one position's work and not the whole sequence again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import overload

import numpy as np

from .engine.arrays import Array
from .engine.devices import explained_memory, to_host
from .model import Transformer, beside
from .tasks.batches import prompt_tokens
from .tokenizers import ByteTokenizer, Tokenizer, begun


@overload
def generate(
    model: Transformer,
    prompt: str,
    most: int = 100,
    *,
    temperature: float = 0.0,
    rng: np.random.Generator | None = None,
    end: int | None = None,
    tokenizer: Tokenizer | None = None,
    answer: bool = False,
) -> str: ...
@overload
def generate(
    model: Transformer,
    prompt: Array,
    most: int = 100,
    *,
    temperature: float = 0.0,
    rng: np.random.Generator | None = None,
    end: int | None = None,
) -> Iterator[int]: ...
def generate(
    model: Transformer,
    prompt: Array | str,
    most: int = 100,
    *,
    temperature: float = 0.0,
    rng: np.random.Generator | None = None,
    end: int | None = None,
    tokenizer: Tokenizer | None = None,
    answer: bool = False,
) -> Iterator[int] | str:
    """At most `most` tokens that follow `prompt` (seq,), one at a time; fewer at `end` or when the context is full.

    A prompt that is text gives text: what follows it, without it, up to the end that the tokenizer knows.

    temperature 0 takes the most likely token (of equals the first); above 0 a token is drawn by `rng` from
    softmax(logits / temperature). `end` itself is not yielded.
    tokenizer   of a text; bytes for a model of 256 tokens, `vocabularies.tokenizer_of` for one of other software
    answer      the text is a prompt as `lora-np adapt` lays it out, to be answered, not a beginning to go on with

    Raises ValueError for a temperature below 0 or not finite, for one above 0 without rng, for a prompt that is empty
    or longer than the context, for text without a tokenizer that fits, and for a model that does not predict what
    follows.

    >>> import numpy as np
    >>> from lora_np import TransformerConfig, generate, initialize
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> model = initialize(config, np.random.default_rng(0))
    >>> list(generate(model, np.array([1, 2, 3]), most=2)) == list(generate(model, np.array([1, 2, 3]), most=4))[:2]
    True
    >>> drawn = generate(model, np.array([1]), most=100, temperature=1.0, rng=np.random.default_rng(0))
    >>> len(list(drawn))  # the context holds 8, and one more can be told from them
    8
    """
    if not isinstance(prompt, str):
        if tokenizer is not None or answer:
            raise ValueError("tokenizer and answer belong to a prompt that is text: leave them out, or give the text")
        return _following(model, prompt, most, temperature, rng, end)
    found = fitting_tokenizer(model, tokenizer)
    given = prompt_tokens(prompt, found) if answer else begun(found, prompt)
    end = found.end if end is None else end
    return found.decode(np.array(list(_following(model, given, most, temperature, rng, end)), dtype=np.int64))


def fitting_tokenizer(model: Transformer, tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer, or bytes; raises ValueError where it has tokens that the model does not know."""
    vocab = model.config.vocab
    if tokenizer is None and vocab != ByteTokenizer().vocab:
        raise ValueError(
            f"the model reads {vocab} tokens, which are no bytes: pass tokenizer=, as "
            "lora_np.vocabularies.tokenizer_of(folder) gives it"
        )
    found = ByteTokenizer() if tokenizer is None else tokenizer
    if found.vocab > vocab:
        raise ValueError(f"the tokenizer has {found.vocab} tokens, and the model knows {vocab}: they do not fit")
    return found


def _following(
    model: Transformer, prompt: Array, most: int, temperature: float, rng: np.random.Generator | None, end: int | None
) -> Iterator[int]:
    check_writes(model)
    if not (math.isfinite(temperature) and temperature >= 0.0):
        raise ValueError(f"temperature must be a number of at least 0, got {temperature!r}")
    if not len(prompt):
        raise ValueError("the prompt is empty: it must hold at least one token")
    with explained_memory():
        caches = model.caches()
        logits = model(beside(model, np.asarray(prompt)[None]), caches=caches)[0, -1]
    for position in range(len(prompt), len(prompt) + most):
        token = int(logits.argmax()) if temperature == 0.0 else sample(logits, temperature, rng)
        if token == end:
            return
        yield token
        if position == model.config.context or position + 1 == len(prompt) + most:
            return
        with explained_memory():
            logits = model(beside(model, np.array([[token]])), caches=caches)[0, -1]


def check_writes(model: Transformer) -> None:
    """Raise ValueError for a model that does not predict what follows."""
    if model.config.classes or not model.config.causal:
        raise ValueError(
            f"a model must be causal to write text, and this one ({model.config.architecture}) is not: "
            "labels it can learn (--task classify)"
        )


def sample(logits: Array, temperature: float, rng: np.random.Generator | None) -> int:
    """A token drawn from softmax(logits / temperature), on the host and in float64; raises ValueError without rng."""
    if rng is None:
        raise ValueError("a temperature above 0 draws tokens: pass rng, a numpy.random.Generator")
    below = np.array(to_host(logits), np.float64)
    below -= below.max()
    with np.errstate(over="ignore"):  # far below the best at a tiny temperature: −∞, and a weight of 0
        weights = np.exp(below / temperature)
    return int(rng.choice(len(weights), p=weights / weights.sum()))
