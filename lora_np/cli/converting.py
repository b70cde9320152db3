"""Commands that carry adapters to other programs: convert, extract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .completing import TO_NAMES, among
from .foreign import WORST, Alpha, counted
from .options import AsJson, Base, Out, Seed, app, say, seed_of, table

To = Annotated[
    str, typer.Option("--to", help="peft, mlx, gguf (of llama.cpp) or lora_np.", autocompletion=among(TO_NAMES))
]


@app.command(rich_help_panel="convert")
def convert(
    adapter: Annotated[Path, typer.Argument(help="An adapter of PEFT, mlx-lm, loralib, llama.cpp or lora_np.")],
    to: To,
    out: Out,
    base: Base = None,
    alpha: Alpha = None,
    as_json: AsJson = False,
) -> int:
    """Write an adapter in another program's format.

    What was written is read back, to show that ΔW is the same. llama.cpp's names need --base, of which config.json is
    enough. What a format cannot hold is refused by name.

    Example: lora-np convert peft-adapter --to mlx --out mlx-adapter
    """
    import json
    from dataclasses import asdict

    from ..converting import convert as converted
    from ..engine.threads import one_matrix_thread
    from ..gradients import finite

    with one_matrix_thread():
        done = converted(adapter, to, out, base=base, alpha=alpha)
    if as_json:
        about = {"from": done.source, "to": done.to, "folder": str(done.folder), "to_the_bit": done.to_the_bit}
        modules = [{**finite(asdict(one)), "to_the_bit": one.to_the_bit} for one in done.modules]
        say(json.dumps({**about, "more": done.more, "modules": modules}, indent=2))
        return 0
    show(done.modules, done.source, to)
    more = f", and {done.more} more arrays" if done.more else ""
    say(f"SAME: {same_in_words(done.modules)}{more}; read back from {out}")
    return 0


def show(modules: Sequence[Any], source: str, to: str) -> None:
    """The modules whose ΔW is off by most of its bound, as a table."""
    listed = sorted(modules, key=lambda one: (one.to_the_bit, -one.gap / (one.bound or 1.0)))
    rows = []
    for one in listed[:WORST]:
        gap = ("to the bit", "0") if one.to_the_bit else (f"{one.gap:.2e}", f"{one.bound:.2e}")
        rows.append((one.module, _both(one.rank, "d"), _both(one.scale, ".6g"), *gap))
    head = ("module", "rank", "scale", "ΔW written − ΔW read", "its bound")
    table(f"From {source} to {to}, what is furthest off first", head, rows)
    if len(listed) > WORST:
        rest = listed[WORST:]
        say(f"and {len(rest)} more modules, of which {sum(one.to_the_bit for one in rest)} are equal to the bit")


def _both(pair: tuple[Any, Any], form: str) -> str:
    one, other = (format(value, form) for value in pair)
    return one if one == other else f"{one} → {other}"


def same_in_words(modules: Sequence[Any]) -> str:
    """One sentence on all modules."""
    equal = sum(one.to_the_bit for one in modules)
    if equal == len(modules):
        return f"ΔW of {counted(equal, 'module')} is equal to the bit"
    worst = max((one for one in modules if not one.to_the_bit), key=lambda one: one.gap / max(one.size, 1e-300))
    return (
        f"ΔW of {counted(equal, 'module')} is equal to the bit, of {len(modules) - equal} within its bound, at most "
        f"{worst.gap / worst.size:.1e} of the largest entry"
    )


@app.command(rich_help_panel="convert")
def extract(
    base: Annotated[Path, typer.Argument(help="The model before its fine-tuning, of transformers or ours.")],
    tuned: Annotated[Path, typer.Argument(help="The same model after it.")],
    out: Out,
    rank: Annotated[int, typer.Option(help="r, of every matrix that is large enough.")] = 16,
    to: To = "peft",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> int:
    """Draw the best rank-r adapter out of a full fine-tuning.

    It is said what that leaves out of each tensor.

    Example: lora-np extract base tuned --rank 8 --out adapter
    """
    import json
    from dataclasses import asdict

    from ..converting import extract as extracted
    from ..engine.threads import one_matrix_thread
    from ..gradients import finite

    with one_matrix_thread():
        done = extracted(base, tuned, rank, out, to=to, seed=seed_of(seed))
    if as_json:
        matrices, left = ([finite(asdict(one)) for one in several] for several in (done.matrices, done.left))
        about = {"folder": str(done.folder), "to": done.to, "error": done.error, "unchanged": done.unchanged}
        say(json.dumps({**about, "matrices": matrices, "left": left}, indent=2))
        return 0
    show_extracted(done.matrices, rank)
    for one in done.left[: 2 * WORST]:
        shape = "×".join(map(str, one.shape))
        say(f"not carried: {one.name} ({shape}), changed by {one.relative:.2%} of its size: {one.why}")
    if len(done.left) > 2 * WORST:
        say(f"not carried: {len(done.left) - 2 * WORST} more, of which --json gives the names")
    said = f"{counted(len(done.matrices), 'matrix', 'matrices')} at rank {rank}"
    same, lost = counted(done.unchanged, "tensor"), counted(len(done.left), "tensor")
    say(f"{said}, {same} unchanged, {lost} not carried; written to {out}")
    say(f"{1.0 - done.error**2:.1%} of the change of the matrices is in the adapter (‖D − BA‖/‖D‖ = {done.error:.3g})")
    return 0


def show_extracted(matrices: Sequence[Any], rank: int) -> None:
    """The matrices of which most is left out, as a table."""
    listed = sorted(matrices, key=lambda one: -one.error)
    rows = [
        (one.name, "×".join(map(str, one.shape)), f"{one.rank}", f"{one.relative:.3g}", f"{one.largest:.3g}",
         f"{one.error:.3g}", f"{1.0 - one.error**2:.1%}")
        for one in listed[:WORST]
    ]  # fmt: skip
    head = ("tensor", "shape", "rank", "‖D‖/‖W‖", "σ₁ of D", "‖D − BA‖/‖D‖", "kept of ‖D‖²")
    table(f"The best rank-{rank} part of each change D, what is left out most first", head, rows)
    if len(listed) > WORST:
        say(f"and {len(listed) - WORST} more matrices, of which less is left out")
