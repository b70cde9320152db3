"""Tokenizers by one door: which one a folder has, what its ids mean, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import config, model

from lora_np.adaptation import Text
from lora_np.files import load_config, save_model
from lora_np.formats import gguf
from lora_np.tasks import Example
from lora_np.tokenizers import ByteTokenizer, Tokenizer, byte_count
from lora_np.training import evaluate
from lora_np.vocabularies import FileTokenizer, begun, files_of, tokenizer_of

library = pytest.importorskip("tokenizers", reason="the extra 'checkpoints' is not installed")

TEXTS = ("low lower lowest", "new newer newest é", "a name, and another name")
END = "<|end|>"


def trained(size: int = 300) -> Any:
    found = library.Tokenizer(library.models.BPE())
    found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(TEXTS, trainer)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of theirs that brings a vocabulary; its weights are not needed here."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 0}))
    trained().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_ours_are_read_as_bytes_and_theirs_by_their_vocabulary(folder: Path) -> None:
    assert isinstance(tokenizer_of(None), ByteTokenizer)
    assert isinstance(tokenizer_of(folder / "nowhere"), ByteTokenizer)
    found: Tokenizer = tokenizer_of(folder)
    assert isinstance(found, FileTokenizer)
    assert (found.vocab, found.end) == (trained().get_vocab_size(), 0)


def test_a_text_survives_the_round_trip_in_fewer_tokens_than_bytes(folder: Path) -> None:
    found = tokenizer_of(folder)
    for text in (*TEXTS, "zebra 123 ∑", ""):
        tokens = found.encode(text)
        assert tokens.dtype == np.int64
        assert found.decode(np.append(tokens, found.end)) == text
        assert byte_count(found, np.append(tokens, found.end)) == len(text.encode()) + 1
    assert len(found.encode(TEXTS[0])) < len(TEXTS[0].encode())
    with pytest.raises(ValueError, match="must be whole numbers"):
        found.decode([found.vocab])


def test_a_text_that_spells_its_own_end_or_is_no_text_is_refused(folder: Path) -> None:
    found = tokenizer_of(folder)
    with pytest.raises(ValueError, match="marks its end"):
        found.encode(f"a{END}b")
    with pytest.raises(ValueError, match="lone surrogate"):
        found.encode("a\ud800")


def test_the_end_is_what_the_folder_names(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="which token ends a text"):
        tokenizer_of(folder)
    word = trained().id_to_token(7)
    (folder / "tokenizer_config.json").write_text(json.dumps({"sep_token": {"content": word}}))
    assert tokenizer_of(folder).end == 7
    (folder / "tokenizer_config.json").write_text(json.dumps({"sep_token": word, "eos_token": END}))
    assert tokenizer_of(folder).end == 0


def test_a_vocabulary_that_is_missing_corrupted_or_too_large_is_refused(folder: Path) -> None:
    size = trained().get_vocab_size()
    tokenizer_of(folder, config(vocab=size))
    with pytest.raises(ValueError, match=f"has {size} tokens, and the model knows {size - 1}"):
        tokenizer_of(folder, config(vocab=size - 1))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        tokenizer_of(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="needs its tokenizer"):
        tokenizer_of(folder)


def test_a_text_that_goes_on_begins_as_its_vocabulary_begins_one(folder: Path) -> None:
    assert begun(ByteTokenizer(), "ab").tolist() == [0, 97, 98]
    found = tokenizer_of(folder)
    assert np.array_equal(begun(found, "low"), found.encode("low"))
    assert begun(found, "").tolist() == [0]
    changed = trained()
    changed.post_processor = library.processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    changed.save(str(folder / "tokenizer.json"))
    again = tokenizer_of(folder)
    assert begun(again, "low").tolist() == [0, *found.encode("low")]
    assert np.array_equal(again.encode("low"), found.encode("low"))


def test_bits_are_counted_over_the_bytes_of_the_references_and_their_ends(folder: Path) -> None:
    from builders import model

    found = tokenizer_of(folder)
    node = model(vocab=found.vocab, context=40)
    text = Text.of([Example("low", t) for t in TEXTS], node, tokenizer=found)
    tokens = sum(len(found.encode(t)) + 1 for t in TEXTS)
    size = sum(len(t.encode()) + 1 for t in TEXTS)
    nats = evaluate(node, batches_of(text)) * tokens
    assert tokens < size
    assert text.bits_per_byte(node) == pytest.approx(nats / np.log(2.0) / size, rel=1e-12)


def batches_of(text: Text) -> Any:
    from lora_np.tasks import epoch

    return epoch(text.sequences, text.batch_size, text.tokenizer.end)


# ---------------------------------------------------------------------------------------------------------- GGUF


def settings(**changes: Any) -> dict[str, Any]:
    about = json.loads(trained().to_str())["model"]
    words = sorted(about["vocab"], key=about["vocab"].get)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in about["merges"]]
    kinds = [3 if word == END else 1 for word in words]
    found = {"model": "gpt2", "pre": "gpt-2", "tokens": words, "merges": merges, "token_type": kinds, "eos_token_id": 0}
    return {f"tokenizer.ggml.{name}": value for name, value in {**found, **changes}.items()}


def test_the_vocabulary_of_a_gguf_file_gives_the_same_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "open_gguf", lambda path, whole: ({}, settings()))
    found, theirs = tokenizer_of("model.gguf"), tokenizer_of(folder)
    for text in (*TEXTS, "12 34é"):
        assert np.array_equal(found.encode(text), theirs.encode(text))
        assert found.decode(found.encode(text)) == text
    with pytest.raises(ValueError, match="marks its end"):
        found.encode(END)
    monkeypatch.setattr(gguf, "open_gguf", lambda path, whole: ({}, settings(pre="smollm")))
    assert len(tokenizer_of("model.gguf").encode("1234")) == 4  # digit by digit


@pytest.mark.parametrize("of_gguf", [False, True])
def test_a_vocabulary_written_beside_a_model_of_ours_is_read_again(
    of_gguf: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "open_gguf", lambda path, whole: ({}, settings(pre="smollm")))
    first = tokenizer_of("model.gguf" if of_gguf else folder)
    save_model(tmp_path / "ours", model(0, vocab=first.vocab), vocabulary=files_of(first))
    again = tokenizer_of(tmp_path / "ours", load_config(tmp_path / "ours"))
    assert isinstance(again, FileTokenizer)
    assert (again.end, again.vocab) == (first.end, first.vocab)
    for text in (*TEXTS, "12 34é"):
        assert np.array_equal(again.encode(text), first.encode(text))
        assert np.array_equal(begun(again, text), begun(first, text))
        assert again.decode(again.encode(text)) == text
    save_model(tmp_path / "ours", model(0, vocab=256), overwrite=True)  # which knows its files, and leaves none behind
    assert isinstance(tokenizer_of(tmp_path / "ours"), ByteTokenizer)
    assert files_of(ByteTokenizer()) == {}


WRONG = {
    "another kind": ({"model": "llama"}, "only vocabularies of byte pairs"),
    "no words": ({"tokens": None}, "only vocabularies of byte pairs"),
    "cut otherwise": ({"pre": "llama-bpe"}, "known are gpt-2"),
    "no end": ({"eos_token_id": None}, "eos_token_id must be one"),
    "an end beyond": ({"eos_token_id": 10**6}, "eos_token_id must be one"),
}


@pytest.mark.parametrize(("changes", "word"), WRONG.values(), ids=WRONG)
def test_a_vocabulary_that_is_not_read_is_refused(
    changes: dict[str, Any], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "open_gguf", lambda path, whole: ({}, settings(**changes)))
    with pytest.raises(ValueError, match=word):
        tokenizer_of("model.gguf")
