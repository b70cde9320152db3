r"""Ways to use several cores, and the choice between them made once.

Either the matrix library splits one product over its own threads, or each of several Python threads works on a piece
of the batch with a single-threaded library. The second is faster here, because the element-wise half of a transformer
is then spread as well; mixing the two makes threads fight for cores. Where there is one piece only, a batch of one
sequence say, the threads that it leaves idle work inside its operations: `each`.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

from .memory import keep_freed_memory

Item = TypeVar("Item")
Map = Callable[..., list[Any]]
Then = Callable[[int, Any], None]

VARIABLE = "LORA_NP_THREADS"
MOST = 256

_here = threading.local()  # .pool: threads that this one may use inside an operation; .works: it is one of a map


def worker_count(workers: int | None = None) -> int:
    """How many workers to use: the argument, else the variable LORA_NP_THREADS, else the cores of this process.

    What itself works for a map has one, when nothing is said: itself. Raises ValueError for a number outside 1..256.
    """
    if workers is None and getattr(_here, "works", False):
        return 1
    chosen: Any = workers if workers is not None else os.environ.get(VARIABLE) or _cores()
    try:
        number = int(chosen)
    except (ValueError, OverflowError):
        number = 0
    if not 1 <= number <= MOST or (workers is not None and number != workers):
        source = "workers" if workers is not None else VARIABLE
        raise ValueError(f"{source} must be a whole number in 1..{MOST}, got {chosen!r}")
    return number


def ignored(index: int, result: Any) -> None:
    """What is done with a result that is only collected."""


def at_work() -> None:
    """Say that this thread works for a map: a map that it makes itself is done by it alone."""
    _here.works = True


@functools.cache
def threads_start() -> bool:
    """Can a thread be started here? Not in a browser, for one."""
    probe = threading.Thread(target=int, daemon=True)
    try:
        probe.start()
    except RuntimeError:
        return False
    probe.join()
    return True


@contextmanager
def one_matrix_thread() -> Iterator[None]:
    """Inside, the matrix library uses one thread, and memory that is freed is kept: see `lora_np.engine.memory`."""
    from threadpoolctl import threadpool_limits

    keep_freed_memory()
    with threadpool_limits(limits=1, user_api="blas"):
        yield


@contextmanager
def thread_map(workers: int | None = None) -> Iterator[Map]:
    """A `map(function, items, then) -> list` over threads, results in the order of the items.

    `then(index, result)` is called here for each, as soon as it is there. Inside, the matrix library uses one thread,
    whatever the number of workers: so the numbers do not depend on it. Where no thread can be started there is one
    worker, the caller.
    """
    number = worker_count(workers)
    number = number if number == 1 or threads_start() else 1
    with one_matrix_thread(), ThreadPoolExecutor(number, initializer=at_work) as pool:

        def run(function: Callable[[Any], Any], items: Sequence[Any], then: Then = ignored) -> list[Any]:
            if number == 1:
                return in_turn(function, items, then)
            if len(items) == 1:
                with _helped_by(pool):
                    return in_turn(function, items, then)
            futures = {pool.submit(function, item): index for index, item in enumerate(items)}
            try:
                if then is not ignored:
                    for future in as_completed(futures):
                        then(futures[future], future.result())
                return [future.result() for future in futures]
            finally:
                for future in futures:
                    future.cancel()  # where one has raised, those that were not begun

        yield run


def in_turn(function: Callable[[Any], Any], items: Sequence[Any], then: Then = ignored) -> list[Any]:
    """The map over this thread alone."""
    results = []
    for index, item in enumerate(items):
        results.append(function(item))
        then(index, results[-1])
    return results


def each(function: Callable[[Item], Any], items: Iterable[Item]) -> None:
    """function(item) for every item, in any order: on the idle threads of `thread_map`, if this thread was given any.

    The items must not depend on one another, nor the way of cutting work into items on the number of threads.
    """
    pool = getattr(_here, "pool", None)
    if pool is None:
        for job in items:
            function(job)
    elif len(jobs := list(items)) == 1:
        function(jobs[0])
    else:
        # with the settings of this thread, those of np.errstate among them
        list(pool.map(lambda context, job: context.run(function, job), [copy_context() for _ in jobs], jobs))


@contextmanager
def _helped_by(pool: ThreadPoolExecutor) -> Iterator[None]:
    _here.pool = pool
    try:
        yield
    finally:
        _here.pool = None


def _cores() -> int:
    return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
