r"""Examples in tokens, as one model and one method read them, and what a model makes of them.

Text     prompts and references: bits per byte
Classes  texts and labels: accuracy, Matthews correlation, nats
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .disk.reading import Contents
from .engine.arrays import on_device
from .engine.devices import to_host
from .engine.threads import thread_map
from .method import Method, whole
from .methods.classify import Classify
from .model import Transformer, beside, place_of
from .tasks import Batches, Example, encode, epoch, read_examples, split
from .tasks import Sequence as Tokens
from .tasks.labelled import Labelled, collate_labelled, label_all, labels_of
from .tasks.metrics import accuracy, matthews
from .tokenizers import ByteTokenizer, Tokenizer, byte_count
from .training import evaluate


@dataclass(frozen=True)
class DataConfig:
    """Which examples of a file, and how they become batches. Raises ValueError for a batch of none.

    longest     the most tokens of an example that are read; the context when None
    validation  a file of its own to score on, in place of the part `held_out`
    """

    format: str | None = None
    columns: tuple[Any, ...] | None = None
    prompt_field: str = "prompt"
    reference_field: str = "reference"
    truncate: bool = False
    held_out: float = 0.1
    batch_size: int = 16
    seed: int = 0
    longest: int | None = None
    validation: Path | None = None

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size)
        if self.longest is not None:
            whole("longest", self.longest, least=4)


@dataclass(frozen=True)
class Text:
    """Prompts and references in tokens, as one model and one method read them."""

    sequences: list[Tokens]
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
        longest: int | None = None,
    ) -> Text:
        """The examples with their prompts laid out as the method wants them; without one, as the base reads them."""
        words = tokenizer or ByteTokenizer()
        given = (lambda prompt: method.given(prompt, base.config)) if method else (lambda prompt: prompt)
        most = min(base.config.context, longest or base.config.context)
        sequences = encode(examples, words, most, truncate=truncate, given=given)
        return cls(sequences, words, batch_size, seed)

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def batches(self) -> Batches:
        """Endless shuffled batches, to train on."""
        return Batches(self.sequences, self.batch_size, self.seed, self.tokenizer.end)

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
class Judged:
    """What a classifier came to: the share that is right, (R1) or None where that is 0/0, and its cross-entropy."""

    accuracy: float
    matthews: float | None
    nats: float

    def __str__(self) -> str:
        known = "cannot be said (0/0)" if self.matthews is None else f"{self.matthews:.4f}"
        return f"accuracy {self.accuracy:.4f}, Matthews {known}, {self.nats:.4f} nats an example"


@dataclass(frozen=True)
class Classes:
    """Texts and their labels in tokens, as one model reads them."""

    sequences: list[Labelled]
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    batch_size: int = 16
    seed: int = 0

    @classmethod
    def of(
        cls,
        examples: list[Example],
        labels: tuple[str, ...],
        base: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        batch_size: int = 16,
        seed: int = 0,
        truncate: bool = False,
        longest: int | None = None,
    ) -> Classes:
        words = tokenizer or ByteTokenizer()
        most = min(base.config.context, longest or base.config.context)
        sequences = label_all(examples, labels, words, most, truncate=truncate)
        if base.config.types < 2:  # such a model tells two texts apart by what stands between them
            sequences = [Labelled(s.tokens, np.zeros_like(s.types), s.label) for s in sequences]
        return cls(sequences, labels, words, batch_size, seed)

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def batches(self) -> Batches:
        """Endless shuffled batches, to train on."""
        return Batches(self.sequences, self.batch_size, self.seed, self.tokenizer.end, collate_labelled)

    def judged(self, model: Transformer) -> Judged:
        """Accuracy, Matthews correlation and mean cross-entropy of a model on all of them."""
        batches = list(epoch(self.sequences, self.batch_size, self.tokenizer.end, collate_labelled))
        with thread_map(1 if on_device(place_of(model)) else None) as run:
            logits = run(lambda batch: logits_of(model, batch), batches)
        x, truth = np.concatenate(logits), np.concatenate([batch.targets[:, 0] for batch in batches])
        x = x - x.max(axis=1, keepdims=True)
        nats = np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), truth]
        found = x.argmax(axis=1)
        answers = truth.tolist(), found.tolist()
        return Judged(accuracy(*answers), matthews(*answers), float(nats.mean()))

    def guessed(self, train: Classes) -> float:
        """The accuracy of the label that is the commonest among those to train on, whatever the text."""
        commonest = Counter(s.label for s in train.sequences).most_common(1)[0][0]
        return sum(s.label == commonest for s in self.sequences) / len(self.sequences)


def logits_of(model: Transformer, batch: Any) -> Any:
    """The logits (batch, classes) of a classifier, on the host and in float64."""
    placed = beside(model, batch)
    logits = model(placed.tokens, placed.mask, types=placed.types)
    return np.asarray(to_host(logits), np.float64)[:, 0]


def classified(model: Transformer, prompt: str, tokenizer: Tokenizer) -> str:
    """The label that a classifier finds the likeliest, and the probability of each, the largest first."""
    labels = model.config.labels or tuple(map(str, range(model.config.classes)))
    of_prompt = Classes.of([Example(prompt, labels[0])], labels, model, tokenizer)
    x = logits_of(model, collate_labelled(of_prompt.sequences, tokenizer.end))[0]
    p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    found = sorted(zip(p, labels, strict=True), reverse=True)
    return f"{found[0][1]}\n" + "\n".join(f"    {label}: {share:.4f}" for share, label in found)


def read_file(
    path: str | Path | Contents, data: DataConfig, base: Transformer, method: Method, tokenizer: Tokenizer | None = None
) -> tuple[Text, Text, Text]:
    """The examples to train on and the held-out ones, as the method reads them, and the latter as the base does.

    Raises ValueError or OSError in one line for a bad file.
    """
    window = base.config.context - method.positions - 1

    def text(part: list[Example], method: Method | None) -> Text:
        return Text.of(part, base, method, tokenizer, **_about(data))

    examples = _read(path, data, window)
    text(examples, method)  # so that an error counts the file's own examples
    if data.validation is None:
        train, held_out = split(examples, data.held_out, data.seed)
    else:
        train, held_out = examples, _read(data.validation, data, window)
    return text(train, method), text(held_out, method), text(held_out, None)


def read_classes(
    path: str | Path | Contents, data: DataConfig, base: Transformer, tokenizer: Tokenizer | None = None
) -> tuple[Classes, Classes]:
    """The texts to train on and the held-out ones, their labels those of the base if it has any, else of the file.

    Raises ValueError or OSError in one line for a bad file, and for a label that is not known.
    """
    known = base.config.labels

    def classes(part: list[Example], labels: tuple[str, ...]) -> Classes:
        return Classes.of(part, labels, base, tokenizer, **_about(data))

    examples = _read(path, data)
    labels = known or labels_of(examples)
    whole = classes(examples, labels)  # so that an error counts the file's own examples
    if data.validation is None:
        train, held_out = split(examples, data.held_out, data.seed)
        return classes(train, labels), classes(held_out, labels)
    try:
        return whole, classes(_read(data.validation, data), labels)
    except ValueError as error:
        raise ValueError(f"{data.validation}: {str(error).removeprefix(f'{data.validation}: ')}") from None


def _read(path: str | Path | Contents, data: DataConfig, window: int | None = None) -> list[Example]:
    fields = {"prompt_field": data.prompt_field, "reference_field": data.reference_field}
    return read_examples(path, data.format, columns=data.columns, window=window, **fields)


def _about(data: DataConfig) -> Any:
    about = {"batch_size": data.batch_size, "seed": data.seed}
    return {**about, "truncate": data.truncate, "longest": data.longest}


@dataclass(frozen=True)
class Work:
    """What adapting to a file is about: what is trained on, how a model is scored, and how that is said.

    method  as it is applied: of a classification, with its head       before   a score that needs no training, and
    score   of an adapted model: bits per byte, or Judged                       in words, `plainly`, what it is
    """

    method: Method
    train: Text | Classes
    held_out: Text | Classes
    before: Callable[[Transformer], float]
    plainly: Callable[[float], str]
    score: Callable[[Transformer], Any]
    said: Callable[[Any], str]


def text_work(path: Contents, data: DataConfig, base: Transformer, method: Method, tokenizer: Tokenizer | None) -> Work:
    """References are learned, and scored in bits per byte."""
    train, held_out, plain = read_file(path, data, base, method, tokenizer)
    return Work(
        *(method, train, held_out, plain.bits_per_byte, lambda bits: f"base: {plain.in_words(bits)}"),
        *(held_out.bits_per_byte, held_out.in_words),
    )


def class_work(
    path: Contents, data: DataConfig, base: Transformer, method: Method, tokenizer: Tokenizer | None, reads: str | None
) -> Work:
    """Labels are learned behind a head that reads `reads`; without it the mean, or the last of a causal model."""
    train, held_out = read_classes(path, data, base, tokenizer)
    reads = base.config.reads if base.config.classes else reads or ("last" if base.config.causal else "mean")
    return Work(
        *(Classify(method, train.labels, reads), train, held_out, lambda _: held_out.guessed(train)),
        "the commonest label always: accuracy {:.4f}".format,
        held_out.judged,
        str,
    )
