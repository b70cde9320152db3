"""Commands that carry adapters to other programs: convert, extract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .foreign import WORST, Alpha, one_thread
from .options import AsJson, Base, Out, app, say, table

To = Annotated[str, typer.Option("--to", help="peft, mlx, gguf (of llama.cpp) or lora_np.")]


@app.command()
def convert(
    adapter: Annotated[Path, typer.Argument(help="An adapter of PEFT, mlx-lm, loralib, llama.cpp or lora_np.")],
    to: To,
    out: Out,
    base: Base = None,
    alpha: Alpha = None,
    as_json: AsJson = False,
) -> int:
    """Write an adapter in another program's format, and show by reading it back that ΔW is the same.

    llama.cpp's names need --base, of which config.json is enough. What a format cannot hold is refused by name.

    Example: lora-np convert peft-adapter --to mlx --out mlx-adapter
    """
    import json
    from dataclasses import asdict

    from ..converting import convert as converted
    from ..gradients import finite

    with one_thread():
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


def counted(count: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
