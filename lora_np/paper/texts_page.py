r"""What came of a run of `texts`, as a page: figures before and after, beside what needs no model, and ten samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..tasks import Example
from ..tasks.problems import Problem
from .intervals import Share
from .text_tasks import Scores, TextTask

PAGE = "texts.md"
SAMPLES = 10


@dataclass(frozen=True)
class Written:
    """Of the base or of a seed: its texts, one a problem, nats a token, and where it was trained what that took."""

    name: str
    texts: list[str]
    nats: float
    trained: int | None = None
    seconds_a_step: float | None = None
    peak_bytes: int | None = None


def page(
    task: TextTask,
    commands: Sequence[str],
    train: Sequence[Example],
    problems: Sequence[Problem],
    found: Sequence[Written],
) -> str:
    """Commands, a table with a column for the base, every seed and what needs no model, and samples."""
    title, without = task.without(list(train), problems)
    columns = {one.name: {"nats a token": f"{one.nats:.4f}", **task.score(problems, one.texts)} for one in found}
    lines = [f"# {task.name}: {task.about}", "", "```bash", *commands, "```", ""]
    held_out = sum(len(problem.references) for problem in problems)
    lines += [f"{len(train)} examples to train on; {held_out} examples of {len(problems)} prompts held out.", ""]
    lines += [*table({**columns, title: without}), "", *notes(found), ""]
    chosen = np.random.default_rng(0).choice(len(problems), min(SAMPLES, len(problems)), replace=False)
    lines += _rows(["prompt", "a reference", *(one.name for one in found), f"wrong in {found[-1].name}"])
    for i in sorted(int(number) for number in chosen):
        problem, last = problems[i], found[-1].texts[i]
        texts = [one.texts[i] for one in found]
        lines.append(_line([problem.prompt, problem.reference, *texts, task.wrong(problem, last) or "-"]))
    return "\n".join(lines) + "\n"


def table(columns: dict[str, Scores]) -> list[str]:
    """A line for every score that any of the columns has."""
    names = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    lines = _rows(["", *columns])
    return lines + [_line([name, *(_shown(scores.get(name)) for scores in columns.values())]) for name in names]


def notes(found: Sequence[Written]) -> list[str]:
    """What the figures are, and what training took."""
    lines = ["In brackets the 95 % interval of Wilson; of one run of one seed, over the prompts that were drawn."]
    return lines + [
        f"{one.name}: {one.trained:,} trained numbers, {one.seconds_a_step:.2f} s a step (median), "
        f"{one.peak_bytes / 1e6:,.0f} MB at the peak of the process."
        for one in found
        if one.seconds_a_step is not None and one.peak_bytes is not None
    ]


def _shown(score: Share | float | str | None) -> str:
    return "" if score is None else f"{score:.3f}" if isinstance(score, float) else str(score)


def _rows(head: Sequence[str]) -> list[str]:
    return [_line(head), _line(["---"] * len(head))]


def _line(parts: Sequence[str]) -> str:
    cells = (" ".join(part.replace("|", "\\|").split()) for part in parts)
    return f"| {' | '.join(cells)} |"
