r"""Make the base model that ships: `python -m lora_np.pretrained.make --out FOLDER`.

A byte-level causal transformer, trained by this package on the text of `corpus`. Interrupted, it continues from its
checkpoint. It writes `model.safetensors` (float16), `config.json` and `README.md` with the log of its own making.
`python -m lora_np.pretrained.make --evaluate` only scores the model that ships.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..adaptation import CHECKPOINT, Interrupted, run
from ..config import TransformerConfig
from ..disk.reading import read_json
from ..disk.writing import write_json
from ..files import digest, load_checkpoint, load_model, save_model
from ..methods.tuning import Full
from ..model import Transformer, initialize
from ..optimization import TrainingConfig
from ..parameters import count, with_parameters
from ..tasks import Batch
from ..training import Record, evaluate
from .baselines import Bytes, gzip_bits_per_byte, ngram_bits_per_byte
from .corpus import parts, stream

SIZES = TransformerConfig(vocab=256, context=640, d_model=192, layers=4, heads=6)
SEED = 0
LOGGED, SCORED = 500, 2000  # every so many steps: a line of the log and a checkpoint, and held-out text


@dataclass(frozen=True)
class Phase:
    """A training of its own, schedule and moments included: (from step, windows, bytes of each) say on what."""

    training: TrainingConfig
    stages: tuple[tuple[int, int, int], ...]


# Short windows first: what is near is learned first, and more cheaply. Then the whole context, whose later positions
# are still new: they need a learning rate that is not small any more.
PHASES = (
    Phase(
        TrainingConfig(
            steps=14000, learning_rate=2e-3, warmup=200, decay="cosine", beta2=0.99, weight_decay=0.1, micro_batches=2
        ),
        ((0, 8, 160), (12000, 4, SIZES.context)),
    ),
    Phase(
        TrainingConfig(
            steps=2000, learning_rate=1e-3, warmup=50, decay="cosine", beta2=0.99, weight_decay=0.1, micro_batches=2
        ),
        ((0, 2, SIZES.context),),
    ),
    Phase(
        TrainingConfig(
            steps=3500, learning_rate=1.5e-3, warmup=50, decay="cosine", beta2=0.99, weight_decay=0.1, micro_batches=2
        ),
        ((0, 2, SIZES.context),),
    ),
)


@dataclass(frozen=True)
class Windows:
    """Endless batches of windows that start anywhere in a run of bytes; the step decides where and how long."""

    text: Bytes
    phase: Phase

    def __getitem__(self, step: int) -> Batch:
        _, batch, size = [stage for stage in self.phase.stages if stage[0] <= step][-1]
        begin = np.random.default_rng([SEED, step]).integers(0, len(self.text) - size, batch)
        window = self.text[begin[:, None] + np.arange(size + 1)].astype(np.int64)
        weights = np.full((batch, size), 1.0 / (batch * size), np.float32)
        return Batch(window[:, :-1], window[:, 1:], weights)


def bits_per_byte(model: Transformer, text: Bytes) -> float:
    """Mean cost of each byte after the first, read in windows of the whole context that know nothing before them."""
    context = model.config.context
    windows = [text[begin : begin + context + 1].astype(np.int64)[None] for begin in range(0, len(text) - 1, context)]
    weights = [np.full((1, window.size - 1), 1.0 / (window.size - 1), np.float32) for window in windows]
    batches = [Batch(w[:, :-1], w[:, 1:], weight) for w, weight in zip(windows, weights, strict=True)]
    return evaluate(model, batches) / float(np.log(2.0))


def make(out: Path) -> None:
    """Train, save in float16, score what was saved, and write down how it went."""
    train, held_out = (stream(texts) for texts in parts())
    model = initialize(SIZES, np.random.default_rng(SEED))
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Any] = []
    for number, phase in enumerate(PHASES, 1):
        model, new = _trained(model, phase, out / f"phase-{number}", train, held_out)
        rows += [[number, *row] for row in new]
    save_model(out / "model", model, dtype=np.float16, overwrite=True)
    (out / "README.md").write_text(_readme(load_model(out / "model"), train, held_out, rows))


def _trained(
    model: Transformer, phase: Phase, folder: Path, train: Bytes, held_out: Bytes
) -> tuple[Transformer, list[Any]]:
    """The model after a phase, and its log; what an interrupted run has done is read from its folder."""
    folder.mkdir(exist_ok=True)
    checkpoint, log, run_of = folder / CHECKPOINT, folder / "log.json", {"phase": repr(phase)}
    state = load_checkpoint(checkpoint, run_of) if checkpoint.exists() else None
    kept = read_json(log) if state else {"rows": [], "losses": []}
    rows: list[Any] = [row for row in kept["rows"] if state and row[0] <= state.step]
    losses = {step: loss for step, loss in kept["losses"] if state and step <= state.step}  # since the last row
    began = time.perf_counter() - (rows[-1][-1] if rows else 0.0)

    def keep() -> None:
        write_json(log, {"rows": rows, "losses": list(losses.items())})

    def logged(records: Iterable[Record], total: int, done: int) -> Iterator[Record]:
        for record in records:
            losses[record.step] = record.loss / float(np.log(2.0))
            if record.step % LOGGED == 0:
                due = record.step % SCORED == 0
                held = bits_per_byte(with_parameters(model, record.state.trained), held_out) if due else None
                rows.append([record.step, float(np.mean([*losses.values()])), held, time.perf_counter() - began])
                print(*rows[-1], flush=True)
                losses.clear()
                keep()
            yield record

    def score(trained: Transformer) -> float:
        return bits_per_byte(trained, held_out)

    batches = Windows(train, phase)
    about: dict[str, Any] = {"identity": run_of, "state": state, "checkpoint_every": LOGGED, "watch": logged}
    try:
        outcome = run(batches, score, model, Full(), phase.training, folder, **about)
    except Interrupted:
        keep()
        raise
    return outcome.model, rows


def scores(model: Transformer, train: Bytes, held_out: Bytes) -> dict[str, float]:
    """Bits per byte of the model and of both baselines on the held-out text."""
    return {
        "this model": bits_per_byte(model, held_out),
        "byte 5-gram": ngram_bits_per_byte(train, held_out),
        "gzip -9": gzip_bits_per_byte(held_out),
    }


def _readme(model: Transformer, train: Bytes, held_out: Bytes, rows: list[Any]) -> str:
    table = "\n".join(f"| {name} | {bits:.3f} |" for name, bits in scores(model, train, held_out).items())
    log = "\n".join(
        f"| {phase} | {step:,} | {loss:.3f} | {'' if scored is None else f'{scored:.3f}'} | {seconds / 60:.1f} |"
        for phase, step, loss, scored, seconds in rows
    )
    phases = "\n".join(f"  {number}. {phase}" for number, phase in enumerate(PHASES, 1))
    return f"""# The base model

A byte-level causal transformer with {count(model):,} parameters, stored in float16 and computed in float32. Written
by `python -m lora_np.pretrained.make`; nothing here was typed by hand.

- sizes: {SIZES}
- seed {SEED}, and these phases; stages are (from step, windows, bytes of each):
{phases}
- text: `pydoc_data.topics` and the docstrings of the standard library of Python {platform.python_version()}:
  {len(train):,} bytes to train on, {len(held_out):,} held out (all documents of a topic or source file, chosen by
  a hash of its name, so that no near copy of a held-out docstring is trained on)
- digest: `{digest(model)}`

## Bits per byte on the held-out text

| | bits per byte |
| --- | --- |
{table}

The model reads the text in windows of {SIZES.context} bytes and forgets what was before; the 5-gram (interpolated
Witten-Bell) was counted on the same training text; gzip sees the held-out text alone.
`python -m lora_np.pretrained.make --evaluate` prints the three again; under another version of Python the text, and
so the figures, differ a little.

## The log

Held-out text is scored in windows of the whole context, whose later positions are new to the model until it is trained
on windows that long: hence the figures of the first phase. Minutes are of a machine of two cores that was busy.

| phase | step | training loss, bits per byte | held out | minutes |
| --- | --- | --- | --- | --- |
{log}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("base-model"))
    parser.add_argument("--evaluate", action="store_true", help="only score the model that ships")
    chosen = parser.parse_args()
    if chosen.evaluate:
        for name, bits in scores(load_model(), *(stream(texts) for texts in parts())).items():
            print(f"{name:12} {bits:.3f} bits per byte")
    else:
        make(chosen.out)


if __name__ == "__main__":
    main()
