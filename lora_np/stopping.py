r"""Being asked to stop: by Ctrl-C, by SIGTERM, or because the terminal went away. None of it is ever lost.

The first signal raises KeyboardInterrupt, wherever the main thread is. Should that be swallowed there (Python does so
in a destructor, and some libraries do while they are imported), `unless_asked` raises it again at the next step of the
work. A second signal, while the first one still saves, changes nothing; from the third on each interrupts once more.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")

# SIGHUP is not known to every system.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_asked: list[int] = []  # the signals so far


class Interrupted(Exception):
    """A run was stopped and can be resumed; `step` is the last one whose result is kept."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after step {step}")
        self.step = step


def heed() -> None:
    """From now on a signal stops the work, except one that whoever started this process wants to be ignored.

    A shell ignores SIGINT for a job in the background, and nohup SIGHUP. SIGTERM stops such a job all the same.
    """
    _asked.clear()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def disregard() -> None:
    """From now on signals are ignored: the work is over, and only its last line is to be said."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def asked() -> bool:
    """Was this process asked to stop?"""
    return bool(_asked)


def unless_asked(items: Iterable[Item]) -> Iterator[Item]:
    """The items; raises KeyboardInterrupt in place of the next one once this process was asked to stop."""
    for item in items:
        if _asked:
            raise KeyboardInterrupt
        yield item


def _stop(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    if len(_asked) != 2:
        raise KeyboardInterrupt
