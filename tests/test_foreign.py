r"""Merges of other programs: every honest recipe holds, and a fault of 1 % is seen at every size of the update.

The honest ones are written out here in NumPy, rounding by rounding; a faulty one is an honest one of a wrong update.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from foreign_world import LAYER, SIZES, D, Q, World, said_by, world, write_adapter
from formats_files import write_file

from lora_np.formats.adapters import read_adapter
from lora_np.formats.tensors import dtype_of

TYPES = [
    pytest.param("float32", id="float32"),
    pytest.param("float16", id="float16"),
    pytest.param("bfloat16", id="bfloat16"),
]
NAME = f"{Q}.weight"


@pytest.fixture(autouse=True)
def _types(request: pytest.FixtureRequest) -> None:
    if "bfloat16" in str(request.node.callspec.params if hasattr(request.node, "callspec") else ""):
        pytest.importorskip("ml_dtypes")


def one(found: dict, name: str = NAME) -> dict:
    return next(tensor for tensor in found["tensors"] if tensor["name"] == name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_honest_recipe_holds_and_one_percent_of_scale_does_not(tmp_path: Path, dtype: str, size: float) -> None:
    w = world(tmp_path, size, dtype)
    kind, W, change = dtype_of(dtype), w.base[NAME], w.change()
    cast = change.astype(kind)  # safe_merge, mlx-lm
    wide = (W.astype(np.float64) + change.astype(np.float64)).astype(np.float32).astype(kind)
    for right in (w.plain()[NAME], (W + cast).astype(kind), wide):
        code, found = w.verified({**w.base, NAME: right})
        assert code == 0, found["diagnosis"]
        assert 0.5 < one(found)["used"] <= 1.0  # the bound is nearly reached: it has power
    for wrong in ((W + 1.01 * change).astype(kind), (W + (0.99 * change).astype(kind)).astype(kind)):
        assert w.verified({**w.base, NAME: wrong})[0] == 1


def test_an_adapter_stored_in_16_bits_may_be_cast_to_them(tmp_path: Path) -> None:
    w = world(tmp_path, 0.02)
    short = {module: tuple(factor.astype(np.float16) for factor in pair) for module, pair in w.factors.items()}
    other = tmp_path / "short"
    write_adapter(other.mkdir() or other, {f"{Q}.lora_{x}.weight": f for x, f in zip("AB", short[Q], strict=True)})
    write_file(other / "base" / "model.safetensors", w.base)
    again = type(w)(other, w.base, short)
    cast = w.base[NAME] + again.change().astype(np.float16)
    assert again.verified(again.plain())[0] == 0
    assert again.verified({**w.base, NAME: cast})[0] == 0
    assert again.verified({**w.base, NAME: w.base[NAME] + np.float32(1.01) * again.change()})[0] == 1


def test_what_no_adapter_touches_must_be_the_same_bytes(tmp_path: Path) -> None:
    w = world(tmp_path)
    norm = w.base["model.norm.weight"]
    for other, fault in [
        (np.where(np.arange(D) == 5, np.nextafter(norm, 2), norm), "untouched_changed"),
        (norm.astype(np.float64), "recast"),
        (norm[:-1], "shape"),
        (np.where(np.arange(D) == 5, np.nan, norm).astype(np.float32), "not_finite"),
    ]:
        code, found = w.verified({**w.plain(), "model.norm.weight": other})
        assert code == 1
        assert [t["name"] for t in found["tensors"] if not t["holds"]] == ["model.norm.weight"]
        assert one(found, "model.norm.weight")["fault"] == fault


def test_missing_and_extra_tensors_are_named(tmp_path: Path) -> None:
    w = world(tmp_path)
    merged = w.plain()
    for lost in (NAME, "model.norm.weight"):
        code, found = w.verified({name: array for name, array in merged.items() if name != lost})
        assert (code, one(found, lost)["fault"]) == (1, "missing")
    code, found = w.verified({**merged, "more": np.ones(3, np.float32)})
    assert (code, one(found, "more")["fault"]) == (1, "extra")


def test_a_number_that_is_not_finite_is_named_in_what_is_adapted(tmp_path: Path) -> None:
    w = world(tmp_path)
    merged = w.plain()
    merged[NAME][3, 4] = np.nan
    code, found = w.verified(merged)
    assert (code, one(found)["fault"], one(found)["entry"]) == (1, "not_finite", [3, 4])


@pytest.mark.parametrize("dtype", TYPES)
def test_a_magnitude_holds_and_its_loss_does_not(tmp_path: Path, dtype: str) -> None:
    w = world(tmp_path / "a", 0.1, dtype)
    root, (A, B) = tmp_path / "b", w.factors[Q]
    root.mkdir()
    m = (np.linalg.norm(w.base[NAME].astype(np.float32), axis=1) * np.linspace(0.8, 1.2, D)).astype(np.float32)
    leaves = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.lora_magnitude_vector": m}
    write_adapter(root, leaves, use_dora=True)
    write_file(root / "base" / "model.safetensors", w.base)
    dora = type(w)(root, w.base, w.factors)
    x = w.base[NAME].astype(np.float32) + w.change()
    right = (m / np.linalg.norm(x, axis=1))[:, None] * x
    assert dora.verified({**w.base, NAME: right.astype(w.base[NAME].dtype)})[0] == 0
    assert dora.verified(w.plain())[0] == 1
    assert dora.verified({**w.base, NAME: (1.01 * right).astype(w.base[NAME].dtype)})[0] == 1


@pytest.mark.parametrize("dtype", TYPES)
def test_a_base_that_was_changed_before_training_holds(tmp_path: Path, dtype: str) -> None:
    w = world(tmp_path, 0.1, dtype, init_lora_weights="pissa")
    W, kind = w.base[NAME].astype(np.float32), w.base[NAME].dtype
    U, S, V = np.linalg.svd(W, full_matrices=False)
    rest = (W - (U[:, :4] * S[:4]) @ V[:4]).astype(kind)
    assert w.verified({**w.base, NAME: (rest + w.change()).astype(kind)})[0] == 0
    assert w.verified(w.plain())[0] == 1


def test_replaced_tensors_and_rows_of_tokens_must_be_equal(tmp_path: Path) -> None:
    rng, table, head = np.random.default_rng(0), "model.embed_tokens.weight", "lm_head.weight"
    base = {name: rng.standard_normal((20, 8)).astype(np.float32) for name in (table, head)}
    rows, whole = (rng.standard_normal((n, 8)).astype(np.float32) for n in (2, 20))
    module = table.removesuffix(".weight")
    leaves = {f"{module}.token_adapter.trainable_tokens_delta": rows, head: whole}
    write_adapter(tmp_path, leaves, trainable_token_indices=[3, 7], modules_to_save=["lm_head"])
    write_file(tmp_path / "base" / "model.safetensors", base)
    w, right = World(tmp_path, base, {}), {table: base[table].copy(), head: whole}
    right[table][[3, 7]] = rows
    assert w.verified(right)[0] == 0
    for name, entry in ((table, (3, 0)), (table, (4, 0)), (head, (0, 0))):
        wrong = {key: array.copy() for key, array in right.items()}
        wrong[name][entry] = np.nextafter(wrong[name][entry], np.float32(9))
        code, found = w.verified(wrong)
        assert (code, one(found, name)["entry"]) == (1, list(entry))


def test_a_head_that_is_tied_may_be_written_twice_but_not_in_two_versions(tmp_path: Path) -> None:
    rng, module = np.random.default_rng(0), "model.embed_tokens"
    base = {f"{module}.weight": rng.standard_normal((20, 8)).astype(np.float32)}
    A, B = rng.standard_normal((2, 20)).astype(np.float32), rng.standard_normal((8, 2)).astype(np.float32)
    write_adapter(tmp_path, {f"{module}.lora_embedding_A": A, f"{module}.lora_embedding_B": B}, r=2, lora_alpha=2)
    write_file(tmp_path / "base" / "model.safetensors", base)
    w, right = World(tmp_path, base, {}), base[f"{module}.weight"] + (B @ A).T
    assert w.verified({f"{module}.weight": right})[0] == 0
    assert w.verified({f"{module}.weight": right, "lm_head.weight": right})[0] == 0
    code, found = w.verified({f"{module}.weight": right, "lm_head.weight": base[f"{module}.weight"]})
    assert (code, one(found, "lm_head.weight")["fault"]) == (1, "tied")


def test_the_table_shows_what_is_wrong_first_and_says_so_in_words(tmp_path: Path) -> None:
    w = world(tmp_path)
    for name, merged, words in (("right", w.plain(), "\nEQUAL: "), ("wrong", w.base, "\nNOT EQUAL: ")):
        write_file(tmp_path / name / "model.safetensors", merged)
        _, said = said_by("verify", tmp_path / "adapter", tmp_path / name, "--base", tmp_path / "base")
        assert words in said
        assert NAME in said
        assert "tensors that no adapter touches are equal to the bit" in said


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = world(tmp_path)
    adapter, base, empty = tmp_path / "adapter", tmp_path / "base", tmp_path / "empty"
    empty.mkdir()
    write_file(tmp_path / "small" / "model.safetensors", {NAME: np.ones((5, 7), np.float32)})
    write_file(tmp_path / "right" / "model.safetensors", w.plain())
    (tmp_path / "kohya").mkdir()
    write_file(tmp_path / "kohya" / "x.safetensors", {"lora_unet_a.lora_down.weight": np.ones((2, 2), np.float32)})
    for arguments, word in [
        ((adapter, tmp_path / "right"), "--base"),
        ((adapter, base, "--base", base), "before and after"),
        ((adapter, empty, "--base", base), "no weights"),
        ((adapter, tmp_path / "right", "--base", empty), "no weights"),
        ((adapter, tmp_path / "right", "--base", tmp_path / "small"), "shape"),
        ((tmp_path / "kohya", tmp_path / "right", "--base", base), "kohya"),
    ]:
        code, _ = said_by("verify", *arguments)
        said = capsys.readouterr().err
        assert (code, said.count("\n")) == (2, 1), said
        assert word in said


def test_a_part_of_a_fused_map_leaves_the_other_rows_as_they_are(tmp_path: Path) -> None:
    """Experts of which only some entries are met: where no term is, the entry must be the base's to the bit."""
    name, rng = f"{LAYER}mlp.experts.gate_up_proj", np.random.default_rng(1)
    base = {name: rng.standard_normal((3, 10, 6)).astype(np.float32)}
    A, B = rng.standard_normal((6, 6)).astype(np.float32), rng.standard_normal((10, 6)).astype(np.float32)
    B[:, 1::3] = 0.0  # expert 1 learnt nothing
    leaves = {f"{LAYER}mlp.experts.lora_A.weight": A, f"{LAYER}mlp.experts.lora_B.weight": B}
    write_adapter(tmp_path, leaves, r=2, lora_alpha=2, target_parameters=["experts.gate_up_proj"])
    write_file(tmp_path / "base" / "model.safetensors", base)
    w = World(tmp_path, base, {})
    change = np.stack([B[:, e::3] @ A[2 * e : 2 * e + 2] for e in range(3)])
    right = base[name] + change
    assert w.verified({name: right})[0] == 0
    wrong = right.copy()
    wrong[1, 0, 0] = np.nextafter(wrong[1, 0, 0], np.float32(9))
    code, found = w.verified({name: wrong})
    assert (code, one(found, name)["entry"]) == (1, [1, 0, 0])


def test_no_more_than_three_times_the_largest_tensor_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are made small here, so that what is held of a whole tensor would show."""
    from lora_np.formats.huggingface import open_weights
    from lora_np.merges import judging, recipes

    rng = np.random.default_rng(0)
    base = {NAME: rng.standard_normal((1024, 512)).astype(np.float32), "norm": np.ones((1024, 512), np.float32)}
    A, B = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 512), (1024, 2)))
    write_adapter(tmp_path, {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}, r=2, lora_alpha=2)
    for folder, arrays in (("base", base), ("merged", {**base, NAME: base[NAME] + B @ A})):
        write_file(tmp_path / folder / "model.safetensors", arrays)
    monkeypatch.setattr(judging, "ENTRIES", 1 << 12)
    monkeypatch.setattr(recipes, "ENTRIES", 1 << 12)
    before, after = open_weights(tmp_path / "base"), open_weights(tmp_path / "merged")
    adapter = read_adapter(tmp_path / "adapter", before)
    tracemalloc.start()
    assert all(one.holds for one in judging.judged(adapter, before, after))
    assert recipes.replayed(adapter, before, after)["peft"] > 0.9
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * base[NAME].nbytes
