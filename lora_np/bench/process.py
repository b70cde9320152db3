r"""A process of its own for each thing that is timed, so that neither threads nor memory are shared with another.

The child reads one word a line and answers each with one line of JSON; it ends when its input does. So several of
them can be set up first and then asked in turn: A B A B, which a machine that changes its speed treats alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from ..memory import peak_bytes
from ..threads import thread_map, worker_count
from .sizes import Size
from .workloads import WORKLOADS, Task


class Failed(RuntimeError):
    """A child process ended with an error; the message is its last line."""


class Process:
    """A child that has set up a task: `ask("step")` times one step of it, `ask("gemm")` the machine."""

    def __init__(self, task: Task) -> None:
        self.task = task
        line = [sys.executable, "-m", __name__, json.dumps(asdict(task))]
        # A session of its own: Ctrl-C reaches the parent alone, which then ends the child.
        self._child = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Process:
        self.ready = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def ask(self, word: str) -> dict[str, Any]:
        """Seconds and result of a "step" and the peak memory so far; or the "gemm" rate. Raises Failed."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(word + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            said = self._child.communicate()[1].strip().splitlines()
            raise Failed(said[-1] if said else f"{self.task.workload} ended with exit code {self._child.returncode}")
        return json.loads(line)


def serve(settings: dict[str, Any]) -> None:
    """The child."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    task = Task(**{**settings, "size": Size(**settings["size"])})
    imported = peak_bytes()
    step = WORKLOADS[task.workload](task)
    answer(imported=imported)
    for word in sys.stdin:
        if word.strip() == "gemm":
            answer(rate=gemm_rate(task.workers))
            continue
        began = time.perf_counter()
        result = step()
        answer(seconds=time.perf_counter() - began, result=result, peak=peak_bytes())


def gemm_rate(workers: int | None = None, n: int = 1024, repeats: int = 3) -> float:
    """Floating-point operations a second of float32 matrix products n × n × n, one on each worker at a time."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, n), dtype=np.float32) for _ in "xy")

    with thread_map(workers) as run:
        jobs = [np.empty((n, n), np.float32) for _ in range(worker_count(workers))]
        run(lambda out: np.matmul(x, y, out=out), jobs)
        began = time.perf_counter()
        for _ in range(repeats):
            run(lambda out: np.matmul(x, y, out=out), jobs)
        seconds = time.perf_counter() - began
    return 2.0 * n**3 * repeats * len(jobs) / seconds


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
