"""The laws of `model`: it is the textbook's transformer, causal, checked at the door, and continues from its caches."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

import autograd
import numpy as np
import pytest
from builders import (
    adapted,
    assert_agree,
    assert_shrinks,
    config,
    few_shapes,
    for_textbook,
    hashes,
    model,
    moved,
    random_batch,
    tokens_of,
)
from hypothesis import given
from hypothesis import strategies as st

from lora_np import costs, textbook
from lora_np.engine.differentiation import value_and_grad
from lora_np.model import (
    Embedding,
    LayerNorm,
    Linear,
    Transformer,
    head_loss,
    initialize,
    language_model_loss,
    recomputing,
)
from lora_np.operations import cross_entropy
from lora_np.parameters import count, parameters, with_parameters
from lora_np.training import model_loss

# ------------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("name", ["vocab", "context", "d_model", "layers", "heads", "d_ff"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True])
def test_every_size_is_a_positive_whole_number(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be a positive whole number, got {value!r}"):
        config(**{name: value})


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads must divide d_model, got 3 heads for d_model 8"):
        config(heads=3)


def test_the_mlp_is_four_times_as_wide_unless_said_otherwise() -> None:
    assert (config().d_hidden, config(d_ff=5).d_hidden) == (32, 5)
    assert model(d_ff=5).blocks[0].mlp.up.W.shape == (5, 8)


def test_configs_are_frozen_and_compare_by_value() -> None:
    assert config() == config()
    assert config() != config(causal=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().vocab = 3  # type: ignore[misc]


@pytest.mark.parametrize(("W", "b"), [((3,), None), ((3, 2), (2,)), ((3, 2, 1), None), ((3, 2), (3, 1))])
def test_a_linear_map_whose_shapes_do_not_fit_raises_and_says_both(W: tuple[int, ...], b: Any) -> None:
    with pytest.raises(ValueError, match=r"W must be \(d_out, d_in\) and b \(d_out,\) or None, got ") as error:
        Linear(np.ones(W), None if b is None else np.ones(b))
    assert str(error.value).endswith(f"got {W} and {b}")


@few_shapes
@given(st.data())
def test_the_number_of_numbers_is_the_closed_form(data: st.DataObject) -> None:
    small, heads = st.integers(1, 6), data.draw(st.integers(1, 3))
    sizes = config(
        vocab=data.draw(small),
        context=data.draw(small),
        d_model=heads * data.draw(small),
        layers=data.draw(st.integers(1, 3)),
        heads=heads,
        d_ff=data.draw(st.none() | small),
        tied=data.draw(st.booleans()),
    )
    fresh = initialize(sizes, np.random.default_rng(0))
    assert count(fresh) == costs.parameter_count(sizes)
    biases = count(fresh, "*.b", "*.beta")
    assert biases == costs.bias_count(sizes)


# ---------------------------------------------------------------------------------------- it is the textbook's


MODELS = {
    "causal": {},
    "bidirectional": {"causal": False},
    "untied": {"tied": False},
    "one head, one layer": {"heads": 1, "layers": 1},
    "narrow MLP": {"d_ff": 3},
}


def textbook_logits(node: Transformer, tokens: Any, mask: Any = None) -> Any:
    arrays, scaling = for_textbook(node)
    return textbook.logits(arrays, tokens, node.config.heads, scaling, node.config.causal, mask)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("padded", [False, True])
def test_logits_are_the_textbooks(changes: dict[str, Any], padded: bool) -> None:
    node = model(**changes)
    tokens = tokens_of(node, seq=7)
    mask = np.arange(7) < np.array([[7], [4], [1]]) if padded else None
    assert np.abs(node(tokens, mask)).max() > 0.5
    assert_agree(node(tokens, mask), textbook_logits(node, tokens, mask))


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_the_loss_and_its_gradient_by_every_array_are_the_textbooks(changes: dict[str, Any]) -> None:
    node = model(**changes)
    batch, c = random_batch(node), node.config

    def theirs(p: dict[str, Any]) -> Any:
        return textbook.loss(p, batch.tokens, batch.targets, batch.weights, c.heads, {}, c.causal)

    arrays, _ = for_textbook(node)
    value, gradient = value_and_grad(lambda p: language_model_loss(with_parameters(node, p), batch))(arrays)
    their_value, their_gradient = autograd.value_and_grad(theirs)(arrays)
    assert_agree(value, their_value)
    assert list(gradient) == list(arrays)
    for name in arrays:
        assert_agree(gradient[name], their_gradient[name], name)
        # a key bias adds the same number to all scores of a query, which softmax does not see
        assert (np.abs(gradient[name]).max() > 1e-6) == (not name.endswith("key.b")), name


@few_shapes
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 12), st.integers(1, 3), st.booleans(), st.booleans())
def test_logits_of_random_shapes_are_the_textbooks(
    seed: int, batch: int, seq: int, heads: int, causal: bool, tied: bool
) -> None:
    node = model(seed, heads=heads, d_model=2 * heads, causal=causal, tied=tied)
    tokens = tokens_of(node, seed, batch, seq)
    assert_agree(node(tokens), textbook_logits(node, tokens))


@pytest.mark.parametrize("fault", ["one bias lost", "two layers swapped", "no position", "other heads"])
def test_the_comparison_catches(fault: str) -> None:
    node = model()
    tokens, arrays = tokens_of(node), for_textbook(node)[0]
    wrong: dict[str, Transformer] = {
        "one bias lost": with_parameters(node, {"blocks.1.mlp.down.b": np.zeros(8)}),
        "two layers swapped": dataclasses.replace(node, blocks=node.blocks[::-1]),
        "no position": with_parameters(node, {"positions.W": 0.0 * arrays["positions.W"]}),
        "other heads": dataclasses.replace(
            node,
            blocks=tuple(
                dataclasses.replace(b, attention=dataclasses.replace(b.attention, heads=1)) for b in node.blocks
            ),
        ),
    }
    with pytest.raises(AssertionError, match="apart"):
        assert_agree(wrong[fault](tokens), textbook_logits(node, tokens))


def test_float32_models_give_float32_logits_loss_and_gradients() -> None:
    node = moved(adapted(model(dtype=np.float32, tied=False), targets=("attention+mlp", "tokens", "head")))
    batch = random_batch(node)
    value, gradient = value_and_grad(lambda p: language_model_loss(with_parameters(node, p), batch))(parameters(node))
    assert {node(batch.tokens).dtype, value.dtype, *(g.dtype for g in gradient.values())} == {np.dtype(np.float32)}


def test_calling_a_model_changes_nothing_of_it() -> None:
    node = model()
    before = hashes(parameters(node))
    node(tokens_of(node))
    assert hashes(parameters(node)) == before


# ------------------------------------------------------------------------------------------------- causality


@pytest.mark.parametrize("seq", [12, 80])
def test_a_later_token_changes_no_earlier_logit_bit_for_bit(seq: int) -> None:
    """80 positions lie in two blocks of attention."""
    node = model(context=seq)
    tokens = tokens_of(node)
    for place in (1, seq // 2, seq - 1):
        other = tokens.copy()
        other[:, place] = (other[:, place] + 1) % node.config.vocab
        assert np.array_equal(node(other)[:, :place], node(tokens)[:, :place])
        assert (np.abs(node(other) - node(tokens))[:, place:].max(axis=(0, 2)) > 0).all()


def test_without_causality_every_token_changes_every_logit() -> None:
    node = model(causal=False)
    tokens = tokens_of(node)
    other = tokens.copy()
    other[:, -1] = (other[:, -1] + 1) % node.config.vocab
    assert (np.abs(node(other) - node(tokens)).max(axis=-1) > 0).all()


def test_a_masked_token_changes_no_logit_of_a_real_one() -> None:
    node = model(causal=False)
    tokens = tokens_of(node)
    mask = np.arange(12) < np.array([[12], [8], [3]])
    other = np.where(mask, tokens, (tokens + 1) % node.config.vocab)
    assert not np.array_equal(node(other)[mask], node(tokens)[mask])  # contrast: unmasked
    assert np.array_equal(node(other, mask)[mask], node(tokens, mask)[mask])


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    node = model()
    tokens = tokens_of(node)
    other = tokens.copy()
    other[1] = (other[1] + 1) % node.config.vocab
    assert np.array_equal(node(other)[[0, 2]], node(tokens)[[0, 2]])
    assert not np.array_equal(node(other)[1], node(tokens)[1])


# --------------------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize("wrong", [-1, 11, 1000])
def test_token_ids_outside_the_vocabulary_raise(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"token ids must lie in 0\.\.10, got {wrong}"):
        model()(np.array([[1, wrong, 2]]))


def test_a_sequence_longer_than_the_context_raises_and_says_both() -> None:
    assert model()(np.zeros((1, 12), int)).shape == (1, 12, 11)
    with pytest.raises(ValueError, match="the context holds 12 tokens, got a sequence of 13"):
        model()(np.zeros((1, 13), int))


@pytest.mark.parametrize("tokens", [np.zeros((1, 3)), np.zeros(3, int), np.zeros((1, 0), int), np.ones((1, 3), bool)])
def test_tokens_that_are_no_integers_in_rows_raise(tokens: Any) -> None:
    with pytest.raises(TypeError, match=r"tokens must be integers of shape \(batch, seq\), got"):
        model()(tokens)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16])
def test_any_integer_type_names_tokens(dtype: Any) -> None:
    node = model()
    tokens = tokens_of(node)
    assert np.array_equal(node(tokens.astype(dtype)), node(tokens))


# -------------------------------------------------------------------------------------------- initialisation


def assert_variance(x: Any, variance: float, excess: float = 2.0) -> None:
    """The mean square of n independent numbers of mean zero lies within 5 deviations of its expectation.

    For normal numbers n·mean/variance is chi-squared with n degrees of freedom, of variance 2n (`excess` 2): a
    relative deviation of √(2/n).
    """
    assert abs(np.mean(np.square(x, dtype=np.float64)) / variance - 1.0) <= 5.0 * math.sqrt(excess / x.size)


def test_weights_start_with_the_stated_variance_and_biases_at_zero() -> None:
    sizes = config(vocab=300, context=200, d_model=64, layers=3, tied=False)
    fresh = parameters(initialize(sizes, np.random.default_rng(0)))
    for name, array in fresh.items():
        if name.endswith((".b", "beta")):
            assert not array.any()
        elif name.endswith("gamma"):
            assert (array == 1).all()
        else:
            into_stream = name.endswith(("attention.output.W", "mlp.down.W"))
            assert_variance(array, 0.02**2 / (6 if into_stream else 1))


def test_a_variance_off_by_a_tenth_would_be_noticed() -> None:
    x = np.random.default_rng(0).standard_normal(64 * 256)
    assert_variance(x, 1.0)
    with pytest.raises(AssertionError):
        assert_variance(1.1 * x, 1.0)


def test_the_same_generator_gives_the_same_model_and_another_another() -> None:
    one, same, other = (parameters(initialize(config(), np.random.default_rng(seed))) for seed in (0, 0, 1))
    assert hashes(one) == hashes(same)
    assert not np.array_equal(one["tokens.W"], other["tokens.W"])
    assert {array.dtype for array in one.values()} == {np.dtype(np.float32)}


def test_a_model_is_made_in_the_type_that_is_asked_for() -> None:
    fresh = initialize(config(), np.random.default_rng(0), np.float64)
    assert {array.dtype for array in parameters(fresh).values()} == {np.dtype(np.float64)}


def test_modules_are_what_their_equations_say() -> None:
    x = np.array([[1.0, 3.0]])
    assert np.array_equal(Linear(np.array([[1.0, 2.0]]), np.array([0.5]))(x), [[7.5]])
    assert np.array_equal(Embedding(np.eye(2))(np.array([1, 0])), [[0.0, 1.0], [1.0, 0.0]])
    assert np.array_equal(Embedding(np.eye(2)).as_head()(x), x)
    assert_agree(LayerNorm(np.ones(2), np.zeros(2), eps=0.0)(x), np.array([[-1.0, 1.0]]))


# ------------------------------------------------------------------------------------------------------ caches


def by_pieces(node: Transformer, tokens: Any, sizes: list[int]) -> Any:
    """The logits of all positions, read piece by piece with caches."""
    caches, start, logits = node.caches(), 0, []
    for n in sizes:
        logits.append(node(tokens[:, start : start + n], caches=caches))
        start += n
    return np.concatenate(logits, axis=1)


@pytest.mark.parametrize("sizes", [[1] * 12, [5] + [1] * 7, [3, 4, 5], [12]])
def test_pieces_with_caches_are_the_whole_pass(sizes: list[int]) -> None:
    node = model()
    tokens = tokens_of(node)
    assert_agree(by_pieces(node, tokens, sizes), node(tokens))


def test_one_token_steps_differ_from_the_whole_pass_by_rounding_alone() -> None:
    def gap(dtype: Any) -> Any:
        node = model(dtype=dtype)
        return by_pieces(node, tokens_of(node), [1] * 12) - node(tokens_of(node))

    assert_shrinks(gap)


def test_pieces_without_what_came_before_are_another_thing() -> None:
    node = model()
    tokens = tokens_of(node)
    assert np.abs(node(tokens[:, 6:]) - node(tokens)[:, 6:]).max() > 0.1


def test_caches_of_an_adapted_model_continue_as_well() -> None:
    node = moved(adapted(model(tied=False), targets=("attention+mlp", "tokens", "head")))
    tokens = tokens_of(node)
    assert_agree(by_pieces(node, tokens, [4, 1, 7]), node(tokens))


def test_caches_end_at_the_context() -> None:
    node = model()
    caches = node.caches()
    node(np.zeros((1, 11), int), caches=caches)
    node(np.zeros((1, 1), int), caches=caches)
    with pytest.raises(ValueError, match="the context holds 12 tokens, got a sequence of 13"):
        node(np.zeros((1, 1), int), caches=caches)


def test_caches_are_made_by_what_comes_first_with_room_for_the_whole_context() -> None:
    node = model(dtype=np.float32)
    caches = node.caches()
    assert [(cache.keys, cache.values, cache.length, cache.room) for cache in caches] == [(None, None, 0, 12)] * 2
    node(tokens_of(node, batch=2, seq=5), caches=caches)
    assert {(c.keys.shape, c.keys.dtype, c.values.shape, c.length) for c in caches} == {
        ((2, 12, 8), np.dtype(np.float32), (2, 12, 8), 5)
    }


# ------------------------------------------------------------------------------------------ recomputed in backward


@pytest.mark.parametrize("select", [("*.A", "*.B"), ("blocks.1.*.A",), ("*",)], ids=" ".join)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputed_blocks_have_the_same_loss_and_gradients_bit_for_bit(select: Any, dropout: float) -> None:
    """With dropout too: the masks are drawn once more as they were."""
    node = moved(adapted(model(), targets=("attention+mlp", "tokens"), tied_head="tie", dropout=dropout))
    batch, trained = random_batch(node), parameters(node, *select)

    def gradient(recompute: bool, seed: int) -> Any:
        loss = model_loss(node, recompute=recompute)
        return value_and_grad(loss)(trained, batch, np.random.default_rng(seed))

    kept, again = gradient(False, 7), gradient(True, 7)
    assert kept[0] == again[0]
    assert all(np.array_equal(again[1][name], array) for name, array in kept[1].items())
    if dropout:
        assert gradient(True, 8)[0] != kept[0]  # contrast: the masks matter


def test_recomputed_blocks_evaluate_as_before() -> None:
    node = model()
    tokens, batch = tokens_of(node), random_batch(node)
    assert np.array_equal(node.hidden(tokens, through=recomputing), node.hidden(tokens))
    assert language_model_loss(node, batch, recompute=True) == language_model_loss(node, batch)


def test_recomputed_blocks_of_a_padded_bidirectional_model_see_the_mask() -> None:
    node = model(causal=False)
    mask = np.arange(12) < np.array([[12], [5], [7]])
    batch = random_batch(node)

    def gradient(recompute: bool, mask: Any) -> Any:
        def loss(p: Any) -> Any:
            return language_model_loss(with_parameters(node, p), batch, mask, recompute=recompute)

        return value_and_grad(loss)(parameters(node))

    kept, again = gradient(False, mask), gradient(True, mask)
    assert gradient(True, None)[0] != kept[0]  # contrast: the mask matters
    assert kept[0] == again[0]
    assert all(np.array_equal(again[1][name], array) for name, array in kept[1].items())


# ------------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("head", ["tied", "own", "own, with a bias", "adapted", "tied and adapted"])
def test_the_loss_of_a_model_is_the_cross_entropy_of_its_logits(head: str) -> None:
    node = model(tied=head.startswith("tied"))
    if head == "own, with a bias":
        node = replace(node, head=Linear(node.head.W, np.linspace(-1, 1, 11)))  # type: ignore[union-attr]
    if "adapted" in head:
        node = moved(adapted(node, targets=("head",) if head == "adapted" else ("tokens",), tied_head="tie"))
    batch = random_batch(node)
    expected = cross_entropy(node(batch.tokens), batch.targets, batch.weights)
    assert_agree(language_model_loss(node, batch), expected)
    h = node.hidden(batch.tokens)
    assert head_loss(node.output, h, batch.targets, batch.weights) == language_model_loss(node, batch)
