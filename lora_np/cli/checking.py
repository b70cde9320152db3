"""Commands that merge and prove: gradcheck, merge, verify, params."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from .completing import RECIPE_NAMES, among, models
from .foreign import Alpha, is_foreign
from .options import (
    AdapterFolder,
    AsJson,
    Base,
    BaseType,
    Device,
    MethodName,
    Out,
    Overwrite,
    Rank,
    Seed,
    Settings,
    Targets,
    app,
    chosen_method,
    held_base,
    in_bytes,
    say,
    seed_of,
    sizes_of,
    table,
)
from .pages import Html, check_page, own_page


@app.command(rich_help_panel="check")
def gradcheck(
    base: Base = None,
    rank: Rank = None,
    targets: Targets = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> int:
    """Prove every gradient by three independent witnesses.

    They are the derivation, autograd on the textbook, and the difference quotient. Of all operations and methods on
    small models; with --base of LoRA beside that model, along random directions.

    Example: lora-np gradcheck --seed 1
    """
    from ..gradients import gradcheck as checked
    from ..progress import watch

    if base is None and (rank, targets) != (None, None):
        raise ValueError("--rank and --targets belong to --base: add it, or leave them out")
    if base is None:
        report = checked(
            seed=seed_of(seed), device=device, watch=lambda cases: watch(cases, "case", show=lambda case: case.name)
        )
    else:
        report = of_real_model(base, chosen_method("lora", None, {"rank": rank, "targets": targets}), seed_of(seed))
    if as_json:
        say(json.dumps(report.as_dict(), indent=2))
        return 0 if report.holds else 1
    head = ("case", "array", "shape", "hand/textbook", "hand/difference", "textbook/difference", "verdict")
    rows = [
        (
            *(r.case, r.array, "×".join(map(str, r.shape))),
            *(f"{gap:.1e}" for gap in (r.hand_textbook, r.hand_difference, r.textbook_difference)),
            r.verdict,
        )
        for r in report.rows
    ]
    table("Largest disagreement of each pair of witnesses, relative to the array's largest gradient", head, rows)
    wrong = sum(not row.holds for row in report.rows)
    say(f"{len(report.rows)} arrays, {len(report.rows) - wrong} hold, {wrong} do not (seed {seed})")
    return 0 if report.holds else 1


def of_real_model(base: Path, method: Any, seed: int) -> Any:
    """The gradients of LoRA beside a model in float64; says first how long that takes."""
    import sys

    import numpy as np

    from ..directions import Plan, check_room, gradcheck_of
    from ..files import load_config, load_model

    tokens = 12

    def told(plan: Plan) -> None:
        n = f"{plan.evaluations} evaluations of the loss on {tokens} tokens, along {plan.directions} directions each"
        print(f"{n}: about {plan.seconds:.0f} s at the pace of the first", file=sys.stderr)

    check_room(load_config(base), tokens, str(base))
    return gradcheck_of(load_model(base, np.float64), method, seed, tokens, told=told)


@app.command(rich_help_panel="convert")
def merge(
    adapter: AdapterFolder,
    out: Out,
    base: Base = None,
    base_dtype: BaseType = None,
    overwrite: Overwrite = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Of another program's: peft, peft_safe, float32, float64, mlx or llama_cpp.",
            autocompletion=among(RECIPE_NAMES),
        ),
    ] = None,
    alpha: Alpha = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of what is written, of another program's; the base's.",
            autocompletion=among(("float32", "float16", "bfloat16", "float64")),
        ),
    ] = None,
    shard: Annotated[float | None, typer.Option(help="Gigabytes of one file at most, of another program's.")] = None,
) -> int:
    """Add an adapter into its base: W0 + s·BA, as a folder.

    Of ours, or of another program's (then --base is its folder, and what is written is for transformers to load).

    Example: lora-np merge my-adapter --out my-model
    """
    from ..disk.folders import check_free
    from ..files import BASE, MODEL, load_adapter, save_model
    from ..wrappers import merge_whole, wrappers
    from .foreign import merge_foreign

    check_free(out, MODEL, overwrite=overwrite, inputs=(adapter, base or BASE))
    if is_foreign(adapter):
        if overwrite:
            raise ValueError(f"--overwrite replaces only what lora_np wrote: remove {out}, or choose another --out")
        return merge_foreign(adapter, out, base, alpha, recipe, dtype, shard)
    if any(option is not None for option in (recipe, alpha, dtype, shard)):
        raise ValueError("--recipe, --alpha, --dtype and --shard belong to adapters of other programs: leave them out")
    model, _ = load_adapter(adapter, held_base(base, base_dtype))
    found = wrappers(model)
    save_model(out, merge_whole(model) if found else model, overwrite=overwrite, vocabulary=vocabulary_of(base, model))
    what = f"merged {len(found)} adapted maps" if found else "nothing stood beside the base: wrote what was trained"
    say(f"{what} into {out}; lora-np verify {adapter} {out} checks {'them' if found else 'it'}")
    return 0


def vocabulary_of(base: Path | None, model: Any) -> dict[str, bytes]:
    """The files of this base's vocabulary; a warning where it cannot be read, since a merge needs none."""
    from ..vocabularies import files_of, tokenizer_of

    try:
        return files_of(tokenizer_of(base, model.config))
    except (OSError, ValueError, ImportError) as error:
        warnings.warn(f"the merged model has no vocabulary, and reads bytes: {error}", stacklevel=2)
        return {}


@app.command(rich_help_panel="check")
def verify(
    adapter: AdapterFolder,
    merged: Annotated[Path, typer.Argument(help="The model folder that should equal base + adapter.")],
    base: Base = None,
    base_dtype: BaseType = None,
    alpha: Alpha = None,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Is a merged model W0 + s·BA? And if not, what is it?

    Every entry is held against its own rounding bound. Of our folders, and of those of other programs (PEFT, mlx-lm,
    loralib, llama.cpp), which need --base.

    Example: lora-np verify my-adapter my-model
    """
    import numpy as np

    from ..certificate import certify
    from ..files import load_adapter, load_model
    from .foreign import verify_foreign

    check_page(html)
    if is_foreign(adapter):
        return verify_foreign(adapter, merged, base, alpha, as_json=as_json, html=html)
    if alpha is not None:
        raise ValueError("--alpha belongs to adapters of loralib: leave it out")

    model, _ = load_adapter(adapter, held_base(base, base_dtype))
    text = np.random.default_rng(0).integers(32, 127, (2, min(128, model.config.context)))
    found = load_model(merged)
    certificate = certify(model, found, text % model.config.vocab)
    if html is not None:
        own_page(html, (adapter, merged, base), certificate, model, found)
    if as_json:
        say(json.dumps(certificate.as_dict(), indent=2))
        return 0 if certificate.holds else 1
    rows = [
        (a.name, f"{a.gap:.2e}", f"{a.bound:.2e}", f"{a.used:.3f}", *_factors(a))
        for a in certificate.arrays
        if a.adapted or not a.holds
    ]
    head = ("array", "gap", "its bound", "gap/bound", "factor", "an honest one lies in")
    table("Found against W0 + s·BA, entry by entry", head, rows)
    frozen = sum(a.holds and not a.adapted for a in certificate.arrays)
    say(f"{frozen} arrays that are not adapted are equal to the bit")
    gaps = certificate.model
    say(f"logits: the adapter changes them by {gaps.contrast:.3g}; merged and adapted differ by {gaps.gap:.2e}")
    say(f"an honest merge differs by {gaps.own:.2e}, and in float64 by {gaps.gap64:.2e}")
    say(f"{'EQUAL' if certificate.holds else 'NOT EQUAL'}: {certificate.diagnosis}")
    return 0 if certificate.holds else 1


def _factors(array: Any) -> tuple[str, str]:
    if array.factor is None:
        return "-", "-"
    return f"{array.factor:.7f}", f"{array.factor_low:.7f} … {array.factor_high:.7f}"


@app.command(rich_help_panel="measure")
def params(
    model: Annotated[
        str,
        typer.Argument(
            help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, gpt3, base, smollm2, minilm, or a folder.",
            autocompletion=models,
        ),
    ],
    method: MethodName = "lora",
    settings: Settings = None,
    rank: Rank = None,
    targets: Targets = None,
    compare: Annotated[bool, typer.Option("--compare", help="Every method side by side, at one budget.")] = False,
    budget: Annotated[
        int | None, typer.Option(help="With --compare: the most numbers to train; those of LoRA r=4 qv when left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --compare: draw it as well, to FILE.svg or FILE.png.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a picture that exists at --out.")] = False,
    as_json: AsJson = False,
) -> int:
    """What a method trains, stores and adds, in closed form.

    No model is allocated. With --compare all methods side by side, at one budget.

    Example: lora-np params gpt3 --rank 4 --targets qv
    """
    from dataclasses import asdict

    from ..costs import bill
    from .comparing import compared

    if compare:
        if settings or rank is not None or targets is not None:
            raise ValueError(
                "--compare chooses the settings of every method itself: leave out --set, --rank, --targets"
            )
        return compared(model, budget, out, overwrite=overwrite, as_json=as_json)
    if budget is not None or out is not None:
        raise ValueError("--budget and --out belong to --compare: add it, or leave them out")
    chosen = chosen_method(method, settings, {"rank": rank, "targets": targets})
    report = bill(sizes_of(model), chosen)
    if as_json:
        say(json.dumps(asdict(report), indent=2))
        return 0 if report.holds else 1
    rows = [
        ("parameters", f"{report.parameters:,}"),
        ("trained, by the closed form", f"{report.trained:,}"),
        ("trained, counted on a model without numbers", f"{report.counted:,}"),
        ("share of the whole", f"{report.share:.5%}"),
        *((f"adapter file, {dtype}", in_bytes(n)) for dtype, n in report.adapter_bytes.items()),
        ("Adam's moments, all trained", in_bytes(report.optimizer_bytes_full)),
        (f"Adam's moments, {method}", in_bytes(report.optimizer_bytes)),
        ("multiply-adds of a token, the base", f"{report.forward:,}"),
        ("more of them beside the base", f"{report.added:,}"),
        ("a block gets longer by", f"{report.depth} products, one after another"),
        ("context left to the text", f"{report.context:,} of {report.full_context:,}"),
        ("can be merged", "yes" if report.merged else "no"),
    ]
    table(f"{model}, {chosen}", ("quantity", "value"), rows)
    return 0 if report.holds else 1
