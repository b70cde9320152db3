"""Commands that run for minutes, or copy what does: study, bench, tutorials."""

from __future__ import annotations

import json
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ..disk.marks import Kind
from ..disk.writing import write_atomically, write_json
from .completing import ENGINE_NAMES, METHOD_NAMES, SECTION_NAMES, SIZE_NAMES, TASK_NAMES, among, several
from .options import ALL_SIZES, AsJson, Base, Device, Out, Overwrite, Resume, Seed, app, say, seed_of, table

BENCH = Kind("bench", ("bench.json", "bench.md", "bench.png"))


@app.command(rich_help_panel="measure")
def study(
    out: Out = Path("lora-study"),
    full: Annotated[bool, typer.Option("--full", help="More steps and more seeds.")] = False,
    base: Base = None,
    device: Device = "cpu",
    resume: Resume = False,
    overwrite: Overwrite = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's tables and figures in miniature, and what was said since.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(help="With --paper: some sections, with commas between.", autocompletion=several(SECTION_NAMES)),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="With --paper: the tasks of tables 2 to 4.", autocompletion=several(TASK_NAMES))
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="With --paper: some methods, with commas between.", autocompletion=several(METHOD_NAMES)),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="With --paper: inline, threads, processes, or the address of a Dask scheduler.",
            autocompletion=among(ENGINE_NAMES),
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="With --paper: processes; as many as cores if left out.")] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="With --paper: the rows as results.parquet too.")] = False,
    shown: Annotated[bool, typer.Option("--open", help="Show the report in a browser when it is written.")] = False,
) -> int:
    """Run the main experiment, and write its report.

    With nothing but the package: gradient checks, LoRA at ranks 1 to 16, and merge proofs.

    Example: lora-np study --out lora-study
    """
    from dataclasses import replace

    chosen = {"only": only, "tasks": tasks, "methods": methods, "scheduler": scheduler, "workers": workers}
    if paper:
        from .repeating import repeated

        if device != "cpu":
            raise ValueError("--device belongs to the study without --paper: leave it out")
        places = {"base": base, "resume": resume, "overwrite": overwrite, "parquet": parquet}
        code = repeated(out, full=full, chosen=chosen, **places)
        return _opened(out / "report.html", code) if shown else code
    if given := [name for name, value in {**chosen, "parquet": parquet or None}.items() if value is not None]:
        raise ValueError(f"--{given[0]} belongs to --paper: add it, or leave --{given[0]} out")

    from ..paper.results import StudyConfig
    from ..paper.study import study as studied
    from ..paper.summary import ranks
    from ..progress import watch

    config = replace(StudyConfig.full() if full else StudyConfig(), device=device)
    result = studied(out, config, base=base, resume=resume, overwrite=overwrite, watch=watch, say=say)
    say(ranks(result))
    say(f"{'everything holds' if result.holds else 'something does NOT hold'}: {out / 'report.html'}")
    code = 0 if result.holds else 1
    return _opened(out / "report.html", code) if shown else code


def _opened(report: Path, code: int) -> int:
    """Show the report in a browser, or say that there is none; the exit code stays what it was."""
    from .browsing import opened

    if not opened(report):
        say(f"no browser is there to open it: {report.absolute()}")
    return code


@app.command(rich_help_panel="measure")
def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="step: training and generation; serving: many adapters at once.",
            autocompletion=among(("step", "serving")),
        ),
    ] = "step",
    sizes: Annotated[
        str,
        typer.Option(help="tiny, small, mid, gpt2, long, with commas between.", autocompletion=several(SIZE_NAMES)),
    ] = ALL_SIZES,
    base: Base = None,
    seq: Annotated[int, typer.Option(help="With --base: tokens of a sequence.")] = 64,
    peers: Annotated[
        bool, typer.Option("--peers", help="PyTorch with PEFT, torch.compile, JAX (lora_np[peers]).")
    ] = False,
    engines: Annotated[bool, typer.Option("--engines", help="The step by each engine as well.")] = False,
    growth: Annotated[bool, typer.Option("--growth", help="How time and memory grow with each size.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Of timing each in turn; 3, and 5 with --peers.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; as many as cores when left out.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences a step, instead of a size's own.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json and bench.md, and bench.png without --base.")
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> int:
    """Time and memory of a training step and of generation.

    Beside the textbook and, if asked, PyTorch with PEFT. Of sizes that have a name, or with --base of a real model,
    held in float32 and in 16 bits.

    Example: lora-np bench --sizes tiny,small
    """
    if what != "step":
        from .serving import measured_serving

        rest = {
            "--growth": growth,
            "--batch": batch is not None,
            "--sizes": sizes != ALL_SIZES,
            "--device": device != "cpu",
            "--base": base is not None,
        }
        return measured_serving(what, rest, 5 if rounds is None else rounds, peers, workers, out, as_json, overwrite)
    from ..bench import BenchConfig, RealConfig, markdown, named_size, tables
    from ..bench import bench as measured
    from ..disk.folders import new_folder
    from ..figures.bench import time_and_memory
    from ..progress import watch

    if base is not None:
        if growth or device != "cpu":
            raise ValueError("--growth and --device belong to --sizes: leave them out, or leave out --base")
        asked = RealConfig(str(base), batch or 4, seq, 5 if rounds is None else rounds, peers, workers, seed_of(seed))
        return real_model_timed(asked, out, as_json=as_json, overwrite=overwrite)
    chosen = tuple(named_size(name.strip(), batch) for name in sizes.split(","))
    rounds = rounds if rounds is not None else 5 if peers else 3
    config = BenchConfig(chosen, rounds, peers, growth, engines, workers, device, seed_of(seed))
    place = nullcontext() if out is None else new_folder(out, BENCH, overwrite=overwrite)
    with place as folder:  # before anything is measured: a place that cannot be written would lose it
        report = measured(config, lambda lines, total: watch(lines, "timing", total, show=str))
        if folder is not None:
            write_json(folder / "bench.json", report.as_dict())
            write_atomically(folder / "bench.md", markdown(report).encode())
            time_and_memory(report).savefig(folder / "bench.png", dpi=150)
    if as_json:
        say(json.dumps(report.as_dict(), indent=2))
        return 0
    say(report.machine)
    for title, head, rows in tables(report):
        table(title, head, rows)
    if out is not None:
        say(f"the same in {out / 'bench.md'}, with a figure in {out / 'bench.png'}")
    return 0


def real_model_timed(config: Any, out: Path | None, *, as_json: bool, overwrite: bool) -> int:
    """A LoRA step on one real model, held in each type."""
    from ..bench import as_markdown, bench_real, table_of
    from ..disk.folders import new_folder
    from ..progress import watch

    with nullcontext() if out is None else new_folder(out, BENCH, overwrite=overwrite) as folder:
        report = bench_real(config, lambda lines, total: watch(lines, "timing", total, show=str))
        if folder is not None:
            write_json(folder / "bench.json", report.as_dict())
            page = as_markdown(report.machine, config.workers, config.rounds, [table_of(report)])
            write_atomically(folder / "bench.md", page.encode())
    if as_json:
        say(json.dumps(report.as_dict(), indent=2))
        return 0
    say(report.machine)
    table(*table_of(report))
    if out is not None:
        say(f"the same in {out / 'bench.md'}")
    return 0


@app.command(rich_help_panel="learn")
def tutorials(
    folder: Annotated[Path, typer.Argument(help="Folder to copy them to.")] = Path("tutorials"),
    blank: Annotated[bool, typer.Option("--blank", help="For students: not executed, without solutions.")] = False,
    solutions: Annotated[bool, typer.Option("--solutions", help="The worked solutions alone.")] = False,
    nbgrader: Annotated[bool, typer.Option("--nbgrader", help="A course of nbgrader, with points.")] = False,
    figures: Annotated[bool, typer.Option("--figures", help="Every picture of them as a PNG, for slides.")] = False,
    progress: Annotated[bool, typer.Option("--progress", help="Copy nothing: say which checks are passed.")] = False,
    student: Annotated[
        list[str] | None, typer.Option(help="Numbers of their own in the exercises; again for each of a course.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Some of the notebooks, such as 02,07.")] = None,
) -> int:
    """Copy the notebooks out of the package.

    With their map and the worked solutions; for students, or as a course.

    Example: lora-np tutorials my-tutorials
    """
    from ..handouts import summary
    from ..tutorials import copy_tutorials, progress_in

    chosen = {"blank": blank, "solutions": solutions, "nbgrader": nbgrader, "figures": figures, "progress": progress}
    given = [name for name, asked in chosen.items() if asked]
    if len(given) > 1:
        raise ValueError(f"--{given[0]} and --{given[1]} exclude each other: choose one")
    if progress:
        states = progress_in(folder)
        for name, each in states.items():
            say(f"{name}: " + ", ".join(f"{check} {state}" for check, state in each.items()))
        say(summary(states))
        return 0
    copied = copy_tutorials(folder, "".join(given) or "whole", student or (), only.split(",") if only else ())
    if figures:
        say(f"{len(copied) - 1} figures in {folder}; {folder / 'figures.md'} shows them all")
        return 0
    first = {"nbgrader": "nbgrader_config.py", "solutions": "solutions"}.get("".join(given), "README.md")
    say(f"{len(copied)} files in {folder}; start with {folder / first}, and open them with: jupyter lab {folder}")
    if nbgrader and find_spec("nbgrader") is None:
        say("nbgrader is not installed here: pip install 'lora_np[teaching]' brings it")
    return 0
