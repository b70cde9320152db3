r"""Notebooks for a class: blank for students, with answers and points for nbgrader; and what a learner has done.

A notebook is the JSON of nbformat 4, changed as plain data. An exercise is a code cell that assigns `...` to some names
and calls one `check_…` on them; its worked answer is the cell of the solutions that calls the same check.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Notebook = dict[str, Any]
Cell = dict[str, Any]

PREDICTION = "**Your prediction:** …"
STATES = ("passed", "not yet", "not tried")


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook, in the order of its lines.

    before   what the cell does first             names   what the reader is to give
    call     the check, as it is called           check   its name
    """

    before: str
    names: tuple[str, ...]
    call: str
    check: str


def exercise(source: str) -> Exercise | None:
    """The exercise in the source of a code cell, or None where there is none."""
    body = ast.parse(source).body
    places = [i for i, statement in enumerate(body) if _waits(statement)]
    if not places or (check := _check(body[-1])) is None:
        return None
    waiting = body[places[0]]
    assert isinstance(waiting, ast.Assign)
    target = waiting.targets[0]
    names = tuple(ast.unparse(name) for name in (target.elts if isinstance(target, ast.Tuple) else [target]))
    before = "\n".join(source.splitlines()[: waiting.lineno - 1]).rstrip()
    return Exercise(before, names, "\n".join(source.splitlines()[body[-1].lineno - 1 :]), check)


@dataclass(frozen=True)
class Worked:
    """A worked answer: what the cell of the solutions does before it calls the check, and with what it calls it."""

    statements: tuple[tuple[frozenset[str], str], ...]  # the names that each assigns, and its lines
    arguments: tuple[str, ...]


def answers(solutions: Notebook) -> dict[str, Worked]:
    """The worked answer for each check in a notebook of solutions: the first that its own cells give."""
    found: dict[str, Worked] = {}
    for cell in _code(solutions):
        source = _source(cell)
        before: list[tuple[frozenset[str], str]] = []
        for statement in ast.parse(source).body:
            lines = "\n".join(source.splitlines()[statement.lineno - 1 : statement.end_lineno])
            if check := _check(statement):
                call = statement.value  # type: ignore[attr-defined]
                found.setdefault(check, Worked(tuple(before), tuple(map(ast.unparse, call.args))))
            elif isinstance(statement, ast.Assign | ast.FunctionDef):
                before.append((_assigned(statement), lines))
    return found


def blank(notebook: Notebook) -> Notebook:
    """A student's version: nothing executed, a cell for each prediction, and what was seen folded away below it."""
    new = _unexecuted(notebook)
    cells: list[Cell] = []
    for cell in new["cells"]:
        text = _source(cell)
        if cell["cell_type"] == "markdown" and "**Seen.**" in text:
            seen, mark, rest = text.partition("**Predict.**")
            parts = [_folded(seen), mark + rest] if mark else [_folded(text)]
            for number, part in enumerate(parts):
                cells.append(_markdown(part, f"{cell['id']}-{number}"))
        else:
            cells.append(cell)
        if cell["cell_type"] == "markdown" and "**Predict.**" in text:
            cells.append(_markdown(PREDICTION, f"{cell['id']}-prediction"))
    new["cells"] = cells
    return new


def for_nbgrader(notebook: Notebook, solutions: Notebook) -> Notebook:
    """The version that nbgrader takes as a source: every exercise as a cell to answer, with the worked answer between
    the marks of a solution, and a locked cell of one point that checks it."""
    new, known = blank(notebook), answers(solutions)
    cells: list[Cell] = []
    for cell in new["cells"]:
        task = exercise(_source(cell)) if cell["cell_type"] == "code" else None
        if task is None:
            cells.append(cell)
            continue
        lines = [task.before, "### BEGIN SOLUTION", _answer(task, known[task.check]), "### END SOLUTION"]
        asked = [f"assert {name} is not ..., 'not answered'" for name in task.names]
        cells.append(_marked(cell, f"answer-{task.check}", "\n".join(filter(None, lines)), solution=True))
        cells.append(_marked(cell, task.check, "\n".join([*asked, task.call]), points=1))
    new["cells"] = cells
    return new


def progress(notebook: Notebook) -> dict[str, str]:
    """Of each check: "passed" where the stored output of its cell says so, "not yet" after a hint, else "not tried"."""
    states: dict[str, str] = {}
    for cell in _code(notebook):
        if (check := _called(_source(cell))) is None:
            continue
        printed = "".join("".join(output.get("text", "")) for output in cell.get("outputs", []))
        failed = any(output.get("output_type") == "error" for output in cell.get("outputs", []))
        states[check] = STATES[0] if "Right:" in printed and not failed else STATES[1] if failed else STATES[2]
    return states


def summary(states: Mapping[str, Mapping[str, str]]) -> str:
    """One line of how far a learner is: of all notebooks, then of each."""
    passed = {name: list(each.values()).count(STATES[0]) for name, each in states.items()}
    parts = ", ".join(f"{name[:2]} {passed[name]}/{len(each)}" for name, each in states.items())
    return f"lora_np tutorials: {sum(passed.values())} of {sum(map(len, states.values()))} checks passed ({parts})"


def _waits(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and any(
        isinstance(node, ast.Constant) and node.value is ... for node in ast.walk(statement.value)
    )


def _check(statement: ast.stmt) -> str | None:
    """The name of the check that a statement is a call of."""
    if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
        return None
    function = statement.value.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name if name.startswith("check_") else None


def _called(source: str) -> str | None:
    """The check that a learner's cell ends with; a cell that is no Python has none."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return None
    return _check(body[-1]) if body else None


def _answer(task: Exercise, worked: Worked) -> str:
    """The lines of a worked answer that end with the names that are asked for; what the exercise gives, or hands to
    the check, is not given anew."""
    given = {name for statement in ast.parse(task.before).body for name in _assigned(statement)}
    given |= {node.id for node in ast.walk(ast.parse(task.call)) if isinstance(node, ast.Name)} - {*task.names}
    lines = [source for names, source in worked.statements if not names <= given]
    named = [f"{name} = {value}" for name, value in zip(task.names, worked.arguments, strict=False) if name != value]
    return "\n".join([*lines, *named])


def _assigned(statement: ast.stmt) -> frozenset[str]:
    """The names that a statement gives a value to."""
    if isinstance(statement, ast.FunctionDef):
        return frozenset({statement.name})
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return frozenset(node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


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


def _folded(text: str) -> str:
    return f"<details><summary>What is seen</summary>\n\n{text.strip()}\n\n</details>"


def _markdown(text: str, name: str) -> Cell:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}


def _unexecuted(notebook: Notebook) -> Notebook:
    new = copy.deepcopy(notebook)
    for cell in _code(new):
        cell |= {"outputs": [], "execution_count": None}
    return new


def _code(notebook: Notebook) -> Iterator[Cell]:
    return (cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def _source(cell: Cell) -> str:
    return "".join(cell["source"])
