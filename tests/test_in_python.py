"""What a person in Python expects: a model that says its tree, text in and out, own gradients checked, plain paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import autograd.numpy as anp
import numpy as np
import pytest
from builders import adapted, model, moved

from lora_np import LoraConfig, TrainingConfig, adapt, generate, gradcheck, operation
from lora_np.adaptation import DataConfig, adapt_to_file, run
from lora_np.conformance.files import read_vectors
from lora_np.data import read_file
from lora_np.files import load_adapter, load_model, read_arrays, save_model, write_arrays
from lora_np.halving import in_16_bits
from lora_np.methods import METHODS
from lora_np.parameters import count, outline, walk
from lora_np.tasks.batches import prompt_tokens
from lora_np.tokenizers import ByteTokenizer, begun

BYTES: dict[str, Any] = {"vocab": 256, "context": 64, "d_model": 8}

# a model in words

TREE = """\
Transformer of 2,040 numbers, float64
  config            TransformerConfig(vocab=11, context=12, d_model=8, layers=2, heads=2)
  tokens            Embedding(W 11×8)
  positions         Embedding(W 12×8)
  blocks.0…1        Block
    attention_norm  LayerNorm(gamma 8, beta 8)
    attention       Attention(heads=2)
      query         Linear(W 8×8, b 8)
      key           Linear(W 8×8, b 8)
      value         Linear(W 8×8, b 8)
      output        Linear(W 8×8, b 8)
    mlp_norm        LayerNorm(gamma 8, beta 8)
    mlp             MLP
      up            Linear(W 32×8, b 32)
      down          Linear(W 8×32, b 8)
  norm              LayerNorm(gamma 8, beta 8)"""


def test_a_model_says_its_tree_with_equal_blocks_once() -> None:
    said = repr(model())
    assert said == TREE.replace("2,040", f"{count(model()):,}")
    assert repr(model(layers=12)).count("\n") == said.count("\n")
    assert "blocks.0…11" in repr(model(layers=12))


def test_what_stands_around_is_shown_and_blocks_that_differ_are_apart() -> None:
    said = repr(adapted(model(layers=4), targets=("blocks.1.attention.query", "blocks.2.attention.query")))
    assert re.findall(r"blocks\.\S+", said) == ["blocks.0", "blocks.1…2", "blocks.3"]
    assert "query         LoraLinear(A 2×8, B 8×2, scaling=1.5)" in said
    assert "base        Linear(W 8×8, b 8)" in said
    assert f"{count(adapted(model())):,} numbers" in repr(adapted(model()))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_every_array_it_trains(name: str) -> None:
    base = model(d_model=16, context=24)
    settings: dict[str, Any] = {"vera": {"rank": 8}, "compacter": {"n": 2}}.get(name, {})
    node = adapt(base, METHODS[name](**settings), np.random.default_rng(0))
    said, shapes = repr(node), {array.shape for array in METHODS[name](**settings).trained(node).values()}
    for shape in shapes:
        assert "×".join(map(str, shape)) in said
    assert len(said.splitlines()) < 60
    for path, part in walk(node):
        if hasattr(part, "__dataclass_fields__") and path and "config" not in path:
            assert repr(part) == outline(part), path
            assert "array(" not in repr(part)


def test_parts_and_what_is_held_in_16_bits_say_themselves() -> None:
    node = model(dtype=np.float32)
    assert repr(node.blocks[0].mlp.up) == "Linear(W 32×8, b 32)"
    assert repr(node.blocks[0].attention).splitlines()[0] == "Attention(heads=2) of 288 numbers, float32"
    assert repr(in_16_bits(node, "bfloat16")).splitlines()[0].endswith("bfloat16, float32")
    assert "\n  head" not in repr(node)  # it is the table


# text in, text out


def test_text_gives_the_text_that_its_tokens_give() -> None:
    node, bytes_ = model(0, np.float32, **BYTES), ByteTokenizer()
    for answer, given in ((False, begun(bytes_, "Hé")), (True, prompt_tokens("Hé", bytes_))):
        found = generate(node, "Hé", 12, answer=answer)
        assert isinstance(found, str)
        tokens = list(generate(node, given, 12, end=bytes_.end))
        assert found == bytes_.decode(tokens)
        assert tokens, "a model that says nothing proves nothing"
    rng = np.random.default_rng
    drawn = generate(node, "Hé", 12, temperature=1.0, rng=rng(1))
    assert drawn == generate(node, "Hé", 12, temperature=1.0, rng=rng(1), tokenizer=bytes_)
    assert drawn != generate(node, "Hé", 12, temperature=1.0, rng=rng(2))


class Letters(ByteTokenizer):
    """A vocabulary of its own, with a beginning."""

    def begun(self, text: str) -> Any:
        return np.array([1, *self.encode(text)])


def test_the_vocabulary_decides_how_a_text_begins() -> None:
    node, letters = model(0, np.float32, **BYTES), Letters()
    assert begun(letters, "ab").tolist() == [1, 97, 98]
    expected = letters.decode(list(generate(node, np.array([1, 97, 98]), 8, end=letters.end)))
    assert generate(node, "ab", 8, tokenizer=letters) == expected


def test_text_without_a_tokenizer_that_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="reads 11 tokens, which are no bytes: pass tokenizer="):
        generate(model(), "ab", 3)
    with pytest.raises(ValueError, match="the tokenizer has 256 tokens, and the model knows 11"):
        generate(model(), "ab", 3, tokenizer=ByteTokenizer())
    with pytest.raises(ValueError, match="belong to a prompt that is text"):
        generate(model(), np.array([1]), 3, tokenizer=ByteTokenizer())  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="temperature"):
        generate(model(0, np.float32, **BYTES), "ab", 3, temperature=-1.0)


# one's own operation


def softplus_forward(x: Any, scale: Any, /, *, wanted: Any) -> Any:
    return scale * np.log1p(np.exp(x)), (x, scale)


def softplus_backward(saved: Any, dy: Any, wanted: Any) -> Any:
    x, scale = saved
    return [dy * scale / (1.0 + np.exp(-x)) for _ in wanted]


def softplus(x: Any, scale: Any) -> Any:
    return scale * anp.log(1.0 + anp.exp(x))


POINT = {"x": np.linspace(-2.0, 2.0, 6).reshape(2, 3), "scale": 3}


def test_ones_own_operation_is_proved_by_three_witnesses() -> None:
    report = gradcheck(operation(softplus_forward, softplus_backward), softplus, POINT)
    assert report.holds
    assert [(row.case, row.array, row.shape, row.verdict) for row in report.rows] == [
        ("softplus", "x", (2, 3), "equal")
    ]
    assert str(report) == "x (2, 3): equal"
    single = {**POINT, "x": POINT["x"].astype(np.float32)}  # checked in float64 all the same
    assert gradcheck(operation(softplus_forward, softplus_backward), softplus, single).holds


WRONG = {
    "another sign": lambda s, dy, wanted: [-g for g in softplus_backward(s, dy, wanted)],
    "the factor forgotten": lambda s, dy, wanted: [g / 3.0 for g in softplus_backward(s, dy, wanted)],
    "dy forgotten": lambda s, dy, wanted: softplus_backward(s, np.ones_like(dy), wanted),
    "off by 1e-8": lambda s, dy, wanted: [g * (1.0 + 1e-8) for g in softplus_backward(s, dy, wanted)],
    "transposed": lambda s, dy, wanted: [g.T for g in softplus_backward(s, dy, wanted)],
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_planted_fault_in_it_is_found(fault: str) -> None:
    report = gradcheck(operation(softplus_forward, WRONG[fault]), softplus, POINT)
    assert not report.holds
    assert str(report).startswith("x (2, 3): different: hand and textbook ")


def test_a_reference_of_another_function_is_refused() -> None:
    ours = operation(softplus_forward, softplus_backward)
    with pytest.raises(ValueError, match=r"differ by 1: both must compute the same function"):
        gradcheck(ours, lambda x, scale: softplus(x, scale) + 1.0, POINT)
    with pytest.raises(ValueError, match=r"the operation gives shape \(2, 3\), its reference \(\)"):
        gradcheck(ours, lambda x, scale: anp.sum(softplus(x, scale)), POINT)
    with pytest.raises(ValueError, match="floating point"):
        gradcheck(ours, softplus, {"x": np.arange(3), "scale": 3})
    with pytest.raises(ValueError, match="floating point"):
        gradcheck(ours, softplus, {"x": np.array([1.0, np.nan]), "scale": 3})
    with pytest.raises(ValueError, match="a point"):
        gradcheck(ours, softplus, [1.0])  # type: ignore[call-overload]


# plain paths


def test_every_path_may_be_plain_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = "".join(f"question {i}\tanswer {i % 3}\n" for i in range(12))
    for name in ("pairs.tsv", "other.tsv"):
        (tmp_path / name).write_text(pairs)
    base, training = model(0, np.float32, **BYTES), TrainingConfig(steps=2)
    data = DataConfig(batch_size=4, validation="other.tsv")
    assert data == DataConfig(batch_size=4, validation=Path("other.tsv"))
    result = adapt_to_file("pairs.tsv", "out", base, LoraConfig(rank=2), training, data)
    assert (result.train, result.held_out) == (12, 12)
    again = adapt_to_file(Path("pairs.tsv"), Path("out2"), base, LoraConfig(rank=2), training, data)
    assert again.after == result.after
    node, method = load_adapter("out", base)
    train, held_out, _ = read_file("pairs.tsv", data, base, method)
    (tmp_path / "folder").mkdir()
    run(train.batches, held_out.bits_per_byte, base, method, training, "folder", identity={"a": 1})
    assert (tmp_path / "folder" / "adapter.safetensors").exists()
    save_model("model", base)
    assert np.array_equal(load_model("model").tokens.W, base.tokens.W)
    write_arrays("x.safetensors", {"x": np.ones(2, np.float32)}, {})
    assert read_arrays("x.safetensors")[0]["x"].tolist() == [1.0, 1.0]
    assert moved(node) is not node


def test_vectors_are_read_from_plain_text() -> None:
    from lora_np.conformance.files import FOLDER

    assert read_vectors(str(FOLDER)).digest == read_vectors(FOLDER).digest
