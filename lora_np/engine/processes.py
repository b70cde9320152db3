r"""A map over worker processes of this machine.

    this process  ──── function, once: a block of memory that all look at ────→  worker, worker, …
                  ──── item ──→   ←── result ────                                one each at a time

Each worker has a matrix library of one thread, so a result has the bits that it has here. Where this process takes
part, it begins at once and does alone what there is until the others are ready: a short run does not wait for them.

A worker that ends in the middle of its work is noticed when its socket closes, one that hangs (stopped, or in an
endless loop) by the time it takes: while this process has nothing to do but wait, and hears from nobody, it counts
seconds. After many times the longest that any item took, and no fewer than `SECONDS_TO_HANG`, the worker is ended.
Either way, what it had is done again by whoever is free, and another takes its place. An item that was taken from a
worker so has twice as long the next time, so one that is only long is finished; before any item is finished, nothing
is known, and nothing is counted.
"""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from .children import Block, Worker
from .parcels import Parcel, packed, result_of
from .threads import Then, ignored, one_matrix_thread

MOST_DEATHS = 3  # workers that one item may end, and workers that may end before they are ready
HEARTBEAT = 0.5  # seconds of waiting that are counted at most at once: this process may have been stopped itself
TIMES_THE_LONGEST = 20
# Does this process take part? Then its items are alike, the shards of a batch; otherwise they may be whole runs.
SECONDS_TO_HANG = {True: 10.0, False: 600.0}


@dataclass
class Call:
    """One call of the map: what is still to be done, what has been, and how many workers each item ended."""

    items: Sequence[Any]
    then: Then
    todo: deque[int]
    results: dict[int, Any] = field(default_factory=dict)
    ended: Counter[int] = field(default_factory=Counter)

    @property
    def is_over(self) -> bool:
        return len(self.results) == len(self.items)

    def finish(self, index: int, result: Any) -> None:
        self.results[index] = result
        self.then(index, result)


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
        self._longest = 0.0  # seconds that an item of this function took

    def __call__(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        then: Then = ignored,
    ) -> list[Any]:
        call = Call(items, then, deque(range(len(items))))
        self.moved = self.shares = 0
        while len(self._workers) < self._wanted and self._failed_starts < MOST_DEATHS:
            self._workers.append(Worker())
        block = self._held(function) if self._workers else None
        self._collect(call, patient=False)  # who has become ready since
        try:
            while not call.is_over:
                for worker in list(self._workers):
                    if block is not None and call.todo and worker.is_free:
                        self._deal(worker, block, call)
                mine = bool(call.todo) and self.takes_part
                if mine:
                    self._do(function, call)
                self._collect(call, patient=not mine and not call.is_over)
        finally:
            for worker in [worker for worker in self._workers if worker.doing is not None]:
                self._drop(worker)  # what it is at is wanted no more, and it cannot be told
        return [call.results[index] for index in range(len(items))]

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
                self._block, self._longest = Block(parcel), 0.0
            self._function = function
        return self._block

    def _do(self, function: Callable[[Any], Any], call: Call) -> None:
        """The next item, here."""
        began, index = time.perf_counter(), call.todo.popleft()
        result = function(call.items[index])
        self._longest = max(self._longest, time.perf_counter() - began)
        call.finish(index, result)

    def _deal(self, worker: Worker, block: Block, call: Call) -> None:
        """Give the next item to a free worker, which may turn out to have ended."""
        index = call.todo.popleft()
        message = packed(("work", call.items[index]))
        self.sent += block.parcel.nbytes * (worker.holds != block.parcel.digest)
        worker.doing = index
        try:
            worker.hold(block)
            worker.give(index, message)
        except BlockingIOError:
            self._replace(worker, call, "it took nothing of what it was sent")
        except OSError:
            self._replace(worker, call)
        else:
            self.moved += len(message)
            self.shares += 1

    def _collect(self, call: Call, *, patient: bool) -> None:
        """Take the answers that are there; if patient, wait for one, or for a worker that becomes ready or ends."""
        by_connection = {worker.connection: worker for worker in self._workers}
        began = time.monotonic()
        heard = wait(list(by_connection), HEARTBEAT if patient else 0)
        if patient and not heard:
            self._count(call, min(HEARTBEAT, time.monotonic() - began))
        for connection in heard:
            worker = by_connection[connection]  # type: ignore[index]
            index = worker.doing
            try:
                message = worker.received()
            except (EOFError, OSError):
                self._replace(worker, call)
                continue
            if message is None:
                self.ready_after = max(self.ready_after or 0.0, worker.ready_after or 0.0)
            else:
                assert index is not None
                self.moved += len(message)
                self._longest = max(self._longest, worker.took)
                call.finish(index, result_of(message))

    def _count(self, call: Call, seconds: float) -> None:
        """These seconds went by in silence: whose patience is exhausted is replaced."""
        for worker in [worker for worker in self._workers if worker.doing is not None]:
            worker.waited += seconds
            if worker.waited > self._patience(call.ended[worker.doing or 0]):
                took = (
                    f"no answer in {worker.waited:.1f} s of waiting, where an item took {self._longest:.1g} s at most"
                )
                self._replace(worker, call, took)

    def _patience(self, tries: int) -> float:
        """The seconds for which an item is waited for that has ended so many workers."""
        if not self._longest:
            return math.inf
        return max(SECONDS_TO_HANG[self.takes_part], TIMES_THE_LONGEST * self._longest) * 2.0**tries

    def _replace(self, worker: Worker, call: Call, hangs: str = "") -> None:
        """Another in the place of one that ended, or that hangs; what it was at is to be done again."""
        index, was_ready, worker.is_lost = worker.doing, worker.ready_after is not None, not hangs
        how = self._drop(worker)
        how = f"by this one ({hangs})" if hangs else how
        if index is not None:
            call.todo.appendleft(index)
            call.ended[index] += 1
            if call.ended[index] == MOST_DEATHS:
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
