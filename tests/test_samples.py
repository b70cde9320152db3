"""What the report says of a text that a model wrote follows from the prompt and the text alone."""

from __future__ import annotations

import pytest

from lora_np.names import PRESETS
from lora_np.paper.samples import facts, remark, words
from lora_np.tasks import Example

EXAMPLE = Example(
    "object : tea caddy | material : tin | town : Riga | year : 1747",
    "In 1747 somebody in Riga made a tea caddy of tin.",
)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "Nothing: the likeliest first byte is the one that ends a text"),
        (" \n", "Nothing: "),
        (EXAMPLE.reference, "It is the reference, to the letter."),
        ("From Riga comes a tea caddy of tin, dated 1747.", "All 4 facts of the prompt are in it; the sentence is"),
        (
            "From Riga comes a tea caddy of tin, dated 1774.",
            "Of the 4 facts of the prompt 1 is not in it as given: year (",
        ),
        ("A caddy of tin.", "Of the 4 facts of the prompt 3 are not in it as given: object (tea caddy), town (Riga), "),
        ("The ship.", "Not one of the 4 facts of the prompt is in it: object (tea caddy), "),
        ("A tin of tin of tin of tin of tin.", "It goes round in a circle: “tin of tin” stands in it 3 times. Of the"),
    ],
)
def test_a_text_is_told_from_the_reference_and_what_is_missing_is_named(written: str, said: str) -> None:
    assert remark(written, EXAMPLE).startswith(said)


def test_a_prompt_without_facts_is_compared_with_its_reference_alone() -> None:
    assert facts("no colon") == {}
    assert remark("another", Example("no colon", "this")) == "It is another text than the reference."
    assert remark("this ", Example("no colon", "this")) == "It is the reference, to the letter."


@pytest.mark.parametrize("targets", PRESETS)
def test_three_sentences_say_what_is_read_of(targets: str) -> None:
    lora, where, bits = words(targets)
    assert "W₀x + s·BAx" in lora
    assert where.startswith(f"“{targets}” are the maps")
    assert ("the paper adapts" in where) == (targets == "qv")
    assert "Bits per byte" in bits
