r"""The best adapter of rank r of a full fine-tuning: as near as can be, and what it leaves out is said."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model
from foreign_world import said_by
from formats_files import refused, write_file
from test_converting import LAYERS, MODULES, base_of, draw, of_gguf, of_mlx, of_peft

from lora_np.converting import extract
from lora_np.converting.lowrank import leading, ritz_vectors
from lora_np.files import load_adapter, load_model, save_model
from lora_np.formats.tensors import dtype_of, open_tensors
from lora_np.lora import adapters, delta
from lora_np.parameters import parameters, with_parameters


def spectrum(n: int, width: int, decay: float, seed: int = 0) -> np.ndarray:
    """A matrix with singular values decay^i; 1: all of one size, the hardest for an iteration."""
    k = min(n, width)
    left, _ = np.linalg.qr(draw(n, k, seed=seed, dtype=np.float64))
    right, _ = np.linalg.qr(draw(width, k, seed=seed + 1, dtype=np.float64))
    return (left * decay ** np.arange(k)) @ right.T


MATRICES = {
    "tall": spectrum(300, 40, 0.9), "wide": spectrum(30, 500, 0.9), "square": spectrum(120, 120, 0.97),
    "one size": spectrum(90, 80, 1.0), "noise": draw(150, 110, dtype=np.float64), "steep": spectrum(60, 70, 0.3),
    "of rank 3": draw(80, 3, dtype=np.float64) @ draw(3, 60, dtype=np.float64),
    "one row": draw(1, 50, dtype=np.float64),
    "ends with zeros": np.pad(draw(20, 20, dtype=np.float64), ((0, 80), (0, 30))),
}  # fmt: skip


@pytest.mark.parametrize("rank", [1, 4, 16, 1000])
@pytest.mark.parametrize("name", MATRICES)
def test_no_matrix_of_that_rank_is_nearer(name: str, rank: int) -> None:
    """Against LAPACK's SVD of the whole matrix. The squares of the errors differ by 10⁻⁸ of the whole at most."""
    D = MATRICES[name]
    U, S, V = leading(D, rank, np.random.default_rng(0))
    exact = np.linalg.svd(D, compute_uv=False)
    r = min(rank, *D.shape)
    assert (U.shape, S.shape, V.shape) == ((len(D), r), (r,), (D.shape[1], r))
    error, best = ((D - (U * S) @ V.T) ** 2).sum(), (exact[r:] ** 2).sum()
    assert -1e-12 <= (error - best) / (D**2).sum() <= 1e-8
    assert abs(U.T @ U - np.eye(r)).max() < 1e-9
    assert abs(V.T @ V - np.eye(r)).max() < 1e-9


@pytest.mark.parametrize("name", ["noise", "decays"])
@pytest.mark.parametrize("rank", [1, 8])
def test_a_basis_that_starts_anew_finds_what_the_whole_space_would(name: str, rank: int) -> None:
    """Relative to the optimum here, by (K3); the basis is at most a ninth of the space, and nowhere is there a gap."""
    D = draw(700, 600, dtype=np.float64) if name == "noise" else spectrum(700, 600, 0.99)
    V = ritz_vectors(D, rank, np.random.default_rng(1))
    exact = np.linalg.svd(D, compute_uv=False)
    error, best = (D**2).sum() - ((D @ V) ** 2).sum(), (exact[rank:] ** 2).sum()
    assert -1e-12 <= error / best - 1.0 <= 1e-8
    assert abs(V.T @ V - np.eye(rank)).max() < 1e-9


def test_a_search_that_ends_too_early_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would see of a looser (K3)."""
    from lora_np.converting import lowrank

    monkeypatch.setattr(lowrank, "SETTLED", 1e-4)
    D = draw(700, 600, dtype=np.float64)
    V = ritz_vectors(D, 8, np.random.default_rng(1))
    assert (D**2).sum() - ((D @ V) ** 2).sum() > (1 + 1e-6) * (np.linalg.svd(D, compute_uv=False)[8:] ** 2).sum()


def tuned(root: Path, changes: dict[str, np.ndarray], dtype: Any = np.float32) -> Path:
    base = {name: np.asarray(t) for name, t in open_tensors(base_of(root)).items()}
    arrays = {name: (a + changes[name].astype(np.float32) if name in changes else a).astype(dtype)
              for name, a in base.items()}  # fmt: skip
    write_file(root / "tuned" / "model.safetensors", arrays)
    (root / "tuned" / "config.json").write_text((root / "base" / "config.json").read_text())
    return root / "tuned"


def of_rank(rank: int) -> dict[str, np.ndarray]:
    """A change of low rank of every map, and one of the table."""
    shapes = {**MODULES, "model.embed_tokens": (20, 16)}
    return {f"{m}.weight": 0.1 * draw(s[0], rank, seed=k, dtype=np.float64) @ draw(rank, s[1], seed=k, dtype=np.float64)
            for k, (m, s) in enumerate(shapes.items())}  # fmt: skip


@pytest.mark.parametrize("to", ["peft", "mlx", "gguf", "lora_np"])
def test_a_change_of_low_rank_is_caught_whole_in_every_format(tmp_path: Path, to: str) -> None:
    if to == "gguf":
        pytest.importorskip("gguf")
    changes = of_rank(2)
    done = extract(base_of(tmp_path), tuned(tmp_path, changes), 2, tmp_path / "out", to=to)
    assert len(done.matrices) == len(changes)
    assert done.left == ()
    assert max(one.error for one in done.matrices) < 1e-4  # what float32 of W + D leaves of D
    updates = {name.removesuffix(".weight"): change for name, change in changes.items()}
    if to == "lora_np":
        adapted, _ = load_adapter(tmp_path / "out", load_model(tmp_path / "base"))
        found = {path: np.asarray(delta(module)) for path, module in adapters(adapted).items()}
        assert len(found) == len(updates)
        assert abs(found["tokens"] - updates["model.embed_tokens"]).max() < 1e-5
        assert abs(found["blocks.1.mlp.up"] - updates["model.layers.1.mlp.up_proj"]).max() < 1e-5
        return
    found = {"peft": of_peft, "mlx": of_mlx, "gguf": of_gguf}[to](tmp_path / "out", updates)
    for name, update in updates.items():
        assert abs(found[name] - update).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_error_of_each_tensor_is_that_of_the_singular_values_left_out(tmp_path: Path, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    changes = {f"{m}.weight": 0.1 * draw(*shape, seed=k) for k, (m, shape) in enumerate(MODULES.items())}
    folder = tuned(tmp_path, changes, dtype_of(dtype))
    before, after = open_tensors(tmp_path / "base"), open_tensors(folder)
    done = extract(tmp_path / "base", folder, 4, tmp_path / "out")
    names = {one.name for one in done.matrices}
    assert names >= set(changes)
    whole = rest = 0.0
    for one in done.matrices:
        D = np.asarray(after[one.name]).astype(np.float64) - np.asarray(before[one.name])
        S = np.linalg.svd(D, compute_uv=False)
        assert one.error == pytest.approx(np.sqrt((S[4:] ** 2).sum() / (S**2).sum()), rel=1e-6)
        assert one.largest == pytest.approx(S[0], rel=1e-6)
        assert one.norm == pytest.approx(np.linalg.norm(D), rel=1e-6)
        assert one.relative == pytest.approx(np.linalg.norm(D) / np.linalg.norm(before[one.name]), rel=1e-6)
        whole, rest = whole + (S**2).sum(), rest + (S[4:] ** 2).sum()
    assert done.error == pytest.approx(np.sqrt(rest / whole), rel=1e-6)


def test_what_is_no_matrix_is_named_and_a_rank_is_no_higher_than_a_matrix_allows(tmp_path: Path) -> None:
    up = "model.layers.0.mlp.up_proj.weight"
    changes = {"model.norm.weight": np.linspace(0, 1, 16), up: draw(24, 16)}
    done = extract(base_of(tmp_path), tuned(tmp_path, changes), 64, tmp_path / "out")
    assert [(one.name, one.rank) for one in done.matrices] == [(up, 16)]
    assert done.matrices[0].error < 1e-6
    assert [(one.name, one.shape) for one in done.left] == [("model.norm.weight", (16,))]
    assert done.unchanged == len(open_tensors(tmp_path / "base")) - 2
    code, said = said_by("extract", tmp_path / "base", tmp_path / "tuned", "--rank", "2", "--out", tmp_path / "again")
    assert code == 0
    assert "not carried: model.norm.weight (16), changed by" in said
    assert "1 matrix at rank 2" in said
    _, told = said_by(
        "extract", tmp_path / "base", tmp_path / "tuned", "--rank", "2", "--out", tmp_path / "b", "--json"
    )
    assert [one["name"] for one in json.loads(told)["left"]] == ["model.norm.weight"]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("to", ["peft", "lora_np"])
def test_models_of_ours_are_extracted_too(tmp_path: Path, architecture: str, to: str) -> None:
    base = model(architecture=architecture, context=8)
    save_model(tmp_path / "base", base)
    moved = {n: (a + 0.1 * draw(*a.shape, seed=len(n))).astype(a.dtype) for n, a in parameters(base).items()}
    save_model(tmp_path / "tuned", with_parameters(base, moved))
    done = extract(tmp_path / "base", tmp_path / "tuned", 99, tmp_path / "out", to=to)
    assert max(one.error for one in done.matrices) < 1e-5  # the rank is no limit here
    left = {one.name for one in done.left}
    assert "norm.gamma" in left
    assert ("positions.W" in left) == (to == "lora_np" and architecture == "gpt2")
    if to == "lora_np":
        adapted, _ = load_adapter(tmp_path / "out", load_model(tmp_path / "base"))
        for path, module in adapters(adapted).items():
            expected = moved[f"{path}.W"] - parameters(base)[f"{path}.W"]
            assert abs(np.asarray(delta(module)) - expected).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_more_than_three_times_the_largest_tensor_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Blocks are made small here, so that what is held of a whole tensor would show."""
    from lora_np.converting import extracting, lowrank
    from lora_np.merges import judging

    for module in (extracting, lowrank):
        monkeypatch.setattr(module, "ENTRIES", 1 << 11)
    monkeypatch.setattr(judging, "ENTRIES", 1 << 9)
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    shapes = {"a.wide.weight": (128, 2048), "a.tall.weight": (2048, 128)}
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for folder in ("base", "tuned"):
        arrays = {n: a + (folder == "tuned") * np.outer(a[:, 0], a[0]).astype(np.float32) for n, a in base.items()}
        stored = {n: a.astype(dtype_of(dtype)) for n, a in arrays.items()}
        write_file(tmp_path / folder / "model.safetensors", stored)
        (tmp_path / folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    largest = next(iter(stored.values())).nbytes
    del base, arrays, stored
    tracemalloc.start()
    done = extract(tmp_path / "base", tmp_path / "tuned", 2, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(one.error for one in done.matrices) < (1e-3 if dtype == "float32" else 0.2)
    assert peak < 3 * largest


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = of_rank(2)
    base, after = base_of(tmp_path), tuned(tmp_path, changes)
    arrays = {name: np.asarray(t) for name, t in open_tensors(base).items()}
    name = "model.layers.0.mlp.up_proj.weight"
    write_file(tmp_path / "other" / "model.safetensors", {**arrays, name: draw(7, 5)})
    write_file(tmp_path / "less" / "model.safetensors", {n: a for n, a in arrays.items() if n != name})
    write_file(tmp_path / "nan" / "model.safetensors", {**arrays, name: np.full((24, 16), np.nan, np.float32)})
    (tmp_path / "empty").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    for arguments, word in [
        ((base, after, "--rank", "0"), "--rank"),
        ((base, base), "before and after"),
        ((base, tmp_path / "other"), name),
        ((base, tmp_path / "less"), name),
        ((base, tmp_path / "nan"), "not finite"),
        ((base, tmp_path / "empty"), "no weights"),
        ((base, tmp_path / "nowhere"), "nowhere"),
        ((base, after, "--to", "kohya"), "peft"),
    ]:
        code, _ = said_by("extract", *arguments, "--out", tmp_path / "out")
        said = capsys.readouterr().err
        assert (code, said.count("\n")) == (2, 1), said
        assert word in said, said
        assert {path.name for path in tmp_path.iterdir()} == before
    refused(lambda: extract(base, after, 2, tmp_path / "empty"), "empty")
    (tmp_path / "same").mkdir()
    write_file(tmp_path / "same" / "model.safetensors", arrays)
    refused(lambda: extract(base, tmp_path / "same", 2, tmp_path / "out"), "nothing to extract")


def test_a_folder_of_weights_without_a_description_is_enough_for_peft(tmp_path: Path) -> None:
    base, after = base_of(tmp_path), tuned(tmp_path, of_rank(2))
    (base / "config.json").unlink()
    assert len(extract(base, after, 2, tmp_path / "out").matrices) == 5 * LAYERS + 1


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    base, after = base_of(tmp_path), tuned(tmp_path, of_rank(2))
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    code, _ = said_by("extract", base, after, "--rank", "2", "--out", tmp_path / "out")
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (2, 1), said
    assert "No space left on device" in said
    assert {path.name for path in tmp_path.iterdir()} == before
