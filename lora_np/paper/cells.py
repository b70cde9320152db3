r"""A cell of the study is a pure function of its settings, and names its row; rows are kept in one file as they come.

    Cell → row_of → Row → results.csv, one line each, whole or not at all

A study that was killed, in the middle of a row even, goes on with the whole rows that it has: none is made twice. Since
a row follows from its settings alone, it is the same whoever makes it, and when.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..disk.reading import read_regular
from ..disk.writing import write_atomically
from ..method import whole

MEASURES = ("trained", "before", "loss", "fit", "score", "forgot")
SIDES = ("validation", "test")


@dataclass(frozen=True)
class Cell:
    r"""Which run of which method, and how it is scored.

    kind      how it is measured: a row of `measuring.KINDS`
    task      a row of `lora_np.tasks.table.TASKS`
    method    a row of METHODS or of `variants.VARIANTS`, and its settings as JSON
    rate      the largest learning rate
    examples  drawn to train on, batch of them a step
    scored    held-out examples, and of which side

    Raises ValueError for a number out of range.
    """

    kind: str = "run"
    task: str = "dart"
    method: str = "lora"
    settings: str = "{}"
    rate: float = 0.03
    steps: int = 20
    batch: int = 8
    examples: int = 512
    scored: int = 48
    side: str = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "examples", "scored"):
            whole(name, getattr(self, name))
        whole("seed", self.seed, least=0)
        if not 0.0 < self.rate < float("inf"):
            raise ValueError(f"rate must be a positive number, got {self.rate!r}")
        if self.side not in SIDES:
            raise ValueError(f"side must be one of {', '.join(SIDES)}, got {self.side!r}")

    def having(self, settings: Mapping[str, Any] | None = None, **changes: Any) -> Cell:
        """This cell with other settings."""
        if settings is not None:
            changes["settings"] = json.dumps(dict(settings), sort_keys=True)
        return replace(self, **changes)

    @property
    def with_settings(self) -> dict[str, Any]:
        """The settings of the method; lists as the tuples that methods take."""
        found = json.loads(self.settings)
        return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}

    @property
    def name(self) -> str:
        """All of it in a line: no two cells have one name."""
        return " ".join(_text(getattr(self, name)) for name in SETTINGS)


KINDS: dict[str, Any] = {setting.name: type(setting.default) for setting in fields(Cell)}
SETTINGS = tuple(KINDS)


@dataclass(frozen=True)
class Row:
    """What a cell came to; `more` holds, by name, what only cells of its kind have. None: it has no such measure."""

    cell: Cell
    trained: float | None = None
    before: float | None = None
    loss: float | None = None
    fit: float | None = None
    score: float | None = None
    forgot: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> bytes:
        """The row as it is kept."""
        values = [getattr(self.cell, name) for name in SETTINGS] + [getattr(self, name) for name in MEASURES]
        return _line([*map(_text, values), json.dumps(self.more, sort_keys=True)])


HEAD = (*SETTINGS, *MEASURES, "more")


def _text(value: Any) -> str:
    """A float by its shortest digits that give it back."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _line(values: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _row(values: list[str]) -> Row:
    """The row that these fields of a line say. Raises ValueError or TypeError for others."""
    if len(values) != len(HEAD):
        raise ValueError(f"{len(values)} fields where there are {len(HEAD)}")
    said = dict(zip(HEAD, values, strict=True))
    settings: Any = {name: KINDS[name](said[name]) for name in SETTINGS}
    cell = Cell(**settings)
    measures: Any = {name: float(said[name]) if said[name] else None for name in MEASURES}
    return Row(cell, more=json.loads(said["more"]), **measures)


@dataclass
class Results:
    """A file of rows, and what it holds; the only state of a study. `keep` adds a row that survives whatever comes."""

    path: Path
    rows: dict[Cell, Row] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path) -> Results:
        """The rows that are whole in this file, which is made if there is none; a row cut at its end is let go.

        Raises ValueError for a file of other columns, and for a line in its middle that is no row.
        """
        if not path.exists():
            write_atomically(path, _line(HEAD))
        data = read_regular(path).data
        end = data.rfind(b"\n") + 1
        lines = data[:end].decode("utf-8", errors="replace").splitlines()
        if not lines or tuple(next(csv.reader(lines[:1]))) != HEAD:
            raise ValueError(f"{path} is of another version: its columns are not {', '.join(HEAD)}")
        results = cls(path)
        for number, line in enumerate(lines[1:], 2):
            try:
                row = _row(next(csv.reader([line])))
            except (ValueError, TypeError, StopIteration) as error:
                raise ValueError(
                    f"{path}, line {number} is no row ({error}): remove it, and it is made again"
                ) from None
            results.rows.setdefault(row.cell, row)
        if end < len(data):
            os.truncate(path, end)
        return results

    def keep(self, row: Row) -> None:
        """Append it and wait until it is on the disk."""
        if row.cell in self.rows:
            return
        with open(self.path, "ab") as file:
            file.write(row.line)
            file.flush()
            os.fsync(file.fileno())
        self.rows[row.cell] = row

    def in_order(self, cells: Iterable[Cell]) -> None:
        """Write the rows anew in this order, which is that of no scheduler; those of other cells go."""
        self.rows = {cell: self.rows[cell] for cell in dict.fromkeys(cells)}
        write_atomically(self.path, _line(HEAD) + b"".join(row.line for row in self.rows.values()))


def as_parquet(rows: Iterable[Row], path: Path) -> None:
    """The same table as Parquet. Raises ImportError, in a line, without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError("Parquet needs the pyarrow package: pip install pyarrow, or leave --parquet out") from None
    found = list(rows)
    columns = {name: [getattr(row.cell, name) for row in found] for name in SETTINGS}
    columns |= {name: pyarrow.array([getattr(row, name) for row in found], pyarrow.float64()) for name in MEASURES}
    columns["more"] = [json.dumps(row.more, sort_keys=True) for row in found]
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), sink)
    write_atomically(path, sink.getvalue())
