r"""Examples in tokens, as one model and one method read them, and what a model makes of them.

Text     prompts and references: bits per byte
Classes  texts and labels: accuracy, Matthews correlation, nats
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .engine.arrays import on_device
from .engine.devices import to_host
from .engine.threads import thread_map
from .method import Method
from .model import Transformer, beside, place_of
from .tasks import Batches, Example, encode, epoch
from .tasks import Sequence as Tokens
from .tasks.labelled import Labelled, collate_labelled, label_all
from .tasks.metrics import accuracy, matthews
from .tokenizers import ByteTokenizer, Tokenizer, byte_count
from .training import evaluate


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
    labels = model.config.class_names
    of_prompt = Classes.of([Example(prompt, labels[0])], labels, model, tokenizer)
    x = logits_of(model, collate_labelled(of_prompt.sequences, tokenizer.end))[0]
    p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    found = sorted(zip(p, labels, strict=True), reverse=True)
    return f"{found[0][1]}\n" + "\n".join(f"    {label}: {share:.4f}" for share, label in found)
