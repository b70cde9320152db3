r"""`lora-np study --paper`: from its options to its findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .options import say, table


def repeated(out: Path, *, full: bool, chosen: Mapping[str, Any], **places: Any) -> int:
    """Make the study of the paper and say its verdicts; exit code 1 where an exact law does not hold."""
    from ..paper import repeating

    profile = repeating.full() if full else repeating.default()
    tasks, methods = _names(chosen["tasks"]) or profile.tasks, _names(chosen["methods"])
    profile = replace(profile, tasks=tasks, methods=methods)
    result = repeating.repeat(
        out,
        profile,
        only=_names(chosen["only"]),
        engine=_engine(chosen["scheduler"] or "processes"),
        workers=chosen["workers"],
        say=say,
        **places,
    )
    claims = [claim for section in result.sections for claim in section.claims]
    rows = [(claim.verdict, claim.sentence, claim.found) for claim in claims]
    table("Claims beside what was found here", ("verdict", "claim", "found"), rows)
    say(f"{len(result.rows)} rows, {len(claims)} claims: {out / 'report.html'}")
    return 0 if result.holds else 1


def _engine(text: str) -> str:
    """The engine of that name; an address, with tcp:// or without, is that of a Dask scheduler."""
    bare = text.removeprefix("tcp://")
    host, colon, port = bare.rpartition(":")
    return f"dask://{bare}" if colon and port.isdecimal() and "/" not in host else text


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
