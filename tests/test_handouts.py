"""Notebooks for a class: blank ones, those that nbgrader marks, and how far a learner is."""

from __future__ import annotations

import ast
import builtins
import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from lora_np import handouts
from lora_np.cli import code_of, measuring
from lora_np.handouts.notebooks import code_cells
from lora_np.handouts.variants import VARIANTS, in_place
from lora_np.tutorials import copy_tutorials, progress_in

FOLDER = Path(__file__).parent.parent / "tutorials"
PATHS = sorted(FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem[:2])


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def graded(path: Path) -> Any:
    return handouts.for_nbgrader(read(path), read(FOLDER / "solutions" / path.name))


def text(cell: Any) -> str:
    return "".join(cell["source"])


def by_id(notebook: Any) -> dict[str, Any]:
    """The cells that nbgrader knows, by their names."""
    marked = [cell for cell in notebook["cells"] if "nbgrader" in cell["metadata"]]
    return {cell["metadata"]["nbgrader"]["grade_id"]: cell for cell in marked}


def checks(path: Path) -> set[str]:
    """The checks that the source of a notebook calls, found by their names alone."""
    code = "\n".join(text(cell) for cell in read(path)["cells"] if cell["cell_type"] == "code")
    return set(re.findall(r"^(?:\w+\.)?(check_\w+)\(", code, re.M))


# blank


@each
def test_a_blank_notebook_is_not_executed_and_has_all_that_the_reader_needs(path: Path) -> None:
    whole, blank = read(path), handouts.blank(read(path))
    nbformat.validate(nbformat.from_dict(blank))
    code = [cell for cell in blank["cells"] if cell["cell_type"] == "code"]
    assert [text(cell) for cell in code] == [text(cell) for cell in whole["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@each
def test_each_prediction_has_a_cell_and_what_is_seen_is_folded_away(path: Path) -> None:
    cells = [text(cell) for cell in handouts.blank(read(path))["cells"]]
    asked = [i for i, cell in enumerate(cells) if "**Predict.**" in cell]
    assert len(asked) == sum("**Predict.**" in text(cell) for cell in read(path)["cells"]) > 3
    assert all(cells[i + 1] == handouts.PREDICTION for i in asked)
    for cell in cells:
        if "**Seen.**" in cell:
            assert cell.startswith("<details>")
            assert cell.endswith("</details>")
            assert "**Predict.**" not in cell


def test_a_notebook_is_not_changed_by_what_is_made_of_it() -> None:
    whole = read(PATHS[1])
    before = copy.deepcopy(whole)
    handouts.blank(whole)
    handouts.for_nbgrader(whole, read(FOLDER / "solutions" / PATHS[1].name))
    assert whole == before


# for nbgrader


@each
def test_every_exercise_is_a_cell_to_answer_and_a_locked_one_of_a_point(path: Path) -> None:
    notebook = graded(path)
    nbformat.validate(nbformat.from_dict(notebook))
    cells = by_id(notebook)
    assert {name for name in cells if name.startswith("check_")} == checks(path)
    for name in checks(path):
        answer, check = cells[f"answer-{name}"], cells[name]
        assert text(answer).count("### BEGIN SOLUTION") == text(answer).count("### END SOLUTION") == 1
        assert "..." not in text(answer)
        assert (check["metadata"]["nbgrader"]["points"], check["metadata"]["nbgrader"]["locked"]) == (1, True)
        assert "is not ..., 'not answered'" in text(check)


@each
def test_a_worked_answer_needs_only_what_its_notebook_has(path: Path) -> None:
    code = "\n".join(text(cell) for cell in graded(path)["cells"] if cell["cell_type"] == "code")
    known = set(dir(builtins))
    for node in ast.walk(ast.parse(code)):
        known |= {alias.asname or alias.name for alias in getattr(node, "names", []) if hasattr(alias, "asname")}
        known |= {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
        known |= {node.name} if isinstance(node, ast.FunctionDef) else set()
        known |= {node.arg} if isinstance(node, ast.arg) else set()
        known |= {str(node.name)} if isinstance(node, ast.ExceptHandler) else set()
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    assert used - known == set()


def test_what_the_exercise_gives_is_not_given_anew() -> None:
    answers = by_id(graded(next(path for path in PATHS if path.name.startswith("06"))))
    assert text(answers["answer-check_paired_interval"]).count("first, second =") == 1
    answers = by_id(graded(next(path for path in PATHS if path.name.startswith("05"))))
    assert "load_model" not in text(answers["answer-check_last_blocks"])


STUDENTS = ("right", "wrong", "endless", "deleted", "blank", "neighbour")


@pytest.mark.slow
def test_nbgrader_itself_tells_right_from_wrong_blank_and_copied(tmp_path: Path) -> None:
    """Each has numbers of their own; the neighbour hands in what is right for another."""
    pytest.importorskip("nbgrader")
    course, name = tmp_path / "course", "02-the-lora-layer"
    copy_tutorials(course, "nbgrader", STUDENTS)
    homes = {k: str(tmp_path / k) for k in ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")}
    for home in homes.values():
        Path(home).mkdir()
    homes["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls programs by name

    def nbgrader(*arguments: str) -> None:
        command = [sys.executable, "-m", "nbgrader", *arguments]
        subprocess.run(command, cwd=course, env={**os.environ, **homes}, capture_output=True, check=False)

    nbgrader("generate_assignment", name)
    changed: dict[str, Any] = {"right": {}, "neighbour": {}, "deleted": {}, "blank": None}
    changed |= {"wrong": {"answer-check_alpha": "alpha = 16"}, "endless": {"answer-check_alpha": "while True: pass"}}
    assert changed.keys() == set(STUDENTS)
    for who, changes in changed.items():
        submitted = read(course / "handed_out" / who / name / f"{name}.ipynb")
        solved = solved_by("right" if who == "neighbour" else who, name)
        for grade_id, cell in by_id(submitted).items() if changes is not None else ():
            if grade_id.startswith("answer-"):
                cell["source"] = changes.get(grade_id, solved[grade_id])
        if who == "deleted":
            submitted["cells"].remove(by_id(submitted)["check_stacked"])
        place = course / "submitted" / who / name
        place.mkdir(parents=True)
        (place / f"{name}.ipynb").write_text(json.dumps(submitted))
    (course / "submitted" / "endless").rename(tmp_path / "endless")
    nbgrader("autograde", name)
    (tmp_path / "endless").rename(course / "submitted" / "endless")
    config = course / "nbgrader_config.py"
    config.write_text(
        config.read_text().replace("600", "40")
    )  # seconds for one cell: only this one is to be waited for
    nbgrader("autograde", name, "--student=endless")
    nbgrader("export")
    rows = [line.split(",") for line in (course / "grades.csv").read_text().splitlines()]
    scores = {row[rows[0].index("student_id")]: float(row[rows[0].index("score")]) for row in rows[1:]}
    assert scores == {"right": 3, "wrong": 2, "endless": 2, "deleted": 2, "blank": 0, "neighbour": 0}
    stopped = by_id(read(course / "autograded" / "endless" / name / f"{name}.ipynb"))
    (reason,) = stopped["check_alpha"]["outputs"]
    assert reason["ename"] == "NameError"  # it was stopped, and gave nothing


def solved_by(student: str, name: str) -> dict[str, str]:
    """The worked answers with the numbers of one student."""
    pages = (handouts.varied(read(path / f"{name}.ipynb"), student) for path in (FOLDER, FOLDER / "solutions"))
    return {grade_id: text(cell) for grade_id, cell in by_id(handouts.for_nbgrader(*pages)).items()}


# numbers of one's own


CHECKS = sorted(VARIANTS)
NAMES = [f"student {i}" for i in range(60)]


def test_the_numbers_of_a_student_are_the_same_for_ever_and_those_of_another_are_others() -> None:
    assert handouts.numbers("anna", "check_alpha") == {"4": "9", "16": "48", "64": "55"}
    for check in CHECKS:
        drawn = [handouts.numbers(name, check) for name in NAMES]
        assert drawn == [handouts.numbers(name, check) for name in NAMES]
        assert len({tuple(each.items()) for each in drawn}) >= min(3, len(NAMES))
        assert all(each.keys() == drawn[0].keys() for each in drawn)


def test_a_check_without_a_row_has_the_same_numbers_for_all() -> None:
    assert handouts.numbers("anna", "check_switch") == {}
    assert in_place("rank 8", {}) == "rank 8"


@pytest.mark.parametrize(
    ("stored", "own"),
    [
        ("rank 8 of 18, 8.5, 0.8 and x8", "rank 5 of 18, 8.5, 0.8 and x8"),
        ("**8.** A (8, d) and B[:8]; 2**8, 8,", "**8.** A (5, d) and B[:5]; 2**8, 5,"),
        ("8 and 192", "5 and 8"),  # at once: what was put in is not replaced again
        ("3,000,000 or 3_000_000, not 13,000,000", "7,100,000 or 7_100_000, not 13,000,000"),
        ('"ab" but not "cab" or ab', '"xy" but not "cab" or ab'),
    ],
)
def test_numbers_are_put_in_place_and_nowhere_inside_another(stored: str, own: str) -> None:
    new = {"8": "5", "192": "8", "3,000,000": "7,100,000", "3_000_000": "7_100_000", '"ab"': '"xy"'}
    assert in_place(stored, new) == own


@each
def test_a_students_copy_has_their_numbers_in_text_and_cell_and_nothing_else_is_another(path: Path) -> None:
    stored, own = read(path), handouts.varied(read(path), "anna")
    changed = [i for i, cells in enumerate(zip(stored["cells"], own["cells"], strict=True)) if differ(*cells)]
    for i, cell in enumerate(own["cells"]):
        task = handouts.exercise(text(cell)) if cell["cell_type"] == "code" else None
        if task and task.check in VARIANTS:
            assert i in changed
            new = handouts.numbers("anna", task.check)
            assert text(cell) == in_place(text(stored["cells"][i]), new)
            changed = [j for j in changed if j not in (i, i - 1)]
    assert changed == []


def differ(one: Any, other: Any) -> bool:
    return text(one) != text(other)


def rights(name: str, student: str | None) -> dict[str, tuple[Any, ...]]:
    """The check and its arguments as the solutions of a student call it, the first time each."""
    path, found = FOLDER / "solutions" / f"{name}.ipynb", {}
    notebook = handouts.varied(read(path), student) if student else read(path)
    space: dict[str, Any] = {"__name__": "solutions"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            for statement in ast.parse(text(cell)).body:
                call = statement.value if isinstance(statement, ast.Expr) else None
                check = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
                if isinstance(call, ast.Call) and "check_" in check:
                    given = [eval(ast.unparse(each), space) for each in call.args]
                    about = {each.arg: eval(ast.unparse(each.value), space) for each in call.keywords}
                    found.setdefault(check.split(".")[-1], (eval(check, space), given, about))
                exec(ast.unparse(statement), space)
    return found


@pytest.mark.parametrize("name", [path.stem for path in PATHS if checks(path) & set(VARIANTS)])
def test_a_students_solution_is_right_for_them_and_wrong_for_a_neighbour(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = rights(name, "anna"), rights(name, "ben")
    printed = capsys.readouterr().out
    assert printed.count("Right: ") >= 2 * len(one)
    n = {task.check: len(task.names) for cell in code_cells(read(FOLDER / f"{name}.ipynb"))
         if (task := handouts.exercise(text(cell)))}  # fmt: skip
    for check in set(one) & set(VARIANTS) - NOT_IN_SOLUTIONS:
        function, given, about = one[check]
        with pytest.raises(AssertionError):
            function(*other[check][1][: n[check]], *given[n[check] :], **about)


# Its numbers are those of the notebook, which its solutions have none of.
NOT_IN_SOLUTIONS = {"check_paired_interval"}


def test_outside_of_nbgrader_the_numbers_are_those_that_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    assert handouts.mine("check_alpha", "rank=4") == "rank=4"


def test_in_its_grading_they_are_those_of_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "anna" / "02").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "anna" / "02")
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert handouts.mine("check_alpha", "rank=4, alpha=16") == "rank=9, alpha=48"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--student", "anna"], "in blank notebooks, solutions, and a course"),
        (["--blank", "--student", "anna", "--student", "ben"], "for one student, got 2"),
        (["--nbgrader", "--student", "../anna"], "one that a folder can have"),
        (["--nbgrader", "--student", ".."], "one that a folder can have"),
        (["--only", "13"], "there is no notebook '13': there are 01-why-low-rank"),
        (["--blank", "--figures"], "exclude each other"),
    ],
)
def test_a_student_or_a_notebook_that_cannot_be_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert code_of(["tutorials", str(tmp_path / "new"), *options]) == 2
    assert re.fullmatch(rf"lora-np: [^\n]*{said}[^\n]*\n", capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_each_of_a_class_is_handed_their_own(tmp_path: Path) -> None:
    assert (
        code_of(["tutorials", str(tmp_path), "--nbgrader", "--student", "anna", "--student", "ben", "--only", "02"])
        == 0
    )
    name = "02-the-lora-layer"
    anna, ben = (read(tmp_path / "handed_out" / who / name / f"{name}.ipynb") for who in ("anna", "ben"))
    source = read(tmp_path / "source" / name / f"{name}.ipynb")
    nbformat.validate(nbformat.from_dict(anna))
    assert by_id(anna).keys() == by_id(ben).keys() == by_id(source).keys()
    assert "rank=9, alpha=48, new_rank=55" in text(by_id(anna)["check_alpha"])
    assert text(by_id(anna)["answer-check_alpha"]) == "alpha = ..."
    assert 'mine("check_alpha"' in text(by_id(source)["check_alpha"])
    assert text(by_id(ben)["check_alpha"]) != text(by_id(anna)["check_alpha"])
    assert len(list(tmp_path.glob("source/*"))) == 1


def test_a_course_is_written_without_nbgrader_and_the_extra_that_brings_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "find_spec", lambda name: None)
    assert code_of(["tutorials", str(tmp_path), "--nbgrader", "--only", "02"]) == 0
    assert "pip install 'lora_np[teaching]'" in capsys.readouterr().out


# figures for slides


def test_every_stored_picture_is_written_under_the_name_of_what_drew_it(tmp_path: Path) -> None:
    assert code_of(["tutorials", str(tmp_path / "slides"), "--figures"]) == 0
    stored = sum("image/png" in output.get("data", {}) for path in PATHS for cell in read(path)["cells"]
                 for output in cell.get("outputs", []))  # fmt: skip
    pictures = sorted((tmp_path / "slides").glob("*.png"))
    assert len(pictures) == stored > 20
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "02-the-lora-layer-1-lora_picture.png" in {picture.name for picture in pictures}
    assert not [picture.name for picture in pictures if picture.stem.endswith("-figure")]
    page = (tmp_path / "slides" / "figures.md").read_text()
    assert all(f"({picture.name})" in page for picture in pictures)


# how far a learner is


def executed(path: Path, outputs: dict[str, Any]) -> Any:
    """A notebook whose checks have these outputs."""
    notebook = read(path)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [output for check, output in outputs.items() if f"{check}(" in text(cell)]
    return notebook


RIGHT = {"output_type": "stream", "name": "stdout", "text": ["Right: 5.\n"]}
HINT = {"output_type": "error", "ename": "Hint", "evalue": "no", "traceback": ["Not yet: no"]}
TASK = {"output_type": "stream", "name": "stdout", "text": ["Exercise: how many?\n"]}


def test_a_check_is_passed_not_yet_or_not_tried() -> None:
    outputs = {"check_multiply_adds": RIGHT, "check_alpha": HINT, "check_stacked": TASK}
    states = handouts.progress(executed(PATHS[1], outputs))
    assert states == {"check_multiply_adds": "passed", "check_alpha": "not yet", "check_stacked": "not tried"}
    assert handouts.summary({"02-x": states}) == "lora_np tutorials: 1 of 3 checks passed (02 1/3)"


def test_a_cell_that_is_no_python_does_not_stop_the_count() -> None:
    notebook = executed(PATHS[1], {"check_alpha": RIGHT})
    next(cell for cell in notebook["cells"] if "check_stacked(" in text(cell))["source"] = "A, B = (("
    assert handouts.progress(notebook) == {"check_multiply_adds": "not tried", "check_alpha": "passed"}


def test_the_command_says_how_far_a_folder_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / PATHS[1].name).write_text(json.dumps(executed(PATHS[1], {"check_alpha": RIGHT})))
    assert code_of(["tutorials", str(tmp_path), "--progress"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "check_alpha passed" in lines[0]
    assert lines[-1] == "lora_np tutorials: 1 of 3 checks passed (02 1/3)"
    assert progress_in(tmp_path).keys() == {PATHS[1].stem}


@pytest.mark.parametrize(
    ("options", "content", "said"),
    [
        (["--progress"], None, "holds no notebook of the tutorials"),
        (["--progress"], "{", "is no notebook"),
        (["--progress"], "[]", "holds no list of cells"),
        (["--blank", "--nbgrader"], None, "--blank and --nbgrader exclude each other"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "01-mine.ipynb").write_text(content)
    before = list(tmp_path.iterdir())
    assert code_of(["tutorials", str(tmp_path), *options]) == 2
    assert re.fullmatch(rf"lora-np: [^\n]*{said}[^\n]*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("option", "files"),
    [("--blank", [path.name[:2] for path in PATHS]), ("--solutions", []), ("--nbgrader", [])],
)
def test_each_version_is_copied_and_overwrites_nothing(tmp_path: Path, option: str, files: list[str]) -> None:
    assert code_of(["tutorials", str(tmp_path), option]) == 0
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(name[:2] for name in written if re.match(r"\d\d-", name)) == files
    assert ("nbgrader_config.py" in written) == (option == "--nbgrader")
    assert any(name.startswith("solutions/") for name in written) == (option == "--solutions")
    content = {name: (tmp_path / name).read_bytes() for name in written}
    assert code_of(["tutorials", str(tmp_path), option]) == 2
    assert {name: (tmp_path / name).read_bytes() for name in written} == content
