r"""The study: what LoRA claims, each claim made to show itself on one small model and one task with a known answer.

    gradients proved → base scored → for every rank: adapt → fit → save → count → merge, proved → report

Nothing is printed and nothing is typed in by hand: every number of the report is a field of `StudyResult`. What takes
long is written down as it is finished, so a study that was stopped goes on where it was.

The bits per byte here are those of the references and of the END behind each; prompts are given and cost nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import figures, files, gradients, training
from ..arrays import Array
from ..certificate import ArrayVerdict, Certificate, ModelGaps, certify
from ..costs import PRESETS, Shape, lora_count
from ..lora import LoraConfig, LoraLinear, adapt, adapters, merge, rounding_bound, unadapted
from ..model import Transformer, language_model_loss
from ..parameters import count, parameters, walk, with_modules, with_parameters
from ..tasks import Batches, Example, Sequence, bits_per_byte_floor, encode, epoch, generate, split
from ..threads import thread_map
from ..tokenizers import ByteTokenizer
from .report import pictures, report

Watch = Callable[[Iterable[Any], str, int], Iterable[Any]]  # (items, what they are, how many) -> the same items
Say = Callable[[str], None]

BITS = 1.0 / math.log(2.0)  # bits in a nat
PROBES = 8  # held-out sequences on which a merge is proved: more than a thousand rows for every map


@dataclass(frozen=True)
class StudyConfig:
    r"""What is studied. The default takes about 7·10¹² multiply-adds: some three minutes on two cores.

    ranks          one adapter each                     targets        a preset of linear maps
    alpha          α of s = α/r, the same for all       steps          of training, for each adapter
    batch_size     examples a step                      learning_rate  its largest value; the same for all ranks
    examples       of the task, in all                  held_out       the fraction that is never trained on
    evaluations    points of a learning curve           seeds          adapters for each rank
    seed           of task, split and gradient checks; the adapters take seed, seed + 1, ... for A and the batches

    Raises ValueError for a value outside its range.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16)
    targets: str = "qv"
    alpha: float = 8.0
    steps: int = 150
    batch_size: int = 8
    learning_rate: float = 1e-2
    examples: int = 1280
    held_out: float = 0.05
    evaluations: int = 10
    seeds: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "examples", "evaluations", "seeds"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not self.ranks or len(set(self.ranks)) != len(self.ranks):
            raise ValueError(f"ranks must be different whole numbers, at least one, got {self.ranks!r}")
        if self.targets not in PRESETS:
            raise ValueError(f"targets must be one of {', '.join(PRESETS)}, got {self.targets!r}")
        for rank in self.ranks:
            self.lora(rank)
        self.training(self.seed)

    @classmethod
    def full(cls) -> StudyConfig:
        """More steps, and five adapters a rank, so that the report can give intervals. About twenty times the work."""
        return cls(steps=600, examples=5120, held_out=0.025, seeds=5)

    def lora(self, rank: int) -> LoraConfig:
        return LoraConfig(rank=rank, alpha=self.alpha, targets=self.targets)

    def training(self, seed: int) -> training.TrainingConfig:
        return training.TrainingConfig(steps=self.steps, learning_rate=self.learning_rate, seed=seed)

    @property
    def jobs(self) -> list[tuple[int, int]]:
        """(rank, seed) of every adapter."""
        return [(rank, self.seed + i) for rank in self.ranks for i in range(self.seeds)]

    @property
    def points(self) -> set[int]:
        """The steps after which the held-out loss is measured; the last is one of them."""
        return {round(self.steps * i / self.evaluations) for i in range(1, self.evaluations + 1)}


@dataclass(frozen=True)
class MapProof:
    """One adapted map on real activations: |adapted − merged| where it comes closest to its rounding bound."""

    path: str
    gap: float
    bound: float
    effect: float  # the largest |adapted − base|: what the adapter does at all

    @property
    def used(self) -> float:
        """gap / bound: at most 1 for a correct merge."""
        return self.gap / self.bound if self.bound else math.inf

    @property
    def holds(self) -> bool:
        """Within the bound everywhere, and an effect beside which the bound is small enough to mean something."""
        return self.gap <= self.bound < self.effect


@dataclass(frozen=True)
class Run:
    """One adapter: what it was predicted to cost, what it cost, what it learned, and the proof of its merge."""

    rank: int
    seed: int
    folder: str
    predicted: int  # parameters, from the closed form
    counted: int  # parameters in memory
    stored: int  # numbers in the file, from its size alone
    file_bytes: int
    header_bytes: int
    adapter_digest: str
    reloaded_digest: str  # of what the file gives back
    base_digest: str  # of the frozen arrays, after training and merging
    fresh_gap: float  # the largest change by an adapter that is not trained yet
    losses: tuple[float, ...]  # of every training batch, bits per byte
    held_out: tuple[tuple[int, float], ...]  # (step, bits per byte)
    step_seconds: float  # the median
    seconds: float
    maps: tuple[MapProof, ...]
    certificate: Certificate

    @property
    def loss(self) -> float:
        """Held-out bits per byte after the last step."""
        return self.held_out[-1][1]


@dataclass(frozen=True)
class StudyResult:
    """All that the study found; see `claims` for what must hold."""

    config: StudyConfig
    versions: Mapping[str, str]
    gradients: gradients.Report
    base_digest: str  # before anything was trained
    base_parameters: int
    base_loss: float  # held-out bits per byte without an adapter
    floor: float  # the lowest that is possible, on average, for these held-out prompts
    example: Example
    trained_on: int  # examples
    held_out: int  # examples
    held_out_bytes: int
    runs: tuple[Run, ...]
    seconds: float

    @property
    def claims(self) -> dict[str, bool]:
        """Each claim of the study, and whether this run bears it out."""
        runs, base = self.runs, self.base_digest
        return {
            "every gradient agrees with its other two witnesses": self.gradients.holds,
            "a fresh adapter changes no output": _all(run.fresh_gap == 0.0 for run in runs),
            "predicted = counted = stored parameters": _all(r.predicted == r.counted == r.stored for r in runs),
            "the file gives back the adapter bit for bit": _all(r.adapter_digest == r.reloaded_digest for r in runs),
            "the frozen base is unchanged, byte for byte": _all(run.base_digest == base for run in runs),
            "every merged map is equal to the adapted one within its rounding bound": _all(
                _all(proof.holds for proof in run.maps) for run in runs
            ),
            "every merged model is certified as W0 + s·BA": _all(run.certificate.holds for run in runs),
        }

    @property
    def holds(self) -> bool:
        """True when every claim does."""
        return all(self.claims.values())

    def losses(self, rank: int) -> list[float]:
        """The final held-out bits per byte of the adapters of one rank."""
        return [run.loss for run in self.runs if run.rank == rank]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "holds": self.holds, "claims": self.claims}


def study(
    out: str | Path,
    config: StudyConfig = StudyConfig(),  # noqa: B008  (frozen)
    *,
    base: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch = lambda items, what, total: items,
    say: Say = lambda line: None,
) -> StudyResult:
    r"""Make the study, and a folder `out` that appears when it is complete.

    out/report.html  study.json  *.png  adapters/rank-4/…

    base       a model folder, instead of the base that ships
    resume     take over what an interrupted study with the same settings has finished
    watch      wraps what takes long: `watch(items, what, total)` gives the items back one by one (a progress bar, say)
    say        is told one line when something is finished

    Raises FileExistsError when `out` exists and may not be overwritten, ValueError when there is something to resume
    but of other settings.
    """
    began = time.perf_counter()
    model = files.load_model(base)
    task = _Task.draw(config, model.config.context)
    files.check_free(out, overwrite=overwrite)
    if not resume:
        shutil.rmtree(files.partial_folder(out), ignore_errors=True)
    with files.new_folder(out, overwrite=overwrite, keep=True) as new:
        desk = _Desk(new, {**_plain(asdict(config)), "base": files.digest(model), **_versions()})
        report_ = desk.gradients(config.seed, watch)
        say(f"gradients: {len(report_.rows)} arrays checked, " + ("all agree" if report_.holds else "NOT all agree"))
        base_loss = bits_per_byte(model, task.held_out, config.batch_size)
        say(f"base: {base_loss:.4f} bits per byte held out, without an adapter")
        runs = [desk.run(model, base_loss, task, config, *job, watch, say) for job in config.jobs]
        result = task.result(config, report_, desk.of["base"], count(model), base_loss, runs, began)
        _write(new, result)
    return result


def bits_per_byte(model: Transformer, sequences: list[Sequence], batch_size: int) -> float:
    """The loss per learned byte (references and their ENDs) over all sequences, in bits; the model has read prompts."""
    batches = list(epoch(sequences, batch_size, ByteTokenizer().end))
    with thread_map() as run:
        nats = run(lambda batch: float(language_model_loss(model, batch)) * batch.tokens_trained, batches)
    return sum(nats) / sum(batch.tokens_trained for batch in batches) * BITS


def prove_maps(adapted: Transformer, merged: Transformer, tokens: Array) -> tuple[MapProof, ...]:
    """Feed tokens through the adapted model; compare each adapted map with its merged one on what reached it."""
    recorders = {path: _Recorder(module, []) for path, module in adapters(adapted).items()}
    with_modules(adapted, recorders)(tokens)
    plain = dict(walk(merged))
    return tuple(_map_proof(path, r.module, plain[path], r.inputs[0]) for path, r in recorders.items())


def _map_proof(path: str, module: LoraLinear, merged: Any, x: Array) -> MapProof:
    y = module(x).astype(np.float64)
    gap, bound = abs(y - merged(x)), rounding_bound(module, x)
    worst = int((gap / np.maximum(bound, np.finfo(np.float64).tiny)).argmax())
    return MapProof(path, float(gap.flat[worst]), float(bound.flat[worst]), float(abs(y - module.base(x)).max()))


@dataclass(frozen=True)
class _Recorder:
    """An adapted map that keeps what it was called with."""

    module: LoraLinear
    inputs: list[Array]

    def __call__(self, x: Array) -> Array:
        self.inputs.append(x)
        return self.module(x)


@dataclass(frozen=True)
class _Task:
    """The museum labels of `lora_np.tasks.generated`, split and in tokens."""

    train: list[Sequence]
    held_out: list[Sequence]
    example: Example  # the first that is held out
    floor: float

    @classmethod
    def draw(cls, config: StudyConfig, context: int) -> _Task:
        drawn = generate(config.examples, np.random.default_rng(config.seed))
        train, held_out = split(drawn, config.held_out, config.seed)
        tokens = [encode(examples, ByteTokenizer(), context) for examples in (train, held_out)]
        return cls(*tokens, held_out[0], bits_per_byte_floor(held_out))

    @property
    def probe(self) -> Array:
        """Tokens (PROBES, seq) of held-out examples."""
        return next(epoch(self.held_out[:PROBES], PROBES, ByteTokenizer().end)).tokens

    def result(
        self,
        config: StudyConfig,
        checked: gradients.Report,
        digest: str,
        size: int,
        base_loss: float,
        runs: list[Run],
        began: float,
    ) -> StudyResult:
        return StudyResult(
            config=config,
            versions=_versions(),
            gradients=checked,
            base_digest=digest,
            base_parameters=size,
            base_loss=base_loss,
            floor=self.floor,
            example=self.example,
            trained_on=len(self.train),
            held_out=len(self.held_out),
            held_out_bytes=sum(sequence.tokens_trained for sequence in self.held_out),
            runs=tuple(runs),
            seconds=time.perf_counter() - began,
        )
