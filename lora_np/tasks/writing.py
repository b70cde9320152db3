r"""Examples as the lines of a file that `lora-np adapt` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .sources import Example


def as_jsonl(examples: Sequence[Example]) -> str:
    """One JSON object a line, with the fields `prompt` and `reference`."""
    pairs = ({"prompt": example.prompt, "reference": example.reference} for example in examples)
    return "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
