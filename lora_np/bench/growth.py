r"""How time and memory of a LoRA step grow with each size, beside how `lora_np.costs` says they grow.

One size is changed, the others stay. A power law $y = c\,x^p$ is fitted by least squares in logarithms (G1), to what is
measured, a round at a time, and to the closed forms at the same points: the two exponents p can be compared although
one is of seconds and the other of multiply-adds. p is below 1 where other work does not grow along.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from ..costs import step_multiply_adds
from .measure import Ratio, array_bytes, measure, predicted_bytes
from .sizes import TARGETS, Size, Task

# Large enough that arithmetic, not the interpreter, takes the time; small enough for minutes.
START = Size("growth", 256, 4, 8, 4, 256, 2048)
CHANGES: dict[str, tuple[int, ...]] = {
    "tokens": (2, 4, 8, 16),  # sequences of `seq` tokens
    "layers": (2, 4, 8, 16),
    "vocabulary": (1024, 4096, 16384, 65536),
    "rank": (2, 8, 32, 128),
}


@dataclass(frozen=True)
class Growth:
    """Exponents of (G1) for one changed size."""

    name: str
    values: tuple[int, ...]
    seconds: tuple[float, ...]  # the median at each value
    bytes: tuple[int, ...]
    time: Ratio  # exponent: median of the rounds, and their range
    time_predicted: float
    memory: float
    memory_predicted: float


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of (G1)."""
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_u, mean_v = statistics.fmean(u), statistics.fmean(v)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sum((a - mean_u) ** 2 for a in u)


def changed(name: str, value: int, start: Task) -> Task:
    """The task with one size set to `value`."""
    if name == "rank":
        return replace(start, rank=value)
    sizes = {"tokens": {"batch": value}, "layers": {"layers": value}, "vocabulary": {"vocab": value}}
    return replace(start, size=replace(start.size, **sizes[name]))  # type: ignore[arg-type]


def growth(name: str, start: Task, rounds: int, values: Sequence[int] = ()) -> Generator[str, None, Growth]:
    """Measure a LoRA step while one size grows. Yields what is done next."""
    values = tuple(values or CHANGES[name])
    tasks = [changed(name, value, start) for value in values]
    measured = yield from measure(tasks, rounds)
    held = []
    for value, task in zip(values, tasks, strict=True):
        yield f"bytes at {value} {name}"
        held.append(array_bytes(task))
    needed = [task.size.tokens * step_multiply_adds(task.size.config, task.rank, TARGETS) for task in tasks]
    by_round = [exponent(values, seconds) for seconds in zip(*(m.seconds for m in measured), strict=True)]
    return Growth(
        name,
        values,
        tuple(m.median for m in measured),
        tuple(held),
        Ratio(statistics.median(by_round), min(by_round), max(by_round)),
        exponent(values, needed),
        exponent(values, held),
        exponent(values, [predicted_bytes(task) for task in tasks]),
    )
