"""`lora-np params MODEL --compare`: every method at one budget, as a table and as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .options import in_bytes, say, sizes_of, table
from .pictures import check_picture, write_picture

if TYPE_CHECKING:
    from ..costs.budget import Offer

HEAD = (
    *("method", "settings", "trained", "share", "float32 file", "Adam's moments", "+ multiply-adds"),
    *("+ products", "context", "merges"),
)


def compared(model: str, budget: int | None, out: Path | None, *, overwrite: bool, as_json: bool) -> int:
    """Print the comparison, and draw it to `out` (.svg or .png). Nothing is computed where `out` cannot be written."""
    from ..costs.budget import budget_of, compare

    if out is not None:
        check_picture(out, overwrite=overwrite)
    config = sizes_of(model)
    allowed = budget_of(config, budget)
    offers = compare(config, allowed)
    if out is not None:
        _draw(offers, allowed, out, overwrite=overwrite)
    if as_json:
        say(json.dumps({"model": model, "budget": allowed, "methods": [asdict(offer) for offer in offers]}, indent=2))
    else:
        table(f"{model}: every method at a budget of {allowed:,} trained numbers", HEAD, [_row(o) for o in offers])
        for offer in (o for o in offers if o.note):
            say(f"{offer.name}: {offer.note}")
        say("+ multiply-adds: of a token, while the method stands beside the model; merged, it adds none")
        say("+ products: by which each block gets longer, one after another, as the model is served")
    if out is not None and not as_json:
        say(f"the same as a picture in {out}")
    return 0 if all(offer.bill is None or offer.bill.holds for offer in offers) else 1


def _row(offer: Offer) -> tuple[str, ...]:
    if offer.bill is None:
        return (offer.name, *("-" for _ in HEAD[1:]))
    bill = offer.bill
    sizes = (_short(bill.adapter_bytes["float32"]), _short(bill.optimizer_bytes), f"{bill.added:,}")
    left = (f"{bill.depth}", f"{bill.context:,}", "yes" if bill.merged else "no")
    return (offer.name, offer.settings, f"{bill.trained:,}", f"{bill.share:.4%}", *sizes, *left)


def _short(n: int) -> str:
    """In decimal units alone: what is exact is the count beside it."""
    return in_bytes(n).rpartition("= ")[2]


def _draw(offers: tuple[Offer, ...], budget: int, out: Path, *, overwrite: bool) -> None:
    from ..figures.methods import one_budget

    write_picture(one_budget(offers, budget), out, overwrite=overwrite)
