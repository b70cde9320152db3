"""Small things between the repository and the book: links to folders, where the book begins, wide tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s]+(?:/|\.py))\)")
FIRST = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>lora_np</title>
<meta http-equiv="refresh" content="0; url={0}">
<a href="{0}">The book of lora_np</a>
</html>
"""


def links_to_code(app: Sphinx, page: str, source: list[str]) -> None:
    """A link to a folder of Python leads to what opens it; one to a file that is no page, to the file."""
    here, root = Path(app.env.doc2path(page)).parent, Path(app.srcdir)

    def opened(found: re.Match[str]) -> str:
        target = found[1] + "__init__.py" if (here / found[1] / "__init__.py").exists() else found[1]
        path = (here / target).resolve()
        is_file = path.suffix == ".py" and app.env.path2doc(path.relative_to(root)) not in app.env.found_docs
        return f"](path:{target})" if is_file else f"]({target})"

    source[0] = LINK.sub(opened, source[0])


def first_page(app: Sphinx, error: Exception | None) -> None:
    """`index.html` at the root, which is not where the first page is."""
    if error is None and app.builder.format == "html":
        target = app.builder.get_target_uri(app.config.root_doc)
        (Path(app.outdir) / "index.html").write_text(FIRST.format(target), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", links_to_code)
    app.connect("build-finished", first_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
