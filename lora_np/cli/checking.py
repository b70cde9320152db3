"""Commands that merge and prove: gradcheck, merge, verify, params."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from .options import (
    AdapterFolder,
    AsJson,
    Base,
    Device,
    Out,
    Overwrite,
    Rank,
    Seed,
    Targets,
    app,
    in_bytes,
    named_targets,
    say,
    seed_of,
    table,
)


@app.command()
def gradcheck(seed: Seed = 0, device: Device = "cpu", as_json: AsJson = False) -> int:
    """Prove every gradient by three witnesses: derivation, autograd, difference quotient.

    Example: lora-np gradcheck --seed 1
    """
    from ..gradients import gradcheck as checked
    from ..progress import watch

    report = checked(seed_of(seed), lambda cases: watch(cases, "case", show=lambda case: case.name), device)
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


@app.command()
def merge(adapter: AdapterFolder, out: Out, base: Base = None, overwrite: Overwrite = False) -> int:
    """Add an adapter into its base: W0 + s·BA, written as a model folder.

    Example: lora-np merge my-adapter --out my-model
    """
    from ..files import BASE, MODEL, load_adapter, load_model, save_model
    from ..folders import check_free
    from ..lora import adapters
    from ..lora import merge as merged

    check_free(out, MODEL, overwrite=overwrite, inputs=(adapter, base or BASE))
    model, _ = load_adapter(adapter, load_model(base))
    save_model(out, merged(model), overwrite=overwrite)
    say(f"merged {len(adapters(model))} adapted maps into {out}; lora-np verify {adapter} {out} checks them")
    return 0


@app.command()
def verify(
    adapter: AdapterFolder,
    merged: Annotated[Path, typer.Argument(help="The model folder that should equal base + adapter.")],
    base: Base = None,
    as_json: AsJson = False,
) -> int:
    """Is this merged model W0 + s·BA, within its rounding bound? And if not: what is it?

    Example: lora-np verify my-adapter my-model
    """
    from ..certificate import certify
    from ..files import load_adapter, load_model

    model, _ = load_adapter(adapter, load_model(base))
    text = np.random.default_rng(0).integers(32, 127, (2, min(128, model.config.context)))
    certificate = certify(model, load_model(merged), text % model.config.vocab)
    if as_json:
        say(json.dumps(certificate.as_dict(), indent=2))
        return 0 if certificate.holds else 1
    rows = [
        (a.name, f"{a.gap:.2e}", f"{a.bound:.2e}", f"{a.used:.3f}", "-" if a.factor is None else f"{a.factor:.7f}")
        for a in certificate.arrays
        if a.adapted or not a.holds
    ]
    table("Found against W0 + s·BA, entry by entry", ("array", "gap", "its bound", "gap/bound", "factor"), rows)
    frozen = sum(a.holds and not a.adapted for a in certificate.arrays)
    say(f"{frozen} arrays that are not adapted are equal to the bit")
    gaps = certificate.model
    say(f"logits: the adapter changes them by {gaps.contrast:.3g}; merged and adapted differ by {gaps.gap32:.2e}")
    say(f"an honest merge differs by {gaps.own32:.2e}, and in float64 by {gaps.gap64:.2e}")
    say(f"{'EQUAL' if certificate.holds else 'NOT EQUAL'}: {certificate.diagnosis}")
    return 0 if certificate.holds else 1


@app.command()
def params(
    model: Annotated[str, typer.Argument(help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, gpt3 or base.")],
    rank: Rank = 4,
    targets: Targets = "qv",
    as_json: AsJson = False,
) -> int:
    """What LoRA trains, stores and saves, from closed forms; no model is allocated.

    Example: lora-np params gpt3 --rank 4 --targets qv
    """
    from dataclasses import asdict

    from ..costs import named_shape, summary

    named = named_targets(targets)
    report = summary(named_shape(model), rank, named)
    if as_json:
        say(json.dumps(asdict(report), indent=2))
        return 0
    rows = [
        ("parameters", f"{report.parameters:,}"),
        ("trained by LoRA", f"{report.trained:,}"),
        ("share of the whole", f"{report.share:.5%}"),
        *((f"adapter file, {dtype}", in_bytes(n)) for dtype, n in report.adapter_bytes.items()),
        ("Adam's moments, all trained", in_bytes(report.optimizer_bytes_full)),
        ("Adam's moments, LoRA", in_bytes(report.optimizer_bytes_lora)),
        ("optimizer bytes saved", in_bytes(report.optimizer_bytes_saved)),
    ]
    table(f"{model}, rank {rank} on {targets}", ("quantity", "value"), rows)
    return 0
