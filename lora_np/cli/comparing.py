"""`lora-np params MODEL --compare`: every method at one budget, as a table and as a picture."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..disk.writing import write_atomically, write_new
from .options import in_bytes, say, sizes_of, table

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
        _check_picture(out, overwrite=overwrite)
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


def _check_picture(out: Path, *, overwrite: bool) -> None:
    if out.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"--out must name a picture, FILE.svg or FILE.png, got {out}")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out.absolute().parent} is no folder: make it, or choose another --out")
    if out.exists() and not (overwrite and out.is_file()):
        raise FileExistsError(f"{out} exists: choose another --out, or allow --overwrite")


def _draw(offers: tuple[Offer, ...], budget: int, out: Path, *, overwrite: bool) -> None:
    from matplotlib import rc_context

    from ..figures import STYLE
    from ..figures.methods import one_budget

    file, metadata = io.BytesIO(), {"Date": None} if out.suffix.lower() == ".svg" else None
    with rc_context(STYLE):
        one_budget(offers, budget).savefig(file, format=out.suffix.lower()[1:], dpi=160, metadata=metadata)
    (write_atomically if overwrite else write_new)(out, file.getvalue())
