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
from lora_np.cli import code_of
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


@pytest.mark.slow
def test_nbgrader_itself_tells_right_from_wrong_and_blank(tmp_path: Path) -> None:
    pytest.importorskip("nbgrader")
    copy_tutorials(tmp_path / "course", "nbgrader")
    course, name = tmp_path / "course", "02-the-lora-layer"
    config = course / "nbgrader_config.py"
    config.write_text(config.read_text().replace("600", "20"))
    homes = {k: str(tmp_path / k) for k in ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")}
    for home in homes.values():
        Path(home).mkdir()
    homes["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls programs by name

    def nbgrader(*arguments: str) -> None:
        command = [sys.executable, "-m", "nbgrader", *arguments]
        subprocess.run(command, cwd=course, env={**os.environ, **homes}, capture_output=True, check=False)

    nbgrader("generate_assignment", name)
    solved = by_id(read(course / "source" / name / f"{name}.ipynb"))
    wrong = {"answer-check_alpha": "alpha = 16"}
    endless = {"answer-check_alpha": "while True: pass"}
    for who, changes in {"right": {}, "wrong": wrong, "endless": endless, "deleted": {}, "blank": None}.items():
        submitted = read(course / "release" / name / f"{name}.ipynb")
        for grade_id, cell in by_id(submitted).items() if changes is not None else ():
            if grade_id.startswith("answer-"):
                cell["source"] = changes.get(grade_id, text(solved[grade_id]))
        if who == "deleted":
            submitted["cells"].remove(by_id(submitted)["check_stacked"])
        place = course / "submitted" / who / name
        place.mkdir(parents=True)
        (place / f"{name}.ipynb").write_text(json.dumps(submitted))
    nbgrader("autograde", name)
    nbgrader("export")
    rows = [line.split(",") for line in (course / "grades.csv").read_text().splitlines()]
    scores = {row[rows[0].index("student_id")]: float(row[rows[0].index("score")]) for row in rows[1:]}
    assert scores == {"right": 3, "wrong": 2, "endless": 2, "deleted": 2, "blank": 0}


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
    [("--blank", [path.stem[:2] for path in PATHS]), ("--solutions", []), ("--nbgrader", [])],
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
