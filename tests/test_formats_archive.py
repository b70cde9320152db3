r"""PyTorch's archives without PyTorch: tensors and nothing else come out, and nothing in a pickle is run."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_files import Pickled, archive_bytes, legacy_bytes, numbers, refused
from shared_data import shared_data

import lora_np.formats.pickles as pickles
from lora_np.formats.archive import open_archive
from lora_np.formats.disk import File
from lora_np.formats.zipped import members

RNG = np.random.default_rng(0)
ARRAYS = {
    "matrix": numbers(RNG, 3, 4),
    "turned": np.asfortranarray(numbers(RNG, 3, 5)),
    "double": numbers(RNG, 2, 2, 2, dtype=np.float64),
    "half": numbers(RNG, 6, dtype=np.float16),
    "count": np.arange(4),
    "truth": np.array([True, False, True]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}
OPEN = {"zip": archive_bytes, "legacy": legacy_bytes}


def opened(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return open_archive(path)


@pytest.mark.parametrize("form", OPEN)
@pytest.mark.parametrize("nested", [None, "model_state_dict", "state_dict"])
def test_every_tensor_is_read_bit_for_bit(tmp_path: Path, form: str, nested: str | None) -> None:
    value = ARRAYS if nested is None else {nested: ARRAYS, "epoch": 3, "note": "x", "loss": 0.5, "best": None}
    found = opened(tmp_path / "f.pt", OPEN[form](value))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        assert np.asarray(found[name]).tobytes() == np.ascontiguousarray(array).tobytes()
        assert found[name].dtype == array.dtype
    assert (found["turned"][1:] == ARRAYS["turned"][1:]).all()
    assert (found["matrix"][1:2] == ARRAYS["matrix"][1:2]).all()


def test_the_shared_checkpoint_of_the_authors_has_its_check_values() -> None:
    found = open_archive(shared_data("roberta-lora-mnli") / "roberta_base_lora_mnli.bin")
    assert len(found) == 52
    assert sum(tensor.size for tensor in found.values()) == 887_811
    A, B = (np.asarray(found[f"roberta.encoder.layer.0.attention.self.query.lora_{x}"]) for x in "AB")
    assert (A.shape, B.shape, A.dtype) == ((8, 768), (768, 8), np.float32)
    assert np.round(A.ravel()[:3].astype(np.float64), 8).tolist() == [0.01049844, -0.02418878, 0.07614828]
    update = 2.0 * B.astype(np.float64) @ A.astype(np.float64)
    assert round(float(np.linalg.norm(update)), 6) == 9.627213
    assert np.linalg.matrix_rank(update) == 8
    lora = [tensor.size for name, tensor in found.items() if ".lora_" in name]
    assert (len(lora), sum(lora)) == (48, 294_912)


# nothing is run

RAN: list[str] = []


def weapon(text: str) -> None:
    RAN.append(text)


class Runs:
    def __reduce__(self) -> Any:
        return weapon, ("it ran",)


def test_pythons_own_reader_would_have_run_it() -> None:
    pickle.loads(pickle.dumps(Runs(), 2))  # contrast: the weapon is loaded
    assert RAN.pop() == "it ran"


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"a": Runs()}, protocol)
    refused(lambda: opened(tmp_path / "f.pt", zipped(data)), "pickle")
    refused(lambda: opened(tmp_path / "f.pt", data))
    assert not RAN


def zipped(data: bytes, **more: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in {"data.pkl": data, **more}.items():
            archive.writestr(f"archive/{name}", part)
    return buffer.getvalue()


NAMES = [
    ("os", "system"), ("builtins", "eval"), ("builtins", "exec"), ("torch", "load"), ("torch.serialization", "load"),
    ("torch.nn.modules.linear", "Linear"), ("numpy", "load"), ("torch", "FloatStorage.x"), ("collections", "Counter"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("torch", ""), ("", "eval"), ("subprocess", "Popen"),
    ("torch._utils", "_rebuild_sparse_tensor"), ("torch.storage", "_load_from_bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_name_that_makes_no_tensor_is_refused_by_name(tmp_path: Path, module: str, name: str) -> None:
    run = Pickled.named(module, name) + Pickled().spell(("true",)) + pickle.REDUCE
    line = refused(lambda: opened(tmp_path / "f.pt", archive_bytes({"a": run})), "names")
    assert name[:20] in line
    stacked = Pickled().spell(module) + Pickled().spell(name) + pickle.STACK_GLOBAL
    refused(lambda: opened(tmp_path / "f.pt", archive_bytes({"a": stacked})), "names")


def test_a_refusal_of_names_is_what_a_machine_without_its_table_does_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: were the name in the table, the call would be made."""
    run = Pickled.named("os", "getcwd") + pickle.EMPTY_TUPLE + pickle.REDUCE
    monkeypatch.setitem(pickles.CALLS, "os.getcwd", lambda _: RAN.append("it ran") or {})
    refused(lambda: opened(tmp_path / "f.pt", archive_bytes({"a": run})))
    assert RAN.pop() == "it ran"


REDUCE = pickle.REDUCE
STORED = Pickled().reference("0", "FloatStorage", 4)
REBUILD = Pickled.named("torch._utils", "_rebuild_tensor_v2")


def rebuilt(*arguments: Any) -> bytes:
    return REBUILD + Pickled().spell((*arguments, False, None)) + REDUCE


PICKLES: dict[str, bytes] = {
    "empty": b"",
    "no stop": pickle.PROTO + b"\x02" + pickle.EMPTY_DICT,
    "stack empty": pickle.STOP,
    "no mark": pickle.TUPLE + pickle.STOP,
    "below a mark": pickle.EMPTY_DICT + pickle.MARK + pickle.TUPLE1 + pickle.STOP,
    "unknown opcode": b"\x80\x02\xff.",
    "memo of nothing": pickle.BINGET + b"\x05" + pickle.STOP,
    "memo at 4 billion": pickle.LONG_BINGET + b"\xff\xff\xff\xff" + pickle.STOP,
    "put without a value": pickle.LONG_BINPUT + b"\xff\xff\xff\xff" + pickle.STOP,
    "text of 4 GB": pickle.BINUNICODE + b"\xff\xff\xff\xff" + b"x",
    "text of 2 to the 63": pickle.BINUNICODE8 + b"\xff" * 7 + b"\x7f",
    "text not UTF-8": pickle.BINUNICODE + struct.pack("<I", 2) + b"\xff\xfe" + pickle.STOP,
    "number of 4 GB": pickle.LONG4 + b"\xff\xff\xff\xff",
    "name without an end": pickle.GLOBAL + b"torch",
    "name not a text": pickle.EMPTY_LIST + pickle.NONE + pickle.STACK_GLOBAL + pickle.STOP,
    "calls a text": Pickled().spell("f") + pickle.EMPTY_TUPLE + REDUCE + pickle.STOP,
    "calls with a list": Pickled.named("collections", "OrderedDict") + pickle.EMPTY_LIST + REDUCE + pickle.STOP,
    "appends to a dictionary": pickle.EMPTY_DICT + pickle.NONE + pickle.APPEND + pickle.STOP,
    "sets in a list": pickle.EMPTY_LIST + pickle.NONE + pickle.NONE + pickle.SETITEM + pickle.STOP,
    "a list as a key": pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.NONE + pickle.SETITEM + pickle.STOP,
    "attributes": pickle.EMPTY_DICT + Pickled().spell({"__class__": 1}) + pickle.BUILD + pickle.STOP,
    "old protocol": pickle.dumps({"a": 1}, 0),
}  # fmt: skip
VALUES: dict[str, Any] = {
    "a list": [1, 2],
    "a tensor": np.zeros(3, np.float32),
    "nothing": {},
    "a number": {"a": 3},
    "a list inside": {"a": [np.zeros(3, np.float32)]},
    "a module": {"a": {"b": {"c": np.zeros(3, np.float32)}}},
    "two models": {"model": {"a": np.zeros(1, np.float32)}, "state_dict": {"a": np.zeros(1, np.float32)}},
    "an optimizer": {"state_dict": {"a": np.zeros(1, np.float32)}, "optimizer": {"state": {}}},
    "a number as a name": {1: np.zeros(3, np.float32)},
    "a storage": {"a": STORED},
    "a storage of nothing": {"a": Pickled().spell(("storage", 1, "0", "cpu", 4)) + pickle.BINPERSID},
    "a reference to a file": {"a": Pickled().spell(("file", "/etc/passwd")) + pickle.BINPERSID},
    "a shape too large": {"a": rebuilt(STORED, 0, (5,), (1,))},
    "an offset too large": {"a": rebuilt(STORED, 3, (2,), (1,))},
    "an offset below zero": {"a": rebuilt(STORED, -1, (2,), (1,))},
    "a stride too large": {"a": rebuilt(STORED, 0, (2, 2), (3, 1))},
    "a stride below zero": {"a": rebuilt(STORED, 3, (2,), (-1,))},
    "a stride of zero": {"a": rebuilt(STORED, 0, (1 << 40,), (0,))},
    "a shape of truth": {"a": rebuilt(STORED, 0, (True,), (1,))},
    "strides too few": {"a": rebuilt(STORED, 0, (2, 2), (1,))},
    "a shape of text": {"a": rebuilt(STORED, 0, ("2",), (1,))},
    "a storage not there": {"a": rebuilt(Pickled().reference("9", "FloatStorage", 4), 0, (2,), (1,))},
    "a storage cut": {"a": rebuilt(Pickled().reference("0", "FloatStorage", 5), 0, (5,), (1,))},
    "a storage of two types": {"a": rebuilt(STORED, 0, (4,), (1,)),
                               "b": rebuilt(Pickled().reference("0", "DoubleStorage", 2), 0, (2,), (1,))},
    "no storage": {"a": rebuilt("x", 0, (2,), (1,))},
    "many axes": {"a": rebuilt(STORED, 0, (1,) * 40, (1,) * 40)},
}  # fmt: skip


@pytest.mark.parametrize("data", PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_is_broken_is_refused(tmp_path: Path, data: bytes) -> None:
    refused(lambda: opened(tmp_path / "f.pt", zipped(data)), str(tmp_path / "f.pt"))
    refused(lambda: opened(tmp_path / "f.pt", data), str(tmp_path / "f.pt"))


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_checkpoint_of_anything_but_tensors_is_refused(tmp_path: Path, value: Any) -> None:
    refused(lambda: opened(tmp_path / "f.pt", archive_bytes(value, data__0=bytes(16))), str(tmp_path / "f.pt"))
    good = {"a": rebuilt(STORED, 0, (2, 2), (2, 1))}
    assert opened(tmp_path / "f.pt", archive_bytes(good, data__0=bytes(16)))["a"].shape == (2, 2)  # contrast


def test_values_that_grow_by_reference_are_not_spelled_out_in_a_message(tmp_path: Path) -> None:
    """Thirty doublings of a list: a message that printed it would have a billion entries."""
    double = pickle.BINPUT + b"\0" + b"".join(
        pickle.BINGET + bytes([k]) + pickle.BINGET + bytes([k]) + pickle.TUPLE2 + pickle.BINPUT + bytes([k + 1])
        for k in range(30)
    )  # fmt: skip
    bomb = pickle.NONE + double
    for value in ({"a": bomb}, {"a": bomb + pickle.BINPERSID}, {"a": rebuilt(bomb, 0, (1,), (1,))}):
        tracemalloc.start()
        refused(lambda value=value: opened(tmp_path / "f.pt", archive_bytes(value)))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path) -> None:
    data = b"\x80\x02" + pickle.EMPTY_DICT + pickle.BINPUT + b"\0" + Pickled().spell("model") + pickle.BINGET + b"\0"
    refused(lambda: opened(tmp_path / "f.pt", zipped(data + pickle.SETITEM + pickle.STOP)), "dictionary")


def test_a_pickle_may_take_only_so_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path / "f.pt", archive_bytes(ARRAYS))
    monkeypatch.setattr(pickles, "MAX_STEPS", 100)
    refused(lambda: opened(tmp_path / "f.pt", archive_bytes(ARRAYS)), "steps")


# archives


def test_a_compressed_member_is_refused_so_nothing_can_grow(tmp_path: Path) -> None:
    bomb = {"data__0": bytes(1 << 22)}
    data = archive_bytes(ARRAYS, zipfile.ZIP_DEFLATED, **bomb)
    assert len(data) < 1 << 15
    refused(lambda: opened(tmp_path / "f.pt", data), "compressed")


def test_a_file_truncated_at_any_length_is_refused(tmp_path: Path) -> None:
    for data in (archive_bytes(ARRAYS), legacy_bytes(ARRAYS)):
        for length in range(0, len(data), 7):
            refused(lambda data=data, length=length: opened(tmp_path / "f.pt", data[:length]))


def test_members_are_those_that_pythons_reader_finds(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(archive_bytes(ARRAYS))
    found = members(File.open(tmp_path / "f"))
    with zipfile.ZipFile(tmp_path / "f") as archive:
        assert set(found) == set(archive.namelist())
        for name, (start, length) in found.items():
            assert (tmp_path / "f").read_bytes()[start : start + length] == archive.read(name)


def test_a_zip64_directory_is_read(tmp_path: Path) -> None:
    """The end of an archive says 0xFFFFFFFF for what lies beyond 4 GB, and another record says where it lies."""
    data = archive_bytes(ARRAYS)
    end = data.rindex(b"PK\5\6")
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    wide = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, start)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, end, 1)
    narrow = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    found = opened(tmp_path / "f.pt", data[:end] + wide + locator + narrow)
    assert list(found) == list(ARRAYS)
    far = wide.replace(struct.pack("<Q", start), struct.pack("<Q", 1 << 40))
    refused(lambda: opened(tmp_path / "f.pt", data[:end] + far + locator + narrow), "directory")


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def test_a_directory_that_lies_is_refused(tmp_path: Path) -> None:
    data = archive_bytes(ARRAYS)
    entry = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", entry + 4)
    end = data.rindex(b"PK\5\6")
    lies = {
        "compressed": changed(data, entry + 10, b"\x08\0"),
        "contradicts": changed(data, entry + 20, b"\1\0\0\0"),
        "truncated": changed(changed(data, entry + 20, b"\xff\xff\xff\x7f"), entry + 24, b"\xff\xff\xff\x7f"),
        "where its directory says": changed(data, entry + 42, b"\5\0\0\0"),
        "overlaps": changed(data, second + 42, data[entry + 42 : entry + 46]),
        "directory ends": changed(data, end + 10, b"\xff\0"),
        "does not lie in it": changed(data, end + 16, b"\xff\xff\xff\x7f"),
    }
    for word, lie in lies.items():
        line = refused(lambda lie=lie: opened(tmp_path / "f.pt", lie))
        assert word in line or word == "overlaps", (word, line)


def test_an_archive_of_another_byte_order_or_without_a_pickle_is_refused(tmp_path: Path) -> None:
    refused(lambda: opened(tmp_path / "f.pt", archive_bytes(ARRAYS, byteorder=b"big")), "big-endian")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x", b"y")
    refused(lambda: opened(tmp_path / "f.pt", buffer.getvalue()), "data.pkl")
    refused(lambda: opened(tmp_path / "f.pt", b"MZ this is no checkpoint"), "neither")
    refused(lambda: open_archive(tmp_path), "directory")
