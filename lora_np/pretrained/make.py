r"""Make the base model that ships: `python -m lora_np.pretrained.make --out FOLDER`.

A byte-level causal transformer, trained by this package on the text of `corpus`. Interrupted, it continues from its
checkpoint. It writes `model.safetensors` (float16), `config.json` and `README.md` with the log of its own making.
`python -m lora_np.pretrained.make --evaluate` only scores the model that ships, `--bands` also by position.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..config import TransformerConfig
from ..disk.reading import read_json
from ..disk.writing import write_json
from ..files import digest, load_checkpoint, load_model, save_checkpoint, save_model
from ..model import Transformer
from ..optimization import TrainingConfig, start
from ..parameters import count, parameters, with_parameters
from ..training import fit
from .baselines import gzip_bits_per_byte, ngram_bits_per_byte
from .corpus import PACKAGES, parts, stream, training_texts
from .scores import BAND, PROMPTS, Bytes, bits_by_position, bits_per_byte, continuation
from .windows import PlacedLoss, Recipe, Windows, near_sighted

SIZES = TransformerConfig(vocab=256, context=640, d_model=192, layers=4, heads=6)
SEED = 0
LIBRARY = "standard library"
TIMES = 5  # each of its texts stands in the text to train on: the held-out text is of its kind
LOGGED, SCORED = 500, 3000  # steps

# Short windows first, at a constant rate: what is near is learned first, and more cheaply. Then whole ones, while the
# rate falls to zero.
SHORT, ALL = 9000, 14000  # steps
RISING = TrainingConfig(
    steps=SHORT, learning_rate=2.5e-3, warmup=200, decay="constant", beta2=0.99, weight_decay=0.1, micro_batches=2
)
FALLING = replace(RISING, steps=ALL, warmup=SHORT, decay="linear")  # its first step is the first after its warm-up
RECIPE = Recipe((RISING, FALLING), ((0, 8, 160), (SHORT, 2, SIZES.context)))


def training_text() -> Bytes:
    """The text to train on, as one run of bytes."""
    origins = training_texts()
    return stream(text for name, texts in origins.items() for text in texts * (TIMES if name == LIBRARY else 1))


def make(out: Path) -> None:
    """Train, save in float16, score what was saved, and write down how it went."""
    train, held_out = training_text(), stream(parts()[1])
    out.mkdir(parents=True, exist_ok=True)
    model, rows = _trained(out, train, held_out)
    save_model(out / "model", model, dtype=np.float16, overwrite=True)
    (out / "README.md").write_text(_readme(load_model(out / "model"), held_out, rows), encoding="utf-8")


def _trained(folder: Path, train: Bytes, held_out: Bytes) -> tuple[Transformer, list[Any]]:
    """The trained model and its log; what an interrupted run has done is read from its folder."""
    model = near_sighted(SIZES, np.random.default_rng(SEED))
    checkpoint, log = folder / "checkpoint.safetensors", folder / "log.json"
    run = {"recipe": repr(RECIPE), "sizes": repr(SIZES), "text": hashlib.sha256(train.tobytes()).hexdigest()}
    fresh = start(parameters(model), RECIPE.trainings[0])
    state = load_checkpoint(checkpoint, run, fresh) if checkpoint.exists() else fresh
    rows: list[Any] = [row for row in read_json(log)["rows"] if row[0] <= state.step] if state.step else []
    losses: list[float] = []
    began = time.perf_counter() - (rows[-1][-1] if rows else 0.0)
    windows = Windows(train, RECIPE, SIZES.context, SEED)
    for training in RECIPE.trainings:
        for record in fit(PlacedLoss(model), windows, training, state):
            state = record.state
            losses.append(record.loss / float(np.log(2.0)))
            if state.step % LOGGED == 0:
                due = state.step % SCORED == 0 or state.step == RECIPE.steps
                held = bits_per_byte(with_parameters(model, state.trained), held_out) if due else None
                rows.append([state.step, float(np.mean(losses)), held, time.perf_counter() - began])
                print(*rows[-1], flush=True)
                write_json(log, {"rows": rows})
                save_checkpoint(checkpoint, state, run)
                losses = []
    return with_parameters(model, state.trained), rows


def scores(model: Transformer, held_out: Bytes) -> dict[str, float]:
    """Bits per byte of the model and of both baselines on the held-out text; the 5-gram counts each text once."""
    return {
        "this model": bits_per_byte(model, held_out),
        "byte 5-gram": ngram_bits_per_byte(stream(chain.from_iterable(training_texts().values())), held_out),
        "gzip -9": gzip_bits_per_byte(held_out),
    }


def _readme(model: Transformer, held_out: Bytes, rows: list[Any]) -> str:
    stages = "\n".join(f"  - from step {begin:,}: {n} windows of {size} bytes" for begin, n, size in RECIPE.stages)
    settings = "\n".join(f"  - {training}" for training in RECIPE.trainings)
    return f"""# The base model

A byte-level causal transformer with {count(model):,} parameters, stored in float16 and computed in float32. Written
by `python -m lora_np.pretrained.make` from scratch; nothing here was typed by hand.

- sizes: {SIZES}
- training, with seed {SEED}, by these settings one after another, each up to its last step:
{settings}
{stages}
- every window stands at a place of its own in the position table, so all positions are trained from the first step on;
  the table starts as sines and cosines, and every key matrix as its query matrix
- held out: {len(held_out):,} bytes of `pydoc_data.topics` and of the docstrings of the standard library of Python
  {platform.python_version()}: all documents of a topic or source file, chosen by a hash of its name, so that no near
  copy of a held-out docstring is trained on
- digest: `{digest(model)}`

## The text to train on

{_origins_table()}

The texts of the standard library stand in it {TIMES} times each, all others once: what is held out is of their kind. A
comment or a docstring of a package that repeats a held-out text was left out.

## Bits per byte on the held-out text

{_table(("", "bits per byte"), [(name, f"{bits:.3f}") for name, bits in scores(model, held_out).items()])}

The model reads the text in windows of {SIZES.context} bytes and forgets what was before; the 5-gram (interpolated
Witten-Bell) was counted on the same training texts; gzip sees the held-out text alone.
`python -m lora_np.pretrained.make --evaluate` prints the three again; under other versions of Python and of the
packages the text, and so the figures, differ a little.

The same bytes at each place of the context (`--bands`), where the first have little before them to go by:

{_table(("positions", "bits per byte"), _band_rows(model, held_out))}

## What it writes

The most likely continuation of a document that begins so:

{_samples(model)}

## The log

Minutes are of a machine of two cores that was busy with other work.

{_table(("step", "training loss, bits per byte", "held out", "minutes"), [_log_row(*row) for row in rows])}
"""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ("---",) * len(head), *rows])


def _origins_table() -> str:
    licences = {LIBRARY: "PSF-2.0", "its comments": "PSF-2.0"} | PACKAGES
    versions = {name: version(name) if name in PACKAGES else platform.python_version() for name in licences}
    rows = [
        (name, versions[name], licences[name], f"{len(stream(texts)):,}") for name, texts in training_texts().items()
    ]
    return _table(("from", "version", "licence", "bytes"), rows)


def _band_rows(model: Transformer, held_out: Bytes) -> list[tuple[str, ...]]:
    bands = enumerate(bits_by_position(model, held_out, _band()))
    return [(f"{i * _band()}–{(i + 1) * _band() - 1}", f"{bits:.3f}") for i, bits in bands]


def _band() -> int:
    return min(BAND, SIZES.context)


def _samples(model: Transformer) -> str:
    return "\n\n".join(f"```text\n{prompt}{continuation(model, prompt)}\n```" for prompt in PROMPTS)


def _log_row(step: int, loss: float, held: float | None, seconds: float) -> tuple[str, ...]:
    return f"{step:,}", f"{loss:.3f}", "" if held is None else f"{held:.3f}", f"{seconds / 60:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("base-model"))
    parser.add_argument("--evaluate", action="store_true", help="only score the model that ships")
    parser.add_argument("--bands", action="store_true", help="only score the model that ships, by position")
    chosen = parser.parse_args()
    if chosen.evaluate or chosen.bands:
        held_out = stream(parts()[1])
        if chosen.evaluate:
            for name, bits in scores(load_model(), held_out).items():
                print(f"{name:12} {bits:.3f} bits per byte")
        if chosen.bands:
            for place, figure in _band_rows(load_model(), held_out):
                print(f"{place:12} {figure} bits per byte")
    else:
        make(chosen.out)


if __name__ == "__main__":
    main()
