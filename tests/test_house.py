"""The rooms of the house and its floors: a room imports only from floors below its own, so there is no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_np

PACKAGE = Path(lora_np.__file__).parent

# From the ground up. A room is a module or a package of `lora_np`; an import inside a function counts as any other.
FLOORS = (
    {"engine", "handouts", "names", "stopping", "textbook", "tokenizers", "version"},
    {"config", "disk", "formats", "installed", "operations", "parameters", "progress", "rounding"},
    {"halving", "method", "modules", "optimization", "tasks", "tutorials", "wrappers"},
    {"model"},
    {"generation", "loading", "lora", "training"},
    {"evaluation", "methods", "precision", "proofs"},
    {"cases", "costs", "data", "exporting", "files"},
    {"serving"},
    {"adaptation", "bench", "conformance", "gradients"},
    {"certificate", "directions", "figures", "pretrained", "vocabularies"},
    {"merges", "paper"},
    {"converting", "exercises"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules(package: Path) -> dict[str, Path]:
    """Every module below the package by dotted name, `lora_np.costs` for `lora_np/costs/__init__.py`."""
    paths = {path.relative_to(package.parent).with_suffix(""): path for path in package.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


def room_of(module: str) -> str:
    """The room a module belongs to; the package itself is the street outside."""
    return module.split(".")[1] if "." in module else ""


def imports(package: Path) -> Iterator[tuple[str, str]]:
    """(module, module that it imports), both of the package, wherever in the file the import stands."""
    known = modules(package)
    for name, path in known.items():
        inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                parts = inside.split(".")
                above = ".".join(parts[: len(parts) + 1 - node.level]) if node.level else ""
                source = ".".join(part for part in (above, node.module) if part)
                for alias in node.names:
                    target = f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source
                    if target.split(".")[0] == package.name:
                        yield name, target


def upward(package: Path, floors: dict[str, int]) -> list[str]:
    """Every import that does not lead to a floor below."""
    found = []
    for module, target in imports(package):
        here, there = room_of(module), room_of(target)
        if here and here != there and not (there and floors[there] < floors[here]):
            found.append(f"{module} imports {target}")
    return found


def test_every_room_has_its_floor_and_every_floor_its_rooms() -> None:
    rooms = {room_of(module) for module in modules(PACKAGE)} - {""}
    for floor, there in reversed(list(enumerate(FLOORS, 1))):
        print(f"{floor:2}  {'  '.join(sorted(there))}")
    assert rooms == set(FLOOR_OF)
    assert sum(map(len, FLOORS)) == len(FLOOR_OF)


def test_no_room_imports_from_its_own_floor_or_from_above_so_there_is_no_circle() -> None:
    assert upward(PACKAGE, FLOOR_OF) == []


@pytest.mark.parametrize(
    "line", ["from ..cli import app", "def f():\n    from ..lora import LoraConfig", "import sys\nfrom .. import model"]
)
def test_an_import_that_leads_upward_is_found_wherever_it_stands(line: str, tmp_path: Path) -> None:
    package = tmp_path / "lora_np"
    for name in ("operations/linear.py", "cli/__init__.py", "lora.py", "model.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(line if name.startswith("operations") else "")
    assert len(upward(package, FLOOR_OF)) == 1


def test_the_heart_knows_nothing_of_the_methods_and_the_textbook_nothing_of_us() -> None:
    known = {room_of(target) for module, target in imports(PACKAGE) if room_of(module) in ("model", "operations")}
    assert not known & {"lora", "method", "methods", "wrappers", "costs", "files"}
    assert not [target for module, target in imports(PACKAGE) if module == "lora_np.textbook"]
