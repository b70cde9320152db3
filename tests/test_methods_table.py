"""The table of every method on the museum labels: its numbers are those of the commands beside it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import model

from lora_np.cli import code_of
from lora_np.costs.budget import Offer
from lora_np.files import save_model
from lora_np.methods import METHODS
from lora_np.paper import methods
from lora_np.paper.intervals import Interval
from lora_np.paper.methods import LABELS, TABLE, Plan, Row, grid, main, table
from lora_np.tasks import generate, read_examples
from lora_np.tasks.generated import as_tsv

LINE = ["--base", "base", "--out", "out", "--steps", "2", "--seeds", "2", "--examples", "20"]
LINE += ["--methods", "lora,dora", "--budget", "150"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_model(tmp_path / "base", model(dtype=np.float32, vocab=256, context=160))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_labels_are_read_as_they_were_drawn(tmp_path: Path) -> None:
    drawn = generate(30, np.random.default_rng(0))
    (tmp_path / LABELS).write_text(as_tsv(drawn))
    assert read_examples(tmp_path / LABELS) == drawn


def test_the_table_is_printed_kept_and_not_made_twice(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(LINE)
    first = capsys.readouterr().out
    shown = (desk / "out" / TABLE).read_text()
    assert first.endswith(shown + "\n")
    assert len([line for line in first.splitlines() if "lora-np adapt" in line]) == 2 * (3 + 2)
    rows = [line.split(" | ")[0].strip("| ") for line in shown.splitlines() if line.startswith("|")]
    assert rows == ["method", "---", "the base, not adapted", "lora", "dora"]
    main(LINE)
    assert capsys.readouterr().out == shown + "\n"


def test_every_number_is_that_of_the_command_beside_it(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(LINE)
    lines = [line for line in capsys.readouterr().out.splitlines() if "lora-np adapt" in line]
    for line in (lines[0], lines[-1]):
        numbers, command = re.fullmatch(r"(.*): lora-np (.*)", line).groups()
        arguments = shlex.split(command.replace(LABELS, f"out/{LABELS}"))
        assert code_of([*arguments, "--base", "base", "--overwrite"]) == 0
        said = capsys.readouterr().out
        before, after = (re.search(rf"{name}: (\d+\.\d{{4}}) bits", said)[1] for name in ("base", "adapted"))
        assert numbers == f"{after} bits per byte (base {before})"


def test_what_was_made_with_other_settings_is_not_taken_over(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(LINE)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*LINE, "--steps", "3"])
    assert "is of other settings than asked for now: choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--methods", "lorra"], "--methods must be of lora, "),
        (["--seeds", "1"], "seeds must lie in 2..10, for an interval, got 1"),
        (["--seeds", "11"], "seeds must lie in 2..10, for an interval, got 11"),
        (["--budget", "3"], "no method trains as few as 3 numbers"),
        (["--base", "nowhere"], "nowhere"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_nothing_is_written(
    desk: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*LINE, *more])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not (desk / "out").exists()


def test_the_rate_is_the_best_of_the_grid_on_a_seed_that_is_not_reported(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []

    def run(path: Any, out: Any, base: Any, method: Any, training: Any, data: Any) -> Any:
        asked.append((training.learning_rate, training.seed))
        assert training.seed == data.seed
        return SimpleNamespace(before=8.0, after=abs(training.learning_rate - 0.03) + training.seed)

    monkeypatch.setattr(methods, "adapt_to_file", run)
    offer = next(offer for offer in methods.compare(model().config, 150) if offer.name == "lora")
    (desk / "out").mkdir()
    (row,) = methods.measured(desk / "out", Plan(steps=2, seeds=2, examples=20), model(), [offer])
    assert asked == [*((rate, 2) for rate in grid("lora")), (0.03, 0), (0.03, 1)]
    assert (row.rate, row.at_edge, row.after, row.before) == (0.03, False, (0.0, 1.0), (8.0, 8.0))


def test_a_gap_beside_lora_is_that_of_the_same_seeds() -> None:
    bill = SimpleNamespace(trained=1, settings={"rank": 4})
    one = Row(Offer("lora", bill, True), 0.01, False, (1.0, 2.0), (3.0, 4.0))
    other = Row(Offer("dora", bill, True), 0.03, True, (1.5, 2.5), (3.0, 4.0))
    shown = table([one, other], 5, Plan()).splitlines()
    assert shown[3:5] == [
        f"| lora | rank=4 | 1 | 0.01 | 1.500 ± {Interval.of(one.after).half_width:.3f} |  |",
        f"| dora | rank=4 | 1 | 0.03* | 2.000 ± {Interval.of(other.after).half_width:.3f} | +0.500 ± 0.000 |",
    ]


def test_every_grid_rises_by_about_three() -> None:
    for name in METHODS:
        low, middle, high = grid(name)
        assert 2.5 <= middle / low <= 3.5
        assert 2.5 <= high / middle <= 3.5
