"""A file of Python in the parts that a reader takes one by one: what opens it, and then each definition by itself."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from itertools import groupby

from .docstrings import TAG

RANGE = re.compile(rf"\(({TAG})\) to \(({TAG})\)")
ONE = re.compile(rf"\b({TAG})\b")


@dataclass(frozen=True)
class Part:
    """A definition, or the lines before the first: its name, its docstring, and its code without that."""

    name: str
    doc: str
    code: str
    first: int  # line of the file

    def tags(self) -> list[str]:
        """The tags that its comments and its docstring bear, in the order of the code, then of the docstring."""
        comments = [line.partition("  # ")[2] for line in self.code.splitlines() if "  # " in line]
        found = [tag for comment in comments for tag in _tags(comment)]
        return list(dict.fromkeys([*found, *_tags(self.doc)]))


def _tags(text: str) -> list[str]:
    """(D1), (D2) and (D3) of "(D1) to (D3)"."""
    whole = RANGE.sub(lambda found: ", ".join(f"({tag})" for tag in _between(found[1], found[2])), text)
    return [tag for group in re.findall(r"\(([^()]*)\)", whole) for tag in ONE.findall(group)]


def _between(first: str, last: str) -> list[str]:
    if first[0] != last[0] or not (first[1:].isdigit() and last[1:].isdigit()):
        return [first, last]
    return [f"{first[0]}{number}" for number in range(int(first[1:]), int(last[1:]) + 1)]


def parts_of(source: str) -> tuple[str, list[Part]]:
    """The docstring of a module, and its parts."""
    tree, lines = ast.parse(source), source.splitlines()
    doc = ast.get_docstring(tree, clean=False) or ""
    body = tree.body[1:] if doc else tree.body
    definitions = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    groups = [list(group) for _, group in groupby(definitions, lambda node: node.name)]  # overloads are one part
    begins = [_begin(group[0], lines) for group in groups]
    ends = [*begins[1:], len(lines)][: len(begins)]
    found = []
    if opening := [node for node in body if _is_setting(node) and (not begins or node.lineno - 1 < begins[0])]:
        start = _begin(opening[0], lines)
        stop = begins[0] if begins else len(lines)
        found.append(Part("", "", _code(lines, start, stop, []), start + 1))
    for (*_, node), start, stop in zip(groups, begins, ends, strict=True):
        text = ast.get_docstring(node, clean=False) or ""
        hidden = [node.body[0]] if text and len(node.body) > 1 else []
        found.append(Part(node.name, text, _code(lines, start, stop, hidden), start + 1))
    return doc, found


def _is_setting(node: ast.stmt) -> bool:
    """Is it anything but an import, `__all__`, or a text alone?"""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return False
    return not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")


def _begin(node: ast.stmt, lines: list[str]) -> int:
    """The first line of a definition, from 0, with its decorators and the comments that stand directly above it."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    return first


def _code(lines: list[str], start: int, stop: int, hidden: list[ast.stmt]) -> str:
    away = {number for node in hidden for number in range(node.lineno - 1, (node.end_lineno or 0))}
    kept = [lines[number] for number in range(start, stop) if number not in away]
    return "\n".join(kept).strip("\n")
