r"""The report of `lora-np study --paper`: one HTML page that needs nothing else, and its verdicts as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ..figures.page import STYLE, table
from .asking import Claim, Section, Table, Verdict
from .cells import HEAD, MEASURES, SETTINGS, Row

if TYPE_CHECKING:
    from .repeating import Repeated

MARKS = {"holds here": "yes", "does not hold here": "no", "cannot be said": "open"}
MORE_STYLE = """
.open { color: var(--soft); font-weight: 600; } .claim { border-left: .3rem solid var(--line); padding: .1rem .8rem;
  margin: .8rem 0; } .claim p { margin: .3rem 0; } .claim .no, .claim .yes { font-weight: 600; }
.no { color: var(--bad); } a { color: inherit; } nav ul { columns: 2 16rem; padding-left: 1.2rem; }
td.text { white-space: normal; text-align: left; min-width: 14rem; } tr:target { background: var(--band); }
.plot svg { min-width: 0; } .soft { overflow-wrap: anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; }
"""


def page(result: Repeated, drawn: Mapping[str, str]) -> str:
    """The whole page; `drawn` holds every figure as one <svg> element."""
    numbers = {row.cell: number for number, row in enumerate(result.rows, 1)}
    body = [_head(result), _summary(result.sections)]
    body += [_section(section, drawn, numbers) for section in result.sections]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<title>LoRA, repeated in miniature</title>\n<style>{STYLE}{MORE_STYLE}</style>\n</head>\n<body>",
            *body,
            _rows(result.rows),
            "</body>\n</html>\n",
        ]
    )


def verdicts(result: Repeated) -> str:
    """Every claim beside its verdict, as a table in Markdown."""
    head = ("claim", "said by", "verdict", "found")
    lines = [head, ("---",) * 4]
    lines += [(c.sentence, c.source, c.verdict, c.found) for section in result.sections for c in section.claims]
    counts = _counts(claim for section in result.sections for claim in section.claims)
    about = (
        f"{counts}. Profile {result.profile.name}: {len(result.rows)} rows, {result.profile.seeds} seeds a cell, 95 % "
        f"intervals of Student; base {result.about['base'][:16]}…"
    )
    return "\n".join([*("| " + " | ".join(map(_one_line, line)) + " |" for line in lines), "", about]) + "\n"


def _counts(claims: Iterable[Claim]) -> str:
    found = Counter(claim.verdict for claim in claims)
    words: dict[Verdict, str] = {"holds here": "held", "does not hold here": "refuted", "cannot be said": "open"}
    return ", ".join(f"{found[verdict]} {word}" for verdict, word in words.items() if found[verdict]) or "none"


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _head(result: Repeated) -> str:
    counts = _counts(claim for section in result.sections for claim in section.claims)
    versions = ", ".join(f"{escape(str(key))} {escape(str(value)[:16])}" for key, value in result.about.items())
    return f"""<h1>LoRA, repeated in miniature</h1>
<p>Every claim stands beside what was found here, on a model of two million parameters and generated tasks, and beside a
verdict: what holds on a small model need not hold on a large one, nor the other way round.
Of the claims, {escape(counts)}.</p>
<p>Intervals are Student's, 95 %, over {result.profile.seeds} seeds; two methods are compared seed by seed. A verdict is
“cannot be said” where such an interval covers zero. All numbers: <a href="results.csv">results.csv</a>, a row for each
run; every figure is a file in <a href="figures/">figures</a>.</p>
<p class="soft">Profile {escape(result.profile.name)}, {len(result.rows)} rows, {result.seconds:.0f} s (of a resumed
study the last part). {versions}.</p>"""


def _summary(sections: Sequence[Section]) -> str:
    items = "".join(
        f'<li><a href="#{section.name}">{escape(section.title)}</a>: {escape(_counts(section.claims))}</li>'
        for section in sections
    )
    return f"<nav><ul>{items}</ul></nav>"


def _section(section: Section, drawn: Mapping[str, str], numbers: Mapping[Any, int]) -> str:
    parts = [f'<h2 id="{section.name}">{escape(section.title)}</h2>\n<p>{escape(section.about)}</p>']
    parts += [_claim(claim, numbers) for claim in section.claims]
    parts += [_figure(name, drawn[name], section.captions.get(name, name)) for name in section.figures]
    parts += [_table(shown) for shown in section.tables]
    return "\n".join(parts)


def _claim(claim: Claim, numbers: Mapping[Any, int]) -> str:
    found = sorted(numbers[row.cell] for row in claim.rows if row.cell in numbers)
    links = " ".join(f'<a href="#row-{number}">{number}</a>' for number in found)
    rows = f"<details><summary>{len(found)} rows</summary><p>{links}</p></details>" if found else ""
    return f"""<div class="claim"><p>{escape(claim.sentence)} <span class="soft">{escape(claim.source)}</span></p>
<p><span class="{MARKS[claim.verdict]}">{escape(claim.verdict)}</span>: {escape(claim.found)}</p>{rows}</div>"""


def _figure(name: str, svg: str, caption: str) -> str:
    drawn = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    link = f'<a href="figures/{name}.svg">as a file</a>'
    return f'<figure><div class="plot">{drawn}</div><figcaption>{escape(caption)} ({link})</figcaption></figure>'


def _table(shown: Table) -> str:
    return table(shown.caption, shown.head, (map(escape, line) for line in shown.lines))


def _rows(rows: Sequence[Row]) -> str:
    """Every row of results.csv but what only cells of one kind have."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("row", *HEAD[:-1]))
    lines = []
    for number, row in enumerate(rows, 1):
        values = [getattr(row.cell, name) for name in SETTINGS] + [getattr(row, name) for name in MEASURES]
        cells = "".join(f"<td>{escape(_value(value))}</td>" for value in (number, *values))
        lines.append(f'<tr id="row-{number}">{cells}</tr>')
    return (
        f'<h2 id="rows">All rows</h2>\n<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def _value(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
