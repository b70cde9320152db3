"""Models of other software through the real command: adapted, asked, merged, counted, and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import model
from formats_files import write_file
from test_methods_command import refused
from test_vocabularies import trained

from lora_np.cli import code_of
from lora_np.files import load_model
from lora_np.formats import names
from lora_np.formats.huggingface import config_json
from lora_np.parameters import parameters

SHORT = ["--steps", "3", "--batch-size", "4"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Llama of theirs, its vocabulary beside it, and pairs; the command runs in it."""
    vocabulary = trained()
    node = model(vocab=vocabulary.get_vocab_size() + 3, context=40, architecture="llama", kv_heads=1, d_ff=12)
    (tmp_path / "theirs").mkdir()
    write_file(tmp_path / "theirs" / "model.safetensors", names.theirs(parameters(node), "llama", 2))
    sizes: dict[str, Any] = {name: getattr(node.config, name) for name in ("vocab", "context", "d_model", "layers")}
    sizes |= {"heads": 2, "kv_heads": 1, "d_ff": 12, "tied": True, "eps": 1e-5, "rope_base": 1e4}
    about = {**config_json(sizes, "llama"), "eos_token_id": 0}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(about))
    vocabulary.save(str(tmp_path / "theirs" / "tokenizer.json"))
    (tmp_path / "pairs.tsv").write_text("".join(f"low {i}\tnewest lowest {i % 3}\n" for i in range(8)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_of_theirs_is_adapted_asked_merged_and_verified(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--base", "theirs"]
    assert (
        code_of(["adapt", "pairs.tsv", "--out", "ad", "--rank", "2", "--targets", "attention+mlp", *base, *SHORT]) == 0
    )
    assert "bits per byte" in capsys.readouterr().out
    assert code_of(["generate", "--prompt", "low", "--adapter", "ad", "--tokens", "5", *base]) == 0
    assert code_of(["generate", "--prompt", "low", "--raw", "--tokens", "5", *base]) == 0
    assert code_of(["merge", "ad", "--out", "merged", *base]) == 0
    capsys.readouterr()
    assert code_of(["verify", "ad", "merged", *base]) == 0
    assert "EQUAL" in capsys.readouterr().out
    assert load_model("merged").config == load_model("theirs").config


def test_what_a_method_costs_is_counted_on_the_sizes_of_a_folder(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(["params", "theirs", "--rank", "2", "--targets", "qv", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["trained"] == report["counted"] == 2 * 2 * ((8 + 8) + (8 + 4))
    assert code_of(["params", "theirs", "--compare", "--json"]) == 0
    offers = json.loads(capsys.readouterr().out)["methods"]
    assert next(offer for offer in offers if offer["name"] == "bitfit")["note"].endswith("has none")


def test_folders_of_theirs_that_cannot_be_run_are_refused_in_one_line(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about, ask = desk / "theirs" / "config.json", ["generate", "--prompt", "low", "--base", "theirs"]
    right = json.loads(about.read_text())
    for change, word in (
        ({"model_type": "bloom"}, "llama"),
        ({"hidden_size": 12}, "its description says"),
        ({"eos_token_id": None}, "which token ends a text"),
    ):
        about.write_text(json.dumps({**right, **change}))
        assert word in refused(*ask, capsys=capsys)
    about.write_text(json.dumps(right))
    (desk / "theirs" / "tokenizer.json").unlink()
    assert "needs its tokenizer" in refused(*ask, capsys=capsys)
