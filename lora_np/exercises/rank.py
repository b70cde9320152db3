"""Tutorial 06, rank against parameters: one adapter trained and counted, and checks of ranks, bytes and intervals."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import tasks
from ..adaptation import Text, run
from ..config import TransformerConfig, shape_name
from ..costs import lora_count, optimizer_bytes, parameter_count
from ..files import write_arrays
from ..methods import adapt
from ..methods.lora import LoraConfig
from ..methods.tuning import Full
from ..model import Transformer
from ..optimization import TrainingConfig, TrainingState, start
from ..paper.intervals import STUDENT, Interval
from ..parameters import count
from ..tokenizers import ByteTokenizer
from ..training import fit, model_loss
from . import checker, shown, unanswered

# What the notebook calls each placement, and what LoraConfig calls it.
PLACEMENTS: dict[str, str | tuple[str, ...]] = {
    "q": ("attention.query",),
    "v": ("attention.value",),
    "qv": "qv",
    "qkvo": "qkvo",
    "attention+mlp": "attention+mlp",
}


@dataclass(frozen=True)
class Bill:
    """What an adapter costs before a single step: numbers, bytes of the optimizer's moments, bytes of its file."""

    trained: int
    optimizer_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Outcome:
    """One trained adapter: where it sits, what it costs, and how far it got."""

    placement: str
    rank: int
    seed: int
    bill: Bill
    held_out: float  # bits per byte after the last step


def bill_of(state: TrainingState) -> Bill:
    """Counted, not computed: the elements of the trained arrays, the bytes of the moments, the bytes of the file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapter.safetensors"
        write_arrays(file, state.trained, {})
        file_bytes = file.stat().st_size
    return Bill(count(state.trained), sum(array.nbytes for array in state.moments.values()), file_bytes)


def bill(base: Transformer, lora: LoraConfig) -> Bill:
    """The bill of an adapter that is not trained yet; training changes no item of it."""
    return bill_of(start(lora.trained(adapt(base, lora, np.random.default_rng(0))), TrainingConfig()))


def outcome(
    base: Transformer,
    lora: LoraConfig,
    training: TrainingConfig,
    train: Sequence[tasks.Sequence],
    held_out: Sequence[tasks.Sequence],
    batch_size: int = 4,
) -> Outcome:
    """Adapt, fit, score and count. The seed of `training` draws A, the order of the batches and dropout."""
    learned = Text(list(train), ByteTokenizer(), batch_size, training.seed)
    scored = Text(list(held_out), ByteTokenizer(), 8)
    found = run(learned.batches, scored.bits_per_byte, base, lora, training, seed=training.seed)
    named = {targets: name for name, targets in PLACEMENTS.items()}
    return Outcome(
        placement=named.get(lora.targets, " + ".join(lora.targets)),
        rank=lora.rank,
        seed=training.seed,
        bill=bill_of(start(lora.trained(found.model), training)),
        held_out=found.score,
    )


def fastest_steps(
    base: Transformer, ways: Mapping[Hashable, LoraConfig | None], batch: tasks.Batch, turns: int = 6
) -> dict[Hashable, float]:
    """The seconds of one training step on this batch for each way; None is full fine-tuning.

    All ways take turns and the fastest of each counts: a busy moment of the machine hits them alike.
    """
    rng, once = np.random.default_rng(0), TrainingConfig(steps=1)
    methods = {name: way or Full() for name, way in ways.items()}
    models = {name: adapt(base, method, rng) for name, method in methods.items()}
    states = {name: start(method.trained(models[name]), once) for name, method in methods.items()}
    seconds: dict[Hashable, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, model in models.items():
            seconds[name] += [record.seconds for record in fit(model_loss(model), [batch], once, states[name])]
    return {name: min(taken) for name, taken in seconds.items()}


# ---------------------------------------------------------------------------------------------------------- checks


@checker
def check_largest_rank(answer: Any, shape: TransformerConfig, targets: str, budget: int) -> None:
    """The largest rank whose trained parameters stay within the budget."""
    task = f"the largest rank at which LoRA on {targets} of {shape_name(shape)} trains at most {budget:,} numbers"
    if unanswered(answer, task):
        return
    assert isinstance(answer, int | np.integer), f"a rank is a whole number, got {shown(answer)}"
    assert answer >= 1, f"a rank is at least 1, got {answer}"
    one = lora_count(shape, 1, targets)
    got = int(answer) * one
    if answer == budget * shape.layers // one and shape.layers > 1:
        raise AssertionError(f"rank {answer} fits one layer; all {shape.layers} layers together train {got:,}")
    assert got <= budget, f"rank {answer} trains {got:,} numbers, more than {budget:,}: each rank costs {one:,}"
    assert got + one > budget, (
        f"rank {answer} trains {got:,} numbers, and one more rank, another {one:,}, still fits into {budget:,}"
    )
    print(f"Right: rank {answer} trains {got:,} numbers, and rank {answer + 1} would train {got + one:,}.")


@checker
def check_optimizer_bytes(answer: Any, shape: TransformerConfig, rank: int, targets: str) -> None:
    """The bytes of AdamW's state for an adapter in float32."""
    task = f"the bytes of AdamW's state in float32 for rank {rank} on {targets} of {shape_name(shape)}"
    if unanswered(answer, task):
        return
    trained, every = lora_count(shape, rank, targets), parameter_count(shape)
    right = optimizer_bytes(trained)
    hints = {
        trained: "that counts numbers; each has moments, and each moment has bytes",
        2 * trained: "that counts numbers; a float32 has 4 bytes",
        4 * trained: "that is one moment, or two in float16; AdamW keeps m and v, here in float32",
        12 * trained: "that includes the value itself; the optimizer's own state is m and v",
        16 * trained: "that is value, gradient and both moments; the optimizer's own state is m and v",
        optimizer_bytes(every): "that is full fine-tuning; a frozen number has no moments",
    }
    if answer != right and answer in hints:
        raise AssertionError(f"{answer:,} is not it: {hints[answer]}")
    assert answer == right, f"got {shown(answer)}: count the trained numbers first (`lora_count`), then their moments"
    print(f"Right: {right:,} bytes, where full fine-tuning keeps {optimizer_bytes(every):,}.")


@checker
def check_paired_interval(answer: Any, first: Sequence[float], second: Sequence[float]) -> None:
    """(mean, half width) of the 95 % interval of the paired differences first − second."""
    task = "(mean, half width) of the 95 % interval of `first[i] - second[i]`, one difference for each seed"
    if unanswered(answer, task):
        return
    is_pair = isinstance(answer, tuple | list) and len(answer) == 2
    assert is_pair, f"the answer is a pair (mean, half width), got {shown(answer)}"
    differences = [float(a - b) for a, b in zip(first, second, strict=True)]
    n, right = len(differences), Interval.of(differences)
    mean, half_width = map(float, answer)
    right_mean = math.isclose(mean, right.mean, rel_tol=1e-6, abs_tol=1e-9)
    if not right_mean and math.isclose(mean, -right.mean, rel_tol=1e-6):
        raise AssertionError("the sign is turned: it is first − second")
    assert right_mean, f"the mean of the differences is not {mean:.6g}"
    deviation, t = statistics.stdev(differences), STUDENT[n]
    apart = math.sqrt(statistics.variance(first) / n + statistics.variance(second) / n)
    hints = {
        t * deviation: f"the standard error is the standard deviation over √n, here n = {n}",
        deviation / math.sqrt(n): f"that is the standard error; times t = {t} it becomes a 95 % interval",
        1.96 * deviation / math.sqrt(n): f"1.96 is for many values; for {n} Student's factor is {t}",
        t * statistics.pstdev(differences) / math.sqrt(n): "the standard deviation divides by n − 1 (ddof=1), not by n",
        t * apart: "the two were treated as independent; pair them by seed and use the differences",
    }
    for wrong, hint in hints.items():
        if math.isclose(half_width, wrong, rel_tol=1e-6) and not math.isclose(wrong, right.half_width, rel_tol=1e-6):
            raise AssertionError(f"the half width is not {half_width:.6g}: {hint}")
    assert math.isclose(half_width, right.half_width, rel_tol=1e-3), (
        f"the half width is not {half_width:.6g}: it is t · stdev(differences) / √n with t = {t} for n = {n}"
    )
    verdict = "covers zero: these seeds cannot tell the two apart" if right.covers_zero else "does not cover zero"
    print(f"Right: {right}, which {verdict}.")
