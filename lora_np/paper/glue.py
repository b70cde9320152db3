r"""Real GLUE on a real encoder, in part: the methods of the paper beside each other on SST-2, CoLA and RTE.

    python -m lora_np.paper.glue DATA --base FOLDER --out glue

DATA holds sst2/, cola/ and rte/, each with train*.tsv and dev.tsv as GLUE publishes them. Every cell is what
`lora-np adapt --task classify` does, and its command stands beside its result. Runs are short, and rates are not
tuned: one for each method, chosen beforehand. SST-2 and RTE are scored by accuracy, CoLA by Matthews correlation (0
where it is 0/0, as GLUE counts), on the whole official dev set.

Each cell is written down in OUT as it ends: interrupted, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..adaptation import adapt_to_file
from ..data import DataConfig
from ..disk.writing import write_atomically
from ..files import digest, load_model
from ..method import whole
from ..methods import BESIDE_HEAD, method_named
from ..names import nearest_first
from ..optimization import TrainingConfig
from ..vocabularies import tokenizer_of
from .intervals import STUDENT, Interval
from .keeping import made_once

TABLE = "glue.md"
METRICS = {"sst2": "accuracy", "cola": "matthews", "rte": "accuracy"}
# Settings and the one learning rate of each method: small where every weight moves, large where little but a head does.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"rank": 8, "alpha": 16.0, "targets": "qv"}, 2e-3),
    "full": ({}, 2e-4),
    "bitfit": ({}, 3e-3),
    "adapter-p": ({"rank": 16}, 2e-3),
    "head": ({}, 1e-2),
}


@dataclass(frozen=True)
class Plan:
    """What is run: so many steps of so many examples, cut at so many tokens, on seeds 0, 1, …"""

    steps: int = 100
    batch_size: int = 32
    longest: int = 64
    seeds: int = 3

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        whole("seeds", self.seeds)

    def data(self, seed: int, validation: Path) -> DataConfig:
        about = {"batch_size": self.batch_size, "longest": self.longest}
        return DataConfig(truncate=True, seed=seed, validation=validation, **about)  # type: ignore[arg-type]

    def training(self, rate: float, seed: int) -> TrainingConfig:
        """As `lora-np adapt` sets it up."""
        return TrainingConfig(steps=self.steps, learning_rate=rate, warmup=min(20, self.steps // 10), seed=seed)

    def command(self, task: str, name: str, seed: int) -> str:
        """The command that makes the same run, in the folder of the data."""
        settings, rate = METHODS[name]
        pairs = "".join(f" --set {key}={value}" for key, value in settings.items())
        return (
            f"lora-np adapt {task}/train.tsv --out adapter --base FOLDER --task classify --validation {task}/dev.tsv "
            f"--method {name}{pairs} --steps {self.steps} --batch-size {self.batch_size} --longest {self.longest} "
            f"--truncate --learning-rate {rate:g} --seed {seed}"
        )


@dataclass(frozen=True)
class Cell:
    """One run: how many numbers it trained, and its scores on the dev set, that of the commonest label among them."""

    task: str
    method: str
    seed: int
    trained: int
    commonest: float
    accuracy: float
    matthews: float | None
    nats: float

    @property
    def score(self) -> float:
        return self.accuracy if METRICS[self.task] == "accuracy" else self.matthews or 0.0


def cells(
    data: Path,
    base: Path,
    out: Path,
    plan: Plan,
    tasks: Sequence[str],
    methods: Sequence[str],
    say: Callable[[str], None],
) -> list[Cell]:
    """Every cell, seed by seed; what `out` holds already is not run again."""
    model = load_model(base)
    tokenizer, of = tokenizer_of(base, model.config), {**asdict(plan), "base": digest(model)}

    def cell(task: str, name: str, seed: int) -> Cell:
        kept = out / f"{task}-{name}-{seed}.json"
        about = {**of, "run": plan.command(task, name, seed)}
        return Cell(**made_once(kept, about, lambda: asdict(made(task, name, seed)), loose=("seeds",)))

    def made(task: str, name: str, seed: int) -> Cell:
        settings, rate = METHODS[name]
        method = method_named(name, settings, BESIDE_HEAD)
        with tempfile.TemporaryDirectory() as folder:
            result = adapt_to_file(
                *(file_of(data, task, "train*.tsv"), Path(folder) / "run", model, method),
                *(plan.training(rate, seed), plan.data(seed, file_of(data, task, "dev.tsv"))),
                tokenizer=tokenizer,
                task="classify",
            )
        assert result.judged is not None
        say(f"{task}, {name}, seed {seed}: {result.judged}")
        return Cell(task, name, seed, result.trained, result.before, **asdict(result.judged))

    return [cell(task, name, seed) for seed in range(plan.seeds) for task in tasks for name in methods]


def file_of(data: Path, task: str, pattern: str) -> Path:
    """The one file of this kind. Raises FileNotFoundError where there is none."""
    found = sorted((data / task).glob(pattern))
    if not found:
        raise FileNotFoundError(f"{data / task} holds no {pattern}: DATA must hold {', '.join(METRICS)} of GLUE")
    return found[0]


def table(found: Sequence[Cell], plan: Plan) -> str:
    """A line a method: means of the seeds with their 95 % interval, where there are two or more."""
    tasks, methods = (list(dict.fromkeys(getattr(cell, name) for cell in found)) for name in ("task", "method"))
    lines = [
        _line(["method", "learning rate", "trained", *(f"{task}, {METRICS[task]}" for task in tasks)]),
        _line(["---"] * (3 + len(tasks))),
    ]
    first = {task: next(cell for cell in found if cell.task == task) for task in tasks}
    common = [f"{c.commonest:.3f}" if METRICS[task] == "accuracy" else "0" for task, c in first.items()]
    lines.append(_line(["the commonest label", "", "0", *common]))
    for name in methods:
        mine = [cell for cell in found if cell.method == name]
        scores = [_shown([cell.score for cell in mine if cell.task == task]) for task in tasks]
        lines.append(_line([name, f"{METHODS[name][1]:g}", f"{mine[0].trained:,}", *scores]))
    seeds = len({cell.seed for cell in found})
    about = f"{plan.steps} steps of {plan.batch_size} examples cut at {plan.longest} tokens, rates not tuned; "
    spread = f"means of {seeds} seeds with the 95 % interval of Student" if seeds > 1 else "one seed, so no interval"
    about += f"the whole dev sets; {spread}."
    return "\n".join([*lines, "", about]) + "\n"


def _shown(scores: list[float]) -> str:
    if len(scores) not in STUDENT:
        return ", ".join(f"{score:.3f}" for score in scores)
    interval = Interval.of(scores)
    return f"{interval.mean:.3f} ± {interval.half_width:.3f}"


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"


def _names(text: str, known: Sequence[str], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"{option} must be of {nearest_first(name, known)}; got {name!r}")
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing in OUT, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with sst2/, cola/ and rte/")
    parser.add_argument("--base", type=Path, required=True, help="folder of an encoder")
    parser.add_argument("--out", type=Path, default=Path("glue"), help="folder of the cells and of glue.md")
    parser.add_argument("--tasks", default=",".join(METRICS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--seeds", type=int, default=Plan.seeds)
    told = parser.parse_args(arguments)
    try:
        plan = Plan(steps=told.steps, seeds=told.seeds)
        tasks, methods = _names(told.tasks, list(METRICS), "--tasks"), _names(told.methods, list(METHODS), "--methods")
        told.out.mkdir(parents=True, exist_ok=True)
        found = cells(told.data, told.base, told.out, plan, tasks, methods, lambda line: print(line, flush=True))
        shown = table(found, plan)
        write_atomically(told.out / TABLE, shown.encode())
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(shown)


if __name__ == "__main__":
    main()
