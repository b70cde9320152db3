r"""The best adapter of rank r of a full fine-tuning: what it catches of each matrix, and what it leaves out.

    D = W_tuned − W_base,    B = U_r √Σ_r,    A = √Σ_r V_rᵀ,    s = 1                                            (X1)

Tensor by tensor: D is formed once, in float32 where both sides are stored in 32 bits or fewer (a difference of
neighbours is exact there), so that at no time more than three times the largest tensor is held. The error that is
reported is ‖D − BA‖/‖D‖ with A and B as they are stored. What is no matrix has no low rank: it is named, not carried.

Source: Eckart & Young 1936, Psychometrika 1, pages 211 to 218.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.folders import check_free
from ..engine.arrays import Array, row_blocks
from ..formats.factors import Leaves
from ..formats.folders import is_foreign
from ..formats.huggingface import open_weights
from ..formats.placing import CONV1D
from ..formats.renaming import to_theirs
from ..formats.tensors import Tensor, flat
from ..formats.updates import in_type
from ..merges.judging import same_bytes
from ..names import nearest_first
from .changing import ADAPTER, FORMATS, about_of, written
from .lowrank import ENTRIES, leading
from .own import family_of
from .proving import Same

TABLES = ("emb", "wte", "wpe", "tokens", "positions", "types")  # parts of the names of tables


@dataclass(frozen=True)
class Extracted:
    """One matrix: its rank, ‖D‖, ‖D‖/‖W‖, ‖D − BA‖/‖D‖ of what is stored, and σ₁ of D."""

    name: str
    shape: tuple[int, int]
    rank: int
    norm: float
    relative: float
    error: float
    largest: float


@dataclass(frozen=True)
class Left:
    """A tensor that changed and is not carried: how much, and why."""

    name: str
    shape: tuple[int, ...]
    relative: float
    why: str


@dataclass(frozen=True)
class Extraction:
    folder: Path
    to: str
    matrices: tuple[Extracted, ...]
    left: tuple[Left, ...]
    unchanged: int
    written: tuple[Same, ...]

    @property
    def error(self) -> float:
        """‖D − BA‖/‖D‖ over all matrices together."""
        whole = sum(one.norm**2 for one in self.matrices)
        return math.sqrt(sum((one.norm * one.error) ** 2 for one in self.matrices) / whole)


def extract(
    base: str | Path, tuned: str | Path, rank: int, out: str | Path, *, to: str = "peft", seed: int = 0
) -> Extraction:
    """Write the best adapter of this rank of `tuned` over `base` into the new folder `out`.

    base, tuned   two models with equal tensor names and shapes, of transformers (or GGUF's weights), or both of ours
    seed          of the start of the search for singular vectors, which decides nothing but the last digits

    Raises ValueError, naming the first, for tensors that one side lacks, other shapes and numbers that are not finite,
    and where nothing changed that an adapter could hold; then nothing is written.
    """
    base, tuned, out = Path(base), Path(tuned), Path(out)
    if to not in FORMATS:
        raise ValueError(f"--to must be one of {nearest_first(to, FORMATS)}; got {to!r}")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"--rank must be a whole number of at least 1, got {rank!r}")
    if base.exists() and tuned.exists() and base.samefile(tuned):
        raise ValueError(f"BASE and TUNED are both {base}: name the model before and after its fine-tuning")
    check_free(out, ADAPTER, inputs=(base, tuned))
    before, after = open_weights(base), open_weights(tuned)
    _check_alike(before, after, base, tuned)
    ours, found = (base / "config.json").exists() and not is_foreign(base), _Found()
    about = {} if ours else about_of(base)
    rng = np.random.default_rng(seed)
    for name in before:
        _one(name, before[name], after[name], rank, found, rng, about, ours_only=to == "lora_np" and ours)
    if not found.matrices:
        raise ValueError(f"no matrix of {tuned} differs from that of {base}: there is nothing to extract")
    scales = dict.fromkeys(found.modules, 1.0)
    leaves = Leaves(found.modules, scales)
    if ours:
        family, layers = family_of(base)
        modules, scales = to_theirs(found.modules, scales, family, layers)
        leaves = replace(leaves, modules=modules, scales=scales)
    same = written(out, leaves, to, base)
    return Extraction(out, to, tuple(found.matrices), tuple(found.left), found.unchanged, same)


class _Found:
    """What is collected tensor by tensor."""

    def __init__(self) -> None:
        self.modules: dict[str, dict[str, Array]] = {}
        self.matrices: list[Extracted] = []
        self.left: list[Left] = []
        self.unchanged = 0


def _check_alike(before: Mapping[str, Tensor], after: Mapping[str, Tensor], base: Path, tuned: Path) -> None:
    for name in [*before, *after]:
        if name not in before or name not in after:
            lacking = tuned if name in before else base
            raise ValueError(f"{lacking} has no tensor {name}: the two must be one model before and after")
        if before[name].shape != after[name].shape:
            shapes = f"{before[name].shape} in {base} and {after[name].shape} in {tuned}"
            raise ValueError(f"{name} has shape {shapes}: the two must be one model before and after")


def _one(
    name: str, W: Tensor, after: Tensor, rank: int, found: _Found, rng: np.random.Generator,
    about: Mapping[str, Any], *, ours_only: bool,
) -> None:  # fmt: skip
    if same_bytes(W, after):
        found.unchanged += 1
        return
    D, before, change = _difference(name, W, after)
    relative = math.sqrt(change / before) if before else math.inf
    module, _, leaf = name.rpartition(".")
    table = any(part in module.rpartition(".")[2] for part in TABLES)
    if not change:
        found.unchanged += 1
    elif D.ndim != 2 or leaf not in ("weight", "W") or min(D.shape) < 2:
        found.left.append(Left(name, tuple(D.shape), relative, "it is no matrix of a module, so it has no low rank"))
    elif ours_only and table and module != "tokens":
        found.left.append(Left(name, tuple(D.shape), relative, "lora_np adapts no table but that of the tokens"))
    else:
        parts, error, largest = _factors(D, rank, rng)
        turned = table or (leaf == "weight" and about.get("model_type") in CONV1D)
        A, B = (parts[0].T, parts[1].T) if turned else parts[::-1]
        found.modules[module] = {("EA" if table else "A"): np.ascontiguousarray(A),
                                 ("EB" if table else "B"): np.ascontiguousarray(B)}  # fmt: skip
        norm = math.sqrt(change)
        found.matrices.append(Extracted(name, (D.shape[0], D.shape[1]), len(A), norm, relative, error, largest))


def _difference(name: str, W: Tensor, after: Tensor) -> tuple[Array, float, float]:
    """D, ‖W‖² and ‖D‖²; raises ValueError for numbers that are not finite."""
    wide = np.dtype(np.float64 if "float64" in (W.dtype.name, after.dtype.name) else np.float32)
    D, before, change = np.empty(W.shape, wide), 0.0, 0.0
    for start, block in _blocks(W):
        there = in_type(flat(after, start, start + block.size), np.float64)
        step = (there - block).astype(wide)
        D.reshape(-1)[start : start + block.size] = step
        before, change = before + float(block @ block), change + float(np.square(step, dtype=np.float64).sum())
    if not math.isfinite(before + change):
        raise ValueError(f"{name} holds numbers that are not finite, before or after")
    return D, before, change


def _blocks(W: Tensor) -> Iterator[tuple[int, Array]]:
    for start in range(0, W.size, ENTRIES):
        yield start, in_type(flat(W, start, min(start + ENTRIES, W.size)), np.float64)


def _factors(D: Array, rank: int, rng: np.random.Generator) -> tuple[tuple[Array, Array], float, float]:
    """(left, right) in float32, whose product is next to D; how far it is from D; σ₁."""
    U, S, V = leading(D, rank, rng)
    root, kind = np.sqrt(S), D.dtype
    left, right = (U * root).astype(kind), (V * root).T.astype(kind)
    rest = whole = 0.0
    for rows in row_blocks(len(D), D.shape[1], ENTRIES):
        there = D[rows].astype(np.float64)
        gap = there - left[rows].astype(np.float64) @ right.astype(np.float64)
        rest, whole = rest + float((gap * gap).sum()), whole + float((there * there).sum())
    return (left, right), math.sqrt(rest / whole), float(S[0])
