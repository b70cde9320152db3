"""Published pairs learned by one command: what is held out stays so, nothing is made twice, and faults cost points."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model

from lora_np.cli import code_of
from lora_np.disk.reading import read_json
from lora_np.files import load_adapter, load_model, save_model
from lora_np.generation import generate
from lora_np.paper import texts
from lora_np.paper.intervals import NORMAL, Share
from lora_np.paper.keeping import made_once
from lora_np.paper.text_tasks import TEXT_TASKS, bleu_of, part_meanings, part_tables, problems_of, score_queries
from lora_np.paper.texts import HELD_OUT, TRAIN, first_line, main
from lora_np.paper.texts_page import PAGE
from lora_np.tasks import prompt_tokens, read_examples
from lora_np.tasks.problems import Problem
from lora_np.tasks.table import TASKS
from lora_np.tokenizers import ByteTokenizer

E2E = ["e2e", "pairs.txt", "--base", "base", "--out", "out", "--steps", "3", "--held-out", "4", "--batch-size", "4"]
SQL = ["wikisql", "dev.jsonl", "--base", "base", "--out", "sql", "--steps", "2", "--held-out", "5", "--examples", "20"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Miniatures in the form of the real files, and a small base that reads bytes."""
    save_model(tmp_path / "base", model(dtype=np.float32, vocab=256, context=250, d_model=16))
    problems = TASKS["e2e"].problems(12)
    lines = [f"{p.prompt}||{text}" for p in problems for text in p.references[:2]]
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, questions())) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TEXT_TASKS, "e2e", texts_of_few("e2e"))
    monkeypatch.setitem(TEXT_TASKS, "wikisql", texts_of_few("wikisql"))
    return tmp_path


def texts_of_few(name: str) -> Any:
    """The task with short answers: the model here writes noise."""
    return TEXT_TASKS[name].__class__(**{**vars(TEXT_TASKS[name]), "most": 6})


def questions() -> list[dict[str, Any]]:
    """Ten tables of three questions; one question is asked of every table."""
    return [
        {
            "table_id": f"t{table}",
            "question": "How many are there?" if i == 0 else f"Who plays {table} for {i}?",
            "sql": {"sel": i % 2, "agg": 3 if i == 0 else 0, "conds": [[2, 0, f"Team {table}"]] * (i > 0)},
        }
        for table in range(10)
        for i in range(3)
    ]


def said(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(line) == 0
    return capsys.readouterr().out


def test_a_run_is_written_down_and_the_same_command_makes_nothing_again(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = said([*E2E, "--seeds", "2"], capsys)
    page = (desk / "out" / PAGE).read_text()
    assert first.endswith(page + "\n")
    heads = [line for line in page.splitlines() if line.startswith("|  |")]
    assert heads == ["|  | base | seed-0 | seed-1 | the references |"]
    monkeypatch.setattr(texts, "adapt_to_file", None)
    monkeypatch.setattr(texts, "serve", None)
    assert said([*E2E, "--seeds", "2"], capsys).endswith(page + "\n")


def test_what_is_held_out_is_whole_and_is_no_part_of_what_is_trained_on(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(E2E, capsys)
    train, held = (read_examples(desk / "out" / name) for name in (TRAIN, HELD_OUT))
    assert sorted(train + held, key=str) == sorted(read_examples(desk / "pairs.txt"), key=str)
    assert len({e.prompt for e in held}) == 4
    assert not {e.prompt for e in held} & {e.prompt for e in train}


def test_a_seed_is_what_its_command_makes(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = said(E2E, capsys)
    command = next(line for line in page.splitlines() if line.startswith("lora-np adapt "))
    line = command.replace(f" {TRAIN}", f" out/{TRAIN}").replace(f" {HELD_OUT}", f" out/{HELD_OUT}")
    assert code_of(shlex.split(line)[1:]) == 0
    kept = read_json(desk / "out" / "seed-0.json")["cell"]
    bits = kept["nats"] / math.log(2.0)  # a token is a byte here
    assert f"adapted: {bits:.4f} bits per byte" in capsys.readouterr().out
    assert (desk / "adapter" / "adapter.safetensors").read_bytes() == (
        desk / "out" / "seed-0" / "adapter.safetensors"
    ).read_bytes()


def test_texts_written_together_are_those_of_the_adapted_model_alone(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(E2E, capsys)
    adapted, _ = load_adapter("out/seed-0", load_model("base"))
    words = ByteTokenizer()
    kept = read_json(desk / "out" / "seed-0.texts.json")["cell"]
    assert len(kept) == 4
    for prompt, text in kept.items():
        alone = list(generate(adapted, prompt_tokens(prompt, words), 6, end=words.end))
        assert text == first_line(words.decode(np.array(alone, np.int64)))


@pytest.mark.parametrize("place", ["texts", "training"])
def test_an_interrupted_run_goes_on_to_the_same_page(
    place: str, desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = said([*E2E, "--out", "whole"], capsys)
    plain, counted = texts.watch, []

    def stopping(items: Any, label: str, *rest: Any) -> Iterator[Any]:
        for number, item in enumerate(plain(items, label, *rest)):
            if label.startswith("base, text" if place == "texts" else "seed 0, step") and number == 2:
                raise KeyboardInterrupt
            counted.append(label)
            yield item

    monkeypatch.setattr(texts, "watch", stopping)
    assert main(E2E) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    monkeypatch.setattr(texts, "watch", plain)
    if place == "texts":
        assert len(read_json(desk / "out" / "base.texts.json")["cell"]) == 2
    resumed = said(E2E, capsys)
    strip = lambda page: [line for line in page[page.index("# e2e") :].splitlines() if "s a step" not in line]  # noqa: E731
    assert strip(resumed) == strip(whole)
    assert counted


def test_a_folder_of_other_settings_is_refused_and_more_seeds_go_on(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(E2E, capsys)
    assert main([*E2E, "--learning-rate", "0.1"]) == 2
    assert "is of other settings than asked for now" in capsys.readouterr().err
    assert "seed 0, step" not in said([*E2E, "--seeds", "2"], capsys)


REFUSED = [
    (["--held-out", "12"], "has 12 meanings: hold out 1 to 11 of them, not 12"), (["--base", "nowhere"], "nowhere"),
    (["--steps", "0"], "steps must be a whole number"), (["--at-once", "0"], "--at-once must be a whole number"),
    (["--learning-rate", "0"], "learning_rate must be a positive number"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_cannot_be_run_is_refused_in_a_line(
    change: list[str], message: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*E2E, *change]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (desk / "out" / "base.json").exists()


def test_a_file_of_another_form_is_refused_with_its_line(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "pairs.txt").write_text("a meaning without its sentence\n")
    assert main(E2E) == 2
    assert "pairs.txt, line 1: expected `meaning||reference`" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ scores


MEANINGS = [
    Problem("name : Cotto | price : cheap", "", ("Cotto is cheap .", "Cheap Cotto"), 0.0),
    Problem("name : Aromi | price : high", "", ("Aromi is expensive .", "Aromi costs much ."), 0.0),
]


def test_a_text_that_leaves_out_a_slot_scores_lower_and_one_that_says_another_value_shows() -> None:
    task = TEXT_TASKS["e2e"]
    full = task.score(MEANINGS, ["Cotto is cheap .", "Aromi is expensive ."])
    short = task.score(MEANINGS, ["Cotto is cheap .", "Aromi is nice ."])
    wrong = task.score(MEANINGS, ["Cotto is cheap .", "Aromi is cheap ."])
    slots, other = "slot values said", "other values of the slots said"
    assert (full[slots], short[slots], wrong[slots]) == (1.0, 0.75, 0.75)
    assert (full[other], short[other], wrong[other]) == (0.0, 0.0, 0.25)
    assert str(full["texts that say every slot"]) > str(short["texts that say every slot"])
    assert task.wrong(MEANINGS[1], "Aromi is cheap .") == "price : high"
    assert task.wrong(MEANINGS[1], "Aromi is expensive .") == ""


def test_the_references_stand_under_the_same_measure() -> None:
    title, scores = TEXT_TASKS["e2e"].without([], MEANINGS)
    assert title == "the references"
    assert scores["slot values said"] == 7 / 8  # "costs much" is beyond the rules
    assert scores["price said"] == 3 / 4


def test_without_sacrebleu_bleu_cannot_be_said_and_all_else_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert str(bleu_of(MEANINGS, ["a", "b"])).startswith("cannot be said: BLEU needs the sacrebleu package")
    assert TEXT_TASKS["e2e"].score(MEANINGS, ["Cotto is cheap .", "Aromi is expensive ."])["slot values said"] == 1.0


def test_tables_and_questions_are_parted(desk: Path) -> None:
    asked = questions()
    train, held = part_tables(desk / "dev.jsonl", 5, 20)
    table_of = lambda e: e.reference.partition("Team ")[2]  # noqa: E731
    assert len({e.prompt for e in held}) == len(held) == 5
    assert len(train) == 15
    assert not ({table_of(e) for e in train} & {table_of(e) for e in held}) - {""}
    assert not {e.prompt for e in train} & {e.prompt for e in held}
    assert "How many are there?" in {e.prompt for e in held}  # one that every table is asked
    assert len({q["question"] for q in asked}) < len(asked)
    with pytest.raises(ValueError, match="hold out fewer than 40"):
        part_tables(desk / "dev.jsonl", 40, None)
    assert len(part_meanings(desk / "pairs.txt", 4, 3)[0]) == 3


def test_a_query_with_a_swapped_condition_is_no_match() -> None:
    right = "SELECT col1 FROM table WHERE col2 = 'a b' AND col3 > 4"
    problem = Problem("q", right, (right,), 0.0)
    for text, scores in {
        right: (1, 1, 1),
        "SELECT col1 FROM table WHERE col3 > 4 AND col2 = 'A b'": (0, 1, 1),
        "SELECT col1 FROM table WHERE col3 = 'a b' AND col2 > 4": (0, 0, 0),
        "SELECT col0 FROM table WHERE col2 = 'a b' AND col3 > 4": (0, 0, 1),
        "SELECT col1 FROM table WHERE col2 = 'a b' AND col3 < 4": (0, 0, 0),
        "nonsense": (0, 0, 0),
    }.items():
        found = score_queries([problem], [text])
        names = ("exact match", "same logical form", "all but the columns")
        assert tuple(found[name].right for name in names) == scores, text  # type: ignore[union-attr]


def test_columns_are_guessed_from_queries_of_as_many_conditions(desk: Path) -> None:
    train, held = part_tables(desk / "dev.jsonl", 5, 20)
    problems = problems_of(held)
    _, scores = TEXT_TASKS["wikisql"].without(train, problems)
    assert scores["columns of conditions right"].right == len(problems)  # type: ignore[union-attr]
    _, blind = TEXT_TASKS["wikisql"].without([], problems)
    assert blind["same logical form"].right == 0  # type: ignore[union-attr]


def test_wikisql_is_run_by_the_same_command(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = said(SQL, capsys)
    assert "|  | base | seed-0 | columns guessed |" in page
    assert "| exact match | 0.000 (0.000-" in page
    assert "no query" in page


def test_the_ends_of_an_interval_are_the_shares_that_lie_z_deviations_from_what_was_found() -> None:
    for share in (Share(0, 20), Share(3, 20), Share(20, 20), Share(170, 300)):
        low, high = share.interval
        assert 0.0 <= low <= share.value <= high <= 1.0
        for end in {low, high} - {share.value}:
            deviation = math.sqrt(end * (1.0 - end) / share.asked)
            assert abs(share.value - end) == pytest.approx(NORMAL * deviation, rel=1e-9)
    assert str(Share(0, 20)) == "0.000 (0.000-0.161)"
    with pytest.raises(ValueError, match="got 3 of 2"):
        Share(3, 2)


def test_what_is_kept_is_made_once_and_of_other_settings_refused(tmp_path: Path) -> None:
    path, made = tmp_path / "cell.json", []

    def make() -> dict[str, int]:
        made.append(1)
        return {"score": 3}

    for seeds in (1, 2):
        assert made_once(path, {"steps": 5, "seeds": seeds}, make, loose=("seeds",)) == {"score": 3}
    assert len(made) == 1
    with pytest.raises(ValueError, match=r"cell.json is of other settings"):
        made_once(path, {"steps": 6}, make)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"cell.json is of other settings"):
        made_once(path, {}, make)
