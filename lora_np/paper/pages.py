r"""The ledger and the errata as pages of Markdown, and how such a page is written to a file."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..disk.marks import there
from ..disk.reading import kind_of, read_regular
from ..disk.writing import write_atomically, write_new
from .entry import Entry
from .errata import Erratum
from .ledger import in_one_line, tally
from .printed import VERDICTS

MARK = "<!-- lora-np ledger wrote this page: change lora_np/paper and write it again -->"

LEDGER_HEAD = """\
# The LoRA paper, recomputed

Every number of Hu et al. 2021 (arXiv:2106.09685v2) that arithmetic can reproduce, beside what comes out.
Counts of trained numbers are those of this package's own methods on the sizes of the models.

| verdict | what it says of the printed number |
| --- | --- |
| = | it is the value, rounded to the digits that are printed; half way, both neighbours count |
| ~ | the value, rounded, has one more or one less in the last printed digit, as when digits are cut off |
| ≠ | neither; a fraction has no last digit, so it is = or ≠ |
| – | nothing is printed: the number is left to the reader |

≈ stands before a number that the paper calls rough: zeros at its end are no printed digits.

L layers, d width, V words, n positions, r rank, K adapted matrices in a block, l_p and l_i special tokens before and
behind the prompt, N numbers of a model, T of them trained, s = α/r.
"""

ERRATA_HEAD = """\
# Where the LoRA paper contradicts itself

Pairs of statements that should agree and do not: within Hu et al. 2021 (arXiv:2106.09685v2), with its own arithmetic,
or with the authors' repository (microsoft/LoRA). Each is derived from the printed tables, and each has a test.
Numbers that arithmetic alone disagrees with are in [the ledger](ledger.md).
"""


def ledger_page(entries: Sequence[Entry]) -> str:
    """A table for each place, after a table of how many verdicts each has."""
    by_place: dict[str, list[Entry]] = {}
    for entry in entries:
        by_place.setdefault(entry.place, []).append(entry)
    counts = [(place, *tally(found).values()) for place, found in by_place.items()]
    total = ("all", *tally(entries).values())
    parts = [MARK, LEDGER_HEAD, _table(("place", *VERDICTS), [*counts, total]), f"{in_one_line(entries)}.\n"]
    for place, found in by_place.items():
        parts += [f"## {place}\n", _table(COLUMNS, [row_of(entry) for entry in found])]
    return "\n".join(parts)


def errata_page(found: Sequence[Erratum]) -> str:
    """A section for each contradiction: its pairs, and what to make of it."""
    parts = [MARK, ERRATA_HEAD]
    for erratum in found:
        parts += [
            f"## ({erratum.letter}) {erratum.title}\n",
            _table(PAIR_COLUMNS, pairs_of(erratum)),
            f"{erratum.note}\n",
        ]
    return "\n".join(parts)


COLUMNS = ("what", "printed", "value", "", "formula", "with", "why")
PAIR_COLUMNS = ("what", "where", "says", "where", "says")


def row_of(entry: Entry) -> tuple[str, ...]:
    printed = "" if entry.printed is None else "≈" * entry.printed.rough + entry.printed.text
    return (entry.row, printed, entry.shown, entry.verdict, entry.formula, entry.quantities, entry.note)


def pairs_of(erratum: Erratum) -> list[tuple[str, ...]]:
    return [
        (pair.thing, pair.places[0], _in_words(pair.values[0]), pair.places[1], _in_words(pair.values[1]))
        for pair in erratum.pairs
    ]


def write_page(path: Path, text: str, *, overwrite: bool) -> None:
    """Write a page whole or not at all. Raises OSError where anything but such a page stands, or one may not go."""
    found = there(path)
    if found is None:
        return write_new(path, text.encode())
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(f"{path} exists and is {kind_of(found)}, not a page of the ledger: choose another --out")
    if not read_regular(path).data.startswith(MARK.encode()):
        raise FileExistsError(f"{path} exists and is not a page that lora-np ledger wrote: choose another --out")
    if not overwrite:
        raise FileExistsError(f"{path} exists: choose another --out, or allow --overwrite")
    return write_atomically(path, text.encode())


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _in_words(value: Any) -> str:
    return str(value) if isinstance(value, str | int) or value.denominator == 1 else f"{Fraction(value)}"
