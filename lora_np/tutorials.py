r"""The tutorials beside the code: copying the notebooks out.

Installed, the notebooks lie in `lora_np/notebooks`; in a clone of the repository they are `tutorials/` itself.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from . import handouts

PACKAGE = Path(__file__).parent
PLACES = (PACKAGE / "notebooks", PACKAGE.parent / "tutorials")
NOTEBOOKS = "[0-9][0-9]-*.ipynb"
SOLUTIONS = f"solutions/{NOTEBOOKS}"
PUZZLES = "puzzles/*.ipynb"
PATTERNS = ("README.md", "TEACHING.md", NOTEBOOKS, SOLUTIONS, PUZZLES)

# What nbgrader is told of the course: a cell that runs for ten minutes is stopped, and what follows is still graded.
COURSE = """c = get_config()
c.CourseDirectory.course_id = "lora_np"
c.Execute.timeout = 600
c.Execute.iopub_timeout = 60  # the first import of a busy machine takes its time
c.Execute.interrupt_on_timeout = True
"""


def copy_tutorials(folder: str | Path, version: str = "whole") -> list[Path]:
    """Copy the notebooks, their map and the worked solutions into a folder; give back what was written.

    version   "whole", as they are stored; "blank", for students: nothing executed and no solutions; "solutions" alone;
              "nbgrader", the folder of a course whose assignments they are

    Each file appears whole or not at all, and when one cannot be written none stays. Raises FileExistsError when one of
    them is there already, and FileNotFoundError when this installation came without its tutorials.
    """
    from .disk.writing import write_new

    folder = Path(folder)
    copies = {folder / name: content for name, content in VERSIONS[version](_source()).items()}
    for copy in copies:
        if os.path.lexists(copy):
            raise FileExistsError(f"{copy} exists, and may hold your own work: choose another folder, or move it away")
    places = {place for copy in copies for place in copy.parents if not place.exists()}
    written: list[Path] = []
    try:
        for copy, content in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_new(copy, content)
            written.append(copy)
    except BaseException:
        for copy in written:
            copy.unlink(missing_ok=True)
        for place in sorted(places, reverse=True):  # those that were made for this, from the inside out
            with suppress(OSError):
                place.rmdir()
        raise
    return written


def progress_in(folder: str | Path) -> dict[str, dict[str, str]]:
    """How far a learner is: of each notebook in a folder of copies, the state of each check; see `handouts.progress`.

    Raises FileNotFoundError for a folder without notebooks, ValueError for a file that is no notebook.
    """
    paths = sorted(Path(folder).glob(NOTEBOOKS))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no notebook of the tutorials: lora-np tutorials {folder} copies them")
    return {path.stem: handouts.progress(_notebook(path)) for path in paths}


def _whole(source: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in _files(source).items()}


def _blank(source: Path) -> dict[str, bytes]:
    paths = _files(source, NOTEBOOKS, PUZZLES)
    made = {name: _written(handouts.blank(_notebook(path))) for name, path in paths.items()}
    return {"README.md": (source / "README.md").read_bytes(), **made}


def _solutions(source: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in _files(source, SOLUTIONS).items()}


def _course(source: Path) -> dict[str, bytes]:
    made = {"nbgrader_config.py": COURSE.encode()}
    for name, path in _files(source, NOTEBOOKS).items():
        both = _notebook(path), _notebook(path.parent / "solutions" / name)
        made[f"source/{path.stem}/{name}"] = _written(handouts.for_nbgrader(*both))
    return made


VERSIONS = {"whole": _whole, "blank": _blank, "solutions": _solutions, "nbgrader": _course}


def _files(source: Path, *patterns: str) -> dict[str, Path]:
    found = [path for pattern in patterns or PATTERNS for path in sorted(source.glob(pattern))]
    return {path.relative_to(source).as_posix(): path for path in found}


def _notebook(path: Path) -> handouts.Notebook:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no notebook: {error}") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError(f"{path} is no notebook: it holds no list of cells")
    return notebook


def _written(notebook: handouts.Notebook) -> bytes:
    return (json.dumps(notebook, ensure_ascii=False, indent=1) + "\n").encode()


def _source() -> Path:
    for place in PLACES:
        if (place / "README.md").is_file() and any(place.glob(NOTEBOOKS)):
            return place
    raise FileNotFoundError(
        f"this installation of lora_np holds no tutorials: looked in {' and '.join(map(str, PLACES))}"
    )
