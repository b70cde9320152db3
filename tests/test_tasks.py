"""Generated tasks: the sides share no prompt, the bounds are those of what is drawn, answers are judged rightly."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lora_np.tasks import read_examples
from lora_np.tasks import sql as queries
from lora_np.tasks.__main__ import main
from lora_np.tasks.labels import FOLLOWS
from lora_np.tasks.memory import BITS, stored_bits
from lora_np.tasks.problems import SIDES, Problem, Task, bits_per_byte, chosen, side
from lora_np.tasks.summary import rouge_l
from lora_np.tasks.table import TASKS, task_named

CONTEXT = 640  # of the base that ships


@pytest.mark.parametrize("name", TASKS)
def test_no_prompt_stands_on_two_sides_whatever_the_seeds(name: str) -> None:
    prompts = [{p.prompt for p in TASKS[name].problems(150, seed, of)} for seed in (0, 1) for of in SIDES]
    for i, of in enumerate(SIDES):
        assert all(side(prompt) == of for prompt in prompts[i] | prompts[i + 3])
    assert not prompts[0] & prompts[4]
    assert not prompts[1] & prompts[5]


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_decides_the_problems_and_a_longer_list_begins_with_the_shorter(name: str) -> None:
    task = TASKS[name]
    assert task.problems(40, 3) == task.problems(60, 3)[:40]
    assert task.problems(40, 3) != task.problems(40, 4)


@pytest.mark.parametrize("name", TASKS)
def test_every_problem_fits_the_base_is_one_of_its_references_and_scores_full_marks(name: str) -> None:
    pytest.importorskip("sacrebleu")
    task = TASKS[name]
    problems = task.problems(60, of="test")
    assert all(p.reference in p.references and "\n" not in p.prompt + p.reference for p in problems)
    assert all(len(p.prompt.encode()) + len(p.reference.encode()) + 3 < CONTEXT for p in problems)
    full = task.score(problems, [p.reference for p in problems])
    assert all(value == pytest.approx(100.0 if metric == "BLEU" else 1.0) for metric, value in full.items())
    nothing = task.score(problems, ["" for _ in problems])
    assert all(value is None or value < 0.05 for value in nothing.values())


@pytest.mark.parametrize("name", ["e2e", "webnlg", "dart", "summary", "museum"])
def test_the_bits_are_those_of_the_sentences_that_are_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second witness: how often each sentence of one prompt really comes."""
    first = TASKS[name].problems(1)[0]
    rng = np.random.default_rng(0)
    drawn = Counter(chosen(first.prompt, first.references, rng).reference for _ in range(4000))
    assert set(drawn) == set(first.references)
    entropy = -sum(k / 4000 * math.log2(k / 4000) for k in drawn.values())
    assert entropy == pytest.approx(
        first.bits, abs=0.01
    )  # 4000 draws are off by (K − 1)/(2·4000·ln 2) = 0.0013 for K = 8
    assert len({text[:14] for text in first.references}) == len(first.references)  # told apart by how they begin


@pytest.mark.parametrize("name", ["sql", "sentiment", "acceptability", "entailment"])
def test_where_the_prompt_decides_no_prompt_has_two_answers(name: str) -> None:
    answers: dict[str, set[str]] = {}
    for problem in TASKS[name].problems(2000):
        answers.setdefault(problem.prompt, set()).add(problem.reference)
        assert problem.bits == 0.0
    assert all(len(found) == 1 for found in answers.values())


@pytest.mark.parametrize("name", ["sentiment", "acceptability", "entailment"])
def test_every_label_is_drawn_as_often_as_the_other(name: str) -> None:
    task = TASKS[name]
    counts = Counter(p.reference for p in task.problems(2000))
    assert set(counts) == set(task.labels)
    assert abs(counts[task.labels[0]] - 1000) < 5 * math.sqrt(2000) / 2  # five standard deviations of 2000 throws


def test_what_follows_from_which_quantifier_is_so_in_every_small_world() -> None:
    """The table of entailments beside its definition: true of every group of which the premise is true."""
    holds = {
        "all": lambda k, n: k == n, "most": lambda k, n: 2 * k > n, "some": lambda k, n: k > 0,
        "no": lambda k, n: k == 0, "not all": lambda k, n: k < n,
    }  # fmt: skip
    worlds = [(k, n) for n in range(1, 9) for k in range(n + 1)]
    for premise in FOLLOWS:
        true = [world for world in worlds if holds[premise](*world)]
        assert {h for h in FOLLOWS if all(holds[h](*world) for world in true)} == set(FOLLOWS[premise])


def test_memory_gives_every_key_once_and_its_value_is_sixteen_even_bits() -> None:
    pairs = TASKS["memory"].problems(4000)
    assert len({p.prompt for p in pairs}) == 4000
    letters = Counter("".join(p.reference for p in pairs))
    assert len(letters) == 16
    assert all(abs(k - 1000) < 5 * math.sqrt(1000) for k in letters.values())
    assert stored_bits(0.0, 10) == 10 * BITS
    assert stored_bits(10 * BITS * math.log(2.0), 10) == pytest.approx(0.0)


def test_a_task_that_is_used_up_says_so() -> None:
    small = Task("small", "", lambda rng: Problem(str(rng.integers(30)), "x", ("x",), 0.0), distinct=True)
    with pytest.raises(
        ValueError, match=r"small has no more than \d+ different prompts of the side train: ask for fewer"
    ):
        small.problems(40)


def test_the_bound_counts_the_bytes_of_references_and_an_end_each() -> None:
    assert bits_per_byte([Problem("a", "bcd", ("bcd", "é"), 1.0), Problem("a", "é", ("é",), 2.5)]) == 3.5 / 7
    with pytest.raises(ValueError, match="at least one problem"):
        bits_per_byte([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [((0,), "n must be a whole number of at least 1, got 0"), ((1, -1), "seed must be at least 0, got -1"),
     ((1, 0, "dev"), "a side is one of train, validation, test, got 'dev'")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(settings: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASKS["sql"].problems(*settings)  # type: ignore[arg-type]


def test_an_unknown_task_lists_the_known_ones_nearest_first() -> None:
    with pytest.raises(ValueError, match=r"task must be one of sentiment, .*; got 'sentimant'"):
        task_named("sentimant")


# queries


def test_every_query_finds_something_else_than_a_wrong_one_now_and_then() -> None:
    problems = TASKS["sql"].problems(40)
    right = [p.reference for p in problems]
    lower = [text.lower().replace("select", "SELECT ") for text in right]  # read alike, written otherwise
    assert TASKS["sql"].score(problems, lower)["exact match"] == 0.0
    assert queries.execution_accuracy(problems, right) == 1.0
    shifted = right[1:] + right[:1]
    assert queries.execution_accuracy(problems, shifted) < 0.2


def test_a_query_is_judged_by_what_it_finds_in_whatever_order() -> None:
    goal = [Problem("", "SELECT name FROM players WHERE goals > 30", (), 0.0)]
    assert queries.execution_accuracy(goal, ["SELECT name FROM players WHERE 30 < goals ORDER BY name DESC"]) == 1.0
    assert queries.execution_accuracy(goal, ["SELECT name FROM players WHERE goals >= 30"]) == 1.0
    assert queries.execution_accuracy(goal, ["SELECT name FROM players WHERE goals > 31"]) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "no query", "", "SELECT", "SELECT nothing FROM players", "DROP TABLE players", "DELETE FROM players",
        "ATTACH DATABASE 'stolen.db' AS s", "PRAGMA writable_schema = 1", "SELECT load_extension('x')",
        "SELECT length(zeroblob(1000000000))", "SELECT 1; DROP TABLE players", "SELECT '\0'",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
    ],
)  # fmt: skip
def test_what_a_model_wrote_may_only_read_and_only_for_so_long(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = queries.database_of(queries.TABLES)
    assert queries.found(database, text) is None
    assert queries.found(database, "SELECT COUNT(name) FROM players") == [("12",)]
    assert not list(tmp_path.iterdir())


def test_a_reference_that_cannot_be_run_is_refused() -> None:
    with pytest.raises(ValueError, match="the reference is no query that can be run: SELECT x"):
        queries.agreement(["SELECT x"], ["SELECT x"], sqlite3.connect(":memory:"))


# summaries


def test_rouge_l_is_the_common_subsequence_of_words_beside_the_best_reference() -> None:
    problem = Problem("", "", ("The cat sat here.", "A dog ran"), 0.0)
    assert rouge_l([problem], ["the cat sat, here"]) == 1.0
    assert rouge_l([problem], ["cat here now"]) == pytest.approx(2 * 2 / (4 + 3))
    assert rouge_l([problem], ["here cat"]) == pytest.approx(2 * 1 / (4 + 2))
    assert rouge_l([problem], [""]) == 0.0


# the command


def test_the_command_shows_problems_writes_files_that_are_read_again_and_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sql.jsonl"
    assert main(["sql", "--n", "30", "--out", str(path)]) == 0
    assert "30 problems of sql" in capsys.readouterr().out
    assert [(e.prompt, e.reference) for e in read_examples(path)] == [
        (p.prompt, p.reference) for p in TASKS["sql"].problems(30)
    ]
    assert main(["entailment"]) == 0
    assert "at least 0 bits" in capsys.readouterr().out
    for wrong, line in ((["sqk"], "task must be one of sql"), (["sql", "--n", "9", "--out", str(path)], "exists")):
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert line in error
        assert error.count("\n") == 1


def test_the_page_of_tasks_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parent.parent / "docs" / "tasks.md"
    assert main([]) == 0
    assert capsys.readouterr().out.strip() in page.read_text(encoding="utf-8")
