r"""The study: what LoRA claims, each claim made to show itself on one small model and one task with a known answer.

    gradients proved → base scored → for every rank: adapt → fit → save → count → merge, proved → report

Nothing is printed here, and nothing is typed in by hand. What takes long is written down as it is
finished, so a study that was stopped goes on where it was.

The bits per byte here are those of the references and of the END behind each; prompts are given and cost nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import adaptation, figures, files, gradients
from ..adaptation import Text
from ..certificate import certify
from ..disk import folders
from ..disk.marks import Kind
from ..disk.reading import read_json
from ..disk.writing import write_atomically, write_json
from ..engine.arrays import Array
from ..engine.devices import to_device
from ..generation import generate as generated
from ..methods import adapt
from ..model import Transformer
from ..parameters import count
from ..progress import describe
from ..proofs import prove_maps
from ..tasks import Example, bits_per_byte_floor, epoch, generate, prompt_tokens, split
from ..tokenizers import ByteTokenizer
from ..version import __version__
from ..wrappers import merge, unwrapped
from .report import pictures, report
from .results import Run, StudyConfig, StudyResult

Watch = Callable[..., Iterable[Any]]  # as `progress.watch`: (items, label, total, done, show) -> the same items
Say = Callable[[str], None]

BITS = 1.0 / math.log(2.0)  # bits in a nat
PROBES = 8  # held-out sequences on which a merge is proved: more than a thousand rows for every map
LONGEST = 120  # bytes of a sample; references are shorter
PARTS = "parts"  # where an unfinished study keeps what is finished
STUDY = Kind(
    "study",
    ("report.html", "study.json", "*.png", "adapters/*/adapter.json", "adapters/*/adapter.safetensors", "parts/*.json"),
    resumes="parts/*.json",
)


@dataclass(frozen=True)
class Task:
    """The museum labels of `lora_np.tasks.generated`, split and in tokens."""

    train: Text
    held_out: Text
    example: Example  # the first that is held out
    floor: float

    @classmethod
    def draw(cls, config: StudyConfig, base: Transformer) -> Task:
        """The examples of this configuration; raises ValueError when one does not fit the context."""
        drawn = generate(config.examples, np.random.default_rng(config.seed))
        train, held_out = split(drawn, config.held_out, config.seed)
        learned, scored = (Text.of(side, base, batch_size=config.batch_size) for side in (train, held_out))
        return cls(learned, scored, held_out[0], bits_per_byte_floor(held_out))

    @property
    def probe(self) -> Array:
        """Tokens (PROBES, seq) of held-out examples."""
        return next(epoch(self.held_out.sequences[:PROBES], PROBES, self.held_out.tokenizer.end)).tokens


def study(
    out: str | Path,
    config: StudyConfig,
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
    folders.check_free(out, STUDY, overwrite=overwrite, resume=resume, inputs=(base or files.BASE,))
    model = files.load_model(base)
    task = Task.draw(config, model)
    of = _plain({**asdict(config), **_versions(), "base": files.digest(model)})
    try:
        with folders.new_folder(out, STUDY, overwrite=overwrite, resume=resume) as folder:
            result = _Work(folder, of, model, task, config, watch, say).result(began)
            _write(folder, result)
    except KeyboardInterrupt:
        if (partial := folders.partial_folder(out)).exists():
            say(f"stopped: what is finished stays in {partial}, and --resume goes on from there")
        raise
    for part in (Path(out) / PARTS).glob("*.json"):  # only now: until the folder is in its place they may be needed
        part.unlink()
    (Path(out) / PARTS).rmdir()
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
    lora, probe, points = config.lora(rank), task.probe, config.points
    folder.mkdir(parents=True, exist_ok=True)
    outcome = adaptation.run(
        replace(task.train, seed=seed).batches,
        task.held_out.bits_per_byte,
        base,
        lora,
        config.training(seed),
        folder,
        seed=seed,
        scored=points,
        device=config.device,
        watch=lambda records, total, done: watch(records, config.label(rank, seed), total, done, describe),
    )
    stored, header_bytes, file_bytes = _stored(folder / "adapter.safetensors")
    adapted = files.load_adapter(folder, base)[0]
    merged, fresh = merge(adapted), adapt(base, lora, np.random.default_rng(seed))
    return Run(
        rank=rank,
        seed=seed,
        predicted=lora.numbers(base.config),
        counted=count(lora.trained(adapted)),
        stored=stored,
        file_bytes=file_bytes,
        header_bytes=header_bytes,
        adapter_digest=files.digest_of(lora.trained(outcome.model)),
        reloaded_digest=files.digest_of(lora.trained(adapted)),
        base_digest=files.digest(unwrapped(adapted)),
        fresh_gap=float(abs(fresh(probe) - base(probe)).max()),
        losses=tuple(loss * BITS for loss in outcome.losses),
        held_out=((0, base_loss), *outcome.scores),
        sample=_sample(merged, task.example),
        step_seconds=statistics.median(outcome.seconds),
        seconds=time.perf_counter() - began,
        maps=prove_maps(adapted, merged, probe),
        certificate=certify(adapted, merged, probe),
    )


def _stored(path: Path) -> tuple[int, int, int]:
    """How many float32 numbers a safetensors file holds, the bytes before them, and all its bytes.

    The format is a header length (8 bytes, little-endian), a header of that many bytes, then nothing but the numbers.
    """
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    return (len(data) - header) // 4, header, len(data)


def _sample(model: Transformer, example: Example) -> str:
    """What the model writes after the prompt, taking the likeliest byte each time."""
    bytes_ = ByteTokenizer()
    return bytes_.decode(list(generated(model, prompt_tokens(example.prompt, bytes_), LONGEST, end=bytes_.end)))


# --------------------------------------------------------------------------------------- what a stopped study keeps


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
        checked, base = self.gradients(), to_device(self.model, self.config.device)
        base_loss = self.task.held_out.bits_per_byte(base)
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
            held_out_bytes=sum(sequence.tokens_trained for sequence in self.task.held_out.sequences),
            runs=runs,
            seconds=time.perf_counter() - began,
        )

    def gradients(self) -> gradients.Report:
        kept = self._kept("gradients")
        if kept is None:
            seed, watch, device = self.config.seed, self.watch, self.config.device
            checked = gradients.gradcheck(
                seed=seed, watch=lambda cases: watch(cases, "gradients", len(cases), 0, None), device=device
            )
            self._keep("gradients", asdict(checked))
        else:
            rows = (gradients.Row(**{**row, "shape": tuple(row["shape"])}) for row in kept["rows"])
            checked = gradients.Report(kept["seed"], tuple(rows))
        self.say(f"gradients: {sum(row.holds for row in checked.rows)} of {len(checked.rows)} arrays hold")
        return checked

    def run(self, base_loss: float, rank: int, seed: int) -> Run:
        label = self.config.label(rank, seed)
        kept, folder = self._kept(label), self.folder / "adapters" / label
        if kept is None:
            done = run(self.model, base_loss, self.task, self.config, rank, seed, folder, self.watch)
            self._keep(label, asdict(done))
        else:
            done = Run.from_dict(kept)
            self._check_adapter(folder, done, label)
        self.say(
            f"{label}: {done.predicted:,} predicted = {done.counted:,} counted = {done.stored:,} stored parameters in "
            f"{done.file_bytes:,} bytes; {done.loss:.4f} bits per held-out byte; merging uses {done.used:.2g} of its "
            "rounding bound"
        )
        return done

    def _keep(self, name: str, part: Mapping[str, Any]) -> None:
        (self.folder / PARTS).mkdir(exist_ok=True)
        kept = {"of": self.of, "result": part}
        write_json(self.folder / PARTS / f"{name}.json", {**kept, "sha256": _seal(kept)})

    def _kept(self, name: str) -> Any:
        """A part that is finished, else None; raises ValueError when it is damaged, or of a study of other settings."""
        path = self.folder / PARTS / f"{name}.json"
        if not path.exists():
            return None
        again = "remove it and continue with --resume: it is made again"
        try:
            part = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}; {again}") from None
        if missing := {"of", "result", "sha256"} - set(part):
            raise ValueError(f"{path}: {sorted(missing)[0]!r} is missing; {again}")
        if part.pop("sha256") != _seal(part):
            raise ValueError(f"{path} is damaged, or was changed: {again}")
        for key, now in self.of.items():
            if part["of"].get(key) != now:
                raise ValueError(f"{path} is of another study: {key} was {part['of'].get(key)!r}, now it is {now!r}")
        return part["result"]

    def _check_adapter(self, folder: Path, done: Run, label: str) -> None:
        """Raise ValueError unless the adapter of a finished part is still the one it was measured on."""
        again = f"remove {self.folder / PARTS / label}.json and continue with --resume: it is made again"
        try:
            adapted, lora = files.load_adapter(folder, self.model)
        except (OSError, ValueError) as error:
            raise ValueError(f"{error}; {again}") from None
        if files.digest_of(lora.trained(adapted)) != done.adapter_digest:
            raise ValueError(f"{folder} is not the adapter that was measured: {again}")


def _seal(part: Mapping[str, Any]) -> str:
    """SHA-256 of what JSON gives back of it."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(part)), sort_keys=True).encode()).hexdigest()


def _write(folder: Path, result: StudyResult) -> None:
    write_json(folder / "study.json", _plain(result.as_dict()))
    for name, figure in pictures(result).items():
        figures.save(figure, folder / f"{name}.png")
    write_atomically(folder / "report.html", report(result).encode())


def _versions() -> dict[str, str]:
    return {"lora_np": __version__, "python": platform.python_version(), "numpy": np.__version__}


def _plain(value: Any) -> Any:
    """As JSON gives it back, with strings for the numbers that JSON does not have."""
    return json.loads(json.dumps(value), parse_constant=str)
