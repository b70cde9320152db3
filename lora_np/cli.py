r"""`lora-np`, the command line.

Exit code 0: done and holds; 1: done and does not hold; 2: bad input; 130: interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from .adaptation import Interrupted
from .devices import DeviceMemoryError

app = typer.Typer(
    help="Understand and verify low-rank adaptation, in NumPy.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Base = Annotated[Path | None, typer.Option(help="Model folder to start from; the base that ships when left out.")]
Out = Annotated[Path, typer.Option(help="Folder to write; it appears when it is complete.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists at --out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Rank = Annotated[int, typer.Option(help="r, the inner dimension of B A.")]
Targets = Annotated[str, typer.Option(help="qv, qkvo, attention+mlp, all-linear, or patterns with commas between.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted run; the result is the same to the bit.")
]
Device = Annotated[str, typer.Option(help="cpu, or gpu: needs CuPy and a CUDA device.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
AdapterFolder = Annotated[Path, typer.Argument(help="Adapter folder, as written by `lora-np adapt`.")]


ALL_SIZES = "tiny,small,mid,gpt2,long"


def say(line: str) -> None:
    """A finding, on stdout."""
    print(line, flush=True)


@app.command()
def adapt(
    file: Annotated[Path, typer.Argument(help="Text, TSV, CSV, JSONL, or lines MEANING||REFERENCE.")],
    out: Out,
    format: Annotated[str | None, typer.Option(help="text, tsv, csv, jsonl or e2e; guessed when left out.")] = None,
    base: Base = None,
    rank: Rank = 4,
    alpha: Annotated[float, typer.Option(help="α in s = α/r.")] = 8.0,
    targets: Targets = "qv",
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, at its largest.")] = 1e-2,
    dropout: Annotated[float, typer.Option(help="Of the input of the low-rank branch.")] = 0.0,
    bias: Annotated[str, typer.Option(help="Biases to train as well: none, lora_only or all.")] = "none",
    tied_head: Annotated[str, typer.Option(help="With 'tokens' as a target: tie or untie the head.")] = "refuse",
    held_out: Annotated[float, typer.Option(help="Part of the examples to score on.")] = 0.1,
    columns: Annotated[
        str | None, typer.Option(help="TSV, CSV: prompt and reference, as names or numbers a,b.")
    ] = None,
    fields: Annotated[str, typer.Option(help="JSONL: the fields of prompt and reference.")] = "prompt,reference",
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut examples that exceed the context.")] = False,
    checkpoint_blocks: Annotated[
        bool, typer.Option("--checkpoint-blocks", help="Less memory, more time: compute each block again backward.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> int:
    """Adapt a model to a file with LoRA, and score it on held-out examples.

    Example: lora-np adapt pairs.tsv --out my-adapter --rank 4 --targets qv
    """
    from dataclasses import replace

    from .adaptation import DataConfig, adapt_to_file
    from .files import load_model
    from .lora import LoraConfig
    from .progress import describe, watch
    from .training import TrainingConfig

    prompt, reference = _two("--fields", fields)
    data = DataConfig(
        format, _columns(columns), prompt, reference, truncate, _fraction("--held-out", held_out), batch_size, seed
    )
    settings: Any = {"dropout": dropout, "bias": bias, "tied_head": tied_head}
    lora = LoraConfig(rank, alpha, _named(targets), **settings)
    training = TrainingConfig(steps=steps, learning_rate=learning_rate, warmup=min(20, steps // 10), seed=seed)
    result = adapt_to_file(
        file,
        out,
        replace(load_model(base), checkpoint_blocks=checkpoint_blocks),
        lora,
        training,
        data,
        resume=resume,
        overwrite=overwrite,
        device=device,
        watch=lambda records, total, done: watch(records, "step", total, done, describe),
        say=say,
    )
    say(
        f"{result.before - result.after:+.4f} bits per byte gained by {result.trained:,} parameters, "
        f"{result.file_bytes:,} bytes in {out}"
    )
    return 0


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="What to answer; see --raw.")],
    base: Base = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder to put beside the base.")] = None,
    tokens: Annotated[int, typer.Option(help="The most to generate.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above 0 draws.")] = 0.0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as text instead of answering it.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
) -> int:
    """Generate text from a model, with or without an adapter.

    Example: lora-np generate --prompt 'The os module' --raw --tokens 60
    """
    from .devices import to_device
    from .files import load_adapter, load_model
    from .generation import generate as generated
    from .tasks import prompt_tokens
    from .tokenizers import ByteTokenizer

    if tokens < 1:
        raise ValueError(f"--tokens must be at least 1, got {tokens}")
    model, tokenizer = load_model(base), ByteTokenizer()
    if adapter is not None:
        model, _ = load_adapter(adapter, model)
    given = np.append(tokenizer.end, tokenizer.encode(prompt)) if raw else prompt_tokens(prompt, tokenizer)
    rng = np.random.default_rng(_seed(seed))
    found = generated(to_device(model, device), given, tokens, temperature=temperature, rng=rng, end=tokenizer.end)
    say(tokenizer.decode(np.array(list(found), dtype=np.int64)))
    return 0


@app.command()
def gradcheck(seed: Seed = 0, device: Device = "cpu", as_json: AsJson = False) -> int:
    """Prove every gradient by three witnesses: derivation, autograd, difference quotient.

    Example: lora-np gradcheck --seed 1
    """
    from .gradients import gradcheck as checked
    from .progress import watch

    report = checked(_seed(seed), lambda cases: watch(cases, "case", show=lambda case: case.name), device)
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
    _table("Largest disagreement of each pair of witnesses, relative to the array's largest gradient", head, rows)
    wrong = sum(not row.holds for row in report.rows)
    say(f"{len(report.rows)} arrays, {len(report.rows) - wrong} hold, {wrong} do not (seed {seed})")
    return 0 if report.holds else 1


@app.command()
def merge(adapter: AdapterFolder, out: Out, base: Base = None, overwrite: Overwrite = False) -> int:
    """Add an adapter into its base: W0 + s·BA, written as a model folder.

    Example: lora-np merge my-adapter --out my-model
    """
    from .files import check_free, load_adapter, load_model, save_model
    from .lora import adapters
    from .lora import merge as merged

    check_free(out, overwrite=overwrite)
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
    from .certificate import certify
    from .files import load_adapter, load_model

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
    _table("Found against W0 + s·BA, entry by entry", ("array", "gap", "its bound", "gap/bound", "factor"), rows)
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

    from .costs import named_shape, summary

    named = _named(targets)
    report = summary(named_shape(model), rank, named)
    if as_json:
        say(json.dumps(asdict(report), indent=2))
        return 0
    rows = [
        ("parameters", f"{report.parameters:,}"),
        ("trained by LoRA", f"{report.trained:,}"),
        ("share of the whole", f"{report.share:.5%}"),
        *((f"adapter file, {dtype}", _bytes(n)) for dtype, n in report.adapter_bytes.items()),
        ("Adam's moments, all trained", _bytes(report.optimizer_bytes_full)),
        ("Adam's moments, LoRA", _bytes(report.optimizer_bytes_lora)),
        ("optimizer bytes saved", _bytes(report.optimizer_bytes_saved)),
    ]
    _table(f"{model}, rank {rank} on {targets}", ("quantity", "value"), rows)
    return 0


@app.command()
def study(
    out: Out = Path("lora-study"),
    full: Annotated[bool, typer.Option("--full", help="More steps and more seeds.")] = False,
    base: Base = None,
    device: Device = "cpu",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> int:
    """The main experiment, with nothing but the package: gradients, ranks 1 to 16, merge proofs, and a report.

    Example: lora-np study --out lora-study
    """
    from dataclasses import replace

    from .paper.results import StudyConfig
    from .paper.study import study as studied
    from .progress import watch

    config = replace(StudyConfig.full() if full else StudyConfig(), device=device)
    result = studied(out, config, base=base, resume=resume, overwrite=overwrite, watch=watch, say=say)
    say(f"{'everything holds' if result.holds else 'something does NOT hold'}: {out / 'report.html'}")
    return 0 if result.holds else 1


@app.command()
def bench(
    sizes: Annotated[str, typer.Option(help="tiny, small, mid, gpt2, long, with commas between.")] = ALL_SIZES,
    peers: Annotated[bool, typer.Option("--peers", help="PyTorch with PEFT as well; needs lora_np[parity].")] = False,
    growth: Annotated[bool, typer.Option("--growth", help="How time and memory grow with each size.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Of timing each in turn; 3, and 5 with --peers.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; as many as cores when left out.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences a step, instead of a size's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json, bench.md and bench.png.")] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> int:
    """Time and memory of a training step and of generation, beside the textbook and, if asked, PyTorch with PEFT.

    Example: lora-np bench --sizes tiny,small
    """
    from .bench import BenchConfig, markdown, named_size, tables
    from .bench import bench as measured
    from .figures.bench import time_and_memory
    from .files import check_free, new_folder
    from .progress import watch

    if out is not None:
        check_free(out, overwrite=overwrite)
    chosen = tuple(named_size(name.strip(), batch) for name in sizes.split(","))
    rounds = rounds if rounds is not None else 5 if peers else 3
    config = BenchConfig(chosen, rounds, peers, growth, workers, device, _seed(seed))
    report = measured(config, lambda lines, total: watch(lines, "timing", total, show=str))
    if out is not None:
        with new_folder(out, overwrite=overwrite) as folder:
            (folder / "bench.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n")
            (folder / "bench.md").write_text(markdown(report))
            time_and_memory(report).savefig(folder / "bench.png", dpi=150)
    if as_json:
        say(json.dumps(report.as_dict(), indent=2))
        return 0
    say(report.machine)
    for title, head, rows in tables(report):
        _table(title, head, rows)
    if out is not None:
        say(f"the same in {out / 'bench.md'}, with a figure in {out / 'bench.png'}")
    return 0


@app.command()
def tutorials(folder: Annotated[Path, typer.Argument(help="Folder to copy them to.")] = Path("tutorials")) -> int:
    """Copy the tutorials out of the package: notebooks, their map, and the worked solutions.

    Example: lora-np tutorials my-tutorials
    """
    from .tutorials import copy_tutorials

    copied = copy_tutorials(folder)
    say(f"{len(copied)} files in {folder}; start with {folder / 'README.md'}, and open them with: jupyter lab {folder}")
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; every expected error becomes one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    warnings.showwarning = lambda message, *_, **__: print(f"lora-np: warning: {message}", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(_code(arguments))


def _code(arguments: Sequence[str] | None) -> int:
    try:
        code = int(app(arguments or sys.argv[1:] or ["--help"], standalone_mode=False) or 0)
        return _fail("interrupted", 130) if code == 130 else code  # typer has caught Ctrl-C itself
    except Interrupted as stopped:
        return _fail(f"{stopped}; --resume continues", 130)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, TypeError, ArithmeticError, MemoryError, ImportError) as error:
        return _fail(_one_line(error), 2)
    except Exception as error:  # typer's own errors of usage; anything else is a defect and shows its traceback
        if not hasattr(error, "format_message"):
            raise
        return _fail(_one_line(error.format_message()), 2)


def _fail(line: str, code: int) -> int:
    print(f"lora-np: {line}", file=sys.stderr)
    return code


def _one_line(error: object) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if isinstance(error, DeviceMemoryError) else "not enough memory"
    return " ".join(str(error).split())


def _table(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, title=title, box=SIMPLE, title_justify="left", title_style="")
    for row in rows:
        table.add_row(*row)
    widest = None if sys.stdout.isatty() else 160
    Console(width=widest, highlight=False, markup=False).print(table)


def _bytes(n: int) -> str:
    """Exact, and in decimal units."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n:,} B = {n / size:.4g} {unit}"
    return f"{n:,} B"


def _named(targets: str) -> str | tuple[str, ...]:
    parts = tuple(part.strip() for part in targets.split(",") if part.strip())
    return parts[0] if len(parts) == 1 else parts


def _two(option: str, text: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"{option} takes two names with a comma between, got {text!r}")
    return parts[0], parts[1]


def _columns(text: str | None) -> Any:
    if text is None:
        return None
    pair = _two("--columns", text)
    return tuple(int(part) for part in pair) if all(part.isdecimal() for part in pair) else pair


def _fraction(option: str, value: float) -> float:
    if not 0.0 < value < 1.0:
        raise ValueError(f"{option} must lie between 0 and 1, got {value}")
    return value


def _seed(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    return seed
