r"""What all readers share: an example, the text of a file, and complaints that name its line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..disk.reading import Contents

Pairs = Iterator[tuple[int, str, str]]  # line number from 1, prompt, reference
PAIR = "\t"  # stands between the two texts of a prompt that has two


@dataclass(frozen=True)
class Example:
    r"""A prompt and the text that should follow it; plain text has the prompt "".

    Of a prompt that is two texts, a premise and a hypothesis, say, a tab stands between them.
    """

    prompt: str
    reference: str


@dataclass(frozen=True)
class Source:
    """The text of a file."""

    path: Path
    text: str

    @classmethod
    def of(cls, contents: Contents) -> Source:
        """What was read, as UTF-8 text without NUL; raises ValueError that names the line."""
        path, data = contents.path, contents.data
        if not data:
            raise ValueError(f"{path}: the file is empty")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {_line_of(data, error.start)}: the file must be UTF-8 text, got byte "
                f"0x{data[error.start]:02x} at offset {error.start}: save it as UTF-8"
            ) from None
        if b"\0" in data:
            offset = data.index(b"\0")
            raise ValueError(
                f"{path}, line {_line_of(data, offset)}: text must not contain NUL, found one at offset {offset}"
            )
        return cls(path, text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"))  # a byte order mark is not text

    def error(self, line: int, message: str) -> ValueError:
        return ValueError(f"{self.path}, line {line}: {message}")

    def lines(self) -> Iterator[tuple[int, str]]:
        # Only "\n" ends a line: str.splitlines would also cut at form feeds and U+2028, which stand in texts.
        for number, line in enumerate(self.text.split("\n"), 1):
            if line.strip():
                yield number, line.removesuffix("\r")

    def first(self) -> str:
        """The first line that is not blank; empty where there is none."""
        return next(self.lines(), (0, ""))[1]


def _line_of(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1
