"""Commands that adapt a model and let it write: adapt, generate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .completing import FILE_FORMATS, READ_NAMES, among
from .options import (
    Base,
    BaseType,
    Device,
    Engine,
    MethodName,
    Out,
    Overwrite,
    Rank,
    Resume,
    Seed,
    Settings,
    Targets,
    Workers,
    app,
    chosen_method,
    columns_of,
    fraction,
    held_base,
    rates_of,
    say,
    seed_of,
    two_names,
)


@app.command(rich_help_panel="adapt")
def adapt(
    file: Annotated[Path, typer.Argument(help="Text, TSV, CSV, JSONL, lines MEANING||REFERENCE, or as published.")],
    out: Out,
    format: Annotated[
        str | None,
        typer.Option(
            help="text, tsv, csv, jsonl, e2e, sst2, cola, rte, webnlg, dart or wikisql; guessed when left out.",
            autocompletion=among(FILE_FORMATS),
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="text learns references; classify learns labels, behind a head; with --method head that alone.",
            autocompletion=among(("text", "classify")),
        ),
    ] = "text",
    reads: Annotated[
        str | None,
        typer.Option(
            help="classify: what the head reads, first, mean or last; fits the base when left out.",
            autocompletion=among(READ_NAMES),
        ),
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="A file to score on, in the place of --held-out.")] = None,
    base: Base = None,
    base_dtype: BaseType = None,
    method: MethodName = "lora",
    settings: Settings = None,
    rank: Rank = None,
    alpha: Annotated[float | None, typer.Option(help="LoRA: α in s = α/r; 8 when left out.")] = None,
    targets: Targets = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, at its largest.")] = 1e-2,
    dropout: Annotated[float | None, typer.Option(help="LoRA: of the input of the low-rank branch.")] = None,
    bias: Annotated[
        str | None,
        typer.Option(
            help="LoRA: biases to train as well: none, lora_only or all.",
            autocompletion=among(("none", "lora_only", "all")),
        ),
    ] = None,
    tied_head: Annotated[
        str | None,
        typer.Option(help="LoRA on 'tokens': tie or untie the head.", autocompletion=among(("tie", "untie", "refuse"))),
    ] = None,
    rates: Annotated[str | None, typer.Option(help="Factors of the learning rate, as PATTERN:FACTOR,…")] = None,
    held_out: Annotated[float, typer.Option(help="Part of the examples to score on.")] = 0.1,
    columns: Annotated[
        str | None, typer.Option(help="TSV, CSV: prompt and reference, as names or numbers a,b; or two texts: a,b,c.")
    ] = None,
    fields: Annotated[str, typer.Option(help="JSONL: the fields of prompt and reference.")] = "prompt,reference",
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut examples that exceed the context.")] = False,
    longest: Annotated[int | None, typer.Option(help="The most tokens of an example; the context if left out.")] = None,
    peft: Annotated[
        Path | None, typer.Option("--peft", help="Folder to write the adapter to as well, for PEFT to load.")
    ] = None,
    checkpoint_blocks: Annotated[
        bool, typer.Option("--checkpoint-blocks", help="Less memory, more time: compute each block again backward.")
    ] = False,
    engine: Engine = None,
    workers: Workers = None,
    shards: Annotated[
        int | None,
        typer.Option(help="Pieces of a batch, made side by side; they, not who makes them, decide the bits."),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> int:
    """Adapt a model to a file; score it on held-out examples.

    With LoRA, or with --method by another way. The adapter alone is written; Ctrl-C saves, and --resume continues.

    Example: lora-np adapt pairs.tsv --out my-adapter --rank 4 --targets qv
    """
    from ..adaptation import ADAPTER, DataConfig, adapt_to_file
    from ..disk.folders import check_free
    from ..exporting import export_peft
    from ..files import BASE
    from ..optimization import TrainingConfig
    from ..progress import describe, watch
    from ..vocabularies import tokenizer_of

    check_free(out, ADAPTER, overwrite=overwrite, resume=resume, inputs=(file, base or BASE))
    prompt, reference = two_names("--fields", fields)
    part = fraction("--held-out", held_out)
    about = (truncate, part, batch_size, seed, longest, validation)
    data = DataConfig(format, columns_of(columns), prompt, reference, *about)
    of_lora = {"rank": rank, "alpha": alpha, "targets": targets, "dropout": dropout, "bias": bias}
    chosen = chosen_method(method, settings, {**of_lora, "tied_head": tied_head}, beside_head=task == "classify")
    training = TrainingConfig(
        steps=steps,
        learning_rate=learning_rate,
        warmup=min(20, steps // 10),
        micro_batches=shards,
        seed=seed,
        rates=rates_of(rates),
    )
    model = held_base(base, base_dtype, device)
    family = check_export(peft, base, model, chosen, overwrite=overwrite) if peft else ""
    result = adapt_to_file(
        file,
        out,
        model,
        chosen,
        training,
        data,
        tokenizer=tokenizer_of(base, model.config),
        task=task,
        reads=reads,
        resume=resume,
        overwrite=overwrite,
        device=device,
        recompute=checkpoint_blocks,
        engine=engine,
        workers=workers,
        watch=lambda records, total, done: watch(records, "step", total, done, describe),
        say=say,
    )
    gained = f"{result.before - result.after:+.4f} bits per byte"
    if result.judged is not None:
        gained = f"{result.after - result.before:+.4f} of accuracy"
    say(f"{gained} gained by {result.trained:,} parameters, {result.file_bytes:,} bytes in {out}")
    if peft:
        modules = export_peft(peft, result.model, chosen, family, str(base), overwrite=overwrite)
        say(f"the same beside {modules} modules for PEFT in {peft}")
    return 0


@app.command(rich_help_panel="adapt")
def generate(
    prompt: Annotated[str | None, typer.Option(help="What to answer; see --raw.")] = None,
    base: Base = None,
    base_dtype: BaseType = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder to put beside the base.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of requests, one a line: ADAPTER, a tab and a prompt, or a JSON object."),
    ] = None,
    adapters: Annotated[Path | None, typer.Option(help="With --prompts: folder of adapter folders.")] = None,
    at_once: Annotated[int, typer.Option(help="With --prompts: requests that are answered at the same time.")] = 32,
    adapter_bytes: Annotated[
        int, typer.Option(help="With --prompts: memory for adapters that were read, in bytes.")
    ] = 1 << 28,
    tokens: Annotated[int, typer.Option(help="The most to generate.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above 0 draws.")] = 0.0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as text instead of answering it.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
) -> int:
    """Generate text, with or without an adapter.

    Or answer a file of requests, each with its own adapter. Of a model that classifies: the label of the prompt.

    Example: lora-np generate --prompt 'The os module' --raw --tokens 60
    """
    import numpy as np

    from ..engine.devices import to_device
    from ..evaluation import classified
    from ..files import load_adapter
    from ..generation import generate as generated
    from ..tasks import prompt_tokens
    from ..vocabularies import begun, tokenizer_of

    if tokens < 1:
        raise ValueError(f"--tokens must be at least 1, got {tokens}")
    if prompts is not None:
        from .serving import answer_all

        if prompt is not None or adapter is not None or device != "cpu":
            raise ValueError("--prompts names the requests: leave out --prompt, --adapter and --device")
        said_for_all = tokens, temperature, seed_of(seed), raw
        return answer_all(prompts, adapters, base, said_for_all, at_once=at_once, most_bytes=adapter_bytes)
    if prompt is None or adapters is not None:
        raise ValueError("say what to answer: --prompt TEXT, or --prompts FILE with --adapters FOLDER")
    model = held_base(base, base_dtype, device)
    tokenizer = tokenizer_of(base, model.config)
    method = None
    if adapter is not None:
        model, method = load_adapter(adapter, model)
    if model.config.classes:
        say(classified(to_device(model, device), prompt, tokenizer))
        return 0
    given = begun(tokenizer, prompt) if raw else prompt_tokens(prompt, tokenizer)
    given = method.given(given, model.config) if method else given
    rng = np.random.default_rng(seed_of(seed))
    found = generated(to_device(model, device), given, tokens, temperature=temperature, rng=rng, end=tokenizer.end)
    say(tokenizer.decode(np.array(list(found), dtype=np.int64)))
    return 0


def check_export(folder: Path, base: Path | None, model: Any, method: Any, *, overwrite: bool) -> str:
    """The family under whose names the adapter will be written; raises before training where it could not be."""
    from ..disk.folders import check_free
    from ..exporting import PEFT, check_exportable
    from ..formats.folders import is_foreign
    from ..loading import open_foreign
    from ..methods import adapt as adapted

    check_free(folder, PEFT, overwrite=overwrite)
    family = open_foreign(base).family if base is not None and is_foreign(base) else ""
    check_exportable(adapted(model, method, None), method, family)
    return family
