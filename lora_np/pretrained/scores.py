r"""How good a base is: bits per byte of a held-out text, the same by position, and what it writes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..engine.threads import thread_map
from ..generation import generate
from ..model import Transformer
from ..tasks import Batch
from ..tokenizers import ByteTokenizer
from ..training import evaluate

Bytes = npt.NDArray[np.uint8]

BAND = 64  # positions
PROMPTS = ("This module ", "Return the ", "If the file ")


def bits_per_byte(model: Transformer, text: Bytes) -> float:
    """Mean cost of each byte after the first, read in windows of the whole context that know nothing before them."""
    context = model.config.context
    windows = [text[begin : begin + context + 1].astype(np.int64)[None] for begin in range(0, len(text) - 1, context)]
    weights = [np.full((1, window.size - 1), 1.0 / (window.size - 1), np.float32) for window in windows]
    batches = [Batch(w[:, :-1], w[:, 1:], weight) for w, weight in zip(windows, weights, strict=True)]
    return evaluate(model, batches) / float(np.log(2.0))


def bits_by_position(model: Transformer, text: Bytes, band: int = BAND) -> list[float]:
    """Mean cost of a byte at each band of positions. Windows start at every multiple of `band`, so that all bands are
    charged for the same bytes, but for a context at both ends of the text."""
    context = model.config.context
    begins = range(0, len(text) - context, band)

    def bits(begin: int) -> npt.NDArray[np.float64]:
        window = text[begin : begin + context + 1].astype(np.int64)
        logits = model(window[None, :-1])[0].astype(np.float64)
        below = logits - logits.max(axis=1, keepdims=True)
        nats = np.log(np.exp(below).sum(axis=1)) - below[np.arange(context), window[1:]]
        return nats.reshape(-1, band).mean(axis=1) / np.log(2.0)

    with thread_map() as run:
        return [float(mean) for mean in np.mean(run(bits, begins), axis=0)]


def continuation(model: Transformer, prompt: str, most: int = 300) -> str:
    """What the model finds most likely to follow a document that begins so, up to its end."""
    tokenizer = ByteTokenizer()
    read = np.concatenate([[tokenizer.end], tokenizer.encode(prompt)])
    return tokenizer.decode(list(generate(model, read, most, end=tokenizer.end)))
