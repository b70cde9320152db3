r"""A page that needs nothing but itself: inline style, inline SVG, no script, no network; every text escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from . import svg

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #595959; --line: #d5d5d5; --paper: #fff; --band: #f4f4f2;
  --good: #00664b; --bad: #a33b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e6; --soft: #adadad; --line: #454545; --paper: #171717;
  --band: #232323; --good: #4fd1a5; --bad: #ff9a5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 52rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; }
p, li, code, figcaption { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.soft, figcaption, .caption { color: var(--soft); font-size: .9rem; }
.verdict { border-left: .4rem solid var(--good); background: var(--band); padding: .6rem 1rem; }
.verdict.no { border-color: var(--bad); }
ul.claims { list-style: none; padding: 0; } .yes { color: var(--good); } .no b, b.no { color: var(--bad); }
.caption { margin: 1.2rem 0 .3rem; }
.wide { overflow-x: auto; margin-inline: min(0px, calc((100% - min(100vw - 4rem, 72rem)) / 2)); }
table { border-collapse: collapse; margin: auto; min-width: min(100%, 49.6rem);
  font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
figure { margin: 1.2rem 0; } .plot { background: #fff; border-radius: .4rem; padding: .5rem; overflow-x: auto; }
.plot svg { display: block; width: 100%; min-width: 24rem; max-width: 44rem; height: auto; margin: auto; }
pre { background: var(--band); padding: .6rem 1rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; overflow-wrap: anywhere; }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --band: #f4f4f2; --good: #00513b;
  --bad: #8a3200; } body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr, .verdict { break-inside: avoid; } h2 { break-after: avoid; } .wide, .plot { overflow: visible; } }
"""


def page(title: str, heading: str, sections: Iterable[str], style: str = "") -> str:
    """The whole page; `sections` are HTML already, title and heading are text."""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>",
            f"<h1>{escape(heading)}</h1>",
            *sections,
            "</body>\n</html>\n",
        ]
    )


def table(caption: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already. What it shows stands above it: a wide table would carry it away."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<p class="caption">{escape(caption)}</p>\n<div class="wide" tabindex="0" role="region" '
        f'aria-label="{escape(caption)}"><table>\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def figure(drawing: Any, caption: str) -> str:
    """A picture and what it shows."""
    drawn = svg(drawing).replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f'<figure><div class="plot">{drawn}</div><figcaption>{escape(caption)}</figcaption></figure>'


def visible(text: str) -> str:
    """Control characters, which have no place in a page, as the replacement character."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text) or "(nothing)"
