r"""One run: adapt, train with checkpoints, score, save; and the same from a file to an adapter folder.

    base, method → adapt → fit, step by step, with a checkpoint every so often → score → adapter

`run` is the only way from a base to something trained: `lora-np adapt`, study, notebooks, `pretrained/` call it. The
run of a command is built in `OUT.partial`; `OUT` appears when it is complete. Killed at any moment, it continues from
its last checkpoint to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .config import parameter_count
from .costs import step_bytes
from .disk.folders import check_free, new_folder, partial_folder
from .disk.marks import Kind
from .disk.reading import Contents, read_once
from .engine.devices import to_device
from .engine.memory import available_bytes
from .engine.threads import worker_count
from .files import digest, load_checkpoint, save_adapter, save_checkpoint
from .method import Method, whole
from .methods import adapt, name_of
from .model import Transformer
from .names import matching
from .optimization import TrainingConfig, TrainingState, start
from .parameters import count, parameters, with_parameters
from .tasks import Batches as Shuffled
from .tasks import Example, Sequence, encode, epoch, read_examples, split
from .tokenizers import ByteTokenizer, Tokenizer, byte_count
from .training import Batches, Record, evaluate, fit, model_loss, pieces_of

CHECKPOINT = "checkpoint.safetensors"
ADAPTER = Kind("run of adapt", ("adapter.json", "adapter.safetensors", CHECKPOINT), resumes=CHECKPOINT)

Watch = Callable[[Iterator[Record], int, int], Iterable[Record]]


@dataclass(frozen=True)
class DataConfig:
    """Which examples of a file, and how they become batches. Raises ValueError for a batch of none."""

    format: str | None = None
    columns: tuple[str, str] | None = None
    prompt_field: str = "prompt"
    reference_field: str = "reference"
    truncate: bool = False
    held_out: float = 0.1
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size)


@dataclass(frozen=True)
class Text:
    """Examples in tokens, as one model and one method read them."""

    sequences: list[Sequence]
    tokenizer: Tokenizer
    batch_size: int = 16
    seed: int = 0

    @classmethod
    def of(
        cls,
        examples: list[Example],
        base: Transformer,
        method: Method | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        batch_size: int = 16,
        seed: int = 0,
        truncate: bool = False,
    ) -> Text:
        """The examples with their prompts laid out as the method wants them; without one, as the base reads them."""
        words = tokenizer or ByteTokenizer()
        given = (lambda prompt: method.given(prompt, base.config)) if method else (lambda prompt: prompt)
        sequences = encode(examples, words, base.config.context, truncate=truncate, given=given)
        return cls(sequences, words, batch_size, seed)

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def batches(self) -> Shuffled:
        """Endless shuffled batches, to train on."""
        return Shuffled(self.sequences, self.batch_size, self.seed, self.tokenizer.end)

    def bits_per_byte(self, model: Transformer) -> float:
        """What the model pays for the references and the mark that ends each, on average over their bytes."""
        nats = evaluate(model, epoch(self.sequences, self.batch_size, self.tokenizer.end))
        return nats / (math.log(2.0) * self.bytes_a_token)

    @cached_property
    def bytes_a_token(self) -> float:
        """How many bytes of the references one token is, on average."""
        tokens = sum(sequence.tokens_trained for sequence in self.sequences)
        return sum(byte_count(self.tokenizer, s.learned) for s in self.sequences) / tokens

    def in_words(self, bits: float) -> str:
        """Bits per byte, and where a token is more than one, what that is in nats a token."""
        more = f", {bits * math.log(2.0) * self.bytes_a_token:.4f} nats a token" if self.bytes_a_token > 1.0 else ""
        return f"{bits:.4f} bits per byte of the held-out references{more}"


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    model     adapted and trained, on the host        trained  how many numbers were
    losses    of each step, in nats per token         seconds  of each step
    scores    (step, score) wherever it was asked for; the last is that of `model`
    """

    model: Transformer
    trained: int
    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    scores: tuple[tuple[int, float], ...]

    @property
    def score(self) -> float:
        return self.scores[-1][1]


@dataclass(frozen=True)
class Result:
    """What adapting to a file came to; bits per byte are of the held-out references and the mark that ends each."""

    train: int
    held_out: int
    before: float
    after: float
    trained: int
    steps: int
    file_bytes: int
    model: Transformer


class Interrupted(Exception):
    """A run was stopped and can be resumed; `step` is the last one whose result is kept."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after step {step}")
        self.step = step


def run(
    batches: Batches,
    score: Callable[[Transformer], float],
    base: Transformer,
    method: Method,
    training: TrainingConfig,
    folder: Path | None = None,
    *,
    seed: int = 0,
    identity: Mapping[str, Any] | None = None,
    state: TrainingState | None = None,
    scored: Collection[int] = (),
    checkpoint_every: int = 10,
    device: str = "cpu",
    recompute: bool = False,
    watch: Watch = lambda records, total, done: records,
) -> Outcome:
    """Adapt `base` by this method, train it on the batches, score it, and save the adapter into a folder, if given.

    seed       of what the method draws              identity  what must be the same for a resumed run to be this one:
    scored     steps to score, beside the last                 given, checkpoints are written into `folder`
    state      where to begin, if not afresh         recompute less memory and more time: see `model_loss`
    watch      wraps the records of training (a progress bar, say), given how many there will be and how many are done

    Raises Interrupted when stopped by hand and checkpoints are kept: what was trained is saved.
    """
    training = replace(training, rates={**method.rates, **training.rates})
    fresh = to_device(adapt(base, method, np.random.default_rng(seed)), device)
    last = to_device(state or start(method.trained(fresh), training), device)
    keep = _keeper(folder, identity)
    keep(last)
    losses, seconds, scores, record = [], [], [], None
    try:
        for record in watch(
            fit(model_loss(fresh, recompute=recompute), batches, training, last), training.steps, last.step
        ):
            last = record.state
            losses.append(record.measured[0])  # on a device it is not waited for
            seconds.append(record.seconds)
            if last.step % checkpoint_every == 0 and identity is not None:
                record.check()  # so that the last checkpoint is always one to continue from
                keep(last)
            if last.step in scored and last.step < training.steps:
                scores.append((last.step, score(with_parameters(fresh, last.trained))))
    except KeyboardInterrupt:
        if identity is None:
            raise
        if record is not None:
            record.check()
        keep(last)
        raise Interrupted(last.step) from None
    keep(last)
    model = with_parameters(fresh, last.trained)
    scores.append((last.step, score(model)))
    if folder is not None:
        save_adapter(folder, model, method, base)
    values = tuple(float(loss) for loss in losses)
    return Outcome(to_device(model, "cpu"), count(last.trained), values, tuple(seconds), tuple(scores))


def adapt_to_file(
    path: str | Path,
    out: str | Path,
    base: Transformer,
    method: Method,
    training: TrainingConfig,
    data: DataConfig,
    *,
    tokenizer: Tokenizer | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    recompute: bool = False,
    checkpoint_every: int = 10,
    watch: Watch = lambda records, total, done: records,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Adapt `base` to the examples of a file and write the adapter to the folder `out`.

    device "cpu" or "gpu"; a run may be continued on the other;
    watch  wraps the records of training (a progress bar, say), given how many there will be and how many are done;
    say    is told each finding in a line. Raises Interrupted when stopped by hand: what was trained is saved.
    """
    path, out = Path(path), Path(out)
    check_free(out, ADAPTER, overwrite=overwrite, resume=resume, inputs=(path,))
    trained = method.trained(adapt(base, method, None))  # raises where the base cannot be adapted by these settings
    matching(trained, training.rates)  # and for a rate of nothing
    contents = read_once(path)
    train, held_out, plain = read_file(contents, data, base, method, tokenizer)
    batches = train.batches  # before memory is predicted: a batch size may be none
    if device == "cpu":
        check_room(base, method, train, training.micro_batches, recompute=recompute)
    digest_of_base = digest(base)
    identity = _identity(contents, digest_of_base, method, training, data)
    state = None
    if resume:
        state = load_checkpoint(partial_folder(out) / CHECKPOINT, identity, start(trained, training))
    base = to_device(base, device)
    say(f"{len(train)} examples to train on, {len(held_out)} held out; {count(trained):,} trained parameters")
    before = plain.bits_per_byte(base)
    say(f"base: {plain.in_words(before)}")
    try:
        with new_folder(out, ADAPTER, overwrite=overwrite, resume=resume) as folder:
            outcome = run(
                batches,
                held_out.bits_per_byte,
                base,
                method,
                training,
                folder,
                seed=data.seed,
                identity=identity,
                state=state,
                checkpoint_every=checkpoint_every,
                device=device,
                recompute=recompute,
                watch=watch,
            )
            say(f"adapted: {held_out.in_words(outcome.score)}")
    except KeyboardInterrupt:
        if (partial_folder(out) / CHECKPOINT).exists():
            raise Interrupted(training.steps) from None
        raise
    (out / CHECKPOINT).unlink()
    written = (out / "adapter.safetensors").stat().st_size
    return Result(
        len(train), len(held_out), before, outcome.score, outcome.trained, training.steps, written, outcome.model
    )


def read_file(
    path: str | Path | Contents, data: DataConfig, base: Transformer, method: Method, tokenizer: Tokenizer | None = None
) -> tuple[Text, Text, Text]:
    """The examples to train on and the held-out ones, as the method reads them, and the latter as the base does.

    Raises ValueError or OSError in one line for a bad file.
    """
    examples: list[Example] = read_examples(
        path,
        data.format,
        prompt_field=data.prompt_field,
        reference_field=data.reference_field,
        columns=data.columns,
        window=base.config.context - method.positions - 1,
    )

    def text(part: list[Example], method: Method | None) -> Text:
        about = {"batch_size": data.batch_size, "seed": data.seed, "truncate": data.truncate}
        return Text.of(part, base, method, tokenizer, **about)  # type: ignore[arg-type]

    text(examples, method)  # so that an error counts the file's own examples
    train, held_out = split(examples, data.held_out, data.seed)
    return text(train, method), text(held_out, method), text(held_out, None)


def _keeper(folder: Path | None, identity: Mapping[str, Any] | None) -> Callable[[TrainingState], None]:
    """What keeps a state: a checkpoint in the folder, if the run has an identity to be resumed by."""
    if folder is None or identity is None:
        return lambda state: None
    return lambda state: save_checkpoint(folder / CHECKPOINT, state, identity)


def _identity(file: Contents, base: str, method: Method, training: TrainingConfig, data: DataConfig) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run."""
    about = {"method": name_of(method), **{f"method {key}": value for key, value in asdict(method).items()}}  # type: ignore[call-overload]
    about_data = {f"data {key}": value for key, value in asdict(data).items()}
    return {"base": base, "file": file.digest, **about, **asdict(training), **about_data}


def check_room(
    base: Transformer, method: Method, train: Text, micro_batches: int | None, *, recompute: bool = False
) -> None:
    """Raise ValueError where a step on the longest of these sequences needs more memory than there is: (C11), (C12).

    What is trained counts as the method says, and the base as it is held. For what is kept a lower bound: a method that
    has targets counts with the smallest rank of them all, another as if it kept nothing more than the base does, unless
    it trains as many numbers as the base has; libraries do not count.
    """
    batch, length = min(train.batch_size, len(train)), max(sequence.length for sequence in train.sequences)
    pieces = min(micro_batches or pieces_of(base.config, batch * length), batch)
    trained = method.numbers(base.config)
    targets = getattr(method, "targets", ("tokens",))
    ranks = (getattr(method, "rank", 1), *getattr(method, "ranks", {}).values())
    needed = step_bytes(
        base.config,
        batch,
        length,
        None if trained >= parameter_count(base.config) else min(ranks),
        targets,
        pieces=pieces,
        at_once=min(pieces, worker_count()),
        recomputed=recompute,
        trained=trained,
        held=sum(array.nbytes for array in parameters(base).values()),
    )
    free = available_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"a step on {batch} examples of up to {length} tokens needs {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB "
            "are available: choose a smaller batch_size (--batch-size), or checkpoint_blocks (--checkpoint-blocks)"
        )
