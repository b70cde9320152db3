"""Which program wrote a merge, by making it again; and merges of ours into folders of others."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from foreign_world import LAYER, Q, World, said_by, world, write_adapter
from formats_files import write_file

from lora_np.formats.huggingface import open_weights
from lora_np.merges.recipes import RECIPES

NAME = f"{Q}.weight"
BITS = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


def merged(w: World, recipe: str, out: str = "out", *more: str) -> tuple[int, dict]:
    """The exit code of `merge`, and what `verify` says of it."""
    adapter, base, made = w.root / "adapter", w.root / "base", w.root / out
    code, _ = said_by("merge", adapter, "--base", base, "--out", made, "--recipe", recipe, *more)
    if code:
        return code, {}
    _, said = said_by("verify", adapter, made, "--base", base, "--json")
    return code, json.loads(said)


@BITS
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "llama_cpp"])
def test_what_a_recipe_writes_is_verified_and_known_again(tmp_path: Path, recipe: str, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    code, found = merged(world(tmp_path, 0.02, dtype), recipe)
    assert (code, found["holds"]) == (0, True), found
    assert found["replayed"][recipe] == 1.0


def test_plain_and_safe_merges_are_told_apart_in_16_bits(tmp_path: Path) -> None:
    w = world(tmp_path, 0.2, "float16")
    for recipe, other in (("peft", "peft_safe"), ("peft_safe", "peft")):
        shares = merged(w, recipe, recipe)[1]["replayed"]
        assert shares[other] < 0.99 < shares[recipe] == 1.0


def test_a_merge_written_out_by_hand_is_known(tmp_path: Path) -> None:
    w = world(tmp_path, 0.2, "float16")
    _, found = w.verified({**w.base, NAME: w.base[NAME] + w.change().astype(np.float16)})
    assert found["replayed"]["peft_safe"] == 1.0
    assert found["replayed"]["peft"] < 0.99


def test_a_merge_to_16_bits_of_a_wider_base_is_said_to_be_of_another_type(tmp_path: Path) -> None:
    _, found = merged(world(tmp_path), "llama_cpp")
    assert {tensor["fault"] for tensor in found["tensors"]} == {"recast"}


def test_what_lies_beside_the_weights_is_copied(tmp_path: Path) -> None:
    w = world(tmp_path)
    (w.root / "base" / "tokenizer.json").write_text("{}")
    assert merged(w, "float64")[0] == 0
    assert {path.name for path in (w.root / "out").iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert open_weights(w.root / "out").metadata == {"format": "pt"}


def test_a_magnitude_and_rows_of_tokens_are_merged_too(tmp_path: Path) -> None:
    rng, module, table = np.random.default_rng(0), f"{LAYER}self_attn.k_proj", "model.embed_tokens"
    shapes = {f"{module}.weight": (12, 8), f"{table}.weight": (20, 8)}
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    leaves = {"lora_A.weight": (2, 8), "lora_B.weight": (12, 2), "lora_magnitude_vector": (12,)}
    tensors = {f"{module}.{leaf}": rng.standard_normal(shape).astype(np.float32) for leaf, shape in leaves.items()}
    tensors[f"{table}.token_adapter.trainable_tokens_delta"] = rng.standard_normal((2, 8)).astype(np.float32)
    write_adapter(tmp_path, tensors, r=2, use_dora=True, trainable_token_indices=[1, 5])
    write_file(tmp_path / "base" / "model.safetensors", base)
    code, found = merged(World(tmp_path, base, {}), "float64")
    assert (code, found["holds"]) == (0, True)


def test_a_merge_refuses_what_it_cannot_do_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = world(tmp_path)
    (w.root / "there").mkdir()
    for recipe, out, more, word in [
        ("peff", "out", (), "--recipe"),
        ("peft", "there", (), "exists"),
        ("peft", "out", ("--overwrite",), "--overwrite"),
    ]:
        assert merged(w, recipe, out, *more)[0] == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert word in said
    assert not (w.root / "out").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    w = world(tmp_path)
    monkeypatch.setattr("os.fsync", full)
    assert merged(w, "peft")[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_merge_may_be_written_in_another_type_and_in_shards(tmp_path: Path, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    w = world(tmp_path)
    ids = np.arange(5)
    (tmp_path / "base" / "model.safetensors").unlink()
    write_file(tmp_path / "base" / "model.safetensors", {**w.base, "ids": ids})
    about = {"model_type": "llama", "torch_dtype": "float32"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(about))
    code, found = merged(w, "float64", "out", "--dtype", dtype, "--shard", "0.00002")
    assert code == 0
    assert {t["fault"] for t in found["tensors"] if t["name"] != "ids"} == {"recast"}
    written = open_weights(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-0000*.safetensors"))) > 1
    assert {written[name].dtype.name for name in w.base} == {dtype}
    assert (written["ids"].dtype, np.asarray(written["ids"]).tolist()) == (ids.dtype, ids.tolist())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {**about, "torch_dtype": dtype}
    expected = w.base[NAME].astype(np.float64) + w.change()
    gap = abs(np.asarray(written[NAME]).astype(np.float64) - expected)
    assert gap.max() <= {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 2.0**-20}[dtype] * abs(expected).max()


def test_bad_types_and_shards_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = world(tmp_path)
    for more, word in (
        (("--dtype", "bf16"), "bfloat16"),
        (("--shard", "0"), "--shard"),
        (("--shard", "nan"), "--shard"),
    ):
        assert merged(w, "peft", "out", *more)[0] == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert word in said


def test_what_comes_to_stand_there_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rename replaces nothing, not even an empty folder."""
    from lora_np.merges import recipes

    w, write = world(tmp_path), recipes.write_tensors

    def slow(*arguments: object, **settings: object) -> object:
        (tmp_path / "out").mkdir()
        return write(*arguments, **settings)

    monkeypatch.setattr(recipes, "write_tensors", slow)
    assert merged(w, "peft")[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "out"}
    assert list((tmp_path / "out").iterdir()) == []
