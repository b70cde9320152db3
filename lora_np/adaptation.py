r"""One run from a file to an adapter: read, split, adapt, train with checkpoints, score, save.

The run is built in `OUT.partial`; `OUT` appears when it is complete. Killed at any moment, it continues from its last
checkpoint to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .costs import ATTENTION, MLP, step_bytes
from .devices import to_device
from .files import digest, load_checkpoint, save_adapter, save_checkpoint
from .folders import check_free, new_folder, partial_folder
from .lora import LoraConfig, adapt, adapters
from .marks import Kind
from .memory import available_bytes
from .model import Transformer, shape_of
from .parameters import parameters, size, with_parameters
from .reading import Contents, read_once
from .tasks import Batches, Example, Sequence, encode, epoch, read_examples, split
from .threads import worker_count
from .tokenizers import ByteTokenizer
from .training import Record, TrainingConfig, TrainingState, evaluate, fit, model_loss, pieces_of, start

CHECKPOINT = "checkpoint.safetensors"
ADAPTER = Kind("run of adapt", ("adapter.json", "adapter.safetensors", CHECKPOINT), resumes=CHECKPOINT)


@dataclass(frozen=True)
class DataConfig:
    """Which examples of a file, and how they become batches."""

    format: str | None = None
    columns: tuple[str, str] | None = None
    prompt_field: str = "prompt"
    reference_field: str = "reference"
    truncate: bool = False
    held_out: float = 0.1
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """What a run came to; bits per byte are of the held-out references, each with the mark that ends it."""

    train: int
    held_out: int
    before: float
    after: float
    trained: int
    steps: int
    file_bytes: int


class Interrupted(Exception):
    """A run was stopped and can be resumed; `step` is the last one whose result is kept."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after step {step}")
        self.step = step


def read_file(path: str | Path | Contents, data: DataConfig, context: int) -> tuple[list[Sequence], list[Sequence]]:
    """The sequences to train on, and the held-out ones; raises ValueError or OSError in one line for a bad file."""
    examples: list[Example] = read_examples(
        path,
        data.format,
        prompt_field=data.prompt_field,
        reference_field=data.reference_field,
        columns=data.columns,
        window=context - 1,
    )
    tokenizer = ByteTokenizer()
    encode(examples, tokenizer, context, truncate=data.truncate)  # so that an error counts the file's own examples
    train, held_out = split(examples, data.held_out, data.seed)
    return tuple(encode(part, tokenizer, context, truncate=data.truncate) for part in (train, held_out))  # type: ignore[return-value]


def check_room(model: Transformer, sequences: list[Sequence], batch_size: int, micro_batches: int | None) -> None:
    """Raise ValueError where a step on the longest of these sequences needs more memory than there is: (C11), (C12).

    A lower bound: every adapter counts with the smallest rank of them all, and libraries do not count.
    """
    batch, length = min(batch_size, len(sequences)), max(sequence.length for sequence in sequences)
    pieces = min(micro_batches or pieces_of(model.config, batch * length), batch)
    modules = adapters(model)
    names = {path.split(".", 2)[-1] for path in modules} & {*ATTENTION, *MLP} or {"tokens"}
    rank = min(module.A.shape[0] for module in modules.values())
    at_once, recomputed = min(pieces, worker_count()), model.checkpoint_blocks
    needed = step_bytes(
        shape_of(model.config), batch, length, rank, names, pieces=pieces, at_once=at_once, recomputed=recomputed
    )
    free = available_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"a step on {batch} examples of up to {length} tokens needs {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB "
            "are available: choose a smaller batch_size (--batch-size), or checkpoint_blocks (--checkpoint-blocks)"
        )


def bits_per_byte(model: Transformer, sequences: list[Sequence], batch_size: int) -> float:
    """The held-out score of a byte-level model."""
    return evaluate(model, epoch(sequences, batch_size, ByteTokenizer().end)) / math.log(2.0)


def adapt_to_file(
    path: Path,
    out: Path,
    base: Transformer,
    lora: LoraConfig,
    training: TrainingConfig,
    data: DataConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    checkpoint_every: int = 10,
    watch: Callable[[Iterator[Record], int, int], Iterator[Record]] = lambda records, total, done: records,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Adapt `base` to the examples of a file and write the adapter to the folder `out`.

    device "cpu" or "gpu"; a run may be continued on the other;
    watch  wraps the records of training (a progress bar, say), given how many there will be and how many are done;
    say    is told each finding in a line. Raises Interrupted when stopped by hand: what was trained is saved.
    """
    check_free(out, ADAPTER, overwrite=overwrite, resume=resume, inputs=(path,))
    contents = read_once(path)
    train, held_out = read_file(contents, data, base.config.context)
    batches = Batches(train, data.batch_size, data.seed, ByteTokenizer().end)
    model = adapt(base, lora, np.random.default_rng(data.seed))
    if device == "cpu":
        check_room(model, train, data.batch_size, training.micro_batches)
    digest_of_base = digest(base)
    run = _identity(contents, digest_of_base, lora, training, data)
    trained = parameters(model, *lora.trained)
    state = start(trained, training)
    if resume:
        state = load_checkpoint(partial_folder(out) / CHECKPOINT, run, state)
    base, model, state = to_device((base, model, state), device)
    say(f"{len(train)} examples to train on, {len(held_out)} held out; {size(trained):,} trained parameters")
    before = bits_per_byte(base, held_out, data.batch_size)
    say(f"base: {before:.4f} bits per byte of the held-out references")
    try:
        with new_folder(out, ADAPTER, overwrite=overwrite, resume=resume) as folder:
            records = fit(model_loss(model), batches, training, state)
            state = _kept(folder, run, state, watch(records, training.steps, state.step), checkpoint_every)
            model = with_parameters(model, state.trained)
            after = bits_per_byte(model, held_out, data.batch_size)
            say(f"adapted: {after:.4f} bits per byte of the held-out references")
            save_adapter(folder, model, lora, digest_of_base, state.trained)
    except KeyboardInterrupt:
        if (partial_folder(out) / CHECKPOINT).exists():
            raise Interrupted(state.step) from None
        raise
    (out / CHECKPOINT).unlink()
    bytes_written = (out / "adapter.safetensors").stat().st_size
    return Result(len(train), len(held_out), before, after, size(trained), training.steps, bytes_written)


def _kept(
    folder: Path, run: dict[str, Any], state: TrainingState, records: Iterator[Record], every: int
) -> TrainingState:
    """Go through the records, writing a checkpoint at the start, every so many steps, and when stopped."""
    checkpoint, record = folder / CHECKPOINT, None
    save_checkpoint(checkpoint, state, run)
    try:
        for record in records:
            state = record.state
            if state.step % every == 0:
                record.check()  # so that the last checkpoint is always one to continue from
                save_checkpoint(checkpoint, state, run)
    except KeyboardInterrupt:
        if record is not None:
            record.check()
        save_checkpoint(checkpoint, state, run)
        raise Interrupted(state.step) from None
    save_checkpoint(checkpoint, state, run)
    return state


def _identity(
    file: Contents, base: str, lora: LoraConfig, training: TrainingConfig, data: DataConfig
) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run."""
    about_data = {f"data {key}": value for key, value in asdict(data).items()}
    return {"base": base, "file": file.digest, **asdict(lora), **asdict(training), **about_data}
