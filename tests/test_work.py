"""A guard that is not a clock: what the time of a step depends on is counted, so a slow-down shows on any machine.

`Counted` is a NumPy array that reports to a `Work` every product of matrices and every array of more than a megabyte.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from autograd.core import VJPNode, VSpace
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.numpy.numpy_vspaces import ArrayVSpace
from builders import adapted, config, moved, random_batch

import lora_np.model
import lora_np.modules
from lora_np import operations, textbook
from lora_np.bench.sizes import SIZES as BENCH_SIZES
from lora_np.bench.sizes import Task
from lora_np.bench.workloads import WORKLOADS
from lora_np.costs import lora_count, step_multiply_adds
from lora_np.engine import differentiation
from lora_np.engine.differentiation import operation, value_and_grad
from lora_np.engine.threads import thread_map
from lora_np.methods.lora import LoraConfig
from lora_np.model import Transformer, initialize, language_model_loss
from lora_np.operations.rotary import rotary_tables
from lora_np.parameters import parameters, with_parameters
from lora_np.training import model_loss

MEGABYTE = 1 << 20
TINY = BENCH_SIZES["tiny"]
MOST_CALLS = 1600
RANK = 4


@dataclass
class Work:
    """products: (shape of the result, multiply-adds); large: arrays above a megabyte; nodes: of autograd."""

    products: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    large: int = 0
    nodes: int = 0

    @property
    def multiply_adds(self) -> int:
        return sum(count for _, count in self.products)


_work = [Work()]


class Counted(np.ndarray):
    """Every result of a ufunc is one again."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **settings: Any) -> Any:
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        given = None if out is None else tuple(x.view(np.ndarray) if isinstance(x, Counted) else x for x in out)
        y = getattr(ufunc, method)(*plain, **({} if given is None else {"out": given}), **settings)
        if ufunc is np.matmul:
            _work[-1].products.append((y.shape[-2:], y.size * plain[0].shape[-1]))
        if given is None:
            _count_array(y)
        return out[0] if out is not None else y.view(Counted) if isinstance(y, np.ndarray) else y

    def __array_function__(self, function: Any, types: Any, arguments: Any, settings: Any) -> Any:
        y = super().__array_function__(function, types, arguments, settings)
        _count_array(y)
        return y


ArrayBox.register(Counted)
VSpace.register(Counted, ArrayVSpace)


def _count_array(y: Any) -> None:
    _work[-1].large += isinstance(y, np.ndarray) and y.nbytes > MEGABYTE


def counted_arrays(make: Callable[..., Any]) -> Callable[..., Any]:
    def maker(*arguments: Any, **settings: Any) -> Any:
        y = make(*arguments, **settings)
        _count_array(y)
        return y.view(Counted)

    return maker


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Work]:
    """What happens in the block; arrays made from nothing are counted as well."""
    _work.append(work := Work())
    root, link = VJPNode.__init__, differentiation._link

    def node(self: Any, *arguments: Any) -> None:
        work.nodes += 1
        root(self, *arguments)

    def linked(*arguments: Any) -> Any:
        work.nodes += 1
        return link(*arguments)

    with patch.context() as inner:
        for name in ("empty", "zeros", "full", "ascontiguousarray"):
            inner.setattr(np, name, counted_arrays(getattr(np, name)))
        inner.setattr(VJPNode, "__init__", node)
        inner.setattr(differentiation, "_link", linked)
        yield work
    _work.pop()


# 1,024 tokens: an activation of the stream has half a megabyte, one of the MLP two. No two sizes are equal, so that the
# shape of a product says what it is.
SIZES = {"vocab": 4096, "context": 256, "d_model": 128, "layers": 2, "heads": 4, "d_ff": 500}
BATCH = 4


def model(**changes: Any) -> Transformer:
    return initialize(config(**{**SIZES, **changes}), np.random.default_rng(0))


def gradient_work(
    patch: pytest.MonkeyPatch, node: Transformer, *select: str, batch: int = BATCH, recompute: bool = False
) -> tuple[Work, dict[str, Any]]:
    """The work of loss and gradient by the selected arrays."""
    node = with_parameters(node, {name: array.view(Counted) for name, array in parameters(node).items()})
    data = random_batch(node, batch=batch, seq=node.config.context)
    with thread_map(1), counted(patch) as work:
        _, gradient = value_and_grad(
            lambda p: language_model_loss(with_parameters(node, p), data, recompute=recompute)
        )(parameters(node, *select))
    return work, gradient


def lora_work(patch: pytest.MonkeyPatch, **changes: Any) -> Work:
    return gradient_work(patch, moved(adapted(model(**changes), rank=RANK)), "*.A", "*.B")[0]


def needed(node: Transformer, rank: int | None) -> int:
    return BATCH * node.config.context * step_multiply_adds(node.config, rank, "qv")


def test_counting_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    node = moved(adapted(model(), rank=RANK))
    data = random_batch(node, batch=BATCH, seq=node.config.context)
    with thread_map(1):
        loss = value_and_grad(lambda p: language_model_loss(with_parameters(node, p), data))
        _, plain = loss(parameters(node, "*.A", "*.B"))
    _, found = gradient_work(monkeypatch, node, "*.A", "*.B")
    assert all(np.array_equal(found[name], array) for name, array in plain.items())


# --------------------------------------------------------------------------------------------- multiply-adds


def test_a_lora_step_does_the_multiply_adds_it_needs_and_few_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond (C9): the squares on the diagonal of the scores are made whole, and p is made twice. Below it: nothing
    below the first adapted map needs a gradient. Measured: 1.02 of what is needed."""
    ratio = lora_work(monkeypatch).multiply_adds / needed(model(), RANK)
    assert 0.9 < ratio < 1.1


def test_a_full_step_makes_the_logits_once_more_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: 1.03 of what is needed, the logits made again apart; 1 in 4 products with the table is that one."""
    node = model()
    work, _ = gradient_work(monkeypatch, node, "*")
    again = BATCH * SIZES["context"] * SIZES["vocab"] * SIZES["d_model"]
    assert 0.95 < (work.multiply_adds - again) / needed(node, None) < 1.1


def test_scores_above_the_diagonal_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: all keys for every query, hidden afterwards."""
    attention = lora_np.modules.attention
    right = lora_work(monkeypatch, context=512)

    def whole(q: Any, k: Any, v: Any, heads: int, causal: bool, mask: Any) -> Any:
        return attention(q, k, v, heads, False, mask)

    monkeypatch.setattr(lora_np.modules, "attention", whole)
    assert lora_work(monkeypatch, context=512).multiply_adds > 1.1 * right.multiply_adds


# --------------------------------------------------------------------------------- gradients of frozen weights


def frozen_shapes(node: Transformer) -> set[tuple[int, ...]]:
    c = node.config
    return {(c.d_model, c.d_model), (c.d_hidden, c.d_model), (c.d_model, c.d_hidden), (c.vocab, c.d_model)}


def test_no_gradient_of_a_frozen_weight_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no product is the result as large as a weight. In full fine-tuning all of them are: the contrast."""
    node = model()
    found = {shape for shape, _ in lora_work(monkeypatch).products}
    assert not found & frozen_shapes(node)
    full, _ = gradient_work(monkeypatch, node, "*")
    shapes = {shape for shape, _ in full.products}
    assert {(128, 128), (500, 128), (128, 500)} <= shapes
    assert any(words > SIZES["d_ff"] and d == 128 for words, d in shapes)  # the table, a block at a time


def test_a_step_of_lora_does_about_two_thirds_of_the_products_of_a_full_step(monkeypatch: pytest.MonkeyPatch) -> None:
    full, _ = gradient_work(monkeypatch, model(), "*")
    assert 0.5 < lora_work(monkeypatch).multiply_adds / full.multiply_adds < 0.72


# -------------------------------------------------------------------------------- large arrays, and autograd's nodes


def per_block(count: Callable[[int], int]) -> int:
    """What one more block adds; two differences that are equal."""
    one, two, three = (count(layers) for layers in (1, 2, 3))
    assert two - one == three - two
    return three - two


def test_one_more_block_makes_no_more_large_arrays_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the MLP: the output of `up`, GELU and its slope, and backward the gradients at both. Five above a megabyte,
    and no temporary among them. Scores: blocks of 2^18 numbers are one megabyte exactly."""
    assert per_block(lambda layers: lora_work(monkeypatch, layers=layers).large) == 5


def test_a_temporary_as_large_as_an_activation_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    gelu = operations.gelu

    def careless(x: Any, /, *, wanted: Any) -> Any:
        y, saved = gelu.forward(x, wanted=wanted)
        return (y * 2.0) * 0.5, saved

    monkeypatch.setattr(lora_np.modules, "gelu", operation(careless, gelu.backward))
    assert per_block(lambda layers: lora_work(monkeypatch, layers=layers).large) == 7


# Large arrays that an operation makes, forward and backward, of arguments of two megabytes: its results and what it
# keeps that was not there before, x̂ of a layer norm and the slopes of GELU. Blocks are half a megabyte.
MAKES = {
    "layer_norm": (2, 1),
    "rms_norm": (1, 1),
    "gelu": (2, 1),
    "gelu_exact": (2, 1),
    "silu_gate": (1, 2),
    "rotary": (1, 1),
    "attention": (1, 1),  # of 8 heads that share one: keys, values and scores are small
}


def large_arrays(patch: pytest.MonkeyPatch, forward: Any, backward: Any, *arguments: Any, wanted: Any) -> Any:
    given = [a.view(Counted) if isinstance(a, np.ndarray) else a for a in arguments]
    dy = np.ones_like(arguments[0]).view(Counted)
    with thread_map(1), counted(patch) as work:
        _, saved = forward(*given, wanted=wanted)
        first = work.large
        backward(saved, dy, wanted)
    return first, work.large - first


def large_case(name: str) -> tuple[list[Any], tuple[str, ...]]:
    rng = np.random.default_rng(0)
    x, d = rng.standard_normal((4, 256, 512)).astype(np.float32), np.ones(512, np.float32)
    tables = rotary_tables(np.arange(256), 64, 1e4, np.float32)
    keys = rng.standard_normal((4, 256, 64)).astype(np.float32)
    return {
        "layer_norm": ([x, d, d, 1e-5], ("x",)),
        "rms_norm": ([x, d, 1e-5], ("x",)),
        "gelu": ([x], ("x",)),
        "gelu_exact": ([x], ("x",)),
        "silu_gate": ([x, x], ("gate", "up")),
        "rotary": ([x, *tables], ("x",)),
        "attention": ([x, keys, keys, 8, True, None], ("q", "k", "v")),
    }[name]


@pytest.mark.parametrize("name", MAKES)
def test_an_operation_makes_its_results_what_it_keeps_and_no_other_large_array(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    right = getattr(operations, name)
    arguments, wanted = large_case(name)
    monkeypatch.setattr(sys.modules["lora_np.operations.attention"], "SCORES", 1 << 17)
    assert large_arrays(monkeypatch, right.forward, right.backward, *arguments, wanted=wanted) == MAKES[name]


def test_a_copy_that_an_operation_makes_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = operations.silu_gate
    arguments, wanted = large_case("silu_gate")

    def copying(gate: Any, up: Any, /, *, wanted: Any) -> Any:
        y, _ = right.forward(gate, up, wanted=wanted)
        return y, (gate + 0.0, up)

    assert large_arrays(monkeypatch, copying, right.backward, *arguments, wanted=wanted) == (2, 2)


def test_autograd_keeps_a_node_for_each_operation_of_a_block_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two norms, four maps of attention, attention, two maps of the MLP, GELU and two sums: 12; and for each of the
    four trained arrays a root."""
    assert per_block(lambda layers: lora_work(monkeypatch, layers=layers).nodes) == 12


def calls_of_a_step(patch: pytest.MonkeyPatch, norm: Any = None) -> int:
    """Functions of Python that one step at the size tiny calls, whoever's they are."""
    with patch.context() as inner:
        if norm is not None:
            inner.setattr(lora_np.modules, "layer_norm", norm)
        step, count = WORKLOADS["lora"](Task("lora", TINY, workers=1)), 0

        def seen(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event == "call"

        step()
        before = sys.getprofile()
        sys.setprofile(seen)
        try:
            step()
        finally:
            sys.setprofile(before)
    return count


def test_a_step_at_the_smallest_size_calls_no_more_functions_than_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """At this size calls are a sixth of the time. Measured: 1,444 (Python 3.11; newer ones count comprehensions as
    none), 2,285 while autograd wrote the nodes. One of five norms from the textbook's equation would be noticed."""
    assert 500 < calls_of_a_step(monkeypatch) < MOST_CALLS


def test_a_norm_of_many_small_operations_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def textbook_norm(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        return textbook.layer_norm(x, gamma, beta) + 0.0 * eps

    assert calls_of_a_step(monkeypatch, textbook_norm) > MOST_CALLS


def test_a_gradient_that_nobody_wants_is_not_made_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the keys of the first block for one, which are frozen: the products of (S8) and (S7) are left out."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 8, 12))
    products = {}
    for wanted in (("q", "k", "v"), ("q", "v"), ("k", "v"), ("v",)):
        _, saved = operations.attention.forward(*(x.view(Counted) for x in (q, k, v)), 2, True, None, wanted=wanted)
        with counted(monkeypatch) as work:
            gradients = operations.attention.backward(saved, np.ones_like(q).view(Counted), wanted)
        assert len(gradients) == len(wanted)
        products[wanted] = len(work.products)
    assert products == {("q", "k", "v"): 5, ("q", "v"): 4, ("k", "v"): 4, ("v",): 2}


def test_the_logits_of_all_tokens_are_never_one_array(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocab = BATCH * SIZES["context"], SIZES["vocab"]
    largest = max(rows * columns for (rows, columns), _ in lora_work(monkeypatch).products)
    assert largest < tokens * vocab / 2


def test_what_is_recomputed_is_one_more_forward_pass_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    node = moved(adapted(model(), rank=RANK))
    kept, gradient = gradient_work(monkeypatch, node, "*.A", "*.B")
    again, same = gradient_work(monkeypatch, node, "*.A", "*.B", recompute=True)
    assert all(np.array_equal(same[name], array) for name, array in gradient.items())
    assert 1.2 < again.multiply_adds / kept.multiply_adds < 1.5


def test_the_closed_form_counts_what_is_trained() -> None:
    lora = LoraConfig(RANK, targets="qv")
    node = adapted(model(), rank=lora.rank)
    assert lora_count(node.config, RANK, "qv") == sum(a.size for a in parameters(node, "*.A", "*.B").values())


# -------------------------------------------------------------------------------------------------------- float32


def dtypes_of_cotangents(
    patch: pytest.MonkeyPatch, node: Transformer, *select: str, recompute: bool = False
) -> set[Any]:
    seen = set()
    add = differentiation.added

    def watched(before: Any, gradient: Any) -> Any:
        seen.add(gradient.dtype)
        return add(before, gradient)

    batch = random_batch(node)
    with patch.context() as inner:
        inner.setattr(differentiation, "added", watched)
        value_and_grad(model_loss(node, recompute=recompute))(
            parameters(node, *select), batch, np.random.default_rng(0)
        )
    return seen


def everything() -> Transformer:
    sizes = {"vocab": 11, "context": 12, "d_model": 8, "d_ff": 32}
    lora = {"targets": ("attention+mlp", "tokens"), "tied_head": "tie", "bias": "all", "dropout": 0.3}
    return moved(adapted(model(**sizes), **lora))


@pytest.mark.parametrize("select", [("*.A", "*.B"), ("*",)], ids=" ".join)
@pytest.mark.parametrize("recompute", [False, True])
def test_every_cotangent_of_a_float32_step_is_float32(
    monkeypatch: pytest.MonkeyPatch, select: tuple[str, ...], recompute: bool
) -> None:
    for node in (everything(), model(vocab=11, context=12, causal=False, tied=False)):
        names = select if node.head is None else ("*",)
        assert dtypes_of_cotangents(monkeypatch, node, *names, recompute=recompute) == {np.dtype(np.float32)}


def test_a_numpy_number_among_the_cotangents_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    gelu = operations.gelu
    wide = operation(gelu.forward, lambda saved, dy, wanted: [saved * dy * np.sqrt(1.0)])
    monkeypatch.setattr(lora_np.modules, "gelu", wide)
    assert np.dtype(np.float64) in dtypes_of_cotangents(monkeypatch, everything(), "*.A", "*.B")
