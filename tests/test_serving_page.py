"""The page on serving keeps its word: its example prints what it says, and its links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from test_bench_serving import report

from lora_np.bench.serving import serving_tables

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
TEXT = PAGE.read_text(encoding="utf-8")


def block(marker: str, language: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found.group(1)


def test_the_example_prints_what_the_page_says() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block("example", "python"), "docs/serving.md", "exec"), {})
    assert printed.getvalue() == block("output", "text")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:|#)([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (PAGE.parent / target).exists()


def test_the_tables_are_those_that_the_command_writes() -> None:
    """Title for title and column for column; the figures are of a machine."""
    written = TEXT.partition("<!-- bench -->")[2].partition("<!-- end of bench -->")[0]
    for title, head, _ in serving_tables(report()):
        if title in written or "PEFT" not in title:
            assert title.partition("; same text")[0] in written
            assert f"| {' | '.join(head)} |" in written
