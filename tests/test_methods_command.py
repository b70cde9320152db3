"""Every method through the real command: what it says, and what it refuses in one line without leaving anything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model
from test_methods import IN_PART, MERGED, NEVER, PLAIN, SAMPLES

from lora_np.cli import code_of
from lora_np.cli.options import METHOD_NAMES
from lora_np.files import load_adapter, load_model, save_model
from lora_np.methods import METHODS, name_of

SHORT = ["--steps", "3", "--batch-size", "4", "--base", "base"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small base, pairs and a plain text; the command runs in it."""
    save_model(tmp_path / "base", model(dtype=np.float32, vocab=256, context=40))
    (tmp_path / "pairs.tsv").write_text("".join(f"question {i}\tanswer {i % 3}\n" for i in range(8)))
    (tmp_path / "tale.txt").write_text("Once upon a time there was a small model. " * 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings_of(name: str, **changes: Any) -> list[str]:
    return [part for key, value in {**SAMPLES[name], **changes}.items() for part in ("--set", f"{key}={value}")]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command refuses: exit code 2, and every file as it was."""
    before = files(Path())
    capsys.readouterr()
    assert code_of([str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert files(Path()) == before
    assert line.startswith("lora-np: ")
    return line


# the way it is meant to go


@pytest.mark.parametrize("name", SAMPLES)
def test_every_method_is_adapted_asked_and_merged_or_refused(
    desk: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    line = ["adapt", "pairs.tsv", "--out", "ad", "--method", name, *settings_of(name), *SHORT]
    assert code_of(line) == 0
    loaded, method = load_adapter("ad", load_model("base"))
    numbers = METHODS[name](**SAMPLES[name]).numbers(loaded.config)
    assert f"{numbers:,} trained parameters" in capsys.readouterr().out
    assert name_of(method) == {"pissa": "lora", "lora-fa": "lora"}.get(name, name)
    ask = ["generate", "--prompt", "question 1", "--tokens", "3", "--base", "base", "--adapter", "ad"]
    assert code_of(ask) == 0
    merging = ["merge", "ad", "--out", "m", "--base", "base"]
    if name in PLAIN | MERGED:
        assert code_of(merging) == 0
        assert code_of(["verify", "ad", "m", "--base", "base"]) == 0
    else:
        assert name in NEVER | IN_PART
        assert "cannot be merged" in refused(*merging, capsys=capsys)
        assert not (desk / "m").exists()


def test_plain_text_can_be_adapted_to_behind_a_prefix(desk: Path) -> None:
    for name in ("prefix-embedding", "prefix-layer"):
        assert code_of(["adapt", "tale.txt", "--out", name, "--method", name, "--set", "prefix=4", *SHORT]) == 0


def test_the_help_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(METHOD_NAMES) == list(METHODS)
    for command in ("adapt", "params"):
        assert code_of([command, "--help"]) == 0
        assert ",".join(METHODS) in "".join(capsys.readouterr().out.split())  # wherever its lines break


# what is refused

METHOD, OUT = ["adapt", "pairs.tsv", *SHORT, "--method"], ["--out", "new"]
BAD: dict[str, tuple[list[str], str]] = {
    "an unknown method": ([*METHOD, "dorra", *OUT], r"--method must be one of dora, .*; got 'dorra'"),
    "an unknown setting": (
        [*METHOD, "dora", "--set", "rnak=2", *OUT],
        r"a setting of dora must be one of rank, .*; got 'rnak'",
    ),
    "a setting of a method that has none": (
        [*METHOD, "bitfit", "--set", "rank=2", *OUT],
        r"a setting of bitfit must be left out: it has none; got 'rank'",
    ),
    "an option of LoRA for another method": (
        [*METHOD, "prefix-kv", "--rank", "2", *OUT],
        r"a setting of prefix-kv must be one of length; got 'rank'",
    ),
    "a setting without a value": ([*METHOD, "dora", "--set", "rank", *OUT], r"--set takes key=value, got 'rank'"),
    "a setting that is no number": (
        [*METHOD, "dora", "--set", "rank=two", *OUT],
        r"rank must be a whole number, got 'two'",
    ),
    "a setting out of its range": (
        [*METHOD, "adapter-h", "--set", "rank=0", *OUT],
        r"rank must be a whole number of at least 1, got 0",
    ),
    "ranks without a pattern": (
        [*METHOD, "lora", "--set", "ranks=4", *OUT],
        r"ranks takes PATTERN:VALUE with commas between, got '4'",
    ),
    "a prefix that fills the context": (
        [*METHOD, "prefix-embedding", "--set", "prefix=40", *OUT],
        r"prefix and infix must leave 2 of the 40 places of the context, got 40",
    ),
    "a prefix that fills the context of a text": (
        ["adapt", "tale.txt", *SHORT, "--method", "prefix-layer", "--set", "prefix=39", *OUT],
        r"prefix and infix must leave 2 of the 40 places of the context, got 39",
    ),
    "a prefix that leaves no room for the examples": (
        [*METHOD, "prefix-embedding", "--set", "prefix=30", *OUT],
        r"example 1 .*the context.* 40",
    ),
    "no prefix at all": (
        [*METHOD, "prefix-layer", "--set", "prefix=0", *OUT],
        r"prefix and infix are both 0: there is nothing to learn",
    ),
    "an infix without a prompt": (
        ["adapt", "tale.txt", *SHORT, "--method", "prefix-layer", "--set", "infix=2", *OUT],
        r"an infix stands behind a prompt, and this text has none: take infix=0",
    ),
    "more blocks than there are": (
        [*METHOD, "top", "--set", "blocks=3", *OUT],
        r"blocks must lie in 1\.\.2, the blocks of this model, got 3",
    ),
    "adapters in no block": (
        [*METHOD, "adapter-p", "--set", "dropped=2", *OUT],
        r"dropped must leave one of the 2 blocks an adapter, got 2",
    ),
    "a Kronecker factor that does not divide": (
        [*METHOD, "compacter", "--set", "n=3", "--set", "rank=3", *OUT],
        r"n must divide d_model, got n = 3 for d_model 8",
    ),
    "a rank that PiSSA could not be stored with": (
        [*METHOD, "pissa", "--set", "rank=5", *OUT],
        r"rank must lie in 1\.\.min\(d_in, d_out\) = 1\.\.8 for .*, got 10",
    ),
    "DoRA with dropout": (
        [*METHOD, "dora", "--rank", "2", "--dropout", "0.1", *OUT],
        r"DoRA has no dropout, got dropout 0\.1",
    ),
    "DoRA on the token table": (
        [*METHOD, "dora", "--set", "targets=tokens", "--set", "tied_head=tie", *OUT],
        r"DoRA adapts linear maps only, and tokens is a table",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused_in_one_line_and_nothing_is_written(
    desk: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    arguments, expected = BAD[what]
    line = refused(*arguments, capsys=capsys)
    assert re.search(expected, line), line


def test_an_adapter_whose_method_is_unknown_is_refused_by_the_name_of_its_file(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(["adapt", "pairs.tsv", "--out", "ad", "--method", "dora", "--rank", "2", *SHORT]) == 0
    path = desk / "ad" / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "method": "dorra"}))
    line = refused("merge", "ad", "--out", "m", "--base", "base", capsys=capsys)
    assert re.search(r"adapter\.json.*'dorra'", line), line


def test_an_adapted_model_is_not_saved_as_a_plain_one(desk: Path) -> None:
    from test_methods import applied

    base = load_model("base")
    for name in set(SAMPLES) - PLAIN:
        with pytest.raises(ValueError, match=r"^the model carries a \w+ at .*: merge it, or save its adapter$"):
            save_model("new", applied(name, base))
        assert not (desk / "new").exists()
    for name in PLAIN:  # what carries no wrapper is a plain model
        save_model(name, applied(name, base))


def test_a_base_that_carries_a_wrapper_is_refused_before_anything_is_written(desk: Path) -> None:
    from test_methods import applied

    from lora_np.adaptation import DataConfig, adapt_to_file
    from lora_np.optimization import TrainingConfig

    for name in ("dora", "prefix-kv", "adapter-l"):
        for second in ("full", "lora", "prefix-layer"):
            base, method = applied(name, load_model("base")), METHODS[second](**SAMPLES[second])
            with pytest.raises(ValueError, match=r"carries a \w+ already, at .*: merge it first, or adapt the base"):
                adapt_to_file("pairs.tsv", "new", base, method, TrainingConfig(steps=1), DataConfig())
            assert sorted(path.name for path in desk.iterdir()) == ["base", "pairs.tsv", "tale.txt"]
