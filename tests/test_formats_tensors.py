r"""Safetensors files: what is read stands in them, only what is asked for is read, and no header is believed."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import few_shapes, random_shapes
from formats_files import itemsize, numbers, refused, safetensors_bytes, write_file
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from lora_np.formats.disk import File
from lora_np.formats.tensors import DTYPES, MAX_HEADER, Stored, dtype_of, flat, open_tensors, read_file
from lora_np.formats.writing import CODES, write_tensors

PLAIN = [code for code in DTYPES if code not in ("BF16", "F8_E4M3", "F8_E5M2")]
EXTRA = [code for code in DTYPES if code not in PLAIN]


def one(code: str = "F32", shape: tuple[int, ...] = (2, 3), **changes: Any) -> dict[str, Any]:
    size = int(np.prod(shape)) * itemsize(code)
    return {"a": {"dtype": code, "shape": list(shape), "data_offsets": [0, size], **changes}}


# what is read is what was written


@pytest.mark.parametrize("code", [code for code in PLAIN if code != "C64"])  # the reference writes none of that
def test_every_type_is_read_as_the_reference_writes_it(tmp_path: Path, code: str) -> None:
    from safetensors.numpy import save

    array = np.arange(6).reshape(2, 3).astype(DTYPES[code][0])
    (tmp_path / "f").write_bytes(save({"b": array, "a": array.T.copy()}, {"who": "me"}))
    found = read_file(tmp_path / "f")
    assert found.metadata == {"who": "me"}
    assert (np.asarray(found["b"]) == array).all()
    assert (np.asarray(found["a"]) == array.T).all()
    assert found["b"].dtype == array.dtype


@pytest.mark.parametrize("code", EXTRA)
def test_types_that_numpy_does_not_know_are_read_through_ml_dtypes(tmp_path: Path, code: str) -> None:
    pytest.importorskip("ml_dtypes")
    array = np.array([0.0, 1.0, -2.0, 0.5], np.float32).astype(dtype_of(DTYPES[code][0]))
    write_file(tmp_path / "f.safetensors", {"a": array})
    found = read_file(tmp_path / "f.safetensors")["a"]
    assert found.dtype == array.dtype
    assert (found[1:3].astype(np.float32) == [1.0, -2.0]).all()


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    values = np.array([1.0, -3.5, 2.0**-126, np.inf], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    (tmp_path / "f").write_bytes(safetensors_bytes(one("BF16", (4,)), halves.tobytes()))
    assert (np.asarray(read_file(tmp_path / "f")["a"]).astype(np.float32) == values).all()


def test_without_ml_dtypes_a_header_is_read_and_numbers_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(safetensors_bytes(one("BF16", (4,)), bytes(8)))
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    found = read_file(tmp_path / "f")
    assert found["a"].shape == (4,)
    with pytest.raises(ImportError, match=r"lora_np\[checkpoints\]"):
        found["a"][:]


shapes = arrays_of.array_shapes(min_dims=0, min_side=0, max_side=5, max_dims=4)
names = st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__" and name.isprintable())
any_array = st.sampled_from(["float32", "float16", "int64", "uint8", "bool"]).flatmap(
    lambda kind: arrays_of.arrays(kind, shapes)
)


@few_shapes
@given(st.dictionaries(names, any_array, min_size=1, max_size=5), st.integers(1, 400))
def test_any_arrays_in_any_number_of_shards_are_read_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray], shard: int
) -> None:
    folder = tmp_path_factory.mktemp("m")
    layout = {name: (CODES[a.dtype.name], a.shape) for name, a in arrays.items()}
    files = write_tensors(folder, layout, lambda name: [arrays[name]], shard=shard)
    found = open_tensors(folder)
    assert set(found) == set(arrays)
    assert set(files) == set(folder.iterdir())
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        assert np.asarray(found[name]).tobytes() == np.ascontiguousarray(array).tobytes()


@random_shapes
@given(st.integers(0, 7), st.integers(0, 7), st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([1, 2, -1, 3]))
def test_a_slice_of_rows_is_that_of_the_array(
    tmp_path_factory: pytest.TempPathFactory, rows: int, width: int, start: int, stop: int, step: int
) -> None:
    array = np.arange(rows * width, dtype=np.float64).reshape(rows, width)
    path = write_file(tmp_path_factory.mktemp("m") / "f.safetensors", {"a": array})
    tensor = read_file(path)["a"]
    assert (tensor[start:stop:step] == array[start:stop:step]).all()
    assert tensor[start:stop:step].shape == array[start:stop:step].shape


def test_numbers_are_those_of_the_array_laid_out_row_by_row(tmp_path: Path) -> None:
    array = numbers(np.random.default_rng(0), 3, 4, 5)
    tensor = read_file(write_file(tmp_path / "f.safetensors", {"a": array}))["a"]
    assert (flat(tensor, 7, 23) == array.reshape(-1)[7:23]).all()
    assert (flat(array, 7, 23) == array.reshape(-1)[7:23]).all()
    with pytest.raises(TypeError, match="slice"):
        tensor[0]  # type: ignore[index]


def test_only_the_rows_that_are_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros((1000, 100), np.float32)
    tensor = read_file(write_file(tmp_path / "f.safetensors", {"a": array}))["a"]
    asked = []
    read = File.read
    monkeypatch.setattr(File, "read", lambda self, start, count: asked.append(count) or read(self, start, count))
    tensor[10:13]
    assert asked == [3 * 100 * 4]
    tracemalloc.start()
    tensor[990:]
    assert tracemalloc.get_traced_memory()[1] < 10 * 100 * 4 + 20_000
    tracemalloc.stop()


def test_a_written_file_is_what_the_reference_reads_with_the_metadata_of_transformers(tmp_path: Path) -> None:
    from safetensors import safe_open

    arrays = {
        "a": numbers(np.random.default_rng(0), 3, 2),
        "b": np.array([True, False]),
        "c": np.zeros((0, 2), np.float16),
    }
    write_file(tmp_path / "model.safetensors", arrays)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        for name, array in arrays.items():
            assert (file.get_tensor(name) == array).all()


def test_an_index_names_every_tensor_and_their_bytes(tmp_path: Path) -> None:
    arrays = {name: numbers(np.random.default_rng(0), 4, 4) for name in "abcde"}
    layout = {name: ("F32", a.shape) for name, a in arrays.items()}
    files = write_tensors(tmp_path, layout, lambda name: np.array_split(arrays[name], 3), shard=130)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 64
    assert sorted(index["weight_map"]) == list("abcde")
    assert [path.name for path in files[:-1]] == [f"model-{k:05d}-of-00003.safetensors" for k in (1, 2, 3)]


# whole or not at all


@pytest.mark.parametrize("fault", ["too few", "too many", "type", "raises"])
def test_numbers_that_do_not_fit_leave_nothing_behind(tmp_path: Path, fault: str) -> None:
    def blocks(name: str) -> list[np.ndarray]:
        if name == "a" or fault is None:
            return [np.zeros(4, np.float32)]
        if fault == "raises":
            raise OSError(28, "No space left on device")
        return [np.zeros({"too few": 3, "too many": 5}.get(fault, 4), np.float64 if fault == "type" else np.float32)]

    layout = {"a": ("F32", (4,)), "b": ("F32", (2, 2))}
    refused(lambda: write_tensors(tmp_path, layout, blocks, shard=16), "b" if fault != "raises" else "No space")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")

    class Full:
        def __init__(self, path: Any, *_: Any, **__: Any) -> None:
            Path(path).touch()
            self.file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115

        def __enter__(self) -> Any:
            return self.file

        def __exit__(self, *_: Any) -> None:
            self.file.close()

    import lora_np.formats.writing as writing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "open", Full, raising=False)
        with pytest.raises(OSError, match="No space left") as error:
            write_tensors(tmp_path, {"a": ("F32", (1,))}, lambda _: [np.zeros(1, np.float32)])
    assert str(tmp_path) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", {"a": np.zeros(2, np.float32)})
    before = (tmp_path / "model.safetensors").read_bytes()
    refused(lambda: write_file(tmp_path / "model.safetensors", {"a": np.ones(2, np.float32)}), "exists")
    assert (tmp_path / "model.safetensors").read_bytes() == before


# no header is believed

DATA = bytes(24)
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "header longer than the file": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    "header of 2 to the 63": (1 << 63).to_bytes(8, "little") + b"{}",
    "no header": safetensors_bytes(b"", DATA),
    "no object": safetensors_bytes([1], DATA),
    "not JSON": safetensors_bytes(b"{'a': 1}", DATA),
    "not UTF-8": safetensors_bytes(b'{"\xff": 1}', DATA),
    "too deep": safetensors_bytes(b"[" * 100_000),
    "a number without end": safetensors_bytes(b'{"a": ' + b"9" * 9000 + b"}"),
    "a name twice": safetensors_bytes(b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {}}'),
    "a field twice": safetensors_bytes(b'{"a": {"dtype": "F32", "shape": [0], "shape": [0], "data_offsets": [0, 0]}}'),
    "a field missing": safetensors_bytes({"a": {"dtype": "F32", "shape": [6]}}, DATA),
    "a field too many": safetensors_bytes(one(extra=1), DATA),
    "no entry": safetensors_bytes({"a": 5}, DATA),
    "type unknown": safetensors_bytes(one() | {"a": one()["a"] | {"dtype": "F4"}}, DATA),
    "type no text": safetensors_bytes(one() | {"a": one()["a"] | {"dtype": ["F32"]}}, DATA),
    "shape too large": safetensors_bytes(one(shape=(2, 4)) | {"a": one()["a"] | {"shape": [2, 4]}}, DATA),
    "shape negative": safetensors_bytes({"a": one()["a"] | {"shape": [-2, -3]}}, DATA),
    "shape of fractions": safetensors_bytes({"a": one()["a"] | {"shape": [2.0, 3]}}, DATA),
    "shape of truth": safetensors_bytes({"a": one()["a"] | {"shape": [True, 6]}}, DATA),
    "shape that overflows": safetensors_bytes({"a": one()["a"] | {"shape": [1 << 62, 1 << 62, 6]}}, DATA),
    "shape that overflows to fit": safetensors_bytes({"a": one()["a"] | {"shape": [1 << 63, 2, 6]}}, DATA),
    "too many axes": safetensors_bytes({"a": one()["a"] | {"shape": [1] * 40 + [6]}}, DATA),
    "offsets backwards": safetensors_bytes({"a": one()["a"] | {"data_offsets": [24, 0]}}, DATA),
    "offsets negative": safetensors_bytes({"a": one()["a"] | {"data_offsets": [-24, 0]}}, DATA),
    "offsets three": safetensors_bytes({"a": one()["a"] | {"data_offsets": [0, 24, 24]}}, DATA),
    "beyond the end": safetensors_bytes({"a": one()["a"] | {"data_offsets": [8, 32]}}, DATA),
    "a gap at the start": safetensors_bytes({"a": one()["a"] | {"data_offsets": [4, 28]}}, bytes(28)),
    "a gap at the end": safetensors_bytes(one(), DATA + b"\0"),
    "overlap": safetensors_bytes({"a": one()["a"], "b": one()["a"]}, DATA),
    "overlap in part": safetensors_bytes({"a": one()["a"], "b": one()["a"] | {"data_offsets": [20, 44]}}, bytes(44)),
    "metadata of numbers": safetensors_bytes(one() | {"__metadata__": {"a": 1}}, DATA),
    "metadata a list": safetensors_bytes(one() | {"__metadata__": []}, DATA),
    "HTML": b"<!DOCTYPE html><html><head><title>404</title></head></html>",
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n",
}  # fmt: skip


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_names_it(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f.safetensors").write_bytes(data)
    refused(lambda: open_tensors(tmp_path / "f.safetensors"), str(tmp_path / "f.safetensors"))


def test_the_unbroken_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(safetensors_bytes(one(), DATA))  # contrast to the ones above
    assert np.asarray(read_file(tmp_path / "f")["a"]).shape == (2, 3)
    empty = {"z": {"dtype": "F32", "shape": [0, 9], "data_offsets": [24, 24]}}
    (tmp_path / "f").write_bytes(safetensors_bytes(empty | one(), DATA))
    assert np.asarray(read_file(tmp_path / "f")["z"]).shape == (0, 9)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 100)  # a hole: no disk is used
    tracemalloc.start()
    refused(lambda: read_file(tmp_path / "f"), "header", str(MAX_HEADER))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_name_that_stands_twice_among_many_is_found_at_once(tmp_path: Path) -> None:
    entries = ",".join(f'"n{k}":1' for k in range(60_000))
    (tmp_path / "f").write_bytes(safetensors_bytes(f'{{{entries},"n59999":1}}'.encode()))
    refused(lambda: read_file(tmp_path / "f"), "n59999", "twice")


def test_a_file_that_changes_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.safetensors", {"a": np.zeros((4, 4), np.float32)})
    tensor = read_file(path)["a"]
    tensor[:]
    os.truncate(path, path.stat().st_size - 4)
    refused(lambda: tensor[:], str(path), "changed")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: read_file(tmp_path / "pipe"), "pipe", "regular")
    refused(lambda: read_file(tmp_path), "directory")
    refused(lambda: read_file(tmp_path / "nothing"), "nothing")
    refused(lambda: open_tensors(tmp_path), "no weights")


def test_a_part_beyond_the_end_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    file = File.open(tmp_path / "f")
    for start, count in ((0, 25), (25, 0), (-1, 1), (20, 5)):
        refused(lambda start=start, count=count: file.read(start, count), str(tmp_path / "f"))
    refused(lambda: Stored(file, "F32", (7,), 0)[:])


# shards


def shards(folder: Path) -> dict[str, np.ndarray]:
    arrays = {name: numbers(np.random.default_rng(ord(name)), 3, 3) for name in "abc"}
    layout = {name: ("F32", a.shape) for name, a in arrays.items()}
    write_tensors(folder, layout, lambda name: [arrays[name]], shard=40)
    return arrays


INDEX_FAULTS = {
    "shard missing": lambda folder, index: (folder / index["weight_map"]["b"]).unlink(),
    "tensor elsewhere": lambda folder, index: index["weight_map"].update(a=index["weight_map"]["b"]),
    "tensor unnamed": lambda folder, index: index["weight_map"].pop("c") and index["weight_map"].update(
        d=index["weight_map"]["a"]),
    "tensor nowhere": lambda folder, index: index["weight_map"].update(d=index["weight_map"]["a"]),
    "a path": lambda folder, index: index["weight_map"].update(a="../model.safetensors"),
    "an absolute path": lambda folder, index: index["weight_map"].update(a="/etc/passwd"),
    "a parent": lambda folder, index: index["weight_map"].update(a=".."),
    "a line break": lambda folder, index: index["weight_map"].update(a="x\ny"),
    "no text": lambda folder, index: index["weight_map"].update(a=5),
    "no map": lambda folder, index: index.pop("weight_map"),
    "an empty map": lambda folder, index: index.update(weight_map={}),
}  # fmt: skip


@pytest.mark.parametrize("fault", INDEX_FAULTS.values(), ids=INDEX_FAULTS)
def test_an_index_that_contradicts_its_shards_is_refused(tmp_path: Path, fault: Any) -> None:
    arrays = shards(tmp_path)
    assert (np.asarray(open_tensors(tmp_path)["b"]) == arrays["b"]).all()  # contrast
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    fault(tmp_path, index)
    path.write_text(json.dumps(index))
    refused(lambda: open_tensors(tmp_path), str(tmp_path))


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    shards(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    text = path.read_text()
    path.write_text(text.replace('"a":', '"c": "model-00001-of-00003.safetensors", "a":'))
    refused(lambda: open_tensors(tmp_path), "'c'", "twice")


def test_a_folder_with_two_checkpoints_is_refused(tmp_path: Path) -> None:
    shards(tmp_path)
    write_file(tmp_path / "model.safetensors", {"a": np.zeros(1, np.float32)})
    refused(lambda: open_tensors(tmp_path), "both")
