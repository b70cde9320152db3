r"""Dialogue → summary: SAMSum in miniature (Gliwa et al. 2019, arXiv:1911.12237).

Two friends write three or four lines; what came of it has two summaries that are equally likely and begin differently:
one bit (T3). A day or a place that was proposed and refused stands in the dialogue and in no summary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .metrics import any_match, bleu
from .problems import Problem, Task, chosen

# fmt: off
PEOPLE = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hope")
DAYS = ("Monday", "Tuesday", "Thursday", "Friday", "Sunday")
PLACES = ("museum", "harbour", "market", "library", "zoo", "theatre")
THINGS = ("bike", "ladder", "camera", "tent", "drill", "guitar")
ENDS = ("thanks!", "great", "perfect", "ok!")
# fmt: on


def draw(rng: np.random.Generator) -> Problem:
    a, b = (PEOPLE[int(i)] for i in rng.permutation(len(PEOPLE))[:2])
    early, late = (DAYS[int(i)] for i in rng.permutation(len(DAYS))[:2])
    place, thing, end = (_one(rng, choices) for choices in (PLACES, THINGS, ENDS))
    lines, ways = (
        (
            (f"{a}: {place} on {early}?", f"{b}: {early} is bad. {late}?", f"{a}: {end}"),
            (f"{a} and {b} will meet at the {place} on {late}.", f"On {late} {a} and {b} will go to the {place}."),
        ),
        (
            (f"{a}: can I have your {thing}?", f"{b}: sure, come on {late}", f"{a}: {end}"),
            (f"{b} will lend {a} a {thing} on {late}.", f"On {late} {a} will get the {thing} of {b}."),
        ),
        (
            (f"{a}: can I have your {thing}?", f"{b}: sorry, it is broken", f"{a}: oh no"),
            (f"{b} cannot lend {a} a {thing}.", f"The {thing} of {b} is broken, so {a} cannot have it."),
        ),
        (
            (f"{a}: I am late", f"{b}: I wait at the {place}", f"{a}: {end}"),
            (f"{b} waits for {a} at the {place}.", f"At the {place} {b} waits for {a}."),
        ),
    )[int(rng.integers(4))]
    return chosen(" / ".join(lines), ways, rng)


def rouge_l(examples: Sequence[Problem], texts: Sequence[str]) -> float:
    r"""The mean over texts of the best F1 of their longest common subsequence of words with a reference.

    Source: Lin 2004, ROUGE-L; words are what stands between white space, in small letters, without marks at their ends.
    """
    scores = [max(_f1(_words(r), _words(text)) for r in e.references) for e, text in zip(examples, texts, strict=True)]
    return sum(scores) / len(scores)


def _words(text: str) -> list[str]:
    return [word for part in text.lower().split() if (word := part.strip(".,:;!?\"'()"))]


def _f1(one: list[str], two: list[str]) -> float:
    """2 L / (n + m), with L the length of the longest common subsequence; 0 where both are empty."""
    row = [0] * (len(two) + 1)
    for word in one:
        before = row.copy()
        for j, other in enumerate(two):
            row[j + 1] = before[j] + 1 if word == other else max(row[j], before[j + 1])
    return 2.0 * row[-1] / max(len(one) + len(two), 1)


def _one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


SUMMARY = Task(
    "summary",
    "a dialogue → what came of it (SAMSum in miniature)",
    draw,
    {"one of the right texts": any_match, "ROUGE-L": rouge_l, "BLEU": bleu},
)
