r"""Text → label, three times: GLUE in miniature (Wang et al. 2019, arXiv:1804.07461).

    sentiment      the film is not dull → positive              SST-2: `not` turns a word; what follows `but` counts
    acceptability  the dogs near the tree is here → unacceptable  CoLA: number must agree, across what stands between
    entailment     two sentences → entailment or not            RTE: the second says a part of the first, or changes it

The text decides the label, so the best predictor pays nothing and is always right; each label is as likely as another,
so that guessing is right half the time. Of two sentences, a tab stands between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .metrics import label_accuracy, label_matthews
from .problems import Problem, Task

# fmt: off
GOOD = ("superb", "funny", "clever", "moving", "fresh", "charming", "rich", "witty", "tender", "bright", "bold", "warm")
BAD = ("dull", "stale", "clumsy", "boring", "flat", "silly", "cold", "messy", "lazy", "noisy", "weak", "grim")
PARTS = ("film", "plot", "cast", "music", "ending", "story", "acting", "script")

NOUNS = ("dog", "cat", "bird", "girl", "boy", "king", "nurse", "singer")
STATES = ("hungry", "asleep", "happy", "alone", "late", "quiet", "here", "tired")
AFTER = ("in the park", "all day", "at night", "every morning", "by the river", "without pause")
BETWEEN = ("tree", "tower", "bridge", "garden")

PEOPLE = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hope")
COLOURS = ("red", "blue", "green", "white", "black")
THINGS = ("bike", "boat", "clock", "lamp", "coat", "piano")
TOWNS = ("Bergen", "Lyon", "Turin", "Riga", "Quito", "Perth")
# fmt: on

SENTIMENTS = ("negative", "positive")
JUDGEMENTS = ("unacceptable", "acceptable")
RELATIONS = ("not_entailment", "entailment")


def draw_sentiment(rng: np.random.Generator) -> Problem:
    label = int(rng.integers(2))
    if rng.random() < 0.5:
        return _labelled(_clause(rng, label), SENTIMENTS[label])
    return _labelled(f"{_clause(rng, 1 - label)} but {_clause(rng, label)}", SENTIMENTS[label])


def _clause(rng: np.random.Generator, good: int) -> str:
    """`the plot is witty`, or `the plot is not dull`."""
    turned = int(rng.random() < 0.3)
    word = _one(rng, GOOD if good ^ turned else BAD)
    return f"the {_one(rng, PARTS)} is {'not ' * turned}{word}"


def draw_acceptability(rng: np.random.Generator) -> Problem:
    right, many = int(rng.integers(2)), int(rng.integers(2))
    noun, verb = _one(rng, NOUNS) + "s" * many, ("is", "are")[many if right else 1 - many]
    between = f" near the {_one(rng, BETWEEN)}{'s' * int(rng.integers(2))}" if rng.random() < 0.4 else ""
    return _labelled(f"the {noun}{between} {verb} {_one(rng, STATES)} {_one(rng, AFTER)}", JUDGEMENTS[right])


def draw_entailment(rng: np.random.Generator) -> Problem:
    a, b, c = (PEOPLE[int(i)] for i in rng.permutation(len(PEOPLE))[:3])
    colour, other_colour = (COLOURS[int(i)] for i in rng.permutation(len(COLOURS))[:2])
    thing, other_thing = (THINGS[int(i)] for i in rng.permutation(len(THINGS))[:2])
    town, other_town = (TOWNS[int(i)] for i in rng.permutation(len(TOWNS))[:2])
    true, false = (
        (f"{b} has a {thing}", f"{b} has a {other_thing}"),
        (f"the {thing} is {colour}", f"the {thing} is {other_colour}"),
        (f"{a} was in {town}", f"{a} was in {other_town}"),
        (f"{a} sold a {thing}", f"{c} sold a {thing}"),
    )[int(rng.integers(4))]
    label = int(rng.integers(2))
    premise = f"{a} sold a {colour} {thing} to {b} in {town}"
    return _labelled(f"{premise}\t{true if label else false}", RELATIONS[label])


def _labelled(text: str, label: str) -> Problem:
    return Problem(text, label, (label,), 0.0)


def _one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


METRICS = {"accuracy": label_accuracy, "Matthews": label_matthews}
SENTIMENT = Task("sentiment", "a remark → its sentiment (SST-2 in miniature)", draw_sentiment, METRICS, SENTIMENTS)
ACCEPTABILITY = Task(
    "acceptability", "a sentence → is it grammatical? (CoLA in miniature)", draw_acceptability, METRICS, JUDGEMENTS
)
ENTAILMENT = Task(
    "entailment", "two sentences → does one follow? (RTE in miniature)", draw_entailment, METRICS, RELATIONS
)
