"""Commands about the paper: ledger."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, app, say, table


@app.command(rich_help_panel="learn")
def ledger(
    place: Annotated[str | None, typer.Option("--table", help="Of one table, 1 to 18, or another place.")] = None,
    only: Annotated[str | None, typer.Option(help="Of one verdict: =, ~ or ≠ (also written !=).")] = None,
    contradictions: Annotated[bool, typer.Option("--errata", help="What contradicts itself, instead.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write a page of Markdown to this file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace such a page at --out.")] = False,
    as_json: AsJson = False,
) -> int:
    """The paper's numbers computed anew, each with a verdict.

    Every number of the LoRA paper that arithmetic can reproduce: =, ~ or ≠.

    Example: lora-np ledger --table 4
    """
    from ..paper import pages
    from ..paper.errata import errata
    from ..paper.ledger import chosen, in_one_line, tally

    if contradictions and (place is not None or only is not None):
        raise ValueError("--errata takes neither --table nor --only: it shows every contradiction")
    found, entries = errata(), [] if contradictions else chosen(place, only)
    if out is not None:
        page = pages.errata_page(found) if contradictions else pages.ledger_page(entries)
        pages.write_page(out, page, overwrite=overwrite)
    if as_json:
        errors = [asdict(erratum) for erratum in found] if contradictions else None
        listed = {"entries": [entry.as_dict() for entry in entries], "verdicts": tally(entries)}
        say(json.dumps({"errata": errors} if contradictions else listed, indent=2, default=str))
        return 0
    if out is None and contradictions:
        for erratum in found:
            table(f"({erratum.letter}) {erratum.title}", pages.PAIR_COLUMNS, [*pages.pairs_of(erratum)])
            say(f"    {erratum.note}\n")
    elif out is None:
        columns = ("place", "what", "printed", "value", "", "why")
        rows = [(entry.place, *pages.row_of(entry)[:4], entry.note) for entry in entries]
        table("What the paper prints, and what comes out", columns, rows)
    say(f"{len(found)} contradictions" if contradictions else in_one_line(entries))
    return 0
