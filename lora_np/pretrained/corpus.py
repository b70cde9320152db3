r"""The text the base was made from: what every Python installation carries, read and never executed.

The help topics of `pydoc_data.topics` and the docstrings of the standard library. All documents of one source (a
topic, a file) go to the same part, by a hash of its name: docstrings of one file are near copies of each other, and a
copy of a held-out text must not be trained on.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

HELD_OUT = 16  # one source in sixteen
SKIP = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def documents() -> dict[str, str]:
    """Every help topic and every docstring of at least 40 characters, once each, with its source, in a fixed order."""
    from pydoc_data.topics import topics

    found: dict[str, str] = {}
    for name, text in sorted(topics.items()):
        found.setdefault(text.strip(), f"topic {name}")
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not SKIP & set(path.relative_to(library).parts):
            for text in _docstrings(path):
                found.setdefault(text, f"file {path.relative_to(library).as_posix()}")
    return {text: source for text, source in found.items() if len(text) >= 40 and "\0" not in text}


def parts() -> tuple[list[str], list[str]]:
    """The documents to train on, and the held-out ones."""
    train: list[str] = []
    held_out: list[str] = []
    for text, source in documents().items():
        number = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big")
        (held_out if number % HELD_OUT == 0 else train).append(text)
    return train, held_out


def stream(texts: list[str]) -> npt.NDArray[np.uint8]:
    """All documents as one run of bytes, a NUL before, between and after them."""
    return np.frombuffer(("\0" + "\0".join(texts) + "\0").encode(), dtype=np.uint8)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text.strip()
