r"""The tutorials beside the code: copying the notebooks out.

Installed, the notebooks lie in `lora_np/notebooks`; in a clone of the repository they are `tutorials/` itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
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


def copy_tutorials(
    folder: str | Path, version: str = "whole", students: Sequence[str] = (), only: Sequence[str] = ()
) -> list[Path]:
    """Copy the notebooks, their map and the worked solutions into a folder; give back what was written.

    version    "whole", as they are stored; "blank", for students: nothing executed and no solutions; "solutions" alone;
               "nbgrader", the folder of a course whose assignments they are; "figures", every picture as a PNG
    students   whose numbers stand in the exercises: one for "blank" and "solutions", any for "nbgrader", which then
               holds what to hand out to each
    only       the notebooks, as 02 or as a whole name; without it all

    Each file appears whole or not at all, and when one cannot be written none stays. Raises FileExistsError when one of
    them is there already, FileNotFoundError when this installation came without its tutorials, and ValueError for a
    notebook that there is not, or a student whose name no folder can have.
    """
    from .disk.writing import write_new

    folder = Path(folder)
    made = VERSIONS[version](_source(), _named(students, version), _chosen(only))
    copies = {folder / name: content for name, content in made.items()}
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


def _whole(source: Path, students: Sequence[str], only: Sequence[str]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in _files(source, only).items()}


def _blank(source: Path, students: Sequence[str], only: Sequence[str]) -> dict[str, bytes]:
    made = {"README.md": (source / "README.md").read_bytes()}
    for name, path in _files(source, only, NOTEBOOKS, PUZZLES).items():
        page = handouts.blank(_notebook(path))
        made[name] = _written(handouts.varied(page, students[0]) if students else page)
    return made


def _solutions(source: Path, students: Sequence[str], only: Sequence[str]) -> dict[str, bytes]:
    paths = _files(source, only, SOLUTIONS)
    if not students:
        return {name: path.read_bytes() for name, path in paths.items()}
    return {name: _written(handouts.varied(_notebook(path), students[0])) for name, path in paths.items()}


def _course(source: Path, students: Sequence[str], only: Sequence[str]) -> dict[str, bytes]:
    made = {"nbgrader_config.py": COURSE.encode()}
    for name, path in _files(source, only, NOTEBOOKS).items():
        page, answers = _notebook(path), _notebook(path.parent / "solutions" / name)
        graded = handouts.for_nbgrader(page, answers, own_numbers=bool(students))
        made[f"source/{path.stem}/{name}"] = _written(graded)
        for student in students:
            made[f"handed_out/{student}/{path.stem}/{name}"] = _written(handouts.handed_out(page, student))
    return made


def _figures(source: Path, students: Sequence[str], only: Sequence[str]) -> dict[str, bytes]:
    made, lines = {}, ["# The figures of the tutorials", ""]
    for path in _files(source, only, NOTEBOOKS).values():
        for name, (heading, picture) in handouts.figures(_notebook(path)).items():
            made[f"{path.stem}-{name}.png"] = picture
            lines += [f"{path.stem[:2]}, section {heading}:", "", f"![{name}]({path.stem}-{name}.png)", ""]
    return {"figures.md": "\n".join(lines).encode(), **made}


VERSIONS = {"whole": _whole, "blank": _blank, "solutions": _solutions, "nbgrader": _course, "figures": _figures}


def _named(students: Sequence[str], version: str) -> tuple[str, ...]:
    """The students, whose names are folders of a course."""
    for student in students:
        if not student.strip(". ") or set(student) & {*"/\\:\0\n"} or student != student.strip():
            raise ValueError(f"the name of a student must be one that a folder can have, got {student!r}")
    if students and version not in ("blank", "solutions", "nbgrader"):
        raise ValueError("a student has numbers of their own in blank notebooks, solutions, and a course of nbgrader")
    if len(set(students)) > 1 and version != "nbgrader":
        raise ValueError(f"these are for one student, got {len(set(students))}: choose a folder for each")
    return tuple(dict.fromkeys(students))


def _chosen(only: Sequence[str]) -> tuple[str, ...]:
    """The notebooks that are meant, by their names."""
    known = sorted({path.stem for path in _source().glob(NOTEBOOKS)})
    chosen = []
    for name in only:
        found = [stem for stem in known if name.removesuffix(".ipynb") in (stem, stem[:2])]
        if not found:
            raise ValueError(f"there is no notebook {name!r}: there are {', '.join(known)}")
        chosen += found
    return tuple(chosen)


def _files(source: Path, only: Sequence[str], *patterns: str) -> dict[str, Path]:
    found = [path for pattern in patterns or PATTERNS for path in sorted(source.glob(pattern))]
    kept = [path for path in found if not only or path.suffix != ".ipynb" or path.stem in only]
    return {path.relative_to(source).as_posix(): path for path in kept}


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
