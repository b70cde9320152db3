r"""A file of requests, one a line.

    support<TAB>How do I start it?                                           an adapter, or - for the base, and a prompt
    {"adapter": "support", "prompt": "How do I start it?", "tokens": 60, "temperature": 0.7, "seed": 3, "stop": ["\n"]}

A line that starts with { is a JSON object. Its fields: prompt, the only one that must be there; adapter; tokens, the
most to write; temperature; seed; stop, a text or several, at which the answer ends; raw, to continue the prompt instead
of answering it. What a request does not say is as the command line says for all. Empty lines are passed over.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk.reading import read_once
from ..formats.disk import json_object
from ..model import Transformer
from ..names import nearest_first
from .bank import AdapterBank
from .batching import check
from .requests import Answer, Request, Tokens

KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "adapter": (str, type(None)),
    "tokens": (int,),
    "temperature": (int, float),
    "seed": (int,),
    "stop": (str, list),
    "raw": (bool,),
}
NONE = "-"  # in a plain line: no adapter
MOST = 1 << 28  # bytes of a file of requests


@dataclass(frozen=True)
class Defaults:
    """What a request is told that does not say it itself."""

    tokens: int = 100
    temperature: float = 0.0
    seed: int = 0
    raw: bool = False


@dataclass(frozen=True)
class Codec:
    """From text to tokens: a prompt (raw or not), a stop; and back; `end` ends a text."""

    prompt: Callable[[str, bool], Any]
    stop: Callable[[str], Any]
    decode: Callable[[Any], str]
    end: int


def requests_in(
    path: Path, base: Transformer, bank: AdapterBank | None, codec: Codec, defaults: Defaults
) -> list[tuple[int, Request]]:
    """Every request with the number of its line. Raises OSError, and ValueError that names the first bad line."""
    try:
        text = read_once(path, MOST).data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {bad} is not UTF-8") from None
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        try:
            request = _request(_fields(line), codec, defaults)
            check(request, base, bank)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path} line {number}: {error}") from None
        found.append((number, request))
    if not found:
        raise ValueError(f"{path} holds no request")
    return found


def _fields(line: str) -> dict[str, Any]:
    """What a line says, by name; the types are those of KINDS."""
    if not line.lstrip().startswith("{"):
        name, tab, prompt = line.partition("\t")
        if not tab:
            raise ValueError("it must be ADAPTER, a tab and a prompt (- for no adapter), or a JSON object")
        return {"adapter": None if name.strip() == NONE else name.strip(), "prompt": prompt}
    found = json_object(line.encode(), "it")
    for name, value in found.items():
        if name not in KINDS:
            raise ValueError(f"a request has {', '.join(KINDS)}; got {name!r}, the nearest is {_nearest(name)}")
        if not isinstance(value, KINDS[name]) or (type(value) is bool and bool not in KINDS[name]):
            raise ValueError(f"{name} must be {_kinds(name)}, got {json.dumps(value)[:40]}")
    if "prompt" not in found:
        raise ValueError("it has no prompt")
    return found


def _request(fields: dict[str, Any], codec: Codec, defaults: Defaults) -> Request:
    if not fields["prompt"]:
        raise ValueError("the prompt is empty")
    stops = fields.get("stop", [])
    stops = [stops] if isinstance(stops, str) else stops
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("stop must be a text or several, none of them empty")
    if fields.get("tokens", 1) < 1:
        raise ValueError(f"tokens must be at least 1, got {fields['tokens']}")
    name = fields.get("adapter")
    return Request(
        _tokens(codec.prompt(fields["prompt"], fields.get("raw", defaults.raw))),
        name if name is None else unicodedata.normalize("NFC", name),
        fields.get("tokens", defaults.tokens),
        fields.get("temperature", defaults.temperature),
        fields.get("seed", defaults.seed),
        codec.end,
        tuple(_tokens(codec.stop(stop)) for stop in stops),
    )


def answer_line(line: int, answer: Answer, codec: Codec) -> str:
    """An answer as one line of JSON: the line of its request, its adapter, and the text or what was wrong."""
    about: dict[str, Any] = {"request": line, "adapter": answer.request.adapter}
    if answer.error is not None:
        return json.dumps({**about, "error": answer.error})
    about |= {"text": codec.decode(answer.tokens), "tokens": len(answer.tokens), "ended": answer.ended}
    return json.dumps(about, ensure_ascii=False)


def _tokens(ids: Any) -> Tokens:
    return tuple(int(token) for token in ids)


def _nearest(name: str) -> str:
    return nearest_first(name, KINDS).partition(",")[0]


def _kinds(name: str) -> str:
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list of texts"}
    return " or ".join(words.get(kind, "null") for kind in KINDS[name])
