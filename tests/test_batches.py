from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_data

from lora_np.tasks import Batch, Batches, Example, Sequence, collate, encode, epoch, prompt_tokens, read_examples, split
from lora_np.tokenizers import END, ByteTokenizer

tokenizer = ByteTokenizer()
words = st.text(st.sampled_from("abé "), max_size=12)
examples_of = st.lists(st.builds(Example, words, words), min_size=1, max_size=40)
wide = 100


def numbered(lengths: list[int]) -> list[Sequence]:
    r"""Sequences that can be told apart by their first token, whatever their lengths."""
    return [Sequence(np.full(length, number + 1), 1) for number, length in enumerate(lengths)]


def rows_of(batch: Batch) -> list[int]:
    return [int(row[0]) - 1 for row in batch.tokens]


# layout


def test_a_pair_is_end_prompt_newline_reference_end() -> None:
    (sequence,) = encode([Example("ab", "xyz")], tokenizer, wide)
    assert bytes(sequence.tokens.tolist()) == b"\0ab\nxyz\0"
    assert (sequence.n_prompt, sequence.length, sequence.tokens_trained) == (4, 7, 4)


def test_plain_text_is_end_text_end_and_all_of_it_is_learned() -> None:
    (sequence,) = encode([Example("", "xyz")], tokenizer, wide)
    assert bytes(sequence.tokens.tolist()) == b"\0xyz\0"
    assert (sequence.n_prompt, sequence.tokens_trained) == (1, 4)


@given(words, words)
def test_generation_starts_from_what_training_was_given(prompt: str, reference: str) -> None:
    (sequence,) = encode([Example(prompt, reference)], tokenizer, wide)
    np.testing.assert_array_equal(prompt_tokens(prompt, tokenizer), sequence.tokens[: sequence.n_prompt])


@given(examples_of)
def test_the_loss_counts_the_reference_and_its_end_and_nothing_else(examples: list[Example]) -> None:
    batch = collate(encode(examples, tokenizer, wide), END)
    for example, targets, weights in zip(examples, batch.targets, batch.weights, strict=True):
        assert bytes(targets[weights > 0].tolist()) == example.reference.encode() + b"\0"
    assert batch.tokens_trained == sum(len(example.reference.encode()) + 1 for example in examples)


@given(examples_of)
def test_targets_are_the_tokens_one_step_later_and_end_where_nothing_is_learned(examples: list[Example]) -> None:
    """Special ids of a method, of which no word is, may stand among what is given."""
    batch = collate(encode(examples, tokenizer, wide), END)
    learned = batch.weights > 0
    later = np.pad(batch.tokens[:, 1:], ((0, 0), (0, 1)), constant_values=END)
    np.testing.assert_array_equal(batch.targets, np.where(learned, later, END))
    assert batch.tokens.dtype == batch.targets.dtype == np.int64
    assert batch.weights.dtype == np.float32


# context


def test_a_sequence_may_fill_the_context_exactly() -> None:
    (sequence,) = encode([Example("ab", "xyz")], tokenizer, 7)
    assert sequence.length == 7


def test_a_sequence_longer_than_the_context_is_refused_with_length_limit_and_remedy() -> None:
    examples = [Example("a", "b"), Example("ab", "xyz")]
    message = r"example 2 is 7 tokens long, and the context holds 6: .*truncate=True \(--truncate\)"
    with pytest.raises(ValueError, match=message):
        encode(examples, tokenizer, 6)


def test_truncation_cuts_the_end_and_leaves_short_sequences_alone() -> None:
    short, long = encode([Example("a", "b"), Example("ab", "xyz")], tokenizer, 5, truncate=True)
    assert bytes(short.tokens.tolist()) == b"\0a\nb\0"
    assert bytes(long.tokens.tolist()) == b"\0ab\nxy"


def test_truncation_leaves_at_least_one_token_to_learn() -> None:
    (sequence,) = encode([Example("ab", "xyz")], tokenizer, 4, truncate=True)
    assert sequence.tokens_trained == 1
    with pytest.raises(ValueError, match="example 1 has a prompt of 4 tokens, which fills the context of 3"):
        encode([Example("ab", "xyz")], tokenizer, 3, truncate=True)


@pytest.mark.parametrize("n_prompt", [0, 3])
def test_a_sequence_with_nothing_given_or_nothing_to_learn_is_refused(n_prompt: int) -> None:
    with pytest.raises(ValueError, match=rf"n_prompt must lie in 1\.\.2, got {n_prompt}"):
        Sequence(np.arange(3), n_prompt)


# weights and shards


@given(examples_of, st.sampled_from(["token", "sequence"]))
def test_weights_sum_to_one_and_padding_has_none(examples: list[Example], weight: str) -> None:
    sequences = encode(examples, tokenizer, wide)
    batch = collate(sequences, END, weight)
    assert batch.weights.astype(np.float64).sum() == pytest.approx(1, abs=1e-6)
    for sequence, tokens, weights in zip(sequences, batch.tokens, batch.weights, strict=True):
        assert not weights[sequence.length :].any()
        assert (tokens[sequence.length + 1 :] == END).all()
    assert batch.tokens.shape[1] == max(sequence.length for sequence in sequences)


@given(examples_of)
def test_tokens_count_the_same_by_token_and_sequences_by_sequence(examples: list[Example]) -> None:
    sequences = encode(examples, tokenizer, wide)
    by_token = collate(sequences, END).weights
    assert len(set(by_token[by_token > 0].tolist())) == 1
    by_sequence = collate(sequences, END, "sequence").weights.astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(by_sequence, 1 / len(sequences), rtol=1e-6)


@given(examples_of, st.integers(1, 50))
def test_losses_of_shards_add_up_to_the_loss_of_the_batch(examples: list[Example], n: int) -> None:
    batch = collate(encode(examples, tokenizer, wide), END)
    cost = np.random.default_rng(0).exponential(size=batch.tokens.shape)
    shards = batch.shards(n)
    pieces = np.array_split(cost, len(shards))
    total = sum((shard.weights * piece).sum() for shard, piece in zip(shards, pieces, strict=True))
    assert total == pytest.approx((batch.weights * cost).sum(), rel=1e-12)


@given(examples_of, st.integers(1, 50))
def test_shards_are_nearly_equal_and_joined_are_the_batch(examples: list[Example], n: int) -> None:
    batch = collate(encode(examples, tokenizer, wide), END)
    shards = batch.shards(n)
    sizes = [len(shard.tokens) for shard in shards]
    assert len(shards) == min(n, len(examples))
    assert max(sizes) - min(sizes) <= 1
    for name in ("tokens", "targets", "weights"):
        joined = np.concatenate([getattr(shard, name) for shard in shards])
        np.testing.assert_array_equal(joined, getattr(batch, name))


def test_a_batch_of_nothing_an_unknown_weight_and_no_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="a batch needs at least one sequence, got none"):
        collate([], END)
    with pytest.raises(ValueError, match='weight must be "token" or "sequence", got \'row\''):
        collate(numbered([3]), END, "row")
    with pytest.raises(ValueError, match="at least 1 shard, got n = 0"):
        collate(numbered([3]), END).shards(0)


# split

several = st.lists(st.builds(Example, st.sampled_from(["", "p", "q", "r", "s"]), words), min_size=1)


def n_groups(examples: list[Example]) -> int:
    return len({e.prompt for e in examples if e.prompt}) + sum(not e.prompt for e in examples)


@given(several.filter(lambda examples: n_groups(examples) > 1), st.floats(0.01, 0.99), st.integers(0, 9))
def test_a_split_covers_everything_once_and_never_leaks_a_prompt(
    examples: list[Example], fraction: float, seed: int
) -> None:
    train, held_out = split(examples, fraction, seed)
    assert train
    assert held_out
    assert Counter(train) + Counter(held_out) == Counter(examples)
    assert not {e.prompt for e in train} & {e.prompt for e in held_out} - {""}
    assert abs(n_groups(held_out) - fraction * n_groups(examples)) <= 1


def test_a_split_keeps_the_order_and_depends_on_the_seed_alone() -> None:
    examples = [Example(f"p{i}", "r") for i in range(50)]
    train, held_out = split(examples, 0.2, seed=3)
    assert (train, held_out) == split(examples, 0.2, seed=3)
    assert sorted(train, key=examples.index) == train
    assert held_out != split(examples, 0.2, seed=4)[1]
    assert len(held_out) == 10


@pytest.mark.parametrize("examples", [[], [Example("", "a")], [Example("p", "a"), Example("p", "b")]])
def test_a_split_with_an_empty_side_is_refused(examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="splitting needs at least 2 different prompts"):
        split(examples)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_fraction_that_is_not_inside_0_and_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="held_out must lie between 0 and 1"):
        split([Example("p", "a"), Example("q", "b")], fraction)


# epochs

lengths_of = st.lists(st.integers(2, 30), min_size=1, max_size=150)


@given(lengths_of, st.integers(1, 7), st.integers(0, 99), st.integers(0, 3))
def test_every_epoch_holds_every_sequence_exactly_once(
    lengths: list[int], batch_size: int, seed: int, number: int
) -> None:
    batches = Batches(numbered(lengths), batch_size, seed, END)
    steps = range(number * batches.steps_per_epoch, (number + 1) * batches.steps_per_epoch)
    rows = [rows_of(batches[step]) for step in steps]
    assert sorted(chain.from_iterable(rows)) == list(range(len(lengths)))
    assert sorted(map(len, rows))[1:] == [batch_size] * (len(rows) - 1)


@given(lengths_of, st.integers(1, 7), st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_a_batch_depends_on_seed_and_step_alone(lengths: list[int], batch_size: int, steps: list[int]) -> None:
    used = Batches(numbered(lengths), batch_size, 5, END)
    for step in steps:
        fresh = Batches(numbered(lengths), batch_size, 5, END)
        np.testing.assert_array_equal(used[step].tokens, fresh[step].tokens)


def test_epochs_and_seeds_differ() -> None:
    batches = Batches(numbered([4] * 64), 8, 0, END)
    other = Batches(numbered([4] * 64), 8, 1, END)
    first, second = ([rows_of(batches[s]) for s in range(e * 8, e * 8 + 8)] for e in (0, 1))
    assert first != second
    assert first != [rows_of(other[s]) for s in range(8)]


def test_batches_never_end() -> None:
    batches = Batches(numbered([4] * 3), 2, 0, END)
    assert [len(batches[step].tokens) for step in range(50)].count(1) == 25
    assert batches[10**9].tokens.size
    assert len(batches._plans) == 1  # memory does not grow with the epochs


def test_buckets_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(2, 120, size=2000).tolist()
    batches = Batches(numbered(lengths), 16, 0, END)
    cells = sum(batches[step].tokens.size for step in range(batches.steps_per_epoch))
    needed = sum(length - 1 for length in lengths)
    unsorted = sum(max(lengths[i : i + 16]) * 16 for i in range(0, 2000, 16))
    assert unsorted > 1.7 * needed
    assert cells < 1.1 * needed


def test_batches_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="batches need at least one sequence"):
        Batches([], 4, 0, END)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Batches(numbered([3]), 0, 0, END)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        Batches(numbered([3]), 1, -1, END)
    with pytest.raises(IndexError, match="step must not be negative, got -1"):
        Batches(numbered([3]), 1, 0, END)[-1]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(epoch(numbered([3]), 0, END))


@given(lengths_of, st.integers(1, 7))
def test_evaluation_sees_every_sequence_once_in_order_of_length(lengths: list[int], batch_size: int) -> None:
    rows = [rows_of(batch) for batch in epoch(numbered(lengths), batch_size, END)]
    seen = list(chain.from_iterable(rows))
    assert sorted(seen) == list(range(len(lengths)))
    assert [lengths[i] for i in seen] == sorted(lengths)
    assert all(len(batch) == batch_size for batch in rows[:-1])


# a real file


def test_the_real_e2e_meanings_are_split_without_leaking() -> None:
    train, held_out = split(read_examples(shared_data("e2e/valid.txt")), 0.1, seed=0)
    meanings = {e.prompt for e in train}, {e.prompt for e in held_out}
    assert not meanings[0] & meanings[1]
    assert (len(meanings[1]), len(train) + len(held_out)) == (55, 4672)
    sequences = encode(held_out, tokenizer, 512)
    assert sum(batch.tokens_trained for batch in epoch(sequences, 16, END)) == sum(
        len(e.reference.encode()) + 1 for e in held_out
    )
