r"""One map, four engines: this thread, threads, worker processes, or a Dask cluster that exists already.

    with engine_map("processes", workers=4) as run:
        rows = run(function, items)                    # in the order of the items
        rows = run(function, items, then=written)      # and written(index, row) for each as soon as it is there

What is mapped over is cut beforehand, and put together afterwards in its own order: so a result does not depend on the
engine, nor on the number of workers, nor on who finishes first. For processes and clusters the function must belong to
a module, or be an object whose class does (a frozen dataclass, or `functools.partial`): it is sent once, with the
arrays it holds; items and results are sent each time. An exception that a function raises, this raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from .threads import Then, ignored, thread_map, threads_start, worker_count

ENGINES = ("inline", "threads", "processes", "dask://HOST:PORT")


class Map(Protocol):
    """A map, and what its last call moved: see `ProcessMap`. All of it is zero where memory is shared."""

    moved: int
    sent: int
    shares: int
    ready_after: float | None

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any], then: Then = ignored) -> list[Any]: ...


class Here:
    """A map inside this process: nothing moves."""

    moved = sent = shares = 0
    ready_after: float | None = None

    def __init__(self, run: Callable[..., list[Any]]) -> None:
        self._run = run

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any], then: Then = ignored) -> list[Any]:
        return self._run(function, items, then)


def check_engine(engine: str, workers: int | None = None) -> None:
    """Raise, before any work is done, what `engine_map` would raise; a cluster is asked whether it is there."""
    worker_count(workers)
    if _known(engine).startswith("dask://"):
        with engine_map(engine, workers):
            pass


def _known(engine: str) -> str:
    if engine not in ("inline", "threads", "processes") and not engine.startswith("dask://"):
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}")
    return engine


@contextmanager
def engine_map(engine: str = "threads", workers: int | None = None, *, takes_part: bool = False) -> Iterator[Map]:
    """The map of an engine; whatever it has started ends with the block.

    workers      threads or processes, as many as there are cores when None; at most so many items at once on a cluster
    takes_part   is this process one of the workers of "processes"? Then it begins at once and waits for nobody, which
                 suits short items; without it, it hands out items the moment a worker is free, which suits long ones

    Raises ValueError for an unknown engine or a wrong number of workers, ImportError or ConnectionError where there is
    no cluster to be had.
    """
    number = worker_count(workers)
    if _known(engine) == "inline" or not threads_start():
        with thread_map(1) as inline:
            yield Here(inline)
    elif engine == "threads" or (engine == "processes" and takes_part and number == 1):
        with thread_map(number) as threads:
            yield Here(threads)
    elif engine == "processes":
        from .processes import process_map

        with process_map(number, takes_part=takes_part) as processes:
            yield processes
    else:
        from .cluster import cluster_map

        with cluster_map(engine, workers) as cluster:
            yield cluster
