r"""Read real files: plain text, two-column TSV and CSV, JSONL, the E2E data-to-text lines, and what `PUBLISHED` knows.

Every reader yields `(line, prompt, reference)`, so every complaint names a line of the file. Nothing is
repaired and nothing is skipped but blank lines: a file is read whole or refused with one sentence.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

from ..disk.reading import Contents, read_once
from .published import PUBLISHED, json_lines
from .sources import PAIR, Pairs, Source
from .sources import Example as Example

FORMATS = ("text", "tsv", "csv", "jsonl", "e2e", *PUBLISHED)
_SUFFIXES = {".txt": "text", ".md": "text", ".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "webnlg"}
_LONGEST_CHARACTER = 4  # bytes of the longest character in UTF-8

Columns = tuple[int, ...] | tuple[str, ...]


def read_examples(
    path: str | Path | Contents,
    format: str | None = None,
    *,
    prompt_field: str = "prompt",
    reference_field: str = "reference",
    columns: Columns | None = None,
    window: int | None = None,
) -> list[Example]:
    r"""All examples of a file, in its order.

    path       a regular file, or a pipe that is read to its end; or what `reading.read_once` gave
    format     one of FORMATS; None guesses from the suffix, and reads a .txt file as "e2e" when its first line
               has exactly one `||`, and a file whose first line is that of a published data set as that
    *_field    jsonl: the two fields to read
    columns    tsv, csv: which columns are prompt and reference, by number from 0, or by name when the first line
               is a header; of three, the first two are the two texts of the prompt. None asks for exactly two
               columns and no header
    window     text: the most UTF-8 bytes in one example; None makes the whole file one example. A text of w
               bytes needs a context of w + 1.

    Raises FileNotFoundError, IsADirectoryError, or ValueError that names the line.
    """
    source = Source.of(path if isinstance(path, Contents) else read_once(Path(path)))
    if format is None:
        as_it_is = columns is None and (prompt_field, reference_field) == ("prompt", "reference")
        format = _guess(source, published=as_it_is)
    match format:
        case "text":
            return _windows(source, window)
        case "tsv":
            pairs = _from_rows(source, _tsv_rows(source), columns)
        case "csv":
            pairs = _from_rows(source, _csv_rows(source), columns)
        case "jsonl":
            pairs = _jsonl(source, prompt_field, reference_field)
        case "e2e":
            pairs = _e2e(source)
        case _ if format in PUBLISHED:
            known = PUBLISHED[format]
            pairs = known.read(source) if known.read else _from_rows(source, _tsv_rows(source), known.columns)
        case _:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    examples = [_example(source, *pair) for pair in pairs]
    if not examples:
        raise ValueError(f"{source.path}: the file must hold at least one pair to learn from, found none")
    return examples


def _guess(source: Source, *, published: bool) -> str:
    suffix, first = source.path.suffix.lower(), source.first()
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"{source.path}: cannot tell the format from the suffix {suffix!r} "
            f"(known: {', '.join(_SUFFIXES)}): pass format, one of {', '.join(FORMATS)}"
        )
    if suffix == ".txt" and first.count("||") == 1:
        return "e2e"
    known = [name for name, row in PUBLISHED.items() if published and row.suffix == suffix and row.known(first)]
    return known[0] if known else _SUFFIXES[suffix]


def _example(source: Source, line: int, prompt: str, reference: str) -> Example:
    for side, text in (("prompt", prompt), ("reference", reference)):
        if not text.strip():
            raise source.error(line, f"the {side} must not be blank")
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise source.error(line, f"the {side} must be text, got an escaped NUL or lone surrogate")
    return Example(prompt, reference)


def _e2e(source: Source) -> Pairs:
    for number, line in source.lines():
        sides = line.split("||")
        if len(sides) != 2:
            found = "none" if len(sides) == 1 else str(len(sides) - 1)
            raise source.error(number, f"expected `meaning||reference` with one separator ||, found {found}")
        yield number, sides[0].strip(), sides[1].strip()


def _tsv_rows(source: Source) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split("\t")) for number, line in source.lines())


def _csv_rows(source: Source) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(source.text, newline=""), strict=True)
    first_line = 1  # a quoted cell may span lines: a row is named by the line it starts on
    try:
        for row in reader:
            if len(row) > 1 or any(cell.strip() for cell in row):
                yield first_line, row
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise source.error(first_line, f"not valid CSV: {error}") from None


def _from_rows(source: Source, rows: Iterator[tuple[int, list[str]]], columns: Columns | None) -> Pairs:
    first = next(rows, None)
    if first is None:
        return
    line, cells = first
    width = 2 if columns is None else len(cells)
    *prompt, reference = _indices(source, line, cells, columns)
    header = columns is not None and isinstance(columns[0], str)
    for number, row in rows if header else chain([first], rows):
        if len(row) != width:
            remedy = ": name two of them in `columns`" if columns is None and len(row) > 2 else ""
            raise source.error(number, f"expected {width} columns, found {len(row)}{remedy}")
        if not all(row[i].strip() for i in prompt):
            raise source.error(number, "the prompt must not be blank")
        yield number, PAIR.join(row[i] for i in prompt), row[reference]


def _indices(source: Source, line: int, cells: list[str], columns: Columns | None) -> list[int]:
    found: list[int] = []
    for column in (0, 1) if columns is None else columns:
        if isinstance(column, str) and column not in cells:
            raise source.error(line, f"the header must name {column!r}, got {', '.join(cells)}")
        found.append(cells.index(column) if isinstance(column, str) else column)
    if len(set(found)) != len(found) or min(found) < 0 or not 2 <= len(found) <= 3:
        raise ValueError(f"columns must be two different columns, or three, counted from 0, got {columns}")
    if columns is not None and max(found) >= len(cells):
        raise source.error(line, f"columns {columns} need {max(found) + 1} columns, found {len(cells)}")
    return found


def _jsonl(source: Source, prompt_field: str, reference_field: str) -> Pairs:
    for number, record in json_lines(source):
        for name in (prompt_field, reference_field):
            if not isinstance(record.get(name), str):
                got = type(record[name]).__name__ if name in record else "no such field"
                fields = ", ".join(record) or "none"
                raise source.error(number, f"field {name!r} must be a string, got {got}; fields: {fields}")
        yield number, record[prompt_field], record[reference_field]


def _windows(source: Source, window: int | None) -> list[Example]:
    if window is not None and window < _LONGEST_CHARACTER:
        raise ValueError(f"window must be at least {_LONGEST_CHARACTER} bytes, one character, got {window}")
    if not source.text.strip():
        raise ValueError(f"{source.path}: the file must hold some text, found only blank lines")
    data = source.text.encode("utf-8")
    cuts = [0]
    while cuts[-1] < len(data):
        cuts.append(len(data) if window is None else _cut(data, cuts[-1], window))
    return [Example("", data[i:j].decode("utf-8")) for i, j in pairwise(cuts)]


def _cut(data: bytes, start: int, window: int) -> int:
    r"""Where a window from `start` ends: after the last paragraph, line or word of its second half."""
    end = start + window
    if end >= len(data):
        return len(data)
    for mark in (b"\n\n", b"\n", b" "):
        found = data.rfind(mark, start + window // 2, end)
        if found >= 0:
            return found + len(mark)
    while data[end] & 0b1100_0000 == 0b1000_0000:  # a continuation byte: the character started earlier
        end -= 1
    return end
