r"""A map over worker processes of this machine.

    this process  ──── function, once: a block of memory that all look at ────→  worker, worker, …
                  ──── item ──→   ←── result ────                                one each at a time

Workers are started as programs of their own, never forked: a fork of a process with threads may hang. Each has a matrix
library of one thread, so a result has the bits that it has here. Where this process takes part, it begins at once and
does alone what there is until the others are ready: a short run does not wait for them.

A worker that ends in the middle of its work is noticed when its socket closes. What it had is done again by whoever is
free, and another worker takes its place.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from pathlib import Path
from socket import socketpair
from typing import Any

from .parcels import Parcel, packed, result_of
from .threads import VARIABLE, Then, ignored, one_matrix_thread

PACKAGE = Path(__file__).parents[1] / "__init__.py"
SHARED = Path("/dev/shm")  # files here are memory
SECONDS_TO_DIE = 2.0  # between the moment when a socket closes and that when its process has ended
MOST_DEATHS = 3  # workers that one item may end, and workers that may end before they are ready

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
    """

    def __init__(self) -> None:
        ours, its = socketpair()
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
        """Have it hold a function, unless it does."""
        parcel = block.parcel
        if self.holds != parcel.digest:
            shared = block.file is not None
            self.connection.send_bytes(packed(("hold", parcel.sizes, parcel.nbytes, shared)))
            if block.file is not None:
                send_handle(self.connection, block.file.fileno(), self.pid)
            else:
                self.connection.send_bytes(b"".join(parcel.pieces()))
            self.holds = parcel.digest

    def received(self) -> bytes | None:
        """What it says: its answer, or None when it says that it is ready. Raises EOFError or OSError once it ended."""
        message = self.connection.recv_bytes()
        if self.ready_after is None:
            self.ready_after = time.perf_counter() - self._began
            return None
        self.doing = None
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


class ProcessMap:
    """`map(function, items, then) -> list` over workers, and over this process where it takes part.

    moved   bytes that the last call sent and received, beside functions   shares  how many items it sent
    sent    bytes of functions, so far       ready_after  seconds until the last worker was ready; None: none is yet
    """

    def __init__(self, processes: int, takes_part: bool) -> None:
        self.takes_part, self._wanted = takes_part, processes
        self.moved = self.sent = self.shares = 0
        self.ready_after: float | None = None
        self._workers = [Worker() for _ in range(processes)]
        self._block: Block | None = None
        self._function: Any = None
        self._failed_starts = 0

    def __call__(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        then: Then = ignored,
    ) -> list[Any]:
        results: dict[int, Any] = {}
        todo, ended = deque(range(len(items))), Counter[int]()
        self.moved = self.shares = 0
        while len(self._workers) < self._wanted and self._failed_starts < MOST_DEATHS:
            self._workers.append(Worker())

        def finish(index: int, result: Any) -> None:
            results[index] = result
            then(index, result)

        block = self._held(function) if self._workers else None
        self._collect(finish, todo, ended, patient=False)  # who has become ready since
        try:
            while len(results) < len(items):
                for worker in list(self._workers):
                    if block is not None and todo and worker.is_free:
                        self._deal(worker, block, items, todo, ended)
                mine = bool(todo) and self.takes_part
                if mine:
                    index = todo.popleft()
                    finish(index, function(items[index]))
                self._collect(finish, todo, ended, patient=not mine and len(results) < len(items))
        finally:
            for worker in [worker for worker in self._workers if worker.doing is not None]:
                self._drop(worker)  # what it is at is wanted no more, and it cannot be told
        return [results[index] for index in range(len(items))]

    def end(self) -> None:
        """End every worker, whatever it is at."""
        for worker in self._workers:
            worker.end()
        self._workers = []
        if self._block is not None:
            self._block.close()

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def _held(self, function: Any) -> Block:
        if self._block is None or function is not self._function:
            parcel = Parcel.of(function)
            if self._block is None or self._block.parcel.digest != parcel.digest:
                if self._block is not None:
                    self._block.close()
                self._block = Block(parcel)
            self._function = function
        return self._block

    def _deal(self, worker: Worker, block: Block, items: Sequence[Any], todo: deque[int], ended: Counter[int]) -> None:
        """Give the next item to a free worker, which may turn out to have ended."""
        index = todo.popleft()
        message = packed(("work", items[index]))
        worker.doing = index
        self.sent += block.parcel.nbytes * (worker.holds != block.parcel.digest)
        try:
            worker.hold(block)
            worker.connection.send_bytes(message)
        except OSError:
            self._replace(worker, todo, ended)
        else:
            self.moved += len(message)
            self.shares += 1

    def _collect(
        self, finish: Callable[[int, Any], None], todo: deque[int], ended: Counter[int], *, patient: bool
    ) -> None:
        """Take the answers that are there; if patient, wait for one, or for a worker that becomes ready or ends."""
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), None if patient else 0):
            worker = by_connection[connection]  # type: ignore[index]
            index = worker.doing
            try:
                message = worker.received()
            except (EOFError, OSError):
                self._replace(worker, todo, ended)
                continue
            if message is None:
                self.ready_after = max(self.ready_after or 0.0, worker.ready_after or 0.0)
            else:
                assert index is not None
                self.moved += len(message)
                finish(index, result_of(message))

    def _replace(self, worker: Worker, todo: deque[int], ended: Counter[int]) -> None:
        """Another in the place of one that ended; what it was at is to be done again."""
        index, was_ready, worker.is_lost = worker.doing, worker.ready_after is not None, True
        how = self._drop(worker)
        if index is not None:
            todo.appendleft(index)
            ended[index] += 1
            if ended[index] == MOST_DEATHS:
                raise ChildProcessError(f"item {index + 1} ended {MOST_DEATHS} worker processes, the last one {how}")
        self._failed_starts += not was_ready
        again = "what it was at is done again" if index is not None else "it was idle"
        if self._failed_starts < MOST_DEATHS:
            self._workers.append(Worker())
            if was_ready:
                _warn(f"a worker process ended {how}: {again}, and another takes its place")
        elif not (self._workers or self.takes_part):
            raise ChildProcessError(f"worker processes end before they are ready, the last one {how}")
        elif not was_ready:
            _warn(f"a worker process ended {how} before it was ready: the work goes on without it")

    def _drop(self, worker: Worker) -> str:
        self._workers.remove(worker)
        return worker.end()


@contextmanager
def process_map(workers: int, *, takes_part: bool = True) -> Iterator[ProcessMap]:
    """A map over so many workers, this process one of them where it takes part; all others end with the block.

    Raises ValueError on a system that has no processes of this kind.
    """
    if os.name != "posix" or sys.platform in ("emscripten", "wasi"):
        raise ValueError("the engine processes needs a POSIX system: use threads, or inline")
    with one_matrix_thread():
        run = ProcessMap(workers - takes_part, takes_part)
        try:
            yield run
        finally:
            run.end()


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=2)
