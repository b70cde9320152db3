r"""A process of its own for each thing that is timed, so that neither threads nor memory are shared with another.

The child reads one word a line and answers each with one line of JSON; it ends when its input does. So several of
them can be set up first and then asked in turn: A B A B, which a machine that changes its speed treats alike.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.children import alive
from ..engine.devices import library
from ..engine.memory import peak_bytes
from ..engine.threads import thread_map, worker_count
from .sizes import Size, Task
from .workloads import WORKLOADS

PACKAGE = Path(__file__).parents[1] / "__init__.py"


# A child imports the very package that runs here, by its file; from the current folder it imports nothing (-P).
CHILD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("lora_np", sys.argv[1])
sys.modules["lora_np"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from lora_np.bench.process import serve, task_of
serve(task_of(sys.argv[2]))
"""


class ChildError(ArithmeticError):
    """A process that was to be timed ended with an error; the message holds its last line."""


class Process:
    """A child that sets up a task and does a step of it when asked."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # A session of its own: Ctrl-C reaches the parent alone, which then ends the child.
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, str(PACKAGE), json.dumps(asdict(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> dict[str, Any]:
        """Wait until the task is set up. Raises ChildError."""
        return self._answer()

    def ask(self, word: str) -> dict[str, Any]:
        """The answer to "step", "bytes" or "gemm": see `serve`. Raises ChildError."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the child is gone; why, is said below
            print(word, file=self._child.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        """Kill the child and let go of everything that led to it."""
        self._child.kill()
        self._child.wait()
        for file in (self._child.stdin, self._child.stdout, self._errors):
            with contextlib.suppress(OSError):  # a pipe that the child had closed
                file.close()  # type: ignore[union-attr]

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            code = self._child.wait()
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or [f"exit code {code}"]
            raise ChildError(f"{self.task.workload}, {self.task.size.name}: {said[-1]}")
        return dict(json.loads(line))


def task_of(text: str) -> Task:
    """A task from its JSON."""
    settings = json.loads(text)
    return Task(**{**settings, "size": Size(**settings["size"])})


def serve(task: Task) -> None:
    """The child. It says when it is ready, and answers to every line it reads:

    step   one step: its seconds, its result, and the most memory that the process has held so far
    bytes  one step of a traced task: the bytes of arrays that were held at once, those of the model included
    gemm   floating-point operations a second of matrix products, on all workers
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    if task.traced:
        tracemalloc.start()
    step = WORKLOADS[task.workload](task)
    clock = time.process_time if task.clock == "processor" else time.perf_counter
    answer(ready=True)
    for line in sys.stdin:
        if line.strip() == "gemm":
            answer(rate=gemm_rate(task.workers))
        elif line.strip() == "bytes":
            step()
            tracemalloc.reset_peak()
            step()
            answer(bytes=tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        else:
            began = clock()
            result = step()
            answer(seconds=clock() - began, result=result, peak=held_bytes(task))


def held_bytes(task: Task) -> int:
    """The most memory that this process and its workers have held: of the host, or of the device they compute on."""
    if task.device == "cpu":
        return peak_bytes() + sum(map(peak_bytes, alive()))
    if "torch" in sys.modules:
        return int(sys.modules["torch"].cuda.max_memory_reserved())
    return int(library(task.device).get_default_memory_pool().total_bytes())  # a pool that never shrinks


def gemm_rate(workers: int | None = None, n: int = 1024, repeats: int = 3) -> float:
    """Floating-point operations a second of float32 products n × n × n, one on each worker at a time."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, n), dtype=np.float32) for _ in "xy")
    results = [np.empty((n, n), np.float32) for _ in range(worker_count(workers))]
    with thread_map(workers) as run:
        run(lambda out: np.matmul(x, y, out=out), results)
        began = time.perf_counter()
        for _ in range(repeats):
            run(lambda out: np.matmul(x, y, out=out), results)
        seconds = time.perf_counter() - began
    return 2.0 * n**3 * repeats * len(results) / seconds
