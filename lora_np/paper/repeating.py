r"""`lora-np study --paper`: the paper's tables and figures, and what was said since, repeated in miniature.

    sections ask for cells → a map measures them → rows, one file → sections judge → report.html, verdicts.md, figures/

Rows are kept as they come. A study that is stopped, or killed, goes on with them; sections may be added meanwhile, and
no row is made twice. Which map measures them, and in how many processes, changes none of their bits.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import figures, files
from ..disk import folders
from ..disk.marks import Kind
from ..disk.reading import read_json
from ..disk.writing import write_atomically, write_json
from ..engine.mapping import check_engine, engine_map
from ..methods import METHODS
from ..model import Transformer
from ..tasks.table import task_named
from ..version import __version__
from .asking import Known, Profile, Section, Unknown
from .cells import Cell, Results, Row, as_parquet
from .measuring import check_name, row_of
from .page import page, verdicts
from .sections import FREE, SECTIONS
from .variants import VARIANTS

LAYOUT = 1  # of the rows: what a cell means; another number is another study
ABOUT, ROWS = "study.json", "results.csv"
REPEATED = Kind(
    "study of the paper",
    ("report.html", "verdicts.md", ABOUT, ROWS, "results.parquet", "figures/*.svg"),
    resumes=ROWS,
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Repeated:
    """What the study came to."""

    about: Mapping[str, Any]
    profile: Profile
    sections: tuple[Section, ...]
    rows: tuple[Row, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        """Do the exact laws? An empirical claim may be refuted here: that is a finding."""
        laws = [claim for section in self.sections if section.name == "laws" for claim in section.claims]
        return all(claim.verdict == "holds here" for claim in laws)


def default() -> Profile:
    """At most 15 minutes on two cores that have nothing else to do."""
    return Profile()


def full() -> Profile:
    """Five seeds a cell, and five times the steps."""
    one = Cell()
    return Profile("full", one.having(steps=5 * one.steps, examples=2048, scored=128), seeds=5)


def repeat(
    out: str | Path,
    profile: Profile,
    *,
    base: str | Path | None = None,
    only: Sequence[str] = (),
    engine: str = "processes",
    workers: int | None = None,
    parquet: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> Repeated:
    r"""Make the study, and a folder that appears at `out` when it is complete.

    only     names of SECTIONS; all of them when there are none
    engine   of `lora_np.engine.mapping`; the same rows from each, bit for bit

    Raises ValueError, with the nearest names, for an unknown section, task or method; FileExistsError or
    FileNotFoundError as `study` does; ValueError for an unfinished study of another version; ConnectionError where a
    cluster is not there: what was measured until then is kept.
    """
    began = time.perf_counter()
    for name in only:
        check_name("--only", name, SECTIONS)
    for task in profile.tasks:
        task_named(task)
    for method in profile.methods:
        check_name("--methods", method, {**METHODS, **VARIANTS})
    check_engine(engine)
    folders.check_free(out, REPEATED, overwrite=overwrite, resume=resume, inputs=(base or files.BASE,))
    model = files.load_model(base)
    about = _identity(model)
    if resume:
        _check_same(folders.partial_folder(out), about)
    try:
        with (
            engine_map(engine, workers) as run,  # first: where there is no cluster, nothing is begun
            folders.new_folder(out, REPEATED, overwrite=overwrite, resume=resume) as folder,
        ):
            results = Results.at(folder / ROWS)
            write_json(folder / ABOUT, about)
            sections, cells = answered(results, model, profile, only or tuple(SECTIONS), run, say)
            results.in_order(cells)
            result = Repeated(about, profile, sections, tuple(results.rows.values()), time.perf_counter() - began)
            _write(folder, result, parquet=parquet)
    except (KeyboardInterrupt, ConnectionError):
        if (partial_one := folders.partial_folder(out)).exists():
            say(f"stopped: what is measured stays in {partial_one}, and --resume goes on from there")
        raise
    return result


def answered(
    results: Results, model: Transformer, profile: Profile, names: Iterable[str], run: Any, say: Say
) -> tuple[tuple[Section, ...], list[Cell]]:
    """Ask the sections, measure what they ask for, and again, until each has all its rows. Their cells, in order."""
    names = [name for name in SECTIONS if name in set(names)]
    done: dict[str, Section] = {}
    while True:
        used: dict[Cell, None] = {}
        missing: dict[Cell, None] = {}
        for name in names:
            if name in FREE:
                continue
            known = Known(results.rows, model, profile)
            try:
                done[name] = SECTIONS[name](known)
            except Unknown:
                missing.update(known.missing)
            used.update(known.used)
        if not missing:
            break
        _measured(list(missing), results, model, run, say)
    for name in names:
        if name in FREE:
            done[name] = SECTIONS[name](Known(results.rows, model, profile))
    return tuple(done[name] for name in names), list(used)


def _measured(cells: list[Cell], results: Results, model: Transformer, run: Any, say: Say) -> None:
    say(f"{len(cells)} cells to measure, {len(results.rows)} known")
    count, tenth = 0, max(1, len(cells) // 10)

    def keep(_: int, row: Row) -> None:
        nonlocal count
        results.keep(row)
        count += 1
        if count % tenth == 0 or count == len(cells):
            say(f"{count} of {len(cells)}: {row.cell.name}")

    run(partial(row_of, model), cells, then=keep)


def _identity(model: Transformer) -> dict[str, Any]:
    versions = {"lora_np": __version__, "python": platform.python_version(), "numpy": np.__version__}
    return {**versions, "layout": LAYOUT, "base": files.digest(model)}


def _check_same(folder: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError unless the unfinished study is of these versions and this base."""
    path = folder / ABOUT
    if not path.exists():
        return
    found = read_json(path)
    for key, now in about.items():
        if found.get(key) != now:
            raise ValueError(
                f"{folder} is a study of another version: {key} was {found.get(key)!r}, now it is {now!r}; "
                "finish it with that one, or discard it with --overwrite"
            )


def _write(folder: Path, result: Repeated, *, parquet: bool) -> None:
    drawn: dict[str, Any] = {}
    for section in result.sections:
        for name, draw in section.figures.items():
            drawn[name] = draw()
            (folder / "figures").mkdir(exist_ok=True)  # an empty one would be no folder of ours
            figures.save(drawn[name], folder / "figures" / f"{name}.svg")
    claims = [
        {"section": section.name, **{k: v for k, v in asdict(replace(claim, rows=())).items() if k != "rows"}}
        for section in result.sections
        for claim in section.claims
    ]
    write_json(folder / ABOUT, {**result.about, "profile": asdict(result.profile), "claims": claims})
    if parquet:
        as_parquet(result.rows, folder / "results.parquet")
    write_atomically(folder / "verdicts.md", verdicts(result).encode())
    write_atomically(folder / "report.html", page(result, {name: figures.svg(f) for name, f in drawn.items()}).encode())
