r"""What a run of `texts` is: its settings, and the command that makes the same run."""

from __future__ import annotations

from dataclasses import dataclass

from ..method import whole
from ..methods.lora import LoraConfig
from ..optimization import TrainingConfig

TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"
HELD = {"e2e": 60, "wikisql": 300}  # meanings, questions
READ = {"e2e": None, "wikisql": 2000}  # examples in all


@dataclass(frozen=True)
class Plan:
    """What is run: so many steps of so many examples, on seeds 0, 1, …; LoRA on queries and values.

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
