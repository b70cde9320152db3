r"""The tutorials beside the code: copying the notebooks out.

Installed, the notebooks lie in `lora_np/notebooks`; in a clone of the repository they are `tutorials/` itself.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

PACKAGE = Path(__file__).parent
PLACES = (PACKAGE / "notebooks", PACKAGE.parent / "tutorials")
PATTERNS = ("README.md", "[0-9][0-9]-*.ipynb", "solutions/[0-9][0-9]-*.ipynb")


def copy_tutorials(folder: str | Path) -> list[Path]:
    """Copy the notebooks, their map and the worked solutions into a folder; give back what was written.

    Each file appears whole or not at all, and when one cannot be written none stays. Raises FileExistsError when one of
    them is there already, and FileNotFoundError when this installation came without its tutorials.
    """
    from .disk.writing import write_new

    folder = Path(folder)
    found = _source()
    copies = {path: folder / path.relative_to(found) for pattern in PATTERNS for path in sorted(found.glob(pattern))}
    for copy in copies.values():
        if os.path.lexists(copy):
            raise FileExistsError(f"{copy} exists, and may hold your own work: choose another folder, or move it away")
    new = [place for place in (folder / "solutions", folder, *folder.parents) if not place.exists()]
    written: list[Path] = []
    try:
        for path, copy in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_new(copy, path.read_bytes())
            written.append(copy)
    except BaseException:
        for copy in written:
            copy.unlink(missing_ok=True)
        for place in new:  # those that were made for this, from the inside out
            with suppress(OSError):
                place.rmdir()
        raise
    return written


def _source() -> Path:
    for place in PLACES:
        if (place / "README.md").is_file() and any(place.glob(PATTERNS[1])):
            return place
    raise FileNotFoundError(
        f"this installation of lora_np holds no tutorials: looked in {' and '.join(map(str, PLACES))}"
    )
