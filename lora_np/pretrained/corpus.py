r"""The text the base was made from: what an installation of this package carries, read and never executed.

The help topics of `pydoc_data.topics` and the docstrings of the standard library are divided into a part to train on
and a held-out one. All documents of one source (a topic, a file) go to the same part, by a hash of its name: docstrings
of one file are near copies of each other, and a copy of a held-out text must not be trained on.

More text is trained on only: the comments of the files of the first part, and the docstrings of the packages that this
one needs. What repeats a held-out text (see `without_copies`) is left out of both.
"""

from __future__ import annotations

import ast
import hashlib
import io
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

HELD_OUT = 16  # one source in sixteen
SKIP = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

LEAST = 40  # characters of a document
COPIED = 0.1  # of the runs of LEAST characters in a document: with more of them in the held-out text, it is a copy

# What this package needs to run, and what that needs, with its licence.
PACKAGES = {
    "numpy": "BSD-3-Clause",
    "matplotlib": "Matplotlib License (PSF-based)",
    "autograd": "MIT",
    "safetensors": "Apache-2.0",
    "typer": "MIT",
    "threadpoolctl": "BSD-3-Clause",
    "contourpy": "BSD-3-Clause",
    "cycler": "BSD-3-Clause",
    "fonttools": "MIT",
    "packaging": "Apache-2.0 OR BSD-2-Clause",
    "pillow": "MIT-CMU",
    "pyparsing": "MIT",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "rich": "MIT",
    "markdown-it-py": "MIT",
    "pygments": "BSD-2-Clause",
}


def documents() -> dict[str, str]:
    """Every help topic and every docstring of at least 40 characters, once each, with its source, in a fixed order."""
    from pydoc_data.topics import topics

    found: dict[str, str] = {}
    for name, text in sorted(topics.items()):
        found.setdefault(text.strip(), f"topic {name}")
    for path in _library():
        for text in _docstrings(path):
            found.setdefault(text, f"file {_name(path)}")
    return {text: source for text, source in found.items() if _worth_reading(text)}


def parts() -> tuple[list[str], list[str]]:
    """The documents to train on, and the held-out ones."""
    train: list[str] = []
    held_out: list[str] = []
    for text, source in documents().items():
        (held_out if is_held_out(source) else train).append(text)
    return train, held_out


def is_held_out(source: str) -> bool:
    """Is everything of this source held out? Decided by a hash of its name."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big") % HELD_OUT == 0


def comments() -> list[str]:
    """The comments of the standard library's files that are not held out: whole lines, those in a row as one text."""
    paths = [path for path in _library() if not is_held_out(f"file {_name(path)}")]
    texts = dict.fromkeys(text for path in paths for text in _comments(path))
    return [text for text in texts if _worth_reading(text)]


def package_documents(name: str) -> list[str]:
    """The docstrings of an installed package, tests apart; raises PackageNotFoundError when it is not installed."""
    package = distribution(name)
    files = sorted(str(file) for file in package.files or [] if file.suffix == ".py" and not SKIP & set(file.parts))
    texts = dict.fromkeys(text for file in files for text in _docstrings(Path(str(package.locate_file(file)))))
    return [text for text in texts if _worth_reading(text)]


def training_texts() -> dict[str, list[str]]:
    """All texts to train on by where they are from, each text once, and none that repeats a held-out one."""
    train, held_out = parts()
    origins = {"standard library": train, "its comments": comments()}
    origins |= {name: package_documents(name) for name in PACKAGES}
    seen: set[str] = set()
    for origin, texts in origins.items():
        new = [text for text in texts if text not in seen]
        seen.update(new)
        origins[origin] = new if origin == "standard library" else without_copies(new, held_out)
    return origins


def without_copies(texts: Iterable[str], held_out: Iterable[str]) -> list[str]:
    """The texts of whose runs of LEAST characters at most the share COPIED stands in a held-out text."""
    held = {run for text in held_out for run in _runs(text)}

    def is_copy(text: str) -> bool:
        runs = _runs(text)
        return sum(run in held for run in runs) > COPIED * len(runs)

    return [text for text in texts if not is_copy(text)]


def stream(texts: Iterable[str]) -> npt.NDArray[np.uint8]:
    """All documents as one run of bytes, a NUL before, between and after them."""
    return np.frombuffer(("\0" + "\0".join(texts) + "\0").encode(), dtype=np.uint8)


def _library() -> list[Path]:
    """The files of the standard library, tests apart, in a fixed order."""
    library = Path(sysconfig.get_path("stdlib"))
    return [path for path in sorted(library.rglob("*.py")) if not SKIP & set(path.relative_to(library).parts)]


def _name(path: Path) -> str:
    return path.relative_to(Path(sysconfig.get_path("stdlib"))).as_posix()


def _worth_reading(text: str) -> bool:
    return len(text) >= LEAST and "\0" not in text


def _runs(text: str) -> list[str]:
    """Every run of LEAST characters."""
    return [text[i : i + LEAST] for i in range(len(text) - LEAST + 1)]


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


def _comments(path: Path) -> Iterator[str]:
    """The comments of a file that have lines of their own; the lines of one follow each other in one column."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline))
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError, ValueError):
        return
    whole = [token for token in tokens if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()]
    places = enumerate(whole)
    for _, block in groupby(places, key=lambda place: (place[1].start[0] - place[0], place[1].start[1])):
        yield "\n".join(comment.string.lstrip("#").removeprefix(" ").rstrip() for _, comment in block).strip()
