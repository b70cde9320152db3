r"""One run: adapt, train with checkpoints, score, save; and the same from a file to an adapter folder.

    base, method → adapt → fit, step by step, with a checkpoint every so often → score → adapter

`run` is the only way from a base to something trained: `lora-np adapt`, study, notebooks, `pretrained/` call it. The
run of a command is built in `OUT.partial`; `OUT` appears when it is complete. Killed at any moment, it continues from
its last checkpoint to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .config import parameter_count
from .costs import step_bytes
from .data import DataConfig as DataConfig
from .data import class_work, text_work
from .data import read_file as read_file
from .disk.folders import check_free, new_folder, partial_folder
from .disk.marks import Kind
from .disk.reading import Contents, read_once
from .engine.devices import to_device
from .engine.mapping import check_engine
from .engine.memory import available_bytes
from .engine.threads import worker_count
from .evaluation import Classes, Judged
from .evaluation import Text as Text
from .files import digest, load_checkpoint, save_adapter, save_checkpoint
from .generation import check_writes
from .method import Method, one_of
from .methods import adapt, name_of
from .methods.classify import Classify
from .model import Transformer
from .names import matching
from .optimization import TrainingConfig, TrainingState, start
from .parameters import Arrays, count, parameters, with_parameters
from .stopping import Interrupted as Interrupted
from .tokenizers import Tokenizer
from .training import Batches, Record, Traffic, fit, model_loss, pieces_of

TASKS = ("text", "classify")
CHECKPOINT = "checkpoint.safetensors"
ADAPTER = Kind("run of adapt", ("adapter.json", "adapter.safetensors", CHECKPOINT), resumes=CHECKPOINT)

Watch = Callable[[Iterator[Record], int, int], Iterable[Record]]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    model     adapted and trained, on the host        trained  how many numbers were
    losses    of each step, in nats per token         seconds  of each step
    scores    (step, score) wherever it was asked for; the last is that of `model`. A score is what `score` of `run`
              gives: a number, or `Judged`
    traffic   of the last step, where other processes took part
    """

    model: Transformer
    trained: int
    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    scores: tuple[tuple[int, Any], ...]
    traffic: Traffic | None = None

    @property
    def score(self) -> Any:
        return self.scores[-1][1]


@dataclass(frozen=True)
class Result:
    """What adapting to a file came to.

    before, after  bits per byte of the held-out references and the mark that ends each; of a classification, the
                   accuracy of the commonest label, and of the adapted model, of which `judged` says more
    """

    train: int
    held_out: int
    before: float
    after: float
    trained: int
    steps: int
    file_bytes: int
    model: Transformer
    judged: Judged | None = None


def run(
    batches: Batches,
    score: Callable[[Transformer], Any],
    base: Transformer,
    method: Method,
    training: TrainingConfig,
    folder: str | Path | None = None,
    *,
    seed: int = 0,
    identity: Mapping[str, Any] | None = None,
    state: TrainingState | None = None,
    scored: Collection[int] = (),
    checkpoint_every: int = 10,
    device: str = "cpu",
    recompute: bool = False,
    engine: str | None = None,
    workers: int | None = None,
    watch: Watch = lambda records, total, done: records,
) -> Outcome:
    """Adapt `base` by this method, train it on the batches, score it, and save the adapter into a folder, if given.

    seed       of what the method draws              identity  what must be the same for a resumed run to be this one:
    scored     steps to score, beside the last                 given, checkpoints are written into `folder`
    state      where to begin, if not afresh         recompute less memory and more time: see `model_loss`
    engine, workers   of `fit`: they change no bit
    watch      wraps the records of training (a progress bar, say), given how many there will be and how many are done

    Raises Interrupted when stopped by hand and checkpoints are kept: what was trained is saved.
    """
    folder = None if folder is None else Path(folder)
    training = replace(training, rates={**method.rates, **training.rates})
    fresh = to_device(adapt(base, method, np.random.default_rng(seed)), device)
    last = to_device(state or start(method.trained(fresh), training), device)
    keep = _keeper(folder, identity)
    keep(last)
    losses, seconds, scores, record = [], [], [], None
    try:
        records = fit(model_loss(fresh, recompute=recompute), batches, training, last, workers, engine)
        for record in watch(records, training.steps, last.step):
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
    traffic = record.traffic if record is not None else None
    return Outcome(to_device(model, "cpu"), count(last.trained), values, tuple(seconds), tuple(scores), traffic)


def adapt_to_file(
    path: str | Path,
    out: str | Path,
    base: Transformer,
    method: Method,
    training: TrainingConfig,
    data: DataConfig,
    *,
    tokenizer: Tokenizer | None = None,
    task: str = "text",
    reads: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    recompute: bool = False,
    checkpoint_every: int = 10,
    engine: str | None = None,
    workers: int | None = None,
    watch: Watch = lambda records, total, done: records,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Adapt `base` to the examples of a file and write the adapter to the folder `out`.

    task   "text": references are learned; "classify": they are labels, and a head that reads `reads` tells them apart;
    device "cpu" or "gpu"; a run may be continued on the other, and with another engine or number of workers (`fit`);
    watch  wraps the records of training (a progress bar, say), given how many there will be and how many are done;
    say    is told each finding in a line. Raises Interrupted when stopped by hand: what was trained is saved.
    """
    path, out = Path(path), Path(out)
    inputs = (path,) if data.validation is None else (path, data.validation)
    check_free(out, ADAPTER, overwrite=overwrite, resume=resume, inputs=inputs)
    one_of("task", task, TASKS)
    check_engine(engine or "threads", workers)
    if task == "text":
        check_writes(base)
        _check(method, base, training)
    contents = read_once(path)
    if task == "text":
        work = text_work(contents, data, base, method, tokenizer)
    else:
        work = class_work(contents, data, base, method, tokenizer, reads)
    method, train = work.method, work.train
    trained = _check(method, base, training)
    batches = train.batches  # before memory is predicted: a batch size may be none
    if device == "cpu":
        check_room(base, method, train, training.micro_batches, recompute=recompute)
    digest_of_base = digest(base)
    identity = _identity(contents, digest_of_base, method, training, data)
    state = None
    if resume:
        state = load_checkpoint(partial_folder(out) / CHECKPOINT, identity, start(trained, training))
    base = to_device(base, device)
    held_out = len(work.held_out)
    say(f"{len(train)} examples to train on, {held_out} held out; {count(trained):,} trained parameters")
    before = work.before(base)
    say(work.plainly(before))
    try:
        with new_folder(out, ADAPTER, overwrite=overwrite, resume=resume) as folder:
            outcome = run(
                batches,
                work.score,
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
                engine=engine,
                workers=workers,
                watch=watch,
            )
            if outcome.traffic is not None:
                say(moved(outcome.traffic, base, trained))
            say(f"adapted: {work.said(outcome.score)}")
    except KeyboardInterrupt:
        if (partial_folder(out) / CHECKPOINT).exists():
            raise Interrupted(training.steps) from None
        raise
    (out / CHECKPOINT).unlink()
    written = (out / "adapter.safetensors").stat().st_size
    judged = outcome.score if isinstance(outcome.score, Judged) else None
    after = judged.accuracy if judged else outcome.score
    sizes = outcome.trained, training.steps, written
    return Result(len(train), held_out, before, after, *sizes, outcome.model, judged)


def _check(method: Method, base: Transformer, training: TrainingConfig) -> Arrays:
    """What is trained; raises where the base cannot be adapted by these settings, and for a rate of nothing."""
    trained = method.trained(adapt(base, method, None))
    matching(trained, training.rates)
    return trained


def moved(traffic: Traffic, base: Transformer, trained: Arrays) -> str:
    """What went between processes, in a line; beside it what would go if all of the base were trained."""
    ready = "" if traffic.ready_after is None else f"; workers were ready after {traffic.ready_after:.2f} s"
    return (
        f"the last step moved {traffic.moved:,} bytes for {traffic.shards} of its shards; with full fine-tuning "
        f"it would be {traffic.if_all_were_trained(parameters(base), trained):,}; "
        f"the base, {traffic.held:,} bytes, was sent once{ready}"
    )


def _keeper(folder: Path | None, identity: Mapping[str, Any] | None) -> Callable[[TrainingState], None]:
    """What keeps a state: a checkpoint in the folder, if the run has an identity to be resumed by."""
    if folder is None or identity is None:
        return lambda state: None
    return lambda state: save_checkpoint(folder / CHECKPOINT, state, identity)


def _identity(file: Contents, base: str, method: Method, training: TrainingConfig, data: DataConfig) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run."""
    beside = method.method if isinstance(method, Classify) else method
    about = {"method": name_of(method), **{f"method {key}": value for key, value in asdict(beside).items()}}  # type: ignore[call-overload]
    if isinstance(method, Classify):
        about |= {"labels": list(method.labels), "reads": method.reads}
    about_data = {f"data {key}": value for key, value in asdict(data).items() if key != "validation"}
    if data.validation is not None:
        about_data["data validation"] = str(data.validation)
    return {"base": base, "file": file.digest, **about, **asdict(training), **about_data}


def check_room(
    base: Transformer, method: Method, train: Text | Classes, micro_batches: int | None, *, recompute: bool = False
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
