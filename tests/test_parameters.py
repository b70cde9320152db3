"""The laws of `parameters`: a model is a flat dict of arrays and back, and freezing is selection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import adapted, hashes, model, random_shapes
from hypothesis import given
from hypothesis import strategies as st

from lora_np.lora import LoraLinear
from lora_np.model import Linear, Transformer
from lora_np.names import matches, matching
from lora_np.parameters import count, parameters, walk, with_modules, with_parameters

BASE = model(tied=False)
LORA = adapted(BASE, targets=("attention+mlp", "tokens", "head"), rank=1)
PATHS = list(parameters(LORA))


# ---------------------------------------------------------------------------------------------- the flat dict


def test_paths_are_the_names_of_the_fields_in_their_order() -> None:
    block = [
        *("attention_norm.gamma", "attention_norm.beta"),
        *(f"attention.{name}.{leaf}" for name in ("query", "key", "value", "output") for leaf in "Wb"),
        *("mlp_norm.gamma", "mlp_norm.beta", "mlp.up.W", "mlp.up.b", "mlp.down.W", "mlp.down.b"),
    ]
    blocks = [f"blocks.{layer}.{name}" for layer in range(2) for name in block]
    expected = ["tokens.W", "positions.W", *blocks, "norm.gamma", "norm.beta", "head.W"]
    assert list(parameters(BASE)) == expected


def test_the_arrays_are_the_models_own_and_not_copies() -> None:
    arrays = parameters(LORA)
    assert arrays["blocks.1.mlp.up.A"] is LORA.blocks[1].mlp.up.A
    assert arrays["blocks.0.attention.query.base.W"] is BASE.blocks[0].attention.query.W


def test_walking_visits_modules_and_arrays_and_no_settings() -> None:
    seen = dict(walk(LORA))
    assert seen[""] is LORA
    assert isinstance(seen["blocks.0.attention.query"], LoraLinear)
    assert seen["blocks"] is LORA.blocks
    assert not {"blocks.0.attention.heads", "blocks.0.attention.query.scaling", "config.vocab"} & set(seen)


def test_a_count_is_the_number_of_numbers() -> None:
    assert count(BASE) == count(parameters(BASE)) == sum(array.size for array in parameters(BASE).values())
    assert count(BASE, "tokens.W") == 11 * 8
    assert count({}) == 0


# ------------------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize(
    ("pattern", "path", "does"),
    [
        ("query.W", "blocks.0.attention.query.W", True),
        ("y.W", "blocks.0.attention.query.W", False),  # a tail starts at a dot
        ("*y.W", "blocks.0.attention.query.W", True),
        ("attention.*", "blocks.0.attention.query.W", True),  # * crosses dots
        ("blocks.0.*", "blocks.0.attention.query.W", True),
        ("blocks.?.attention.[qk]*.W", "blocks.1.attention.key.W", True),
        ("blocks.?.attention.[qk]*.W", "blocks.1.attention.value.W", False),
        ("blocks.0", "blocks.0.attention.query.W", False),  # not a head
        ("*.A", "tokens.A", True),
        ("A", "tokens.A", True),
        ("a", "tokens.A", False),  # case counts
        ("tokens", "tokens", True),
    ],
)
def test_a_pattern_matches_a_whole_path_or_a_tail_of_it_at_a_dot(pattern: str, path: str, does: bool) -> None:
    assert matches(path, pattern) is does


@random_shapes
@given(st.lists(st.sampled_from(PATHS), min_size=1, max_size=5))
def test_selecting_by_whole_paths_gives_those_arrays_in_the_order_of_the_model(paths: list[str]) -> None:
    chosen = parameters(LORA, *paths)
    assert list(chosen) == [path for path in PATHS if path in paths]
    assert all(chosen[path] is parameters(LORA)[path] for path in chosen)


@random_shapes
@given(st.data())
def test_every_tail_at_a_dot_selects_its_path(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(PATHS))
    parts = path.split(".")
    tail = ".".join(parts[data.draw(st.integers(0, len(parts) - 1)) :])
    assert path in matching(PATHS, [tail])
    assert all(other == tail or other.endswith(f".{tail}") for other in matching(PATHS, [tail]))


def test_several_patterns_select_what_any_of_them_matches_once() -> None:
    chosen = matching(PATHS, ["*.A", "query.A", "*.B"])
    assert chosen == [path for path in PATHS if path.endswith((".A", ".B"))]


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("attention.querry.W", "attention.query.W"),
        ("mlp.upp.b", "mlp.up.b"),
        ("norm.gama", "norm.gamma"),
        ("token.W", "tokens.W"),
        ("zzzzzz", "W"),  # nothing is near: the first real names
    ],
)
def test_a_pattern_that_matches_nothing_raises_with_the_nearest_real_names(pattern: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"'{pattern}' matches none of the 37 names; .*{nearest}") as error:
        parameters(BASE, pattern)
    named = str(error.value).partition("the nearest are ")[2].split(", ")
    assert all(parameters(BASE, name) for name in named)


def test_one_idle_pattern_among_several_raises() -> None:
    with pytest.raises(ValueError, match=r"'\*\.C' matches none"):
        parameters(LORA, "*.A", "*.C")


def test_a_model_without_arrays_says_that_there_are_none() -> None:
    with pytest.raises(ValueError, match="'W' matches none of the 0 names; there are none"):
        parameters((), "W")


# ----------------------------------------------------------------------------------------------- and back


@random_shapes
@given(st.lists(st.sampled_from(PATHS), unique=True), st.integers(0, 2**32))
def test_what_is_put_in_is_what_comes_out_and_the_rest_is_shared(paths: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, old = hashes(parameters(LORA)), parameters(LORA)
    new = {path: rng.standard_normal(old[path].shape) for path in paths}
    replaced = with_parameters(LORA, new)
    arrays = parameters(replaced)
    assert list(arrays) == PATHS
    assert all(arrays[path] is (new[path] if path in new else old[path]) for path in PATHS)
    assert hashes(parameters(LORA)) == before


def test_the_round_trip_is_the_same_model() -> None:
    again = with_parameters(LORA, parameters(LORA))
    assert type(again) is Transformer
    assert again.config == LORA.config
    assert all(one is other for one, other in zip(parameters(again).values(), parameters(LORA).values(), strict=True))
    tokens = np.array([[1, 2, 3]])
    assert np.array_equal(again(tokens), LORA(tokens))


def test_parts_of_the_model_that_hold_nothing_new_are_shared_whole() -> None:
    replaced = with_parameters(BASE, {"blocks.1.mlp.up.b": np.zeros(32)})
    assert replaced.blocks[0] is BASE.blocks[0]
    assert replaced.blocks[1].attention is BASE.blocks[1].attention
    assert replaced.blocks[1].mlp.down is BASE.blocks[1].mlp.down
    assert replaced.blocks[1].mlp.up.W is BASE.blocks[1].mlp.up.W
    assert not replaced.blocks[1].mlp.up.b.any()
    assert BASE.blocks[1].mlp.up.b.all()


def test_a_replaced_array_changes_the_output() -> None:
    tokens = np.array([[1, 2, 3]])
    replaced = with_parameters(BASE, {"blocks.1.mlp.up.b": np.zeros(32)})
    assert abs(replaced(tokens) - BASE(tokens)).max() > 0.1


def test_whole_modules_can_be_replaced() -> None:
    plain = with_modules(LORA, {"blocks.0.mlp.up": BASE.blocks[0].mlp.up, "head": BASE.head})
    assert plain.blocks[0].mlp.up is BASE.blocks[0].mlp.up
    assert plain.head is BASE.head
    assert isinstance(plain.blocks[0].mlp.down, LoraLinear)


def test_an_array_of_another_shape_raises_and_says_both() -> None:
    with pytest.raises(ValueError, match=r"tokens\.W has shape \(11, 8\), and cannot become \(8, 11\)"):
        with_parameters(BASE, {"tokens.W": np.ones((8, 11))})
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.up\.b has shape \(32,\)"):
        with_parameters(BASE, {"blocks.0.mlp.up.b": np.ones(31)})


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tokenz.W", "Transformer has no part named 'tokenz'"),
        ("blocks.2.mlp.up.W", "blocks has no part named '2'"),
        ("blocks.0.attention.query.A", "blocks.0.attention.query has no part named 'A'"),
        ("tokens.W.0", "tokens.W has no part named '0'"),
        ("blocks..mlp", "blocks has no part named ''"),
    ],
)
def test_a_path_that_leads_nowhere_raises_and_names_where_it_ends(path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_parameters(BASE, {path: np.ones(3)})


@pytest.mark.parametrize(
    ("node", "path"),
    [
        pytest.param(BASE, "config.vocab", id="a setting"),
        pytest.param(BASE, "blocks.0", id="a module"),
        pytest.param(BASE, "blocks", id="a tuple"),
        pytest.param(model(tied=True), "head", id="a module that is absent"),
        pytest.param(Linear(np.eye(3)), "b", id="an array that is absent"),
    ],
)
def test_a_path_that_leads_to_no_array_raises(node: Any, path: str) -> None:
    with pytest.raises(ValueError, match=path.rpartition(".")[2]):
        with_parameters(node, {path: np.ones(3)})
