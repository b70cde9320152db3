r"""The verdict on a merge as one page: a sentence, a table, and for each fault a picture of what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..figures.faults import measured_against_expected, two_spectra, where_it_is_wrong
from ..figures.page import figure, page, table, visible
from .evidence import Evidence

ROWS, PICTURES = 40, 8  # tensors that are listed, and drawn
STYLE = """
.faults { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: .8rem; }
.faults figure { margin: 0; } .faults .plot svg { min-width: 0; max-width: 26rem; } h2 { overflow-wrap: anywhere; }
body { max-width: 68rem; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
"""
HEAD = ("tensor", "verdict", "gap", "its bound", "gap/bound", "factor", "an honest one lies in", "swallowed")


@dataclass(frozen=True)
class Fault:
    """A tensor that does not hold, in words, and what can be drawn of it."""

    name: str
    words: str
    evidence: Evidence | None


def merge_page(
    names: Sequence[str], holds: bool, verdict: str, rows: Sequence[tuple[str, ...]], rest: str, faults: Iterable[Fault]
) -> str:
    """The whole page.

    names   adapter, merged folder and base     rows   cells of the table, as HEAD has them, the worst first
    rest    one sentence on the tensors that are not listed
    """
    adapter, merged, base = (escape(visible(name)) for name in names)
    mark = "EQUAL" if holds else "NOT EQUAL"
    first = f"""<p class="verdict{"" if holds else " no"}"><b>{mark}</b>: {escape(visible(verdict))}.</p>
<p class="soft">Is <code>{merged}</code> = <code>{base}</code> + <code>{adapter}</code>? Every entry of every tensor was
compared with W0 + ΔW; a gap above its bound is more than all roundings of an honest merge come to.</p>"""
    cells = [(_broken(name), *(escape(visible(cell)) for cell in more)) for name, *more in rows[:ROWS]]
    listed = table("The worst first", HEAD, cells) if cells else ""
    return page(
        f"{mark}: {visible(names[1])}", "Is this merge what its adapter says?",
        [first, listed, f'<p class="soft">{escape(visible(rest))}</p>', *map(_fault, faults)], STYLE,
    )  # fmt: skip


def _broken(name: str) -> str:
    """A dotted path that may be broken behind its dots."""
    return escape(visible(name)).replace(".", ".<wbr/>")


def _fault(fault: Fault) -> str:
    name, words = _broken(fault.name), escape(visible(fault.words))
    drawn = "" if fault.evidence is None else f'<div class="faults">{"".join(_pictures(fault.evidence))}</div>'
    return f"<h2>{name}</h2>\n<p>{words}.</p>\n{drawn}"


def _pictures(seen: Evidence) -> list[str]:
    n, width = seen.shape
    caption = f"Where, in {n:,} × {width:,}: the worst gap over its bound in each cell; grey: within it."
    where = figure(where_it_is_wrong(seen.grid, seen.shape), caption)
    if seen.spectra is None:
        return [where]
    cloud = figure(measured_against_expected(seen.expected, seen.measured, seen.half),
                   "How much of it: entries by chance, and those that are furthest off; the band is half a unit in "
                   "the last place.")  # fmt: skip
    values = figure(two_spectra(*seen.spectra), "Of which rank: singular values of rows and columns spread over it.")
    return [cloud, values, where]


def faults_of(found: Iterable[Any], evidence: Any) -> list[Fault]:
    """The first PICTURES of the tensors that do not hold, the worst first, with what can be drawn of each."""
    wrong = sorted((one for one in found if not one.holds), key=lambda one: -one.weight)[:PICTURES]
    return [Fault(one.name, f"{one.fault}: {one.words}" if one.words else one.fault, evidence(one)) for one in wrong]
