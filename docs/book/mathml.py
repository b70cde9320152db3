r"""Equations as MathML, which browsers show by themselves: no script, no font and no request to anybody.

A tag, `\tag{L1}`, stands at the right of its equation and is the place that links to it lead to. A display may hold
several: each has its own line, or its own place on a wide one.
"""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

from .docstrings import pieces


# What these texts use and docutils has no command for, as something that it has.
SAID_AS = (
    (re.compile(r"\\dots(?![a-zA-Z])"), r"\\ldots"),
    (re.compile(r"\\([bB]ig)(?=\s*(?:[\])}]|\\[})]|\\rangle|\\rVert))"), r"\\\1r"),
    (re.compile(r"\\([bB]ig)(?![a-zA-Z])"), r"\\\1l"),
    (re.compile(r"\\mathrel\{([^{}]*)\}="), r"\1\\!="),
    (re.compile(r"\\textstyle(?![a-zA-Z])"), ""),
)


def mathml(latex: str, *, display: bool) -> str:
    """One equation; raises ValueError, with what it does not know, where it cannot be said."""
    for pattern, other in SAID_AS:
        latex = pattern.sub(other, latex)
    return tex2mathml(latex, as_block=display)  # its MathError is a ValueError


def visit_inline(self: Any, node: nodes.math) -> None:
    self.body.append(_said(self, node, node.astext(), display=False))
    raise nodes.SkipNode


def visit_display(self: Any, node: nodes.math_block) -> None:
    """A row of equations, each before its tag."""
    self.body.append('<div class="equations">')
    for latex, tag in pieces(node.astext()):
        self.body.append('<div class="equation">')
        self.body.append(f'<div class="formula">{_said(self, node, latex, display=True)}</div>')
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


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
