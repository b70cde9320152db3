r"""A notebook as a student gets it, and its figures for a slide."""

from __future__ import annotations

import ast
import base64

from .notebooks import Cell, Notebook, source_of, unexecuted

PREDICTION = "**Your prediction:** …"


def blank(notebook: Notebook) -> Notebook:
    """A student's version: nothing executed, a cell for each prediction, and what was seen folded away below it."""
    new = unexecuted(notebook)
    cells: list[Cell] = []
    for cell in new["cells"]:
        text = source_of(cell)
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


def figures(notebook: Notebook) -> dict[str, tuple[str, bytes]]:
    """The stored pictures of an executed notebook: {"1-spectra": (the heading above it, PNG), ...}."""
    found: dict[str, tuple[str, bytes]] = {}
    heading = ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            headings = [line.lstrip("# ") for line in source_of(cell).splitlines() if line.startswith("#")]
            heading = headings[-1] if headings else heading
        for output in cell.get("outputs", []):
            if "image/png" in (data := output.get("data", {})):
                name = f"{len(found) + 1}-{_drawn_by(source_of(cell))}"
                found[name] = (heading, base64.b64decode("".join(data["image/png"])))
    return found


def _drawn_by(source: str) -> str:
    """The function that draws what a cell shows in the end: `spectra` of `show(pictures.spectra(…))`."""
    last = ast.parse(source).body[-1]
    calls = [node.func for node in ast.walk(last) if isinstance(node, ast.Call)]
    names = [call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls]
    return next((name for name in names if name and name != "show"), "figure")


def _folded(text: str) -> str:
    return f"<details><summary>What is seen</summary>\n\n{text.strip()}\n\n</details>"


def _markdown(text: str, name: str) -> Cell:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}
