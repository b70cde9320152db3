r"""Names of the parts of a model: dotted paths, patterns that choose among them, and presets.

A path is the names of the fields that lead to a part: `blocks.0.attention.query.W`. A pattern is a shell-style glob
(`*`, `?`, `[…]`, and * also crosses dots) that must match a whole path or a tail of one that starts at a dot:
`query.W`, `attention.*`, `blocks.0.*`, `*.A`.

What stands around another part calls it `base`. A pattern need not know of that: `attention.query` also matches
`attention.base.query`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.output")
MLP = ("mlp.up", "mlp.down")
GATED = ("mlp.gate", *MLP)  # the gate where there is one
PRESETS = {
    "qv": ("attention.query", "attention.value"),
    "qkvo": ATTENTION,
    "attention+mlp": ATTENTION + GATED,
    "all-linear": (*ATTENTION, *GATED, "head"),  # the head where it is a matrix of its own
}


def plain(path: str) -> str:
    """The path without what stands around: `blocks.0.attention.query.base.W` is `blocks.0.attention.query.W`."""
    return ".".join(name for name in path.split(".") if name != "base")


def matches(path: str, pattern: str) -> bool:
    """Does the pattern match the path, as it is or plain, or a tail of it that starts at a dot?"""
    return any(fnmatchcase(form, pattern) or fnmatchcase(form, f"*.{pattern}") for form in {path, plain(path)})


def matching(paths: Iterable[str], patterns: Iterable[str], also: Iterable[str] = ()) -> list[str]:
    """The paths that at least one pattern matches, in their order.

    Raises ValueError, with the nearest real names, for an idle pattern; `also` holds further names it might have meant.
    """
    paths = list(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        hits = [path for path in paths if matches(path, pattern)]
        if not hits:
            near = nearest(pattern, paths, also)
            raise ValueError(f"{pattern!r} matches none of the {len(paths)} names; {near}")
        chosen.update(hits)
    return [path for path in paths if path in chosen]


def targeted(paths: Iterable[str], targets: str | Iterable[str]) -> list[str]:
    """The paths that a preset, a pattern or several of either choose, in their order.

    Raises ValueError when there is no target, or one that chooses nothing; of a preset only the whole must choose.
    """
    paths, names = list(paths), (targets,) if isinstance(targets, str) else tuple(targets)
    if not names:
        raise ValueError("targets must name at least one module or preset")
    patterns: list[str] = []
    for name in names:
        able = [p for p in PRESETS.get(name, ()) if any(matches(path, p) for path in paths)]
        patterns += able or [name]
    return matching(paths, patterns, PRESETS)


def nearest(pattern: str, paths: Iterable[str], also: Iterable[str] = ()) -> str:
    """The real names closest to what was asked for, compared from their tails as patterns are."""
    depth = pattern.count(".") + 1
    tails = dict.fromkeys(".".join(plain(path).split(".")[-depth:]) for path in paths)
    if not tails:
        return "there are none"
    near = difflib.get_close_matches(pattern, [*tails, *also], n=3, cutoff=0.3) or list(tails)[:3]
    return "the nearest are " + ", ".join(near)


def nearest_first(name: str, valid: Iterable[str]) -> str:
    """All valid names, the one most like `name` first."""
    return ", ".join(sorted(valid, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio()))


def per_path(paths: Iterable[str], special: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """A value for each path: that of the last pattern in `special` that matches it, else the default.

    Raises ValueError for a pattern that matches none.
    """
    paths = list(paths)
    matching(paths, special)
    return {path: ([default] + [value for p, value in special.items() if matches(path, p)])[-1] for path in paths}
