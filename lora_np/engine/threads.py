r"""Ways to use several cores, and the choice between them made once.

Either the matrix library splits one product over its own threads, or each of several Python threads works on a piece
of the batch with a single-threaded library. The second is faster here, because the element-wise half of a transformer
is then spread as well; mixing the two makes threads fight for cores. Where there is one piece only, a batch of one
sequence say, the threads that it leaves idle work inside its operations: `each`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

from .memory import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")
Map = Callable[[Callable[[Item], Result], Sequence[Item]], list[Result]]

VARIABLE = "LORA_NP_THREADS"
MOST = 256

_here = threading.local()  # .pool: threads that this one may use inside an operation


def worker_count(workers: int | None = None) -> int:
    """How many threads to use: the argument, else the variable LORA_NP_THREADS, else the cores of this process.

    Raises ValueError for a number outside 1..256.
    """
    chosen: Any = workers if workers is not None else os.environ.get(VARIABLE) or _cores()
    try:
        number = int(chosen)
    except (ValueError, OverflowError):
        number = 0
    if not 1 <= number <= MOST or (workers is not None and number != workers):
        source = "workers" if workers is not None else VARIABLE
        raise ValueError(f"{source} must be a whole number in 1..{MOST}, got {chosen!r}")
    return number


@contextmanager
def thread_map(workers: int | None = None) -> Iterator[Map[Any, Any]]:
    """A `map(function, items) -> list` over threads, results in the order of the items.

    Inside, the matrix library uses one thread, whatever the number of workers: so the numbers do not depend on it.
    Memory that is freed is kept for reuse from the first call on: see `lora_np.engine.memory`.
    """
    from threadpoolctl import threadpool_limits

    number = worker_count(workers)
    keep_freed_memory()
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(number) as pool:

        def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
            if number == 1:
                return [function(item) for item in items]
            if len(items) == 1:
                with _helped_by(pool):
                    return [function(items[0])]
            return list(pool.map(function, items))

        yield run


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
