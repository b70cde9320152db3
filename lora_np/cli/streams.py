r"""What reaches the outside: streams whose loss costs no work, and lines that no file can make long or dangerous."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

LONGEST = 500  # characters of a line on stderr
KEPT_AT_THE_END = 140  # of them: what to do about it stands last


class Steady(io.FileIO):
    """A stream that takes everything: once it is full, closed or without a reader, what is written is let go."""

    failed: OSError | None = None

    def write(self, data: Any, /) -> int:
        while self.failed is None:
            try:
                if (written := super().write(data)) is not None:
                    return written
                select.select([], [self], [])  # it is full for the moment only
            except OSError as error:
                self.failed = error
        return len(memoryview(data).cast("B"))


def open_closed() -> None:
    """Give 0, 1 and 2 back to what is nowhere, where they are closed: else the next file would be stdout, say."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def steady(stream: TextIO | None, number: int) -> TextIO:
    """The same stream, on whose loss the work goes on; what its encoding lacks becomes a question mark.

    number  where it leads when Python, which found it closed, made none of it
    """
    buffer = getattr(stream, "buffer", None)
    if stream is not None and not isinstance(getattr(buffer, "raw", buffer), io.FileIO):  # a console of Windows
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        return stream
    if stream is not None:
        stream.flush()
        number = stream.fileno()
    encoding, at_once = getattr(stream, "encoding", "utf-8"), getattr(stream, "line_buffering", number == 2)
    raw = io.BufferedWriter(Steady(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, errors="replace", line_buffering=at_once)


def lost() -> str | None:
    """Why findings did not reach stdout, if they did not; that its reader had enough is no reason."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failed = raw.failed if isinstance(raw, Steady) else None
    return None if failed is None or failed.errno == errno.EPIPE else f"stdout: {failed.strerror}"


def one_line(text: str) -> str:
    """The text in one line of at most LONGEST characters, with every control character escaped."""
    ends = text if len(text) <= 2 * LONGEST else f"{text[:LONGEST]} ... {text[-LONGEST:]}"
    line = printable(" ".join(ends.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - KEPT_AT_THE_END - 5]} ... {line[-KEPT_AT_THE_END:]}"


def printable(text: str, kept: str = "") -> str:
    r"""The text with what a terminal would obey, or could not show, escaped: ESC becomes \x1b."""
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)
