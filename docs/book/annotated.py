r"""A file of Python as a page: what it says on the left, the code that does it on the right, tag for tag.

The file itself is the source of the page: no copy, no stub. Its docstring comes first, whole; then every definition,
its docstring and the equations whose tags it bears beside its lines. A tag in a comment leads to its equation.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.parsers import Parser
from sphinx.util.docutils import SphinxDirective

from .code import Part, parts_of
from .docstrings import TAG, equations, markdown

COMMENT = re.compile(r'(<span class="c1">#)(.*?)(</span>)')

TITLES = {"lora": "LoRA", "dora": "DoRA", "rows": "Learned rows", "head": "Head and its loss"}


class Derivations:
    """Which page derives the equation of a tag: the page itself, or else the one page that does."""

    def __init__(self, root: Path, pages: list[str]) -> None:
        self.tags = {page: list(_equations((root / f"{page}.py").read_text(encoding="utf-8"))) for page in pages}

    def page_of(self, tag: str, here: str) -> str:
        """The docname of that page; "" where there is none, or more than one."""
        if tag in self.tags.get(here, ()):
            return here
        pages = [page for page, tags in self.tags.items() if tag in tags]
        return pages[0] if len(pages) == 1 else ""


def _equations(source: str) -> dict[str, str]:
    """The equations of a file by tag: those of what opens it, and then those of its definitions."""
    doc, parts = parts_of(source)
    found = equations(doc)
    for part in parts:
        found = {**equations(part.doc), **found}
    return found


class Tagged(nodes.Inline, nodes.TextElement):
    """A tag behind an equation within a line: the place that links to it lead to."""


class Annotated(Parser):  # type: ignore[misc]
    """Python read as the Markdown of such a page."""

    supported = ("annotated",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        env = document.settings.env
        MystParser().parse(page_of(inputstring, env.docname, env.lora_derivations), document)


def page_of(source: str, page: str, derivations: Derivations) -> str:
    """The Markdown of a page."""
    doc, parts = parts_of(source)
    placed = _equations(source)

    def link(tag: str) -> str:
        return f"{{tag}}`{tag}`" if derivations.page_of(tag, page) else ""

    title, _, rest = doc.strip().partition("\n\n")
    path = Path(f"{page}.py")
    name = path.parent.name if path.stem == "__init__" else path.stem
    text = [
        "---\nhide-toc: true\n---\n",
        f"({_label(page)})=\n# {TITLES.get(name, name.replace('_', ' ').capitalize())}\n",
        f"`{path}`\n",
        markdown(f"{title}\n\n{rest}", link, placed),
    ]
    if path.stem == "__init__":
        text.append("```{toctree}\n:glob:\n:titlesonly:\n\n*\n```")
    if page != "lora_np/operations/__init__":
        text += [_part(part, page, derivations, placed, link) for part in parts]
    return "\n\n".join(text) + "\n"


def _label(page: str, name: str = "") -> str:
    return ".".join([*page.removesuffix("/__init__").split("/"), *([name] if name else [])])


def _part(part: Part, page: str, derivations: Derivations, placed: dict[str, str], link: Any) -> str:
    title = f"({_label(page, part.name)})=\n## `{part.name}`" if part.name else "## Constants"
    own = equations(part.doc)
    said = [markdown(part.doc, link, {tag: own[tag] for tag in own if placed[tag] == own[tag]})] if part.doc else []
    said += [f"$$\n{placed[tag]} \\tag{{{tag}}}\n$$" for tag in part.tags() if tag in placed and tag not in own]
    beside = ":::::{container} said\n" + "\n\n".join(said) + "\n:::::" if said else ""
    return f"{title}\n\n{beside}\n\n:::::{{lines}} {part.first}\n{part.code}\n:::::"


class Lines(SphinxDirective):
    """Code whose tags are links: the body as it stands, from this line of the file on."""

    has_content = True
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [CodeLines(text="\n".join(self.content))]


class CodeLines(nodes.General, nodes.Element):
    """The code of one part; `text` is it."""


def tag_role(name: str, raw: str, text: str, *_: Any) -> Any:
    """A tag in prose, and the page of its equation if that is another: becomes a link to it."""
    tag, _, page = text.partition(" ")
    return [TagLink(text=tag, page=page)], []


def tagged_role(name: str, raw: str, text: str, *_: Any) -> Any:
    """A tag that stands behind its equation, within a line."""
    return [Tagged(raw, text, ids=[anchor(text)])], []


class TagLink(nodes.Inline, nodes.Element):
    """A tag in prose, before it is known where its equation is."""


def anchor(tag: str) -> str:
    """The id of an equation on its page."""
    return f"eq-{tag}"


def visit_tag_link(self: Any, node: TagLink) -> None:
    self.body.append(_link(node["text"], self, node["page"]))
    raise nodes.SkipNode


def visit_tagged(self: Any, node: Tagged) -> None:
    self.body.append(f'<span class="tagged" id="{node["ids"][0]}">{html.escape(node.astext())}</span>')
    raise nodes.SkipNode


def visit_lines(self: Any, node: CodeLines) -> None:
    """The highlighted code, its tags links."""
    block = self.highlighter.highlight_block(node["text"], "python", location=node)

    def comment(found: re.Match[str]) -> str:
        return found[1] + re.sub(rf"(?<=[(, ]){TAG}(?=[), ])", lambda tag: _link(tag[0], self), found[2]) + found[3]

    self.body.append(f'<div class="lines">{COMMENT.sub(comment, block)}</div>')
    raise nodes.SkipNode


def _link(tag: str, translator: Any, where: str = "") -> str:
    here, builder = translator.builder.current_docname, translator.builder
    page = builder.env.lora_derivations.page_of(tag, where or here)
    if not page:
        return tag
    address = "" if page == here else builder.get_relative_uri(here, page)
    return f'<a class="tag" href="{address}#{anchor(tag)}">{tag}</a>'


def find_derivations(app: Sphinx, env: Any, *_: Any) -> None:
    """Before anything is read: which page derives what."""
    pages = sorted(page for page in env.found_docs if Path(env.doc2path(page)).suffix == ".py")
    env.lora_derivations = Derivations(Path(app.srcdir), pages)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_source_suffix(".py", "annotated")
    app.add_source_parser(Annotated)
    app.add_directive("lines", Lines)
    app.add_role("tag", tag_role)
    app.add_role("tagged", tagged_role)
    nothing = (lambda self, node: None, lambda self, node: None)
    app.add_node(TagLink, html=(visit_tag_link, None), text=nothing)
    app.add_node(Tagged, html=(visit_tagged, None), text=nothing)
    app.add_node(CodeLines, html=(visit_lines, None), text=nothing)
    app.connect("env-before-read-docs", find_derivations)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
