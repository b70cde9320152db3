r"""What a notebook holds: its exercises, and the worked answers of its solutions."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Notebook = dict[str, Any]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook, in the order of its lines.

    before   what the cell does first             names   what the reader is to give
    asked    the lines that the reader changes    call    the check, as it is called
    check    its name
    """

    before: str
    names: tuple[str, ...]
    asked: str
    call: str
    check: str


def exercise(source: str) -> Exercise | None:
    """The exercise in the source of a code cell, or None where there is none."""
    body = ast.parse(source).body
    places = [i for i, statement in enumerate(body) if _waits(statement)]
    if not places or (check := check_of(body[-1])) is None:
        return None
    waiting = body[places[0]]
    assert isinstance(waiting, ast.Assign)
    target, lines = waiting.targets[0], source.splitlines()
    names = tuple(ast.unparse(name) for name in (target.elts if isinstance(target, ast.Tuple) else [target]))
    first, last = waiting.lineno - 1, body[-1].lineno - 1
    parts = ("\n".join(part).rstrip() for part in (lines[:first], lines[first:last], lines[last:]))
    before, asked, call = parts
    return Exercise(before, names, asked, call, check)


@dataclass(frozen=True)
class Worked:
    """A worked answer: what the cell of the solutions does before it calls the check, and with what it calls it."""

    statements: tuple[tuple[frozenset[str], str], ...]  # the names that each assigns, and its lines
    arguments: tuple[str, ...]


def answers(solutions: Notebook) -> dict[str, Worked]:
    """The worked answer for each check in a notebook of solutions: the first that its own cells give."""
    found: dict[str, Worked] = {}
    for cell in code_cells(solutions):
        source = source_of(cell)
        before: list[tuple[frozenset[str], str]] = []
        for statement in ast.parse(source).body:
            lines = "\n".join(source.splitlines()[statement.lineno - 1 : statement.end_lineno])
            if check := check_of(statement):
                call = statement.value  # type: ignore[attr-defined]
                found.setdefault(check, Worked(tuple(before), tuple(map(ast.unparse, call.args))))
            elif isinstance(statement, ast.Assign | ast.FunctionDef):
                before.append((assigned(statement), lines))
    return found


def check_of(statement: ast.stmt) -> str | None:
    """The name of the check that a statement is a call of."""
    if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
        return None
    function = statement.value.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name if name.startswith("check_") else None


def checks_in(source: str) -> list[str]:
    """The checks that a cell calls, in order; a cell that is no Python has none."""
    try:
        return [check for statement in ast.parse(source).body if (check := check_of(statement))]
    except SyntaxError:
        return []


def assigned(statement: ast.stmt) -> frozenset[str]:
    """The names that a statement gives a value to."""
    if isinstance(statement, ast.FunctionDef):
        return frozenset({statement.name})
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return frozenset(node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def unexecuted(notebook: Notebook) -> Notebook:
    """A copy without outputs."""
    new = copy.deepcopy(notebook)
    for cell in code_cells(new):
        cell |= {"outputs": [], "execution_count": None}
    return new


def code_cells(notebook: Notebook) -> Iterator[Cell]:
    return (cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def source_of(cell: Cell) -> str:
    return "".join(cell["source"])


def with_source(cell: Cell, text: str) -> Cell:
    """The same cell with another text."""
    return {**cell, "source": text.splitlines(keepends=True)}


def _waits(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and any(
        isinstance(node, ast.Constant) and node.value is ... for node in ast.walk(statement.value)
    )
