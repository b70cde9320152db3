r"""Two ways to use several cores, and the choice between them made once.

Either the matrix library splits one product over its own threads, or each of several Python threads works on a piece
of the batch with a single-threaded library. The second is faster here, because the element-wise half of a transformer
is then spread as well; mixing the two makes threads fight for cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Map = Callable[[Callable[[Item], Result], Sequence[Item]], list[Result]]

VARIABLE = "LORA_NP_THREADS"
MOST = 256


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
    """
    from threadpoolctl import threadpool_limits

    number = worker_count(workers)
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(number) as pool:

        def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
            if number == 1 or len(items) == 1:
                return [function(item) for item in items]
            return list(pool.map(function, items))

        yield run


def _cores() -> int:
    return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
