"""A stream that breaks costs no work; a line that comes from a file is short and harmless."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model
from commands import AS_FROM_A_TERMINAL, ended
from hypothesis import given
from hypothesis import strategies as st

from lora_np.cli import options
from lora_np.cli.main import code_of
from lora_np.cli.streams import LONGEST, Steady, lost, one_line, printable, steady
from lora_np.files import load_adapter, load_model, save_model

FULL = Path("/dev/full")
LINE = ["adapt", "pairs.tsv", "--out", "new", "--base", "base", "--steps", "2", "--batch-size", "4"]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    save_model(tmp_path / "base", model(0, np.float32, vocab=256, context=96, d_model=16))
    (tmp_path / "pairs.tsv").write_text("".join(f"question {i}\tanswer {i % 3} to it\n" for i in range(20)))
    return tmp_path


# streams


def reader_gone() -> int:
    """The end of a pipe into which nobody looks any more."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("broken", ["full", "without a reader", "closed"])
def test_a_broken_stream_takes_everything_and_knows_why(broken: str) -> None:
    if broken == "full" and not FULL.exists():
        pytest.skip("there is no /dev/full here")
    number = os.open(FULL, os.O_WRONLY) if broken == "full" else reader_gone()
    with open(os.dup(number), "w") as theirs:
        stream = steady(theirs, 1)
        if broken == "closed":
            os.close(theirs.fileno())
        for _ in range(3):
            print("a finding", file=stream, flush=True)
        raw = stream.buffer.raw  # type: ignore[attr-defined]
        assert isinstance(raw, Steady)
        assert raw.failed is not None
        expected = {"full": errno.ENOSPC, "without a reader": errno.EPIPE, "closed": errno.EBADF}
        assert raw.failed.errno == expected[broken]
        if broken == "closed":
            os.dup2(number, theirs.fileno())
        os.set_blocking(number, True)
    os.close(number)


def test_what_is_written_arrives_even_where_it_must_wait() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with open(write, "w") as theirs, open(read, "rb") as reader:
        stream = steady(theirs, 1)
        while True:  # as full as it gets
            try:
                os.write(write, b"x" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(read, False)
        held = len(os.read(read, 1 << 20))
        print("and this", file=stream, flush=True)
        assert reader.read().endswith(b"and this\n")
        assert held


def test_what_an_encoding_lacks_becomes_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with open(write, "w", encoding="ascii") as theirs, open(read, "rb") as reader:
        monkeypatch.setattr(sys, "stdout", steady(theirs, 1))
        print("α = 1 \udc80", flush=True)
        assert lost() is None
        monkeypatch.undo()
        theirs.close()
        assert reader.read() == b"? = 1 ?\n"


def test_a_stream_that_is_none_and_one_that_is_no_file_are_taken_as_they_are() -> None:
    assert steady(io.StringIO(), 1).getvalue() == ""  # type: ignore[attr-defined]


# through the real command: what is to be done is done


def finished(desk: Path) -> bool:
    load_adapter(desk / "new", load_model(desk / "base"))
    return not (desk / "new.partial").exists()


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_stdout_is_said_when_the_work_is_done(desk: Path) -> None:
    with FULL.open("w") as full:
        code, _, error = ended(*LINE, cwd=desk, stdout=full)
    assert finished(desk)
    assert code == 2
    assert error.splitlines()[-1] == "lora-np: stdout: No space left on device"


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_stderr_costs_nothing(desk: Path) -> None:
    with FULL.open("w") as full:
        code, said, _ = ended(*LINE, cwd=desk, stderr=full)
    assert finished(desk)
    assert code == 0
    assert "gained by" in said


def test_readers_that_have_enough_cost_nothing_and_are_nothing_to_talk_about(desk: Path) -> None:
    write = reader_gone()
    code, _, _ = ended(*LINE, cwd=desk, stdout=write, stderr=write)
    os.close(write)
    assert finished(desk)
    assert code == 0


def test_closed_streams_cost_nothing_and_no_file_is_mistaken_for_them(desk: Path) -> None:
    closing = AS_FROM_A_TERMINAL + "import os, sys\nfor n in (0, 1, 2): os.close(n)\nsys.stdout = sys.stderr = None\n"
    code, said, error = ended(*LINE, cwd=desk, before=closing)
    assert (code, said, error) == (0, "", "")
    assert finished(desk)


def test_a_reader_that_has_enough_changes_no_verdict(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    assert code_of(LINE) == code_of(["merge", "new", "--out", "m", "--base", "base"]) == 0
    for merged, verdict in (("m", 0), ("base", 1)):
        write = reader_gone()
        code, _, error = ended("verify", "new", merged, "--base", "base", cwd=desk, stdout=write)
        os.close(write)
        assert (code, error) == (verdict, "")


@pytest.mark.parametrize("columns", ["0", "1", "-5", "many", ""])
def test_a_table_is_printed_whatever_the_width_is_said_to_be(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    options.table("costs", ("quantity", "value"), [("parameters", "123")])
    shown = "".join(capsys.readouterr().out.split())
    assert all(digit in shown for digit in "123")
    assert "parameters" in shown or (columns == "1" and set("parameters") <= set(shown))  # folded


def test_the_command_imports_nothing_of_the_current_folder(desk: Path) -> None:
    for name in ("safetensors", "threadpoolctl", "tqdm", "typing_extensions"):
        (desk / f"{name}.py").write_text(f"open('executed-{name}', 'w').close()\n")
    contrast = AS_FROM_A_TERMINAL + "import tqdm\n"
    assert ended(cwd=desk, before=contrast)[0] == 0
    assert {path.name for path in desk.glob("executed-*")} == {"executed-tqdm"}
    (desk / "executed-tqdm").unlink()
    assert ended("generate", "--prompt", "q", "--base", "base", "--tokens", 1, cwd=desk)[0] == 0
    assert not list(desk.glob("executed-*"))


# lines


@given(st.text(max_size=3 * LONGEST))
def test_any_text_becomes_one_line_of_bounded_length_that_can_be_printed(text: str) -> None:
    line = one_line(text)
    assert len(line) <= LONGEST
    assert line.isprintable()


def test_what_is_short_and_plain_stays_as_it_is_and_what_is_long_keeps_both_ends() -> None:
    plain = "rank must lie in 1..16, got α = 17: choose less"
    assert one_line(plain) == plain
    assert one_line("a\n  b\tc\r") == "a b c"
    long = one_line("lora-np: a.jsonl: " + "x" * 10**6 + "\x1b: remove it")
    assert long.startswith("lora-np: a.jsonl: xxx")
    assert long.endswith(r"xxx\x1b: remove it")
    assert " ... " in long


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[2J", r"\x1b[2J"), ("\x07\x9b", r"\x07\x9b"), ("\u202e", r"\u202e"), ("\udc80", r"\udc80")],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == one_line(text) == shown


def said_of(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command refuses these arguments."""
    assert code_of(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.isprintable()
    assert len(line) <= LONGEST
    return line


def test_a_record_of_many_fields_is_refused_in_a_short_line(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {f"field{i}": i for i in range(30_000)}
    (desk / "a.jsonl").write_text(json.dumps(record) + "\n")
    line = said_of(["adapt", desk / "a.jsonl", "--out", desk / "new", "--base", desk / "base"], capsys)
    assert "a.jsonl, line 1: field 'prompt' must be a string, got no such field" in line


def test_no_sequence_of_a_file_or_of_its_name_reaches_the_terminal(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "a.jsonl").write_text(json.dumps({"\x1b[31m\x07": 1}) + "\n")
    name = desk / "\x1b]0;title\x07.tsv"
    for file in (desk / "a.jsonl", name):
        line = said_of(["adapt", file, "--out", desk / "new", "--base", desk / "base"], capsys)
        assert r"\x1b" in line


def test_a_finding_is_escaped_on_a_terminal_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options.say("a\tb\n\x1b[2J")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    options.say("a\tb\n\x1b[2J")
    assert capsys.readouterr().out == "a\tb\n\x1b[2J\n" + "a\tb\n\\x1b[2J\n"


# what is refused by name, before any work


@pytest.fixture
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins to work in these tests has come too late to refuse."""

    def works(*_: Any, **__: Any) -> None:
        pytest.fail("the work had begun")

    for where in (
        "lora_np.adaptation.Text.bits_per_byte",
        "lora_np.bench.bench",
        "lora_np.gradients.gradcheck",
        "lora_np.wrappers.merge",
    ):
        monkeypatch.setattr(where, works)


@pytest.mark.usefixtures("_no_work")
@pytest.mark.parametrize("out", [".", "..", "dangling", "loop", "loop/new", "pairs.tsv", "pairs.tsv/new", "mine"])
def test_an_out_that_is_no_place_for_a_new_folder_is_refused_by_name_before_any_work(
    desk: Path, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    (desk / "dangling").symlink_to("nowhere")
    (desk / "loop").symlink_to("loop")
    (desk / "mine").mkdir()
    (desk / "mine" / "notes.txt").touch()
    before = sorted(desk.rglob("*"))
    lines = [
        ["adapt", "pairs.tsv", "--base", "base"],
        ["study", "--base", "base"],
        ["bench", "--sizes", "tiny"],
        ["merge", "base", "--base", "base"],
    ]
    for line in lines:
        for more in ([], ["--overwrite"]):
            assert out in said_of([*line, "--out", out, *more], capsys)
    assert sorted(desk.rglob("*")) == before


@pytest.mark.usefixtures("_no_work")
def test_a_folder_that_holds_an_input_of_the_command_is_not_replaced(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    for line in (["adapt", "pairs.tsv"], ["study"], ["merge", "base"]):
        line += ["--base", "base", "--out", "base", "--overwrite"]
        assert "base exists and holds base, which is read here" in said_of(line, capsys)


@pytest.mark.usefixtures("_no_work")
def test_a_disk_that_is_read_only_is_found_before_anything_is_measured(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # as access(2) says of such a file system, to root as well
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    for line in (["bench", "--sizes", "tiny"], ["study", "--base", desk / "base"], ["adapt", desk / "pairs.tsv"]):
        assert "denied" in said_of([*line, "--out", desk / "new"], capsys)
