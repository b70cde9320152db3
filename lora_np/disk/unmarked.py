r"""A folder for another program: it appears whole or not at all, replaces nothing, and holds no mark of ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .folders import partial_folder
from .marks import there
from .renaming import rename_new


@contextmanager
def unmarked_folder(path: str | Path) -> Iterator[Path]:
    """A folder that appears at `path` when the block ends well; until then it is `path` + '.partial'.

    After an error nothing is left. Raises FileExistsError where something stands at either place, before the block or
    when it ends: then what was made is removed, and what stands there stays.
    """
    path = Path(path)
    partial = partial_folder(path)
    for place in (path, partial):
        if there(place) is not None:
            raise FileExistsError(f"{place} exists: choose another --out, or remove it")
    missing = [parent for parent in path.parents if not parent.exists()]
    partial.mkdir(parents=True)
    try:
        yield partial
        rename_new(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise
