"""`lora-np verify … --html FILE`: the verdict as a page, for folders of other programs and for ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..disk.writing import write_new

Html = Annotated[
    Path | None, typer.Option("--html", help="Write the verdict as one page as well, with a picture of each fault.")
]


def check_page(path: Path | None) -> None:
    """Raise OSError where no page can be written; before any work."""
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.absolute().parent} is no folder: make it, or choose another --html")
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists: choose another --html, or remove it")


def foreign_page(
    path: Path, names: Sequence[Path | None], found: Sequence[Any], verdict: str, adapter: Any, base: Any, merged: Any
) -> None:
    """Of folders of other programs; `found` are the tensors as they were judged."""
    from ..merges.evidence import of_foreign
    from ..merges.page import faults_of, merge_page
    from .foreign import ROWS, figures_of, untouched_in_words

    listed = sorted((one for one in found if one.kind == "adapted" or not one.holds), key=lambda one: -one.weight)
    rows = [(one.name, one.fault or "holds", *figures_of(one.array)) for one in listed]
    more = len(listed) - ROWS
    rest = (f"{more} more that should change are not listed; " if more > 0 else "") + f"{untouched_in_words(found)}."
    holds = all(one.holds for one in found)
    drawn = faults_of(found, lambda one: of_foreign(adapter, base, merged, one))
    text = merge_page([str(name) for name in names], holds, verdict, rows, rest, drawn)
    write_new(path, text.encode())


@dataclass(frozen=True)
class _Shown:
    """An array of ours as the page lists it."""

    name: str
    holds: bool
    fault: str
    words: str
    weight: float


def own_page(path: Path, names: Sequence[Path | None], certificate: Any, adapted: Any, merged: Any) -> None:
    """Of folders of ours; the arrays are looked at again where they do not hold."""
    from ..certificate import explained
    from ..merges.evidence import of_ours
    from ..merges.page import faults_of, merge_page
    from ..parameters import parameters
    from ..wrappers import unwrapped, wrappers
    from .foreign import figures_of

    base, there = parameters(unwrapped(adapted)), parameters(merged)
    around = {f"{place}.W": node for place, node in wrappers(adapted).items() if hasattr(node, "expected")}
    shown = {a.name: _of_ours(a, explained(a)) for a in certificate.arrays}
    listed = sorted((a for a in certificate.arrays if a.adapted or not a.holds), key=lambda a: -shown[a.name].weight)
    rows = [(a.name, "holds" if a.holds else "wrong", *figures_of(a)) for a in listed]
    frozen = sum(a.holds and not a.adapted for a in certificate.arrays)
    gaps = certificate.model
    rest = (
        f"{frozen} arrays that are not adapted are equal to the bit. Logits of merged and adapted differ by "
        f"{gaps.gap:.2e}, those of an honest merge by {gaps.own:.2e}; the adapter changes them by {gaps.contrast:.3g}."
    )
    drawn = faults_of(shown.values(), lambda one: of_ours(base[one.name], around.get(one.name), there[one.name]))
    text = merge_page([str(name or "the base that ships") for name in names], certificate.holds,
                      certificate.diagnosis, rows, rest, drawn)  # fmt: skip
    write_new(path, text.encode())


def _of_ours(array: Any, words: str) -> _Shown:
    used = array.used if math.isfinite(array.used) else 1e300
    return _Shown(array.name, array.holds, "", "" if array.holds else words, used + (0.0 if array.holds else 1e300))
