import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.tasks import Example, bits_per_byte_floor, entropy_bits, generate
from lora_np.tasks.generated import FIELDS, MATERIALS, OBJECTS, TEMPLATES, TOWNS, YEARS

K = len(TEMPLATES)


def test_the_documented_example_is_the_one_drawn() -> None:
    (example,) = generate(1, np.random.default_rng(0))
    assert example.prompt == "object : tea caddy | material : pear wood | town : Perth | year : 1717"


@given(st.integers(0, 2**32))
def test_the_same_seed_draws_the_same_examples(seed: int) -> None:
    assert generate(5, np.random.default_rng(seed)) == generate(5, np.random.default_rng(seed))


def test_prompts_and_references_fit_a_small_context() -> None:
    longest = [max(map(len, values)) for values in (OBJECTS, MATERIALS, TOWNS)] + [len(str(YEARS[0]))]
    facts = {name: "x" * size for name, size in zip(FIELDS, longest, strict=True)}
    assert len(" | ".join(f"{name} : {value}" for name, value in facts.items())) <= 90
    assert max(len(template.format(**facts)) for template in TEMPLATES) <= 130
    assert all(value.isascii() for values in (OBJECTS, MATERIALS, TOWNS) for value in values)


def test_a_value_says_itself_once_and_needs_no_an() -> None:
    for values in (OBJECTS, MATERIALS, TOWNS):
        assert len(set(values)) == len(values) == 16
    assert not any(thing[0] in "aeiou" for thing in OBJECTS)


def test_the_first_byte_of_a_reference_tells_its_template() -> None:
    assert len({template[0] for template in TEMPLATES}) == K
    assert not any(template.startswith("{") for template in TEMPLATES)


def test_every_template_states_every_fact() -> None:
    for template in TEMPLATES:
        assert all(template.count(f"{{{name}}}") == 1 for name in FIELDS)


def test_templates_and_facts_are_drawn_uniformly() -> None:
    n = 8000
    examples = generate(n, np.random.default_rng(0))
    starts = Counter(example.reference[0] for example in examples)
    towns = Counter(example.prompt.split(" | ")[2] for example in examples)
    for counts, kinds in ((starts, K), (towns, len(TOWNS))):
        assert len(counts) == kinds
        spread = math.sqrt(n / kinds * (1 - 1 / kinds))
        assert all(abs(count - n / kinds) < 5 * spread for count in counts.values())


@given(st.integers(0, 2**32))
def test_the_entropy_is_the_logarithm_of_the_number_of_templates(seed: int) -> None:
    assert {entropy_bits(example) for example in generate(5, np.random.default_rng(seed))} == {math.log2(K)}


def test_probabilities_of_all_references_to_a_prompt_sum_to_one() -> None:
    (example,) = generate(1, np.random.default_rng(1))
    facts = dict(part.split(" : ") for part in example.prompt.split(" | "))
    references = {template.format(**facts) for template in TEMPLATES}
    total = sum(2 ** -entropy_bits(Example(example.prompt, reference)) for reference in references)
    assert total == pytest.approx(1, abs=1e-12)


def test_templates_that_coincide_share_their_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_np.tasks.generated.TEMPLATES", ("The {object}.", "The {object}.", "A {object}!"))
    prompt = "object : kite reel | material : tin | town : Bath | year : 1700"
    assert entropy_bits(Example(prompt, "The kite reel.")) == pytest.approx(math.log2(3 / 2))


def test_the_floor_is_total_entropy_over_reference_bytes_and_ends() -> None:
    examples = generate(100, np.random.default_rng(2))
    n_bytes = sum(len(example.reference.encode()) + 1 for example in examples)
    assert bits_per_byte_floor(examples) == pytest.approx(100 * math.log2(K) / n_bytes, rel=1e-12)


def test_no_other_guess_at_the_templates_beats_the_floor_on_average() -> None:
    guess = np.random.default_rng(3).dirichlet(np.ones(K), size=100)
    assert ((-np.log2(guess)).mean(axis=1) >= math.log2(K)).all()  # cross-entropy of the uniform truth


def test_a_reference_or_prompt_of_another_task_is_refused() -> None:
    (example,) = generate(1, np.random.default_rng(4))
    with pytest.raises(ValueError, match="no sentence of this task for this prompt reads 'A place to eat"):
        entropy_bits(Example(example.prompt, "A place to eat."))
    with pytest.raises(ValueError, match="the prompt must state object, material, town, year"):
        entropy_bits(Example("name : Bell | town : York", example.reference))


def test_nothing_to_draw_and_nothing_to_measure_are_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        generate(0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="a floor needs at least one example, got none"):
        bits_per_byte_floor([])
