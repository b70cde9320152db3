r"""What the study is asked, and what it found; every number of the report is a field of `StudyResult`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .. import gradients
from ..certificate import ArrayVerdict, Certificate, ModelGaps
from ..methods.lora import LoraConfig
from ..names import PRESETS
from ..optimization import TrainingConfig
from ..proofs import MapProof
from ..tasks import Example


@dataclass(frozen=True)
class StudyConfig:
    r"""What is studied. The default costs about 4·10¹² multiply-adds with the base that ships.

    ranks          one adapter each                     targets        a preset of linear maps
    alpha          α of s = α/r, the same for all       steps          of training, for each adapter
    batch_size     examples a step                      learning_rate  its largest value; the same for all ranks
    examples       of the task, in all                  held_out       the fraction that is never trained on
    evaluations    points of a learning curve           seeds          adapters for each rank
    seed           of task, split and gradient checks; the adapters take seed, seed + 1, ... for A and the batches
    device         "cpu" or "gpu": where gradients are checked and adapters trained; the proofs are made on the host

    Raises ValueError for a value outside its range.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16)
    targets: str = "qv"
    alpha: float = 8.0
    steps: int = 150
    batch_size: int = 8
    learning_rate: float = 2e-2
    examples: int = 1280
    held_out: float = 0.05
    evaluations: int = 6
    seeds: int = 1
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "examples", "evaluations", "seeds"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not self.ranks or len(set(self.ranks)) != len(self.ranks):
            raise ValueError(f"ranks must be different whole numbers, at least one, got {self.ranks!r}")
        if self.targets not in PRESETS:
            raise ValueError(f"targets must be one of {', '.join(PRESETS)}, got {self.targets!r}")
        if self.seeds > 10:
            raise ValueError(f"seeds must be at most 10, got {self.seeds}")
        for rank in self.ranks:
            self.lora(rank)
        self.training(self.seed)

    @classmethod
    def full(cls) -> StudyConfig:
        """More steps, and five adapters a rank, so that the report can give intervals. About twenty times the work."""
        return cls(steps=600, examples=5120, held_out=0.025, seeds=5)

    def lora(self, rank: int) -> LoraConfig:
        return LoraConfig(rank=rank, alpha=self.alpha, targets=self.targets)

    def training(self, seed: int) -> TrainingConfig:
        return TrainingConfig(steps=self.steps, learning_rate=self.learning_rate, seed=seed)

    @property
    def jobs(self) -> list[tuple[int, int]]:
        """(rank, seed) of every adapter."""
        return [(rank, self.seed + i) for rank in self.ranks for i in range(self.seeds)]

    def label(self, rank: int, seed: int) -> str:
        """What an adapter and its folder are called."""
        return f"rank-{rank}" if self.seeds == 1 else f"rank-{rank}-seed-{seed}"

    @property
    def points(self) -> set[int]:
        """The steps after which the held-out loss is measured; the last is one of them."""
        return {round(self.steps * i / self.evaluations) for i in range(1, self.evaluations + 1)}


@dataclass(frozen=True)
class Run:
    """One adapter: what it was predicted to cost, what it cost, what it learned, and the proof of its merge."""

    rank: int
    seed: int
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
    sample: str  # what the merged model writes for the study's example, greedily
    step_seconds: float  # the median
    seconds: float
    maps: tuple[MapProof, ...]
    certificate: Certificate

    @property
    def loss(self) -> float:
        """Held-out bits per byte after the last step."""
        return self.held_out[-1][1]

    @property
    def used(self) -> float:
        """The most that merging any map uses of its rounding bound; at most 1 when it is correct."""
        return max(proof.used for proof in self.maps)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """The inverse of `dataclasses.asdict`, from JSON."""
        proofs = values["certificate"]
        arrays = tuple(ArrayVerdict(**{**array, "entry": tuple(array["entry"])}) for array in proofs["arrays"])
        tuples = {
            "losses": tuple(values["losses"]),
            "held_out": tuple((step, bits) for step, bits in values["held_out"]),
            "maps": tuple(MapProof(**proof) for proof in values["maps"]),
            "certificate": Certificate(arrays, ModelGaps(**proofs["model"])),
        }
        return cls(**{**values, **tuples})


@dataclass(frozen=True)
class StudyResult:
    """All that the study found; see `claims` for what must hold."""

    config: StudyConfig
    versions: Mapping[str, str]
    gradients: gradients.Report
    base_digest: str  # before anything was trained
    base_parameters: int
    base_loss: float  # held-out bits per byte without an adapter
    base_sample: str  # what the base writes for the example
    floor: float  # the lowest that is possible, on average, for these held-out prompts
    example: Example  # the first that is held out
    trained_on: int  # examples
    held_out: int  # examples
    held_out_bytes: int
    runs: tuple[Run, ...]
    seconds: float

    @property
    def claims(self) -> dict[str, bool]:
        """Each claim of the study, and whether this run bears it out."""
        runs, base = self.runs, self.base_digest
        if not runs:
            return {"at least one adapter was trained": False}
        return {
            "every gradient agrees with its other two witnesses": self.gradients.holds,
            "a fresh adapter changes no output": all(run.fresh_gap == 0.0 for run in runs),
            "predicted = counted = stored parameters": all(r.predicted == r.counted == r.stored for r in runs),
            "the file gives back the adapter bit for bit": all(r.adapter_digest == r.reloaded_digest for r in runs),
            "the frozen base is unchanged, byte for byte": all(run.base_digest == base for run in runs),
            "every merged map is equal to the adapted one within its rounding bound": all(
                all(proof.holds for proof in run.maps) for run in runs
            ),
            "every merged model is certified as W0 + s·BA": all(run.certificate.holds for run in runs),
        }

    @property
    def holds(self) -> bool:
        """True when every claim does."""
        return all(self.claims.values())

    def of_rank(self, rank: int) -> list[Run]:
        """The runs of one rank, one for each seed."""
        return [run for run in self.runs if run.rank == rank]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"holds": self.holds, "claims": self.claims, **asdict(self)}
