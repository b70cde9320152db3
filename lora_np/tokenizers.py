r"""Text to token ids and back: bytes by default.

A tokenizer is anything with the members of `Tokenizer`. `ByteTokenizer` needs no vocabulary file: one
token is one byte of the UTF-8 text, so every text can be written, and bits per token are bits per byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

END = 0  # the NUL byte: it is valid UTF-8, yet no text file carries it, so it costs no extra vocabulary row


class Tokenizer(Protocol):
    r"""What the rest of the package asks of a tokenizer.

    vocab    number of token ids; every id lies in 0..vocab - 1
    end      the id that ends a text, starts a sequence and pads a batch; `encode` never returns it

    classified(first, second, most) are the ids of a text, or of two, as a classifier reads them, and the types of these
    tokens; of more than `most` the end of the longer text is cut.
    """

    @property
    def vocab(self) -> int: ...

    @property
    def end(self) -> int: ...

    def encode(self, text: str, /) -> NDArray[np.int64]: ...

    def decode(self, tokens: ArrayLike, /) -> str: ...

    def classified(
        self, first: str, second: str = "", most: int | None = None, /
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...


@dataclass(frozen=True)
class ByteTokenizer:
    r"""One token per UTF-8 byte; the NUL byte is end-of-text and padding.

    >>> ByteTokenizer().encode("Hé").tolist()
    [72, 195, 169]
    >>> ByteTokenizer().decode([72, 195, 169, 0])
    'Hé'
    """

    vocab: int = field(default=256, init=False)
    end: int = field(default=END, init=False)

    def encode(self, text: str, /) -> NDArray[np.int64]:
        r"""The UTF-8 bytes of `text`, as ids (n,); a text with NUL or a lone surrogate raises ValueError."""
        if "\0" in text:
            raise ValueError(
                f"text must not contain the NUL character, which marks the end of a text; "
                f"found one at character {text.index(chr(END))}: remove it"
            )
        try:
            utf8 = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text must be encodable as UTF-8, got the lone surrogate {text[error.start]!r} "
                f"at character {error.start}: remove it"
            ) from None
        return np.frombuffer(utf8, dtype=np.uint8).astype(np.int64)

    def classified(
        self, first: str, second: str = "", most: int | None = None, /
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        r"""END first END, or END first tab second END; every type is 0."""
        one, two = self.encode(first), self.encode(f"\t{second}" if second else "")
        if most is not None:
            one, two = shortened(one, two, most - 2)
        ids = np.concatenate([[self.end], one, two, [self.end]]).astype(np.int64)
        return ids, np.zeros_like(ids)

    def decode(self, tokens: ArrayLike, /) -> str:
        r"""The text of all `tokens`, END dropped wherever it stands; what is not UTF-8 becomes U+FFFD."""
        ids = np.asarray(tokens)
        if ids.size and ids.dtype.kind not in "iu":
            raise TypeError(f"tokens must be integers, got {ids.dtype}")
        if ids.size and not (0 <= ids.min() and ids.max() < self.vocab):
            raise ValueError(f"tokens must lie in 0..{self.vocab - 1}, got {ids.min()}..{ids.max()}")
        return bytes(ids[ids != self.end].astype(np.uint8)).decode("utf-8", errors="replace")


def shortened(one: NDArray[np.int64], two: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The beginnings of both, together at most so many; what is cut is cut from the longer, until both are as long."""
    least = max(min(len(one), len(two), most // 2), 0)
    left = max(most, 0) - least
    longer = one if len(one) > len(two) else two
    return (one[:left], two[:least]) if longer is one else (one[:least], two[:left])


def begun(tokenizer: Tokenizer, text: str) -> NDArray[np.int64]:
    """The ids of a text that shall go on: as its vocabulary begins a text, where it says so; else behind an end."""
    own = getattr(tokenizer, "begun", None)
    found: NDArray[np.int64] = np.append(tokenizer.end, tokenizer.encode(text)) if own is None else own(text)
    return found


def byte_count(tokenizer: Tokenizer, tokens: NDArray[np.int64]) -> int:
    """How many bytes of text these tokens are, each mark of an end counted as one."""
    if isinstance(tokenizer, ByteTokenizer):
        return len(tokens)
    return len(tokenizer.decode(tokens).encode()) + int((tokens == tokenizer.end).sum())
