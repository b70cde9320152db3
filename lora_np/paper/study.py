r"""The study: what LoRA claims, each claim made to show itself on one small model and one task with a known answer.

    gradients proved → base scored → for every rank: adapt → fit → save → count → merge, proved → report

Nothing is printed and nothing is typed in by hand: every number of the report is a field of `StudyResult`. What takes
long is written down as it is finished, so a study that was stopped goes on where it was.

The bits per byte here are those of the references and of the END behind each; prompts are given and cost nothing.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import figures, files, gradients, training
from ..adaptation import bits_per_byte
from ..arrays import Array
from ..certificate import ArrayVerdict, Certificate, ModelGaps, certify
from ..costs import PRESETS, Shape, lora_count
from ..generation import generate as generated
from ..lora import LoraConfig, LoraLinear, adapt, adapters, merge, rounding_bound, unadapted
from ..model import Transformer, TransformerConfig
from ..parameters import count, parameters, walk, with_modules, with_parameters
from ..progress import describe
from ..tasks import Batches, Example, Sequence, bits_per_byte_floor, encode, epoch, generate, prompt_tokens, split
from ..tokenizers import ByteTokenizer
from .report import pictures, report

Watch = Callable[..., Iterable[Any]]  # as `progress.watch`: (items, label, total, done, show) -> the same items
Say = Callable[[str], None]

BITS = 1.0 / math.log(2.0)  # bits in a nat
PROBES = 8  # held-out sequences on which a merge is proved: more than a thousand rows for every map
LONGEST = 120  # bytes of a sample; references are shorter
PARTS = "parts"  # where an unfinished study keeps what is finished


@dataclass(frozen=True)
class StudyConfig:
    r"""What is studied. The default costs about 4·10¹² multiply-adds with the base that ships.

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
    learning_rate: float = 2e-2
    examples: int = 1280
    held_out: float = 0.05
    evaluations: int = 6
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

    def training(self, seed: int) -> training.TrainingConfig:
        return training.TrainingConfig(steps=self.steps, learning_rate=self.learning_rate, seed=seed)

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
        arrays = tuple(ArrayVerdict(**array) for array in proofs["arrays"])
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


@dataclass(frozen=True)
class Task:
    """The museum labels of `lora_np.tasks.generated`, split and in tokens."""

    train: list[Sequence]
    held_out: list[Sequence]
    example: Example  # the first that is held out
    floor: float

    @classmethod
    def draw(cls, config: StudyConfig, context: int) -> Task:
        """The examples of this configuration; raises ValueError when one does not fit the context."""
        drawn = generate(config.examples, np.random.default_rng(config.seed))
        train, held_out = split(drawn, config.held_out, config.seed)
        train_tokens, held_out_tokens = (encode(side, ByteTokenizer(), context) for side in (train, held_out))
        return cls(train_tokens, held_out_tokens, held_out[0], bits_per_byte_floor(held_out))

    @property
    def probe(self) -> Array:
        """Tokens (PROBES, seq) of held-out examples."""
        return next(epoch(self.held_out[:PROBES], PROBES, ByteTokenizer().end)).tokens


def study(
    out: str | Path,
    config: StudyConfig = StudyConfig(),
    *,
    base: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch = lambda items, *_: items,
    say: Say = lambda line: None,
) -> StudyResult:
    r"""Make the study, and a folder that appears at `out` when it is complete.

    out/report.html  out/study.json  out/*.png  out/adapters/rank-4/…

    base       a model folder, instead of the base that ships
    resume     take over what a stopped study with the same settings has finished
    watch      wraps what takes long (`progress.watch` is a progress bar)
    say        is told one line when something is finished

    Raises FileExistsError when `out`, or an unfinished study, exists and may not be overwritten; FileNotFoundError or
    ValueError when there is nothing to resume, or something of other settings.
    """
    began = time.perf_counter()
    model = files.load_model(base)
    task = Task.draw(config, model.config.context)
    of = _plain({**asdict(config), **_versions(), "base": files.digest(model)})
    _make_way(Path(out), resume=resume, overwrite=overwrite)
    try:
        with files.new_folder(out, overwrite=overwrite, keep=True) as folder:
            result = _Work(folder, of, model, task, config, watch, say).result(began)
            _write(folder, result)
    except KeyboardInterrupt:
        say(f"stopped: what is finished stays in {files.partial_folder(out)}, and --resume goes on from there")
        raise
    return result


def run(
    base: Transformer,
    base_loss: float,
    task: Task,
    config: StudyConfig,
    rank: int,
    seed: int,
    folder: Path,
    watch: Watch = lambda items, *_: items,
) -> Run:
    """Adapt, fit, save into `folder`, count, merge and prove; the proofs are made on what the file gives back.

    base_loss  the held-out loss of the base: where every learning curve starts, since a fresh adapter changes nothing
    """
    began = time.perf_counter()
    lora, probe = config.lora(rank), task.probe
    fresh = adapt(base, lora, np.random.default_rng(seed))
    trained, losses, curve, times = _fitted(fresh, base_loss, task, config, seed, watch, config.label(rank, seed))
    folder.mkdir(parents=True, exist_ok=True)
    files.save_adapter(folder, with_parameters(fresh, trained), lora, files.digest(base), trained)
    stored, header_bytes, file_bytes = _stored(folder / "adapter.safetensors")
    adapted = files.load_adapter(folder, base)[0]
    merged = merge(adapted)
    return Run(
        rank=rank,
        seed=seed,
        predicted=lora_count(_shape(base.config), rank, config.targets),
        counted=count(adapted, *lora.trained),
        stored=stored,
        file_bytes=file_bytes,
        header_bytes=header_bytes,
        adapter_digest=files.digest_of(trained),
        reloaded_digest=files.digest_of(parameters(adapted, *lora.trained)),
        base_digest=files.digest(unadapted(adapted)),
        fresh_gap=float(abs(fresh(probe) - base(probe)).max()),
        losses=losses,
        held_out=curve,
        sample=_sample(merged, task.example),
        step_seconds=statistics.median(times),
        seconds=time.perf_counter() - began,
        maps=prove_maps(adapted, merged, probe),
        certificate=certify(adapted, merged, probe),
    )


def prove_maps(adapted: Transformer, merged: Transformer, tokens: Array) -> tuple[MapProof, ...]:
    """Feed tokens through the adapted model, and compare each adapted map with its merged one on what reached it."""
    recorders = {path: _Recorder(module, []) for path, module in adapters(adapted).items()}
    with_modules(adapted, recorders)(tokens)
    plain = dict(walk(merged))
    return tuple(_map_proof(path, r.module, plain[path], r.inputs[0]) for path, r in recorders.items())


def _map_proof(path: str, module: LoraLinear, merged: Any, x: Array) -> MapProof:
    y, bound = module(x).astype(np.float64), rounding_bound(module, x)
    gap = abs(y - merged(x))
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


def _fitted(
    fresh: Transformer, base_loss: float, task: Task, config: StudyConfig, seed: int, watch: Watch, label: str
) -> tuple[dict[str, Array], tuple[float, ...], tuple[tuple[int, float], ...], list[float]]:
    """The trained arrays, the loss of every batch, the held-out curve, and the seconds of every step."""
    settings, batches = config.training(seed), Batches(task.train, config.batch_size, seed, ByteTokenizer().end)
    state = training.start(parameters(fresh, *config.lora(1).trained), settings)
    losses, curve, times = [], [(0, base_loss)], []
    steps: Iterator[training.Record] = training.fit(training.model_loss(fresh), batches, settings, state)
    for record in watch(steps, label, config.steps, 0, describe):
        state = record.state
        losses.append(record.loss * BITS)
        times.append(record.seconds)
        if record.step in config.points:
            now = with_parameters(fresh, state.trained)
            curve.append((record.step, bits_per_byte(now, task.held_out, config.batch_size)))
    return state.trained, tuple(losses), tuple(curve), times


def _stored(path: Path) -> tuple[int, int, int]:
    """How many float32 numbers a safetensors file holds, the bytes before them, and all its bytes.

    The format is a header length (8 bytes, little-endian), a header of that many bytes, then nothing but the numbers.
    """
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    return (len(data) - header) // 4, header, len(data)


def _shape(sizes: TransformerConfig) -> Shape:
    """The sizes as the closed forms know them."""
    s = sizes
    return Shape("base", s.layers, s.d_model, s.heads, s.d_hidden, s.vocab, s.context, s.tied)


def _sample(model: Transformer, example: Example) -> str:
    """What the model writes after the prompt, taking the likeliest byte each time."""
    bytes_ = ByteTokenizer()
    return bytes_.decode(list(generated(model, prompt_tokens(example.prompt, bytes_), LONGEST, end=bytes_.end)))


# --------------------------------------------------------------------------------------- what a stopped study keeps


def _make_way(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise, unless the study may begin or go on; what an unfinished one left is removed when it shall not go on."""
    files.check_free(out, overwrite=overwrite)
    partial = files.partial_folder(out)
    unfinished = any((partial / PARTS).glob("*.json"))
    if resume and not unfinished:
        raise FileNotFoundError(f"nothing to resume: {partial} holds no unfinished study")
    if unfinished and not (resume or overwrite):
        raise FileExistsError(
            f"{partial} holds an unfinished study: continue it with --resume, or discard it with --overwrite"
        )
    if not resume:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class _Work:
    """A study on its way; `of` says which study it is, and stands in every part that it keeps."""

    folder: Path
    of: Mapping[str, Any]
    model: Transformer
    task: Task
    config: StudyConfig
    watch: Watch
    say: Say

    def result(self, began: float) -> StudyResult:
        """Everything, in order; what a stopped study has finished is read instead of made."""
        checked, base_loss = self.gradients(), bits_per_byte(self.model, self.task.held_out, self.config.batch_size)
        self.say(f"base: {base_loss:.4f} bits per held-out byte; the floor of the task is {self.task.floor:.4f}")
        runs = tuple(self.run(base_loss, rank, seed) for rank, seed in self.config.jobs)
        return StudyResult(
            config=self.config,
            versions=_versions(),
            gradients=checked,
            base_digest=self.of["base"],
            base_parameters=count(self.model),
            base_loss=base_loss,
            base_sample=_sample(self.model, self.task.example),
            floor=self.task.floor,
            example=self.task.example,
            trained_on=len(self.task.train),
            held_out=len(self.task.held_out),
            held_out_bytes=sum(sequence.tokens_trained for sequence in self.task.held_out),
            runs=runs,
            seconds=time.perf_counter() - began,
        )

    def gradients(self) -> gradients.Report:
        kept = self._kept("gradients")
        if kept is None:
            seed, watch = self.config.seed, self.watch
            checked = gradients.gradcheck(seed, lambda cases: watch(cases, "gradients", len(cases), 0, None))
            self._keep("gradients", asdict(checked))
        else:
            rows = (gradients.Row(**{**row, "shape": tuple(row["shape"])}) for row in kept["rows"])
            checked = gradients.Report(kept["seed"], tuple(rows))
        self.say(f"gradients: {sum(row.holds for row in checked.rows)} of {len(checked.rows)} arrays hold")
        return checked

    def run(self, base_loss: float, rank: int, seed: int) -> Run:
        label = self.config.label(rank, seed)
        kept = self._kept(label)
        if kept is None:
            folder = self.folder / "adapters" / label
            done = run(self.model, base_loss, self.task, self.config, rank, seed, folder, self.watch)
            self._keep(label, asdict(done))
        else:
            done = Run.from_dict(kept)
        self.say(
            f"{label}: {done.predicted:,} predicted = {done.counted:,} counted = {done.stored:,} stored parameters in "
            f"{done.file_bytes:,} bytes; {done.loss:.4f} bits per held-out byte; merging uses {done.used:.2g} of its "
            "rounding bound"
        )
        return done

    def _keep(self, name: str, part: Mapping[str, Any]) -> None:
        (self.folder / PARTS).mkdir(exist_ok=True)
        files.write_json(self.folder / PARTS / f"{name}.json", {"of": self.of, "result": part})

    def _kept(self, name: str) -> Any:
        """A part that is finished, else None; raises ValueError when it is of a study with other settings."""
        path = self.folder / PARTS / f"{name}.json"
        if not path.exists():
            return None
        part = files.read_json(path)
        if missing := {"of", "result"} - set(part):
            raise ValueError(f"{path}: {sorted(missing)[0]!r} is missing")
        for key, now in self.of.items():
            if part["of"].get(key) != now:
                raise ValueError(f"{path} is of another study: {key} was {part['of'].get(key)!r}, now it is {now!r}")
        return part["result"]


def _write(folder: Path, result: StudyResult) -> None:
    files.write_json(folder / "study.json", _plain(result.as_dict()))
    for name, figure in pictures(result).items():
        figures.save(figure, folder / f"{name}.png")
    files.write_atomically(folder / "report.html", report(result).encode())
    shutil.rmtree(folder / PARTS)


def _versions() -> dict[str, str]:
    from .. import __version__

    return {"lora_np": __version__, "python": platform.python_version(), "numpy": np.__version__}


def _plain(value: Any) -> Any:
    """As JSON gives it back, with strings for the numbers that JSON does not have."""
    return json.loads(json.dumps(value), parse_constant=str)
