r"""What lora_np wrote, told from everything else.

A folder of ours is a real folder, no link, that holds MARK and beside it nothing but the files that MARK names. One of
a version that wrote no mark counts when it holds such a version's files and no other: see EARLIER. What holds anything
else as well is nobody's to replace but its owner's.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from os import lstat, scandir, stat_result
from pathlib import Path
from typing import Any

from ..version import __version__
from .reading import read_json
from .writing import LEFT, write_json

MARK = ".lora_np.json"

# Of versions that wrote no mark: the file that tells what a folder is, some keys in it, and every file there may be.
EARLIER: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "config.json": ({"vocab", "context", "d_model", "layers", "heads"}, ("config.json", "model.safetensors")),
    "adapter.json": ({"base", "lora", "scaling"}, ("adapter.json", "adapter.safetensors", "checkpoint.safetensors")),
    "study.json": (
        {"claims", "runs", "base_digest"},
        ("study.json", "report.html", "*.png", "adapters/*/adapter.json", "adapters/*/adapter.safetensors"),
    ),
    "bench.json": ({"machine", "rounds", "sizes"}, ("bench.json", "bench.md", "bench.png")),
}


@dataclass(frozen=True)
class Kind:
    """What a command writes.

    name     in words: "an unfinished ..."
    files    patterns of the paths in the folder, "/" between folders; * is any part of one name
    resumes  the pattern of what an unfinished one is continued from; None when it begins anew
    """

    name: str
    files: tuple[str, ...]
    resumes: str | None = None


@dataclass(frozen=True)
class Mark:
    """What a folder of ours says of itself; once it is finished, the files of its kind are names, not patterns."""

    kind: Kind
    finished: bool


def there(path: Path) -> stat_result | None:
    """What stands at a path, a link as such; None where nothing does. Raises OSError where it cannot be known."""
    try:
        return lstat(path)
    except FileNotFoundError:
        return None


def read_mark(folder: Path) -> Mark | None:
    """What a folder says of itself, by its mark or as an earlier version wrote it; None when it is not ours."""
    about = _json(folder / MARK)
    with suppress(KeyError, TypeError):
        kind = Kind(about["kind"]["name"], tuple(about["kind"]["files"]), about["kind"]["resumes"])
        texts = (kind.name, *kind.files, kind.resumes or "")
        if all(isinstance(text, str) for text in texts) and isinstance(about["finished"], bool):
            return Mark(kind, about["finished"])
    for name, (keys, files) in EARLIER.items():
        if keys <= set(_json(folder / name)):
            return Mark(Kind("folder of an earlier version", files), finished=True)
    return None


def write_mark(folder: Path, kind: Kind) -> None:
    """Say that this kind of thing is being written here."""
    write_json(folder / MARK, {"written_by": f"lora_np {__version__}", **asdict(Mark(kind, finished=False))})


def finish_mark(folder: Path, kind: Kind) -> None:
    """Say that it is finished, and which files it came to."""
    named = replace(kind, files=tuple(name for name in ours(folder, kind.files) if name != MARK))
    write_json(folder / MARK, {"written_by": f"lora_np {__version__}", **asdict(Mark(named, finished=True))})


def can_be_resumed(folder: Path, kind: Kind) -> bool:
    """Does the folder hold what an unfinished one of this kind is continued from?"""
    return kind.resumes is not None and any(folder.glob(kind.resumes))


def ours(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """The files in a folder that are of these patterns, MARK, and what a killed process left while writing one."""
    return [name for name, is_ours in _walk(folder, (*patterns, MARK)) if is_ours]


def first_foreign(folder: Path, patterns: tuple[str, ...]) -> str | None:
    """The first path in a folder that is neither of these patterns nor MARK; a link never is."""
    return next((name for name, is_ours in _walk(folder, (*patterns, MARK)) if not is_ours), None)


def is_leftover(name: str) -> bool:
    """Is this the name of a file that a killed process was writing?"""
    return LEFT.fullmatch(name.rpartition("/")[2]) is not None


def _walk(folder: Path, patterns: tuple[str, ...], inside: str = "") -> Iterator[tuple[str, bool]]:
    """(path, is it of a pattern?) for every file and link, and for folders that no pattern leads into."""
    with scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = inside + entry.name
            if entry.is_dir(follow_symlinks=False) and any(_leads_into(pattern, name) for pattern in patterns):
                yield from _walk(Path(entry.path), patterns, name + "/")
            else:
                yield name, entry.is_file(follow_symlinks=False) and _is_of(name, patterns)


def _is_of(name: str, patterns: Iterable[str]) -> bool:
    place, slash, last = name.rpartition("/")
    left = LEFT.fullmatch(last)
    names = [name] + ([place + slash + left[1]] if left else [])
    return any(_matches(one, pattern) for one in names for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _leads_into(pattern: str, folder: str) -> bool:
    depth = folder.count("/") + 1
    return pattern.count("/") >= depth and _matches(folder, "/".join(pattern.split("/")[:depth]))


def _json(path: Path) -> dict[str, Any]:
    found = there(path)
    if found is None or not stat.S_ISREG(found.st_mode):
        return {}
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
