"""Public names as a reference: signature, what the docstring says, its members, and where the code is."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

import lora_np

from .docstrings import markdown

REFERENCE = "docs/reference"


def documentation(name: str) -> tuple[str, str]:
    """The module that defines a public name, and its docstring: of a constant, the text that stands below it."""
    value = getattr(lora_np, name)
    if callable(value):
        return value.__module__, inspect.getdoc(value) or ""
    for module in ("lora_np.methods", "lora_np.version"):
        if text := below(Path(import_module(module).__file__ or ""), name):
            return module, text
    return "", ""


def below(path: Path, name: str) -> str:
    """The text that stands below the assignment of a name at the top of a file; "" where there is none."""
    for node, after in pairwise(ast.parse(path.read_text(encoding="utf-8")).body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        text = getattr(getattr(after, "value", None), "value", None)
        if name in (getattr(target, "id", None) for target in targets) and isinstance(text, str):
            return inspect.cleandoc(text)
    return ""


def entry(name: str, derivations: Any) -> str:
    """The Markdown of a public name, in which the tags of its own module are links."""
    value, (module, doc) = getattr(lora_np, name), documentation(name)
    kind = "class" if inspect.isclass(value) else "function" if callable(value) else "data"
    signature = signature_of(value) if callable(value) else ""
    page = module.replace(".", "/")

    def link(tag: str) -> str:
        return f"{{tag}}`{tag} {page}`" if tag in derivations.tags.get(page, ()) else ""

    target = f"{module}.{name}" if callable(value) else module
    source = f"{{ref}}`{module} <{target.lower()}>`"
    members = list(_members(value)) if inspect.isclass(value) else []
    inside = "\n\n".join([f"In {source}", markdown(doc, link), *members])
    return f"::::::{{py:{kind}}} {name}{signature}\n:module: lora_np\n\n{inside}\n::::::"


def signature_of(value: Any) -> str:
    """As it stands in the code; a default that is made, not written, as `...`."""
    return _signature(inspect.signature(value), show_return_annotation=not inspect.isclass(value))


def _signature(signature: inspect.Signature, **settings: bool) -> str:
    return re.sub(r"<(?:function [^>]*>+|factory)>?", "...", stringify_signature(signature, **settings))


def _members(value: type) -> Iterator[str]:
    """What the class itself defines for others to use."""
    fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    for name, member in vars(value).items():
        if name in fields or (name.startswith("_") and name != "__call__"):
            continue
        doc = inspect.getdoc(member.fget if isinstance(member, property) else member) or ""
        if isinstance(member, property):
            yield f":::::{{py:property}} {name}\n\n{markdown(doc)}\n:::::"
        elif inspect.isfunction(member):
            signature = inspect.signature(member)
            own = signature.replace(parameters=list(signature.parameters.values())[1:])
            yield f":::::{{py:method}} {name}{_signature(own)}\n\n{markdown(doc)}\n:::::"


class Public(SphinxDirective):
    """The entries of these public names, one a line."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        names = [line.strip() for line in self.content if line.strip()]
        if unknown := set(names) - set(lora_np.__all__):
            raise self.error(f"no public names: {', '.join(sorted(unknown))}")
        for name in names:
            self.env.note_dependency(import_module(documentation(name)[0]).__file__)
        entries = [entry(name, self.env.lora_derivations) for name in names]
        return self.parse_text_to_nodes("\n\n".join(entries), offset=self.content_offset)


def link_names(app: Sphinx, document: nodes.document) -> None:
    """In what docstrings say, a public name and a module that is a page become links."""
    page = app.env.docname
    if page != REFERENCE and not page.startswith("lora_np/"):
        return
    for literal in list(document.findall(nodes.literal)):
        text, parent = literal.astext().removesuffix("()"), literal.parent
        if isinstance(parent, nodes.title | nodes.reference | addnodes.pending_xref):
            continue
        if text in lora_np.__all__:
            about = {"refdomain": "py", "reftype": "obj", "reftarget": f"lora_np.{text}"}
        elif re.fullmatch(r"lora_np(\.\w+)+", text) and text.replace(".", "/") in app.env.found_docs:
            about = {"refdomain": "std", "reftype": "ref", "reftarget": text, "refexplicit": True}
        else:
            continue
        reference = addnodes.pending_xref("", refdoc=page, refwarn=True, **about)
        parent.replace(literal, reference)
        reference += literal


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("public", Public)
    app.connect("doctree-read", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
