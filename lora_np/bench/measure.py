r"""Measuring: every workload of a size in its own process, all of them asked in turn, round after round.

What is compared is compared within a round, A B A B, so that a machine that changes its speed from one second to the
next changes both; from the ratios of the rounds come a median and a range.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..costs import step_bytes, step_multiply_adds
from ..costs.memory import held_bytes
from ..engine.memory import available_bytes
from ..engine.threads import worker_count
from ..training import pieces_of
from .process import ChildError, Process
from .sizes import TARGETS, Size, Task

OPTIONAL = ("peer, compiled", "peer, jax")  # what may be missing where other peers are there
ROUND_SECONDS = 0.2  # of steps in one round, so that a short step is not judged by one of them
MOST_STEPS = 30
PAUSE = 0.25  # seconds between two turns: threads of a matrix library spin for a tenth after their last work
HEADROOM = 1 << 28  # bytes beside the arrays: libraries, and blocks of scores and logits

# What a process of PyTorch holds for each byte of ours (2.5 at gpt2, where it matters), and the textbook with its whole
# scores and logits (5.2 at mid): rounded up, and only to say beforehand that something will not fit.
PEER_FACTOR, TEXTBOOK_FACTOR = 2.6, 6.0


@dataclass(frozen=True)
class Measured:
    """What one workload did at one size, a value a round.

    seconds   of one step, the median of those of the round      result   of the second step: a loss, or tokens
    peak      largest resident memory of the process, in bytes   gemm     flop/s of matrix products in this process
    first     seconds of the very first step: what is compiled is compiled in it
    """

    workload: str
    size: Size
    rank: int
    seconds: tuple[float, ...]
    peak: int
    gemm: tuple[float, ...]
    result: Any
    first: float = 0.0

    @property
    def median(self) -> float:
        """Seconds a step."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.size.tokens / self.median

    @property
    def roofline(self) -> float | None:
        """Floating-point operations that a step needs, over those that matrix products alone could do in its time."""
        if not self.gemm:
            return None
        rank = None if self.workload == "full" else self.rank
        needed = 2.0 * self.size.tokens * step_multiply_adds(self.size.config, rank, TARGETS)
        return statistics.median(
            needed / (rate * seconds) for rate, seconds in zip(self.gemm, self.seconds, strict=True)
        )


@dataclass(frozen=True)
class Ratio:
    """One workload over another, round by round."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f}-{self.highest:.2f})"


def ratio(a: Measured, b: Measured) -> Ratio:
    """Time of a over time of b; below 1, a is faster."""
    pairs = [x / y for x, y in zip(a.seconds, b.seconds, strict=True)]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs))


def predicted_bytes(task: Task) -> int:
    """The bytes of arrays that a step will hold: (C11) and (C12) of `lora_np.costs`, scaled for others' code."""
    size, rank = task.size, None if task.workload == "full" else task.rank
    pieces = min(pieces_of(size.config, size.tokens), size.batch)
    at_once = min(pieces, worker_count(task.workers))
    recomputed = task.workload.endswith("recomputed")
    shape = size.config
    held = held_bytes(shape) if task.workload.endswith("float16") else None
    about = {"pieces": pieces, "at_once": at_once, "recomputed": recomputed, "held": held}
    ours = step_bytes(shape, size.batch, size.seq, rank, TARGETS, **about)  # type: ignore[arg-type]
    factors = {"peer": PEER_FACTOR, "real peer": PEER_FACTOR, "textbook": TEXTBOOK_FACTOR}
    return int(ours * factors.get(task.workload.partition(",")[0], 1.0))


def check_room(tasks: Sequence[Task]) -> None:
    """Raise ValueError where tasks that are alive together will not fit into the memory that is available."""
    needed = sum(predicted_bytes(task) + HEADROOM for task in tasks)
    free = available_bytes()
    if free is not None and needed > free:
        parts = ", ".join(f"{task.workload} {predicted_bytes(task) / 1e9:.1f}" for task in tasks)
        raise ValueError(
            f"size {tasks[0].size.name} needs about {needed / 1e9:.1f} GB at once ({parts}, and "
            f"{HEADROOM / 1e9:.1f} each for libraries), {free / 1e9:.1f} GB are available: leave something out, "
            "or choose a smaller size or --batch"
        )


@contextmanager
def processes(tasks: Sequence[Task], skipped: dict[str, str] | None = None) -> Iterator[list[Process]]:
    """One for each task, all set up; they end with the block, however it ends. What is `skipped`: see `measure`."""
    check_room(tasks)
    started: list[Process] = []
    try:
        for task in tasks:
            started.append(Process(task))
            with unless_skipped(started[-1], started, skipped):
                started[-1].wait()  # one after another: setting up takes all cores
        yield started
    finally:
        for process in started:
            process.end()


@contextmanager
def unless_skipped(child: Process, children: list[Process], skipped: dict[str, str] | None) -> Iterator[None]:
    """Leave out a child that fails, where it is one that may be missing and `skipped` is there to hold why."""
    try:
        yield
    except ChildError as error:
        if skipped is None or child.task.workload not in OPTIONAL:
            raise
        skipped[child.task.workload] = str(error)
        children.remove(child)
        child.end()


def measure(
    tasks: Sequence[Task], rounds: int, skipped: dict[str, str] | None = None
) -> Generator[str, None, list[Measured]]:
    """Every task `rounds` times in turn, after a step each that does not count. Yields what is done next.

    skipped   takes the reasons why one of OPTIONAL is not among what is given back
    """
    with processes(tasks, skipped) as children:
        first_two = []
        for child in list(children):
            yield f"{child.task.size.name}, {child.task.workload}, first steps"
            with unless_skipped(child, children, skipped):
                first_two.append([child.ask("step") for _ in range(2)])
        tasks = [child.task for child in children]
        seconds: list[list[float]] = [[] for _ in tasks]
        gemm: list[list[float]] = [[] for _ in tasks]
        peaks = [0] * len(tasks)
        second = [pair[1] for pair in first_two]
        steps = [min(MOST_STEPS, math.ceil(ROUND_SECONDS / answer["seconds"])) for answer in second]
        for number in range(rounds):
            for i, child in enumerate(children):
                yield f"{tasks[i].size.name}, {tasks[i].workload}, round {number + 1}"
                time.sleep(PAUSE)
                if steps[i] > 1:
                    child.ask("step")  # whose caches are cold
                answers = [child.ask("step") for _ in range(steps[i])]
                seconds[i].append(statistics.median(answer["seconds"] for answer in answers))
                peaks[i] = peaks[i] or answers[-1]["peak"]  # of the first round: products of matrices hold more
                if tasks[i].workload in ("lora", "full") and tasks[i].device == "cpu":
                    gemm[i].append(child.ask("gemm")["rate"])
    return [
        Measured(
            *(t.workload, t.size, t.rank, tuple(seconds[i]), peaks[i], tuple(gemm[i]), second[i]["result"]),
            first=first_two[i][0]["seconds"],
        )
        for i, t in enumerate(tasks)
    ]


def array_bytes(task: Task) -> int:
    """The bytes of arrays that a step of this task holds at once, as Python counts them."""
    with processes([replace(task, traced=True)]) as (child,):
        return int(child.ask("bytes")["bytes"])
