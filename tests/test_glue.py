"""GLUE in part by one command: its cells are those of `adapt`, are made once, and stand in the table as they are."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from builders import model

from lora_np.cli import code_of
from lora_np.disk.reading import read_json
from lora_np.evaluation import Judged
from lora_np.files import save_model
from lora_np.paper.glue import METHODS, METRICS, TABLE, Cell, Plan, main, table
from lora_np.paper.intervals import Interval
from lora_np.tasks.table import TASKS

LINE = ["data", "--base", "base", "--out", "out", "--steps", "3", "--seeds", "2", "--methods", "bitfit,head"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Miniatures in the form of the real files, and a small base that reads bytes."""
    save_model(tmp_path / "base", model(dtype=np.float32, vocab=256, context=80))
    kinds = {"sst2": "sentiment", "cola": "acceptability", "rte": "entailment"}
    for task, kind in kinds.items():
        (tmp_path / "data" / task).mkdir(parents=True)
        for name, of, n in (("train.tsv", "train", 40), ("dev.tsv", "validation", 12)):
            (tmp_path / "data" / task / name).write_text(published(task, kind, n, of))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def published(task: str, kind: str, n: int, of: str) -> str:
    number = {label: i for i, label in enumerate(TASKS[kind].labels)}
    rows = {
        "sst2": lambda p: f"{p.prompt}\t{number[p.reference]}",
        "cola": lambda p: f"gj04\t{number[p.reference]}\t\t{p.prompt}",
        "rte": lambda p: f"0\t{p.prompt}\t{p.reference}",
    }
    head = {"sst2": ["sentence\tlabel"], "rte": ["index\tsentence1\tsentence2\tlabel"], "cola": []}[task]
    return "\n".join([*head, *map(rows[task], TASKS[kind].problems(n, of=of))]) + "\n"


def test_the_cells_are_made_once_and_the_table_is_made_of_them(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(LINE)
    first = capsys.readouterr().out
    assert len([line for line in first.splitlines() if "seed" in line and "nats an example" in line]) == 3 * 2 * 2
    shown = (desk / "out" / TABLE).read_text()
    assert first.endswith(shown + "\n")
    (desk / "out" / "rte-head-1.json").unlink()
    main(LINE)
    again = capsys.readouterr().out
    assert again.endswith(shown + "\n")
    assert len([line for line in again.splitlines() if "nats an example" in line]) == 1
    rows = [line.split(" | ")[0].strip("| ") for line in shown.splitlines() if line.startswith("|")]
    assert rows == ["method", "---", "the commonest label", "bitfit", "head"]


def test_a_cell_is_what_its_command_makes(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*LINE, "--tasks", "cola", "--methods", "bitfit"])
    capsys.readouterr()
    command = shlex.split(
        Plan(steps=3).command("cola", "bitfit", 1).replace("FOLDER", "base").replace(" cola/", " data/cola/")
    )
    assert code_of(command[1:]) == 0
    said = capsys.readouterr().out
    cell = read_json(desk / "out" / "cola-bitfit-1.json")["cell"]
    assert f"adapted: {Judged(cell['accuracy'], cell['matthews'], cell['nats'])}" in said


def test_a_folder_of_other_settings_is_refused(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*LINE, "--tasks", "sst2", "--methods", "head"]
    main(line)
    with pytest.raises(SystemExit):
        main([*line, "--steps", "4"])
    assert "is of other settings than asked for now" in capsys.readouterr().err
    main([*line, "--seeds", "3"])  # more seeds go on


@pytest.mark.parametrize(
    ("change", "message"),
    [(["--tasks", "mnli"], "--tasks must be of"), (["--methods", "loro"], "--methods must be of lora, "),
     (["--steps", "0"], "steps must be a whole number"), (["--base", "nowhere"], "nowhere")],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_in_a_line(
    desk: Path, change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*LINE, *change])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_data_that_is_not_there_is_named(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "data" / "rte" / "dev.tsv").unlink()
    with pytest.raises(SystemExit):
        main([*LINE, "--tasks", "rte"])
    assert "holds no dev.tsv: DATA must hold sst2, cola, rte of GLUE" in capsys.readouterr().err


def test_the_table_says_means_and_intervals_and_counts_what_cannot_be_said_as_glue_does() -> None:
    found = [
        Cell(task, "lora", seed, 100, 0.5, 0.8 + seed / 10, None if seed else 0.3, 0.1)
        for task in METRICS
        for seed in (0, 1)
    ]
    lines = table(found, Plan(seeds=2)).splitlines()
    accuracy, matthews = Interval.of([0.8, 0.9]), Interval.of([0.3, 0.0])
    shown = [f"{i.mean:.3f} ± {i.half_width:.3f}" for i in (accuracy, matthews, accuracy)]
    assert lines[3] == f"| lora | {METHODS['lora'][1]:g} | 100 | {' | '.join(shown)} |"
    assert lines[2] == "| the commonest label |  | 0 | 0.500 | 0 | 0.500 |"
    assert "0.800" in table(found[:1], Plan(seeds=1))  # of one seed there is no interval
    assert "±" not in table(found[:1], Plan(seeds=1))
