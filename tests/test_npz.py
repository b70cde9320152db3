"""Models in NumPy's .npz: what is read is what was stored, whoever turns neighbours; and nothing is ever unpickled."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model, tokens_of

from lora_np.files import load_model
from lora_np.formats import names, npz
from lora_np.formats.npz import open_npz
from lora_np.loading import NPZ_SETTINGS
from lora_np.model import Transformer
from lora_np.parameters import parameters
from lora_np.vocabularies import tokenizer_of

SIZES: dict[str, Any] = {"d_model": 16, "heads": 4, "kv_heads": 2, "d_ff": 6, "architecture": "llama", "theta": 300.0}


def stored(path: Path, **changes: Any) -> Transformer:
    """A Llama of ours as such a file: matrices (d_in, d_out), and pairs of neighbours where this package has halves."""
    node = model(dtype=np.float32, **SIZES)

    def order(name: str, W: Any) -> Any:
        if "W_Q" not in name and "W_K" not in name:
            return W
        return W.T.reshape(-1, 2, 2, len(W)).swapaxes(1, 2).reshape(W.T.shape).T

    arrays = {n: order(n, a) for n, a in names.theirs(parameters(node), "llama of glassllm", 2).items()}
    about = {theirs: getattr(node.config, ours) for ours, theirs in NPZ_SETTINGS.items()} | changes
    np.savez_compressed(path, **{npz.SETTINGS: json.dumps(about)}, **arrays)
    return node


def test_a_file_is_the_model_that_was_stored_in_it(tmp_path: Path) -> None:
    node = stored(tmp_path / "m.npz")
    read = load_model(tmp_path / "m.npz")
    assert read.config == node.config
    assert np.array_equal(read(tokens_of(node)), node(tokens_of(node)))


def wrong(path: Path, **members: Any) -> None:
    np.savez(path, **members)


def test_what_is_wrong_with_a_file_is_said_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    cases: list[tuple[Any, str]] = [
        (lambda: path.write_bytes(b"PK\3\4 and no more"), "no .npz file"),
        (lambda: wrong(path, a=np.zeros(2)), "holds no __config__"),
        (lambda: wrong(path, **{npz.SETTINGS: "[1]"}), "must hold a JSON object"),
        (lambda: wrong(path, **{npz.SETTINGS: "{}", "a": np.array([1])}), "floating-point numbers"),
        (
            lambda: wrong(path, **{npz.SETTINGS: "{}", "a": np.array([{}], object)}),
            "holds a pickle, which is never run",
        ),
        (lambda: stored(path, n_layers="2"), "n_layers is missing or no size"),
        (lambda: stored(path, n_heads=3), "heads must divide"),
        (lambda: stored(path, n_layers=1), "which no llama of glassllm model of 1 blocks has"),
    ]
    for make, word in cases:
        make()
        with pytest.raises(ValueError, match=word) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)


def test_a_member_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path / "m.npz")
    monkeypatch.setattr(npz, "MOST", 1000)
    monkeypatch.setattr(npz, "_unpacked", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match="unpacks to more than 1000 bytes"):
        open_npz(tmp_path / "m.npz")


def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(4))
    data = (tmp_path / "a.npy").read_bytes().replace(b"(4,)", b"(9,)")
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(ValueError, match="does not fill its 32 bytes"):
        open_npz(tmp_path / "m.npz")


def test_a_vocabulary_of_characters_reads_and_writes_text(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra 'checkpoints' is not installed")
    (tmp_path / "m.npz").touch()
    about: dict[str, Any] = {"alphabet": ["a", "b", "▁", "\n"], "merges": [["▁", "a"], ["▁a", "b"]]}
    beside = tmp_path / "m.tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"m\.tokenizer\.json is missing"):
        tokenizer_of(tmp_path / "m.npz")
    beside.write_text(json.dumps(about))
    tokenizer = tokenizer_of(tmp_path / "m.npz")
    assert tokenizer.encode("ab ab  a\nz").tolist() == [4, 5, 9, 6, 8, 7, 1]
    assert tokenizer.decode([4, 5, 9, 6, 8, 7]) == "ab ab  a\n"
    assert (tokenizer.vocab, tokenizer.end) == (10, 3)
    for change, word in (({"merges": [["x", "a"]]}, "not in its vocabulary"), ({"alphabet": [1]}, "must hold an alph")):
        beside.write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match=word):
            tokenizer_of(tmp_path / "m.npz")
