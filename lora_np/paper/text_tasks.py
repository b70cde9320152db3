r"""What a language model is asked on published data: how a file is parted, and how its texts are judged.

    e2e      meaning → sentence     parted by meanings: none stands on both sides; BLEU and slots
    wikisql  question → query       parted by tables and by questions: none stands on both sides; equal queries

A judgement stands beside one that needs no model, so that a reader sees what it is worth: of E2E the references
themselves, of WikiSQL a guess of columns that has read no question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..disk.reading import read_regular
from ..tasks import Example, read_examples, split
from ..tasks.metrics import bleu
from ..tasks.problems import Problem
from ..tasks.published import json_lines
from ..tasks.queries import PARTS, read_query, wrong_parts
from ..tasks.realising import realised, slots_in, words_of
from ..tasks.sources import Source
from .intervals import Share

Scores = dict[str, Share | float | str]
Examples = list[Example]
Columns = tuple[str, tuple[str, ...]]  # the selected one, and those of conditions


@dataclass(frozen=True)
class TextTask:
    """How a file is parted, so many prompts held out of so many examples, and what is asked of texts.

    most     tokens of an answer                            score    of problems and their texts, by name
    without  (train, held out) → (what needs no model, its scores)   wrong   what a text lacks, "" where nothing
    """

    name: str
    about: str
    most: int
    part: Callable[[Path, int, int | None], tuple[Examples, Examples]]
    score: Callable[[Sequence[Problem], Sequence[str]], Scores]
    without: Callable[[Examples, Sequence[Problem]], tuple[str, Scores]]
    wrong: Callable[[Problem, str], str]


def problems_of(examples: Sequence[Example]) -> list[Problem]:
    """A problem for every prompt, with all its references, in the order of the examples."""
    found: dict[str, list[str]] = {}
    for example in examples:
        found.setdefault(example.prompt, []).append(example.reference)
    return [Problem(prompt, texts[0], tuple(texts), 0.0) for prompt, texts in found.items()]


# --------------------------------------------------------------------------------------------------------------- E2E


def part_meanings(path: Path, held_out: int, examples: int | None) -> tuple[Examples, Examples]:
    """(train, held out) with so many meanings held out, whole; of the others so many examples at the most."""
    read = read_examples(path, "e2e")
    meanings = len({example.prompt for example in read})
    if not 1 <= held_out < meanings:
        raise ValueError(f"{path} has {meanings} meanings: hold out 1 to {meanings - 1} of them, not {held_out}")
    train, held = split(read, held_out / meanings, seed=0)
    return train[:examples], held


def score_sentences(problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
    """BLEU of the texts, and what they say of the slots of their meanings."""
    found: Scores = {"BLEU": bleu_of(problems, texts)}
    return found | said_slots(problems, [(text,) for text in texts])


def said_slots(problems: Sequence[Problem], texts: Sequence[Sequence[str]]) -> Scores:
    """Of texts, any number a problem: how many values they say, how many that are not theirs, which say every slot."""
    said: dict[str, list[bool]] = {}
    other: list[bool] = []
    whole: list[bool] = []
    values = Counter(slot for problem in problems for slot in slots_in(problem.prompt))
    for problem, mine in zip(problems, texts, strict=True):
        slots = slots_in(problem.prompt)
        for text in mine:
            right = [realised(name, value, text) for name, value in slots]
            whole.append(all(right))
            for (name, value), one in zip(slots, right, strict=True):
                said.setdefault(name, []).append(one)
                other += [realised(name, v, text) for n, v in values if n == name and v != value]
    found: Scores = {"slot values said": _part([one for every in said.values() for one in every])}
    found |= {f"{name} said": _part(every) for name, every in said.items()}
    found |= {"other values of the slots said": _part(other)} if other else {}
    return found | {"texts that say every slot": Share(sum(whole), len(whole))}


def bleu_of(problems: Sequence[Problem], texts: Sequence[str]) -> float | str:
    try:
        return bleu(problems, texts)
    except ImportError as error:
        return f"cannot be said: {error}"


def the_references(train: Examples, problems: Sequence[Problem]) -> tuple[str, Scores]:
    """The references under the same measures; for BLEU the first one of each meaning, beside its others."""
    rest = [Problem(p.prompt, p.references[1], p.references[1:], 0.0) for p in problems if len(p.references) > 1]
    first = [p.references[0] for p in problems if len(p.references) > 1]
    scores: Scores = {"BLEU": bleu_of(rest, first) if rest else "cannot be said: one reference each"}
    return "the references", scores | said_slots(problems, [p.references for p in problems])


def unsaid(problem: Problem, text: str) -> str:
    """The slots that the text does not say."""
    return ", ".join(f"{name} : {value}" for name, value in slots_in(problem.prompt) if not realised(name, value, text))


def _part(found: Sequence[bool]) -> float:
    return sum(found) / len(found)


# ----------------------------------------------------------------------------------------------------------- WikiSQL


def part_tables(path: Path, held_out: int, examples: int | None) -> tuple[Examples, Examples]:
    """(train, held out) of so many questions in all: whole tables in an order drawn by seed 0, the first held out.

    The last table of each side is cut where the number is reached. A question is held out once, and trained on nowhere.
    """
    read = read_examples(path, "wikisql")
    about = [(str(record["table_id"]), " ".join(words_of(str(record["question"])))) for record in _records(path)]
    tables = list(dict.fromkeys(table for table, _ in about))
    asked: dict[str, list[int]] = {table: [] for table in tables}
    for number, (table, _) in enumerate(about):
        asked[table].append(number)
    order = [asked[tables[i]] for i in np.random.default_rng(0).permutation(len(tables))]
    chosen: dict[str, int] = {}
    while order and len(chosen) < held_out:
        for i in order.pop(0):
            chosen.setdefault(about[i][1], i)
    held, known = list(chosen.values())[:held_out], set(chosen)
    rest = [i for table in order for i in table if about[i][1] not in known]
    train = rest[: None if examples is None else max(0, examples - len(held))]
    if len(held) < held_out or not train:
        raise ValueError(f"{path} has {len(read)} questions of {len(tables)} tables: hold out fewer than {held_out}")
    return [read[i] for i in train], [read[i] for i in held]


def score_queries(problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
    """The shares of queries that read as their reference, are the same logical form, or have a part right."""
    wrong = [wrong_parts(p.reference, text) for p, text in zip(problems, texts, strict=True)]
    exact = [" ".join(p.reference.split()) == " ".join(text.split()) for p, text in zip(problems, texts, strict=True)]
    columns = set(PARTS[1:3])
    found = {
        "exact match": exact,
        "same logical form": [not parts for parts in wrong],
        "all but the columns": [set(parts) <= columns for parts in wrong],
        **{f"{name} right": [name not in parts and "no query" not in parts for parts in wrong] for name in PARTS},
    }
    return {name: Share(sum(right), len(right)) for name, right in found.items()}


def guessed_columns(train: Examples, problems: Sequence[Problem]) -> tuple[str, Scores]:
    """What comes of the columns that are the commonest among queries of as many conditions, and all else right."""
    counted: dict[int, Counter[Columns]] = {}
    for example in train:
        n, columns = _columns(example.reference)
        counted.setdefault(n, Counter())[columns] += 1
    best = {n: found.most_common(1)[0][0] for n, found in counted.items()}
    pairs = [(columns, best.get(n, ("", ()))) for n, columns in (_columns(p.reference) for p in problems)]
    found = {
        "same logical form": [truth == guess for truth, guess in pairs],
        f"{PARTS[1]} right": [truth[0] == guess[0] for truth, guess in pairs],
        f"{PARTS[2]} right": [truth[1] == guess[1] for truth, guess in pairs],
    }
    return "columns guessed", {name: Share(sum(right), len(right)) for name, right in found.items()}


def misread(problem: Problem, text: str) -> str:
    """The parts of a query that are wrong."""
    return ", ".join(wrong_parts(problem.reference, text))


def _columns(reference: str) -> tuple[int, Columns]:
    """How many conditions a query has; its column, and theirs."""
    query = read_query(reference)
    assert query is not None
    return len(query.conditions), (query.column, tuple(sorted(column for column, _, _ in query.conditions)))


def _records(path: Path) -> list[Mapping[str, object]]:
    return [record for _, record in json_lines(Source.of(read_regular(path)))]


TEXT_TASKS = {
    task.name: task
    for task in (
        TextTask("e2e", "meaning → sentence", 80, part_meanings, score_sentences, the_references, unsaid),
        TextTask("wikisql", "question → query", 64, part_tables, score_queries, guessed_columns, misread),
    )
}
