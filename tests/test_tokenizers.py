import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.tokenizers import END, ByteTokenizer, Tokenizer

tokenizer: Tokenizer = ByteTokenizer()
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(texts)
def test_every_text_without_nul_survives_the_round_trip(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts)
def test_tokens_are_the_utf8_bytes_and_never_end(text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int64
    assert bytes(tokens.tolist()) == text.encode()
    assert END not in tokens


@given(st.lists(st.integers(0, 255)))
def test_every_sequence_of_tokens_decodes(tokens: list[int]) -> None:
    expected = bytes(token for token in tokens if token != END).decode(errors="replace")
    assert tokenizer.decode(np.array(tokens, dtype=np.int64)) == expected


def test_end_is_dropped_wherever_it_stands() -> None:
    assert tokenizer.decode([END, 72, END, 105, END, END]) == "Hi"
    assert tokenizer.decode([]) == ""


def test_half_a_character_decodes_to_the_replacement_character() -> None:
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\N{REPLACEMENT CHARACTER}"


def test_the_tokens_can_be_written_to() -> None:
    tokens = tokenizer.encode("a")
    tokens[0] = 98
    assert tokenizer.decode(tokens) == "b"


def test_there_are_256_tokens_and_the_first_is_end() -> None:
    assert (tokenizer.vocab, tokenizer.end) == (256, 0)


def test_nul_in_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must not contain the NUL character.*found one at character 2"):
        tokenizer.encode("ab\0c")


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at character 1"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("tokens", [[-1], [3, 256]])
def test_tokens_outside_the_vocabulary_are_refused(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match=r"tokens must lie in 0\.\.255"):
        tokenizer.decode(tokens)


def test_tokens_that_are_not_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="tokens must be integers, got float64"):
        tokenizer.decode([72.0])
