r"""Renames that never replace: where the system has one, in one step that nobody can come between.

Linux has renameat2(2) with two flags, macOS renamex_np(2) with the same two; Windows never replaces a folder.
Elsewhere, and on file systems that know no such rename, the new name is first taken with mkdir(2), which does not
replace either.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

HERE = -100  # AT_FDCWD of Linux: a relative path starts at the current folder
FLAGS = {"linux": (1, 2), "darwin": (4, 2)}  # never replace, and exchange: RENAME_NOREPLACE, RENAME_EXCHANGE
UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)  # how a kernel or a file system says that it cannot


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder; raises FileExistsError where anything at all stands at `target`."""
    never_replace, _ = _flags()
    if _renamed(source, target, never_replace):
        return
    if os.name == "nt":
        os.rename(source, target)
    elif source.is_dir():
        _rename_into_claimed(source, target)
    else:
        os.link(source, target, follow_symlinks=False)
        os.unlink(source)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders trade their names in one step; False, and nothing is done, where the system cannot."""
    _, swap = _flags()
    return _renamed(one, other, swap)


def _rename_into_claimed(source: Path, target: Path) -> None:
    os.mkdir(target)
    try:
        os.rename(source, target)  # over an empty folder; one that is no longer empty is not replaced
    except BaseException:
        os.rmdir(target)
        raise


def _flags() -> tuple[int, int]:
    return FLAGS.get(sys.platform, (0, 0))


def _renamed(source: Path, target: Path, flag: int) -> bool:
    """True when the system has done it; raises OSError when it refused for a reason of the paths."""
    call = _system_call()
    if call is None or not flag:
        return False
    if call(os.fsencode(source), os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(target))


@cache
def _system_call() -> Callable[[bytes, bytes, int], int] | None:
    """(source, target, flag) -> 0, or -1 with errno set; None where the C library has no such call."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            rename = library.renamex_np
            rename.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)
            return lambda source, target, flag: int(rename(source, target, flag))
        rename = library.renameat2
        rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
        return lambda source, target, flag: int(rename(HERE, source, HERE, target, flag))
    except (AttributeError, OSError, TypeError):  # an older C library, or not this kind of system
        return None
