r"""`python -m lora_np.tasks [NAME]`: examples of the generated tasks, their bounds, or a file of one.

python -m lora_np.tasks                              every task in one line, as docs/tasks.md lists them
python -m lora_np.tasks sql --n 3                    three problems, and what they cost at least
python -m lora_np.tasks sql --n 2000 --out sql.jsonl  a file for `lora-np adapt`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..disk.writing import write_atomically
from .problems import SIDES, Problem, Task, bits_per_byte
from .table import TASKS, task_named
from .writing import as_jsonl

MEASURED = 1000  # problems to estimate a bound from


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lora_np.tasks", description="Generated tasks, and their bounds.")
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(TASKS)}; all of them when left out")
    parser.add_argument("--n", type=int, default=1, help="how many problems")
    parser.add_argument("--side", default="train", help=f"one of {', '.join(SIDES)}; no prompt stands on two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write them as JSONL, as `lora-np adapt` reads it, to this new file")
    told = parser.parse_args(arguments)
    try:
        return _answer(told)
    except (ValueError, OSError) as error:
        print(f"python -m lora_np.tasks: {error}", file=sys.stderr)
        return 2


def _answer(told: argparse.Namespace) -> int:
    if told.name is None:
        print(listed())
        return 0
    task = task_named(told.name)
    problems = task.problems(told.n, told.seed, told.side)
    if told.out is not None:
        if told.out.exists():
            raise FileExistsError(f"{told.out} exists: choose another --out")
        write_atomically(told.out, as_jsonl(problems).encode())
        bound = bits_per_byte(problems)
        print(f"{len(problems)} problems of {task.name} in {told.out}; at least {bound:.4f} bits per byte")
        return 0
    print("\n\n".join(shown(problem) for problem in problems))
    return 0


def shown(problem: Problem) -> str:
    """A problem as it stands on a page."""
    return f"{problem.prompt}\n    {problem.reference}\n    at least {problem.bits:g} bits"


def bound_of(task: Task) -> str:
    """The bound of a task in words: bits of a problem, and of a byte where it has any."""
    problems = task.problems(MEASURED)
    bits = sum(problem.bits for problem in problems) / MEASURED
    return f"{bits:.3g} bits, {bits_per_byte(problems):.4f} a byte" if bits else "0 bits: the prompt decides"


def listed() -> str:
    """Every task as a section of `docs/tasks.md`."""
    return "\n\n".join(_section(task) for task in TASKS.values())


def _section(task: Task) -> str:
    labels = f"Labels: {', '.join(task.labels)}.\n" if task.labels else ""
    metrics = f"Asked of answers: {', '.join(task.metrics)}.\n{labels}The best predictor pays {bound_of(task)}."
    example = f"```text\n{shown(task.problems(1)[0])}\n```"
    return f"## {task.name}\n\n{task.about[0].upper()}{task.about[1:]}.\n\n{example}\n\n{metrics}"


if __name__ == "__main__":
    sys.exit(main())
