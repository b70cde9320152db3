r"""From a file to what a run is about: which of its examples are trained on, which are scored, and how.

read_file      prompts and references, as a method reads them        text_work     adapting to them
read_classes   texts and labels                                      class_work    the same of labels, behind a head
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk.reading import Contents
from .evaluation import Classes, Text
from .method import Method, whole
from .methods.classify import Classify
from .model import Transformer
from .tasks import Example, read_examples, split
from .tasks.labelled import labels_of
from .tokenizers import Tokenizer


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
    validation: str | Path | None = None

    def __post_init__(self) -> None:
        if self.validation is not None:
            object.__setattr__(self, "validation", Path(self.validation))
        whole("batch_size", self.batch_size)
        if self.longest is not None:
            whole("longest", self.longest, least=4)


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
    """Labels are learned behind a head that reads `reads`; without it the mean, or the last of a causal model.

    Raises ValueError for the first of a causal model, which has seen nothing of the text.
    """
    if reads == "first" and base.config.causal:
        raise ValueError("the first token of a causal model has seen nothing of the text: read the last, or the mean")
    train, held_out = read_classes(path, data, base, tokenizer)
    reads = base.config.reads if base.config.classes else reads or ("last" if base.config.causal else "mean")
    return Work(
        *(Classify(method, train.labels, reads), train, held_out, lambda _: held_out.guessed(train)),
        "the commonest label always: accuracy {:.4f}".format,
        held_out.judged,
        str,
    )
