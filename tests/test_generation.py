"""The laws of `generation`: the cache and the merge change no token, and it stops where it must."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import adapted, hashes, model, moved, rescaled

from lora_np.generation import generate, sample
from lora_np.model import Transformer
from lora_np.parameters import parameters, with_parameters
from lora_np.wrappers import merge, unwrapped

CONTEXT = 20
PRECISIONS = [np.float64, np.float32]
in_both_precisions = pytest.mark.parametrize("dtype", PRECISIONS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def base_of(dtype: Any = np.float64) -> Transformer:
    """Most models fall into repeating a token; this one writes six to nine different ones after a short prompt."""
    return model(2, dtype, context=CONTEXT, tied=False)


def prompt_of(length: int = 4, seed: int = 0) -> Any:
    return rng(seed).integers(0, 11, length)


def greedy(node: Transformer, prompt: Any, most: int = CONTEXT, **settings: Any) -> list[int]:
    return list(generate(node, prompt, most, **settings))


def last_logits(node: Transformer, tokens: Any) -> Any:
    """Of the whole sequence, read anew."""
    return node(np.asarray(tokens)[None])[0, -1]


def slowly(node: Transformer, prompt: Any, most: int) -> list[int]:
    """Greedy generation without a cache: the whole sequence is read for every token, while the context holds it."""
    tokens = [int(token) for token in prompt]
    while len(tokens) - len(prompt) < most and len(tokens) <= node.config.context:
        tokens.append(int(last_logits(node, tokens).argmax()))
    return tokens[len(prompt) :]


def assert_same_text(
    one: Transformer, other: Transformer, prompt: Any, ones: list[int], others: list[int], close: float
) -> bool:
    """Token for token the same, up to where the two best logits are closer than the logits of the models are, and
    those are closer than `close`. True when the texts are the same to their ends."""
    assert len(ones) == len(others)
    for i, (a, b) in enumerate(zip(ones, others, strict=True)):
        logits = [last_logits(node, [*prompt, *ones[:i]]) for node in (one, other)]
        gap = abs(logits[0] - logits[1]).max()
        assert gap <= close, f"logits {gap} apart at token {i}"
        if a != b:
            assert logits[0][a] - logits[0][b] <= 2 * gap, f"{a} and {b} at token {i}, without a tie"
            return False
    return True


# logits of size 3 in the precisions; measured over the prompts below: 4e-15 and 3e-6 apart
CLOSE = {np.float64: 1e-13, np.float32: 5e-5}
PROMPTS = [prompt_of(length, seed) for seed, length in enumerate((1, 2, 3, 5, 8, 13, 18, 19))]


# ------------------------------------------------------------------------------------- the cache, and the merge


@in_both_precisions
def test_generation_with_the_cache_is_generation_without(dtype: Any) -> None:
    for node in (base_of(dtype), moved(adapted(base_of(dtype)))):
        same = [
            assert_same_text(node, node, prompt, greedy(node, prompt), slowly(node, prompt, CONTEXT), CLOSE[dtype])
            for prompt in PROMPTS
        ]
        assert all(same)  # no tie among these


@in_both_precisions
def test_merged_generation_is_adapted_generation_token_for_token(dtype: Any) -> None:
    lora = moved(adapted(base_of(dtype), targets="all-linear"))
    merged, base = merge(lora), unwrapped(lora)
    texts = [(greedy(lora, prompt), greedy(merged, prompt), greedy(base, prompt)) for prompt in PROMPTS]
    assert sum(ones != bases for ones, _, bases in texts) >= len(PROMPTS) - 1  # contrast: the adapter writes otherwise
    same = [
        assert_same_text(lora, merged, prompt, ones, others, CLOSE[dtype])
        for prompt, (ones, others, _) in zip(PROMPTS, texts, strict=True)
    ]
    assert all(same)  # no tie among these


@pytest.mark.parametrize("fault", ["the base", "a wrong scale", "another order"])
def test_the_comparison_of_texts_catches(fault: str) -> None:
    lora = moved(adapted(base_of(), targets="all-linear"))
    other = {"the base": unwrapped(lora), "a wrong scale": merge(rescaled(lora, 1.001)), "another order": lora}[fault]
    ones = greedy(lora, PROMPTS[2])
    others = ones[::-1] if fault == "another order" else greedy(other, PROMPTS[2])
    with pytest.raises(AssertionError, match=r"apart at token|without a tie"):
        assert_same_text(lora, other, PROMPTS[2], ones, others, CLOSE[np.float64])


def test_every_token_costs_one_position(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    right = Transformer.__call__

    def counted(node: Transformer, tokens: Any, *rest: Any, **settings: Any) -> Any:
        read.append(tokens.size)
        return right(node, tokens, *rest, **settings)

    monkeypatch.setattr(Transformer, "__call__", counted)
    greedy(base_of(), prompt_of(5), 6)
    assert read == [5, 1, 1, 1, 1, 1]  # and nothing is read after the last token


def test_generation_changes_no_array() -> None:
    node = base_of()
    before, prompt = hashes(parameters(node)), prompt_of()
    given = prompt.copy()
    assert greedy(node, prompt) == greedy(node, prompt)
    assert hashes(parameters(node)) == before
    assert np.array_equal(prompt, given)


def test_two_generations_side_by_side_do_not_share_a_cache() -> None:
    node = base_of()
    one, other = generate(node, PROMPTS[2], 8), generate(node, PROMPTS[4], 8)
    pairs = list(zip(one, other, strict=True))
    assert [a for a, _ in pairs] == greedy(node, PROMPTS[2], 8)
    assert [b for _, b in pairs] == greedy(node, PROMPTS[4], 8)


def test_of_equal_logits_the_first_token_is_taken() -> None:
    node = base_of()
    flat = with_parameters(node, {"head.W": 0 * parameters(node)["head.W"]})
    assert greedy(flat, prompt_of(), 3) == [0, 0, 0]


# ---------------------------------------------------------------------------------------------- where it stops


@pytest.mark.parametrize("most", [0, 1, 2, 7])
def test_there_are_as_many_tokens_as_were_asked_for(most: int) -> None:
    whole = greedy(base_of(), prompt_of())
    assert greedy(base_of(), prompt_of(), most) == whole[:most]
    assert len(whole[:most]) == most


@pytest.mark.parametrize("length", [1, 2, CONTEXT - 1, CONTEXT])
def test_a_full_context_ends_it_after_the_token_that_a_full_context_predicts(length: int) -> None:
    """The last token is predicted from `context` tokens, and need not be read itself."""
    text = greedy(base_of(), prompt_of(length), 10 * CONTEXT)
    assert len(text) == CONTEXT + 1 - length
    assert text == slowly(base_of(), prompt_of(length), 10 * CONTEXT)


def test_a_prompt_of_the_whole_context_has_exactly_one_token_after_it() -> None:
    prompt = prompt_of(CONTEXT)
    assert greedy(base_of(), prompt) == [last_logits(base_of(), prompt).argmax()]


@pytest.mark.parametrize("room", [-1, 0, 1])
def test_asking_for_what_just_fits_or_one_more_or_less_is_served(room: int) -> None:
    prompt = prompt_of(15)
    assert len(greedy(base_of(), prompt, 6 + room)) == min(6, 6 + room)


def test_it_stops_before_the_end_token_wherever_that_comes_first() -> None:
    whole = greedy(base_of(), PROMPTS[1])
    assert len(set(whole)) > 3
    for end in set(whole):
        assert greedy(base_of(), PROMPTS[1], end=end) == whole[: whole.index(end)]
    (never, *_) = set(range(11)) - set(whole)
    assert greedy(base_of(), PROMPTS[1], end=never) == whole


def test_an_end_token_in_the_prompt_does_not_stop_it() -> None:
    prompt = prompt_of(6)
    whole = greedy(base_of(), prompt)
    end = next(int(token) for token in prompt if token not in whole)
    assert greedy(base_of(), prompt, end=end) == whole


# ------------------------------------------------------------------------------------------------------- sampling


LOGITS = np.array([1.0, 0.5, 0.2, 0.0, -0.8, 0.9])
DRAWS = 20_000


def softmax(logits: Any) -> Any:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def assert_drawn_from(probabilities: Any, drawn: list[int]) -> None:
    """Pearson's χ² with d degrees of freedom is below d + 2√(dx) + 2x but with probability e⁻ˣ (Laurent and Massart
    2000, Annals of Statistics 28(5), lemma 1); x = 14 is one in a million. The smallest expected count here is 500."""
    expected = probabilities * len(drawn)
    assert expected.min() >= 500
    counts = np.bincount(drawn, minlength=len(probabilities))
    d, x = len(probabilities) - 1, 14.0
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 <= d + 2 * math.sqrt(d * x) + 2 * x, f"χ² is {chi2}"


def draws(temperature: float, seed: int = 0) -> list[int]:
    generator = rng(seed)
    return [sample(LOGITS, temperature, generator) for _ in range(DRAWS)]


@pytest.mark.parametrize("temperature", [0.8, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_softmax_says(temperature: float) -> None:
    drawn = draws(temperature)
    probabilities = softmax(LOGITS / temperature)
    for wrong in (softmax(LOGITS / (1.5 * temperature)), probabilities[::-1]):  # contrast
        with pytest.raises(AssertionError, match="χ²"):
            assert_drawn_from(wrong, drawn)
    assert_drawn_from(probabilities, drawn)


def test_at_a_high_temperature_every_token_is_as_likely() -> None:
    assert_drawn_from(np.full(6, 1 / 6), draws(1e9))


def test_generation_draws_each_token_from_the_logits_of_the_sequence_so_far() -> None:
    node, prompt = base_of(), prompt_of()
    for seed in range(5):
        text, generator = greedy(node, prompt, 10, temperature=1.3, rng=rng(seed)), rng(seed)
        tokens = [*prompt]
        for token in text:
            assert token == sample(last_logits(node, tokens), 1.3, generator)
            tokens.append(token)
        assert len(text) == 10


def test_the_same_generator_draws_the_same_text_and_another_another() -> None:
    one, same, other = (greedy(base_of(), prompt_of(), temperature=1.0, rng=rng(seed)) for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_the_end_token_stops_sampling_as_well() -> None:
    whole = greedy(base_of(), prompt_of(), temperature=1.0, rng=rng())
    end = whole[5]
    assert greedy(base_of(), prompt_of(), temperature=1.0, rng=rng(), end=end) == whole[: whole.index(end)]


SMALLEST = 5e-324  # of the positive numbers


@pytest.mark.parametrize("temperature", [1e-3, 1e-9, 1e-300, SMALLEST])
def test_towards_temperature_zero_sampling_becomes_greedy(temperature: float) -> None:
    hot = greedy(base_of(), prompt_of(), temperature=1.0, rng=rng())
    assert hot != greedy(base_of(), prompt_of())  # contrast
    assert greedy(base_of(), prompt_of(), temperature=temperature, rng=rng()) == greedy(base_of(), prompt_of())


def test_logits_of_ten_thousand_and_float32_logits_can_be_sampled() -> None:
    for dtype in PRECISIONS:
        assert sample(np.array([0.0, 1e4, -1e4], dtype), 1.0, rng()) == 1
        assert {sample(np.full(3, 1e4, dtype), 1.0, rng(seed)) for seed in range(30)} == {0, 1, 2}


# ----------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("temperature", [-1.0, -1e-9, math.nan, math.inf])
def test_a_temperature_below_zero_or_not_finite_raises(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be a number of at least 0, got {temperature!r}"):
        greedy(base_of(), prompt_of(), temperature=temperature, rng=rng())


def test_sampling_without_a_generator_raises() -> None:
    uses: list[Callable[[], Any]] = [
        lambda: greedy(base_of(), prompt_of(), temperature=1.0),
        lambda: sample(LOGITS, 1.0, None),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"a temperature above 0 draws tokens: pass rng"):
            use()


def test_a_prompt_longer_than_the_context_raises_and_says_both() -> None:
    with pytest.raises(ValueError, match=f"the context holds {CONTEXT} tokens, got a sequence of {CONTEXT + 1}"):
        greedy(base_of(), prompt_of(CONTEXT + 1))


def test_an_empty_prompt_raises() -> None:
    with pytest.raises(ValueError, match="empty"):
        greedy(base_of(), np.empty(0, np.int64))


def test_a_token_outside_the_vocabulary_raises() -> None:
    with pytest.raises(ValueError, match=r"token ids must lie in 0\.\.10, got 11"):
        greedy(base_of(), np.array([1, 11]))
