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
from lora_np.cases import CASES as TABLE
from lora_np.cases import Draw
from lora_np.engine.arrays import row_blocks
from lora_np.engine.differentiation import operation, value_and_grad
from lora_np.engine.halves import HalfArray
from lora_np.engine.threads import thread_map
from lora_np.operations.rotary import rotary_tables


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
        if isinstance(value, HalfArray):
            return HalfArray(value.bits, value.kind)
        return value.astype(np.float32) if getattr(value, "dtype", None) == np.float64 else value

    return replace(case, arguments={n: cast(v) for n, v in case.arguments.items()}, dy=cast(case.dy))


def operation_module(name: str) -> ModuleType:
    """`lora_np.operations.attention` is the function; this is its file."""
    return sys.modules[f"lora_np.operations.{name}"]


# -------------------------------------------------------------------------------------------- the cases


def drawn(name: str, seed: int) -> Case:
    """The row of the library's table of that name, with shapes that have edges and a random dy."""
    rng = np.random.default_rng(seed)
    sample = TABLE[name](Draw(rng, wide=True))
    ours = getattr(operations, sample.operation)
    shape = np.shape(ours(*sample.arguments.values()))
    dy = rng.standard_normal(shape) if shape else float(rng.standard_normal())
    return Case(ours, sample.book, sample.arguments, sample.arrays, dy)


def a_case_of(name: str) -> st.SearchStrategy[Case]:
    return st.integers(0, 2**32).map(lambda seed: drawn(name, seed))


def textbook_attention(q: Any, k: Any, v: Any, heads: int, causal: bool, mask: Any) -> Any:
    return textbook.attention(q, k, v, heads, visible(q.shape[1], k.shape[1], causal, mask))


def visible(queries: int, keys: int, causal: bool, mask: Any) -> Any:
    """(batch or 1, 1, queries, keys): True where a query may see a key; causal ends with the last query seeing all."""
    may = np.ones((queries, keys), bool)
    seen = np.tril(may, keys - queries) if causal else may
    return seen[None, None] & (True if mask is None else mask[:, None, None, :])


CASES = {name: a_case_of(name) for name in TABLE}
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


def test_every_operation_has_a_case() -> None:
    assert {drawn(name, 0).ours for name in CASES} == {getattr(operations, name) for name in operations.__all__}


def test_the_shapes_that_are_drawn_have_edges() -> None:
    """No leading axis and one of size 1; attention without a mask and with a sequence that is padding and no more, and
    with fewer keys than queries; queries of several blocks."""
    leads = {drawn("linear", seed).arguments["x"].shape[:-1] for seed in range(100)}
    assert {(), (1,), (1, 1), (2, 1, 3)} <= leads
    padded = [drawn("attention, padded", seed).arguments for seed in range(100)]
    masks = [case["mask"] for case in padded]
    assert any(mask is None for mask in masks)
    assert any(mask is not None and not mask[0].any() for mask in masks)
    assert any(case["k"].shape[1] < case["q"].shape[1] for case in padded)
    assert any(case["q"].shape[1] > 2 * 64 for case in padded)


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
        for module in [m for path, m in sys.modules.items() if path.startswith("lora_np.operations.")]:
            patch.setattr(module, "array_module", lambda x: FullOfNaN(), raising=False)
        poisoned, poisoned_gradient = value_and_grad(case.loss(case.ours))(case.point)
    assert value == poisoned
    assert all(np.array_equal(gradient[n], poisoned_gradient[n]) for n in case.arrays)


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


def exact_with_the_slope_of_tanh(x: Any, /, *, wanted: tuple[str, ...]) -> Any:
    return operations.gelu_exact(x), operations.gelu.forward(x, wanted=wanted)[1]


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
    "an RMS norm without its projection": (
        "rms_norm",
        faulty("rms_norm", lambda g, s, dy: {**g, "x": dy * s[2] * s[1].reshape(*dy.shape[:-1], 1)}),
    ),
    "an RMS norm's gamma without 1/σ": (
        "rms_norm",
        faulty("rms_norm", lambda g, s, dy: {**g, "gamma": (s[0] * dy.reshape(s[0].shape)).sum(axis=0)}),
    ),
    "a rotation that is not turned back": (
        "rotary",
        faulty("rotary", lambda g, s, dy: {"x": operations.rotary(dy, *s)}),
    ),
    "a sine of the other sign": (
        "rotary",
        lambda case: replace(case, ours=lambda x, cos, sin: operations.rotary(x, cos, -sin)),
    ),
    "a gate's slope without 1 − σ": (
        "silu_gate",
        faulty("silu_gate", lambda g, s, dy: {**g, "gate": dy * s[1] / (1 + np.exp(-s[0]))}),
    ),
    "a gate forgotten": ("silu_gate", faulty("silu_gate", lambda g, s, dy: {**g, "up": dy * s[0]})),
    "the tanh form in place of the exact gelu": ("gelu_exact", lambda case: replace(case, ours=operations.gelu)),
    "the tanh form's slope for the exact gelu": (
        "gelu_exact",
        lambda case: replace(case, ours=operation(exact_with_the_slope_of_tanh, operations.gelu.backward)),
    ),
    "a tanh whose slope is 1 − y": ("tanh", faulty("tanh", lambda g, s, dy: {"x": dy * (1 - s)})),
    "weights of the positions forgotten": ("pool", faulty("pool", lambda g, s, dy: {"h": 0 * g["h"] + dy})),
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
    arguments: dict[str, dict[str, Any]] = {
        "linear": {"x": x, "W": W, "b": b},
        "lora_linear": {"x": x, "W": W, "b": b, "A": A, "B": B, "scaling": 0.7, "mask": None},
        "embedding": {"tokens": tokens, "W": W},
        "layer_norm": {"x": x, "gamma": b, "beta": A[0], "eps": 1e-5},
        "gelu": {"x": x},
        "attention": {"q": x, "k": normal(x.shape), "v": normal(x.shape), "heads": 2, "causal": True, "mask": None},
        "cross_entropy": {"logits": x, "targets": tokens, "weights": rng.random((2, 4))},
        "rms_norm": {"x": x, "gamma": b, "eps": 1e-5},
        "rotary": dict(zip(("x", "cos", "sin"), (x, *rotary_tables(np.arange(4), 2, 10.0, float)), strict=True)),
        "silu_gate": {"gate": x, "up": normal(x.shape)},
        "gelu_exact": {"x": x},
        "tanh": {"x": x},
        "pool": {"h": x, "weights": rng.random((2, 4))},
    }
    row = "attention, causal" if name == "attention" else name
    given_here = arguments[name]
    constant = ("tokens", "targets", "weights", "cos", "sin")
    arrays = tuple(n for n, v in given_here.items() if isinstance(v, np.ndarray) and n not in constant)
    dy = 0.8 if name == "cross_entropy" else normal(x[:, :1].shape if name == "pool" else x.shape)
    return Case(getattr(operations, name), drawn(row, 0).theirs, given_here, arrays, dy)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_with_the_textbook_catches(fault: str) -> None:
    name, plant = FAULTS[fault]
    assert_is_the_textbooks(fixed_case(name))
    with pytest.raises(AssertionError, match=r"apart|shape"):
        assert_is_the_textbooks(plant(fixed_case(name)))


# --------------------------------------------------------------------------------------------- linear maps


@random_shapes
@given(CASES["lora_linear"])
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


BY_BLOCKS = {
    "gelu": "activation",
    "gelu_exact": "activation",
    "layer_norm": "normalization",
    "rms_norm": "normalization",
    "rotary": "rotary",
    "silu_gate": "gating",
}


@pytest.mark.parametrize(("name", "module"), BY_BLOCKS.items())
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


def test_an_rms_norm_does_not_see_scale_and_sees_a_shift() -> None:
    """With ε much smaller than the mean square; what ε takes is ε/2σ² ≤ 1e-10 of the result."""
    x, ones = np.random.default_rng(0).standard_normal((5, 16)), np.ones(16)
    y = operations.rms_norm(x, ones, 1e-12)
    np.testing.assert_allclose((y * y).mean(axis=-1), 1.0, rtol=1e-10)
    np.testing.assert_allclose(operations.rms_norm(50.0 * x, ones, 1e-12), y, atol=1e-10)
    assert abs(operations.rms_norm(x + 1.0, ones, 1e-12) - y).max() > 0.1


# ------------------------------------------------------------------------------------- the exact GELU, and the gate

# Of (A5) and (A6) in roundings of ½ε: x² and half of it, which moves the exponential by x²/2 of them; exp (NumPy says 4
# at most, in both precisions); p and q by Horner's rule, of positive terms, two a degree; their quotient, two products
# and the last difference. The fit of r comes on top: 1.1 roundings in float32, 0.1 in float64. Where C is asked in
# the same precision, the argument x/√2 has two roundings of its own, which move it by x² each.
DEGREES = {np.float32: 3 + 4, np.float64: 8 + 9}


def gelu_bound(x: Any, dtype: Any) -> Any:
    ours = 0.5 * x * x + 2 * DEGREES[dtype] + 10
    return (ours + (2 * x * x + 4 if dtype is np.float64 else 0)) * 0.5 * np.finfo(dtype).eps


def exact_gelu(x: Any) -> tuple[Any, Any]:
    """x Φ(x) and Φ(x) + x φ(x), number by number by the library of C, whose erfc is right to its last digit or two."""
    cumulative = np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in x])
    return x * cumulative, cumulative + x * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exact_gelu_is_right_to_a_few_roundings_where_it_matters(dtype: Any) -> None:
    """Relative to y itself, to the left as well. Measured: 2.6 ε below 1, and at most 0.5 of the bound anywhere."""
    fitted = sys.modules["lora_np.operations.activation"].TAIL[np.dtype(dtype).itemsize][2]
    x = np.linspace(-fitted, fitted, 40_001).astype(dtype)
    wide = x.astype(np.float64)
    y, slope = operations.gelu_exact.forward(x, wanted=("x",))
    right, right_slope = exact_gelu(wide)
    assert (abs(y - right) <= gelu_bound(wide, dtype) * abs(right)).all()
    assert (abs(y - right) <= 4 * np.finfo(dtype).eps * abs(right))[abs(x) <= 1].all()
    assert abs(slope - right_slope).max() <= 4 * np.finfo(dtype).eps  # of numbers up to 1.13; measured 1.3
    assert (abs(1.0001 * y - right) > gelu_bound(wide, dtype) * abs(right))[x > 0.01].all()  # a contrast


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_from_zero_the_exact_gelu_is_x_or_nothing(dtype: Any) -> None:
    fitted = sys.modules["lora_np.operations.activation"].TAIL[np.dtype(dtype).itemsize][2]
    x = np.concatenate([np.linspace(fitted, 45.0, 1000), [1e3, 1e9, 1e30]]).astype(dtype)
    right = exact_gelu(x.astype(np.float64))[0]
    assert (abs(operations.gelu_exact(x) - right) <= np.finfo(dtype).eps * right).all()
    left, exact = operations.gelu_exact(-x), exact_gelu(-x.astype(np.float64))[0]
    assert (abs(left - exact) <= 1e-3 * abs(exact) + np.finfo(dtype).tiny).all()
    assert not operations.gelu_exact(np.zeros(1, dtype)).any()


def test_the_two_forms_of_gelu_are_close_and_not_the_same() -> None:
    x = np.linspace(-6, 6, 1001)
    gap = abs(operations.gelu(x) - operations.gelu_exact(x))
    assert 1e-4 < gap.max() < 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gate_neither_overflows_nor_loses_digits(dtype: Any) -> None:
    """silu(g) and its slope against C's exp; at ±10⁴, where e^-g has no number, the limits."""
    g = np.linspace(-80, 80, 2001).astype(dtype)
    ones = np.ones_like(g)
    y, saved = operations.silu_gate.forward(g, ones, wanted=("gate", "up"))
    slope, silu = operations.silu_gate.backward(saved, ones, ("gate", "up"))
    wide = g.astype(np.float64)
    sigma = np.array([1 / (1 + math.exp(-v)) for v in wide])
    right = sigma * (1 + wide * np.array([1 / (1 + math.exp(v)) for v in wide]))
    # in halves of ε: exp, its argument's own (none: −g is exact), a sum, a quotient and up to five products
    np.testing.assert_allclose(y, wide * sigma, rtol=6 * np.finfo(dtype).eps)
    np.testing.assert_allclose(silu, wide * sigma, rtol=6 * np.finfo(dtype).eps)
    np.testing.assert_allclose(slope, right, rtol=8 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)
    far = np.array([-1e4, 1e4], dtype)
    y, saved = operations.silu_gate.forward(far, np.ones_like(far), wanted=("gate",))
    assert y.tolist() == pytest.approx([0.0, 1e4], abs=1e-30)
    assert operations.silu_gate.backward(saved, np.ones_like(far), ("gate",))[0].tolist() == pytest.approx(
        [0, 1], abs=1e-30
    )


def test_a_gate_keeps_its_two_arguments_and_nothing_else_and_a_rotation_its_tables() -> None:
    g, u = np.ones((2, 3, 4)), np.ones((2, 3, 4))
    saved = arrays_in(operations.silu_gate.forward(g, u, wanted=("gate", "up"))[1])
    assert [array is given for array, given in zip(saved, (g, u), strict=True)] == [True, True]
    tables = rotary_tables(np.arange(3), 4, 10.0, float)
    saved = arrays_in(operations.rotary.forward(g, *tables, wanted=("x",))[1])
    assert [array is given for array, given in zip(saved, tables, strict=True)] == [True, True]
    saved = operations.rms_norm.forward(g, np.ones(4), 1e-5, wanted=("x", "gamma"))[1]
    assert keeps(saved, g)
    assert sum(array.size for array in arrays_in(saved)) == g.size + 6 + 4


# ------------------------------------------------------------------------------------------- rotary positions


def rotated(x: Any, positions: Any, d_head: int, theta: float = 100.0) -> Any:
    return operations.rotary(x, *rotary_tables(positions, d_head, theta, x.dtype))


def test_a_rotation_keeps_lengths_and_position_zero_is_left_alone() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 12))
    y = rotated(x, np.arange(5), 4)
    assert np.array_equal(y[:, 0], x[:, 0])
    assert abs(y - x)[:, 1:].max() > 0.1
    lengths = [np.linalg.norm(z.reshape(2, 5, 3, 4), axis=-1) for z in (x, y)]
    np.testing.assert_allclose(*lengths, rtol=4 * np.finfo(float).eps)


def test_what_a_query_and_a_key_see_of_their_positions_is_the_distance() -> None:
    """A wrong order of columns keeps it as well; that halves are paired is the textbook's to say."""
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 8))

    def score(p: int, r: int) -> float:
        return float((rotated(q, [p], 8) * rotated(k, [r], 8)).sum())

    assert score(7, 4) == pytest.approx(score(3, 0), rel=1e-12)
    assert score(90, 87) == pytest.approx(score(3, 0), rel=1e-12)
    assert abs(score(7, 4) - score(4, 7)) > 1e-3


def test_a_later_start_is_a_later_part_of_the_whole() -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 8))
    assert np.array_equal(rotated(x, np.arange(9), 4)[:, 5:], rotated(x[:, 5:], np.arange(5, 9), 4))


def test_each_sequence_may_have_positions_of_its_own() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8))
    positions = np.array([[0, 1, 2], [5, 5, 0]])
    y = rotated(x, positions, 4)
    assert all(np.array_equal(y[i : i + 1], rotated(x[i : i + 1], positions[i], 4)) for i in range(2))


def test_angles_are_made_in_float64_and_rounded_once() -> None:
    cos, sin = rotary_tables(np.arange(4000), 64, 1e4, np.float32)
    wide = rotary_tables(np.arange(4000), 64, 1e4, np.float64)
    assert cos.dtype == sin.dtype == np.float32
    assert all(np.array_equal(a, b.astype(np.float32)) for a, b in zip((cos, sin), wide, strict=True))


@pytest.mark.parametrize("shape", [(3, 2), (5, 2), (4, 3), (1, 2)])
def test_tables_that_do_not_fit_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"cos and sin must be \(\.\.\., 4, d_head / 2\) with d_head a divisor of 8, got"
    ):
        operations.rotary(np.ones((1, 4, 8)), np.ones(shape), np.ones(shape))


# ------------------------------------------------------------------------------------------ what a classifier reads


def test_pooling_takes_the_first_state_bit_for_bit_or_the_mean_of_the_real_ones() -> None:
    h = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    first = np.zeros((2, 5), np.float32)
    first[:, 0] = 1.0
    assert np.array_equal(operations.pool(h, first), h[:, :1])
    real = np.arange(5) < np.array([[5], [2]])
    mean = operations.pool(h, (real / real.sum(axis=1, keepdims=True)).astype(np.float32))
    np.testing.assert_allclose(mean[1, 0], h[1, :2].mean(axis=0), rtol=1e-5)


def test_the_loss_of_a_classifier_is_the_cross_entropy_of_one_position() -> None:
    """(batch, 1, classes): the mean over a batch of −log p(label), and its gradient (p − one-hot)/batch."""
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 1, 3)), rng.integers(0, 3, (6, 1))
    value, gradient = value_and_grad(lambda p: operations.cross_entropy(p["x"], labels, np.full((6, 1), 1 / 6)))(
        {"x": logits}
    )
    p = textbook.softmax(logits)
    assert value == pytest.approx(-np.log(np.take_along_axis(p, labels[..., None], axis=-1)).mean(), rel=1e-14)
    np.testing.assert_allclose(gradient["x"], (p - np.eye(3)[labels]) / 6, atol=1e-16)


# ---------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_shared_keys_are_keys_repeated_for_each_head_of_their_group(causal: bool, masked: bool) -> None:
    rng = np.random.default_rng(0)
    q, dy = rng.standard_normal((2, 2, 70, 12))
    k, v = rng.standard_normal((2, 2, 70, 4))
    mask = rng.random((2, 70)) < 0.7 if masked else None
    repeated = [np.repeat(x.reshape(2, 70, 2, 2), 3, axis=2).reshape(2, 70, 12) for x in (k, v)]
    _, shared = value_and_grad(lambda p: anp.sum(operations.attention(p["q"], p["k"], p["v"], 6, causal, mask) * dy))(
        {"q": q, "k": k, "v": v}
    )
    _, plain = value_and_grad(lambda p: anp.sum(operations.attention(p["q"], p["k"], p["v"], 6, causal, mask) * dy))(
        {"q": q, "k": repeated[0], "v": repeated[1]}
    )
    assert_agree(operations.attention(q, k, v, 6, causal, mask), operations.attention(q, *repeated, 6, causal, mask))
    assert_agree(shared["q"], plain["q"])
    for name in "kv":
        assert_agree(shared[name], plain[name].reshape(2, 70, 2, 3, 2).sum(axis=3).reshape(2, 70, 4), name)


def test_shared_keys_are_never_repeated_in_memory() -> None:
    """Of 8 heads that read one key: as much memory as q takes, and blocks of scores; not 8 times the keys, twice."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((1, 1, 512)), *rng.standard_normal((2, 1, 4096, 64))

    def peak(k: Any, v: Any) -> int:
        tracemalloc.start()
        operations.attention(q, k, v, 8, True, None)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(k, v) < k.nbytes / 2
    assert peak(np.tile(k, 8), np.tile(v, 8)) < k.nbytes / 2  # neither are keys of their own copied for one query


@pytest.mark.parametrize("columns", [3, 8, 10, 16])
def test_a_number_of_key_heads_that_does_not_divide_the_heads_is_refused(columns: int) -> None:
    q, k = np.ones((1, 2, 12)), np.ones((1, 2, columns))
    with pytest.raises(ValueError, match=f"a number of heads that divides 6, each of 2 columns, got {columns} columns"):
        operations.attention(q, k, k, 6, True, None)


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
        for module in ("activation", "gating", "head", "linear", "normalization", "rotary"):
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
@given(CASES["cross_entropy"])
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
