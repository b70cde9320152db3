r"""Tutorial 11, checking other people's merges: folders as PEFT writes them, merges by a formula, verdicts, and checks
of a scale, of what vanishes, of a cause, and of a merge that rounds once."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..formats.npz import Held
from ..formats.tensors import Tensor, dtype_of
from ..formats.updates import Adapter, in_type
from ..formats.writing import CODES, write_tensors
from ..lora import adapters
from ..merges.faults import times
from ..merges.judging import Judged, judged
from ..model import Linear, Transformer
from ..names import nearest_first
from ..parameters import parameters, walk
from ..rounding import gamma, rounded, spacing, unit_roundoff
from . import checker, compare, unanswered

PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
Formula = Callable[[Array, Array, Array, Any], Array]  # of W, A, B and s, in float32
Folder = Mapping[str, Any]  # names to tensors, on disk or in memory

# What may have been done with W, A, B and s; all but the first are mistakes that somebody has made.
CAUSES: dict[str, Formula] = {
    "right": lambda W, A, B, s: W + s * (B @ A),
    "not merged": lambda W, A, B, s: W.copy(),
    "sign": lambda W, A, B, s: W - s * (B @ A),
    "twice": lambda W, A, B, s: W + 2 * s * (B @ A),
    "alpha/r": lambda W, A, B, s: W + s / len(A) ** 0.5 * (B @ A),
    "transposed": lambda W, A, B, s: W + s * (B @ A).T,
}
SAME = 1e-3  # of the update: what float32 leaves of it is a thousand times smaller


def their_name(path: str) -> str:
    """`blocks.0.attention.query` as a Llama calls it: `model.layers.0.self_attn.q_proj`."""
    _, layer, _, leaf = path.split(".")
    return f"model.layers.{layer}.self_attn.{PROJECTIONS[leaf]}"


def write_base(folder: Path, model: Transformer, dtype: str = "bfloat16") -> None:
    """The attention matrices of a model and its last norm, as the folder of a Llama: names, shapes and numbers."""
    kind, maps = dtype_of(dtype), {p: node for p, node in walk(model) if isinstance(node, Linear) and "attention" in p}
    arrays = {f"{their_name(path)}.weight": node.W.astype(kind) for path, node in maps.items()}
    write(folder, arrays | {"model.norm.weight": parameters(model)["norm.gamma"].astype(kind)})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def write_adapter(folder: Path, model: Transformer, **about: Any) -> None:
    """The A and B of an adapted model as a folder of PEFT; `about` is what adapter_config.json says."""
    arrays: dict[str, Array] = {}
    for path, module in adapters(model).items():
        start = f"base_model.model.{their_name(path)}"
        arrays |= {f"{start}.lora_A.weight": module.A, f"{start}.lora_B.weight": module.B}
    write(folder, arrays, "adapter_model")
    (folder / "adapter_config.json").write_text(json.dumps(about, indent=1))


def write(folder: Path, arrays: Mapping[str, Array], stem: str = "model") -> None:
    """A new folder with one safetensors file."""
    folder.mkdir()
    layout = {name: (CODES[array.dtype.name], array.shape) for name, array in arrays.items()}
    write_tensors(folder, layout, lambda name: [arrays[name]], stem=stem)


def merged_by(formula: Formula, adapter: Adapter, base: Folder) -> dict[str, Array]:
    """Every adapted tensor by a formula of (W, A, B, s), in float32 and cast once to the type of the base; the others
    as they are."""
    merged = {name: np.asarray(tensor) for name, tensor in base.items()}
    for name, update in adapter.updates.items():
        (part,) = update.parts
        W, A, B = (in_type(np.asarray(array), np.float32) for array in (merged[name], part.A, part.B))
        merged[name] = in_type(formula(W, A, B, np.float32(part.scale)), merged[name].dtype)
    return merged


@dataclass(frozen=True)
class Verdict:
    """What `judged` found of all tensors: `gap` and `bound` are those of the worst one."""

    found: tuple[Judged, ...]

    @property
    def holds(self) -> bool:
        return all(one.holds for one in self.found)

    @property
    def worst(self) -> Judged:
        return max((one for one in self.found if one.array is not None), key=lambda one: one.weight)

    @property
    def gap(self) -> float:
        return max(one.array.gap for one in self.found if one.array is not None)

    @property
    def used(self) -> float:
        """The largest gap / bound."""
        return max(one.array.used for one in self.found if one.array is not None)

    @property
    def faults(self) -> dict[str, int]:
        return dict(Counter(one.fault for one in self.found if not one.holds))

    def __str__(self) -> str:
        if self.holds:
            return f"EQUAL: gaps up to {self.gap:.1e}, at most {self.used:.3f} of the bound"
        counts = ", ".join(f"{count} {fault}" for fault, count in self.faults.items())
        return f"NOT EQUAL ({counts}): {self.worst.words.partition(';')[0]}"


def verify(adapter: Adapter, base: Folder, merged: Folder) -> Verdict:
    """Every tensor of a merged model beside W0 + ΔW, as `lora-np verify` judges it."""
    return Verdict(tuple(judged(adapter, _held(base), _held(merged))))


def _held(folder: Folder) -> dict[str, Tensor]:
    return {name: t if isinstance(t, Tensor) else Held(np.ascontiguousarray(t)) for name, t in folder.items()}


def nudged(tensor: Any, rng: np.random.Generator) -> Array:
    """The same tensor of another base: each number off by about one part in a hundred."""
    array = np.asarray(tensor)
    return in_type(in_type(array, np.float64) * (1.0 + 0.01 * rng.standard_normal(array.shape)), array.dtype)


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """The same adapter, as if its B had been trained to this much of what it is."""
    return replace(adapter, updates={name: times(update, factor) for name, update in adapter.updates.items()})


def drawn_update(rng: np.random.Generator, shape: tuple[int, int], size: float, rank: int = 8) -> Array:
    """A ΔW of this rank and this size, root mean square, in float64."""
    change = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    return change * (size / _rms(change))


def kept(W: Array, change: Array, dtype: str) -> float:
    r"""$\hat c$ of (V2): how much of ΔW there is in a merge of W, stored in this type, and ΔW, rounded once."""
    before = rounded(np.asarray(W, np.float64), dtype_of(dtype))
    after = rounded(before + change, dtype_of(dtype))
    return float(np.vdot(after - before, change) / np.vdot(change, change))


def errors_in_a_row(W: Array, changes: Sequence[Array], dtype: str) -> dict[str, list[float]]:
    """Updates merged one after another, cast every time or once: how far either lies from W and the sum of them so
    far, root mean square beside that sum, after each update."""
    kind = dtype_of(dtype)
    start = rounded(np.asarray(W, np.float64), kind)
    each, total = start, np.zeros(start.shape)
    errors: dict[str, list[float]] = {"cast every time": [], "cast once": []}
    for change in changes:
        total = total + change
        each = rounded(each + change, kind)
        errors["cast every time"].append(_rms(each - start - total) / _rms(total))
        errors["cast once"].append(_rms(rounded(start + total, kind) - start - total) / _rms(total))
    return errors


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array))))


def mystery(rng: np.random.Generator, size: int = 48, rank: int = 4) -> tuple[Array, Array, Array, float, Array]:
    """W0, A, B, s, and a matrix that was merged from them in one of the ways of CAUSES, in float32."""
    W0, A = (rng.standard_normal((rows, size)).astype(np.float32) for rows in (size, rank))
    B, s = rng.standard_normal((size, rank)).astype(np.float32), 16 / math.sqrt(rank)
    cause = list(CAUSES)[int(rng.integers(1, len(CAUSES)))]
    return W0, A, B, s, CAUSES[cause](W0, A, B, np.float32(s))


# ---------------------------------------------------------------------------------------------------------- checks


@checker
def check_scale(answer: Any, about: Mapping[str, Any]) -> None:
    """The s of an adapter_config.json."""
    r, alpha, root = about["r"], about["lora_alpha"], bool(about.get("use_rslora"))
    if unanswered(answer, f"the s that PEFT multiplies BA by, of r = {r}, lora_alpha = {alpha}, use_rslora = {root}"):
        return
    assert isinstance(answer, int | float | np.number), f"the scale is a number, got {answer!r}"
    right, other = (alpha / math.sqrt(r), alpha / r) if root else (alpha / r, alpha / math.sqrt(r))
    hints = {
        other: "use_rslora is set: the divisor is √r" if root else "use_rslora is not set: the divisor is r",
        float(alpha): "that is alpha itself; it is divided by something that grows with r",
        r / alpha: "that is the inverse",
        math.sqrt(r) / alpha: "that is the inverse",
        1.0 / r: "alpha is missing",
        alpha * math.sqrt(r): "√r divides",
        1.0: "there is a scale: lora_alpha says how large",
    }
    compare(float(answer), right, hints, "look at all three, r, lora_alpha and use_rslora")
    print(f"Right: s = {right:g}. A program that overlooks use_rslora takes {other:g}.")


@checker
def check_vanishing(answer: Any, w: float) -> None:
    """The largest d > 0 that vanishes when it is added to w in bfloat16, w itself being such a number."""
    if unanswered(answer, f"the largest change d for which {w} + d, rounded to bfloat16, is still {w}"):
        return
    assert isinstance(answer, int | float | np.number), f"the answer is a number, got {answer!r}"
    size, kind = np.asarray(abs(w)), dtype_of("bfloat16")
    unit = float(spacing(size, kind))
    right, eps = unit / 2.0, 2.0 * unit_roundoff(kind)
    hints = {
        eps: "that is ε, the unit at 1; the units are smaller below 1 and larger from 2 on",
        unit: "that is a whole unit in the last place: it reaches the next number, and from half of it on it is seen",
        unit / 4.0: "a little more still vanishes: numbers are rounded to the nearest, from the middle on upwards",
        eps * abs(w): "between two powers of two the unit is the same for all numbers",
        eps * abs(w) / 2.0: "between two powers of two the unit is the same for all numbers",
        float(spacing(size, np.float16)) / 2.0: "that is float16, with 10 bits of fraction; bfloat16 has 7",
        float(spacing(size, np.float32)) / 2.0: "that is float32, with 23 bits of fraction; bfloat16 has 7",
    }
    compare(float(answer), right, hints, "between 2ᵏ and 2ᵏ⁺¹ the numbers of bfloat16 lie 2ᵏ⁻⁷ apart")
    print(f"Right: half a unit, {right:g}, is {right / abs(w):.2%} of {w}.")


@checker
def check_cause(answer: Any, W0: Array, A: Array, B: Array, s: float, W: Array) -> None:
    """What was done with W0, A, B and s to give W: one of CAUSES."""
    if unanswered(answer, f"what happened to this merge: one of {', '.join(map(repr, CAUSES))}"):
        return
    assert isinstance(answer, str), f"the answer is a text, got {answer!r}"
    assert answer in CAUSES, f"there is no cause {answer!r}: one of {nearest_first(answer, CAUSES)}"
    update, found = s * (B @ A).astype(np.float64), W.astype(np.float64) - W0
    right = min(CAUSES, key=lambda cause: abs(CAUSES[cause](W0, A, B, np.float32(s)) - W).max())
    if answer == right:
        print(f"Right: {right}. Every entry is what it should be, then.")
        return
    would = CAUSES[answer](W0, A, B, np.float32(s)).astype(np.float64) - W0
    has, is_now = (float(np.vdot(D, update) / np.vdot(update, update)) for D in (would, found))
    if abs(has - is_now) > 0.2:
        raise AssertionError(f"{answer!r} has ĉ = {has:.3g}, and here ĉ is {is_now:.3g}: compute it, by (V2)")
    off = abs(would - found).max()
    raise AssertionError(
        f"{answer!r} would have ĉ = {has:.3g} too, or nearly; but entries are off by up to {off:.3g}: compare W itself"
    )


@checker
def check_merge_once(answer: Any) -> None:
    """`merge_all(W, updates)`: W in bfloat16, and every update (A, B, s) in float32, merged with a single rounding."""
    task = "merge_all(W, updates): W + Σ s·BA for all (A, B, s) of updates, rounded to the type of W once, at the end"
    if unanswered(answer, task):
        return
    assert callable(answer), f"the answer is a function of (W, updates), got {answer!r}"
    W, updates = _small_updates(np.random.default_rng(0))
    kept = W.copy()
    found = answer(W, [(A.copy(), B.copy(), s) for A, B, s in updates])
    assert np.array_equal(W, kept), "it wrote into W: += changes the array that it is given"
    assert isinstance(found, np.ndarray), f"it must give back an array, got {found!r}"
    assert found.shape == W.shape, f"the answer has shape {found.shape}, and W has {W.shape}"
    assert found.dtype == W.dtype, f"the file is {W.dtype}, and the answer {found.dtype}: cast once, at the end"
    now = found.astype(np.float64)
    exact = W.astype(np.float64) + sum(s * (B.astype(np.float64) @ A) for A, B, s in updates)
    terms = sum(s * (abs(B).astype(np.float64) @ abs(A)) for A, B, s in updates)
    roundings = sum(len(A) + 2 for A, _, _ in updates) + len(updates)
    E = gamma(roundings, unit_roundoff(np.float32)) * (abs(W.astype(np.float64)) + terms)
    far, bound = abs(now - exact), E + 0.5 * spacing(abs(exact) + E, W.dtype)
    if (far <= bound).all():
        print(
            f"Right: {len(updates)} updates, one rounding; every entry within its bound of {bound.max():.1g} at most."
        )
        return
    for hint, wrong in _merged_wrongly(W, updates).items():
        assert np.mean(found == wrong) < 0.99, hint
    at = np.unravel_index(np.argmax(~(far <= bound)), far.shape)
    raise AssertionError(
        f"entry {[int(i) for i in at]} is off by {far[at]:.2g}, where one rounding explains {bound[at]:.2g}"
    )


def _small_updates(rng: np.random.Generator) -> tuple[Array, list[tuple[Array, Array, float]]]:
    """A matrix in bfloat16, and twelve updates of which each alone is a few thousandths of it."""
    W = (0.02 * rng.standard_normal((32, 40))).astype(dtype_of("bfloat16"))
    A = [rng.standard_normal((2, 40)).astype(np.float32) for _ in range(12)]
    B = [(1e-5 * rng.standard_normal((32, 2))).astype(np.float32) for _ in range(12)]
    return W, [(a, b, 2.0) for a, b in zip(A, B, strict=True)]


def _merged_wrongly(W: Array, updates: Sequence[tuple[Array, Array, float]]) -> dict[str, Array]:
    wide, deltas = W.astype(np.float32), [np.float32(s) * (B @ A) for A, B, s in updates]
    each, short = W, W
    for delta in deltas:
        each = (each.astype(np.float32) + delta).astype(W.dtype)
        short = short + delta.astype(W.dtype)
    lost = np.mean(each == W)
    rounds = f"it rounds after every update: {lost:.0%} of the entries are still those of W"
    as_one = sum(delta.astype(W.dtype).astype(np.float32) for delta in deltas)
    unscaled = sum(B @ A for A, B, _ in updates)
    return {
        "nothing was added: that is W": W,
        rounds: each,
        f"{rounds}, and ΔW was cast before the sum": short,
        "ΔW was cast to bfloat16 before the sum: cast once, at the end": (wide + as_one).astype(W.dtype),
        "the scaling is missing: an update is s·BA": (wide + unscaled).astype(W.dtype),
        "only the last update was merged": (wide + deltas[-1]).astype(W.dtype),
        "only the first update was merged": (wide + deltas[0]).astype(W.dtype),
    }
