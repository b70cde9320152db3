r"""The page of the documents about the vectors: what each asks and catches, and what other libraries compute."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

from ..cases.vectors import DTYPES
from ..disk.reading import read_regular
from ..disk.writing import write_atomically, write_new
from .files import FOLDER, INDEX, NUMBERS, SCHEMA
from .mutants import MUTANTS
from .ours import run as our_run
from .running import Result, Run, Vectors, conform, expected_failures, load_run

MARK = "<!-- lora-np conform wrote this page: change lora_np/conformance and write it again -->\n"
EXAMPLES = Path(__file__).parent / "examples"
# Column -> the example, and the distribution whose version is named.
LIBRARIES = {
    "PEFT": ("peft_torch", "peft"),
    "loralib": ("loralib_torch", "loralib"),
    "mlx-lm": ("mlx_layers", "mlx-lm"),
    "plain JAX": ("plain_jax", "jax"),
}
ABSENT = "not implemented"


def page(found: Vectors, results: str | None = None) -> str:
    """The page; `results` is its section about other libraries, which is measured when it is None."""
    table = {name: [v for v, caught in found.catches.items() if name in caught] for name in MUTANTS}
    rows = [
        (f"`{v.name}`", v.words if not v.refused else v.refused, ", ".join(v.wanted) if not v.refused else "an error",
         ", ".join(_thread(v.source)) if v.refused else str(len(found.catches[v.name])))
        for v in found.vectors
    ]  # fmt: skip
    mutants = [
        (name, mutant.words, ", ".join(_thread(*mutant.reports)), ", ".join(f"`{v}`" for v in by[:3]), len(by))
        for (name, by), mutant in zip(table.items(), MUTANTS.values(), strict=True)
    ]  # fmt: skip
    return MARK + Template((Path(__file__).parent / "page.md").read_text(encoding="utf-8")).substitute(
        vectors=len(found.vectors),
        bytes=f"{sum((FOLDER / name).stat().st_size for name in (INDEX, NUMBERS, SCHEMA)):,}",
        refused=sum(v.refused is not None for v in found.vectors),
        results=results if results is not None else section(found, measured(found)),
        rows=_table(("vector", "what it asks, or why it must be refused", "outputs", "bugs it catches"), rows),
        killed=sum(bool(by) for by in table.values()),
        mutants=_table(("bug", "what it computes", "threads", "found by, such as", "vectors"), mutants),
    )


def measured(found: Vectors) -> dict[str, list[Result]]:
    """Every library whose example is here, in every type; raises ValueError where one is not installed."""
    runs: dict[str, tuple[Run, Mapping[str, str]]] = {"lora_np": (our_run, {})}
    for title, (name, distribution) in LIBRARIES.items():
        run = load_run(str(EXAMPLES / f"{name}.py"))
        runs[f"{title} {importlib.metadata.version(distribution)}"] = run, known_of(name, found)
    return {title: conform(run, found.vectors, DTYPES, known) for title, (run, known) in runs.items()}


def known_of(example: str, found: Vectors) -> dict[str, str]:
    """The expected failures of an example and their reasons: the list beside it."""
    text = (EXAMPLES / f"{example}.txt").read_text(encoding="utf-8")
    return expected_failures(text, [vector.name for vector in found.vectors])


def section(found: Vectors, results: Mapping[str, Sequence[Result]]) -> str:
    """✓ holds, – is not implemented, ✗ does not hold; the last with their reasons below."""
    lists = [{}, *(known_of(name, found) for name, _ in LIBRARIES.values())]
    known = dict(zip(results, lists, strict=True))
    signs = {title: {(r.name, r.dtype): _sign(r) for r in each} for title, each in results.items()}
    asked = [*signs["lora_np"]]
    rows: list[Sequence[object]] = []
    for dtype in DTYPES:
        count = sum(each == dtype for _, each in asked)
        held = (sum(sign == "✓" for (_, each), sign in of.items() if each == dtype) for of in signs.values())
        rows.append((f"hold in {dtype}, of {count}", *held))
    rows += [(f"`{name}`", *(of[name, dtype] for of in signs.values())) for name, dtype in _shown(asked)]
    wrong = [
        (title, f"`{r.name}`", r.dtype, r.why, _linked(_why(r, known[title])))
        for title, each in results.items() for r in each if _sign(r) == "✗" and _first(r, each)
    ]  # fmt: skip
    return (
        "Each on a CPU. ✓ holds, ✗ does not, – is not implemented by that library or its example here: in float32, or\n"
        "in the only type in which a vector is asked.\n\n"
        + _table(("", *results), rows)
        + "\nWhat does not hold:\n\n"
        + _table(("library", "vector", "in", "what was seen", "why"), wrong)
    )


def _shown(asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each vector once, in float32 where it is asked in that."""
    types: dict[str, list[str]] = {}
    for name, dtype in asked:
        types.setdefault(name, []).append(dtype)
    return [(name, "float32" if "float32" in of else of[0]) for name, of in types.items()]


def _first(result: Result, among: Sequence[Result]) -> bool:
    """Is this the first type in which the vector does not hold?"""
    return next(r for r in among if r.name == result.name and _sign(r) == "✗") is result


def _sign(result: Result) -> str:
    if result.status.startswith("passed"):
        return "✓"
    return "–" if result.why.startswith(ABSENT) else "✗"


def _thread(*places: str) -> list[str]:
    """Links to threads, REPOSITORY#NUMBER."""
    return [f"[{place}](https://github.com/{place.replace('#', '/issues/')})" for place in places if place]


def _why(result: Result, known: Mapping[str, str]) -> str:
    return known.get(result.name) or known.get(f"{result.name}@{result.dtype}") or "not known before"


def _linked(text: str) -> str:
    return re.sub(r"[\w.-]+/[\w.-]+#\d+", lambda place: _thread(place[0])[0], text)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def write_page(path: Path, text: str, *, overwrite: bool) -> None:
    """Write the page whole or not at all; raises OSError where anything but such a page stands."""
    if not path.exists():
        return write_new(path, text.encode())
    if not read_regular(path).data.startswith(MARK.encode()):
        raise FileExistsError(f"{path} exists and is not a page that lora-np conform wrote: choose another --out")
    if not overwrite:
        raise FileExistsError(f"{path} exists: choose another --out, or allow --overwrite")
    return write_atomically(path, text.encode())
