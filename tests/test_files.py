"""What is written is read back bit for bit, whole or not at all; what is damaged is refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import adapted, cast, hashes, model, moved, random_shapes, tokens_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import save

from lora_np.certificate import certify
from lora_np.costs import adapter_bytes, lora_count
from lora_np.disk.marks import MARK
from lora_np.disk.reading import read_json
from lora_np.files import (
    digest,
    digest_of,
    load_adapter,
    load_checkpoint,
    load_model,
    read_arrays,
    save_adapter,
    save_checkpoint,
    save_model,
    write_arrays,
)
from lora_np.lora import adapters
from lora_np.methods.lora import LoraConfig
from lora_np.model import Transformer
from lora_np.names import PRESETS
from lora_np.optimization import TrainingState
from lora_np.parameters import count, parameters, with_parameters
from lora_np.wrappers import merge

RUN = {"rank": 2, "targets": ("query", "value"), "file": "3f2a"}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "every map": {"targets": "all-linear", "initialization": "uniform", "scaling": "alpha/sqrt(rank)"},
    "biases": {"bias": "all", "dropout": 0.25},
    "own ranks": {"targets": ("query", "mlp.*"), "ranks": {"mlp.up": 3}, "alphas": {"query": 5.0}},
    "tied table": {"targets": ("tokens", "value"), "tied_head": "tie"},
    "untied table": {"targets": "tokens", "tied_head": "untie"},
}


def base(seed: int = 0, **changes: Any) -> Transformer:
    return model(seed, np.float32, **changes)


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"rank": 2, "alpha": 3.0, **settings})


def saved_adapter(folder: Path, start: Transformer, **settings: Any) -> Transformer:
    """A trained adapter in `folder`, and the adapted model it was saved from."""
    trained = moved(adapted(start, **settings))
    folder.mkdir()
    save_adapter(folder, trained, lora(**settings), start)
    return trained


def as_the_first_version_wrote_it(folder: Path, adapter: Transformer, **settings: Any) -> None:
    """The same adapter as it was stored when there was LoRA alone, and no description in the header of its arrays."""
    path, arrays = folder / "adapter.safetensors", lora(**settings).trained(adapter)
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    path.write_bytes(save(arrays, {"sha256": sha.hexdigest()}))
    about = {
        "base": read_json(folder / "adapter.json")["base"],
        "lora": dataclasses.asdict(lora(**settings)),
        "scaling": {path: module.scaling for path, module in adapters(adapter).items()},
    }
    (folder / "adapter.json").write_text(json.dumps(about))


def state_of(start: Transformer) -> TrainingState:
    trained = parameters(moved(adapted(start)), "*.A", "*.B")
    moments = {f"{moment}.{name}": abs(array) for moment in "mv" for name, array in trained.items()}
    return TrainingState(7, trained, moments)


def one_line(error: BaseException) -> str:
    line = str(error)
    assert line
    assert "\n" not in line
    return line


def refused(read: Callable[[], Any], *words: str) -> None:
    """It raises ValueError or OSError of one line that holds all the words."""
    with pytest.raises((ValueError, OSError)) as found:
        read()
    line = one_line(found.value)
    assert all(word in line for word in words), line


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below the folder with its bytes, or with their digest when they are many."""
    contents = {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return {name: data if len(data) < 64 else hashlib.sha256(data).digest() for name, data in contents.items()}


def header_and_numbers(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path: Path, header: dict[str, Any], numbers: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)


# what is written is read back


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"causal": False, "d_ff": 5}], ids=str)
def test_a_model_is_read_back_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    start = base(**changes)
    save_model(tmp_path / "m", start)
    found = load_model(tmp_path / "m")
    assert found.config == start.config
    assert hashes(parameters(found)) == hashes(parameters(start))
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [MARK, "config.json", "model.safetensors"]


def test_a_model_stored_in_float16_computes_in_float32_with_the_stored_numbers(tmp_path: Path) -> None:
    start = base()
    save_model(tmp_path / "m", start, dtype=np.float16)
    found = load_model(tmp_path / "m")
    rounded = {name: a.astype(np.float16).astype(np.float32) for name, a in parameters(start).items()}
    assert hashes(rounded) != hashes(parameters(start))
    assert hashes(parameters(found)) == hashes(rounded)


@pytest.mark.parametrize("earlier", [False, True], ids=["now", "of the first version"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_adapter_is_read_back_bit_for_bit(tmp_path: Path, settings: dict[str, Any], earlier: bool) -> None:
    start = base()
    trained = saved_adapter(tmp_path / "ad", start, **settings)
    assert set(read_json(tmp_path / "ad" / "adapter.json")) == {"base", "method", "settings"}
    if earlier:
        as_the_first_version_wrote_it(tmp_path / "ad", trained, **settings)
    found, config = load_adapter(tmp_path / "ad", start)
    assert config == lora(**settings)
    assert {path: m.scaling for path, m in adapters(found).items()} == {
        path: m.scaling for path, m in adapters(trained).items()
    }
    assert hashes(parameters(found)) == hashes(parameters(trained))
    tokens = tokens_of(start)
    assert abs(trained(tokens) - start(tokens)).max() > 0.1
    assert (found(tokens) == trained(tokens)).all()


def test_an_adapter_is_saved_with_its_base_or_with_the_digest_of_it(tmp_path: Path) -> None:
    start = base()
    saved_adapter(tmp_path / "ad", start)
    (tmp_path / "same").mkdir()
    save_adapter(tmp_path / "same", moved(adapted(start)), lora(), digest(start))
    assert listing(tmp_path / "same") == listing(tmp_path / "ad")


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("computed", [np.float32, np.float64])
def test_an_adapter_computes_in_the_precision_of_its_base(tmp_path: Path, stored: Any, computed: Any) -> None:
    start = base()
    saved_adapter(tmp_path / "ad", start, targets="all-linear")
    path = tmp_path / "ad" / "adapter.safetensors"
    arrays = {name: array.astype(stored) for name, array in read_arrays(path)[0].items()}
    write_arrays(path, arrays, {})
    found, _ = load_adapter(tmp_path / "ad", cast(start, computed))
    assert {array.dtype for array in parameters(found).values()} == {np.dtype(computed)}
    held = parameters(found, "*.A", "*.B")
    assert hashes(held) == hashes({name: array.astype(computed) for name, array in arrays.items()})
    assert certify(found, merge(found), tokens_of(found)).holds


def test_an_adapter_is_trained_on_by_a_base_that_was_itself_saved_and_read(tmp_path: Path) -> None:
    start = base()
    saved_adapter(tmp_path / "ad", start)
    save_model(tmp_path / "m", start)
    load_adapter(tmp_path / "ad", load_model(tmp_path / "m"))


def test_a_checkpoint_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    state = state_of(base())
    save_checkpoint(tmp_path / "c", state, RUN)
    found = load_checkpoint(tmp_path / "c", RUN)
    assert found.step == 7
    assert hashes(found.trained) == hashes(state.trained)
    assert hashes(found.moments) == hashes(state.moments)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
any_array = arrays_of.arrays(np.float32, arrays_of.array_shapes(min_dims=0, min_side=0, max_side=4), elements=finite)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)


@random_shapes
@given(st.dictionaries(names, any_array, min_size=1, max_size=4), st.dictionaries(names, st.text(max_size=9)))
def test_any_finite_arrays_and_any_header_are_read_back_bit_for_bit(
    arrays: dict[str, np.ndarray], header: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        write_arrays(path, arrays, header)
        found, found_header = read_arrays(path)
    assert hashes(dict(sorted(found.items()))) == hashes(dict(sorted(arrays.items())))
    assert found_header == header


def test_a_transposed_array_is_stored_as_what_it_shows(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_arrays(tmp_path / "a", {"t": array.T, "every other": array[:, ::2]}, {})
    found, _ = read_arrays(tmp_path / "a")
    assert (found["t"] == array.T).all()
    assert (found["every other"] == array[:, ::2]).all()


@pytest.mark.parametrize("targets", [*PRESETS, "tokens"])
@pytest.mark.parametrize("rank", [1, 2])
def test_an_adapter_file_is_the_predicted_parameters_and_a_header(tmp_path: Path, targets: str, rank: int) -> None:
    start = base()
    trained = saved_adapter(tmp_path / "ad", start, targets=targets, rank=rank, tied_head="tie")
    path = tmp_path / "ad" / "adapter.safetensors"
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    predicted = lora_count(start.config, rank, targets)
    assert predicted == count(parameters(trained, "*.A", "*.B"))
    assert path.stat().st_size == 8 + length + adapter_bytes(predicted, "float32")


# damage


def test_a_file_truncated_at_any_length_is_refused(tmp_path: Path) -> None:
    start = base()
    saved_adapter(tmp_path / "ad", start)
    path = tmp_path / "ad" / "adapter.safetensors"
    whole = path.read_bytes()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        refused(lambda: load_adapter(tmp_path / "ad", start), str(path), "truncated or corrupted")
    path.write_bytes(whole + b"\0")
    refused(lambda: load_adapter(tmp_path / "ad", start), str(path), "truncated or corrupted")
    path.write_bytes(whole)
    load_adapter(tmp_path / "ad", start)


def test_a_flipped_bit_in_a_header_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    start = base(layers=1)
    trained = saved_adapter(tmp_path / "ad", start, targets="query")
    path = tmp_path / "ad" / "adapter.safetensors"
    whole = path.read_bytes()
    expected = hashes(parameters(trained))
    (length,) = struct.unpack("<Q", whole[:8])
    seen = 0
    for bit in range(8 * (8 + length)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read_arrays(path)  # what `load_adapter` does first; alone it takes a fifth of the time
            found, _ = load_adapter(tmp_path / "ad", start)
        except ValueError as error:
            seen += str(path) in one_line(error)
        else:
            assert hashes(parameters(found)) == expected, f"bit {bit} of the header changes the model silently"
    assert seen > 8 * length * 0.9


@pytest.mark.parametrize("dtype", ["I32", "U32", "BF16", "F8_E4M3", "F8_E5M2", "BOOL"])
def test_an_array_of_another_kind_of_number_is_refused_by_name(tmp_path: Path, dtype: str) -> None:
    start = base()
    saved_adapter(tmp_path / "ad", start)
    path = tmp_path / "ad" / "adapter.safetensors"
    header, numbers = header_and_numbers(path)
    name = "blocks.0.attention.query.A"
    bits = {"BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "BOOL": 8}.get(dtype, 32)
    rows, columns = header[name]["shape"]
    header[name] |= {"dtype": dtype, "shape": [rows, columns * 32 // bits]}
    with_header(path, header, numbers)
    refused(lambda: load_adapter(tmp_path / "ad", start), str(path), name)


def test_a_flipped_bit_of_a_number_is_seen(tmp_path: Path) -> None:
    start = base()
    saved_adapter(tmp_path / "ad", start)
    path = tmp_path / "ad" / "adapter.safetensors"
    whole = bytearray(path.read_bytes())
    load_adapter(tmp_path / "ad", start)  # contrast
    whole[-4] ^= 1  # the last bit of the last number's fraction: it stays finite
    path.write_bytes(whole)
    refused(lambda: load_adapter(tmp_path / "ad", start), str(path), "corrupted")
    whole[-1], whole[-2] = 0x7F, 0x80  # all bits of its exponent
    path.write_bytes(whole)
    refused(lambda: load_adapter(tmp_path / "ad", start), str(path), "blocks.1.attention.value.B", "not finite")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_by_the_name_of_its_array(tmp_path: Path, value: float) -> None:
    start = base()
    saved_adapter(tmp_path / "ad", start)
    path = tmp_path / "ad" / "adapter.safetensors"
    arrays, _ = read_arrays(path)
    for name, array in arrays.items():
        broken = array.copy()
        broken.flat[-1] = value
        write_arrays(path, {**arrays, name: broken}, {})
        refused(lambda: load_adapter(tmp_path / "ad", start), str(path), name, "not finite")


def test_a_missing_an_unexpected_and_a_misshapen_array_are_refused_by_name(tmp_path: Path) -> None:
    start = base()
    saved_adapter(tmp_path / "ad", start)
    save_model(tmp_path / "m", start)
    readers = {
        tmp_path / "ad" / "adapter.safetensors": lambda: load_adapter(tmp_path / "ad", start),
        tmp_path / "m" / "model.safetensors": lambda: load_model(tmp_path / "m"),
    }
    for path, read in readers.items():
        arrays, _ = read_arrays(path)
        name = list(arrays)[1]
        write_arrays(path, {key: array for key, array in arrays.items() if key != name}, {})
        refused(read, str(path), name, "missing")
        write_arrays(path, {**arrays, "blocks.9.W": arrays[name]}, {})
        refused(read, str(path), "blocks.9.W", "not expected")
        write_arrays(path, {**arrays, name: arrays[name][..., :-1]}, {})
        refused(read, str(path), name, "shape", str(arrays[name].shape))


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    start, other = base(), base(seed=1)
    saved_adapter(tmp_path / "ad", start)
    refused(lambda: load_adapter(tmp_path / "ad", other), "another base", digest(start)[:12], digest(other)[:12])


# What may be wrong in adapter.json: in that of today, whose "settings" are those of LoRA, and in the first version's.
BROKEN: dict[str, Any] = {
    "no base": lambda about, lora: about.pop("base"),
    "no lora": lambda about, lora: about.pop("lora" if "lora" in about else "settings"),
    "base a number": lambda about, lora: about.update(base=5),
    "base null": lambda about, lora: about.update(base=None),
    "lora a number": lambda about, lora: about.update({"lora" if "lora" in about else "settings": 5}),
    "lora a list": lambda about, lora: about.update({"lora" if "lora" in about else "settings": []}),
    "rank a text": lambda about, lora: lora.update(rank="4"),
    "rank zero": lambda about, lora: lora.update(rank=0),
    "rank too high": lambda about, lora: lora.update(rank=9),
    "alpha a text": lambda about, lora: lora.update(alpha="x"),
    "alpha not a number": lambda about, lora: lora.update(alpha=float("nan")),
    "alpha too large": lambda about, lora: lora.update(alpha=10**400),
    "dropout null": lambda about, lora: lora.update(dropout=None),
    "bias unknown": lambda about, lora: lora.update(bias="some"),
    "bias a list": lambda about, lora: lora.update(bias=["none"]),
    "head unknown": lambda about, lora: lora.update(tied_head=3),
    "rule unknown": lambda about, lora: lora.update(scaling="alpha"),
    "start unknown": lambda about, lora: lora.update(initialization="zeros"),
    "targets unknown": lambda about, lora: lora.update(targets="nothing"),
    "targets a number": lambda about, lora: lora.update(targets=5),
    "targets numbers": lambda about, lora: lora.update(targets=[1]),
    "targets nested": lambda about, lora: lora.update(targets=[["query"]]),
    "targets none": lambda about, lora: lora.update(targets=[]),
    "ranks a number": lambda about, lora: lora.update(ranks=5),
    "ranks of nothing": lambda about, lora: lora.update(ranks={"x": 2}),
    "alphas a text": lambda about, lora: lora.update(alphas={"query": "x"}),
    "one setting too many": lambda about, lora: lora.update(more=1),
}
ONLY_NOW: dict[str, Any] = {
    "no method": lambda about, lora: about.pop("method"),
    "method a number": lambda about, lora: about.update(method=5),
    "method unknown": lambda about, lora: about.update(method="lorra"),
    "another method": lambda about, lora: about.update(method="full"),
}
ONLY_EARLIER: dict[str, Any] = {
    "no scaling": lambda about, lora: about.pop("scaling"),
    "scaling null": lambda about, lora: about.update(scaling=None),
    "scaling other": lambda about, lora: about["scaling"].update({"blocks.0.attention.query": 9.0}),
    "scaling of less": lambda about, lora: about["scaling"].popitem(),
}
BROKEN_IN = [
    *((False, name, change) for name, change in {**BROKEN, **ONLY_NOW}.items()),
    *((True, name, change) for name, change in {**BROKEN, **ONLY_EARLIER}.items()),
]


@pytest.mark.parametrize(("earlier", "name", "break_it"), BROKEN_IN, ids=[f"{n}-{'then' * e}" for e, n, _ in BROKEN_IN])
def test_a_broken_description_of_an_adapter_is_refused_by_the_name_of_its_file(
    tmp_path: Path, earlier: bool, name: str, break_it: Callable[[dict[str, Any], dict[str, Any]], Any]
) -> None:
    """By what it says: the arrays beside it do not say what it should be, as those of other software do not."""
    start = base()
    trained = saved_adapter(tmp_path / "ad", start)
    path = tmp_path / "ad" / "adapter.json"
    if earlier:
        as_the_first_version_wrote_it(tmp_path / "ad", trained)
    else:
        write_arrays(path.with_suffix(".safetensors"), lora().trained(trained), {})
    load_adapter(tmp_path / "ad", start)  # contrast
    about = read_json(path)
    break_it(about, about["lora" if earlier else "settings"])
    path.write_text(json.dumps(about))
    refused(lambda: load_adapter(tmp_path / "ad", start), str(path))


NOT_JSON = {
    "empty": b"",
    "cut": b'{"base": "3f',
    "not text": b"\xff\xfe{}",
    "a list": b"[]",
    "null": b"null",
    "too deep": b"[" * 100_000,
    "a number without end": b'{"rank": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_no_json_object_is_refused_by_the_name_of_its_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "adapter.json"
    path.write_bytes(content)
    refused(lambda: read_json(path), str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"d_model": 9},
        {"heads": 0},
        {"layers": "2"},
        {"vocab": None},
        {"context": 13},
        {"layers": 3},
        {"tied": False},
        {"more": 1},
        {"causal": "yes"},
        {"causal": None},
        {"tied": "no"},
    ],
    ids=str,
)
def test_a_broken_description_of_a_model_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save_model(tmp_path / "m", base())
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**read_json(path), **change}))
    refused(lambda: load_model(tmp_path / "m"), str(tmp_path / "m"))


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"step": "7"},
        {"run": "{}"},
        {"step": "seven", "run": json.dumps(RUN)},
        {"step": "-7", "run": json.dumps(RUN)},
        {"step": "7", "run": "{"},
        {"step": "7", "run": "[]"},
        {"step": "7", "run": "5"},
    ],
    ids=str,
)
def test_a_checkpoint_with_a_broken_header_is_refused_by_the_name_of_its_file(
    tmp_path: Path, header: dict[str, str]
) -> None:
    write_arrays(tmp_path / "c", {"trained.A": np.ones(2, np.float32)}, header)
    refused(lambda: load_checkpoint(tmp_path / "c", RUN), str(tmp_path / "c"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save_model(tmp_path / "m", base())
    (tmp_path / "m" / name).unlink()
    refused(lambda: load_model(tmp_path / "m"), str(tmp_path / "m" / name), "missing")
    (tmp_path / "m" / name).mkdir()
    refused(lambda: load_model(tmp_path / "m"), str(tmp_path / "m" / name))


class Trap:
    """Whoever unpickles this makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_in_disguise_is_refused_and_nothing_in_it_is_executed(tmp_path: Path) -> None:
    start, mark = base(), tmp_path / "executed"
    trap = pickle.dumps(Trap(mark))
    pickle.loads(trap)  # contrast: it is a trap
    mark.rmdir()
    saved_adapter(tmp_path / "ad", start)
    path = tmp_path / "ad" / "adapter.safetensors"
    path.write_bytes(trap)
    refused(lambda: load_adapter(tmp_path / "ad", start), str(path), "truncated or corrupted")
    with open(path, "wb") as file:
        np.savez(file, A=np.array([Trap(mark)], dtype=object))
    refused(lambda: load_adapter(tmp_path / "ad", start), str(path), "truncated or corrupted")
    assert not mark.exists()


# what is not written


def test_an_adapted_model_is_not_saved_as_a_plain_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="merge it"):
        save_model(tmp_path / "m", adapted(base()))
    assert not list(tmp_path.iterdir())


# the digest


def test_one_bit_of_any_array_changes_the_digest() -> None:
    start = base()
    before = digest(start)
    for name, array in parameters(start).items():
        bits = array.copy().view(np.uint32)
        bits.flat[-1] ^= 1
        assert digest(with_parameters(start, {name: bits.view(np.float32)})) != before
    assert digest(start) == before == digest(base())


def test_names_shapes_and_sizes_are_part_of_the_digest() -> None:
    array = np.arange(6, dtype=np.float32)
    seen = [
        digest_of({"a": array}),
        digest_of({"b": array}),
        digest_of({"a": array.reshape(2, 3)}),
        digest_of({"a": array.reshape(3, 2)}),
        digest_of({"a": array}, "about"),
        digest_of({"a": array[:3], "b": array[3:]}),
        digest(base()),
        digest(base(causal=False)),
    ]
    assert len(set(seen)) == len(seen)


def test_the_digest_is_of_float32_and_does_not_see_where_a_model_was_stored(tmp_path: Path) -> None:
    save_model(tmp_path / "m", base(), dtype=np.float16)
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    half = load_model(tmp_path / "m")
    assert digest(load_model(tmp_path / "copy")) == digest(half) == digest(load_model(tmp_path / "m", np.float64))
    assert digest(half) != digest(base())


# which run a checkpoint is of


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ({"rank": 3}, "rank was 2, now it is 3"),
        ({"file": "x"}, "file was '3f2a', now it is 'x'"),
        ({"z": 1}, "z was None"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_run_names_the_first_difference(
    tmp_path: Path, now: dict[str, Any], difference: str
) -> None:
    save_checkpoint(tmp_path / "c", state_of(base()), RUN)
    refused(lambda: load_checkpoint(tmp_path / "c", {**RUN, **now}), str(tmp_path / "c"), "another run", difference)
