r"""A real language model adapted to published pairs: what it writes before and after, and how good that is.

    python -m lora_np.paper.texts e2e valid.txt --base smollm2 --out e2e-texts
    python -m lora_np.paper.texts wikisql dev.jsonl --base smollm2 --out wikisql-texts

What is held out is parted off whole (`text_tasks`), and both parts are written into OUT as JSONL; from there on every
seed is what `lora-np adapt` does, and its command stands beside its result. Texts are greedy, written many at a time.

Everything is written down in OUT as it ends, texts one by one, training at every tenth step and when interrupted: the
same command goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import stopping
from ..adaptation import ADAPTER, Interrupted, adapt_to_file
from ..data import DataConfig
from ..disk.folders import partial_folder
from ..disk.marks import can_be_resumed
from ..disk.writing import write_atomically, write_json
from ..engine.memory import peak_bytes
from ..evaluation import Text
from ..exporting import export_peft
from ..files import digest, load_adapter, load_model
from ..formats.folders import is_foreign
from ..generation import check_writes
from ..installed import base_path
from ..loading import open_foreign
from ..method import whole
from ..methods.lora import LoraConfig
from ..model import Transformer
from ..optimization import TrainingConfig
from ..progress import describe, watch
from ..serving import Request, serve
from ..tasks import Example, prompt_tokens
from ..tasks.problems import Problem
from ..tasks.writing import as_jsonl
from ..tokenizers import Tokenizer
from ..training import Record
from ..vocabularies import tokenizer_of
from .keeping import kept, made_once
from .text_tasks import TEXT_TASKS, problems_of
from .texts_page import PAGE, Written, page

TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"
HELD = {"e2e": 60, "wikisql": 300}  # meanings, questions
READ = {"e2e": None, "wikisql": 2000}  # examples in all
LOOSE = ("seeds",)  # more seeds go on


@dataclass(frozen=True)
class Plan:
    """What is run: so many steps of so many examples, on seeds 0, 1, …; LoRA of rank 8 on q and v.

    held_out   prompts of the task that are not trained on      examples   that are read at the most; None: all
    """

    task: str
    steps: int = 300
    batch_size: int = 8
    seeds: int = 1
    held_out: int = 60
    examples: int | None = None
    rate: float = 2e-3
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "seeds", "held_out"):
            whole(name, getattr(self, name))
        if self.examples is not None:
            whole("examples", self.examples)
        self.training(0)  # so that a rate of nothing is refused before any work

    @property
    def method(self) -> LoraConfig:
        return LoraConfig(rank=self.rank, alpha=self.alpha, targets="qv")

    def training(self, seed: int) -> TrainingConfig:
        """As `lora-np adapt` sets it up."""
        return TrainingConfig(steps=self.steps, learning_rate=self.rate, warmup=min(20, self.steps // 10), seed=seed)

    def command(self, base: str, seed: int) -> str:
        """The command that makes the same run, in the folder OUT."""
        return (
            f"lora-np adapt {TRAIN} --validation {HELD_OUT} --out adapter --base {base} --rank {self.rank} "
            f"--alpha {self.alpha:g} --targets qv --steps {self.steps} --batch-size {self.batch_size} "
            f"--learning-rate {self.rate:g} --seed {seed}"
        )

    def commands(self, base: str) -> list[str]:
        return [self.command(base, seed) for seed in range(self.seeds)]


@dataclass(frozen=True)
class Desk:
    """Where it all lies: the frozen base, in memory once, the examples, and the folder of what was made."""

    plan: Plan
    base: str
    model: Transformer
    tokenizer: Tokenizer
    train: list[Example]
    held_out: list[Example]
    out: Path
    workers: int | None
    at_once: int
    say: Callable[[str], None]

    @cached_property
    def problems(self) -> list[Problem]:
        return problems_of(self.held_out)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What every result follows from."""
        texts = hashlib.sha256((as_jsonl(self.train) + as_jsonl(self.held_out)).encode()).hexdigest()
        return {**asdict(self.plan), "base": digest(self.model), "data": texts}

    def results(self) -> list[Written]:
        """What the base writes, and what it writes once adapted, by every seed."""
        for name, part in ((TRAIN, self.train), (HELD_OUT, self.held_out)):
            write_atomically(self.out / name, as_jsonl(part).encode())
        first = self.written("base", self.model, self.about, lambda: {"nats": self.nats(self.model)})
        return [first, *(self.adapted(seed) for seed in range(self.plan.seeds))]

    def adapted(self, seed: int) -> Written:
        """Train unless that was done, write it for PEFT where the base is a model of transformers, and let it write."""
        name, about = f"seed-{seed}", {**self.about, "run": self.plan.command(self.base, seed)}
        folder, place = self.out / name, base_path(self.base)
        trained = None if folder.exists() else self.fit(seed, folder)
        model, method = load_adapter(folder, self.model, base_digest=self.about["base"])
        if is_foreign(place) and not (self.out / f"{name}-peft").exists():
            export_peft(self.out / f"{name}-peft", model, method, open_foreign(place).family, self.base)
        return self.written(name, model, about, lambda: trained or {"nats": self.nats(model)})

    def fit(self, seed: int, folder: Path) -> dict[str, Any]:
        """`lora-np adapt`, going on where it was interrupted; what it came to, and the median second of a step."""
        seconds: list[float] = []

        def watched(records: Iterator[Record], total: int, done: int) -> Iterator[Record]:
            for record in watch(records, f"seed {seed}, step", total, done, describe):
                seconds.append(record.seconds)
                yield record

        result = adapt_to_file(
            *(self.out / TRAIN, folder, self.model, self.plan.method, self.plan.training(seed)),
            DataConfig(batch_size=self.plan.batch_size, seed=seed, validation=self.out / HELD_OUT),
            tokenizer=self.tokenizer,
            resume=can_be_resumed(partial_folder(folder), ADAPTER),
            workers=self.workers,
            watch=watched,
            say=lambda line: self.say(f"seed {seed}: {line}"),
        )
        nats = result.after * math.log(2.0) * self.text.bytes_a_token
        about = {"nats": nats, "trained": result.trained, "peak_bytes": peak_bytes()}
        return {**about, "seconds_a_step": statistics.median(seconds) if seconds else None}

    @cached_property
    def text(self) -> Text:
        return Text.of(self.held_out, self.model, tokenizer=self.tokenizer)

    def nats(self, model: Transformer) -> float:
        """Nats a token of the held-out references."""
        return self.text.bits_per_byte(model) * math.log(2.0) * self.text.bytes_a_token

    def written(
        self, name: str, model: Transformer, about: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> Written:
        """What was measured of a model, and a text of it for every problem, each written down as it ends."""
        measured = made_once(self.out / f"{name}.json", about, measure, loose=LOOSE)
        self.say(f"{name}: {measured['nats']:.4f} nats a token of the held-out references")
        path = self.out / f"{name}.texts.json"
        found = kept(path, about, loose=LOOSE) or {}
        missing = [problem.prompt for problem in self.problems if problem.prompt not in found]
        most = TEXT_TASKS[self.plan.task].most
        requests = [
            Request(tuple(prompt_tokens(prompt, self.tokenizer)), most=most, end=self.tokenizer.end)
            for prompt in missing
        ]
        answers = serve(model, requests, most=self.at_once) if requests else iter(())
        for answer in watch(answers, f"{name}, text", len(requests)):
            found[missing[answer.number]] = first_line(self.tokenizer.decode(np.array(answer.tokens, np.int64)))
            write_json(path, {**about, "cell": found})
        return Written(name, [found[problem.prompt] for problem in self.problems], **measured)


def first_line(text: str) -> str:
    """A text as far as its first line goes: references have one."""
    return text.strip().partition("\n")[0].strip()


def run(
    file: Path, base: str, out: Path, plan: Plan, workers: int | None, at_once: int, say: Callable[[str], None]
) -> str:
    """Make what is missing in `out`; the page of it."""
    task = TEXT_TASKS[plan.task]
    train, held_out = task.part(file, plan.held_out, plan.examples)
    model = load_model(base)
    check_writes(model)
    out.mkdir(parents=True, exist_ok=True)
    desk = Desk(plan, base, model, tokenizer_of(base, model.config), train, held_out, out, workers, at_once, say)
    say(f"{len(train)} examples of {len(problems_of(train))} prompts to train on, {len(held_out)} examples of "
        f"{len(desk.problems)} prompts held out")  # fmt: skip
    found = page(task, plan.commands(base), train, desk.problems, desk.results())
    write_atomically(out / PAGE, found.encode())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing in OUT, and print the page."""
    parser = argparse.ArgumentParser(prog="python -m lora_np.paper.texts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=list(TEXT_TASKS))
    parser.add_argument("file", type=Path, help="as it is published: e2e MEANING||REFERENCE, wikisql NAME.jsonl")
    parser.add_argument("--base", default="smollm2", help="folder or file of a causal model, or a name")
    parser.add_argument("--out", type=Path, required=True, help=f"folder of what is made, and of {PAGE}")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--batch-size", type=int, default=Plan.batch_size)
    parser.add_argument("--seeds", type=int, default=Plan.seeds)
    parser.add_argument("--learning-rate", type=float, default=Plan.rate)
    parser.add_argument("--held-out", type=int, help="prompts that are not trained on: 60 meanings, 300 questions")
    parser.add_argument("--examples", type=int, help="the most that are read: all of e2e, 2000 of wikisql")
    parser.add_argument("--workers", type=int, help="threads of a step; as many as cores when left out")
    parser.add_argument("--at-once", type=int, default=32, help="texts that are written at the same time")
    told = parser.parse_args(arguments)
    try:
        held_out = HELD[told.task] if told.held_out is None else told.held_out
        examples = READ[told.task] if told.examples is None else told.examples
        sizes = (told.steps, told.batch_size, told.seeds, held_out, examples, told.learning_rate)
        whole("--at-once", told.at_once)
        shown = run(
            *(told.file, told.base, told.out, Plan(told.task, *sizes), told.workers, told.at_once),
            lambda line: print(line, flush=True),
        )
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(f"{str(stopped) or 'interrupted'}: the same command goes on from there", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(shown)
    return 0


if __name__ == "__main__":
    stopping.heed()
    sys.exit(main())
