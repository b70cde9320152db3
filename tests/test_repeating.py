"""The study of the paper, whole, on a tiny model: it survives being stopped, and no scheduler changes a bit of it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model
from commands import begun

from lora_np.cli import code_of
from lora_np.disk.folders import partial_folder
from lora_np.files import save_model
from lora_np.paper import repeating
from lora_np.paper.asking import Profile
from lora_np.paper.cells import Cell, Results
from lora_np.paper.repeating import ABOUT, ROWS, repeat
from lora_np.paper.sections import SECTIONS

ONLY = ("heads", "adaptive")
PROFILE = Profile("tiny", Cell(task="sentiment", steps=2, examples=8, scored=2, batch=4), seeds=2)
CELLS = 4 * 2 + 2
MEASURE = repeating.row_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(folder, model(dtype=np.float32, vocab=256, context=200, d_model=8, layers=1))
    return folder


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two sections and the exact laws, made in this process without a stop."""
    out = tmp_path_factory.mktemp("whole") / "study"
    result = repeat(out, PROFILE, base=base, only=(*ONLY, "laws"), engine="inline", parquet=False)
    assert result.holds
    return out


def run(out: Path, base: Path, *, engine: str = "inline", **more: Any) -> Any:
    return repeat(out, PROFILE, base=base, only=ONLY, engine=engine, **more)


def test_the_folder_holds_page_rows_verdicts_and_every_figure(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    ids, links = set(re.findall(r'\bid="([^"]+)"', page)), set(re.findall(r'href="#([^"]+)"', page))
    assert {f"row-{n}" for n in range(1, CELLS + 1)} < ids
    assert links <= ids  # each claim leads to its rows, and of a picture every part to its own
    assert {"row-1", f"row-{CELLS}"} < links
    files = set(re.findall(r'href="([^"#]+)"', page))
    assert files == {"results.csv", "figures/", "figures/heads.svg"}
    assert all((whole / name).exists() for name in files)
    assert "<script" not in page
    claims = json.loads((whole / ABOUT).read_text())["claims"]
    shown = (whole / "verdicts.md").read_text()
    assert len(claims) == 8 + 1 + 1
    assert all(claim["sentence"] in page.replace("&#x27;", "'") for claim in claims)
    assert len([line for line in shown.splitlines() if line.startswith("| ")]) == 2 + len(claims)
    assert f"{CELLS} rows, 2 seeds a cell" in shown


def stopped_after(n: int, monkeypatch: pytest.MonkeyPatch, asked: list[Cell]) -> None:
    """Let the study be stopped after so many rows; every cell that is measured is noted."""

    def row_of(base: Any, cell: Cell) -> Any:
        if len(asked) == n:
            raise KeyboardInterrupt
        asked.append(cell)
        return MEASURE(base, cell)

    monkeypatch.setattr(repeating, "row_of", row_of)


@pytest.mark.parametrize("cut", [0, 7])
def test_a_study_that_was_stopped_goes_on_and_makes_no_row_twice(
    base: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    out, asked, said = tmp_path / "study", [], []
    stopped_after(4, monkeypatch, asked)
    with pytest.raises(KeyboardInterrupt):
        run(out, base, say=said.append)
    assert said[-1] == f"stopped: what is measured stays in {out}.partial, and --resume goes on from there"
    kept = partial_folder(out) / ROWS
    if cut:  # a kill in the middle of writing a row: the whole ones stay
        kept.write_bytes(kept.read_bytes()[:-cut])
        asked.pop()
    with pytest.raises(FileExistsError, match="continue it with --resume"):
        run(out, base)
    stopped_after(-1, monkeypatch, asked)
    run(out, base, resume=True)
    assert len(asked) == len(set(asked)) == CELLS
    assert (out / ROWS).read_bytes() == (whole / ROWS).read_bytes()


def test_a_study_of_another_version_is_refused_by_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "study", []
    stopped_after(2, monkeypatch, asked)
    with pytest.raises(KeyboardInterrupt):
        run(out, base)
    about = partial_folder(out) / ABOUT
    was = json.loads(about.read_text())
    for key, value in (("lora_np", "0.0.9"), ("layout", 0), ("base", "other")):
        about.write_text(json.dumps({**was, key: value}))
        with pytest.raises(ValueError, match=f"is a study of another version: {key} was {value!r}, now it is"):
            run(out, base, resume=True)
    assert len(Results.at(partial_folder(out) / ROWS).rows) == 2  # what it has is left as it was


def test_processes_give_the_same_rows(base: Path, whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "study", base, engine="processes", workers=2)
    assert (tmp_path / "study" / ROWS).read_bytes() == (whole / ROWS).read_bytes()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--only", "table-55"], "--only must be one of table-5, "),
        (["--tasks", "sentiment,sqll"], "task must be one of sql, "),
        (["--methods", "lorra"], "--methods must be one of lora, "),
        (["--scheduler", "dusk://here:1"], "engine must be one of inline, threads, processes, dask://HOST:PORT"),
        (["--device", "gpu"], "--device belongs to the study without --paper"),
        (["--workers", "0"], "workers must be a whole number in 1..256, got 0"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert code_of(["study", "--paper", "--out", str(tmp_path / "study"), "--base", str(base), *more]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option", ["--only table-5", "--tasks sql", "--methods lora", "--scheduler inline", "--parquet"]
)
def test_options_of_the_paper_belong_to_the_paper(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["study", *option.split()]) == 2
    name = option.split()[0]
    assert f"{name} belongs to --paper: add it, or leave {name} out" in capsys.readouterr().err


def test_the_command_says_its_verdicts(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repeating, "default", lambda: PROFILE)
    out = tmp_path / "study"
    arguments = ["study", "--paper", "--out", str(out), "--base", str(base), "--only", "adaptive"]
    assert code_of([*arguments, "--scheduler", "inline"]) == 0
    said = capsys.readouterr().out
    assert "2 cells to measure, 0 known" in said
    assert f"2 rows, 1 claims: {out / 'report.html'}" in said
    assert code_of([*arguments, "--scheduler", "inline"]) == 2
    assert "exists: choose another --out, or allow --overwrite" in capsys.readouterr().err


def test_an_exact_law_that_does_not_hold_is_exit_code_1(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_np.paper import section_laws

    law = next(iter(section_laws.LAWS.values()))
    broken = type(law)(**{**vars(law), "sides": lambda rng, fault: law.sides(rng, law.faults[0])})
    monkeypatch.setattr(section_laws, "LAWS", {law.name: broken})
    monkeypatch.setattr(repeating, "default", lambda: PROFILE)
    line = ["study", "--paper", "--out", str(tmp_path / "study"), "--base", str(base), "--only", "laws"]
    assert code_of([*line, "--scheduler", "inline"]) == 1


def test_table_1_counts_before_it_times(base: Path) -> None:
    from lora_np.files import load_model
    from lora_np.paper.asking import Known

    section = SECTIONS["table-1"](Known({}, load_model(base), PROFILE))
    assert section.claims[0].verdict == "holds here"
    assert [line[1] for line in section.tables[0].lines] == ["0", "2", "4"]


def test_the_full_profile_has_five_seeds_and_more_steps() -> None:
    profile, default = repeating.full(), repeating.default()
    assert profile.seeds >= 5
    assert profile.cell.steps > default.cell.steps
    assert default.seeds >= 2


@pytest.mark.slow
def test_a_study_that_is_killed_keeps_its_rows_and_ends_with_those_of_one_that_was_not(
    base: Path, tmp_path: Path
) -> None:
    """A real process, and a real kill -9 between rows or in the middle of one."""
    out = tmp_path / "study"
    line = ["study", "--paper", "--out", out, "--base", base, "--only", "heads", "--scheduler", "inline"]
    rows = partial_folder(out) / ROWS
    with begun(*line, cwd=tmp_path) as process:
        while process.poll() is None and (not rows.exists() or rows.read_bytes().count(b"\n") < 3):
            time.sleep(0.02)
        process.kill()
    kept = Results.at(rows).rows
    assert len(kept) >= 2
    default = repeating.default()
    repeat(out, default, base=base, only=("heads",), engine="inline", resume=True)
    repeat(tmp_path / "other", default, base=base, only=("heads",), engine="inline")
    assert (out / ROWS).read_bytes() == (tmp_path / "other" / ROWS).read_bytes()
    assert set(kept) <= set(Results.at(out / ROWS).rows)
