"""The laws of `operations`: each forward and each hand-derived backward is that of the textbook, and costs no more."""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from builders import assert_agree, few_shapes, random_shapes
from hypothesis import given
from hypothesis import strategies as st

from lora_np import operations, textbook
from lora_np.arrays import row_blocks
from lora_np.differentiation import operation, value_and_grad
from lora_np.threads import thread_map


@dataclass(frozen=True, repr=False)
class Case:
    """An operation, what the textbook says it is, and arguments for both; `arrays` can be differentiated."""

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    arguments: dict[str, Any]
    arrays: tuple[str, ...]
    dy: Any

    def __repr__(self) -> str:
        return ", ".join(f"{name} {getattr(value, 'shape', value)}" for name, value in self.arguments.items())

    def positional(self, **replaced: Any) -> list[Any]:
        return list({**self.arguments, **replaced}.values())

    def loss(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda p: anp.sum(function(*self.positional(**p)) * self.dy)

    @property
    def point(self) -> dict[str, Any]:
        return {name: self.arguments[name] for name in self.arrays}


def as_float32(case: Case) -> Case:
    def cast(value: Any) -> Any:
        return value.astype(np.float32) if getattr(value, "dtype", None) == np.float64 else value

    return replace(case, arguments={n: cast(v) for n, v in case.arguments.items()}, dy=cast(case.dy))


def operation_module(name: str) -> ModuleType:
    """`lora_np.operations.attention` is the function; this is its file."""
    return sys.modules[f"lora_np.operations.{name}"]


# -------------------------------------------------------------------------------------------- the cases


def generators(draw: st.DrawFn) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32)))


leading = st.sampled_from([(), (1,), (7,), (1, 1), (2, 5), (2, 1, 3)])
width = st.integers(1, 9)


def textbook_linear(x: Any, W: Any, b: Any) -> Any:
    return textbook.linear({"map.W": W} if b is None else {"map.W": W, "map.b": b}, "map", x, None)


def textbook_lora_linear(x: Any, W: Any, b: Any, A: Any, B: Any, scaling: float, mask: Any) -> Any:
    """The textbook's on x; with dropout the low-rank branch reads x·m, so it is the textbook's on x·m without W0."""
    p = {"map.W": W, "map.A": A, "map.B": B} | ({} if b is None else {"map.b": b})
    if mask is None:
        return textbook.linear(p, "map", x, {"map": scaling})
    branch = textbook.linear({**p, "map.W": 0.0 * W}, "map", x * mask, {"map": scaling})
    return textbook_linear(x, W, None) + branch


def textbook_attention(q: Any, k: Any, v: Any, heads: int, causal: bool, mask: Any) -> Any:
    return textbook.attention(q, k, v, heads, visible(q.shape[1], k.shape[1], causal, mask))


def visible(queries: int, keys: int, causal: bool, mask: Any) -> Any:
    """(batch or 1, 1, queries, keys): True where a query may see a key; causal ends with the last query seeing all."""
    may = np.ones((queries, keys), bool)
    seen = np.tril(may, keys - queries) if causal else may
    return seen[None, None] & (True if mask is None else mask[:, None, None, :])


@st.composite
def linear_case(draw: st.DrawFn) -> Case:
    rng, lead, d_in, d_out = generators(draw), draw(leading), draw(width), draw(width)
    b = rng.standard_normal(d_out) if draw(st.booleans()) else None
    arguments = {"x": rng.standard_normal((*lead, d_in)), "W": rng.standard_normal((d_out, d_in)), "b": b}
    arrays = ("x", "W") if b is None else ("x", "W", "b")
    return Case(operations.linear, textbook_linear, arguments, arrays, rng.standard_normal((*lead, d_out)))


@st.composite
def lora_linear_case(draw: st.DrawFn) -> Case:
    rng, plain = generators(draw), draw(linear_case())
    x, W, b = plain.positional()
    rank = draw(st.integers(1, 5))
    mask = 1.5 * (rng.random(x.shape) < 2 / 3) if draw(st.booleans()) else None
    A, B = rng.standard_normal((rank, x.shape[-1])), rng.standard_normal((len(W), rank))
    arguments = {"x": x, "W": W, "b": b, "A": A, "B": B, "scaling": 0.7, "mask": mask}
    return Case(operations.lora_linear, textbook_lora_linear, arguments, (*plain.arrays, "A", "B"), plain.dy)


@st.composite
def embedding_case(draw: st.DrawFn) -> Case:
    """Fewer rows than tokens as often as not, so tokens repeat."""
    rng, vocab, d = generators(draw), draw(st.integers(1, 6)), draw(width)
    lead = draw(leading.filter(bool))
    arguments = {"tokens": rng.integers(0, vocab, lead), "W": rng.standard_normal((vocab, d))}
    dy = rng.standard_normal((*lead, d))
    return Case(operations.embedding, lambda tokens, W: W[tokens], arguments, ("W",), dy)


@st.composite
def layer_norm_case(draw: st.DrawFn) -> Case:
    rng, lead, d = generators(draw), draw(leading), draw(width)
    x = rng.standard_normal((*lead, d)) + draw(st.sampled_from([0.0, 10.0]))
    arguments = {"x": x, "gamma": rng.standard_normal(d), "beta": rng.standard_normal(d), "eps": 1e-3}
    dy = rng.standard_normal(x.shape)
    return Case(operations.layer_norm, textbook.layer_norm, arguments, ("x", "gamma", "beta"), dy)


@st.composite
def gelu_case(draw: st.DrawFn) -> Case:
    rng, lead, d = generators(draw), draw(leading), draw(width)
    x = draw(st.sampled_from([1.0, 4.0])) * rng.standard_normal((*lead, d))  # beyond 25 autograd's cosh overflows
    return Case(operations.gelu, textbook.gelu, {"x": x}, ("x",), rng.standard_normal(x.shape))


@st.composite
def attention_case(draw: st.DrawFn) -> Case:
    """Around and beyond the 64 queries of a block; more keys than queries; padding, and nothing but padding."""
    rng, batch, heads = generators(draw), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    d_model = heads * draw(st.integers(1, 4))
    queries = draw(st.one_of(st.integers(1, 6), st.sampled_from([63, 64, 65, 131])))
    causal = draw(st.booleans())
    keys = queries + draw(st.integers(0, 3)) if causal else draw(st.integers(1, 9))
    mask = None
    if draw(st.booleans()):
        mask = rng.random((batch, keys)) < 0.7
        mask[0] &= draw(st.booleans())
    q = rng.standard_normal((batch, queries, d_model))
    k, v = rng.standard_normal((2, batch, keys, d_model))
    arguments = {"q": q, "k": k, "v": v, "heads": heads, "causal": causal, "mask": mask}
    return Case(operations.attention, textbook_attention, arguments, ("q", "k", "v"), rng.standard_normal(q.shape))


@st.composite
def cross_entropy_case(draw: st.DrawFn) -> Case:
    rng, lead, vocab = generators(draw), draw(leading.filter(bool)), draw(width)
    logits = 3.0 * rng.standard_normal((*lead, vocab))
    weights = rng.random(lead) * (rng.random(lead) < 0.8)
    arguments = {"logits": logits, "targets": rng.integers(0, vocab, lead), "weights": weights}
    return Case(operations.cross_entropy, textbook.cross_entropy, arguments, ("logits",), rng.standard_normal())


@st.composite
def head_cross_entropy_case(draw: st.DrawFn) -> Case:
    rng, logits = generators(draw), draw(cross_entropy_case())
    d, vocab = draw(width), logits.arguments["logits"].shape[-1]
    h = rng.standard_normal((*logits.arguments["logits"].shape[:-1], d))
    arguments = {"h": h, "W": rng.standard_normal((vocab, d)), **logits.arguments}
    del arguments["logits"]
    return Case(operations.head_cross_entropy, textbook_head, arguments, ("h", "W"), logits.dy)


def textbook_head(h: Any, W: Any, targets: Any, weights: Any) -> Any:
    return textbook.cross_entropy(anp.dot(h, W.T), targets, weights)


@st.composite
def dora_linear_case(draw: st.DrawFn) -> Case:
    plain = draw(lora_linear_case())
    arguments = {**plain.arguments, "m": generators(draw).standard_normal(len(plain.arguments["W"])) + 2.0}
    scaling, _ = arguments.pop("scaling"), arguments.pop("mask")
    arrays = (*plain.arrays, "m")
    return Case(operations.dora_linear, textbook_dora_linear, {**arguments, "scaling": scaling}, arrays, plain.dy)


def textbook_dora_linear(x: Any, W: Any, b: Any, A: Any, B: Any, m: Any, scaling: float) -> Any:
    p = {"map.W": W, "map.A": A, "map.B": B, "map.m": m} | ({} if b is None else {"map.b": b})
    return textbook.linear(p, "map", x, {"map": scaling})


@st.composite
def kronecker_case(draw: st.DrawFn) -> Case:
    size = st.integers(1, 4)
    rng, n, rank, a, b = generators(draw), draw(size), draw(size), draw(size), draw(size)
    shapes = {"A": (n, n, n), "S": (n, a, rank), "T": (n, rank, b)}
    arguments = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return Case(
        operations.kronecker, textbook_kronecker, arguments, ("A", "S", "T"), rng.standard_normal((n * a, n * b))
    )


def textbook_kronecker(A: Any, S: Any, T: Any) -> Any:
    return textbook.whole({"map.A": A, "map.S": S, "map.T": T}, "map")


@st.composite
def replaced_rows_case(draw: st.DrawFn) -> Case:
    """Words and special tokens at random: one of either may stand nowhere, or at several places."""
    rng, lead, special, d = generators(draw), draw(leading.filter(bool)), draw(st.integers(1, 4)), draw(width)
    first = draw(st.integers(1, 5))
    arguments = {
        "h": rng.standard_normal((*lead, d)),
        "S": rng.standard_normal((special, d)),
        "tokens": rng.integers(0, first + special, lead),
        "first": first,
    }
    dy = rng.standard_normal((*lead, d))
    return Case(operations.replaced_rows, textbook_replaced_rows, arguments, ("h", "S"), dy)


def textbook_replaced_rows(h: Any, S: Any, tokens: Any, first: int) -> Any:
    return textbook.special_rows({"tokens.W": np.zeros((first, 1)), "map.special": S}, "map", tokens, h)


@st.composite
def prepended_case(draw: st.DrawFn) -> Case:
    size = st.integers(1, 5)
    rng, batch, length, n, w = generators(draw), draw(size), draw(size), draw(size), draw(size)
    arguments = {"P": rng.standard_normal((length, w)), "k": rng.standard_normal((batch, n, w))}
    dy = rng.standard_normal((batch, length + n, w))
    return Case(operations.prepended, textbook_prepended, arguments, ("P", "k"), dy)


def textbook_prepended(P: Any, k: Any) -> Any:
    visible = np.ones((1, 1, 1, k.shape[1]), bool)
    return textbook.prefixed({"map.keys": P, "map.values": P}, "map", k, k, visible)[0]


@st.composite
def scaled_rows_case(draw: st.DrawFn) -> Case:
    rng, n, d = generators(draw), draw(width), draw(width)
    arguments = {"M": rng.standard_normal((n, d)), "v": rng.standard_normal(n)}
    dy = rng.standard_normal((n, d))
    return Case(operations.scaled_rows, lambda M, v: v[:, None] * M, arguments, ("M", "v"), dy)


CASES = {
    "linear": linear_case(),
    "lora_linear": lora_linear_case(),
    "embedding": embedding_case(),
    "layer_norm": layer_norm_case(),
    "gelu": gelu_case(),
    "attention": attention_case(),
    "cross_entropy": cross_entropy_case(),
    "head_cross_entropy": head_cross_entropy_case(),
    "dora_linear": dora_linear_case(),
    "kronecker": kronecker_case(),
    "replaced_rows": replaced_rows_case(),
    "prepended": prepended_case(),
    "scaled_rows": scaled_rows_case(),
}
every_operation = pytest.mark.parametrize("name", CASES)


def assert_is_the_textbooks(case: Case) -> None:
    """The value, and the gradient by every array, of a random combination of the outputs."""
    assert_agree(case.ours(*case.positional()), case.theirs(*case.positional()), "y")
    value, gradient = value_and_grad(case.loss(case.ours))(case.point)
    theirs, their_gradient = autograd.value_and_grad(case.loss(case.theirs))(case.point)
    assert_agree(value, theirs, "loss")
    for name in case.arrays:
        assert_agree(gradient[name], their_gradient[name], name)


# ------------------------------------------------------------------------------------- for every operation


@every_operation
@random_shapes
@given(st.data())
def test_value_and_gradients_are_the_textbooks(name: str, data: st.DataObject) -> None:
    assert_is_the_textbooks(data.draw(CASES[name]))


@every_operation
def test_every_operation_has_a_case(name: str) -> None:
    assert sorted(CASES) == sorted(operations.__all__)


@every_operation
@few_shapes
@given(st.data())
def test_float32_stays_float32_in_the_output_and_every_gradient(name: str, data: st.DataObject) -> None:
    case = as_float32(data.draw(CASES[name]))
    assert case.ours(*case.positional()).dtype == np.float32
    value, gradient = value_and_grad(case.loss(case.ours))(case.point)
    assert value.dtype == np.float32
    assert {n: g.dtype for n, g in gradient.items()} == dict.fromkeys(case.arrays, np.dtype(np.float32))
    assert {n: g.shape for n, g in gradient.items()} == {n: a.shape for n, a in case.point.items()}


@every_operation
@few_shapes
@given(st.data())
def test_a_frozen_array_has_no_gradient_and_changes_no_other(name: str, data: st.DataObject) -> None:
    """backward gives one gradient for each wanted name, in order, and the same whichever others are wanted."""
    case = data.draw(CASES[name])
    forward, backward = case.ours.forward, case.ours.backward
    dy = np.asarray(case.dy)

    def gradients(wanted: tuple[str, ...]) -> dict[str, Any]:
        _, saved = forward(*case.positional(), wanted=wanted)
        return dict(zip(wanted, backward(saved, dy, wanted), strict=True))

    every = gradients(case.arrays)
    for size in range(1, len(case.arrays) + 1):
        for wanted in itertools.permutations(case.arrays, size):
            for n, gradient in gradients(wanted).items():
                assert np.array_equal(gradient, every[n])


@every_operation
@few_shapes
@given(st.data())
def test_no_operation_writes_into_its_arguments(name: str, data: st.DataObject) -> None:
    """And backward leaves dy and what was saved as they were: called twice, it says the same."""
    case = data.draw(CASES[name])
    dy = np.asarray(case.dy)
    before = digest([*case.arguments.values(), dy])
    y, saved = case.ours.forward(*case.positional(), wanted=case.arrays)
    y_before = np.array(y)
    first = [g.copy() for g in case.ours.backward(saved, dy, case.arrays)]
    second = case.ours.backward(saved, dy, case.arrays)
    assert digest([*case.arguments.values(), dy]) == before
    assert np.array_equal(y, y_before)
    assert all(map(np.array_equal, first, second))


def digest(values: list[Any]) -> str:
    return hashlib.sha256(b"".join(v.tobytes() for v in values if isinstance(v, np.ndarray))).hexdigest()


@every_operation
@few_shapes
@given(st.data())
def test_no_result_depends_on_uninitialised_memory(name: str, data: st.DataObject) -> None:
    """`empty` may hold anything, NaN included; here it does."""
    case = data.draw(CASES[name])
    value, gradient = value_and_grad(case.loss(case.ours))(case.point)
    with pytest.MonkeyPatch.context() as patch:
        for module in FILES:
            if hasattr(operation_module(module), "array_module"):
                patch.setattr(operation_module(module), "array_module", lambda x: FullOfNaN())
        poisoned, poisoned_gradient = value_and_grad(case.loss(case.ours))(case.point)
    assert value == poisoned
    assert all(np.array_equal(gradient[n], poisoned_gradient[n]) for n in case.arrays)


FILES = ("activation", "attention", "dora", "embedding", "head", "linear", "loss", "normalization", "rows")


class FullOfNaN:
    """NumPy, with empty arrays full of NaN."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = float) -> Any:
        return np.full(shape, math.nan, dtype)

    def empty_like(self, x: Any) -> Any:
        return np.full_like(x, math.nan)


@every_operation
@few_shapes
@given(st.data())
def test_in_evaluation_nothing_outlives_the_call(name: str, data: st.DataObject) -> None:
    """No activation and no weight is held for a backward that will not come."""
    case = data.draw(CASES[name])
    arguments = [np.array(v) if isinstance(v, np.ndarray) else v for v in case.positional()]
    y = np.asarray(case.ours(*arguments))
    watched = [weakref.ref(v) for v in [*arguments, y, y.base] if isinstance(v, np.ndarray)]
    del arguments, y
    assert not any(ref() is not None for ref in watched)


def arrays_in(saved: Any) -> list[Any]:
    if isinstance(saved, tuple):
        return [array for part in saved for array in arrays_in(part)]
    return [saved] if isinstance(saved, np.ndarray) else []


def keeps(saved: Any, array: Any) -> bool:
    return any(np.shares_memory(kept, array) for kept in arrays_in(saved))


# ------------------------------------------------------------------------------------- the planted faults


def faulty(name: str, change: Callable[..., list[Any]]) -> Callable[[Case], Case]:
    """The operation with another backward: `change(right gradients, saved, dy, wanted)`."""
    right = getattr(operations, name)

    def backward(saved: Any, dy: Any, wanted: tuple[str, ...]) -> list[Any]:
        gradients = dict(zip(wanted, right.backward(saved, dy, wanted), strict=True))
        return list(change(gradients, saved, dy).values())

    return lambda case: replace(case, ours=operation(right.forward, backward))


def without_correction(gradient: dict[str, Any], saved: Any, dy: Any) -> dict[str, Any]:
    """Softmax's gradient as p·g, without taking out Σ p·g."""
    q, k, v, o, _, heads, causal, mask = saved
    Q, K, V, G = (x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (q, k, v, dy))
    scale = 1 / math.sqrt(Q.shape[-1])
    s = np.where(visible(q.shape[1], k.shape[1], causal, mask), Q @ K.swapaxes(-1, -2) * scale, -1e30)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    ds = p * (G @ V.swapaxes(-1, -2))
    return {**gradient, "q": (ds @ K * scale).swapaxes(1, 2).reshape(q.shape)}


def without_two_means(gradient: dict[str, Any], saved: Any, dy: Any) -> dict[str, Any]:
    _, inverse_sigma, gamma = saved
    return {**gradient, "x": (dy * gamma * inverse_sigma.reshape(*dy.shape[:-1], 1))}


def last_of_each_token(gradient: dict[str, Any], saved: Any, dy: Any) -> dict[str, Any]:
    tokens, shape = saved
    dW = np.zeros(shape)
    dW[tokens] += dy
    return {"W": dW}


def off_by_one(q: Any, k: Any, v: Any, heads: int, causal: bool, mask: Any) -> Any:
    return textbook.attention(q, k, v, heads, np.tril(np.ones((q.shape[1], k.shape[1]), bool), 1)[None, None])


def other_heads(q: Any, k: Any, v: Any, heads: int, causal: bool, mask: Any) -> Any:
    return textbook_attention(q, k, v, 1, causal, mask)


def changed(name: str, factor: Callable[[Any], Any]) -> Callable[..., dict[str, Any]]:
    return lambda gradient, saved, dy: {**gradient, name: factor(gradient[name])}


FAULTS: dict[str, tuple[str, Callable[[Case], Case]]] = {
    "a lost scaling of A": ("lora_linear", faulty("lora_linear", changed("A", lambda g: g / 0.7))),
    "a lost scaling of B": ("lora_linear", faulty("lora_linear", changed("B", lambda g: g / 0.7))),
    "a scaling off by a hundredth": ("lora_linear", faulty("lora_linear", changed("A", lambda g: g * 1.01))),
    "a low-rank branch missing from x": (
        "lora_linear",
        faulty("lora_linear", lambda g, saved, dy: {**g, "x": dy @ saved[1]}),
    ),
    "a sign": ("linear", faulty("linear", changed("x", lambda g: -g))),
    "a transposition": ("linear", faulty("linear", changed("W", lambda g: g.T))),
    "a missing row sum": ("linear", faulty("linear", lambda g, saved, dy: {**g, "b": dy.reshape(-1, dy.shape[-1])[0]})),
    "repeated tokens counted once": ("embedding", faulty("embedding", last_of_each_token)),
    "a layer norm without its two means": ("layer_norm", faulty("layer_norm", without_two_means)),
    "a gamma without its row sum": (
        "layer_norm",
        faulty("layer_norm", lambda g, s, dy: {**g, "gamma": s[0][0] * dy[0, 0]}),
    ),
    "a step in place of gelu's slope": ("gelu", faulty("gelu", lambda g, saved, dy: {"x": dy * (saved > 0.5)})),
    "a softmax without its correction": ("attention", faulty("attention", without_correction)),
    "a mask off by one": ("attention", lambda case: replace(case, ours=off_by_one)),
    "a wrong head split": ("attention", lambda case: replace(case, ours=other_heads)),
    "weights ignored": (
        "cross_entropy",
        lambda case: replace(case, ours=lambda x, y, w: operations.cross_entropy(x, y, np.full_like(w, 1 / w.size))),
    ),
    "a target not subtracted": (
        "cross_entropy",
        faulty("cross_entropy", lambda g, s, dy: {"logits": (s[0] * s[2][:, None] * dy).reshape(s[3])}),
    ),
}


def fixed_case(name: str) -> Case:
    """One case of each operation, square and of two rows, on which every fault can be made."""
    rng = np.random.default_rng(0)
    normal, tokens = rng.standard_normal, rng.integers(0, 3, (2, 4))
    x, W, b, A, B = normal((2, 4, 4)), normal((4, 4)), normal(4), normal((2, 4)), normal((4, 2))
    theirs = {"linear": textbook_linear, "lora_linear": textbook_lora_linear, "attention": textbook_attention}
    arguments: dict[str, dict[str, Any]] = {
        "linear": {"x": x, "W": W, "b": b},
        "lora_linear": {"x": x, "W": W, "b": b, "A": A, "B": B, "scaling": 0.7, "mask": None},
        "embedding": {"tokens": tokens, "W": W},
        "layer_norm": {"x": x, "gamma": b, "beta": A[0], "eps": 1e-5},
        "gelu": {"x": x},
        "attention": {"q": x, "k": normal(x.shape), "v": normal(x.shape), "heads": 2, "causal": True, "mask": None},
        "cross_entropy": {"logits": x, "targets": tokens, "weights": rng.random((2, 4))},
    }
    theirs |= {"embedding": lambda tokens, W: W[tokens], "layer_norm": textbook.layer_norm, "gelu": textbook.gelu}
    theirs |= {"cross_entropy": textbook.cross_entropy}
    given_here = arguments[name]
    arrays = tuple(
        n for n, v in given_here.items() if isinstance(v, np.ndarray) and n not in ("tokens", "targets", "weights")
    )
    dy = 0.8 if name == "cross_entropy" else normal(x.shape)
    return Case(getattr(operations, name), theirs[name], given_here, arrays, dy)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_with_the_textbook_catches(fault: str) -> None:
    name, plant = FAULTS[fault]
    assert_is_the_textbooks(fixed_case(name))
    with pytest.raises(AssertionError, match=r"apart|shape"):
        assert_is_the_textbooks(plant(fixed_case(name)))


# --------------------------------------------------------------------------------------------- linear maps


@random_shapes
@given(lora_linear_case())
def test_x_is_kept_only_for_the_gradient_of_a_matrix_that_reads_it(case: Case) -> None:
    for size in range(len(case.arrays) + 1):
        for wanted in itertools.combinations(case.arrays, size):
            _, saved = operations.lora_linear.forward(*case.positional(), wanted=wanted)
            assert keeps(saved, case.arguments["x"]) == bool({"A", "W"} & set(wanted)), wanted
    x, W, b = case.positional()[:3]
    for wanted in (("x",), ("b",), ("x", "b"), ("x", "W"), ("W",)):
        _, saved = operations.linear.forward(x, W, b, wanted=wanted)
        assert keeps(saved, x) == ("W" in wanted), wanted


def test_with_B_zero_the_gradient_of_A_is_exactly_zero_and_that_of_B_is_not() -> None:
    case = fixed_case("lora_linear")
    _, moved = value_and_grad(case.loss(case.ours))(case.point)
    assert moved["A"].all()
    _, gradient = value_and_grad(case.loss(case.ours))({**case.point, "B": np.zeros((4, 2))})
    assert not gradient["A"].any()
    assert gradient["B"].all()


# ---------------------------------------------------------------------------------------------- embedding


def test_the_gradients_of_a_token_that_occurs_twice_are_added() -> None:
    tokens, dy = np.array([[0, 2, 0], [2, 2, 4]]), np.arange(1.0, 7.0).reshape(2, 3, 1)
    _, gradient = value_and_grad(lambda p: anp.sum(operations.embedding(tokens, p["W"]) * dy))({"W": np.ones((5, 1))})
    assert gradient["W"].ravel().tolist() == [1 + 3, 0, 2 + 4 + 5, 0, 6]


# ------------------------------------------------------------------------------- blocks: GELU and layer norm


@pytest.mark.parametrize(("name", "module"), [("gelu", "activation"), ("layer_norm", "normalization")])
@pytest.mark.parametrize("elements", [1, 7, 16])
def test_cutting_rows_into_blocks_changes_nothing(name: str, module: str, elements: int) -> None:
    """Row by row the same operations, so at most the last bits of a vector unit's remainder loop may differ."""
    case = fixed_case(name)
    whole = [case.ours(*case.positional()), *value_and_grad(case.loss(case.ours))(case.point)[1].values()]
    calls = []

    def small(n: int, width: int, **_: Any) -> Any:
        calls.append(blocks := row_blocks(n, width, elements))
        return blocks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operation_module(module), "row_blocks", small)
        cut = [case.ours(*case.positional()), *value_and_grad(case.loss(case.ours))(case.point)[1].values()]
    assert max(map(len, calls)) > 1
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_array_max_ulp(one, other, maxulp=4)


def test_gelu_goes_to_x_on_the_right_and_to_zero_on_the_left() -> None:
    x = np.array([-40.0, -10.0, 0.0, 10.0, 40.0])
    assert_agree(operations.gelu(x), np.maximum(x, 0.0))
    _, gradient = value_and_grad(lambda p: anp.sum(operations.gelu(p["x"])))({"x": x})
    assert_agree(gradient["x"], np.array([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_a_layer_norm_does_not_see_shift_and_scale() -> None:
    """With ε much smaller than the variance; what ε takes is ε/2σ² ≤ 1e-10 of the result."""
    x = np.random.default_rng(0).standard_normal((5, 16))
    ones, zeros = np.ones(16), np.zeros(16)
    y = operations.layer_norm(x, ones, zeros, 1e-12)
    np.testing.assert_allclose(y.mean(axis=-1), 0.0, atol=1e-14)  # 16 numbers of size 1, each within eps: 4e-15
    np.testing.assert_allclose(y.var(axis=-1), 1.0, rtol=1e-10)
    np.testing.assert_allclose(operations.layer_norm(50.0 * x + 7.0, ones, zeros, 1e-12), y, atol=1e-10)


# ---------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "scores"), [(1, 1), (4, 30), (7, 10**9)])
def test_attention_by_blocks_is_attention_at_once(causal: bool, queries: int, scores: int) -> None:
    """10 queries in blocks of 1, 4 or 7, and 3 sequences in pieces, beside all of them in one block."""
    rng = np.random.default_rng(0)
    q, (k, v) = rng.standard_normal((3, 10, 8)), rng.standard_normal((2, 3, 12, 8))
    mask = rng.random((3, 12)) < 0.7
    dy = rng.standard_normal(q.shape)

    def run() -> list[Any]:
        loss = lambda p: anp.sum(operations.attention(p["q"], p["k"], p["v"], 2, causal, mask) * dy)  # noqa: E731
        value, gradient = value_and_grad(loss)({"q": q, "k": k, "v": v})
        return [operations.attention(q, k, v, 2, causal, mask), value, *gradient.values()]

    whole = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operation_module("attention"), "QUERIES", queries)
        patch.setattr(operation_module("attention"), "SCORES", scores)
        cut = run()
    for one, other in zip(whole, cut, strict=True):
        assert_agree(one, other)


def test_a_query_that_may_see_no_key_gives_zero_and_finite_gradients() -> None:
    case = fixed_case("attention")
    mask = np.array([[True, False, True, True], [False] * 4])
    y = case.ours(*case.positional(mask=mask))
    assert y[0].all()
    assert not y[1].any()
    masked = replace(case, arguments={**case.arguments, "mask": mask})
    _, gradient = value_and_grad(masked.loss(case.ours))(case.point)
    for name, array in gradient.items():
        assert np.isfinite(array).all()
        assert array[0].any(), name
        assert not array[1].any(), name


def test_a_first_query_before_all_real_tokens_gives_zero() -> None:
    """Left padding under a causal mask: the first queries see padding only."""
    case = fixed_case("attention")
    mask = np.array([[False, False, True, True]] * 2)
    y = case.ours(*case.positional(mask=mask))
    assert not y[:, :2].any()
    assert y[:, 2:].all()


@pytest.mark.parametrize(("queries", "keys"), [(2, 1), (70, 3)])
def test_causal_attention_refuses_more_queries_than_keys(queries: int, keys: int) -> None:
    q, k = np.ones((1, queries, 4)), np.ones((1, keys, 4))
    with pytest.raises(ValueError, match=f"a key for every query, got {queries} and {keys} keys"):
        operations.attention(q, k, k, 2, True, None)


def test_a_hidden_key_changes_nothing_bit_for_bit() -> None:
    case = fixed_case("attention")
    mask = np.array([[True, True, False, True]] * 2)
    y = case.ours(*case.positional(mask=mask))
    k, v = case.arguments["k"].copy(), case.arguments["v"].copy()
    k[:, 1] += 1.0
    assert not np.array_equal(case.ours(*case.positional(mask=mask, k=k)), y)  # contrast: a key that is seen
    k[:, 1] -= 1.0
    k, v = case.arguments["k"].copy(), case.arguments["v"].copy()
    k[:, 2], v[:, 2] = 1e3, -1e3
    assert np.array_equal(case.ours(*case.positional(mask=mask, k=k, v=v)), y)


def test_scores_of_ten_thousand_do_not_overflow() -> None:
    case = as_float32(fixed_case("attention"))
    q = 1e4 * case.arguments["q"]
    y = case.ours(*case.positional(q=q))
    assert np.isfinite(y).all()
    _, gradient = value_and_grad(case.loss(case.ours))({**case.point, "q": q})
    assert all(np.isfinite(array).all() for array in gradient.values())


def gradients_of_attention(function: Callable[..., Any], dtype: Any, common: float, seed: int) -> dict[str, Any]:
    """By q, k and v, at a float32 point where all keys, and all values, of a sequence share a part of this size."""
    rng = np.random.default_rng(seed)
    q, dy = rng.standard_normal((2, 2, 24, 16)).astype(np.float32)
    k, v = (rng.standard_normal((2, 2, 24, 16)) + common * rng.standard_normal((2, 2, 1, 16))).astype(np.float32)
    point = {"q": q.astype(dtype), "k": k.astype(dtype), "v": v.astype(dtype)}
    dy = dy.astype(dtype)
    return autograd.grad(lambda p: anp.sum(function(p["q"], p["k"], p["v"], 2, True, None) * dy))(point)


def attention_errors(function: Callable[..., Any], common: float) -> dict[str, float]:
    """Of float32 gradients, against the textbook's in float64: root mean square over 30 points, by array."""
    squares: dict[str, list[float]] = {"q": [], "k": [], "v": []}
    for seed in range(30):
        exact = gradients_of_attention(textbook_attention, np.float64, common, seed)
        rounded = gradients_of_attention(function, np.float32, common, seed)
        for name in squares:
            squares[name].append(float(np.mean((rounded[name] - exact[name]) ** 2)))
    return {name: math.sqrt(sum(values) / len(values)) for name, values in squares.items()}


def without_centring(gradient: dict[str, Any], saved: Any, dy: Any) -> dict[str, Any]:
    """(S4) to (S8) as they stand, the means over the keys left in."""
    q, k, v, o, log_sum, heads, causal, mask = saved
    Q, K, V, O, G = (x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (q, k, v, o, dy))
    scale = 1 / math.sqrt(Q.shape[-1])
    s = np.where(visible(q.shape[1], k.shape[1], causal, mask), Q @ K.swapaxes(-1, -2) * scale, np.float32(-math.inf))
    ds = np.exp(s - log_sum) * (G @ V.swapaxes(-1, -2) - (G * O).sum(-1, keepdims=True))
    dq, dk = ds @ K * scale, ds.swapaxes(-1, -2) @ Q * scale
    return {"q": dq.swapaxes(1, 2).reshape(q.shape), "k": dk.swapaxes(1, 2).reshape(k.shape), "v": gradient["v"]}


@pytest.mark.parametrize("common", [10.0, 100.0])
def test_where_keys_and_values_share_a_large_part_float32_gradients_are_as_accurate_as_the_textbooks(
    common: float,
) -> None:
    """Taking the means out is what does it.

    Measured: without it the error of q is 26 (common part 10) and 260 times as large; with it, that of q and k is 0.86
    to 0.93 of the textbook's. That of v, which no mean touches, is 1.07 to 1.1 of it: p is made again from ℓ, not
    normalised again.
    """
    ours, theirs = (attention_errors(f, common) for f in (operations.attention, textbook_attention))
    uncentred = operation(operations.attention.forward, uncentred_backward)
    assert attention_errors(uncentred, common)["q"] > 10 * ours["q"]
    assert ours["q"] <= theirs["q"]
    assert ours["k"] <= theirs["k"]
    assert ours["v"] <= 1.3 * theirs["v"]


def uncentred_backward(saved: Any, dy: Any, wanted: tuple[str, ...]) -> list[Any]:
    right = dict(zip(wanted, operations.attention.backward(saved, dy, wanted), strict=True))
    return [without_centring(right, saved, dy)[name] for name in wanted]


# ------------------------------------------------------------------------------------------- cross-entropy


@pytest.mark.parametrize("words", [1, 3, 7])
@pytest.mark.parametrize("logits", [1, 6, 100])
@random_shapes
@given(st.data())
def test_a_head_in_blocks_of_rows_and_vocabulary_is_the_whole_one(words: int, logits: int, data: st.DataObject) -> None:
    """Value and gradients agree with the textbook's for every way to cut; the largest logit may be in any block."""
    head = operation_module("head")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "WORDS", words)
        patch.setattr(head, "LOGITS", logits)
        assert_is_the_textbooks(data.draw(CASES["head_cross_entropy"]))


def test_logits_of_a_head_that_are_ten_thousand_apart_neither_overflow_nor_lose_the_answer() -> None:
    """Rising and falling from block to block: the largest so far is taken out of what was summed before."""
    head, W = operation_module("head"), np.array([[1e4], [-1e4], [0.0], [1e4]])
    h, targets, weights = np.array([[1.0], [-1.0]]), np.array([0, 1]), np.ones(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "WORDS", 1)
        value, gradient = value_and_grad(lambda p: operations.head_cross_entropy(p["h"], W, targets, weights))({"h": h})
    assert value == pytest.approx(math.log(2.0), rel=4 * np.finfo(float).eps)
    assert gradient["h"].tolist() == [[0.0], [0.0]]  # of 0 and 3, equal words, one is the target; W1 is its own mean


def test_the_head_makes_no_array_of_tokens_by_vocabulary() -> None:
    rng = np.random.default_rng(0)
    h, W = rng.standard_normal((600, 8)), rng.standard_normal((20_000, 8))
    targets, weights = rng.integers(0, 20_000, 600), np.full(600, 1 / 600)
    whole = 600 * 20_000 * 8

    def peak(loss: Callable[..., Any]) -> int:
        tracemalloc.start()
        value_and_grad(loss)({"h": h, "W": W})
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(lambda p: operations.cross_entropy(operations.linear(p["h"], p["W"], None), targets, weights)) > whole
    assert peak(lambda p: operations.head_cross_entropy(p["h"], p["W"], targets, weights)) < whole / 2


# ------------------------------------------------------------------------------------- idle threads inside


@every_operation
@few_shapes
@given(st.data())
def test_idle_threads_inside_an_operation_change_no_bit(name: str, data: st.DataObject) -> None:
    """Every array is cut into the smallest blocks there are, which two threads share."""
    case = data.draw(CASES[name])

    def both() -> list[Any]:
        value, gradient = value_and_grad(case.loss(case.ours))(case.point)
        return [value, *gradient.values()]

    def cut(n: int, width: int, elements: int = 1, xp: Any = np) -> list[slice]:
        return row_blocks(n, 1, 1)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("activation", "head", "linear", "normalization"):
            patch.setattr(operation_module(module), "row_blocks", cut)
        for module, value in (("linear", "ROWS"), ("attention", "SCORES")):
            patch.setattr(operation_module(module), value, 1)
        alone = both()
        with thread_map(2) as run:
            (helped,) = run(lambda _: both(), [None])
    assert all(map(np.array_equal, alone, helped))


def test_logits_of_ten_thousand_neither_overflow_nor_lose_the_answer() -> None:
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4 - 1.0, -1e4]])
    targets, weights = np.array([0, 0, 1]), np.ones(3)
    expected = np.array([0.0, 2e4 + math.log(2.0), 1.0 + math.log1p(math.exp(-1.0))])
    with np.errstate(all="ignore"):
        assert not np.isfinite(textbook.cross_entropy(logits, targets, weights))  # contrast: p underflows to 0
    for dtype in (np.float64, np.float32):
        x = logits.astype(dtype)
        one_hot = np.eye(3)[targets]
        value, gradient = value_and_grad(lambda p: operations.cross_entropy(p["x"], targets, weights))({"x": x})
        # one rounding of numbers of at most 2e4, and the loss adds up three of them
        np.testing.assert_allclose(value, expected.sum(), rtol=4 * np.finfo(dtype).eps)
        p = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0.0]])
        np.testing.assert_allclose(gradient["x"], p - one_hot, atol=4 * np.finfo(dtype).eps)


@few_shapes
@given(cross_entropy_case())
def test_a_row_of_weight_zero_contributes_nothing_whatever_it_holds(case: Case) -> None:
    logits, targets, weights = case.positional()
    other = np.where(weights[..., None] == 0, 50.0 - logits, logits)
    loss = lambda p: operations.cross_entropy(p["logits"], targets, weights)  # noqa: E731
    value, gradient = value_and_grad(loss)({"logits": logits})
    changed_value, changed_gradient = value_and_grad(loss)({"logits": other})
    assert value == changed_value
    assert np.array_equal(gradient["logits"], changed_gradient["logits"])
    assert not gradient["logits"][weights == 0].any()


@few_shapes
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9))
def test_the_losses_of_the_shards_add_up_to_that_of_the_batch(seed: int, batch: int, shards: int) -> None:
    rng = np.random.default_rng(seed)
    logits, targets = rng.standard_normal((batch, 5, 7)), rng.integers(0, 7, (batch, 5))
    weights = rng.random((batch, 5))
    parts = np.array_split(np.arange(batch), min(shards, batch))
    losses = [operations.cross_entropy(logits[rows], targets[rows], weights[rows]) for rows in parts]
    whole = operations.cross_entropy(logits, targets, weights)
    # all terms are positive and there are 5·batch of them: each order of adding errs by at most that many half eps
    assert abs(sum(losses) - whole) <= 5 * batch * np.finfo(float).eps * whole


def test_the_gradient_of_each_row_sums_to_zero() -> None:
    """Probabilities sum to one, and one is taken off: to 3 roundings of numbers below 1."""
    case = fixed_case("cross_entropy")
    _, gradient = value_and_grad(case.loss(case.ours))(case.point)
    assert np.abs(gradient["logits"]).max() > 0.1
    assert np.abs(gradient["logits"].sum(axis=-1)).max() <= 4 * np.finfo(float).eps


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    value = operations.cross_entropy(np.full((3, 8), 5.0), np.array([0, 3, 7]), np.full(3, 1 / 3))
    assert value == pytest.approx(math.log(8.0), rel=4 * np.finfo(float).eps)
