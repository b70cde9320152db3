r"""Where we write: a new folder appears whole, and only what lora_np wrote itself is ever replaced or removed.

    OUT.partial    the folder while it is built, marked as ours from its first moment
    OUT            the same folder, renamed when it is complete; the rename replaces nothing, unless that was asked for

What counts as ours is decided in `lora_np.disk.marks`. Everything else is refused before any work, with what stands
there.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .marks import (
    MARK,
    Kind,
    Mark,
    can_be_resumed,
    finish_mark,
    first_foreign,
    is_leftover,
    ours,
    read_mark,
    there,
    write_mark,
)
from .reading import kind_of
from .renaming import exchange, rename_new


def partial_folder(path: str | Path) -> Path:
    """Where a folder is built before it appears at `path`."""
    return Path(path).with_name(Path(path).name + ".partial")


def check_free(
    path: str | Path,
    kind: Kind,
    *,
    overwrite: bool = False,
    resume: bool = False,
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Raise OSError unless `new_folder` may begin with the same arguments; nothing is changed.

    inputs  files and folders that are read meanwhile: neither `path` nor its partial folder may hold one, ours or not
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise FileExistsError(f"{path} exists and is no name for a new folder: choose one, such as {path / 'new'}")
    given = [Path(one) for one in inputs if one is not None]
    for place in (path, partial_folder(path)):
        for one in given:
            if _holds(place, one):
                raise FileExistsError(f"{place} exists and holds {one}, which is read here: choose another --out")
    _check_target(path, overwrite=overwrite)
    _check_partial(partial_folder(path), kind, overwrite=overwrite, resume=resume)
    _check_writable(path)


@contextmanager
def new_folder(path: str | Path, kind: Kind, *, overwrite: bool = False, resume: bool = False) -> Iterator[Path]:
    """A folder that appears at `path` when the block ends well; until then it is `path` + '.partial'.

    resume  begin with what an unfinished one holds, else anew

    After an error the part is removed, unless it can be resumed. Raises OSError where `check_free` does, and when
    something has come to stand at `path` meanwhile: then what was made stays in the partial folder.
    """
    check_free(path, kind, overwrite=overwrite, resume=resume)
    path, partial = Path(path), partial_folder(path)
    missing = [parent for parent in path.parents if not parent.exists()]
    partial.mkdir(parents=True, exist_ok=True)
    with _alone(partial):
        _check_partial(partial, kind, overwrite=overwrite, resume=resume)
        try:
            _remove(partial, [name for name in _ours(partial, kind) if not resume or is_leftover(name)])
            write_mark(partial, kind)
            yield partial
            _finish(partial, kind)
        except BaseException:
            if not can_be_resumed(partial, kind):
                _discard(partial, kind)
                for parent in missing:
                    with suppress(OSError):
                        parent.rmdir()
            raise
        _take_place(partial, path, overwrite=overwrite)


# ------------------------------------------------------------------------------------------------- what stands there


def _check_target(path: Path, *, overwrite: bool) -> None:
    found = there(path)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise FileExistsError(f"{path} exists and is {kind_of(found)}, not a folder of lora_np: choose another --out")
    _check_ours(path, read_mark(path))
    if not overwrite:
        raise FileExistsError(f"{path} exists: choose another --out, or allow --overwrite")


def _check_partial(partial: Path, kind: Kind, *, overwrite: bool, resume: bool) -> None:
    mark = _mark_of_partial(partial, kind, resume)
    work = mark is not None and can_be_resumed(partial, mark.kind)
    if resume and not (work and mark is not None and mark.kind.name == kind.name):
        raise FileNotFoundError(f"nothing to resume: {partial} holds no unfinished {kind.name}")
    if resume or mark is None or not (work or mark.finished):
        return
    if mark.kind.name != kind.name and not mark.finished:
        raise FileExistsError(
            f"{partial} holds an unfinished {mark.kind.name}: continue or remove that one, or choose another --out"
        )
    if not overwrite:
        remedy = "continue it with --resume" if work else "rename it"
        state = "an unfinished" if work else "a finished"
        raise FileExistsError(f"{partial} holds {state} {mark.kind.name}: {remedy}, or discard it with --overwrite")


def _mark_of_partial(partial: Path, kind: Kind, resume: bool) -> Mark | None:
    """The mark of a partial folder; None where there is none yet, or one that is empty. Raises unless it is ours."""
    found = there(partial)
    if found is None:
        return None
    if not stat.S_ISDIR(found.st_mode):
        raise FileExistsError(f"{partial} exists and is {kind_of(found)}: move it away, or choose another --out")
    mark = read_mark(partial)
    if mark is None and first_foreign(partial, ()) is None:
        return None
    if mark is None and resume and can_be_resumed(partial, kind):  # of a version that wrote no mark
        mark = Mark(kind, finished=False)
    _check_ours(partial, mark)
    return mark


def _check_ours(folder: Path, mark: Mark | None) -> None:
    foreign = first_foreign(folder, mark.kind.files if mark else ())
    if mark is None:
        holds = f"holds {foreign}" if foreign else "is empty"
        raise FileExistsError(f"{folder} exists, {holds}, and has no mark of lora_np: choose another --out")
    if foreign:
        raise FileExistsError(f"{folder} exists and holds {foreign}, which lora_np did not write: move that away first")


def _check_writable(path: Path) -> None:
    parent = next(parent for parent in path.absolute().parents if there(parent))
    if not parent.is_dir():
        number = errno.ENOTDIR
    elif os.access(parent, os.W_OK | os.X_OK):
        return
    else:
        read_only = hasattr(os, "statvfs") and os.statvfs(parent).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
    raise OSError(number, os.strerror(number), str(path))


def _holds(folder: Path, given: Path) -> bool:
    """Is `given` this folder, or anywhere below it, links followed?"""
    try:
        here, below = os.stat(folder), given.resolve()
        return any(os.path.samestat(here, os.stat(place)) for place in (below, *below.parents))
    except (OSError, RuntimeError):  # one of them is not there, or is a loop of links
        return False


# ------------------------------------------------------------------------------------------------ building, replacing


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises FileExistsError while another process is inside for the same folder."""
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield
        return
    here = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(here, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"{folder} is being written by another process: wait for that one") from None
        except OSError:  # a file system without locks
            pass
        now = there(folder)
        if now is None or not os.path.samestat(now, os.fstat(here)):
            raise FileExistsError(f"{folder} was another process's, which has just ended: try again")
        yield
    finally:
        os.close(here)


def _ours(folder: Path, kind: Kind) -> list[str]:
    mark = read_mark(folder)
    return ours(folder, (mark.kind if mark else kind).files)


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files, the mark last, and the folders in between that are empty then."""
    files = sorted(names, key=lambda name: name == MARK)
    for name in files:
        (folder / name).unlink(missing_ok=True)
    below = {place for name in files for place in (folder / name).parents if folder in place.parents}
    for place in sorted(below, key=lambda place: -len(place.parts)):
        with suppress(OSError):
            place.rmdir()


def _discard(folder: Path, kind: Kind) -> None:
    """Remove a folder of ours, except for what is not ours in it."""
    with suppress(OSError):
        _remove(folder, _ours(folder, kind))
        folder.rmdir()


def _finish(partial: Path, kind: Kind) -> None:
    if foreign := first_foreign(partial, kind.files):
        raise FileExistsError(f"{partial} holds {foreign}, which lora_np did not write: move that away, then try again")
    _remove(partial, [name for name in ours(partial, kind.files) if is_leftover(name)])
    finish_mark(partial, kind)


def _take_place(partial: Path, path: Path, *, overwrite: bool) -> None:
    """The last rename; it replaces a folder of ours and nothing else, looked at once more."""
    old = there(path)
    if old is None or not overwrite:
        try:
            rename_new(partial, path)
        except FileExistsError:
            raise FileExistsError(
                f"{path} came into being meanwhile, and stays; what was made is complete in {partial}: rename that"
            ) from None
        return
    _check_target(path, overwrite=overwrite)
    aside = partial
    if exchange(partial, path):
        now = there(aside)
        if now is None or not os.path.samestat(now, old):
            exchange(aside, path)
            raise FileExistsError(f"{path} was changed meanwhile and stays; what was made is complete in {partial}")
    else:
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        rename_new(path, aside)
        try:
            rename_new(partial, path)
        except BaseException:
            rename_new(aside, path)
            raise
    _discard(aside, Kind("", ()))
