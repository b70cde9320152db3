"""The laws of `methods`: what holds for every row of METHODS, whatever it puts beside a model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import strict_array
from builders import assert_agree, assert_shrinks, cast, hashes, model, random_batch, tokens_of

from lora_np import lora as lora_module
from lora_np import modules as modules_module
from lora_np.adaptation import CHECKPOINT, DataConfig, Interrupted, Outcome, adapt_to_file, run
from lora_np.cases import METHOD_CASES, model_case, small_model
from lora_np.certificate import certify
from lora_np.config import SHAPES
from lora_np.costs import bill
from lora_np.disk.folders import partial_folder
from lora_np.engine.devices import to_device, to_host
from lora_np.files import load_adapter, read_arrays, save_adapter
from lora_np.generation import generate
from lora_np.method import Method
from lora_np.methods import METHODS, adapt, bottleneck, described, method_from, name_of, prefix, variants
from lora_np.model import Reading, Transformer, skeleton
from lora_np.optimization import TrainingConfig
from lora_np.parameters import count, parameters, with_parameters
from lora_np.wrappers import can_be_merged, merge, merge_whole, unwrapped, wrappers

# One of each, for a model of two blocks that is eight wide and reads twelve tokens.
SAMPLES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "alpha": 3.0},
    "full": {},
    "top": {"blocks": 1},
    "bitfit": {},
    "prefix-embedding": {"prefix": 2, "infix": 1},
    "prefix-layer": {"prefix": 1, "infix": 2},
    "prefix-kv": {"length": 3},
    "lora+prefix-embedding": {"prefix": 2, "infix": 1, "rank": 1, "alpha": 3.0},
    "lora+prefix-layer": {"prefix": 2, "rank": 1, "alpha": 3.0},
    "adapter-h": {"rank": 2},
    "adapter-l": {"rank": 3, "dropped": 1},
    "adapter-p": {"rank": 2},
    "compacter": {"rank": 4, "n": 2},
    "dora": {"rank": 2, "alpha": 3.0},
    "vera": {"rank": 3},
    "pissa": {"rank": 1, "alpha": 3.0},
    "lora+": {"rank": 2, "ratio": 8.0},
    "lora-fa": {"rank": 2, "alpha": 3.0},
}
PLAIN = {"full", "top", "bitfit"}  # nothing stands beside the model
MERGED = {"lora", "dora", "vera", "pissa", "lora+", "lora-fa"}
IN_PART = {"lora+prefix-embedding", "lora+prefix-layer"}
NEVER = {"prefix-embedding", "prefix-layer", "prefix-kv", "adapter-h", "adapter-l", "adapter-p", "compacter"}
PREFIXES = {name for name in SAMPLES if "prefix" in name}

every_method = pytest.mark.parametrize("name", SAMPLES)
Array = Any


def of(name: str) -> Method:
    return METHODS[name](**SAMPLES[name])


def rng(seed: int = 2) -> np.random.Generator:
    return np.random.default_rng(seed)


def applied(name: str, base: Any) -> Any:
    return adapt(base, of(name), rng())


def moved(name: str, base: Any, seed: int = 4) -> Any:
    """As after long training: whatever is trained stands far from where it began."""
    node, drawn = applied(name, base), rng(seed)
    trained = of(name).trained(node)
    moves = {n: (a + 0.5 * drawn.standard_normal(a.shape)).astype(a.dtype) for n, a in trained.items()}
    return with_parameters(node, moves)


def read(name: str, base: Any, batch: int = 3) -> Array:
    """Random prompts as the method reads them: as many words for each method."""
    length = base.config.context - of(name).positions - 1
    return np.array([of(name).given(row, base.config) for row in tokens_of(base, batch=batch, seq=length)])


def test_every_method_has_a_sample() -> None:
    assert list(SAMPLES) == list(METHODS)
    assert PLAIN | MERGED | IN_PART | NEVER == set(METHODS)


def test_every_method_has_a_case_on_whose_arrays_three_witnesses_are_asked() -> None:
    """By `lora-np gradcheck`, whose tests show that all of its cases hold."""
    assert {name: type(method) for name, method in METHOD_CASES.items()} == METHODS
    for name, method in METHOD_CASES.items():
        case = model_case(name, small_model(rng()), method, rng())
        assert set(case.point) == set(method.trained(method.apply(small_model(rng()), None)))
        assert all(array.any() for array in case.point.values())


# ------------------------------------------------------------------------------------------------------- numbers


@every_method
def test_the_closed_form_is_what_is_counted_on_a_model_on_a_skeleton_and_in_the_file(name: str, tmp_path: Path) -> None:
    base, method = model(), of(name)
    node = applied(name, base)
    save_adapter(tmp_path, node, method, base)
    arrays, _ = read_arrays(tmp_path / "adapter.safetensors")
    numbers = method.numbers(base.config)
    assert numbers == count(method.trained(node))
    assert numbers == count(method.trained(method.apply(skeleton(base.config), None)))
    assert method.in_file(base.config) == count(arrays)
    stored = {"pissa": 2 * numbers, "lora-fa": numbers + 2 * 2 * 2 * 8}  # rank 2r; A of two maps in two blocks
    assert method.in_file(base.config) == stored.get(name, numbers)


@every_method
def test_the_bill_of_a_model_that_was_never_made_counts_what_the_closed_form_says(name: str) -> None:
    settings = {**SAMPLES[name], **({"rank": 4} if name == "compacter" else {})}
    found = bill(SHAPES["gpt2-medium"], METHODS[name](**settings))
    assert found.trained == found.counted > 0
    assert found.merged == (name in PLAIN | MERGED)


@every_method
def test_an_applied_skeleton_has_the_shapes_of_an_applied_model(name: str) -> None:
    base = model()
    there, here = parameters(of(name).apply(skeleton(base.config), None)), parameters(applied(name, base))
    assert {n: a.shape for n, a in there.items()} == {n: a.shape for n, a in here.items()}


@every_method
def test_a_method_can_be_written_as_json_and_read_back(name: str) -> None:
    import json

    assert method_from(json.loads(json.dumps(described(of(name))))) == of(name)
    assert name_of(of(name)) == name


def test_a_setting_that_is_a_numpy_number_is_written_as_the_number_it_is() -> None:
    import json

    odd = METHODS["lora"](alpha=np.float32(3.0))  # type: ignore[call-arg]
    assert method_from(json.loads(json.dumps(described(odd)))) == METHODS["lora"](alpha=3.0)  # type: ignore[call-arg]


# --------------------------------------------------------------------------------------------------------- a fresh one


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in PREFIXES | {"pissa"}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fresh_one_changes_no_output_bit_for_bit(name: str, dtype: Any) -> None:
    base = model(dtype=dtype)
    tokens = tokens_of(base)
    node = applied(name, base)
    assert np.array_equal(node(tokens), base(tokens))
    assert name in PLAIN or node is not base
    assert abs(moved(name, base)(tokens) - base(tokens)).max() > 0.1  # contrast: it is not idle


def test_a_fresh_pissa_changes_outputs_by_rounding_alone() -> None:
    def gap(dtype: Any) -> Array:
        base = model(dtype=dtype)
        return applied("pissa", base)(tokens_of(base)) - base(tokens_of(base))

    assert_shrinks(gap)


@pytest.mark.parametrize("name", sorted(PREFIXES))
def test_a_fresh_prefix_changes_outputs(name: str) -> None:
    base = model()
    words = tokens_of(base, seq=4)
    behind = of(name).given(words[0], base.config)[None]
    assert abs(applied(name, base)(behind)[0, -1] - base(words[:1])[0, -1]).max() > 1e-3


@pytest.mark.parametrize("kind", ["prefix-embedding", "prefix-layer"])
def test_a_fresh_prefix_is_read_as_the_words_that_it_was_drawn_from(kind: str) -> None:
    """In front, where the places are those of the words: the same embeddings, the same activations."""
    base, method = model(), METHODS[kind](prefix=3)
    words = rng().integers(0, base.config.vocab, 3)  # what the method draws first
    prompt = tokens_of(base, seq=5)[0]
    there = adapt(base, method, rng())(method.given(prompt, base.config)[None])
    here = base(np.concatenate([words, prompt])[None])
    assert_agree(there[:, 3:], here[:, 3:])


def test_a_fresh_prefix_of_keys_and_values_is_what_every_attention_makes_of_words() -> None:
    base = model()
    node = applied("prefix-kv", base)
    words = rng().integers(0, base.config.vocab, 3)
    caches = base.caches()
    base(words[None], caches=caches)
    for block, cache in zip(node.blocks, caches, strict=True):
        assert_agree(block.attention.keys, cache.keys[0, :3])
        assert_agree(block.attention.values, cache.values[0, :3])


# ---------------------------------------------------------------------------------------- training, files, resuming


def trained(name: str, base: Transformer, folder: Path | None = None, steps: int = 3, **training: Any) -> Outcome:
    given = read(name, base)
    batch = random_batch(base, seq=given.shape[1])
    settings = TrainingConfig(**{"steps": steps, "learning_rate": 0.02, "warmup": 0, **training})
    batches = _Same(replace(batch, tokens=given))
    return run(batches, lambda node: 0.0, base, of(name), settings, folder, seed=7)


class _Same:
    """The same batch at every step."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __getitem__(self, step: int) -> Any:
        return self.batch


@every_method
def test_training_and_merging_leave_every_frozen_array_byte_identical(name: str) -> None:
    base, method = model(dtype=np.float32), of(name)
    before = hashes(parameters(base))
    fresh = adapt(base, method, rng(7))
    node = trained(name, base).model
    if name not in PLAIN | NEVER:
        merge(node)
    assert hashes(parameters(base)) == before
    now, then = hashes(parameters(node)), hashes(parameters(fresh))
    learned, moved_ = set(method.trained(fresh)), {n for n in now if now[n] != then[n]}
    assert moved_ <= learned
    assert all(n.endswith("attention.key.b") for n in learned - moved_)  # whose gradient vanishes


@every_method
def test_training_lowers_the_loss(name: str) -> None:
    losses = trained(name, model(dtype=np.float32), steps=25, learning_rate=0.1).losses
    assert losses[-1] < 0.97 * losses[0]  # measured: 0.96 for prefix-layer, below 0.87 for all others


@every_method
def test_what_is_saved_and_loaded_again_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    base, tokens = model(dtype=np.float32), read(name, model())
    node = trained(name, base, tmp_path).model
    loaded, method = load_adapter(tmp_path, base)
    stored, stored_as = of(name).stored(node)
    assert method == stored_as
    assert np.array_equal(loaded(tokens), stored(tokens))
    assert name == "pissa" or np.array_equal(loaded(tokens), node(tokens))
    assert abs(loaded(tokens)[:, -1] - base(tokens_of(base))[:, -1]).max() > 1e-3


def test_pissa_and_what_it_is_stored_as_differ_by_rounding_alone() -> None:
    def gap(dtype: Any) -> Array:
        node = moved("pissa", model(dtype=dtype))
        stored, _ = of("pissa").stored(node)
        return node(tokens_of(node)) - stored(tokens_of(node))

    assert_shrinks(gap)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"question {i}\tanswer {i % 3}\n" for i in range(8)))
    return path


def small_base() -> Transformer:
    return model(dtype=np.float32, vocab=256, context=40)


def adapted_to(file: Path, name: str, out: str, *, stop: int | None = None, resume: bool = False) -> bytes:
    """The adapter of a run of five steps with a checkpoint at each second, stopped by hand behind step `stop`."""

    def watch(records: Iterator[Any], total: int, done: int) -> Iterator[Any]:
        for record in records:
            yield record
            if record.step == stop:
                raise KeyboardInterrupt

    training, data = TrainingConfig(steps=5, warmup=1), DataConfig(batch_size=4)
    about: dict[str, Any] = {"resume": resume, "checkpoint_every": 2, "watch": watch}
    adapt_to_file(file, file.parent / out, small_base(), of(name), training, data, **about)
    return (file.parent / out / "adapter.safetensors").read_bytes()


@every_method
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(name: str, file: Path) -> None:
    whole = adapted_to(file, name, "whole")
    with pytest.raises(Interrupted, match="after step 3"):
        adapted_to(file, name, "stopped", stop=3)
    assert not (file.parent / "stopped").exists()
    kept, _ = read_arrays(partial_folder(file.parent / "stopped") / CHECKPOINT)
    assert {key.partition(".")[0] for key in kept} == {"trained", "m", "v"}
    assert adapted_to(file, name, "stopped", resume=True) == whole


# ------------------------------------------------------------------------------------------------------------ merging


@pytest.mark.parametrize("name", sorted(MERGED | IN_PART))
def test_merging_changes_outputs_by_rounding_alone(name: str) -> None:
    base = model()
    tokens = read(name, base)
    node = moved(name, base)
    assert abs(node(tokens)[:, -1] - base(tokens % base.config.vocab)[:, -1]).max() > 0.1  # contrast
    merged = merge(node)
    assert not any(hasattr(wrapper, "merged") for wrapper in wrappers(merged).values())

    def gap(dtype: Any) -> Array:
        same = cast(node, dtype)
        return same(tokens) - merge(same)(tokens)

    assert_shrinks(gap)


@pytest.mark.parametrize("name", sorted(MERGED))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_certificate_of_an_honest_merge_holds_and_that_of_a_false_one_does_not(name: str, dtype: Any) -> None:
    node, _ = of(name).stored(moved(name, model(dtype=dtype)))  # as it is loaded where it is certified
    merged, tokens = merge_whole(node), tokens_of(node)
    certificate = certify(node, merged, tokens)
    assert certificate.holds, certificate.diagnosis
    adapted = {array.name: array for array in certificate.arrays if array.adapted}
    assert set(adapted) == {f"blocks.{i}.attention.{part}.W" for i in (0, 1) for part in ("query", "value")}
    eps = float(np.finfo(dtype).eps)
    assert all(array.bound < 100 * eps for array in adapted.values())  # measured: at most 31 eps, at entries of size 1
    frozen = parameters(unwrapped(node))
    for false in _false_merges(frozen, parameters(merged), dtype):
        assert not certify(node, with_parameters(merged, false), tokens).holds


def _false_merges(base: dict[str, Array], merged: dict[str, Array], dtype: Any) -> list[dict[str, Array]]:
    """Nothing merged; merged with a scale off by a thousandth; one entry off by a thousandth."""
    name = "blocks.1.attention.value.W"
    W0, W = base[name], merged[name]
    entry = W.copy()
    entry.flat[abs(W).argmax()] *= dtype(1.001)
    return [{name: W0}, {name: (W0 + dtype(1.001) * (W - W0)).astype(dtype)}, {name: entry}]


@pytest.mark.parametrize("name", sorted(NEVER | IN_PART))
def test_what_no_plain_module_equals_is_not_merged_whole_and_says_so(name: str) -> None:
    node = moved(name, model())
    assert not can_be_merged(node)
    with pytest.raises(ValueError, match=r"carries \w+, which no plain module equals: it cannot be merged"):
        merge_whole(node)
    if name in NEVER:
        with pytest.raises(ValueError, match="cannot be merged"):
            merge(node)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_a_method_that_adds_nothing_has_nothing_to_merge(name: str) -> None:
    node = moved(name, model())
    assert can_be_merged(node)
    with pytest.raises(ValueError, match="nothing to merge"):
        merge(node)


@pytest.mark.parametrize("name", sorted(set(SAMPLES) - PLAIN))
@pytest.mark.parametrize("second", ["lora", "full", "adapter-h", "prefix-kv"])
def test_a_model_that_carries_a_wrapper_is_not_adapted_again(name: str, second: str) -> None:
    with pytest.raises(ValueError, match=r"carries a \w+ already, at .*: merge it first, or adapt the base"):
        adapt(applied(name, model()), of(second), rng())


# --------------------------------------------------------------------------------------------------------- generation


@every_method
def test_generation_with_the_cache_is_generation_without(name: str) -> None:
    base = model(context=16)
    node, prompt = moved(name, base), of(name).given(tokens_of(base, seq=5)[0], base.config)
    found = list(generate(node, prompt, 6))
    tokens = list(prompt)
    caches = node.caches()
    logits = node(prompt[None], caches=caches)[0, -1]
    for token in found:
        whole = node(np.array([tokens]))[0, -1]
        assert_agree(logits, whole)
        assert token == int(whole.argmax())
        tokens.append(token)
        logits = node(np.array([[token]]), caches=caches)[0, -1]
    assert len(found) == 6
    assert max(found) < base.config.vocab


@every_method
def test_the_context_that_is_left_is_what_a_prompt_can_fill(name: str) -> None:
    base = model()
    node, method = applied(name, base), of(name)
    left = bill(base.config, method).context
    assert left == base.config.context - method.positions
    full = method.given(np.zeros(left, int), base.config)
    assert node(full[None]).shape == (1, base.config.context, base.config.vocab)
    with pytest.raises(ValueError, match="the context holds 12 tokens, got a sequence of 13"):
        node(method.given(np.zeros(left + 1, int), base.config)[None])


# ------------------------------------------------------------------------------ what it costs, counted in another way


class Traced(np.ndarray):
    """An array that knows how many matrix products, one after another, it is made by."""

    products: int = 0

    def __array_finalize__(self, other: Any) -> None:
        self.products = getattr(other, "products", 0)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        y = getattr(ufunc, method)(*map(plainly, inputs), **settings)
        return traced(y, max(getattr(x, "products", 0) for x in inputs))


def plainly(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, Traced) else x


def traced(x: Any, products: int) -> Traced:
    y = np.asarray(x).view(Traced)
    y.products = products
    return y


def _rows(x: Array) -> int:
    return x.size // x.shape[-1]


# (multiply-adds, products one after another) of a call. What is made of weights alone is made once, whatever is read.
PRODUCTS: dict[str, Callable[..., tuple[int, int]]] = {
    "linear": lambda x, W, b: (_rows(x) * W.size, 1),
    "lora_linear": lambda x, W, b, A, B, *_: (_rows(x) * (W.size + A.size + B.size), 2),
    "dora_linear": lambda x, W, *_: (_rows(x) * W.size, 1),
    "attention": lambda q, k, v, heads, causal, mask: (_rows(q) * 2 * k.shape[1] * k.shape[2], 2),
}
OPERATIONS = (
    *("linear", "lora_linear", "dora_linear", "attention", "embedding", "layer_norm", "gelu"),
    *("kronecker", "replaced_rows", "prepended", "scaled_rows"),
)


@contextlib.contextmanager
def spied() -> Iterator[SimpleNamespace]:
    """Every operation that a model calls, with its products counted."""
    seen = SimpleNamespace(multiply_adds=0)

    def spy(name: str, operation: Any) -> Any:
        def call(*arguments: Any) -> Any:
            raw = [plainly(x) for x in arguments]
            multiply_adds, products = PRODUCTS.get(name, lambda *_: (0, 0))(*raw)
            seen.multiply_adds += multiply_adds
            return traced(operation(*raw), products + max(getattr(x, "products", 0) for x in arguments))

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module in (modules_module, lora_module, bottleneck, prefix, variants):
            for name in OPERATIONS:
                if hasattr(module, name):
                    patch.setattr(module, name, spy(name, getattr(module, name)))
        yield seen


def multiply_adds_of_a_token(node: Any, before: Array) -> int:
    """Of one token more, behind those that a cache remembers."""
    caches = node.caches()
    node(before[None], caches=caches)
    with spied() as seen:
        node(np.array([[1]]), caches=caches)
    return int(seen.multiply_adds)


def products_of_a_block(node: Any, tokens: Array) -> int:
    """The longest chain of matrix products from what a block reads to what it gives back."""
    with spied():
        h = traced(np.ones((*tokens.shape, node.config.d_model)), 0)
        return int(node.blocks[-1](h, Reading(tokens)).products)


@every_method
def test_the_multiply_adds_of_a_token_are_those_of_the_products_that_are_made(name: str) -> None:
    base, method = model(), of(name)
    before = tokens_of(base, seq=5)[0]
    more = multiply_adds_of_a_token(moved(name, base), method.given(before, base.config))
    assert more - multiply_adds_of_a_token(base, before) == method.multiply_adds(base.config)


@every_method
def test_a_block_gets_longer_by_the_products_that_are_made_one_after_another(name: str) -> None:
    base, method = model(), of(name)
    tokens = method.given(tokens_of(base, seq=5)[0], base.config)[None]
    node = moved(name, base)
    served = merge(node) if name in MERGED | IN_PART else node
    assert products_of_a_block(base, tokens % base.config.vocab) == 6
    assert products_of_a_block(served, tokens) - 6 == method.depth


def test_lora_that_is_not_merged_would_make_a_block_longer_so_the_spy_sees_it() -> None:
    node = moved("lora", model())
    assert products_of_a_block(node, tokens_of(node)) == 7


# ------------------------------------------------------------------------------------------------------ of single ones


def test_lora_plus_moves_B_by_its_ratio() -> None:
    """The first step of Adam moves every entry by its rate."""
    base = model()
    node, fresh = trained("lora+", base, steps=1, learning_rate=1e-3).model, adapt(base, of("lora+"), rng(7))
    moves = {n: abs(a - parameters(fresh)[n]).max() for n, a in parameters(node, "*.A", "*.B").items()}
    assert {round(move / 1e-3, 3) for n, move in moves.items() if n.endswith("B")} == {8.0}
    assert {move for n, move in moves.items() if n.endswith("A")} == {0.0}  # no gradient reaches A while B is zero


def test_pissa_starts_as_the_largest_part_of_W() -> None:
    node = applied("pissa", model())
    wrapper = node.blocks[0].attention.query
    sizes = np.linalg.svd(wrapper.residual)[1]
    assert_agree(np.linalg.svd(wrapper.base.W)[1][1:], sizes[:-1])
    assert sizes[-1] < 1e-12


def test_vera_draws_one_pair_for_all_maps_of_the_same_sizes_and_the_same_again() -> None:
    node, again = (METHODS["vera"](rank=3, targets="attention+mlp").apply(model(), None) for _ in range(2))
    pairs = {(m.A.shape, m.B.shape): m for m in wrappers(node).values()}
    assert len(pairs) == 3  # d to d, d to f, f to d
    for wrapper, other in zip(wrappers(node).values(), wrappers(again).values(), strict=True):
        assert wrapper.A is pairs[wrapper.A.shape, wrapper.B.shape].A
        assert np.array_equal(wrapper.A, other.A)
    other_seed = METHODS["vera"](rank=3, projection_seed=1).apply(model(), None).blocks[0].attention.query
    assert not np.array_equal(other_seed.A, node.blocks[0].attention.query.A)


def test_a_rank_that_is_wider_than_worth_warns_by_what_the_method_trains(recwarn: pytest.WarningsRecorder) -> None:
    METHODS["vera"](rank=8).apply(model(), rng())
    assert not recwarn
    with pytest.warns(UserWarning, match="rank 5 trains 80 numbers, more than the 64 of the matrix"):
        METHODS["lora"](rank=5).apply(model(), rng())


def test_pissa_is_refused_at_a_rank_at_which_it_could_not_be_stored() -> None:
    assert applied("pissa", model())
    with pytest.raises(ValueError, match=r"rank must lie in 1\.\..* = 1\.\.8 for .*, got 10"):
        METHODS["pissa"](rank=5).apply(model(), rng())


def test_blocks_that_are_dropped_have_no_adapter() -> None:
    node = METHODS["adapter-h"](rank=2, dropped=1).apply(model(), rng())
    assert {path.partition(".attention")[0].partition(".mlp")[0] for path in wrappers(node)} == {"blocks.1"}
    with pytest.raises(ValueError, match="dropped must leave one of the 2 blocks an adapter, got 2"):
        METHODS["adapter-h"](dropped=2).apply(model(), rng())


def test_a_sequence_may_begin_and_end_with_special_tokens_and_padding_is_still_hidden() -> None:
    """Prefixed keys are seen by every query of a padded batch, and what is padding changes nothing."""
    base = model(causal=False)
    for name in ("prefix-kv", "prefix-embedding", "prefix-layer"):
        node = moved(name, base)
        tokens = read(name, base, batch=2)
        real = np.ones(tokens.shape, bool)
        real[:, -2:] = False
        other = tokens.copy()
        other[:, -2:] = 0
        here, there = node(tokens, real), node(other, real)
        assert_agree(here[:, :-2], there[:, :-2])


# ------------------------------------------------------------------------------------------------------------- a device


@every_method
def test_a_step_on_a_device_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stand-in that refuses what CuPy refuses: no array of the host meets one of the device."""
    monkeypatch.setitem(sys.modules, "cupy", strict_array.strict)
    base = model(dtype=np.float32)
    there, here = (_step(name, to_device(base, device)) for device in ("gpu", "cpu"))
    assert hashes({n: to_host(a) for n, a in there.items()}) == hashes(here)
    node = to_device(moved(name, base), "gpu")
    prompt = of(name).given(tokens_of(base, seq=4)[0], base.config)
    assert list(generate(node, prompt, 3)) == list(generate(moved(name, base), prompt, 3))
    if name in MERGED:
        assert hashes(parameters(to_device(merge(node), "cpu"))) == hashes(parameters(merge(moved(name, base))))


def _step(name: str, base: Any) -> dict[str, Array]:
    host = to_device(base, "cpu")
    batch = replace(random_batch(host, seq=read(name, host).shape[1]), tokens=read(name, host))
    settings = TrainingConfig(steps=1, warmup=0)
    device = "gpu" if base is not host else "cpu"
    outcome = run(_Same(batch), lambda node: 0.0, base, of(name), settings, device=device)
    return of(name).trained(outcome.model)
