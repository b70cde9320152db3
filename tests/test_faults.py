r"""A planted fault is called by its name, at updates of 20 % to 0.2 % of the weights, in float32 and in bfloat16."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from foreign_world import ALPHA, GATE, RANK, SIZES, UP, D, Q, World, world, write_adapter
from formats_files import write_file

from lora_np.formats.tensors import dtype_of
from lora_np.merges.faults import FAULTS

NAME = f"{Q}.weight"


def scaled(factor: float) -> Callable[[World], np.ndarray]:
    return lambda w: dataclasses.replace(w, scale=factor * w.scale).plain()[NAME]


def twice(w: World) -> np.ndarray:
    once = w.plain()[NAME]
    return (once + w.change()).astype(once.dtype)


def of_rank(w: World, keep: list[int]) -> np.ndarray:
    A, B = w.factors[Q]
    return w.plain({Q: (B[:, keep] @ A[keep]) * np.float32(w.scale)})[NAME]


def swapped(w: World) -> np.ndarray:
    A, B = w.factors[Q]
    return w.plain({Q: (A.reshape(D, RANK) @ B.reshape(RANK, D)) * np.float32(w.scale)})[NAME]


def another(w: World) -> np.ndarray:
    rng, change = np.random.default_rng(99), w.change()
    other = (rng.standard_normal((D, RANK)) @ rng.standard_normal((RANK, D))).astype(np.float32)
    return w.plain({Q: other * np.float32(change.std() / other.std())})[NAME]


PLANTED: dict[str, tuple[str, Callable[[World], np.ndarray]]] = {
    "nothing": ("not_merged", lambda w: w.base[NAME]),
    "subtracted": ("sign", scaled(-1.0)),
    "twice": ("twice", twice),
    "root of r": ("scale_rslora", scaled(RANK**0.5)),
    "alpha": ("scale_alpha", scaled(RANK)),
    "half of it": ("scale_root", scaled(RANK**-0.5)),
    "one": ("scale_one", scaled(RANK / ALPHA)),
    "inverse": ("scale_inverse", scaled(1.0 / ALPHA)),
    "s twice": ("scale_squared", scaled(ALPHA / RANK)),
    "1 % more": ("scale", scaled(1.01)),
    "30 % less": ("scale", scaled(0.7)),
    "transposed": ("transposed", lambda w: w.plain({Q: w.change().T})[NAME]),
    "A for B": ("swapped", swapped),
    "two of four": ("partial_rank", lambda w: of_rank(w, [0, 1])),
    "three of four": ("partial_rank", lambda w: of_rank(w, [0, 2, 3])),
    "another": ("another_adapter", another),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_planted_fault_is_called_by_its_name(tmp_path: Path, dtype: str, size: float) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    w = world(tmp_path, size, dtype)
    said = {}
    for planted, (name, merged) in PLANTED.items():
        code, found = w.verified({**w.base, NAME: merged(w)})
        assert code == 1
        said[planted] = (name, next(t["fault"] for t in found["tensors"] if t["name"] == NAME))
    assert {planted: found for planted, (_, found) in said.items()} == {p: name for p, (name, _) in said.items()}


def faults_of(w: World, merged: dict[str, np.ndarray]) -> dict[str, str]:
    code, found = w.verified(merged)
    assert code == (0 if found["holds"] else 1)
    return {tensor["name"]: tensor["fault"] for tensor in found["tensors"] if tensor["fault"]}


@pytest.mark.parametrize("size", SIZES)
def test_gate_and_up_that_got_the_update_of_each_other_are_both_named(tmp_path: Path, size: float) -> None:
    w = world(tmp_path, size, modules=(Q, GATE, UP))
    assert faults_of(w, w.plain()) == {}
    merged = w.plain({Q: w.change(), GATE: w.change(UP), UP: w.change(GATE)})
    assert faults_of(w, merged) == {f"{GATE}.weight": "gate_up", f"{UP}.weight": "gate_up"}


def int8(array: np.ndarray) -> np.ndarray:
    step = abs(array).max(axis=1, keepdims=True) / np.float32(127)
    return np.round(array / step) * step


def four_bits(array: np.ndarray) -> np.ndarray:
    blocks = array.reshape(-1, 64)
    step = abs(blocks).max(axis=1, keepdims=True) / np.float32(7)
    return (np.round(blocks / step) * step).reshape(array.shape)


@pytest.mark.parametrize("size", SIZES)
def test_numbers_on_a_coarser_grid_are_named(tmp_path: Path, size: float) -> None:
    w = world(tmp_path, size)
    for coarse in (lambda x: x.astype(np.float16).astype(np.float32), int8, four_bits):
        assert faults_of(w, {**w.base, NAME: coarse(w.plain()[NAME])}) == {NAME: "requantised"}


BOTH = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@BOTH
@pytest.mark.parametrize("size", SIZES)
def test_a_pattern_that_was_ignored_is_named(tmp_path: Path, size: float, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    w = world(tmp_path, size, dtype, alpha_pattern={"q_proj": 5})
    assert faults_of(w, dataclasses.replace(w, scale=5 / RANK).plain()) == {}
    assert faults_of(w, w.plain()) == {NAME: "scale_general"}


@BOTH
@pytest.mark.parametrize("size", SIZES)
def test_a_magnitude_that_was_left_out_is_named(tmp_path: Path, size: float, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    w = world(tmp_path / "a", size, dtype)
    m, (A, B) = np.linspace(5, 9, D).astype(np.float32), w.factors[Q]
    (tmp_path / "b").mkdir()
    leaves = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.lora_magnitude_vector": m}
    write_adapter(tmp_path / "b", leaves, use_dora=True)
    write_file(tmp_path / "b" / "base" / "model.safetensors", w.base)
    assert faults_of(dataclasses.replace(w, root=tmp_path / "b"), w.plain()) == {NAME: "no_magnitude"}


@BOTH
@pytest.mark.parametrize("size", SIZES)
def test_faults_of_files_and_of_what_no_adapter_touches_are_named(tmp_path: Path, size: float, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    w, norm = world(tmp_path, size, dtype), "model.norm.weight"
    right, other = w.plain(), np.dtype(np.float64)
    half = right[NAME].copy()
    half[0, 0] = np.nan
    changed = np.where(np.arange(D) == 3, 1.5, w.base[norm].astype(float)).astype(w.base[norm].dtype)
    for merged, fault in [
        ({**right, norm: changed}, (norm, "untouched_changed")),
        ({**right, norm: right[norm].astype(other)}, (norm, "recast")),
        ({**right, norm: right[norm][:-1]}, (norm, "shape")),
        ({name: array for name, array in right.items() if name != norm}, (norm, "missing")),
        ({**right, "more": np.ones(2, np.float32)}, ("more", "extra")),
        ({**right, NAME: half}, (NAME, "not_finite")),
        ({**right, NAME: right[NAME].astype(other)}, (NAME, "recast")),
        ({**right, NAME: right[NAME][:-1]}, (NAME, "shape")),
    ]:
        assert faults_of(w, merged) == dict([fault])


EXPERTS, IN, OUT, R = 3, 24, 40, 2


def experts(root: Path, size: float, dtype: str) -> tuple[World, str, np.ndarray, np.ndarray]:
    """Fused gate and up of some experts in a base (E, out, in); A (E·r, in), B (out, E·r), experts fastest in B."""
    name, rng = "model.layers.0.mlp.experts.gate_up_proj", np.random.default_rng(1)
    base = {name: rng.standard_normal((EXPERTS, OUT, IN)).astype(dtype_of(dtype))}
    A = rng.standard_normal((EXPERTS * R, IN)).astype(np.float32)
    B = (rng.standard_normal((OUT, EXPERTS * R)) * size / np.sqrt(R)).astype(np.float32)
    module = name.rpartition(".")[0]
    leaves = {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
    write_adapter(root, leaves, r=R, lora_alpha=R, target_parameters=["experts.gate_up_proj"])
    write_file(root / "base" / "model.safetensors", base)
    return World(root, base, {}), name, A, B


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_faults_of_experts_are_named(tmp_path: Path, dtype: str, size: float) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    w, name, A, B = experts(tmp_path, size, dtype)

    def merged(columns: Callable[[int], np.ndarray], keep: int = EXPERTS, rows: slice | np.ndarray = slice(None)):
        change = np.stack([columns(e)[rows] @ A[R * e : R * e + R] * np.float32(e < keep) for e in range(EXPERTS)])
        return {name: (w.base[name] + change).astype(w.base[name].dtype)}

    def fastest(e: int) -> np.ndarray:
        return B[:, e::EXPERTS]

    halves, woven = np.roll(np.arange(OUT), OUT // 2), np.arange(OUT).reshape(2, -1).T.reshape(-1)
    assert faults_of(w, merged(fastest)) == {}
    assert faults_of(w, merged(lambda e: B[:, R * e : R * e + R])) == {name: "expert_order"}
    assert faults_of(w, merged(fastest, rows=halves)) == {name: "gate_up"}
    assert faults_of(w, merged(fastest, rows=woven)) == {name: "gate_up"}
    assert faults_of(w, merged(fastest, keep=2)) == {name: "lost_parts"}


def test_every_name_of_the_table_is_planted() -> None:
    files = {"untouched_changed", "recast", "shape", "missing", "extra", "not_finite", "requantised"}
    elsewhere = {"no_magnitude", "scale_general", "expert_order", "gate_up", "lost_parts"}
    assert set(FAULTS) <= {name for name, _ in PLANTED.values()} | elsewhere
    # at every size of the update: those of the table, of gate and up, of three grids, of experts (4), of files (8), ...
    assert len(PLANTED) + 1 + 3 + 4 + 8 + len({"scale_general", "no_magnitude"}) >= 25
    assert len({name for name, _ in PLANTED.values()} | elsewhere | files) >= 25
