"""Two adapters side by side: compare."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .foreign import Alpha, counted
from .options import AsJson, Base, app, say, table
from .pictures import check_picture, write_picture

Adapter = Annotated[Path, typer.Argument(help="An adapter of lora_np, PEFT, mlx-lm, llama.cpp or loralib.")]
Picture = Annotated[
    Path | None,
    typer.Option("--picture", help="Draw the singular values of every ΔW as well, to FILE.svg or FILE.png."),
]
NAMED = 6  # maps of one adapter alone that are named; the others are counted


@app.command(rich_help_panel="check")
def compare(
    first: Adapter,
    second: Adapter,
    base: Base = None,
    alpha: Alpha = None,
    picture: Picture = None,
    as_json: AsJson = False,
) -> int:
    """Compare two adapters: sizes, angles and cosine of ΔW.

    Map by map: both norms, the cosine of the two updates, and how much of their column and row spaces is shared, beside
    what it would be by chance. --base is needed only where names or numbers of the model are: adapters of two programs,
    or one that changed its base before training.

    Example: lora-np compare my-adapter other-adapter
    """
    from ..converting.likeness import alike, read_maps

    if picture is not None:
        check_picture(picture, "--picture", able=False)
    one, other = (read_maps(path, base, alpha) for path in (first, second))
    check_order(one, other, base)
    found = alike(one, other)
    if picture is not None:
        draw({label_of(first): one, label_of(second): other}, found.maps, picture)
    if as_json:
        say(json.dumps(as_dict(one, other, found), indent=2))
        return 0
    show(found.maps)
    for name, maps, alone in zip((first, second), (one, other), found.only, strict=True):
        if alone:
            more = ", …" if len(alone) > NAMED else ""
            say(f"{counted(len(alone), 'map')} only in {name}: {', '.join(alone[:NAMED])}{more}")
        for note in maps.left[:NAMED]:
            say(f"{name}: {note}")
        if len(maps.left) > NAMED:
            say(f"{name}: and {len(maps.left) - NAMED} more such")
    if one.base and other.base and one.base != other.base:
        say(f"they were trained on different bases ({one.base[:12]} and {other.base[:12]})")
    together = "-" if found.cosine is None else f"{found.cosine:.4f}"
    sizes = " and ".join(f"{norm:.4g}" for norm in found.norms)
    say(f"{counted(len(found.maps), 'map')} of both, together: ‖ΔW‖ {sizes}, cosine {together}")
    if picture is not None:
        say(f"their singular values as a picture in {picture}")
    return 0


def check_order(one: Any, other: Any, base: Path | None) -> None:
    """Raise ValueError where llama.cpp's order of rows would be compared with another."""
    kinds = {one.format, other.format}
    if "gguf" in kinds and len(kinds) == 2 and base is None:
        raise ValueError("llama.cpp has names and an order of rows of its own: name the model of both, --base DIR")


def label_of(path: Path) -> str:
    return path.name or str(path)


def draw(adapters: dict[str, Any], found: Any, picture: Path) -> None:
    """The spectra of both, common maps by the name that the first has for them."""
    from ..figures.spectra import spectra

    labels = list(adapters)
    if len(labels) == 1:  # both folders have one name
        labels = [f"{labels[0]} (first)", f"{labels[0]} (second)"]
    series = {label: {one.name: one.spectra[k] for one in found} for k, label in enumerate(labels)}
    write_picture(spectra(series), picture)


def show(maps: Any) -> None:
    """A row for each map of both."""

    def side(of: Any) -> tuple[str, str]:
        if of is None:
            return "-", "-"
        return f"{of.phi:.3f} ({of.chance:.3f})", f"{of.angles[0]:.1f}° … {of.angles[-1]:.1f}°"

    rows = []
    for one in maps:
        dims = "-" if one.columns is None else ", ".join(map(str, one.columns.dims))
        cosine = "-" if one.cosine is None else f"{one.cosine:.4f}"
        norms = (f"{norm:.4g}" for norm in one.norms)
        rows.append((one.name, dims, *norms, cosine, *side(one.columns), *side(one.rows)))
    head = ("map", "rank", "‖ΔW₁‖", "‖ΔW₂‖", "cosine", "φ columns", "their angles", "φ rows", "their angles")
    table("Two updates of each map: in brackets φ by chance, for random subspaces of those sizes", head, rows)
    sides = [side for one in maps for side in (one.columns, one.rows) if side is not None]
    if sides:
        spread, cosine = max(side.spread for side in sides), max(one.spread for one in maps)
        say(f"by chance φ would stray from that by ±{spread:.2g} at most, and a cosine from 0 by ±{cosine:.2g}")


def as_dict(one: Any, other: Any, found: Any) -> dict[str, Any]:
    adapters = [
        {"path": str(maps.path), "format": maps.format, "base": maps.base or None, "only": only, "left": maps.left}
        for maps, only in zip((one, other), found.only, strict=True)
    ]
    return {"adapters": adapters, "norms": found.norms, "cosine": found.cosine, "maps": [asdict(m) for m in found.maps]}
