r"""Findings as tables that fit the terminal: no line is lost and no figure is cut, however narrow it is.

A table takes the width that it needs. Where that is more than there is, columns of words become narrower, down to their
longest word; where that is still too much, each row becomes a paragraph: its first cell, and below it the others with
their names.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from .streams import printable

PIPED = 160  # columns where nobody looks
FIGURES = 30  # characters up to which a cell with a digit in it is figures, not prose
TALL = 6  # lines of a row above which paragraphs read better


def table(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    # COLUMNS=0 is no width to shutil; in fewer than 20 columns nothing of a table of two can be shown
    width = max(20, shutil.get_terminal_size().columns) if terminal else PIPED
    console = Console(width=width, highlight=False, markup=False)
    cells = [tuple(printable(str(cell), kept="\n") for cell in row) for row in rows] if terminal else rows
    widths = fitting([head, *cells], width)
    if widths is not None:
        console.print(_framed(title, head, cells, widths))
        return
    console.print("\n".join(textwrap.wrap(title, width)) + "\n", soft_wrap=True)
    for first, *rest in cells:
        console.print("\n".join(textwrap.wrap(first, width - 2, initial_indent="  ", subsequent_indent="  ")) or "  -",
                      style="bold", soft_wrap=True)  # fmt: skip
        console.print("\n".join(paragraph(head[1:], rest, width)) + "\n", soft_wrap=True)


def _framed(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], widths: Sequence[int]) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    shown = Table(title=title, box=SIMPLE, title_justify="left", title_style="")
    for name, width in zip(head, widths, strict=True):
        shown.add_column(name, overflow="fold", width=width)
    for row in rows:
        shown.add_row(*row)
    return shown


def fitting(rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """The width of each column; None where the longest words of all do not stand side by side, or a row grows tall."""
    from rich.cells import cell_len

    columns = [[str(cell) for cell in column] for column in zip(*rows, strict=True)]
    natural = [max(cell_len(line) for cell in column for line in [*cell.splitlines(), ""]) for column in columns]
    least = [max(cell_len(word) for cell in column for word in [*unbroken(cell), ""]) for column in columns]
    room = width - 3 * len(columns) - 1  # what stands between the columns and around them
    if sum(natural) <= room:
        return natural
    if sum(least) > room:
        return None
    found = least
    for _ in range(room - sum(least)):  # a column after the other, always to the one that is most in need
        k = max(range(len(found)), key=lambda i: natural[i] / max(found[i], 1))
        found[k] += found[k] < natural[k]
    return found if all(n <= TALL * w for n, w in zip(natural, found, strict=True)) else None


def unbroken(cell: str) -> list[str]:
    """The parts of a cell that stay in one line: words, and figures with what belongs to them."""
    return [cell] if len(cell) <= FIGURES and any(c.isdigit() for c in cell) else cell.split()


def paragraph(names: Sequence[str], cells: Sequence[str], width: int) -> list[str]:
    """Cells with their names, as many on a line as fit, none broken but words that are longer than a line."""
    from rich.cells import cell_len

    lines = [""]
    for name, cell in zip(names, cells, strict=True):
        if not cell.strip():
            continue
        part, room = f"{name}: {cell}" if name else cell, width - 4
        if lines[-1] and cell_len(lines[-1]) + 3 + cell_len(part) <= room:
            lines[-1] += f"   {part}"
            continue
        if cell_len(part) > room and name and unbroken(cell) == [cell]:  # the figure on a line of its own
            lines += [f"{name}:", *textwrap.wrap(cell, room, initial_indent="  ", subsequent_indent="  ")]
            continue
        lines += textwrap.wrap(part, room, subsequent_indent="  ", break_on_hyphens=False)
    return [f"    {line}" for line in lines if line]
