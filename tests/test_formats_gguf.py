r"""GGUF files: as the gguf package writes and dequantises them, adapters as llama.cpp merges them; no trust."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_files import gguf_bytes, numbers, refused

gguf = pytest.importorskip("gguf", reason="the extra 'checkpoints' is not installed")

from lora_np.cli import code_of  # noqa: E402
from lora_np.formats.adapters import read_adapter  # noqa: E402
from lora_np.formats.gguf import KEPT, check_kinds, open_gguf  # noqa: E402

RNG = np.random.default_rng(0)
ABOUT = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama", "adapter.lora.alpha": 6.0}
PLAIN = ["F32", "F16", "F64", "BF16"]
QUANTISED = ["Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL"]


def written(path: Path, arrays: dict[str, tuple[np.ndarray, str]]) -> Path:
    """By the package itself."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "small")
    writer.add_array("tokenizer.ggml.tokens", [f"t{k}" for k in range(200)])
    writer.add_array("scores", [0.5] * 200)
    writer.add_bool("yes", True)
    for name, (array, kind) in arrays.items():
        number = gguf.GGMLQuantizationType[kind]
        if kind in ("F32", "F16", "F64"):
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, array, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "F64"])
def test_plain_numbers_are_read_as_the_package_writes_them(tmp_path: Path, kind: str) -> None:
    array = numbers(RNG, 3, 4, dtype={"F32": "float32", "F16": "float16", "F64": "float64"}[kind])
    tensors, settings = open_gguf(written(tmp_path / "f.gguf", {"a": (array, kind), "b": (array[:1], kind)}))
    assert list(tensors) == ["a", "b"]
    assert tensors["a"].shape == (3, 4)
    assert (np.asarray(tensors["a"]) == array).all()
    assert (tensors["a"][1:2] == array[1:2]).all()
    assert settings["general.name"] == "small"
    assert settings["yes"] is True
    assert settings["tokenizer.ggml.tokens"] == [f"t{k}" for k in range(KEPT)]
    assert settings["scores"] == [0.5] * KEPT


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_blocks_are_dequantised_row_by_row_when_they_are_used(tmp_path: Path, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    raw = np.frombuffer(RNG.bytes(3 * 2 * size), np.uint8).reshape(3, 2 * size).copy()
    raw.reshape(6, size)[:, :2] = np.array([1.0], np.float16).view(np.uint8)  # a scale that is finite
    if kind in ("Q5_1", "Q4_K"):
        raw.reshape(6, size)[:, 2:4] = np.array([0.5], np.float16).view(np.uint8)
    if kind == "Q6_K":
        raw.reshape(6, size)[:, -2:] = np.array([0.5], np.float16).view(np.uint8)
    tensors, _ = open_gguf(written(tmp_path / "f.gguf", {"a": (raw, kind)}))
    whole = gguf.dequantize(raw, number)
    assert tensors["a"].shape == (3, 2 * block) == whole.shape
    np.testing.assert_array_equal(np.asarray(tensors["a"]), whole)
    np.testing.assert_array_equal(tensors["a"][1:2], whole[1:2])
    np.testing.assert_array_equal(
        tensors["a"].numbers(block // 2, block + 3), whole.reshape(-1)[block // 2 : block + 3]
    )


@pytest.mark.parametrize(("kind", "block", "size"), [("Q8_1", 32, 40), ("Q8_K", 256, 292)])
def test_blocks_that_the_package_cannot_dequantise_are_refused_by_name(
    tmp_path: Path, kind: str, block: int, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] == (block, size)
    arrays = {
        "plain": (numbers(RNG, 2, 4, dtype="float32"), "F32"),
        "blk.0.attn_q.weight": (np.zeros((2, size), np.uint8), kind),
    }
    path = written(tmp_path / "f.gguf", arrays)
    tensors, _ = open_gguf(path)  # what is not used may be of any type
    assert (np.asarray(tensors["plain"]) == arrays["plain"][0]).all()
    refused(lambda: np.asarray(tensors["blk.0.attn_q.weight"]), f"{path}: blocks of type {kind} are not read")
    assert code_of(["generate", "--base", str(path), "--prompt", "a"]) == 2
    said = capsys.readouterr().err
    assert f"'blk.0.attn_q.weight': blocks of type {kind} are not read" in said
    assert said.count("\n") == 1
    check_kinds(path, open_gguf(written(tmp_path / "g.gguf", {"a": (np.zeros((1, 34), np.uint8), "Q8_0")}))[0])


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("alpha", "scale"), [(6.0, 3.0), (0.0, 1.0)])
def test_an_adapter_has_alpha_over_rank_and_one_where_alpha_is_zero(tmp_path: Path, alpha: float, scale: float) -> None:
    base = {"blk.0.attn_q.weight": draw(4, 4), "blk.0.ffn_up.weight": draw(6, 4), "token_embd.weight": draw(9, 4)}
    arrays = {"blk.0.ffn_up.weight.lora_a": draw(2, 4), "blk.0.ffn_up.weight.lora_b": draw(6, 2),
              "blk.0.attn_q.weight.lora_a": draw(2, 4), "blk.0.attn_q.weight.lora_b": draw(4, 2),
              "token_embd.weight.lora_a": draw(9, 2), "token_embd.weight.lora_b": draw(4, 2)}  # fmt: skip
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(arrays, {**ABOUT, "adapter.lora.alpha": alpha}))
    adapter = read_adapter(tmp_path / "a.gguf", base).checked()
    assert not adapter.findings
    for name, W in base.items():
        A, B = (arrays[f"{name}.lora_{x}"].astype(np.float64) for x in "ab")
        delta = scale * (A @ B.T if name.startswith("token") else B @ A)
        found = adapter.updates[name].expected(W, slice(0, len(W)))
        np.testing.assert_allclose(found, W.astype(np.float64) + delta, rtol=1e-12, atol=1e-12)


def test_experts_of_an_adapter_are_stacked(tmp_path: Path) -> None:
    name = "blk.0.ffn_up_exps.weight"
    base = {name: draw(3, 6, 4)}
    arrays = {f"{name}.lora_a": draw(3, 2, 4), f"{name}.lora_b": draw(3, 6, 2)}
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(arrays, ABOUT))
    update = read_adapter(tmp_path / "a.gguf", base).checked().updates[name]
    delta = 3.0 * arrays[f"{name}.lora_b"].astype(np.float64) @ arrays[f"{name}.lora_a"]
    np.testing.assert_allclose(update.change(slice(0, 18)).reshape(3, 6, 4), delta, rtol=1e-12, atol=1e-12)


def test_what_llama_cpp_leaves_out_is_a_finding(tmp_path: Path) -> None:
    arrays = {"a.weight.lora_a": draw(2, 4), "a.weight.lora_b": draw(6, 2), "output_norm.weight": draw(4)}
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(arrays, ABOUT))
    adapter = read_adapter(tmp_path / "a.gguf", {"a.weight": draw(6, 4)}).checked()
    assert [finding.kind for finding in adapter.findings] == ["ignored"]


@pytest.mark.parametrize("change", [{"general.type": "model"}, {"adapter.type": "dora"}, {"adapter.lora.alpha": "x"}])
def test_a_file_that_is_no_lora_adapter_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    arrays = {"a.weight.lora_a": draw(2, 4), "a.weight.lora_b": draw(6, 2)}
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(arrays, {**ABOUT, **change}))
    refused(lambda: read_adapter(tmp_path / "a.gguf"), next(iter(change)))


GOOD = gguf_bytes({"a": draw(2, 4), "b": draw(8)}, {"general.architecture": "llama", "list": ["x", "y"]})


def replaced(old: bytes, new: bytes) -> bytes:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


HEAD = b"GGUF" + struct.pack("<I", 3)
BROKEN = {
    "empty": b"",
    "no magic": b"FUGG" + GOOD[4:],
    "big-endian": b"GGUF" + struct.pack(">I", 3) + GOOD[8:],
    "version 1": b"GGUF" + struct.pack("<I", 1) + GOOD[8:],
    "2 to the 63 tensors": HEAD + struct.pack("<QQ", 1 << 63, 0),
    "2 to the 63 settings": HEAD + struct.pack("<QQ", 0, 1 << 63),
    "a text of 2 to the 62": HEAD + struct.pack("<QQQ", 0, 1, 1 << 62) + b"x",
    "a list of 2 to the 61 texts": HEAD + struct.pack("<QQQ", 0, 1, 1) + b"x" + struct.pack("<IIQ", 9, 8, 1 << 61),
    "a list of 2 to the 61 numbers": HEAD + struct.pack("<QQQ", 0, 1, 1) + b"x" + struct.pack("<IIQ", 9, 10, 1 << 61),
    "lists in lists": HEAD + struct.pack("<QQQ", 0, 1, 1) + b"x" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50,
    "a type unknown": replaced(b"list\t", b"list\x63"),
    "a tensor unknown": replaced(b"\1\0\0\0\0\0\0\0a\2", b"\1\0\0\0\0\0\0\0a\x09"),
    "blocks of a scalar": HEAD + struct.pack("<QQQ", 1, 0, 1) + b"x" + struct.pack("<IIQ", 0, 2, 0) + bytes(99),
    "too long": replaced(struct.pack("<QQ", 4, 2), struct.pack("<QQ", 1 << 40, 2)),
    "overflows": replaced(struct.pack("<QQ", 4, 2), struct.pack("<QQ", 1 << 63, 1 << 63)),
    "overlaps": GOOD.replace(struct.pack("<IQ", 0, 32), struct.pack("<IQ", 0, 0)),
    "cut": GOOD[:-1],
}  # fmt: skip


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_without_allocating_for_it(tmp_path: Path, data: bytes) -> None:
    assert data != GOOD
    path = tmp_path / "f.gguf"
    path.write_bytes(GOOD)
    assert np.asarray(open_gguf(path)[0]["a"]).shape == (2, 4)  # contrast
    path.write_bytes(data)
    tracemalloc.start()
    refused(lambda: open_gguf(path), str(path))
    assert tracemalloc.get_traced_memory()[1] < 300_000
    tracemalloc.stop()


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(0, len(GOOD), 5):
        (tmp_path / "f").write_bytes(GOOD[:length])
        refused(lambda: open_gguf(tmp_path / "f"))


def test_a_setting_or_a_tensor_that_stands_twice_is_refused(tmp_path: Path) -> None:
    twice = GOOD.replace(struct.pack("<Q", 1) + b"b", struct.pack("<Q", 1) + b"a")
    (tmp_path / "f").write_bytes(twice)
    refused(lambda: open_gguf(tmp_path / "f"), "twice")
    settings = gguf_bytes({"t": draw(2, 4)}, {"xx": "1", "xy": "2"}).replace(b"xy", b"xx")
    (tmp_path / "f").write_bytes(settings)
    refused(lambda: open_gguf(tmp_path / "f"), "twice")


def test_an_alignment_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for align in (0, 1 << 30):
        (tmp_path / "f").write_bytes(gguf_bytes({"a": draw(2, 4)}, {"general.alignment": align}))
        refused(lambda: open_gguf(tmp_path / "f"), "general.alignment")
    (tmp_path / "f").write_bytes(gguf_bytes({"a": draw(2, 4)}, {"general.alignment": 64}, align=64))
    assert (np.asarray(open_gguf(tmp_path / "f")[0]["a"]) == draw(2, 4)).all()


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(GOOD)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ImportError, match=r"lora_np\[checkpoints\]"):
        open_gguf(tmp_path / "f")
