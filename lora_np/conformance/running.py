r"""Vectors put to an implementation: `run(case) -> arrays`, each array judged entry by entry, in words.

    def run(case):                     case.kind       which equation: linear, dora, embedding, experts, …
        p = case.inputs                case.settings   r, lora_alpha, use_rslora, … in PEFT's words
        ...                            case.wanted     names of the arrays to give back
        return {"y": y, "dA": dA}      case.dtype      "float64", "float32", "float16" or "bfloat16"

Numbers come as arrays of that type; those of bfloat16, which NumPy does not know, come as float32, in which they are
exact. Kind "cast", the merge of a float32 adapter into a base of `settings["stored"]`, comes as float32 whole. What
comes back may be wider. `NotImplementedError` says that there is no such thing yet, any other error of a
case that must be refused is the refusal.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..cases.vectors import DTYPES, Vector
from ..disk.reading import read_regular
from ..engine.arrays import Array
from ..names import nearest_first

Arrays = Mapping[str, Any]
Status = Literal["passed", "failed", "expected failure", "passed, though expected to fail"]


@dataclass(frozen=True)
class Case:
    """What an implementation sees of a vector."""

    name: str
    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Array]
    wanted: tuple[str, ...]
    dtype: str


Run = Callable[[Case], Arrays]


@dataclass(frozen=True)
class Result:
    """The verdict on one vector in one type; `used` is the largest gap over its tolerance, per output."""

    name: str
    dtype: str
    status: Status
    why: str = ""
    used: Mapping[str, float] = field(default_factory=dict)

    @property
    def fails(self) -> bool:
        return self.status == "failed"


@dataclass(frozen=True)
class Vectors:
    """The vectors as they were read from their files; `catches` says which historic bugs each of them would find."""

    vectors: tuple[Vector, ...]
    catches: Mapping[str, tuple[str, ...]]
    bugs: Mapping[str, tuple[str, tuple[str, ...]]]
    digest: str

    def chosen(self, only: Iterable[str] = (), outputs: Iterable[str] = ()) -> tuple[Vector, ...]:
        """Those whose names match a pattern, and of them these outputs; raises ValueError for what chooses nothing."""
        only, outputs = list(only), tuple(outputs)
        names = [vector.name for vector in self.vectors]
        kept = [vector for vector in self.vectors if not only or any(fnmatchcase(vector.name, p) for p in only)]
        for pattern in only:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"--only {pattern!r} matches no vector; the nearest are {near(pattern, names)}")
        known = dict.fromkeys(name for vector in self.vectors for name in vector.wanted)
        for name in outputs:
            if name not in known:
                raise ValueError(f"--outputs {name!r} is the output of no vector; the nearest are {near(name, known)}")
        if not outputs:
            return tuple(kept)
        cut = [replace(vector, wanted=tuple(n for n in vector.wanted if n in outputs)) for vector in kept]
        return tuple(vector for vector in cut if vector.wanted)


def near(name: str, known: Iterable[str]) -> str:
    return ", ".join(nearest_first(name, known).split(", ")[:3])


# ------------------------------------------------------------------------------------------ whose code is to be run


def load_run(place: str) -> Run:
    """The function that `place` names: FILE.py, or MODULE, each with :FUNCTION behind it unless it is `run`.

    The file is run: it is the code of whoever names it. Raises ValueError of one line for what cannot be had.
    """
    head, _, tail = place.rpartition(":")
    module, name = (head, tail) if head and tail.isidentifier() else (place, "run")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            code = _of_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    except OSError:
        raise
    except (Exception, SystemExit) as error:
        file = Path(f"{module}.py")
        hint = f"; to run the file, name it: {file}" if not module.endswith(".py") and file.exists() else ""
        raise ValueError(f"{module} cannot be imported: {_said(error)}{hint}") from None
    found = getattr(code, name, None)
    if not callable(found):
        there = [key for key, value in vars(code).items() if callable(value) and not key.startswith("_")]
        near_by = f"; the nearest are {near(name, there)}" if there else ""
        raise ValueError(f"{module} must have a function {name}(case){near_by}")
    return found


def _of_file(path: Path) -> Any:
    read_regular(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code


def _said(error: BaseException) -> str:
    """An error of somebody else's code in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


# ---------------------------------------------------------------------------------------------------------- the verdict


def conform(
    run: Run, vectors: Sequence[Vector], dtypes: Sequence[str] = ("float32",), xfails: Iterable[str] = ()
) -> list[Result]:
    """Put each vector to `run` in each of the types in which it is asked.

    xfails  names, or NAME@TYPE, of those that may fail; see `expected_failures`
    """
    expected, results = set(xfails), []
    for vector in vectors:
        for dtype in dtypes:
            if dtype in vector.dtypes:
                result = judge(run, vector, dtype)
                listed = vector.name in expected or f"{vector.name}@{dtype}" in expected
                results.append(_expected(result) if listed else result)
    return results


def _expected(result: Result) -> Result:
    return replace(result, status="expected failure" if result.fails else "passed, though expected to fail")


def case_of(vector: Vector, dtype: str) -> Case:
    """The case of a vector in this type: copies, so that nothing that is done to them reaches the next one."""
    held = "float32" if dtype == "bfloat16" else dtype
    floats = vector.kind != "cast"
    inputs = {
        name: a.astype(held) if floats and np.issubdtype(a.dtype, np.floating) else a.copy()
        for name, a in vector.inputs.items()
    }
    return Case(vector.name, vector.kind, copy.deepcopy(dict(vector.settings)), inputs, vector.wanted, dtype)


def judge(run: Run, vector: Vector, dtype: str) -> Result:
    """One vector in one type."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = run(case_of(vector, dtype))
    except NotImplementedError as error:
        return Result(vector.name, dtype, "failed", f"not implemented{': ' * bool(str(error))}{error}")
    except SystemExit:
        return Result(vector.name, dtype, "failed", "it left the program in place of an answer")
    except Exception as error:
        if vector.refused:
            return Result(vector.name, dtype, "passed", f"refused, {_said(error)}")
        return Result(vector.name, dtype, "failed", _said(error))
    if vector.refused:
        return Result(vector.name, dtype, "failed", f"was not refused, though {vector.refused}")
    return verdict(vector, dtype, found)


def verdict(vector: Vector, dtype: str, found: Any) -> Result:
    """Judge what came back."""

    def failed(why: str, used: Mapping[str, float] | None = None) -> Result:
        return Result(vector.name, dtype, "failed", why, used or {})

    if not isinstance(found, Mapping):
        return failed(f"run(case) must give back a mapping from names to arrays, got {type(found).__name__}")
    for name in found:
        if name not in vector.wanted:
            return failed(f"{name!r} was not asked for; the nearest are {near(str(name), vector.wanted)}")
    used: dict[str, float] = {}
    for name in vector.wanted:
        if name not in found:
            return failed(f"{name} is missing")
        try:
            got = np.asarray(found[name])
        except Exception as error:
            return failed(f"{name} is no array: {_said(error)}")
        why = _unfit(name, got, vector.outputs[name], dtype)
        if why:
            return failed(why)
        used[name] = _used(got, vector, name, dtype)
    worst = max(used, key=lambda name: used[name])
    if used[worst] <= 1.0:
        return Result(vector.name, dtype, "passed", "", used)
    return failed(f"{worst} is off by {used[worst]:.3g} times its tolerance", used)


def _unfit(name: str, got: Array, want: Array, dtype: str) -> str:
    needed = "float32" if dtype == "bfloat16" else dtype
    if got.dtype.name != "bfloat16" or dtype != "bfloat16":
        if not np.issubdtype(got.dtype, np.floating):
            return f"{name} must hold floating numbers, got {got.dtype}"
        if got.dtype.itemsize < np.dtype(needed).itemsize:
            return f"{name} must come in {dtype} or wider, got {got.dtype}"
    if got.shape != want.shape:
        return f"{name} must have shape {want.shape}, got {got.shape}"
    return "" if np.isfinite(got.astype(np.float64)).all() else f"{name} holds a number that is not finite"


def _used(got: Array, vector: Vector, name: str, dtype: str) -> float:
    """The largest gap, over what rounding allows there."""
    allowed = vector.tolerances[name][dtype] * vector.sizes[name]
    gap = abs(got.astype(np.float64) - vector.outputs[name])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(gap == 0.0, 0.0, gap / allowed)
    return float(ratio.max(initial=0.0))


def expected_failures(text: str, names: Iterable[str]) -> dict[str, str]:
    """The names in a list of expected failures, one a line, a pattern or NAME@TYPE too, and what follows #: the reason.

    Raises ValueError for a line that names no vector.
    """
    names = list(names)
    known = [*names, *(f"{name}@{dtype}" for name in names for dtype in DTYPES)]
    found: dict[str, str] = {}
    for line in text.splitlines():
        entry, _, reason = (part.strip() for part in line.partition("#"))
        if not entry:
            continue
        hits = [name for name in known if fnmatchcase(name, entry)]
        if not hits:
            raise ValueError(f"the list of expected failures names {entry!r}, which is no vector; the nearest are "
                             f"{near(entry, names)}")  # fmt: skip
        found |= dict.fromkeys(hits, reason)
    return found


def tally(results: Iterable[Result]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for result in results:
        counts[result.status] = counts.get(result.status, 0) + 1
    return counts
