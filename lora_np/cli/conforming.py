"""The conformance kit as a command: conform."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .completing import HALF_NAMES, among
from .options import AsJson, Overwrite, app, say, table


@app.command(rich_help_panel="check")
def conform(
    adapter: Annotated[
        str | None, typer.Argument(help="FILE.py or MODULE, each with :FUNCTION or run(case) in it: this code is RUN.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="float64, float32 (when left out), float16, bfloat16.",
            autocompletion=among(("float64", "float32", *HALF_NAMES)),
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Vectors of these names; a pattern, such as 'linear/*'.")
    ] = None,
    outputs: Annotated[str | None, typer.Option(help="Judge these alone, with commas between: y,merged.")] = None,
    xfails: Annotated[
        Path | None, typer.Option(help="A list of vectors that may fail, one NAME or NAME@TYPE a line.")
    ] = None,
    vectors: Annotated[Path | None, typer.Option(help="Folder of vectors; those that ship if left out.")] = None,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Judge the vectors: which of them finds which bug.")
    ] = False,
    write: Annotated[Path | None, typer.Option(help="Compute the vectors anew and write them to this folder.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the page of docs: needs torch, peft, loralib, mlx-lm, jax.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Put frozen test vectors to your own LoRA code.

    It stands in FILE.py; when that is left out, this package answers.

    Example: lora-np conform my_adapter.py --dtype float32 --xfails known.txt
    """
    from ..conformance import FOLDER, read_vectors
    from ..conformance import conform as conformed

    _one_job(adapter, mutants=mutants, write=write, out=out)
    if write is not None:
        return _written(write, overwrite=overwrite)
    found = read_vectors(vectors or FOLDER)
    if out is not None:
        from ..conformance.pages import page, write_page

        write_page(out, page(found), overwrite=overwrite)
        return 0
    dtypes = _dtypes(dtype, mutants=mutants)
    chosen = found.chosen(only or (), [name.strip() for name in outputs.split(",")] if outputs else ())
    if mutants:
        return _killed(chosen, dtypes, as_json=as_json)
    results = conformed(_run(adapter), chosen, dtypes, _expected(xfails, found))
    return _shown(results, found, adapter or "lora_np", as_json=as_json)


def _one_job(adapter: str | None, **jobs: Any) -> None:
    asked = [f"--{name}" for name, value in jobs.items() if value]
    if len(asked) > 1 or (asked and adapter is not None):
        raise ValueError(f"{asked[0]} stands alone: leave out {adapter if adapter is not None else asked[1]}")


def _dtypes(names: list[str] | None, *, mutants: bool) -> list[str]:
    from ..cases.vectors import DTYPES
    from ..names import nearest_first

    for name in names or ():
        if name not in DTYPES:
            raise ValueError(f"--dtype must be one of {nearest_first(name, DTYPES)}; got {name!r}")
    return list(dict.fromkeys(names or (["float64"] if mutants else ["float32"])))


def _run(adapter: str | None) -> Any:
    from ..conformance import load_run

    if adapter is None:
        from ..conformance.ours import run

        return run
    return load_run(adapter)


def _expected(path: Path | None, found: Any) -> dict[str, str]:
    from ..conformance import expected_failures
    from ..disk.reading import read_regular

    if path is None:
        return {}
    try:
        text = read_regular(path).data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text: a list of expected failures has a name a line") from None
    return expected_failures(text, [vector.name for vector in found.vectors])


def _shown(results: Sequence[Any], found: Any, who: str, *, as_json: bool) -> int:
    from ..conformance import tally

    counts, fails = tally(results), any(result.fails for result in results)
    if as_json:
        about = {"adapter": who, "vectors": found.digest, "holds": not fails, "counts": counts}
        say(json.dumps({**about, "results": [asdict(result) for result in results]}, indent=2, default=str))
        return 1 if fails else 0
    rows = [
        (result.name, result.dtype, result.status, result.why, ", ".join(found.catches.get(result.name, ())[:3]))
        for result in results
        if result.status != "passed"
    ]
    if rows:
        table("What did not pass, or was expected not to", ("vector", "type", "", "why", "the vector catches"), rows)
    for result in results:
        if result.status.startswith("passed,"):
            say(f"{result.name} ({result.dtype}) passes: take it out of the list of expected failures")
    say(f"{len(results)} vectors: {', '.join(f'{count} {status}' for status, count in counts.items()) or 'none asked'}")
    if not results:
        raise ValueError("no vector is asked in these types: choose others with --dtype or --only")
    return 1 if fails else 0


def _killed(chosen: Sequence[Any], dtypes: list[str], *, as_json: bool) -> int:
    from ..conformance import MUTANTS, killed

    tables = {dtype: killed(chosen, dtype) for dtype in dtypes}
    alive = {dtype: [name for name, by in found.items() if not by] for dtype, found in tables.items()}
    if as_json:
        say(json.dumps({"killed": tables, "alive": alive}, indent=2))
    for dtype, found in {} if as_json else tables.items():
        rows = [
            (name, MUTANTS[name].words, str(len(by)), ", ".join(list(by)[:3]) or "NONE") for name, by in found.items()
        ]
        table(f"Historic bugs, and the vectors that find them in {dtype}", ("bug", "what", "by", "such as"), rows)
        say(f"{dtype}: {len(found)} mutants, {len(found) - len(alive[dtype])} killed, {len(alive[dtype])} alive")
    return 1 if any(alive.values()) else 0


def _written(folder: Path, *, overwrite: bool) -> int:
    from ..conformance import write_vectors

    found = write_vectors(folder, overwrite=overwrite)
    size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"wrote {len(found)} vectors into {folder}, {size:,} bytes")
    return 0
