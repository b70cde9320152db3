r"""What is said of a text that a model wrote: which facts of its prompt are in it, and which are not."""

from __future__ import annotations

from collections import Counter

from ..names import PRESETS
from ..tasks import Example

WORDS = {
    "LoRA": "LoRA leaves a trained matrix W₀ as it is and learns a thin B and a flat A beside it, so that W₀x becomes "
    "W₀x + s·BAx; only A and B are trained and stored.",
    "bits": "Bits per byte say how much a text surprises a model, byte by byte: 8 for one that knows nothing of it and "
    "finds all 256 bytes equally likely, 0 for one that knows it by heart.",
}
PARTS = {"query": "queries", "key": "keys", "value": "values", "output": "outputs"}


def words(targets: str) -> list[str]:
    """Three sentences for somebody who reads of it for the first time: LoRA, the maps that are adapted, bits a byte."""
    parts = [PARTS.get(path.rpartition(".")[2], path) for path in PRESETS[targets]]
    listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    about = f"“{targets}” are the maps of every layer that have an adapter here, those to the {listed}"
    paper = ", the two that the paper adapts" if targets == "qv" else ""
    return [WORDS["LoRA"], f"{about}{paper}.", WORDS["bits"]]


def facts(prompt: str) -> dict[str, str]:
    """The slots of a prompt, `object : tea caddy | town : Riga`, and what stands in each."""
    slots = (part.partition(" : ") for part in prompt.split("|"))
    return {name.strip(): value.strip() for name, mark, value in slots if mark}


def remark(written: str, example: Example) -> str:
    """One sentence about a text that was written for a prompt, from nothing but the two.

    What is missing is named; what is another text of the same facts is told from a mistake.
    """
    if not written.strip():
        return (
            "Nothing: the likeliest first byte is the one that ends a text, which is what a model writes that was "
            "never shown what belongs behind such a prompt."
        )
    if (circle := _repeated(written)) is not None:
        phrase, times = circle
        return f"It goes round in a circle: “{phrase}” stands in it {times} times. {_compared(written, example)}"
    return _compared(written, example)


def _repeated(written: str, length: int = 3, often: int = 3) -> tuple[str, int] | None:
    """The words, so many in a row, that a text says again and again, and how often; None where it does not."""
    said = written.split()
    rows = Counter(" ".join(said[i : i + length]) for i in range(len(said) - length + 1))
    phrase, times = max(rows.items(), key=lambda row: row[1], default=("", 0))
    return (phrase, times) if times >= often else None


def _compared(written: str, example: Example) -> str:
    asked = facts(example.prompt)
    missing = {name: value for name, value in asked.items() if value not in written}
    if written.strip() == example.reference.strip():
        return "It is the reference, to the letter."
    if not asked:
        return "It is another text than the reference."
    if not missing:
        return f"All {len(asked)} facts of the prompt are in it; the sentence is another than that of the reference."
    named = ", ".join(f"{name} ({value})" for name, value in missing.items())
    if len(missing) == len(asked):
        return f"Not one of the {len(asked)} facts of the prompt is in it: {named}."
    verb = "is" if len(missing) == 1 else "are"
    return f"Of the {len(asked)} facts of the prompt {len(missing)} {verb} not in it as given: {named}."
