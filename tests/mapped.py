"""What the tests have workers do: functions of a module that imports next to nothing, so a worker has it at once."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.engine.threads import worker_count


class Noted(Exception):
    """Cannot be put together again from what a pickle keeps of it."""

    def __init__(self, words: str, number: int) -> None:
        super().__init__(words)
        self.number = number


def square(i: int) -> int:
    return i * i


def where(seconds: float) -> tuple[int, int]:
    """The process that does it, in its own time, and how many workers that would use by itself."""
    time.sleep(seconds)
    return os.getpid(), worker_count()


def refuses_two(i: int) -> int:
    if i == 2:
        raise KeyError("two is not served")
    if i == 3:
        raise Noted("three is not served", 3)
    return i


def ends_its_process(i: int) -> int:
    if i == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


def never_ends(i: int) -> int:
    while i == 1:
        time.sleep(0.01)
    return i


def summed(data: bytes) -> int:
    return sum(data[:10]) + len(data)


@dataclass(frozen=True)
class Held:
    """A function that holds an array, and says what became of it: bytes, order, can it be written, is it aligned."""

    array: np.ndarray[Any, Any]

    def __call__(self, i: int) -> tuple[bytes, bool, bool, int]:
        flags = self.array.flags
        return self.array.tobytes(), flags.f_contiguous, flags.writeable, self.array.ctypes.data % 64
