r"""The docstrings of this package as the Markdown that a book can show.

They are written to be read in a terminal: shapes stand in aligned columns, equations between dollars, examples behind
`>>>`. What a terminal keeps and Markdown would not is told it here: columns and examples become fenced blocks, displays
stand alone, and every tag, (D1), becomes a link to the equation that bears it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator

DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
TAG = r"[A-Z]\d+[a-z]?"
TAGGED = re.compile(rf"\\tag\{{({TAG})\}}")
# An equation within a line that bears a tag: $y = x$ (A4).
INLINE = re.compile(rf"(?<!\$)\$([^$\n]+(?:\n[^$\n]+)?)\$ \(({TAG})\)")
PROTECTED = re.compile(r"(```.*?```|`[^`]+`|(?<!\$)\$[^$]+\$(?!\$)|\$\$.*?\$\$)", re.DOTALL)
COLUMNS = re.compile(r"\S {2,}\S")
GROUP = re.compile(rf"\(({TAG}(?:(?:, | to | and )?{TAG})*)\)")


def pieces(latex: str) -> list[tuple[str, str]]:
    r"""The equations of a display, each with its tag, or "": `a \tag{G0}\qquad b \tag{G1}` holds two."""
    found, rest = [], latex
    while match := TAGGED.search(rest):
        found.append((_bare(rest[: match.start()]), match[1]))
        rest = rest[match.end() :]
    if last := _bare(rest):
        found.append((last, ""))
    return found


def _bare(latex: str) -> str:
    """Without the space that parts it from its neighbours."""
    return re.sub(r"^(?:\\q?quad|\s)+|(?:\\q?quad|\s)+$", "", latex)


def equations(doc: str) -> dict[str, str]:
    """The equations of a docstring by tag, in their order."""
    found = {tag: latex for display in DISPLAY.findall(doc) for latex, tag in pieces(display) if tag}
    return {**found, **{tag: latex for latex, tag in INLINE.findall(DISPLAY.sub("", doc)) if tag not in found}}


def markdown(doc: str, link: Callable[[str], str] = lambda tag: "", tagged: dict[str, str] | None = None) -> str:
    """A docstring as Markdown.

    link    where the equation of a tag is, a whole reference; "" leaves the tag as it is
    tagged  the equations that become the place of their tag, if this is where they are derived
    """
    text = DISPLAY.sub(lambda found: f"\n\n$$\n{found[1].strip()}\n$$\n\n", inspect.cleandoc(doc))
    blocks = [_block(block) for block in re.split(r"\n[ ]*\n", text) if block.strip()]
    return "\n\n".join(block if block[:3] in ("```", "$$\n") else _prose(block, link, tagged or {}) for block in blocks)


def _block(block: str) -> str:
    lines = block.strip("\n").splitlines()
    if lines[0].lstrip().startswith(">>>"):
        return f"```pycon\n{inspect.cleandoc(block)}\n```"
    if all(line.startswith("    ") for line in lines):
        code = "\n".join(line[4:] for line in lines)
        if _is_python(code):
            return f"```python\n{code}\n```"
        # On a narrow page the lines break between the columns, and nowhere else.
        whole = re.sub(r"(?<=\S) (?=\S)", "\N{NO-BREAK SPACE}", code)
        return f"```{{code-block}} text\n:class: shapes\n\n{whole}\n```"
    if _in_columns(lines):
        return "```text\n" + "\n".join(lines) + "\n```"
    return "\n".join(lines)


def _in_columns(lines: list[str]) -> bool:
    """Is every line one of a table that is held together by spaces, or the continuation of one?"""
    starts = lines[0][:1] not in (" ", "-", "$") and COLUMNS.search(lines[0])
    return bool(starts) and all(COLUMNS.search(line) or line.startswith("   ") for line in lines)


def _is_python(code: str) -> bool:
    try:
        return bool(ast.parse(code).body)
    except SyntaxError:
        return False


def _prose(block: str, link: Callable[[str], str], tagged: dict[str, str]) -> str:
    """A paragraph or a list, whose tags become links and whose patterns, *.A, stay what they are."""
    placed = {tag for latex, tag in INLINE.findall(block) if tagged.get(tag) == latex}

    def parts() -> Iterator[str]:
        for number, part in enumerate(PROTECTED.split(block)):
            yield part if number % 2 else _linked(re.sub(r"\*(?=\.)", r"\\*", part), link, placed)

    return "".join(parts())


def _linked(text: str, link: Callable[[str], str], placed: set[str]) -> str:
    def one(found: re.Match[str]) -> str:
        tag = found[0]
        if tag in placed:
            placed.discard(tag)
            return f"{{tagged}}`{tag}`"
        return link(tag) or tag

    return GROUP.sub(lambda group: f"({re.sub(TAG, one, group[1])})", text)
