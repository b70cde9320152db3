r"""The generated tasks by name: a new one is its file and a row here."""

from __future__ import annotations

import numpy as np

from ..names import nearest_first
from . import generated
from .labels import ACCEPTABILITY, ENTAILMENT, SENTIMENT
from .memory import MEMORY
from .problems import Problem, Task
from .sentences import DART, E2E, METRICS, WEBNLG
from .sql import SQL
from .summary import SUMMARY


def _museum(rng: np.random.Generator) -> Problem:
    example = generated.generate(1, rng)[0]
    return Problem(example.prompt, example.reference, generated.ways(example.prompt), generated.entropy_bits(example))


MUSEUM = Task("museum", "four facts of an object → its label", _museum, METRICS)
TASKS = {
    task.name: task for task in (SQL, E2E, WEBNLG, DART, SUMMARY, SENTIMENT, ACCEPTABILITY, ENTAILMENT, MEMORY, MUSEUM)
}


def task_named(name: str) -> Task:
    """`TASKS[name]`; an unknown name raises ValueError that lists the known ones, nearest first."""
    if name not in TASKS:
        raise ValueError(f"task must be one of {nearest_first(name, TASKS)}; got {name!r}")
    return TASKS[name]
