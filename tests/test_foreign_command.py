"""Models of other software through the real command: adapted, asked, merged, counted, and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model
from formats_files import write_file
from test_methods_command import refused
from test_vocabularies import trained

from lora_np.cli import code_of
from lora_np.files import load_model, read_arrays
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


def test_a_classifier_of_theirs_answers_with_its_own_labels_and_is_adapted_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = {"0": "no", "1": "perhaps", "2": "yes"}
    classifier(tmp_path / "cls", id2label=labels)
    assert code_of(["generate", "--base", "cls", "--prompt", "a b"]) == 0
    said = capsys.readouterr().out.split()
    assert {word.rstrip(":") for word in said if not word.startswith("0.")} == set(labels.values())
    (tmp_path / "seen.tsv").write_text("a b\tyes\nb c\tno\n" * 6)  # perhaps does not occur, and stays a class
    line = ["--base", "cls", "--task", "classify", "--rank", "2", "--steps", "1"]
    assert code_of(["adapt", "seen.tsv", "--out", "out", *line]) == 0
    assert code_of(["merge", "out", "--base", "cls", "--out", "merged"]) == 0
    assert load_model("merged").config.labels == tuple(labels.values())
    capsys.readouterr()
    (tmp_path / "strange.tsv").write_text("a b\tyes\nb c\tnever\n" * 6)
    refused = {"strange.tsv": "'never', which is none of", "seen.tsv": "reads the first"}
    for file, message in refused.items():
        more = ["--reads", "mean"] if file == "seen.tsv" else []
        assert code_of(["adapt", file, "--out", "other", *line, *more]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("reads", "kept"), [("first", True), ("mean", False)])
def test_a_head_that_reads_the_first_starts_with_the_pooler_of_its_base(
    reads: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = classifier(tmp_path / "enc", headless=True)
    (tmp_path / "seen.tsv").write_text("a b\tyes\nb c\tno\n" * 6)
    line = ["adapt", "seen.tsv", "--base", "enc", "--out", "out", "--task", "classify", "--reads", reads]
    assert code_of([*line, "--rank", "2", "--steps", "1", "--learning-rate", "1e-6"]) == 0
    assert ("starts with the pooler of the base" in capsys.readouterr().out) == kept
    found = read_arrays(tmp_path / "out" / "adapter.safetensors")[0]
    pooler = parameters(whole)["head.pooler.W"]
    assert ("head.pooler.W" in found) == kept
    if kept:
        assert abs(found["head.pooler.W"] - pooler).max() < 1e-5  # one step of that rate
        assert abs(pooler).max() > 0.1


def classifier(folder: Path, *, headless: bool = False, **about: Any) -> Any:
    """A small BERT of theirs with a vocabulary, with a head of three classes or without its last map."""
    folder.mkdir()
    sizes: dict[str, Any] = {"vocab": 12, "context": 16, "d_model": 8, "layers": 1, "heads": 2, "d_ff": 6}
    node = model(dtype=np.float32, **sizes, architecture="bert", causal=False, types=2, classes=3, eps=1e-12)
    arrays = names.theirs(parameters(node), "bert", 1)
    write_file(folder / "model.safetensors", {n: a for n, a in arrays.items() if not headless or "classifier" not in n})
    config = config_json({**sizes, "causal": False, "tied": True, "eps": 1e-12, "mlp": "gelu"}, "bert")
    (folder / "config.json").write_text(json.dumps({**config, **about}))
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "a", "b", "c"])}
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    vocabulary.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    vocabulary.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"sep_token": "[SEP]"}))
    return node
