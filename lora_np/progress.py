r"""How a run shows that it is alive: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

from .stopping import unless_asked

Item = TypeVar("Item")

LINES_EVERY = 5.0  # seconds between plain lines, the first and the last aside


def watch(
    items: Iterable[Item],
    label: str,
    total: int | None = None,
    done: int = 0,
    show: Callable[[Item], str] | None = None,
) -> Iterator[Item]:
    """Pass the items on, showing on stderr how far they are and what `show` says of the latest.

    Raises KeyboardInterrupt in place of an item once this process was asked to stop, wherever that was swallowed.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    return (_bar if sys.stderr.isatty() else _lines)(unless_asked(items), label, total, done, show)


def describe(record: Any) -> str:
    """A training record in a few words."""
    return f"loss {record.loss:.4f}, {record.tokens / record.seconds:,.0f} tokens/s"


def _bar(items: Iterable[Item], label: str, total: int | None, done: int, show: Any) -> Iterator[Item]:
    from tqdm import tqdm

    with tqdm(total=total, initial=done, desc=label, dynamic_ncols=True, leave=False) as bar:
        for item in items:
            if show:
                bar.set_postfix_str(show(item), refresh=False)
            bar.update()
            yield item


def _lines(items: Iterable[Item], label: str, total: int | None, done: int, show: Any) -> Iterator[Item]:
    shown = time.monotonic()
    for number, item in enumerate(items, done + 1):
        if number in (done + 1, total) or time.monotonic() - shown > LINES_EVERY:
            of = f"/{total}" if total else ""
            print(f"{label} {number}{of}" + (f": {show(item)}" if show else ""), file=sys.stderr, flush=True)
            shown = time.monotonic()
        yield item
