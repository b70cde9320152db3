"""The page on other people's merges keeps its word: its commands print what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from test_readme import shown

from lora_np.cli import code_of

PAGE = (Path(__file__).parent.parent / "docs" / "other-peoples-merges.md").read_text(encoding="utf-8")


def block(marker: str, language: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found.group(1)


def test_the_commands_print_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block("merges: files", "python"), "page", "exec"), {})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        codes = [code_of(line.split()[1:]) for line in block("merges: commands", "bash").splitlines()]
    assert codes == [0, 1, 0, 0]
    assert shown(printed.getvalue()) == shown(block("merges: output", "text"))
    assert "<svg" in (tmp_path / "wrong.html").read_text(encoding="utf-8")


def test_a_base_and_a_merge_that_are_swapped_are_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An honest merge was rounded, so the base is not the merge minus the update, to the last bit."""
    monkeypatch.chdir(tmp_path)
    exec(compile(block("merges: files", "python"), "page", "exec"), {})
    assert code_of(["verify", "adapter", "base", "--base", "merged"]) == 1
    assert "the base and the merged files are swapped" in capsys.readouterr().out
