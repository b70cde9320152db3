"""Commands that run for minutes, or copy what does: study, bench, tutorials."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ..disk.marks import Kind
from ..disk.writing import write_atomically, write_json
from .options import ALL_SIZES, AsJson, Base, Device, Out, Overwrite, Resume, Seed, app, say, seed_of, table

BENCH = Kind("bench", ("bench.json", "bench.md", "bench.png"))


@app.command()
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
    only: Annotated[str | None, typer.Option(help="With --paper: some sections, with commas between.")] = None,
    tasks: Annotated[str | None, typer.Option(help="With --paper: the tasks of tables 2 to 4.")] = None,
    methods: Annotated[str | None, typer.Option(help="With --paper: some methods, with commas between.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="With --paper: inline, threads, processes, or the address of a Dask scheduler.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="With --paper: processes; as many as cores if left out.")] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="With --paper: the rows as results.parquet too.")] = False,
) -> int:
    """The main experiment, with nothing but the package: gradients, ranks 1 to 16, merge proofs, and a report.

    Example: lora-np study --out lora-study
    """
    from dataclasses import replace

    chosen = {"only": only, "tasks": tasks, "methods": methods, "scheduler": scheduler, "workers": workers}
    if paper:
        from .repeating import repeated

        if device != "cpu":
            raise ValueError("--device belongs to the study without --paper: leave it out")
        places = {"base": base, "resume": resume, "overwrite": overwrite, "parquet": parquet}
        return repeated(out, full=full, chosen=chosen, **places)
    if given := [name for name, value in {**chosen, "parquet": parquet or None}.items() if value is not None]:
        raise ValueError(f"--{given[0]} belongs to --paper: add it, or leave --{given[0]} out")

    from ..paper.results import StudyConfig
    from ..paper.study import study as studied
    from ..progress import watch

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
    from ..bench import BenchConfig, markdown, named_size, tables
    from ..bench import bench as measured
    from ..disk.folders import new_folder
    from ..figures.bench import time_and_memory
    from ..progress import watch

    chosen = tuple(named_size(name.strip(), batch) for name in sizes.split(","))
    rounds = rounds if rounds is not None else 5 if peers else 3
    config = BenchConfig(chosen, rounds, peers, growth, workers, device, seed_of(seed))
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


@app.command()
def tutorials(folder: Annotated[Path, typer.Argument(help="Folder to copy them to.")] = Path("tutorials")) -> int:
    """Copy the tutorials out of the package: notebooks, their map, and the worked solutions.

    Example: lora-np tutorials my-tutorials
    """
    from ..tutorials import copy_tutorials

    copied = copy_tutorials(folder)
    say(f"{len(copied)} files in {folder}; start with {folder / 'README.md'}, and open them with: jupyter lab {folder}")
    return 0
