"""The README keeps its word: its example prints what it says, and its commands, links and map lead somewhere."""

import contextlib
import io
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_np.bench import SIZES, BenchConfig, BenchReport, Measured, Ratio, tables
from lora_np.bench.growth import Growth
from lora_np.bench.report import SizeReport
from lora_np.paper.results import StudyConfig
from lora_np.paper.summary import ranks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker: str, language: str) -> str:
    """The fenced block that stands after an HTML comment."""
    found = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no {language} block after <!-- {marker} -->"
    return found.group(1)


def test_the_example_prints_what_the_readme_says() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block("example", "python"), "README.md", "exec"), {})
    assert printed.getvalue() == block("output", "text")


def shown(printed: str) -> str:
    """What a terminal shows of it: lines without blanks at their ends."""
    return "\n".join(line.rstrip() for line in printed.strip().splitlines())


def test_the_merges_of_others_are_verified_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_np.cli import code_of

    monkeypatch.chdir(tmp_path)
    exec(compile(block("merges: files", "python"), "README.md", "exec"), {})
    printed, codes = io.StringIO(), []
    for line in block("merges: commands", "bash").splitlines():
        program, *arguments = line.split()
        if program == "cp":
            shutil.copytree(*arguments[-2:])
            continue
        with contextlib.redirect_stdout(printed):
            codes.append(code_of(arguments))
    assert codes == [0, 0, 0, 1]
    assert shown(printed.getvalue()) == shown(block("merges: output", "text"))


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("tutorials/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_map_names_files_that_exist() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", README.partition("## Map")[2].partition("\n## ")[0], re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) > 10
    for name in named:
        assert (ROOT / "lora_np" / name).exists() or (ROOT / name).exists(), name


def test_every_command_of_the_table_exists() -> None:
    from typer.main import get_command

    from lora_np.cli import app

    named = set(re.findall(r"^\| `lora-np (\w+)", README, re.MULTILINE))
    assert named == set(get_command(app).commands)


def test_what_it_tells_to_install_is_in_this_clone() -> None:
    """Nothing is released: `pip install lora_np` would find nothing, or somebody else's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"pip install (?:--quiet )?([^#&\n`]+)", README)
    assert len(named) >= 4
    for line in named:
        found = re.fullmatch(r'-e (?:\.|"\.\[(\w+(?:,\w+)*)\]")', line.strip())
        assert found, line
        assert set((found[1] or "").split(",")) - {""} <= set(project["optional-dependencies"])


@pytest.mark.parametrize("name", ["study", "test"])
def test_the_two_commands_are_one_line_each(name: str) -> None:
    assert len(block(f"command: {name}", "bash").strip().splitlines()) == 1


def test_the_table_of_the_study_has_the_columns_that_the_command_prints() -> None:
    """Its numbers are those of seed 0; a study of other ranks has the same form."""
    written = README.partition("(0.0521 bits per byte):\n\n")[2].partition("\n\n")[0].splitlines()
    config = StudyConfig()
    rows: dict[int, tuple[int, int, float, float]] = {}
    for line in written[3:]:
        rank, numbers, size, loss, used = (cell.strip(" %bytes").replace(",", "") for cell in line.split("|")[1:-1])
        rows[int(rank)] = int(numbers), int(size), float(loss), float(used)
    assert tuple(rows) == config.ranks
    runs = [
        SimpleNamespace(
            rank=rank, predicted=n, counted=n, stored=n, file_bytes=size, loss=loss, used=used / 100
        )
        for rank, (n, size, loss, used) in rows.items()
    ]  # fmt: skip
    found: Any = SimpleNamespace(config=config, base_loss=2.8493, of_rank=lambda r: [x for x in runs if x.rank == r])
    assert ranks(found).splitlines() == written


def test_the_tables_of_the_bench_are_those_that_the_command_writes() -> None:
    """Title for title and column for column; the rows are of a machine."""
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    written, rest = page.partition("<!-- bench -->")[2].split("<!-- end of bench -->")
    measured = Measured("lora", SIZES["tiny"], 8, (1.0,), 1, (), 1.0)
    generated = tuple(replace(measured, workload=f"generation, {name}") for name in ("base", "adapted"))
    grown = Growth("rank", (1, 2), (1.0, 1.0), (1, 2), Ratio(1.0, 1.0, 1.0), 1.0, 1.0, 1.0)
    compiled = tuple(replace(measured, workload=f"peer, {name}") for name in ("torch.compile", "jax"))
    engines = (replace(measured, workload="lora, inline"),)
    size = SizeReport(SIZES["tiny"], 1, measured, measured, measured, measured, compiled, engines)
    report = BenchReport(BenchConfig((SIZES["tiny"],)), "this machine", (size,), generated, (grown,))
    assert len(tables(report)) == 6
    for title, head, _ in tables(report):
        where = rest if "engine" in title else written
        assert title in where
        assert f"| {' | '.join(head)} |" in where
    for name in SIZES:
        assert written.count(f"| {name} |") == 4
