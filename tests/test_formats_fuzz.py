r"""A short run of tests/fuzz_formats.py; a longer one is a command of its own, whose counts are in its output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fuzz_formats import fuzz, readers

import lora_np.formats.pickles as pickles
import lora_np.formats.tensors as tensors
import lora_np.formats.zipped as zipped


def test_mutated_files_are_read_or_refused_with_one_line_and_nothing_else_happens(tmp_path: Path) -> None:
    outcomes = fuzz(1200, seed=20, keep=tmp_path)
    assert set(outcomes) == set(readers())
    for name, counts in outcomes.items():
        assert counts["read"] > 0, name  # some mutants are harmless, so the readers are not refusing everything
        assert counts["refused"] > (0 if name == "tokenizer" else counts["read"]), name  # a token may be any text


PLANTED: dict[str, Any] = {
    "numbers are believed": (tensors, "_whole", lambda value: True),
    "a stack may be empty": (pickles.Machine, "pop", lambda self: self.stack.pop()),
    "a pickle may end anywhere": (pickles.Machine, "take", lambda self, n: self.data[self.at : self.at + n]),
    "messages are spelled out": (tensors, "shown", lambda value, *_, **__: f"{value}\n"),
    "a directory is believed": (zipped, "_first_byte", lambda file, name, offset: offset),
}


@pytest.mark.parametrize(("where", "name", "fault"), PLANTED.values(), ids=PLANTED)
def test_a_reader_that_trusts_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fault: Any
) -> None:
    monkeypatch.setattr(where, name, fault)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the fault leads to
        fuzz(1200, seed=20, keep=tmp_path)
