r"""The regular expressions of a configuration file, which is a stranger's: they must end in time.

Python's `re` tries all ways to divide a name between repeats, so a pattern is refused when it repeats a group in which
something is repeated or chosen (the ways grow exponentially), or repeats more than MAX_REPEATS times in all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from .disk import shown

MAX_LENGTH, MAX_REPEATS, MAX_PATH = 2000, 5, 256
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(|\)|\||[*+]|\{\d*,?\d*\}|.", re.DOTALL)
_WORD = re.compile(r"[\w-]*")  # a pattern that matches itself alone
_MANY = re.compile(r"[*+]|\{(?!0?,1\}|[01]\})\d*,?\d*\}")


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern; raises ValueError for one that is none, too long, or could take time without end."""
    if len(pattern) > MAX_LENGTH or _may_not_end(pattern):
        raise ValueError(f"the pattern {shown(pattern)} is not tried: it is too long or repeats what is repeated")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {shown(pattern)} is no regular expression: {error}") from None


def _may_not_end(pattern: str) -> bool:
    """True when a group with a repeat or a choice in it is repeated, or there are too many repeats."""
    tokens = _TOKEN.findall(pattern)
    inside, repeats = [False], 0  # does the group at each depth hold a repeat or a choice?
    for k, token in enumerate(tokens):
        many = _MANY.fullmatch(token) is not None
        repeats += many
        if token == "(":
            inside.append(False)
        elif token == ")" and len(inside) > 1:
            held = inside.pop()
            if held and k + 1 < len(tokens) and _MANY.fullmatch(tokens[k + 1]):
                return True
            inside[-1] |= held
        elif many or token == "|":
            inside[-1] = True
    return repeats > MAX_REPEATS


def _tried(pattern: str, path: str) -> re.Pattern[str]:
    if len(path) > MAX_PATH:
        raise ValueError(f"{shown(path)} is too long to be tried against the patterns of a configuration")
    return compiled(pattern)


def first_match(values: Mapping[str, Any], path: str, default: Any) -> Any:
    """PEFT's rule for rank_pattern and alpha_pattern: the value of the first key that matches the end of the path."""
    for key, value in values.items():
        if path == key or path.endswith(f".{key}"):
            return value
        if not _WORD.fullmatch(key) and _tried(rf"(?:.*\.)?(?:{key})$", path).match(path):
            return value
    return default


def targeted(path: str, names: Any) -> bool:
    """PEFT's rule for target_modules: a text is a pattern of the whole path, a list holds paths or their ends."""
    if isinstance(names, str):
        return bool(_tried(names, path).fullmatch(path))
    return isinstance(names, list) and any(
        isinstance(name, str) and (path == name or path.endswith(f".{name}")) for name in names
    )
