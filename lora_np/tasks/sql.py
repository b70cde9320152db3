r"""Question → SQL on three small tables: WikiSQL in miniature (Zhong et al. 2017, arXiv:1709.00103).

The question decides the query, so the best predictor pays nothing. A query may be judged by how it reads, or by what it
finds: `execution_accuracy` runs it in sqlite3, in memory, where it may read and nothing else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

import numpy as np

from .metrics import exact_match
from .problems import Problem, Task
from .sources import Example

# Of each table the columns: a key, two of words, one of numbers; and its rows.
TABLES: dict[str, tuple[tuple[str, ...], tuple[tuple[str | int, ...], ...]]] = {
    "players": (
        ("name", "team", "role", "goals"),
        (
            ("Ada", "red", "keeper", 3), ("Ben", "red", "winger", 24), ("Cleo", "blue", "striker", 31),
            ("Dan", "green", "winger", 12), ("Eva", "blue", "keeper", 1), ("Finn", "white", "striker", 40),
            ("Gus", "green", "striker", 27), ("Hope", "white", "winger", 18), ("Ivy", "red", "striker", 35),
            ("Jon", "blue", "winger", 9), ("Kim", "green", "keeper", 2), ("Leo", "white", "keeper", 5),
        ),
    ),
    "ships": (
        ("ship", "port", "cargo", "length"),
        (
            ("Swift", "Bergen", "timber", 42), ("Comet", "Lisbon", "salt", 35), ("Otter", "Genoa", "wine", 28),
            ("Raven", "Bergen", "fish", 19), ("Heron", "Lisbon", "wine", 51), ("Tulip", "Riga", "timber", 63),
            ("Cedar", "Genoa", "salt", 47), ("Pearl", "Riga", "fish", 22), ("Storm", "Bergen", "salt", 56),
            ("Maple", "Lisbon", "fish", 31), ("Arrow", "Genoa", "timber", 68), ("Cloud", "Riga", "wine", 39),
        ),
    ),
    "films": (
        ("title", "genre", "country", "minutes"),
        (
            ("Harvest", "drama", "Poland", 92), ("Echo", "horror", "Japan", 81), ("Lantern", "comedy", "France", 77),
            ("Mirage", "drama", "Egypt", 95), ("Nomad", "western", "Poland", 88), ("Orbit", "comedy", "Japan", 70),
            ("Pilgrim", "drama", "France", 99), ("Quarry", "horror", "Egypt", 84), ("Ripple", "comedy", "Poland", 73),
            ("Summit", "western", "Japan", 90), ("Tempest", "horror", "France", 79), ("Umbra", "western", "Egypt", 86),
        ),
    ),
}  # fmt: skip
AGGREGATES = {"largest": "MAX", "smallest": "MIN", "average": "AVG", "total": "SUM"}
COMPARISONS = {"more than": ">", "less than": "<"}
MOST_STEPS = 10_000  # of SQLite's machine: a query of these tables takes a few hundred


def draw(rng: np.random.Generator) -> Problem:
    """A question about one of the tables, and its query; the tables' columns stand before the question."""
    table = _one(rng, tuple(TABLES))
    (key, first, second, number), rows = TABLES[table]
    row = rows[int(rng.integers(len(rows)))]
    i = int(rng.integers(1, 3))
    word, value = (key, first, second, number)[i], row[i]
    n, compared = int(rng.integers(1, 100)), _one(rng, tuple(COMPARISONS))
    how, sign = _one(rng, tuple(AGGREGATES)), COMPARISONS[compared]
    asked = _one(rng, (first, second, number))
    question, query = (
        (f"what is the {asked} of {row[0]}?", f"SELECT {asked} FROM {table} WHERE {key} = '{row[0]}'"),
        (f"which {table} have {word} {value}?", f"SELECT {key} FROM {table} WHERE {word} = '{value}'"),
        (f"how many {table} have {word} {value}?", f"SELECT COUNT({key}) FROM {table} WHERE {word} = '{value}'"),
        (f"which {table} have {number} {compared} {n}?", f"SELECT {key} FROM {table} WHERE {number} {sign} {n}"),
        (
            f"what is the {how} {number} of {table} with {word} {value}?",
            f"SELECT {AGGREGATES[how]}({number}) FROM {table} WHERE {word} = '{value}'",
        ),
        (
            f"which {table} have {word} {value} and {number} {compared} {n}?",
            f"SELECT {key} FROM {table} WHERE {word} = '{value}' AND {number} {sign} {n}",
        ),
    )[int(rng.integers(6))]
    prompt = f"{table} ({key}, {first}, {second}, {number}): {question}"
    return Problem(prompt, query, (query,), 0.0)


def execution_accuracy(examples: Sequence[Example], texts: Sequence[str]) -> float:
    """The share of queries that find in `TABLES` the rows that the reference finds, in whatever order."""
    return agreement([example.reference for example in examples], texts, database_of(TABLES))


def agreement(references: Sequence[str], queries: Sequence[str], database: sqlite3.Connection) -> float:
    """The share of queries that find what their references find; one that is no query, or takes too long, is wrong.

    Raises ValueError for a reference that cannot be run.
    """
    right = 0
    for reference, query in zip(references, queries, strict=True):
        wanted = found(database, reference)
        if wanted is None:
            raise ValueError(f"the reference is no query that can be run: {reference}")
        right += found(database, query) == wanted
    return right / len(references)


def found(database: sqlite3.Connection, query: str) -> list[tuple[str, ...]] | None:
    """The rows that a query finds, sorted, or None where it fails: it may only read, and only for so long.

    What a model wrote is not trusted: nothing but SELECT, columns and aggregates is allowed, and a bound is put to its
    steps and to the length of what it makes.
    """
    with_limits(database)
    try:
        rows = database.execute(query.strip()).fetchmany(1000)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError):  # ValueError: a NUL in it
        return None
    return sorted(tuple(map(repr, row)) for row in rows)


def with_limits(database: sqlite3.Connection) -> None:
    """Let this connection read, call plain functions, and stop after so many steps."""
    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ}
    plain = {"count", "min", "max", "avg", "sum", "total", "lower", "upper", "abs", "round", "length"}

    def judge(action: int, _: str | None, name: str | None, *__: object) -> int:
        fine = action in allowed or (action == sqlite3.SQLITE_FUNCTION and (name or "").lower() in plain)
        return sqlite3.SQLITE_OK if fine else sqlite3.SQLITE_DENY

    database.set_authorizer(judge)
    database.set_progress_handler(lambda: 1, MOST_STEPS)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1 << 16)


def database_of(tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[object]]]]) -> sqlite3.Connection:
    """Tables (columns, rows) in memory."""
    made = sqlite3.connect(":memory:")
    for name, (columns, rows) in tables.items():
        quoted = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
        made.execute(f'CREATE TABLE "{name}" ({quoted})')
        made.executemany(f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(columns))})', rows)
    return made


def _one(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


SQL = Task(
    "sql",
    "a question about a small table → the SQL that answers it (WikiSQL in miniature)",
    draw,
    {"exact match": exact_match, "execution accuracy": execution_accuracy},
)
