"""What float32 settles of a 16-bit merge is what float64 would say: entry by entry, sum by sum, recipe by recipe."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from foreign_world import Q, write_adapter
from formats_files import write_file

from lora_np.formats.adapters import read_adapter
from lora_np.formats.huggingface import open_weights
from lora_np.formats.tensors import dtype_of
from lora_np.formats.updates import LowRank, Update
from lora_np.merges import judging, recipes, screening, settling
from lora_np.merges.expecting import stages_of
from lora_np.merges.judging import in_turn, verdict_of
from lora_np.merges.screening import screened

N, WIDTH, RANK = 48, 96, 4
# What float32 may be off, 2^(p+3) u32 h, beside the least E here, 0.002 h: 3 % in bfloat16, p = 7; 25 % in float16, 10
WIDER = {"bfloat16": 1.03, "float16": 1.25}
KINDS = ["bfloat16", "float16"]
RECIPES = ["peft", "peft_safe", "mlx", "float64"]


@pytest.fixture(autouse=True)
def _types() -> None:
    pytest.importorskip("ml_dtypes")


def update(seed: int, size: float, scale: float = 3.0, kind: str = "float32") -> tuple[Update, np.ndarray]:
    """An update `size` times as large as its weights, and weights in which every odd case is planted."""
    rng = np.random.default_rng(seed)
    W, A, B = (rng.standard_normal(shape) for shape in ((N, WIDTH), (RANK, WIDTH), (N, RANK)))
    B *= size / (abs(scale) * np.sqrt(RANK))
    W[:, :8] = 2.0 ** rng.integers(-20, 4, (N, 8))  # powers of two: the unit below is half of that above
    W[:, 8:10], W[:, 10:12] = 0.0, 1e-7 * rng.standard_normal((N, 2))  # and numbers below every update
    A[:, 12], B[5] = 0.0, 0.0  # where nothing may change
    part = LowRank(A.astype(dtype_of(kind)), B.astype(dtype_of(kind)), scale)
    return Update("W", (N, WIDTH), (N, WIDTH), (part,)), W


def merged(name: str, ready: Update, W: np.ndarray) -> np.ndarray:
    return recipes.merged_rows(recipes.RECIPES[name], ready, W, slice(0, N), W.dtype)


def both(ready: Update, W: np.ndarray, found: np.ndarray) -> tuple:
    stages = stages_of(ready, W, found)
    quick = screened(ready, W, found, stages, in_turn)
    assert quick is not None
    return quick[0], verdict_of(ready, W, found, stages), quick[1]


@pytest.mark.parametrize("size", [0.5, 0.02, 0.002])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_screened_verdict_is_that_of_float64(name: str, kind: str, size: float, monkeypatch) -> None:
    monkeypatch.setattr(settling, "SAMPLE", 4 * WIDTH)
    for seed, scale, stored in [(0, 3.0, "float32"), (1, 2.0, kind), (2, -0.7, "float32"), (3, 1.0, "float16")]:
        ready, wide = update(seed, size, scale, stored)
        W = wide.astype(dtype_of(kind))
        found = merged(name, ready, W)
        quick, slow, equal = both(ready, W, found)
        assert quick.holds == slow.holds is True
        assert (quick.entry, quick.gap, quick.bound) == (slow.entry, slow.gap, slow.bound)
        assert quick.used == slow.used > 0.5
        assert quick.swallowed == slow.swallowed
        assert quick.factor == pytest.approx(slow.factor, abs=2e-6)
        # the interval is a little wider than it must be, and never narrower: but for float32 in its sums
        assert quick.factor_low <= slow.factor_low + 2e-6
        assert quick.factor_high >= slow.factor_high - 2e-6
        assert quick.factor_high - quick.factor_low <= WIDER[kind] * (slow.factor_high - slow.factor_low) + 1e-5
        for key, count in equal.items():
            assert count == np.count_nonzero(merged(key, ready, W) == found), key
        assert equal[name] == found.size


@pytest.mark.parametrize("kind", KINDS)
def test_most_entries_are_settled_and_no_block_is_judged_as_a_whole(kind: str, monkeypatch) -> None:
    ready, wide = update(0, 0.02)
    ready = Update("W", ready.shape, ready.matrix, (LowRank(ready.parts[0].A + 1, ready.parts[0].B + 1e-3, 3.0),))
    W, seen, exact = wide.astype(dtype_of(kind)), list[int](), settling.Screen._exact
    monkeypatch.setattr(settling, "SAMPLE", 4 * WIDTH)
    spy = lambda self, *rest: (seen.append(rest[-1].size), exact(self, *rest))[1]  # noqa: E731
    monkeypatch.setattr(settling.Screen, "_exact", spy)
    both(ready, W, merged("peft_safe", ready, W))
    assert 0 < sum(seen) < 0.1 * W.size


@pytest.mark.parametrize("kind", KINDS)
def test_one_entry_that_is_one_unit_off_is_judged_alike(kind: str) -> None:
    rng = np.random.default_rng(0)
    ready, wide = update(7, 0.01)
    W = wide.astype(dtype_of(kind))
    right, outside = merged("peft", ready, W), 0
    for _ in range(60):
        wrong, at = right.copy(), (int(rng.integers(N)), int(rng.integers(WIDTH)))
        wrong.view(np.int16)[at] += rng.choice([-1, 1])
        quick, slow, _ = both(ready, W, wrong)
        assert (quick.wrong, quick.holds, quick.used) == (slow.wrong, slow.holds, slow.used)
        assert quick.holds or quick.entry == at
        outside += not quick.holds
    assert outside > 50


@pytest.mark.parametrize("factor", [0.0, 0.99, 1.01, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_scale_is_judged_alike(kind: str, factor: float) -> None:
    for size in (0.2, 0.02):
        ready, wide = update(3, size)
        W = wide.astype(dtype_of(kind))
        part = ready.parts[0]
        other = Update("W", ready.shape, ready.matrix, (LowRank(part.A, part.B, factor * part.scale),))
        quick, slow, _ = both(ready, W, merged("peft", other, W))
        assert not quick.holds
        assert (quick.wrong, quick.used, quick.entry) == (slow.wrong, slow.used, slow.entry)
        assert quick.factor == pytest.approx(slow.factor, abs=1e-5)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -0.0])
def test_what_is_not_finite_or_a_negative_zero_is_judged_alike(odd: float) -> None:
    ready, wide = update(4, 0.02)
    W = wide.astype(dtype_of("bfloat16"))
    found = merged("peft", ready, W)
    found[3, 50] = odd
    quick, slow, _ = both(ready, W, found)
    assert (quick.wrong, quick.entry, quick.holds) == (slow.wrong, slow.entry, False)


def test_parts_beside_each_other_leave_the_rows_between_them_as_they_are(tmp_path: Path) -> None:
    ready, wide = update(5, 0.02)
    part = ready.parts[0]
    upper, lower = LowRank(part.A, part.B[:16], 3.0), LowRank(part.A[::-1], part.B[16:32], 2.0, at=32)
    fused = Update("W", ready.shape, ready.matrix, (upper, lower))
    W = wide.astype(dtype_of("bfloat16"))
    right = merged("peft", fused, W)
    quick, slow, equal = both(fused, W, right)
    assert quick.holds
    assert (quick.used, quick.swallowed, equal["peft"]) == (slow.used, slow.swallowed, right.size)
    wrong = right.copy()
    wrong.view(np.int16)[20, 60] += 1
    quick, slow, _ = both(fused, W, wrong)
    assert (quick.wrong, quick.entry, slow.entry) == (1, (20, 60), (20, 60))


def test_other_tensors_are_not_screened() -> None:
    ready, W = update(6, 0.02)
    for base, found in ((W, W), (W.astype("float32"), W.astype("float32")), (W.astype("float16"), W.astype("float32"))):
        assert screened(ready, base, found, stages_of(ready, base, found), in_turn) is None


def test_no_more_than_a_tensor_is_held_of_a_16_bit_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are made small here, so that what is held of a whole tensor would show."""
    rng, name, kind = np.random.default_rng(0), f"{Q}.weight", dtype_of("bfloat16")
    base = {name: rng.standard_normal((2048, 1024)).astype(kind), "norm": np.ones((2048, 1024), kind)}
    A, B = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 1024), (2048, 2)))
    write_adapter(tmp_path, {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}, r=2, lora_alpha=2)
    for folder, arrays in (("base", base), ("merged", {**base, name: (base[name] + B @ A).astype(kind)})):
        write_file(tmp_path / folder / "model.safetensors", arrays)
    for module in (judging, recipes, screening):
        monkeypatch.setattr(module, "ENTRIES", 1 << 13)
    monkeypatch.setattr(judging, "STEP", 1 << 16)
    before, after = open_weights(tmp_path / "base"), open_weights(tmp_path / "merged")
    adapter = read_adapter(tmp_path / "adapter", before)
    tracemalloc.start()
    found = list(judging.judged(adapter, before, after))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(one.holds for one in found)
    assert [one.equal["peft"] for one in found if one.equal] == [base[name].size]
    assert peak < base[name].nbytes
