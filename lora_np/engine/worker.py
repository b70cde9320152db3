r"""A worker process: it holds one function at a time, and applies it to whatever it is sent.

It asks nobody and keeps nothing: what it is doing can be done again elsewhere. It ends with the process that started
it, however that one ends, and does not hear Ctrl-C, which is meant for that one.

    →  ("path", sys.path)                once, first
    ←  READY
    →  ("hold", sizes, length, shared)   the block of a parcel follows: as a file that is shared, or byte by byte
    →  ("work", item)
    ←  an answer, for each item
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

from .memory import keep_freed_memory
from .parcels import aligned, answer_of, opened, unpacked
from .threads import at_work

READY = b"!"


def serve(number: int) -> None:
    """Serve whoever holds the other end of this open socket, until it is closed."""
    for asked in {"SIGINT", "SIGHUP"} & {*dir(signal)}:
        signal.signal(getattr(signal, asked), signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    keep_freed_memory()
    at_work()
    with Connection(number) as connection, contextlib.suppress(EOFError, OSError):
        _serve(connection)


def _serve(connection: Connection) -> None:
    function: Callable[[Any], Any] = _nothing
    while True:
        kind, *rest = unpacked(connection.recv_bytes())
        if kind == "path":
            sys.path[:] = rest[0]
            connection.send_bytes(READY)
        elif kind == "hold":
            function = _held(connection, *rest)
        else:
            connection.send_bytes(answer_of(function, rest[0]))


def _held(connection: Connection, sizes: tuple[int, ...], length: int, shared: bool) -> Callable[[Any], Any]:
    """The function of a parcel; where it cannot be opened here, one that says so to every item."""
    if shared:
        file = recv_handle(connection)
        memory = mmap.mmap(file, length, prot=mmap.PROT_READ)
        os.close(file)
    else:
        memory = aligned(connection.recv_bytes())
    try:
        return opened(sizes, memory)
    except Exception as error:
        return Unknown(f"another process does not know what it shall do: {error}")


class Unknown:
    """In the place of a function that could not be opened."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __call__(self, item: Any) -> Any:
        raise TypeError(self.why)


_nothing = Unknown("nothing was sent to be done")


def _end_with_the_parent() -> None:
    """The parent holds the other end of stdin, and writes nothing: it is closed when the parent is gone."""
    os.read(0, 1)
    os._exit(1)
