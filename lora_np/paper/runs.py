r"""What a cell measures: adapt, train, score held-out problems; how much of the text before was forgotten.

Bits per byte are those of the held-out references and the mark that ends each. A run whose loss is no longer a number
has an infinite loss: for a learning rate that is an answer.
"""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import adaptation
from ..adaptation import Outcome, Text
from ..generation import generate
from ..method import Method
from ..methods import method_from
from ..model import Transformer
from ..optimization import TrainingConfig
from ..tasks import Batch, Example, encode, prompt_tokens
from ..tasks.problems import Problem
from ..tasks.table import TASKS, task_named
from ..tokenizers import ByteTokenizer
from ..training import NonFiniteError, evaluate
from .cells import Cell, Row
from .variants import VARIANTS

BITS = 1.0 / math.log(2.0)
READ, WINDOW = 6, 256  # windows of documentation, on which forgetting is measured, and the bytes of each
TEXTS = 16  # of held-out problems, for which the model writes an answer
LAST = 5  # steps, whose training loss is that of a run


def method_of(cell: Cell) -> Method:
    """Raises ValueError, with the nearest names, for an unknown method or setting."""
    if cell.method in VARIANTS:
        return VARIANTS[cell.method](**cell.with_settings)
    return method_from({"method": cell.method, "settings": cell.with_settings})


def training_of(cell: Cell, **changes: Any) -> TrainingConfig:
    """As `lora-np adapt` sets it up."""
    about = {"steps": cell.steps, "learning_rate": cell.rate, "warmup": min(20, cell.steps // 10), "seed": cell.seed}
    return TrainingConfig(**{**about, **changes})


@dataclass(frozen=True)
class Sides:
    """The problems of a cell: those to train on are of its seed, those held out are the same for all seeds."""

    train: Text
    held_out: Text
    problems: list[Problem]

    @classmethod
    def of(cls, cell: Cell, base: Transformer, method: Method | None = None) -> Sides:
        task = task_named(cell.task)
        held: list[Any] = task.problems(cell.scored, 0, cell.side)
        drawn: list[Any] = task.problems(cell.examples, cell.seed, "train")
        train = Text.of(drawn, base, method, batch_size=cell.batch, seed=cell.seed)
        return cls(train, Text.of(held, base, method, batch_size=16), held)


def trained(cell: Cell, base: Transformer, method: Method, sides: Sides, **more: Any) -> Outcome:
    """The run of a cell. Raises NonFiniteError where it leaves the numbers."""
    about = {"seed": cell.seed, **more}
    return adaptation.run(sides.train.batches, sides.held_out.bits_per_byte, base, method, training_of(cell), **about)


def run(cell: Cell, base: Transformer) -> Row:
    """Trained numbers, held-out loss before and after, training loss, and what was forgotten."""
    method = method_of(cell)
    sides = Sides.of(cell, base, method)
    numbers, before = method.numbers(base.config), Text.bits_per_byte(_plain(cell, base), base)
    try:
        outcome = trained(cell, base, method, sides)
    except NonFiniteError:
        return Row(cell, float(numbers), before, math.inf)
    fit = statistics.mean(outcome.losses[-LAST:]) * BITS
    forgot = forgotten(outcome.model, base) if cell.side == "test" else None
    return Row(cell, float(outcome.trained), before, outcome.score, fit, None, forgot)


def scored(cell: Cell, base: Transformer) -> Row:
    """The same, and what the texts that the model writes for held-out prompts are worth."""
    method = method_of(cell)
    sides = Sides.of(cell, base, method)
    before = Text.bits_per_byte(_plain(cell, base), base)
    try:
        outcome = trained(cell, base, method, sides)
    except NonFiniteError:
        return Row(cell, float(method.numbers(base.config)), before, math.inf)
    asked = sides.problems[:TEXTS]
    texts = [answer(outcome.model, method, problem) for problem in asked]
    found = TASKS[cell.task].score(asked, texts)
    more = {name: value for name, value in found.items() if value is not None}
    fit = statistics.mean(outcome.losses[-LAST:]) * BITS
    first = next(iter(found.values()), None)
    return Row(cell, float(outcome.trained), before, outcome.score, fit, first, None, more)


def answer(model: Transformer, method: Method, problem: Example) -> str:
    """What the adapted model writes after the prompt, taking the likeliest byte each time; some bytes too many."""
    bytes_ = ByteTokenizer()
    prompt = method.given(prompt_tokens(problem.prompt, bytes_), model.config)
    most = min(len(problem.reference.encode()) + 8, model.config.context - len(prompt))
    return bytes_.decode(list(generate(model, prompt, most, end=bytes_.end)))


def _plain(cell: Cell, base: Transformer) -> Text:
    return held_out_text(cell.task, cell.scored, cell.side, base.config.context)


@functools.lru_cache(maxsize=32)
def held_out_text(task: str, scored: int, side: str, context: int) -> Text:
    words = ByteTokenizer()
    return Text(encode(TASKS[task].problems(scored, 0, side), words, context), words)


def forgotten(model: Transformer, base: Transformer) -> float:
    """Bits per byte of documentation that the adapted model pays more than the base: what it forgot."""
    return (_of_documentation(model) - _of_documentation(base)) * BITS


def _of_documentation(model: Transformer) -> float:
    return evaluate(model, [_documentation(model.config.context)])


@functools.lru_cache(maxsize=2)
def _documentation(context: int) -> Batch:
    """Windows of the help topics of Python, of the kind that the base was made from."""
    from pydoc_data.topics import topics

    length = min(WINDOW, context)
    texts = sorted(text for text in topics.values() if len(text.encode()) > length)
    data = np.array([list(texts[i * (len(texts) // READ)].encode()[: length + 1]) for i in range(READ)])
    return Batch(data[:, :-1], data[:, 1:], np.full((READ, length), 1.0 / (READ * length), np.float32))
