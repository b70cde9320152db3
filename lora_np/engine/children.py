r"""A worker process as the process that started it sees it: started, given things to do, heard, ended.

    worker = Worker()            a program of its own, never a fork: a fork of a process with threads may hang
    worker.hold(block)           the function that it shall apply, sent once: a `Block` of memory that all look at
    worker.give(index, message)  an item          worker.received()   its answer          worker.end()

What runs on the other side is `lora_np.engine.worker`. Whoever uses workers decides what to do when one ends or says
nothing: see `lora_np.engine.processes`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path

from .parcels import Parcel, packed
from .threads import VARIABLE

PACKAGE = Path(__file__).parents[1] / "__init__.py"
SHARED = Path("/dev/shm")  # files here are memory
SECONDS_TO_DIE = 2.0  # between the moment when a socket closes and that when its process has ended
SECONDS_TO_TAKE = 10.0  # a worker that takes nothing of a message for so long does not read

# Set before the matrix library is loaded, which reads them once.
ONE_THREAD = dict.fromkeys((VARIABLE, "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")

# The very package that runs here, by its file; from the current folder nothing is imported (-P).
PROGRAM = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("lora_np", sys.argv[1])
sys.modules["lora_np"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from lora_np.engine.worker import serve
serve(int(sys.argv[2]))
"""

_alive: weakref.WeakSet[Worker]


class Worker:
    """One process, and what it is at.

    doing    the index of its item, None when it is idle    ready_after  seconds from its start; None until then
    holds    the digest of its function                     is_lost      its socket is closed
    took     seconds between its last item and the answer   waited       for its answer in vain: seconds, as who waits
                                                                         counts them
    """

    def __init__(self) -> None:
        ours, its = socket.socketpair()
        patience = struct.pack("ll", int(SECONDS_TO_TAKE), int(SECONDS_TO_TAKE % 1 * 1e6))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._began, self._parent = time.perf_counter(), os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, str(PACKAGE), str(its.fileno())],
            stdin=subprocess.PIPE,  # nothing is written: that it closes says that this process is gone
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=[its.fileno()],
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,  # Ctrl-C reaches this process alone
        )
        _alive.add(self)
        its.close()
        self.connection = Connection(ours.detach())
        self.doing: int | None = None
        self.holds: str | None = None
        self.ready_after: float | None = None
        self.is_lost = False
        self.took = self.waited = self._given = 0.0
        self.connection.send_bytes(packed(("path", [place or os.getcwd() for place in sys.path])))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_mine(self) -> bool:
        return self._parent == os.getpid()

    @property
    def is_free(self) -> bool:
        return self.ready_after is not None and self.doing is None

    def hold(self, block: Block) -> None:
        """Have it hold a function, unless it does. Raises OSError as `give` does."""
        parcel = block.parcel
        if self.holds != parcel.digest:
            shared = block.file is not None
            self.connection.send_bytes(packed(("hold", parcel.sizes, parcel.nbytes, shared)))
            if block.file is not None:
                send_handle(self.connection, block.file.fileno(), self.pid)
            else:
                self.connection.send_bytes(b"".join(parcel.pieces()))
            self.holds = parcel.digest

    def give(self, index: int, message: bytes) -> None:
        """Send it an item. Raises OSError where it has ended, BlockingIOError where it takes nothing."""
        self.doing, self.waited, self._given = index, 0.0, time.perf_counter()
        self.connection.send_bytes(message)

    def received(self) -> bytes | None:
        """What it says: its answer, or None when it says that it is ready. Raises EOFError or OSError once it ended."""
        message = self.connection.recv_bytes()
        if self.ready_after is None:
            self.ready_after = time.perf_counter() - self._began
            return None
        self.doing, self.took = None, time.perf_counter() - self._given
        return message

    def end(self) -> str:
        """Kill it, unless it has ended or is about to, wait for it, and say how it ended."""
        if self._errors.closed:
            return "before"
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(SECONDS_TO_DIE if self.is_lost else 0)
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        for file in (self.connection, self._process.stdin, self._errors):
            with contextlib.suppress(OSError):
                file.close()  # type: ignore[union-attr]
        _alive.discard(self)
        how = "unasked" if code is None else f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"{how}, and said: {said[-1]}" if said else how


_alive = weakref.WeakSet()


def alive() -> list[int]:
    """The worker processes of this one."""
    return [worker.pid for worker in list(_alive) if worker.is_mine]


@atexit.register
def _end_all() -> None:
    for worker in list(_alive):
        if worker.is_mine:  # and not that of a process that forked itself into this one
            worker.end()


class Block:
    """A parcel in memory that processes share; `file` is None where there is no room: each gets the bytes then."""

    def __init__(self, parcel: Parcel) -> None:
        self.parcel, self.file = parcel, None
        try:
            self.file = tempfile.TemporaryFile(dir=SHARED)  # noqa: SIM115 - without a name: nothing can be left behind
            for piece in parcel.pieces():
                self.file.write(piece)
            self.file.flush()
        except OSError as error:
            self.close()
            warnings.warn(
                f"{SHARED} takes no {parcel.nbytes / 1e6:,.1f} MB ({error.strerror}): every worker process is sent a "
                "copy of its own",
                RuntimeWarning,
                stacklevel=2,
            )

    def close(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.close()
        self.file = None
