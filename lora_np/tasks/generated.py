r"""A data-to-text task with a known answer: labels of a small museum.

The prompt lists four facts about an object; the reference is one of K sentences about them, drawn uniformly.
Nothing else is random once the prompt is known, so the task carries its own lower bound:

$$-\log_2 p(\mathrm{reference} \mid \mathrm{prompt}) = \log_2 K \tag{T2}$$

The K sentences start with K different letters: a perfect model pays all log2 K bits on the first byte and
nothing afterwards, because the rest is copied from the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .sources import Example

# fmt: off
OBJECTS = [  # each starts with a consonant, so that "a" is always right
    "barometer", "chess king", "clock key", "kite reel", "letter seal", "magic lantern",
    "music box", "nutcracker", "pocket sundial", "reading lamp", "ship's bell", "spice tin",
    "star globe", "tea caddy", "toy lion", "weather vane",
]
MATERIALS = [
    "birch", "bone", "brass", "cherry wood", "clay", "copper",
    "glass", "horn", "jade", "oak", "pear wood", "pewter",
    "silver", "slate", "tin", "walnut",
]
TOWNS = [
    "Bath", "Bergen", "Cairo", "Delft", "Ghent", "Kyoto",
    "Lima", "Lisbon", "Perth", "Prague", "Quito", "Riga",
    "Turin", "Uppsala", "Verona", "York",
]
YEARS = range(1650, 1900)
# fmt: on

FIELDS = ("object", "material", "town", "year")
TEMPLATES = (
    "The {object} of {material} was made in {town} in {year}.",
    "Made in {town} in {year}, this {object} is of {material}.",
    "From {town} comes a {object} of {material}, dated {year}.",
    "In {year} somebody in {town} shaped a {object} out of {material}.",
    "Visitors like the {object}: {material}, {year}, from {town}.",
    "Our {object} was bought in {town}; it is of {material}, from {year}.",
    "Please do not touch this {object} of {material} ({town}, {year}).",
    "A {object}, a piece of {material}, the year {year}: {town} at its best.",
)


def generate(n: int, rng: np.random.Generator) -> list[Example]:
    r"""`n` independent examples; facts and sentence are drawn uniformly.

    >>> example = generate(1, np.random.default_rng(0))[0]
    >>> example.prompt
    'object : tea caddy | material : pear wood | town : Perth | year : 1717'
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return [_draw(rng) for _ in range(n)]


def as_tsv(examples: Sequence[Example]) -> str:
    """The examples as the lines of a TSV file, prompt and reference, as `lora-np adapt` reads them."""
    return "".join(f"{example.prompt}\t{example.reference}\n" for example in examples)


def _draw(rng: np.random.Generator) -> Example:
    choices: tuple[Sequence[object], ...] = (OBJECTS, MATERIALS, TOWNS, YEARS)  # in the order of FIELDS
    facts = {name: str(values[int(rng.integers(len(values)))]) for name, values in zip(FIELDS, choices, strict=True)}
    prompt = " | ".join(f"{name} : {value}" for name, value in facts.items())
    return Example(prompt, TEMPLATES[rng.integers(len(TEMPLATES))].format(**facts))


def _facts(prompt: str) -> dict[str, str]:
    facts = dict(part.split(" : ", 1) for part in prompt.split(" | ") if " : " in part)
    if tuple(facts) != FIELDS:
        raise ValueError(f"the prompt must state {', '.join(FIELDS)}, in this order, got {prompt!r}")
    return facts


def ways(prompt: str) -> tuple[str, ...]:
    """The sentences that this prompt may get."""
    facts = _facts(prompt)
    return tuple(template.format(**facts) for template in TEMPLATES)


def entropy_bits(example: Example) -> float:
    r"""−log2 p(reference | prompt), exactly; (T2) whenever the sentences differ, as here they always do.

    A reference that the task cannot produce has probability zero and raises ValueError.
    """
    texts = ways(example.prompt)
    if example.reference not in texts:
        raise ValueError(f"no sentence of this task for this prompt reads {example.reference!r}")
    return math.log2(len(texts) / texts.count(example.reference))


def bits_per_byte_floor(examples: Sequence[Example]) -> float:
    r"""Bits per byte of the true distribution, which no model can beat on average over fresh examples.

    Bytes are those of the references plus one END each, the same that the loss counts. On a finite set a
    model can go below it only by luck: by having guessed which sentences were drawn.
    """
    if not examples:
        raise ValueError("a floor needs at least one example, got none")
    n_bytes = sum(len(example.reference.encode("utf-8")) + 1 for example in examples)
    return sum(entropy_bits(example) for example in examples) / n_bytes
