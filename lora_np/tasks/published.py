r"""Data sets in the files in which they are published, known by their first lines: a new one is a row of `PUBLISHED`.

    sst2     TSV, header `sentence label`                               sentence → 0 or 1
    cola     TSV without header: source, label, mark, sentence          sentence → 0 or 1
    rte      TSV, header `index sentence1 sentence2 label`              two sentences → label
    webnlg   JSON {"entries": [{"1": {"modifiedtripleset", …}}]}        triples → each text
    dart     JSON [{"tripleset", "annotations"}]                        triples → each text
    wikisql  JSONL {"question", "table_id", "sql"}                      question → SQL

Triples are written as the paper's code writes them: `subject : property : object | …`. WikiSQL keeps the headers of
its tables in a second file, NAME.tables.jsonl for NAME.jsonl; where it lies beside, columns have their names and stand
before the question, else they are col0, col1 … as the file numbers them.

Sources: Wang et al. 2019, arXiv:1804.07461 (GLUE); Gardent et al. 2017; Nan et al. 2021; Zhong et al. 2017.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..disk.reading import read_regular
from .sources import Pairs, Source

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
COMPARISONS = ("=", ">", "<")


@dataclass(frozen=True)
class Published:
    """How a data set is known and read.

    suffix   of its files                         known    is this first line one of its?
    columns  of a TSV: those of text and label, by name where there is a header; or read: its pairs
    """

    suffix: str
    known: Callable[[str], bool]
    columns: tuple[str, ...] | tuple[int, ...] | None = None
    read: Callable[[Source], Pairs] | None = None


def webnlg(source: Source) -> Pairs:
    """A pair for every text of every entry."""
    for line, entry in _elements(source, r'\{\s*"entries"\s*:\s*\['):
        about = next(iter(entry.values()), None) if isinstance(entry, dict) and len(entry) == 1 else None
        triples = _listed(source, line, about, "modifiedtripleset")
        parts = [[_text(source, line, t, name) for name in ("subject", "property", "object")] for t in triples]
        for text in _listed(source, line, about, "lexicalisations"):
            yield line, _meaning(parts), _text(source, line, text, "lex")


def dart(source: Source) -> Pairs:
    """A pair for every text of every entry."""
    for line, entry in _elements(source, r"\["):
        triples = _listed(source, line, entry, "tripleset")
        for triple in triples:
            if not (isinstance(triple, list) and len(triple) == 3 and all(isinstance(part, str) for part in triple)):
                raise source.error(line, f"a triple must be three texts, got {json.dumps(triple)[:60]}")
        for text in _listed(source, line, entry, "annotations"):
            yield line, _meaning(triples), _text(source, line, text, "text")


def wikisql(source: Source) -> Pairs:
    """A pair for every question."""
    tables = _headers(source)
    for line, record in json_lines(source):
        question, query = _text(source, line, record, "question"), record.get("sql")
        header: list[str] | None = None
        if tables is not None:
            header = tables.get(str(record.get("table_id")))
            if header is None:
                raise source.error(line, f"no table {record.get('table_id')!r} stands in the file of tables beside it")
        before = f"{', '.join(header)} | " if header else ""
        yield line, before + question, _query(source, line, query, header)


def _query(source: Source, line: int, query: Any, header: list[str] | None) -> str:
    """SELECT … FROM table WHERE …, from the numbers of columns, aggregates and comparisons."""
    try:
        column, aggregate = _name(header, query["sel"]), AGGREGATES[_number(query["agg"])]
        conditions = [
            f"{_name(header, c)} {COMPARISONS[_number(sign)]} {_value(value)}" for c, sign, value in query["conds"]
        ]
    except (KeyError, IndexError, TypeError, ValueError):
        raise source.error(
            line, f"sql must hold sel, agg and conds in their numbers, got {json.dumps(query)[:80]}"
        ) from None
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {f'{aggregate}({column})' if aggregate else column} FROM table{where}"


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _name(header: list[str] | None, number: Any) -> str:
    return header[_number(number)] if header else f"col{_number(number)}"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if type(value) not in (int, float):
        raise ValueError
    return f"{value:g}" if float(value).is_integer() else str(value)


def _headers(source: Source) -> dict[str, list[str]] | None:
    """The columns of every table, by its name; None where the file of tables does not lie beside."""
    path = source.path.with_suffix(".tables.jsonl")
    if not path.is_file():
        return None
    beside, found = Source.of(read_regular(path)), {}
    for line, record in json_lines(beside):
        header = record.get("header")
        if not (isinstance(header, list) and header and all(isinstance(name, str) for name in header)):
            raise beside.error(line, "a table must have a header of texts")
        found[_text(beside, line, record, "id")] = header
    return found


# ------------------------------------------------------------------------------------------------------------- JSON


def json_lines(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object on every line; raises ValueError that names the line."""
    for number, line in source.lines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            place = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise source.error(number, f"expected one JSON object, got text that is not JSON: {place}") from None
        if not isinstance(record, dict):
            raise source.error(number, f"expected one JSON object, got {type(record).__name__}")
        yield number, record


def _elements(source: Source, opening: str) -> Iterator[tuple[int, Any]]:
    """The elements of the list behind `opening`, each with the line that it starts on; the list must be whole."""
    text, decoder = source.text, json.JSONDecoder()
    if not text.strip():
        return
    begin = re.match(r"\s*" + opening, text)
    if begin is None:
        raise source.error(1, f"expected {opening.replace(chr(92), '').replace('s*', '')}, got {text.strip()[:20]!r}")
    at, line, counted = begin.end(), 1, 0
    while True:
        at = _past(text, at, " \t\r\n,")
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text):
            raise source.error(line, "the list of entries is cut off before its ]")
        if text[at] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            wrong = line + (text.count("\n", counted, error.pos) if isinstance(error, json.JSONDecodeError) else 0)
            what = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deep"
            raise source.error(wrong, f"expected an entry in JSON, got text that is not: {what}") from None
        yield line, value


def _past(text: str, at: int, skipped: str) -> int:
    while at < len(text) and text[at] in skipped:
        at += 1
    return at


def _listed(source: Source, line: int, entry: Any, name: str) -> list[Any]:
    found = entry.get(name) if isinstance(entry, Mapping) else None
    if not (isinstance(found, list) and found):
        raise source.error(line, f"the entry must have {name!r}, a list that is not empty")
    return found


def _text(source: Source, line: int, entry: Any, name: str) -> str:
    found = entry.get(name) if isinstance(entry, Mapping) else None
    if not isinstance(found, str):
        got = "no such field" if found is None else type(found).__name__
        raise source.error(line, f"field {name!r} must be a string, got {got}")
    return found


def _meaning(triples: list[Any]) -> str:
    return " | ".join(" : ".join(triple) for triple in triples)


def _is_cola(line: str) -> bool:
    cells = line.split("\t")
    return len(cells) == 4 and cells[1] in ("0", "1") and not cells[2].strip("*?#%")


PUBLISHED = {
    "sst2": Published(".tsv", lambda line: line == "sentence\tlabel", ("sentence", "label")),
    "cola": Published(".tsv", _is_cola, (3, 1)),
    "rte": Published(
        ".tsv", lambda line: line == "index\tsentence1\tsentence2\tlabel", ("sentence1", "sentence2", "label")
    ),
    "webnlg": Published(".json", lambda line: line.startswith("{"), read=webnlg),
    "dart": Published(".json", lambda line: line.startswith("["), read=dart),
    "wikisql": Published(".jsonl", lambda line: '"table_id"' in line and '"sql"' in line, read=wikisql),
}
