r"""What travels between processes: a function with the arrays that it holds, and plain messages.

A function that is mapped is sent once, and known by its digest from then on. Its arrays stay as they are, each aligned
in one block of bytes that several processes of a machine can look at together. What is mapped over travels each time.

This is pickle, which executes what it reads. It is only ever read from a process that was started here, or from a
cluster that whoever runs this has chosen; files are never read so.
"""

from __future__ import annotations

import hashlib
import mmap
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

ALIGNED = 64  # bytes: a line of the cache, and the widest register


@dataclass(frozen=True, eq=False)
class Parcel:
    """A function as bytes: `parts` are its structure and then each of its arrays, `sizes` their lengths."""

    parts: tuple[memoryview, ...]
    digest: str

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Parcel:
        """Raises TypeError for a function that only this process can know: a lambda, or one inside another."""
        buffers: list[pickle.PickleBuffer] = []
        try:
            head = pickle.dumps(function, protocol=5, buffer_callback=buffers.append)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"what other processes shall do must be a function of a module, or an object of one: {error}; "
                "use the engine threads or inline"
            ) from None
        parts = (memoryview(head), *(buffer.raw() for buffer in buffers))
        digest = hashlib.sha256(repr([part.nbytes for part in parts]).encode())
        for part in parts:
            digest.update(part)
        return cls(parts, digest.hexdigest())

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(part.nbytes for part in self.parts)

    @property
    def nbytes(self) -> int:
        """The length of all pieces together."""
        return sum(size + _padding(size) for size in self.sizes)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The parts with zeros between, so that each begins at a multiple of ALIGNED."""
        for part in self.parts:
            yield part
            yield bytes(_padding(part.nbytes))


def opened(sizes: Sequence[int], block: Any) -> Callable[..., Any]:
    """The function of a parcel whose pieces stand in `block`; its arrays look into it, and cannot be written."""
    view, parts, at = memoryview(block).toreadonly(), [], 0
    for size in sizes:
        parts.append(view[at : at + size])
        at += size + _padding(size)
    return pickle.loads(parts[0], buffers=parts[1:])


def aligned(data: bytes) -> mmap.mmap:
    """The same bytes in memory that begins at a page."""
    block = mmap.mmap(-1, max(1, len(data)))
    block[: len(data)] = data
    return block


def packed(thing: Any) -> bytes:
    """A message. Raises TypeError for what cannot be one."""
    try:
        return pickle.dumps(thing, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"this cannot be sent to another process: {error}") from None


def unpacked(message: bytes) -> Any:
    return pickle.loads(message)


def answer_of(function: Callable[[Any], Any], item: Any) -> bytes:
    """function(item) as a message, or the exception that it raised: see `result_of`."""
    try:
        return packed((True, function(item)))
    except Exception as error:
        try:
            message = packed((False, error))
            unpacked(message)  # some exceptions can be taken apart, and not be put together again
        except Exception:
            message = packed((False, RuntimeError(f"{type(error).__name__}: {error}")))
        return message


def result_of(message: bytes) -> Any:
    """What a function gave back; raises what it raised."""
    held, result = unpacked(message)
    if not held:
        raise result
    return result


def _padding(size: int) -> int:
    return -size % ALIGNED
