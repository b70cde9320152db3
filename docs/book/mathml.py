r"""Equations as MathML, which browsers show by themselves: no script and no request to anybody.

Without a font for mathematics, which phones seldom have, they show small sums and short braces; so one goes along.

A tag, `\tag{L1}`, stands at the right of its equation and is the place that links to it lead to. A display may hold
several: each has its own line, or its own place on a wide one.
"""

from __future__ import annotations

import html
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import mathalphabet2unichar
from latex2mathml.converter import convert
from sphinx.application import Sphinx

from .docstrings import pieces

FONT = "STIXTwoMath-Regular.ttf"

# What these texts use, as something that is read as TeX reads it, and shown with the space that TeX gives it.
NAMED = r"\\(?:cos|exp|log|max|min|sin|tanh)"
SAID_AS = (
    (r"\\arg(?![a-zA-Z])", r"\\mathrm{arg}\\,"),
    (rf"({NAMED})\s*(?=[a-zA-Z]|\\(?!left|[bB]ig|[,;!(]))", r"\1\\,"),
    (r"\\mathrel\{([^{}]*)\}=", r"\\;\\text{\1=}\\;"),
)
LETTER = re.compile(r"\\(mathbf|mathbb|mathcal)\s*(?:\{(\w)\}|(\w))")  # browsers know these by their code alone
# Bars and slashes stand close, ∂ is no operator, and a minus at the beginning belongs to what follows.
SPACE = (
    (r"<mo([^>]*)>(&#x0007C;|&#x02016;|&#x02225;|&#x0002F;)</mo>", r'<mo\1 lspace="0" rspace="0">\2</mo>'),
    (r"<m[io]>(&#x02202;)</m[io]>", r"<mi>\1</mi>"),
    (r"((?:&#x(?:00028|0005B|0003D|0002C);)</mo>|<mrow>)<mo>(&#x02212;)</mo>", r'\1<mo form="prefix">\2</mo>'),
)


def mathml(latex: str, *, display: bool) -> str:
    """One equation; raises ValueError, with what it does not know, where it cannot be said."""
    for pattern, other in SAID_AS:
        latex = re.sub(pattern, other, latex)
    latex = LETTER.sub(lambda found: getattr(mathalphabet2unichar, found[1])[found[2] or found[3]], latex)
    try:
        made = convert(latex, display="block" if display else "inline")
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if unknown := re.search(r"\\[a-zA-Z]+", made):  # what the converter does not know it leaves as it is
        raise ValueError(f"unknown command {unknown[0]}")
    for pattern, other in SPACE:
        made = re.sub(pattern, other, made)
    return made


def in_parts(latex: str) -> list[str]:
    r"""What stands between the `\qquad` of an equation outside of its groups: a line may break there."""
    found, depth = [""], 0
    for token in re.findall(r"\\(?:[a-zA-Z]+|.)|.", latex, re.DOTALL):
        depth += (token in ("{", r"\left", r"\begin")) - (token in ("}", r"\right", r"\end"))
        if token == r"\qquad" and not depth:
            found.append("")
        else:
            found[-1] += token
    return [part for part in found if part.strip()]


def visit_inline(self: Any, node: nodes.math) -> None:
    self.body.append(_said(self, node, node.astext(), display=False))
    raise nodes.SkipNode


def visit_display(self: Any, node: nodes.math_block) -> None:
    """A row of equations, each before its tag."""
    self.body.append('<div class="equations">')
    for latex, tag in pieces(node.astext()):
        self.body.append('<div class="equation">')
        parts = "".join(_said(self, node, part, display=True) for part in in_parts(latex))
        self.body.append(f'<div class="formula">{parts}</div>')
        if tag:
            self.body.append(_tag(self, tag))
        self.body.append("</div>")
    self.body.append("</div>")
    raise nodes.SkipNode


def _tag(self: Any, tag: str) -> str:
    """The place of a tag where it first stands on a page, a link to that place afterwards."""
    page = self.builder.current_docname
    if getattr(self, "tags_placed", None) is None or self.tags_placed[0] != page:
        self.tags_placed = page, set()
    text, placed = html.escape(tag), self.tags_placed[1]
    if tag in placed:
        return f'<a class="tag" href="#eq-{text}">({text})</a>'
    placed.add(tag)
    return f'<span class="tag" id="eq-{text}">({text})</span>'


def _said(self: Any, node: nodes.Node, latex: str, *, display: bool) -> str:
    try:
        return mathml(latex, display=display)
    except ValueError as error:
        from sphinx.util import logging

        logging.getLogger(__name__).warning("this equation cannot be shown: %s: %s", error, latex, location=node)
        return f"<code>{html.escape(latex)}</code>"


def add_font(app: Sphinx, error: Exception | None) -> None:
    """STIX Two Math (SIL Open Font License), which ziamath brings; without it the reader's own fonts are taken."""
    spec = find_spec("ziamath")
    fonts = [Path(place) / "fonts" / FONT for place in (spec.submodule_search_locations or ())] if spec else []
    for font in fonts if error is None and app.builder.format == "html" else ():
        if font.exists():
            shutil.copyfile(font, Path(app.outdir) / "_static" / FONT)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", add_font)
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
