r"""A query of WikiSQL in its parts, so that two queries can be compared whatever order and case they are written in.

    SELECT COUNT(col5) FROM table WHERE col1 = '3' AND col0 > 2

Two queries are one logical form where aggregate, selected column and conditions are the same; conditions in any order,
names and values in any case and white space, and 3 and '3' alike, as WikiSQL's own evaluation has it.

Source: Zhong et al. 2017, arXiv:1709.00103, section 4.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .published import AGGREGATES

_QUERY = re.compile(r"select (?P<what>.+?) from table(?: where (?P<where>.+))?", re.DOTALL)
_TOTAL = re.compile(rf"({'|'.join(name.lower() for name in AGGREGATES if name)})\((.+)\)", re.DOTALL)
_CONDITION = re.compile(r"(.+?) ([=<>]) ('(?:[^']|'')*'|-?[\d.]+(?:e[+-]?\d+)?)( and |$)", re.DOTALL)
PARTS = ("aggregate", "selected column", "columns of conditions", "comparisons and values")


@dataclass(frozen=True)
class Query:
    """aggregate and column of SELECT; conditions (column, comparison, value), sorted."""

    aggregate: str
    column: str
    conditions: tuple[tuple[str, str, str], ...]

    @property
    def parts(self) -> tuple[object, ...]:
        """As PARTS names them: the columns of conditions apart from what they are compared with."""
        columns = sorted(column for column, _, _ in self.conditions)
        return self.aggregate, self.column, columns, sorted(rest for _, *rest in self.conditions)


def read_query(text: str) -> Query | None:
    """The query that a text is, or None where it is none."""
    found = _QUERY.fullmatch(" ".join(text.split()).lower())
    if found is None:
        return None
    total = _TOTAL.fullmatch(found["what"])
    aggregate, column = total.groups() if total else ("", found["what"])
    conditions, at, where = [], 0, found["where"] or ""
    while at < len(where):
        condition = _CONDITION.match(where, at)
        if condition is None or (condition[4] and condition.end() == len(where)):
            return None
        conditions.append((condition[1], condition[2], _value(condition[3])))
        at = condition.end()
    return Query(aggregate, column, tuple(sorted(conditions)))


def wrong_parts(reference: str, text: str) -> tuple[str, ...]:
    """Which of PARTS are other than the reference's: none for the same logical form; `no query` where it is none.

    Where all parts are the same and still the forms differ, the conditions pair them in another way. Raises ValueError
    for a reference that is no query.
    """
    wanted, found = read_query(reference), read_query(text)
    if wanted is None:
        raise ValueError(f"the reference is no query: {reference}")
    if found is None:
        return ("no query",)
    other = tuple(name for name, a, b in zip(PARTS, wanted.parts, found.parts, strict=True) if a != b)
    return other or (() if wanted == found else ("pairs of conditions",))


def _value(text: str) -> str:
    if text.startswith("'"):
        return text[1:-1].replace("''", "'").strip()
    return text
