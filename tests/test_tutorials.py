"""The tutorials: copied out whole or not at all, and every notebook in the form that its reader expects."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest

import lora_np
from lora_np import exercises, tutorials
from lora_np.figures import learning_curves, show
from lora_np.tutorials import copy_tutorials

HERE = Path(__file__).parent
FOLDER = HERE.parent / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted(FOLDER.glob("solutions/*.ipynb"))
PUZZLES = sorted(FOLDER.glob("puzzles/*.ipynb"))
LINES, COLUMNS, BYTES = 12, 88, 400 * 1024
IMPORTS = {"lora_np", "numpy", "matplotlib", "IPython", "ipywidgets", *sys.stdlib_module_names}
MACHINE = re.compile(r"/(?:home|root|tmp|Users|work|var)/")  # a path of the machine that executed it

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_solution = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
all_of_them = pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def trees(path: Path) -> list[ast.Module]:
    return [ast.parse(cell.source) for cell in cells(path)]


def public_names() -> set[str]:
    """Every function and class that a module of the package defines or lists."""
    names = set(lora_np.__all__)
    for module in pkgutil.walk_packages(lora_np.__path__, "lora_np."):
        if module.name.startswith(("lora_np.pretrained", "lora_np.bench.peers")):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ModuleNotFoundError:  # what is written for PyTorch or JAX, where they are not
            continue
        names |= {n for n, value in vars(loaded).items() if getattr(value, "__module__", None) == module.name}
    return {name for name in names if not name.startswith("_")}


# copying


def test_the_tutorials_are_copied_byte_for_byte(tmp_path: Path) -> None:
    copied = copy_tutorials(tmp_path / "a" / "b")
    assert [path.relative_to(tmp_path / "a" / "b") for path in copied] == [
        path.relative_to(FOLDER)
        for path in (FOLDER / "README.md", FOLDER / "TEACHING.md", *NOTEBOOKS, *SOLUTIONS, *PUZZLES)
    ]
    assert all(path.read_bytes() == (FOLDER / path.relative_to(tmp_path / "a" / "b")).read_bytes() for path in copied)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(copied)


def test_an_existing_file_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    mine = tmp_path / "solutions" / SOLUTIONS[0].name
    mine.parent.mkdir()
    mine.write_text("my own work")
    with pytest.raises(FileExistsError, match=re.escape(f"{mine} exists")):
        copy_tutorials(tmp_path)
    assert mine.read_text() == "my own work"
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == [mine]


@pytest.mark.parametrize("after", [0, 1, 9])
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_a_copy_that_fails_anywhere_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, kind: type[BaseException]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    flushed: list[int] = []

    def full(file: int) -> None:
        if len(flushed) == after:
            raise kind("no space left")
        flushed.append(file)

    monkeypatch.setattr("os.fsync", full)
    for folder in (tmp_path, tmp_path / "far" / "away"):
        with pytest.raises(kind, match="no space left"):
            copy_tutorials(folder)
        assert list(tmp_path.rglob("*")) == [tmp_path / "notes.txt"]
        flushed.clear()


def test_those_of_the_package_come_before_those_of_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("notebooks", "tutorials"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(name)
        (tmp_path / name / "01-a.ipynb").write_text("{}")
        (tmp_path / name / "draft.ipynb").write_text("{}")
    monkeypatch.setattr(tutorials, "PLACES", (tmp_path / "notebooks", tmp_path / "tutorials"))
    copied = copy_tutorials(tmp_path / "out")
    assert [path.name for path in copied] == ["README.md", "01-a.ipynb"]
    assert copied[0].read_text() == "notebooks"


def test_an_installation_without_tutorials_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tutorials, "PLACES", (tmp_path / "notebooks",))
    with pytest.raises(FileNotFoundError, match="holds no tutorials"):
        copy_tutorials(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_copies_once_and_then_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lora_np.cli import code_of

    monkeypatch.chdir(tmp_path)
    assert code_of(["tutorials"]) == 0
    assert "jupyter lab tutorials" in capsys.readouterr().out
    assert code_of(["tutorials", "tutorials"]) == 2
    assert capsys.readouterr().err == (
        f"lora-np: {Path('tutorials/README.md')} exists, and may hold your own work: "
        "choose another folder, or move it away\n"
    )


# showing


def test_a_figure_is_shown_as_a_png_as_wide_as_it_was_drawn() -> None:
    data, metadata = show(learning_curves({"a": [(0, 1.0), (1, 0.5)]}))._repr_mimebundle_()
    assert set(data) == {"image/png"}
    assert metadata["image/png"]["width"] == round(96 * 5.6)


def test_without_ipython_the_extra_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lora_np\[tutorials\]'"):
        show(learning_curves({"a": [(0, 1.0), (1, 0.5)]}))


# the form of every notebook


def test_there_are_notebooks_and_each_has_its_solutions() -> None:
    assert NOTEBOOKS
    assert [path.name for path in NOTEBOOKS] == [path.name for path in SOLUTIONS]


@all_of_them
def test_it_is_a_valid_notebook_for_python_3(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.metadata.kernelspec.name) == (4, "python3")
    assert all(cell.id for cell in notebook.cells)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")


@all_of_them
def test_it_is_stored_as_executed_from_top_to_bottom(path: Path) -> None:
    assert [cell.execution_count for cell in cells(path)] == list(range(1, len(cells(path)) + 1))
    outputs = [output for cell in cells(path) for output in cell.outputs]
    assert outputs
    for output in outputs:
        assert output.output_type in ("stream", "display_data", "execute_result")
        assert output.get("name") != "stderr", output.text
        assert "Warning" not in output.get("text", "")


@all_of_them
def test_its_outputs_do_not_name_the_machine(path: Path) -> None:
    for cell in cells(path):
        for output in cell.outputs:
            shown = [
                output.get("text", ""),
                *(str(output.get("data", {}).get(f"text/{t}", "")) for t in ("plain", "html")),
            ]
            assert not MACHINE.search(" ".join(shown)), shown


@all_of_them
def test_it_is_small_enough_for_a_code_host(path: Path) -> None:
    assert path.stat().st_size <= BYTES


@each_notebook
def test_its_cells_fit_a_glance(path: Path) -> None:
    for cell in cells(path):
        assert sum(bool(line.strip()) for line in cell.source.splitlines()) <= LINES, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS + PUZZLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_line_of_code_is_wider_than_a_window_beside_a_text(path: Path) -> None:
    for cell in cells(path):
        for line in cell.source.splitlines():
            assert len(line) <= COLUMNS, line


def test_notebooks_are_formatted_at_that_width() -> None:
    assert tomllib.loads((FOLDER / "ruff.toml").read_text())["line-length"] == COLUMNS


@each_notebook
def test_it_asks_for_predictions_proves_by_asserts_and_ends_with_exercises_and_a_summary(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for wanted in (
        "## What you need to know",
        "**Predict.**",
        "**Seen.**",
        "/2106.09685",
        "## Exercises",
        "## Summary",
    ):
        assert wanted in text, wanted
    assert re.search(r"\*\*The question\.\*\* [^?]*\?", read(path).cells[0].source, re.DOTALL)
    assert sum(isinstance(node, ast.Assert) for tree in trees(path) for node in ast.walk(tree)) >= 3


@all_of_them
def test_it_imports_only_what_comes_with_the_tutorials(path: Path) -> None:
    for tree in trees(path):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= IMPORTS, names


@all_of_them
def test_it_defines_nothing_that_the_library_has(path: Path) -> None:
    known = public_names()
    assert {"merge", "layer_norm", "read_file", "LoraConfig"} <= known
    for tree in trees(path):
        defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert not defined & known


def used_checks(path: Path) -> dict[str, str]:
    """The checks that a notebook calls, by name or as `module.name`, and the module that each comes from."""
    origin, called = {}, {}
    for node in (node for tree in trees(path) for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom):
            origin |= {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith("check_"):
            called[node.func.id] = origin[node.func.id][0]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("check_"):
            assert isinstance(node.func.value, ast.Name)
            called[node.func.attr] = ".".join(origin[node.func.value.id])
    return called


@each_notebook
def test_it_has_exercises_whose_checks_exist_and_are_tested(path: Path) -> None:
    checks = used_checks(path)
    assert 2 <= len(checks) <= 4
    tests = "".join(file.read_text() for file in HERE.glob("test_exercises_*.py"))
    for name, module in checks.items():
        assert module.startswith(f"{exercises.__name__}.")
        assert callable(getattr(importlib.import_module(module), name))
        assert re.search(rf"\b{name}\(", tests), f"no test calls {name}"


@each_solution
def test_the_solutions_answer_every_exercise(path: Path) -> None:
    assert used_checks(path) == used_checks(FOLDER / path.name)
    assert not any(
        node.value is ... for tree in trees(path) for node in ast.walk(tree) if isinstance(node, ast.Constant)
    )
    assert all("Exercise:" not in output.get("text", "") for cell in cells(path) for output in cell.outputs)


def test_the_map_lists_every_notebook_and_every_link_leads_somewhere() -> None:
    text = (FOLDER / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert {path.name for path in NOTEBOOKS} <= set(links)
    for link in links:
        assert link.startswith("https://") or (FOLDER / link).exists(), link


@all_of_them
def test_its_links_lead_somewhere(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", cell.source):
                assert link.startswith("https://") or (path.parent / link).exists(), link
