r"""Notebooks that nbgrader takes, and what is handed out of them."""

from __future__ import annotations

import ast
from typing import Any

from .notebooks import Cell, Exercise, Notebook, Worked, answers, assigned, exercise, source_of
from .pages import blank
from .variants import VARIANTS, varied


def for_nbgrader(notebook: Notebook, solutions: Notebook, own_numbers: bool = False) -> Notebook:
    """The version that nbgrader takes as a source: every exercise as a cell to answer, with the worked answer between
    the marks of a solution, and a locked cell of one point that checks it.

    own_numbers   the locked cells take the numbers of whoever is graded
    """
    known = answers(solutions)

    def solved(task: Exercise) -> str:
        lines = [task.before, "### BEGIN SOLUTION", _answer(task, known[task.check]), "### END SOLUTION"]
        return "\n".join(filter(None, lines))

    return _graded(blank(notebook), solved, own_numbers)


def handed_out(notebook: Notebook, student: str) -> Notebook:
    """What one student gets of that: the exercises open, and in them this student's numbers."""
    return _graded(
        varied(blank(notebook), student), lambda task: "\n".join(filter(None, [task.before, task.asked])), False
    )


def _graded(page: Notebook, answer: Any, own_numbers: bool) -> Notebook:
    cells: list[Cell] = []
    for cell in page["cells"]:
        task = exercise(source_of(cell)) if cell["cell_type"] == "code" else None
        if task is None:
            cells.append(cell)
            continue
        cells.append(_marked(cell, f"answer-{task.check}", answer(task), solution=True))
        cells.append(_marked(cell, task.check, _checking(task, own_numbers), points=1))
    return {**page, "cells": cells}


def _checking(task: Exercise, own_numbers: bool) -> str:
    """The locked cell: is there an answer, what the exercise gives once more, and the check.

    What is given is drawn and imported anew, so that it is of no use to change it above.
    """
    asked = [f"assert {name} is not ..., 'not answered'" for name in task.names]
    lines = "\n".join(filter(None, [task.before if task.check in VARIANTS else _imports(task.before), task.call]))
    if own_numbers and task.check in VARIANTS:
        quoted = f'exec(mine("{task.check}", """\n{lines}\n"""))'
        return "\n".join(["from lora_np.handouts import mine", "", *asked, quoted])
    return "\n".join([*asked, lines])


def _imports(source: str) -> str:
    found = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(map(ast.unparse, found))


def _answer(task: Exercise, worked: Worked) -> str:
    """The lines of a worked answer that end with the names that are asked for; what the exercise gives, or hands to
    the check, is not given anew."""
    given = {name for statement in ast.parse(task.before).body for name in assigned(statement)}
    given |= {node.id for node in ast.walk(ast.parse(task.call)) if isinstance(node, ast.Name)} - {*task.names}
    lines = [source for names, source in worked.statements if not names <= given]
    named = [f"{name} = {value}" for name, value in zip(task.names, worked.arguments, strict=False) if name != value]
    return "\n".join([*lines, *named])


def _marked(cell: Cell, grade_id: str, source: str, *, points: int = 0, solution: bool = False) -> Cell:
    """A code cell as nbgrader knows it: one to answer, or a locked one that gives points."""
    about: dict[str, Any] = {
        "schema_version": 3,
        "grade_id": grade_id,
        "cell_type": "code",
        "grade": bool(points),
        "locked": not solution,
        "solution": solution,
        "task": False,
    }
    return {
        **cell,
        "id": grade_id.replace("_", "-"),
        "source": source.splitlines(keepends=True),
        "metadata": {"nbgrader": {**about, **({"points": points} if points else {})}},
    }
