"""Commands on folders of other programs, and how those are told apart from ours."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, app, say, table
from .pages import foreign_page
from .pictures import check_picture, write_picture

Alpha = Annotated[float | None, typer.Option(help="Of an adapter of loralib, whose file does not hold it.")]
MOST = 4  # threads of a verification: each holds some 40 MB of blocks
MERGED = ("float32", "float16", "bfloat16", "float64")  # types in which a merge may be written
WORST, ROWS = 12, 40  # rows that a table shows, and a page; the others are counted


def is_foreign(adapter: Path) -> bool:
    """Is this an adapter of another program? Ours is a folder with adapter.json."""
    if adapter.is_dir():
        kinds = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth")
        named = (adapter / "adapter_config.json").exists()
        ours = (adapter / "adapter.json").exists() or (adapter / "model.safetensors").exists()
        return named or (not ours and any(any(adapter.glob(kind)) for kind in kinds))
    return adapter.is_file()


def read_base(adapter: Path, base: Path | None) -> Any:
    """The tensors of the base, and its config.json where it has one; raises ValueError where --base is left out."""
    from ..formats.disk import read_json
    from ..formats.huggingface import open_weights

    if base is None:
        raise ValueError(f"{adapter} is an adapter of another program: name the model that it was made for, --base DIR")
    config = base / "config.json"
    return open_weights(base), read_json(config) if base.is_dir() and config.exists() else None


def verify_foreign(
    adapter: Path, merged: Path, base: Path | None, alpha: float | None, *, as_json: bool, html: Path | None = None
) -> int:
    """Judge every tensor; 0 when all hold."""
    from ..engine.threads import thread_map, worker_count
    from ..formats.adapters import read_adapter
    from ..formats.huggingface import open_weights
    from ..merges.judging import judged, tied_tables
    from ..merges.recipes import replayed, who_wrote

    if base is not None and base.exists() and merged.exists() and base.samefile(merged):
        raise ValueError(f"--base and MERGED are both {base}: name the model before and after merging")
    before, about = read_base(adapter, base)
    update = finite_adapter(read_adapter(adapter, before, about, alpha=alpha).checked("tied_head"))
    after = open_weights(merged)
    with thread_map(min(MOST, worker_count())) as run:
        found = list(judged(update, before, after, tied_tables(before, after), run=run))
        holds = all(one.holds for one in found)
        counted = {one.name: one.equal for one in found if one.equal is not None}
        verdict, shares = in_words(found), replayed(update, before, after, counted) if holds else {}
    if html is not None:
        foreign_page(html, (adapter, merged, base), found, verdict, update, before, after)
    if as_json:
        about = {"holds": holds, "diagnosis": verdict, "format": update.format, "replayed": shares}
        say(json.dumps({**about, "tensors": [one.as_dict() for one in found]}, indent=2))
        return 0 if holds else 1
    show(found)
    if holds:
        say(f"who wrote it: {who_wrote(shares)}")
    say(f"{'EQUAL' if holds else 'NOT EQUAL'}: {verdict}")
    return 0 if holds else 1


def show(found: Sequence[Any]) -> None:
    """The worst tensors as a table, the rest as counts."""
    listed = sorted((one for one in found if one.kind == "adapted" or not one.holds), key=lambda one: -one.weight)
    rows = [(one.name, one.fault or "holds", *figures_of(one.array)) for one in listed[:WORST]]
    head = ("tensor", "verdict", "gap", "its bound", "gap/bound", "factor", "an honest one lies in", "swallowed")
    table("Found against W0 + ΔW, entry by entry, the worst first", head, rows)
    if len(listed) > WORST:
        rest = listed[WORST:]
        say(f"and {len(rest)} more that should change, of which {sum(one.holds for one in rest)} hold")
    say(untouched_in_words(found))


def finite_adapter(adapter: Any) -> Any:
    """The same adapter; raises ValueError for one that holds what is not finite, of which no merge can be judged."""
    from ..formats.examining import examined

    for finding in examined(adapter):
        if finding.stops:
            raise ValueError(str(finding))
    return adapter


def untouched_in_words(found: Sequence[Any]) -> str:
    same = sum(one.kind == "untouched" and one.holds for one in found)
    verb = "is" if same == 1 else "are"
    return f"{counted(same, 'tensor')} that no adapter touches {verb} equal to the bit, in type and shape"


def counted(count: int, noun: str, several: str = "") -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def figures_of(array: Any) -> tuple[str, ...]:
    if array is None:
        return ("-",) * 6
    sizes = (f"{array.gap:.2e}", f"{array.bound:.2e}", f"{array.used:.3f}")
    if array.factor is None:
        return (*sizes, "-", "-", "-")
    between = f"{array.factor_low:.5f} … {array.factor_high:.5f}"
    return (*sizes, f"{array.factor:.5f}", between, f"{array.swallowed:.1%}")


def in_words(found: Sequence[Any]) -> str:
    """One sentence: that all hold, or what is the matter with the worst tensor."""
    wrong = [one for one in found if not one.holds]
    changed = [one for one in found if one.kind == "adapted"]
    if not wrong:
        verb, their = ("is", "its rounding bound") if len(changed) == 1 else ("are", "their rounding bounds")
        said = f"{counted(len(changed), 'adapted tensor')} {verb} W0 + ΔW within {their}, the others are the base's"
        measured = [one.array for one in changed if one.array is not None and one.array.factor is not None]
        lost = max((array.swallowed for array in measured), default=0.0)
        return said + (f"; rounding swallows up to {lost:.0%} of an update" if lost > 0.005 else "")
    worst = max(wrong, key=lambda one: one.weight)
    kinds = Counter(one.fault for one in wrong).most_common()
    counts = ", ".join(f"{count} {fault}" for fault, count in kinds)
    verb = "does" if len(wrong) == 1 else "do"
    return f"{len(wrong)} of {counted(len(found), 'tensor')} {verb} not hold ({counts}); {worst.name}: {worst.words}"


def merge_foreign(
    adapter: Path, out: Path, base: Path | None, alpha: float | None, recipe: str | None,
    dtype: str | None = None, shard: float | None = None,
) -> int:  # fmt: skip
    """Merge into a new folder that transformers loads; `shard` in gigabytes."""
    from ..formats.adapters import read_adapter
    from ..formats.writing import SHARD
    from ..merges.recipes import RECIPES, merge_files
    from ..names import nearest_first

    recipe = recipe or "float64"
    if dtype not in (None, *MERGED):
        raise ValueError(f"--dtype must be one of {nearest_first(dtype, MERGED)}; got {dtype!r}")
    if shard is not None and not 0.0 < shard < 1e6:
        raise ValueError(f"--shard must be a positive number of gigabytes, got {shard}")
    if recipe not in RECIPES:
        raise ValueError(f"--recipe must be one of {nearest_first(recipe, RECIPES)}; got {recipe!r}")
    tensors, about = read_base(adapter, base)
    update = finite_adapter(read_adapter(adapter, tensors, about, alpha=alpha).checked())
    size = SHARD if shard is None else max(1, int(shard * 1e9))
    count = merge_files(update, tensors, base or Path(), RECIPES[recipe], out, shard=size, dtype=dtype)
    say(f"merged {counted(count, 'tensor')} into {out}; lora-np verify {adapter} {out} --base {base} checks them")
    return 0


@app.command(rich_help_panel="check")
def inspect(
    folder: Annotated[Path, typer.Argument(help="An adapter or a model, of any program.")],
    base: Annotated[Path | None, typer.Option(help="The model that an adapter was made for.")] = None,
    alpha: Alpha = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Of an adapter: draw the singular values of every ΔW, to FILE.svg or FILE.png."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """What lies in a folder of weights, and what is odd?

    An adapter or a model, of any program; the exit code is 1 when there is a finding.

    Example: lora-np inspect peft-adapter --base llama
    """
    from ..formats.adapters import read_adapter
    from ..formats.huggingface import open_weights
    from ..gradients import finite
    from ..merges.inspecting import adapter_facts, model_facts

    if picture is not None:
        check_picture(picture, "--picture", able=False)
    if is_adapter(folder):
        before, about = (None, None) if base is None else read_base(folder, base)
        adapter = read_adapter(folder, before, about, alpha=alpha)
        facts, findings = adapter_facts(adapter, before)
        told: dict[str, Any] = {"format": adapter.format, "updates": [finite(asdict(fact)) for fact in facts]}
        if picture is not None:
            draw_spectra(folder, adapter, before, picture)
    else:
        if picture is not None:
            raise ValueError("--picture draws the updates of an adapter, and this is a model: leave it out")
        told, findings = model_facts(open_weights(folder))
    if as_json:
        say(json.dumps({**told, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return 1 if findings else 0
    if "updates" in told:
        show_updates(adapter.format, facts)
    else:
        tensors, numbers = counted(told["tensors"], "tensor"), counted(told["parameters"], "number")
        say(f"{tensors}, {numbers}, of type {', '.join(told['types'])}")
    if findings:
        rows = [(finding.kind, finding.where, finding.what, finding.todo) for finding in findings[: 4 * WORST]]
        table("Findings", ("kind", "where", "what", "what to do"), rows)
    say(counted(len(findings), "finding") if findings else "nothing odd was found")
    return 1 if findings else 0


def draw_spectra(folder: Path, adapter: Any, base: Any, picture: Path) -> None:
    """The singular values of every ΔW that is a sum of s·BA."""
    from ..converting.likeness import maps_in, one_map
    from ..figures.spectra import spectra

    pairs = maps_in(folder, adapter, base).pairs
    values = {name: one_map(name, pair, pair).spectra[0] for name, pair in pairs.items()}
    write_picture(spectra({folder.name or str(folder): values}), picture)


def is_adapter(folder: Path) -> bool:
    """Is this an adapter of another program, not a model?"""
    from ..formats.tensors import INDEX, SINGLE

    if folder.is_dir():
        models = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
        return is_foreign(folder) and not any((folder / name).exists() for name in models)
    return folder.suffix in (".gguf", ".bin", ".pt", ".pth") or "adapter" in folder.name


def show_updates(kind: str, facts: Sequence[Any]) -> None:
    """Tensors that an adapter changes, the largest updates first."""

    def number(value: float | None, form: str = ".3g") -> str:
        return "-" if value is None else format(value, form)

    listed = sorted(facts, key=lambda fact: -(fact.relative or fact.largest or 0.0))
    head = ("tensor", "shape", "rank", "scale", "σ largest", "σ smallest", "‖ΔW‖/‖W‖", "swallowed")
    rows = [
        (fact.name, "×".join(map(str, fact.shape)), ", ".join(map(str, fact.ranks)) or "-",
         ", ".join(f"{s:.4g}" for s in fact.scales[:3]) or "-", number(fact.largest), number(fact.smallest),
         number(fact.relative), number(fact.swallowed, ".1%"))
        for fact in listed[:WORST]
    ]  # fmt: skip
    table(f"What this adapter of format {kind} changes, the largest first", head, rows)
    if len(listed) > WORST:
        say(f"and {counted(len(listed) - WORST, 'more tensor')}")
