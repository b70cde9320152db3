"""The real command: what it does, what it says, and what it refuses, in one line and without leaving anything."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model
from warm import exit_code, run

from lora_np.costs import lora_count, named_shape, parameter_count
from lora_np.disk.marks import MARK
from lora_np.files import load_model, read_arrays, save_model, write_arrays
from lora_np.parameters import count, parameters, with_parameters

MAIN = "from lora_np.cli import main; main()"
PROGRESS = re.compile(r"(step|case|adapter|rank) \d+(/\d+)?(: |$)")
PAIRS = "".join(f"question {i}\tanswer {i % 3} to it\n" for i in range(20))
SHORT = ["--steps", "6", "--batch-size", "4"]
COMMANDS = ("adapt", "generate", "gradcheck", "merge", "verify", "params", "study", "bench", "ledger", "conform")


def command(
    *arguments: Any, cwd: Path, code: str = MAIN, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `lora-np` with these arguments in the folder, as its own process; see `warm`."""
    return run([*map(str, arguments)], cwd, env or {}, code)


def done(*arguments: Any, cwd: Path, env: dict[str, str] | None = None) -> str:
    """The command's stdout; it must end well."""
    result = command(*arguments, cwd=cwd, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout


def tree(folder: Path) -> dict[str, str]:
    """Everything in a folder, with the digests of the files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def findings(stderr: str) -> list[str]:
    """The lines of stderr that are not progress."""
    return [line for line in stderr.splitlines() if not PROGRESS.match(line)]


def refused(*arguments: Any, cwd: Path, code: str = MAIN, env: dict[str, str] | None = None) -> str:
    """The one line with which the command refuses: exit code 2, and every file in the folder as it was."""
    before = tree(cwd)
    result = command(*arguments, cwd=cwd, code=code, env=env)
    assert result.returncode == 2, (result.stdout, result.stderr)
    lines = findings(result.stderr)
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("lora-np: ")
    assert tree(cwd) == before
    return lines[0]


def tiny_base(folder: Path, seed: int = 0) -> Path:
    """A model folder that reads bytes, small enough for a step to take a millisecond."""
    save_model(folder, model(seed, np.float32, vocab=256, context=96, d_model=16))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, pairs.tsv, the adapter `ad` trained on them, and the merged model `m`. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    tiny_base(folder / "base")
    (folder / "pairs.tsv").write_text(PAIRS)
    done("adapt", "pairs.tsv", "--out", "ad", "--base", "base", "--steps", 40, "--learning-rate", 0.02, cwd=folder)
    done("merge", "ad", "--out", "m", "--base", "base", cwd=folder)
    return folder


@pytest.fixture
def desk(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to change."""
    return Path(shutil.copytree(made, tmp_path / "desk"))


# the way it is meant to go


def test_adapt_writes_an_adapter_and_says_what_it_gained(desk: Path) -> None:
    said = done("adapt", "pairs.tsv", "--out", "new", "--base", "base", *SHORT, cwd=desk)
    train, base, adapted, gained = said.splitlines()
    assert train == "18 examples to train on, 2 held out; 512 trained parameters"
    before, after = (float(re.findall(r"\d+\.\d+", line)[0]) for line in (base, adapted))
    gain, size = re.fullmatch(
        r"([+-]\d\.\d{4}) bits per byte gained by 512 parameters, ([\d,]+) bytes in new", gained
    ).groups()
    assert float(gain) == pytest.approx(before - after, abs=1.01e-4)  # three numbers, each rounded to four places
    assert int(size.replace(",", "")) == (desk / "new" / "adapter.safetensors").stat().st_size
    assert sorted(path.name for path in (desk / "new").iterdir()) == [MARK, "adapter.json", "adapter.safetensors"]


def test_the_same_command_writes_the_same_bytes_whatever_the_number_of_threads(desk: Path) -> None:
    for threads in ("1", "2"):
        out = f"with-{threads}"
        line = ["adapt", "pairs.tsv", "--out", out, "--base", "base", "--dropout", 0.1, *SHORT]
        done(*line, cwd=desk, env={"LORA_NP_THREADS": threads, "OPENBLAS_NUM_THREADS": "2"})
    one, two = ((desk / out / "adapter.safetensors").read_bytes() for out in ("with-1", "with-2"))
    assert one == two


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("tale.txt", "Once upon a time. " * 30, []),
        ("pairs.txt", PAIRS.replace("\t", "||"), []),
        ("pairs.data", PAIRS, ["--format", "tsv"]),
        ("pairs.csv", "q,extra,a\n" + PAIRS.replace("\t", ",x,"), ["--columns", "q,a"]),
        ("three.tsv", PAIRS.replace("\t", "\tx\t"), ["--columns", "0,2"]),
        (
            "pairs.jsonl",
            "".join(json.dumps(dict(zip("qa", line.split("\t"), strict=True))) + "\n" for line in PAIRS.splitlines()),
            ["--fields", "q,a"],
        ),
    ],
    ids=str,
)
def test_every_format_of_file_can_be_adapted_to(desk: Path, name: str, content: str, options: list[str]) -> None:
    (desk / name).write_text(content)
    assert "gained by" in done("adapt", name, "--out", "new", "--base", "base", *options, *SHORT, cwd=desk)


def test_a_sequence_that_is_too_long_is_cut_when_asked(desk: Path) -> None:
    (desk / "long.tsv").write_text(PAIRS + "question\t" + "x" * 200 + "\n")
    assert "gained by" in done("adapt", "long.tsv", "--out", "new", "--base", "base", "--truncate", *SHORT, cwd=desk)


def test_every_option_of_lora_reaches_the_adapter(desk: Path) -> None:
    options = ["--rank", 2, "--alpha", 3, "--targets", "query,mlp.up,tokens", "--tied-head", "untie"]
    options += ["--dropout", 0.25, "--bias", "lora_only"]
    done("adapt", "pairs.tsv", "--out", "new", "--base", "base", *options, *SHORT, cwd=desk)
    about = json.loads((desk / "new" / "adapter.json").read_text())
    lora = about["settings"]
    assert about["method"] == "lora"
    assert (lora["rank"], lora["alpha"], lora["dropout"]) == (2, 3.0, 0.25)
    assert (lora["targets"], lora["bias"], lora["tied_head"]) == (["query", "mlp.up", "tokens"], "lora_only", "untie")


def test_merged_generation_is_that_of_base_and_adapter(made: Path) -> None:
    answers = {
        name: done("generate", "--prompt", "question 1", "--tokens", 40, *options, cwd=made)
        for name, options in {
            "base": ["--base", "base"],
            "adapted": ["--base", "base", "--adapter", "ad"],
            "merged": ["--base", "m"],
        }.items()
    }
    assert answers["base"] != answers["adapted"]
    assert answers["merged"] == answers["adapted"]


def test_drawing_is_decided_by_the_seed(made: Path) -> None:
    line = ["generate", "--prompt", "question 1", "--base", "m", "--temperature", 1, "--raw", "--tokens", 20, "--seed"]
    first, again, other = (done(*line, seed, cwd=made) for seed in (1, 1, 2))
    assert first == again != other


def test_verify_says_that_a_merge_is_equal(made: Path) -> None:
    said = done("verify", "ad", "m", "--base", "base", cwd=made)
    assert said.splitlines()[-1] == "EQUAL: every array is W0 + s·BA within its rounding bound"
    assert "32 arrays that are not adapted are equal to the bit" in said


def tampered(desk: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = desk / "m" / "model.safetensors"
    arrays, _ = read_arrays(path)
    write_arrays(path, {**arrays, name: change(arrays[name])}, {})


def diagnosed(desk: Path) -> dict[str, Any]:
    """What verify finds as JSON; the last line of its table must be the same diagnosis, and both exit with 1."""
    table, found = (command("verify", "ad", "m", "--base", "base", *more, cwd=desk) for more in ([], ["--json"]))
    assert (table.returncode, found.returncode) == (1, 1), table.stdout + found.stderr
    report = strict_json(found.stdout)
    assert report["holds"] is False
    assert table.stdout.splitlines()[-1] == f"NOT EQUAL: {report['diagnosis']}"
    return report


def strict_json(text: str) -> Any:
    """Parsed as the standard says: without NaN and Infinity, which other readers refuse."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize(
    ("factor", "reason"), [(0, "nothing was merged"), (2, "it was merged twice"), (3, "another scale")], ids=str
)
def test_verify_says_what_went_wrong(desk: Path, factor: int, reason: str) -> None:
    name = "blocks.0.attention.query.W"
    W = read_arrays(desk / "base" / "model.safetensors")[0][name]
    tampered(desk, name, lambda merged: W + factor * (merged - W))
    found = diagnosed(desk)
    assert name in found["diagnosis"]
    assert reason in found["diagnosis"]
    assert [array["name"] for array in found["arrays"] if not array["holds"]] == [name]


def test_verify_sees_one_changed_number_in_an_array_that_is_not_adapted(desk: Path) -> None:
    tampered(desk, "blocks.1.mlp.up.b", lambda b: np.nextafter(b, np.float32(9)))
    assert diagnosed(desk)["diagnosis"] == "blocks.1.mlp.up.b is not adapted and yet differs from the base"


def test_the_json_of_verify_agrees_with_its_table(made: Path) -> None:
    found = strict_json(done("verify", "ad", "m", "--base", "base", "--json", cwd=made))
    table = done("verify", "ad", "m", "--base", "base", cwd=made)
    assert found["holds"] is True
    adapted = [array for array in found["arrays"] if array["adapted"]]
    assert [array["name"] for array in adapted] == [
        f"blocks.{i}.attention.{m}.W" for i in "01" for m in ("query", "value")
    ]
    for array in adapted:
        row = [
            array["name"],
            f"{array['gap']:.2e}",
            f"{array['bound']:.2e}",
            f"{array['used']:.3f}",
            f"{array['factor']:.7f}",
            f"{array['factor_low']:.7f}",
            "…",
            f"{array['factor_high']:.7f}",
        ]
        assert any(line.split() == row for line in table.splitlines()), row
    assert f"{found['model']['gap']:.2e}" in table


# what it costs


@pytest.mark.parametrize(
    ("arguments", "parameters", "trained"),
    [
        ("gpt2-medium", 354_823_168, 393_216),
        ("gpt2-large", 774_030_080, None),
        ("gpt3 --rank 4 --targets qv", None, 18_874_368),
        ("gpt3 --rank 1", None, 4_718_592),
        ("gpt2 --rank 2 --targets attention.query,mlp.up", None, None),
    ],
)
def test_params_prints_the_exact_numbers(
    tmp_path: Path, arguments: str, parameters: int | None, trained: int | None
) -> None:
    found = strict_json(done("params", *arguments.split(), "--json", cwd=tmp_path))
    assert parameters is None or found["parameters"] == parameters
    assert trained is None or found["trained"] == trained
    assert found["adapter_bytes"]["float16"] == 2 * found["trained"]
    assert (found["optimizer_bytes"], found["optimizer_bytes_full"]) == (8 * found["trained"], 8 * found["parameters"])
    table = done("params", *arguments.split(), cwd=tmp_path)
    for quantity, value in {
        "parameters": f"{found['parameters']:,}",
        "trained, by the closed form": f"{found['trained']:,}",
        "trained, counted on a model without numbers": f"{found['trained']:,}",
        "share of the whole": f"{found['share']:.5%}",
        "adapter file, float16": f"{found['adapter_bytes']['float16']:,} B",
        "Adam's moments, all trained": f"{found['optimizer_bytes_full']:,} B",
        "Adam's moments, lora": f"{found['optimizer_bytes']:,} B",
        "more of them beside the base": f"{found['added']:,}",
    }.items():
        assert re.search(rf"{quantity} +{re.escape(value)}(?![\d,])", table), (quantity, table)


def test_params_of_the_base_are_those_counted_in_its_file(tmp_path: Path) -> None:
    found = strict_json(done("params", "base", "--rank", 3, "--targets", "qkvo", "--json", cwd=tmp_path))
    base = load_model()
    assert found["parameters"] == count(base) == parameter_count(named_shape("base"))
    maps = parameters(base, *(f"attention.{name}.W" for name in ("query", "key", "value", "output")))
    assert (
        found["trained"] == 3 * sum(sum(W.shape) for W in maps.values()) == lora_count(named_shape("base"), 3, "qkvo")
    )


# bad files: name, content, options, and words of the one line

BAD_FILES: dict[str, tuple[str, bytes | None, list[str], list[str]]] = {
    "missing": ("none.tsv", None, [], ["none.tsv", "no such file"]),
    "empty": ("a.tsv", b"", [], ["a.tsv", "empty"]),
    "only blank lines": ("a.tsv", b"\n \n\n", [], ["a.tsv", "at least one pair"]),
    "only blank lines of text": ("a.txt", b"\n \n\n", [], ["a.txt", "only blank lines"]),
    "one pair": ("a.tsv", b"q\ta\n", [], ["at least 2", "got 1"]),
    "one prompt": ("a.tsv", b"q\ta\nq\tb\n", [], ["at least 2 different prompts", "got 1"]),
    "invalid utf-8": ("a.tsv", b"q\ta\nr\t\xff\n", [], ["a.tsv, line 2", "UTF-8", "0xff"]),
    "utf-16": ("a.tsv", "q\ta\n".encode("utf-16"), [], ["a.tsv, line 1", "UTF-8"]),
    "nul": ("a.tsv", b"q\ta\nr\t\0\n", [], ["a.tsv, line 2", "NUL"]),
    "tsv without separator": ("a.tsv", b"q\ta\nq a\n", [], ["a.tsv, line 2", "expected 2 columns, found 1"]),
    "tsv of three": ("a.tsv", b"q\ta\n\nr\tb\tc\n", [], ["a.tsv, line 3", "expected 2 columns, found 3"]),
    "csv without separator": ("a.csv", b"q,a\nq a\n", [], ["a.csv, line 2", "found 1"]),
    "e2e without separator": ("a.txt", b"q||a\nq a\n", [], ["a.txt, line 2", "||"]),
    "e2e with two": ("a.txt", b"q||a\nr||b||c\n", [], ["a.txt, line 2", "found 2"]),
    "jsonl broken": ("a.jsonl", b'{"prompt": "q", "reference": "a"}\n{"prompt"\n', [], ["a.jsonl, line 2", "not JSON"]),
    "jsonl of a list": ("a.jsonl", b"[1]\n", [], ["a.jsonl, line 1", "JSON object"]),
    "jsonl without field": ("a.jsonl", b'{"q": "x"}\n', [], ["a.jsonl, line 1", "'prompt'"]),
    "blank reference": ("a.tsv", b"q\ta\nr\t \n", [], ["a.tsv, line 2", "reference must not be blank"]),
    "too long": (
        "a.tsv",
        PAIRS.encode() + b"q\t" + b"x" * 200,
        [],
        ["example 21", "203 tokens", "holds 96", "--truncate"],
    ),
    "prompt too long": (
        "a.tsv",
        PAIRS.encode() + b"x" * 200 + b"\ta",
        ["--truncate"],
        ["example 21", "202", "96", "prompt"],
    ),
    "unknown suffix": ("a.data", b"q\ta\n", [], ["a.data", "format", "tsv"]),
    "unknown format": ("a.tsv", b"q\ta\n", ["--format", "xml"], ["xml", "tsv"]),
    "no such column": ("a.tsv", b"q\ta\n", ["--columns", "0,5"], ["a.tsv, line 1", "found 2"]),
    "no such name": ("a.csv", b"q,a\nb,c\n", ["--columns", "q,b"], ["a.csv, line 1", "'b'"]),
    "one column": ("a.tsv", b"q\ta\n", ["--columns", "1"], ["--columns", "'1'"]),
    "one column twice": ("a.tsv", b"q\ta\n", ["--columns", "1,1"], ["different"]),
    "no digit": ("a.tsv", b"q\ta\n", ["--columns", "²,1"], ["a.tsv, line 1", "'²'"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused(made: Path, tmp_path: Path, case: str) -> None:
    name, content, options, words = BAD_FILES[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    line = refused("adapt", name, "--out", "new", "--base", made / "base", *options, cwd=tmp_path)
    assert all(word in line for word in words), line


def test_a_folder_in_place_of_a_file_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    line = refused("adapt", "data", "--out", "new", "--base", made / "base", cwd=tmp_path)
    assert "data is a directory" in line


# bad settings: the arguments after adapt FILE --out new --base BASE, and words of the one line

BAD_SETTINGS: dict[str, list[str]] = {
    "--rank 0": ["rank", "at least 1", "got 0"],
    "--rank -1": ["rank", "got -1"],
    "--rank 17": ["rank must lie in 1..min(d_in, d_out) = 1..16", "got 17"],
    "--rank 1.5": ["--rank", "integer"],
    "--rank four": ["--rank", "integer"],
    "--alpha 0": ["alpha", "positive", "0.0"],
    "--alpha nan": ["alpha", "nan"],
    "--targets nothing": ["'nothing' matches none", "nearest"],
    "--targets quary": ["'quary'", "query"],
    "--targets ,": ["targets"],
    "--targets tokens": ["token embedding", "tied_head"],
    "--steps 0": ["steps", "at least 1", "got 0"],
    "--batch-size 0": ["batch_size", "at least 1", "got 0"],
    "--method lorra": ["--method must be one of lora,", "'lorra'"],
    "--set rank": ["--set takes key=value", "'rank'"],
    "--set rnk=4": ["a setting of lora must be one of rank,", "'rnk'"],
    "--set rank=many": ["rank", "whole number", "'many'"],
    "--method bitfit --rank 4": ["a setting of bitfit", "left out", "'rank'"],
    "--method top --set blocks=3": ["blocks must lie in 1..2", "got 3"],
    "--rates *.C:2": ["'*.C' matches none"],
    "--rates *.B": ["--rates"],
    "--learning-rate -0.1": ["learning_rate", "positive", "-0.1"],
    "--learning-rate inf": ["learning_rate", "inf"],
    "--dropout 1": ["dropout must lie in [0, 1)", "1.0"],
    "--dropout nan": ["dropout", "nan"],
    "--held-out 1.5": ["--held-out", "between 0 and 1", "1.5"],
    "--held-out 0": ["--held-out", "0.0"],
    "--held-out nan": ["--held-out", "nan"],
    "--seed -1": ["seed", "at least 0", "-1"],
    "--bias some": ["bias", "lora_only", "'some'"],
    "--tied-head cut": ["tied_head", "untie", "'cut'"],
    "--fields prompt": ["--fields", "'prompt'"],
    "--fields ,": ["--fields"],
    "--resume": ["nothing to resume", "new.partial"],
    "--rnk 4": ["No such option", "--rnk", "--rank"],
    "--truncate=3": ["--truncate"],
    "more.tsv": ["more.tsv"],
}


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_a_bad_setting_is_refused(made: Path, tmp_path: Path, setting: str) -> None:
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    line = refused("adapt", "pairs.tsv", "--out", "new", "--base", made / "base", *setting.split(), cwd=tmp_path)
    assert all(word in line for word in BAD_SETTINGS[setting]), line


OTHER_COMMANDS: dict[str, list[str]] = {
    "generate --prompt q --base m --tokens 0": ["--tokens", "at least 1", "got 0"],
    "generate --prompt q --base m --temperature -1": ["temperature", "at least 0", "-1.0"],
    "generate --prompt q --base m --temperature nan": ["temperature", "nan"],
    "generate --prompt q --base m --temperature 1 --seed -1": ["seed", "at least 0", "-1"],
    f"generate --base m --prompt {'x' * 200}": ["context", "96", "202"],
    "generate --base m": ["--prompt"],
    "generate --prompt q --base nowhere": ["no folder or file", "nowhere", "smollm2"],
    "generate --prompt q --base pairs.tsv": ["pairs.tsv"],
    "generate --prompt q --base base --adapter nowhere": ["nowhere/adapter.json", "missing"],
    "generate --prompt q --base base --adapter m": ["m/adapter.json", "missing"],
    "generate --prompt q --base ad": ["ad/config.json", "missing"],
    "generate --prompt q --base m --adapter ad": ["another base"],
    "merge nowhere --out new --base base": ["nowhere/adapter.json", "missing"],
    "merge ad --out m --base base": ["m exists", "--overwrite"],
    "merge ad --out new --base m": ["another base"],
    "merge ad --base base": ["--out"],
    "verify ad nowhere --base base": ["nowhere/config.json", "missing"],
    "verify ad": ["merged"],
    "adapt pairs.tsv --out ad --base base": ["ad exists", "--overwrite"],
    "adapt pairs.tsv --out pairs.tsv --base base": ["pairs.tsv exists", "which is read here"],
    "adapt pairs.tsv --out . --base base": ["exists"],
    "adapt --out new": ["file"],
    "params": ["model"],
    "params gpt5": ["gpt2", "gpt3", "base", "'gpt5'"],
    "params gpt3 --rank 0": ["rank", "at least 1", "got 0"],
    "params gpt3 --rank 12289": ["rank", "1..12288", "got 12289"],
    "params gpt3 --targets quary": ["nearest are query", "'quary'"],
    "params gpt3 --method top --set blocks=97": ["blocks must lie in 1..96", "got 97"],
    "gradcheck --seed -1": ["--seed", "at least 0", "-1"],
    "study --out ad": ["ad exists", "--overwrite"],
    "bench --sizes huge": ["size", "tiny, small, mid, gpt2, long", "'huge'"],
    "bench --sizes ,": ["size", "''"],
    "bench --workers 0": ["workers", "1..256", "got 0"],
    "bench --workers 100000": ["workers", "1..256", "got 100000"],
    "bench --rounds 0": ["rounds", "at least 1", "got 0"],
    "bench --batch 0": ["batch", "at least 1", "got 0"],
    "bench --sizes gpt2 --batch 100000": ["gpt2", "GB at once", "available", "--batch"],
    "bench --seed -1": ["--seed", "at least 0", "-1"],
    "bench --device tpu": ["device", "'tpu'"],
    "bench --out ad": ["ad exists", "--overwrite"],
    "frobnicate": ["No such command", "frobnicate"],
    "--frobnicate": ["No such option", "--frobnicate"],
}


@pytest.mark.parametrize("line", OTHER_COMMANDS)
def test_bad_arguments_are_refused(made: Path, line: str) -> None:
    said = refused(*line.split(), cwd=made).lower()  # one typer names an argument MODEL, another model
    assert all(word.lower() in said for word in OTHER_COMMANDS[line]), said


def test_an_adapter_for_another_base_is_refused(desk: Path) -> None:
    tiny_base(desk / "other", seed=1)
    for line in ("merge ad --out new", "generate --prompt q --adapter ad", "verify ad m"):
        assert "another base" in refused(*line.split(), "--base", "other", cwd=desk)
    assert "another base" in refused("merge", "ad", "--out", "new", cwd=desk)  # nor is it for the one that ships


def damaged(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    match kind:
        case "empty":
            data = bytearray()
        case "truncated":
            data = data[: len(data) // 2]
        case "header cut":
            data = data[: 8 + length // 2]
        case "length flipped":
            data[6] ^= 1
        case "header flipped":
            data[8] ^= 4
        case "name flipped":
            data[10] ^= 1
        case "infinite":
            data[-4:] = struct.pack("<f", float("inf"))
        case "no number":
            data[8 + length : 12 + length] = struct.pack("<f", float("nan"))
        case "text":
            data = bytearray(b"not a safetensors file at all")
    path.write_bytes(data)


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "truncated",
        "header cut",
        "length flipped",
        "header flipped",
        "name flipped",
        "infinite",
        "no number",
        "text",
    ],
)
def test_a_damaged_adapter_or_model_is_refused(desk: Path, kind: str) -> None:
    damaged(desk / "ad" / "adapter.safetensors", kind)
    word = "not finite" if kind in ("infinite", "no number") else ""
    line = refused("merge", "ad", "--out", "new", "--base", "base", cwd=desk)
    assert "ad/adapter.safetensors" in line
    assert word in line
    damaged(desk / "m" / "model.safetensors", kind)
    line = refused("generate", "--prompt", "q", "--base", "m", cwd=desk)
    assert "m/model.safetensors" in line
    assert word in line


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"base": 5, "lora": {}, "scaling": {}}'], ids=str)
def test_a_broken_description_is_refused(desk: Path, content: str) -> None:
    (desk / "ad" / "adapter.json").write_text(content)
    assert "ad/adapter.json" in refused("merge", "ad", "--out", "new", "--base", "base", cwd=desk)
    (desk / "m" / "config.json").write_text(content)
    assert "m/config.json" in refused("generate", "--prompt", "q", "--base", "m", cwd=desk)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_can_be_resumed(desk: Path) -> None:
    line = ["adapt", "pairs.tsv", "--out", "new", "--base", "base", *SHORT, "--learning-rate"]
    result = command(*line, "1e38", cwd=desk)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert re.match(r"lora-np: step \d+: the loss is (nan|inf)", last), result.stderr
    assert not (desk / "new").exists()
    assert "unfinished run" in refused(*line, "0.01", cwd=desk)
    done(*line, "0.01", "--overwrite", cwd=desk)


# where it cannot write


def test_a_place_that_cannot_be_written_is_refused(desk: Path) -> None:
    for command_ in (["adapt", "pairs.tsv", *SHORT], ["merge", "ad"]):
        line = refused(*command_, "--base", "base", "--out", "pairs.tsv/new", cwd=desk)
        assert "pairs.tsv/new" in line
        assert "Not a directory" in line


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(desk: Path) -> None:
    (desk / "closed").mkdir(mode=0o555)
    line = refused("merge", "ad", "--base", "base", "--out", "closed/new", cwd=desk)
    assert "closed/new" in line
    assert "Permission denied" in line


def disk_full_after(number: int) -> str:
    """Code for a process that can write no file beyond so many bytes, except at its very end."""
    pytest.importorskip("resource")
    return (
        "import resource as r; limit = r.getrlimit(r.RLIMIT_FSIZE)\n"
        f"r.setrlimit(r.RLIMIT_FSIZE, ({number}, limit[1]))\n"
        f"try:\n    from lora_np.cli import main; main()\nfinally:\n    r.setrlimit(r.RLIMIT_FSIZE, limit)"
    )


@pytest.mark.parametrize("number", [0, 1000])
def test_a_full_disk_leaves_nothing_half_written_and_what_was_there(desk: Path, number: int) -> None:
    code = disk_full_after(number)
    for line in (["adapt", "pairs.tsv", *SHORT], ["merge", "ad"]):
        for out in (["new"], ["m", "--overwrite"]):
            assert "large" in refused(*line, "--base", "base", "--out", *out, cwd=desk, code=code)


def test_a_full_disk_is_named_by_the_file_that_did_not_fit(desk: Path) -> None:
    assert "new" in refused("merge", "ad", "--base", "base", "--out", "new", cwd=desk, code=disk_full_after(1000))


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_from_it(desk: Path) -> None:
    line = ["adapt", "pairs.tsv", "--base", "base", "--batch-size", 4, "--steps", 25, "--out"]
    done(*line, "whole", cwd=desk)
    result = command(*line, "new", cwd=desk, code=failing_write(3))  # the mark, and the states of steps 0 and 10
    (said,) = findings(result.stderr)
    assert result.returncode == 2
    assert re.fullmatch("lora-np: .*No space left on device", said)
    assert read_arrays(desk / "new.partial" / "checkpoint.safetensors")[1]["step"] == "10"
    assert "large" in refused(*line, "new", "--resume", cwd=desk, code=disk_full_after(1000))
    done(*line, "new", "--resume", cwd=desk)
    whole, new = ((desk / out / "adapter.safetensors").read_bytes() for out in ("whole", "new"))
    assert whole == new


def failing_write(after: int) -> str:
    """Code for a process whose disk is full after so many files."""
    return (
        "import os; flush = os.fsync; files = []\n"
        "def fsync(file):\n"
        f"    if len(files) == {after}: raise OSError(28, 'No space left on device')\n"
        "    files.append(file); flush(file)\n"
        f"os.fsync = fsync\n{MAIN}"
    )


@pytest.mark.parametrize("kind", ["empty", "truncated", "header flipped", "name flipped", "no number"])
def test_a_damaged_checkpoint_is_refused_and_kept(desk: Path, kind: str) -> None:
    line = ["adapt", "pairs.tsv", "--base", "base", "--steps", 25, "--out", "new"]
    assert command(*line, cwd=desk, code=failing_write(3)).returncode == 2
    path = desk / "new.partial" / "checkpoint.safetensors"
    damaged(path, kind)
    said = refused(*line, "--resume", cwd=desk)
    assert "new.partial/checkpoint.safetensors" in said


def with_stdout(stdout: int, *arguments: str, cwd: Path) -> tuple[int, str]:
    """Exit code and stderr of the command, with its stdout where it is told."""
    with open(os.devnull) as nothing, tempfile.TemporaryFile("w+") as errors:
        code = exit_code([*arguments], cwd, {**os.environ}, MAIN, (nothing.fileno(), stdout, errors.fileno()))
        errors.seek(0)
        return code, errors.read()


def test_a_full_disk_behind_stdout_is_refused(made: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    for line in (["params", "gpt3"], ["generate", "--prompt", "q", "--base", "m"]):
        with open("/dev/full", "w") as full:
            assert with_stdout(full.fileno(), *line, cwd=made) == (2, "lora-np: stdout: No space left on device\n")


# how it talks


def test_without_arguments_it_shows_its_commands(tmp_path: Path) -> None:
    said = done(cwd=tmp_path)
    assert said == done("--help", cwd=tmp_path) == done("-h", cwd=tmp_path)
    assert all(re.search(rf"^  [a-z]* +{name} ", said, re.MULTILINE) for name in COMMANDS)


def test_the_commands_are_grouped_by_what_a_person_wants_and_fit_one_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_np.cli import app, code_of
    from lora_np.cli.options import GROUPS

    monkeypatch.setenv("COLUMNS", "80")
    assert code_of(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 23  # and one for what comes after
    assert max(map(len, lines)) <= 80
    heads = [line.split()[0] for line in lines if re.match(r"  [a-z]+ +[a-z]+ ", line) and not line.startswith("   ")]
    assert [head for head in heads if head in GROUPS] == list(GROUPS)  # each once, none is empty
    assert {command.rich_help_panel for command in app.registered_commands} == set(GROUPS)  # nobody forgot its own


def example(name: str) -> list[str]:
    """The worked example of a command's help, as arguments."""
    said = done(name, "--help", cwd=Path.cwd())
    found = re.findall(r"Example: lora-np (.*?)\n\s*\n", said, re.DOTALL)
    assert len(found) == 1, said
    arguments = shlex.split(found[0])
    assert arguments[0] == name
    return arguments


def test_the_examples_of_the_help_run_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("".join(f"{i}\t{i % 3}\n" for i in range(9)))
    for name in ("adapt", "merge", "verify", "generate", "params", "ledger"):
        few_steps = ["--steps", 8] if name == "adapt" else []
        done(*example(name), *few_steps, cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.tsv", "my-adapter", "my-model"}


def test_the_example_of_the_study_is_understood(tmp_path: Path) -> None:
    arguments = example("study")
    (tmp_path / arguments[arguments.index("--out") + 1]).mkdir()
    assert "exists" in refused(*arguments, cwd=tmp_path)  # it would take minutes: here it only finds its place taken


def test_the_example_of_the_bench_is_understood(tmp_path: Path) -> None:
    """Run with a place that is taken, for the same reason; tests/test_bench.py runs a smaller one."""
    assert "exists" in refused(*example("bench"), "--out", ".", cwd=tmp_path)


def test_checkpointed_blocks_train_the_same_adapter_to_the_byte(desk: Path) -> None:
    for out, more in (("one", ()), ("two", ("--checkpoint-blocks",))):
        done("adapt", "pairs.tsv", "--out", out, "--base", "base", *SHORT, *more, cwd=desk)
    assert tree(desk / "one") == tree(desk / "two")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_peers_without_pytorch_name_the_extra(tmp_path: Path) -> None:
    said = refused("bench", "--peers", cwd=tmp_path)
    assert all(word in said for word in ("PyTorch", "torch", 'pip install "lora_np[parity]"'))


# Code for a process that runs each argument as a command.
ONE_AFTER_ANOTHER = """
import sys
from lora_np.cli import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as end:
        assert end.code == 0, (line, end.code)
"""

# Code for a process that makes the gradient check of one seed only once.
CHECKING_ONCE = """
import lora_np.gradients
check, found = lora_np.gradients.gradcheck, {}
def once(*, seed, **settings):
    if seed not in found:
        found[seed] = check(seed=seed, **settings)
    return found[seed]
lora_np.gradients.gradcheck = once
"""


def test_the_json_of_gradcheck_agrees_with_the_table_of_its_example(tmp_path: Path) -> None:
    line = shlex.join(example("gradcheck"))
    result = command(line, f"{line} --json", cwd=tmp_path, code=CHECKING_ONCE + ONE_AFTER_ANOTHER)
    assert result.returncode == 0, result.stderr
    table, comma, rest = result.stdout.partition("\n{\n")
    found = strict_json(comma + rest)
    rows = found["rows"]
    assert found["holds"] is True
    assert f"{len(rows)} arrays, {len(rows)} hold, 0 do not (seed 1)" in table
    lines = [line.split() for line in table.splitlines()]
    for row in rows:
        shape = "×".join(map(str, row["shape"]))
        gaps = [f"{row[key]:.1e}" for key in ("hand_textbook", "hand_difference", "textbook_difference")]
        tail = [row["array"], *([shape] if shape else []), *gaps, row["verdict"]]
        assert any(line[-len(tail) :] == tail for line in lines), row


def test_without_a_terminal_progress_is_plain_lines_on_stderr(desk: Path) -> None:
    result = command("adapt", "pairs.tsv", "--out", "new", "--base", "base", *SHORT, cwd=desk)
    lines = result.stderr.splitlines()
    assert lines[0].startswith("step 1/6: loss ")
    assert lines[-1].startswith("step 6/6: loss ")
    assert all(re.fullmatch(r"step \d/6: loss \d+\.\d{4}, [\d,]+ tokens/s", line) for line in lines)
    assert not re.search("[\r\x1b]", result.stderr + result.stdout)


def on_a_terminal(*arguments: str, cwd: Path, columns: int) -> tuple[int, str]:
    """Exit code and screen of the command on a terminal so wide."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    with ThreadPoolExecutor(1) as reader:
        screen = reader.submit(all_of, ours)
        try:
            code = exit_code([*arguments], cwd, {**env, "TERM": "xterm"}, MAIN, (theirs, theirs, theirs))
        finally:
            os.close(theirs)
        return code, screen.result().decode()


def all_of(terminal: int) -> bytes:
    """Everything that appears on a terminal until its other side is closed."""
    screen = b""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as file:  # how Linux says that it is
        while part := file.read(65536):
            screen += part
    return screen


def test_on_a_narrow_terminal_nothing_breaks(desk: Path) -> None:
    code, screen = on_a_terminal(
        "adapt", "pairs.tsv", "--out", "new", "--base", "base", "--steps", "30", cwd=desk, columns=40
    )
    assert code == 0, screen
    assert re.search(r"step:.*\d+/30", screen)  # a bar
    assert "\r" in screen
    assert "gained by" in screen
    for line in ("verify ad m --base base", "params gpt3", "adapt --help", "generate --prompt q --base m"):
        code, screen = on_a_terminal(*line.split(), cwd=desk, columns=40)
        assert code == 0, screen
        assert "Traceback" not in screen
    code, screen = on_a_terminal("params", "gpt5", cwd=desk, columns=40)
    assert code == 2
    assert screen.startswith("lora-np: model must be one of")


def test_a_terminal_of_ascii_alone_gets_an_answer(made: Path) -> None:
    env = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    lines = ("verify ad m --base base", "params gpt3", "--help", "generate --prompt q --base m")
    result = command(*lines, cwd=made, code=ONE_AFTER_ANOTHER, env=env)
    assert result.returncode == 0, result.stderr


def test_a_reader_that_has_enough_is_no_error_to_talk_about(made: Path) -> None:
    for line in (
        ["params", "gpt3"],
        ["--help"],
        ["generate", "--prompt", "q", "--base", "m"],
        ["verify", "ad", "m", "--base", "base"],
    ):
        read, write = os.pipe()
        os.close(read)
        code, said = with_stdout(write, *line, cwd=made)
        os.close(write)
        assert said == "", line
        assert code in (0, 1)


def test_a_line_of_a_report_is_enough_for_head(made: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, "verify", "ad", "m", "--base", "base"],
        cwd=made,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"Found against")
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("threads", ["0", "257", "many"])
def test_a_number_of_threads_out_of_range_is_refused(desk: Path, threads: str) -> None:
    line = ["adapt", "pairs.tsv", "--out", "new", "--base", "base"]
    said = refused(*line, cwd=desk, env={"LORA_NP_THREADS": threads})
    assert "LORA_NP_THREADS" in said
    assert repr(threads) in said


def test_a_rank_beyond_the_size_of_its_matrix_warns_and_goes_on(desk: Path) -> None:
    line = ["adapt", "pairs.tsv", "--out", "new", "--base", "base", "--targets", "blocks.0.attention.query", *SHORT]
    result = command(*line, "--rank", 12, cwd=desk)
    assert result.returncode == 0
    warnings = [text for text in result.stderr.splitlines() if text.startswith("lora-np: warning:")]
    assert len(warnings) == 1
    assert "rank 12 trains 384 numbers, more than the 256 of the matrix" in warnings[0]


# importing


def brought_by(statement: str) -> set[str]:
    """The modules that a statement imports where NumPy and autograd are imported already."""
    code = f"import sys, autograd.numpy; before = {{*sys.modules}}; {statement}; print(*{{*sys.modules}} - before)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(said.split())


def strangers(modules: set[str]) -> set[str]:
    """The packages among them that are neither Python's nor what the core needs."""
    return {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"lora_np", "numpy", "autograd"}


def test_importing_brings_only_numpy_and_autograd_and_few_modules() -> None:
    """What importing takes beside those two is its modules, Python's own among them: 106, of which 71 are ours."""
    core, everything = brought_by("import lora_np"), brought_by("import lora_np.cli")
    assert "lora_np.lora" in core
    assert not strangers(core)
    assert strangers(everything) >= {"typer"}  # contrast
    assert len(core) < 120 < len(everything)


def test_a_model_that_is_broken_in_its_sizes_is_refused_before_it_is_built(desk: Path) -> None:
    path = desk / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "d_model": 10**9}))
    assert "base" in refused("generate", "--prompt", "q", "--base", "base", cwd=desk)  # not: "not enough memory"


def test_a_base_of_other_numbers_gives_another_adapter(desk: Path) -> None:
    start = load_model(desk / "base")
    save_model(desk / "other", with_parameters(start, {"tokens.W": parameters(start)["tokens.W"] * 2}))
    for base in ("base", "other"):
        done("adapt", "pairs.tsv", "--out", f"on-{base}", "--base", base, *SHORT, cwd=desk)
    one, other = ((desk / f"on-{base}" / "adapter.safetensors").read_bytes() for base in ("base", "other"))
    assert one != other
