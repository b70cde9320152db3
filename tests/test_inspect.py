"""`inspect`: facts that can be counted by hand, and one finding for each oddity that is planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from foreign_world import ALPHA, RANK, D, Q, command, said_by, world, write_adapter
from formats_files import write_file
from shared_data import shared_data

NAME = f"{Q}.weight"


def test_an_adapter_is_described_by_ranks_scales_and_singular_values(tmp_path: Path) -> None:
    w = world(tmp_path, 0.1)
    code, found = command("inspect", tmp_path / "adapter", "--base", tmp_path / "base")
    (fact,) = found["updates"]
    S = np.linalg.svd(w.change().astype(np.float64), compute_uv=False)
    assert (code, found["findings"], found["format"]) == (0, [], "peft")
    assert (fact["name"], fact["shape"], fact["ranks"], fact["scales"]) == (NAME, [D, D], [RANK], [ALPHA / RANK])
    assert fact["largest"] == pytest.approx(S[0], rel=1e-5)
    assert fact["smallest"] == pytest.approx(S[RANK - 1], rel=1e-5)
    assert fact["relative"] == pytest.approx(np.linalg.norm(w.change()) / np.linalg.norm(w.base[NAME]), rel=1e-5)


def test_without_a_base_it_says_what_the_adapter_alone_tells(tmp_path: Path) -> None:
    world(tmp_path)
    code, found = command("inspect", tmp_path / "adapter")
    assert (code, found["updates"][0]["relative"]) == (0, None)
    assert found["updates"][0]["largest"] > 0


def test_a_model_is_counted(tmp_path: Path) -> None:
    w = world(tmp_path)
    code, found = command("inspect", tmp_path / "base")
    assert (code, found["tensors"], found["parameters"]) == (0, 4, sum(a.size for a in w.base.values()))
    write_file(tmp_path / "broken" / "model.safetensors", {**w.base, "x": np.array([np.inf], np.float32)})
    code, found = command("inspect", tmp_path / "broken")
    assert (code, [(f["kind"], f["where"]) for f in found["findings"]]) == (1, [("not_finite", "x")])


def odd(kind: str, root: Path) -> None:
    """An adapter with this one oddity, beside the base of `world`."""
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((RANK, D)).astype(np.float32), rng.standard_normal((D, RANK)).astype(np.float32)
    leaves = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}
    config: dict = {}
    match kind:
        case "zero":
            leaves[f"{Q}.lora_B.weight"] = 0 * B
        case "not_finite":
            leaves[f"{Q}.lora_A.weight"] = np.where(A > 2, np.nan, A).astype(np.float32)
        case "alpha_missing":
            config["lora_alpha"] = None
        case "unknown_target":
            config["target_modules"] = ["q_proj", "no_such_proj"]
        case "untrained":
            config["target_modules"] = ["q_proj", "up_proj"]
        case "unknown_setting":
            config["something_new"] = True
        case "rank_above":
            leaves = {f"{Q}.lora_A.weight": np.tile(A, (20, 1)), f"{Q}.lora_B.weight": np.tile(B, (1, 20))}
            config["r"] = 20 * RANK
        case "swallowed":
            leaves[f"{Q}.lora_B.weight"] = np.float32(1e-9) * B
    write_adapter(root, leaves, **config)


ODDITIES = (
    "zero", "not_finite", "alpha_missing", "unknown_target", "untrained", "unknown_setting", "rank_above", "swallowed",
)  # fmt: skip


@pytest.mark.parametrize("kind", ODDITIES)
def test_each_oddity_is_found_and_said(tmp_path: Path, kind: str) -> None:
    base = world(tmp_path / "right").root / "base"
    odd(kind, tmp_path)
    code, found = command("inspect", tmp_path / "adapter", "--base", base)
    assert (code, {finding["kind"] for finding in found["findings"]}) == (1, {kind})
    assert all(finding["what"] and finding["where"] and finding["todo"] for finding in found["findings"])
    code, said = said_by("inspect", tmp_path / "adapter", "--base", base)
    assert code == 1
    assert "\n1 finding\n" in said


def test_a_folder_without_weights_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert said_by("inspect", folder)[0] == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_real_adapter_of_loralib_is_read() -> None:
    file = next(shared_data("roberta-lora-mnli").rglob("*.bin"))
    assert said_by("inspect", file)[0] == 2  # alpha is not in it
    code, found = command("inspect", file, "--alpha", 16)
    assert code in (0, 1)
    sums = [update for update in found["updates"] if update["ranks"]]
    assert (len(sums), {tuple(update["scales"]) for update in sums}) == (24, {(2.0,)})
