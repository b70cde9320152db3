"""The laws of `gradients`: three witnesses agree on what is right, and each planted fault makes them disagree."""

from __future__ import annotations

import functools
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import autograd.numpy as anp
import numpy as np
import pytest
from builders import model

from lora_np import operations
from lora_np.cases import (
    ARCHITECTURE_CASES,
    CASES,
    METHOD_CASES,
    Case,
    joined_cases,
    model_case,
    model_cases,
    operation_case,
    operation_cases,
    small_model,
)
from lora_np.engine.differentiation import operation
from lora_np.gradients import LEVELS, STEP, Report, Row, all_cases, check, difference_quotient, gradcheck
from lora_np.lora import LoraEmbedding, LoraLinear
from lora_np.methods import METHODS
from lora_np.model import Attention, Block, Reading, Transformer
from lora_np.operations.attention import QUERIES
from lora_np.operations.head import WORDS
from lora_np.parameters import parameters

# At this seed W is square (4, 4), of a linear map and of an adapted one, the rank is 2: every fault below can be made.
# At the other it is not square.
SQUARE, OBLONG = 110, 9

# What is differentiated by nobody: integers, settings, masks.
SETTINGS = {
    "which",
    "ranks",
    "scalings",
    "tokens",
    "targets",
    "weights",
    "heads",
    "causal",
    "mask",
    "scaling",
    "eps",
    "cos",
    "sin",
    "first",
    "wanted",
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def row_of(case: Case, array: str) -> Row:
    return next(row for row in check(case) if row.array == array)


# ------------------------------------------------------------------------------------------- what is right holds


@pytest.fixture(scope="module")
def whole() -> Report:
    return gradcheck()


def assert_holds(report: Report, seed: int) -> None:
    assert [(row.case, row.array, row.verdict) for row in report.rows if not row.holds] == []
    assert report.holds
    assert report.seed == seed


def test_every_gradient_holds(whole: Report) -> None:
    assert_holds(whole, 0)


def test_every_gradient_holds_whatever_the_seed() -> None:
    """A third one is that of the example of `lora-np gradcheck --help`."""
    assert_holds(gradcheck(seed=2), 2)


def counting(case: Case, calls: list[str]) -> Case:
    return replace(case, hand=lambda point: (calls.append(case.name), case.hand(point))[1])


def test_a_check_evaluates_the_loss_twice_a_level_for_each_entry_and_once_for_its_gradients() -> None:
    calls: list[str] = []
    case = next(operation_cases(0))
    check(counting(case, calls))
    assert len(calls) == 2 * LEVELS * sum(array.size for array in case.point.values()) + 1


def test_the_whole_check_has_a_few_thousand_entries_at_any_seed() -> None:
    """What it takes: most of eight times so many evaluations are of whole models, half a millisecond each."""
    entries = [sum(array.size for case in all_cases(seed) for array in case.point.values()) for seed in range(6)]
    assert 1000 < min(entries) < max(entries) < 8000


def test_only_the_gradient_of_a_keys_bias_vanishes_identically(whole: Report) -> None:
    verdicts = {(row.case, row.array): row.verdict for row in whole.rows}
    is_key_bias = {name: ".key." in name[1] and name[1].endswith(".b") for name in verdicts}
    trained = {case: sum(value for name, value in is_key_bias.items() if name[0] == case) for case in METHOD_CASES}
    assert {case: n for case, n in trained.items() if n} == {"lora": 2, "full": 2, "top": 1, "bitfit": 2}  # a layer
    assert {name for name, verdict in verdicts.items() if verdict == "zero"} == {
        n for n, is_ in is_key_bias.items() if is_
    }


def test_the_same_seed_gives_the_same_report_and_another_another_shape() -> None:
    one, same, other = (check(next(operation_cases(seed))) for seed in (0, 0, 1))
    assert one == same
    assert [row.shape for row in one] != [row.shape for row in other]


def test_a_watcher_sees_every_case_and_a_report_of_none_does_not_hold() -> None:
    seen: list[str] = []

    def watch(cases: list[Case]) -> Iterable[Case]:
        seen.extend(case.name for case in cases)
        return []

    assert not gradcheck(watch=watch).holds
    assert seen == [case.name for case in all_cases(0)]


# -------------------------------------------------------------------------------------------------- what is covered


def assert_every_operation_has_a_case(exported: Iterable[str]) -> None:
    assert {name.split(",")[0] for name in CASES} == set(exported)
    assert [case.name for case in operation_cases(0)] == list(CASES)


def test_every_exported_operation_has_a_case_and_one_without_would_be_found() -> None:
    assert_every_operation_has_a_case(operations.__all__)
    with pytest.raises(AssertionError):
        assert_every_operation_has_a_case([*operations.__all__, "convolution"])


def assert_every_method_has_a_case(methods: Mapping[str, type]) -> None:
    assert {name: type(method) for name, method in METHOD_CASES.items()} == dict(methods)
    names = [*METHOD_CASES, "full, bidirectional and padded", *ARCHITECTURE_CASES]
    assert [case.name for case in model_cases(0)] == names


def test_every_method_has_a_case_and_one_without_or_with_anothers_would_be_found() -> None:
    assert_every_method_has_a_case(METHODS)
    for wrong in ({**METHODS, "another": METHODS["lora"]}, {**METHODS, "lora": METHODS["full"]}):
        with pytest.raises(AssertionError):
            assert_every_method_has_a_case(wrong)


def test_every_argument_that_can_be_differentiated_is_checked() -> None:
    for case in operation_cases(0):
        forward = getattr(operations, case.name.split(",")[0]).forward
        frozen = {"W"} if case.name.endswith("16 bits") else set()  # which only reads as an array
        assert set(case.point) == set(inspect.signature(forward).parameters) - SETTINGS - frozen, case.name


def test_every_trained_array_of_the_adapted_model_is_checked(whole: Report) -> None:
    maps = [f"attention.{name}" for name in ("query", "key", "value", "output")] + ["mlp.up", "mlp.down"]
    adapted = {f"blocks.{i}.{name}.{part}" for i in (0, 1) for name in maps for part in ("A", "B", "base.b")}
    shifts = {f"blocks.{i}.{name}.beta" for i in (0, 1) for name in ("attention_norm", "mlp_norm")}
    expected = adapted | shifts | {"norm.beta", "tokens.A", "tokens.B"}
    assert {row.array for row in whole.rows if row.case == "lora"} == expected


def test_every_array_of_the_full_models_is_checked(whole: Report) -> None:
    for case, tied in (("full", True), ("full, bidirectional and padded", False)):
        assert {row.array for row in whole.rows if row.case == case} == set(parameters(model(tied=tied)))


def test_every_trained_array_of_every_method_is_checked(whole: Report) -> None:
    for name, method in METHOD_CASES.items():
        trained = method.trained(method.apply(small_model(rng()), rng()))
        assert {row.array for row in whole.rows if row.case == name} == set(trained) != set(), name


def test_B_is_not_zero_where_the_adapted_model_is_checked() -> None:
    point = lora_case(0).point
    assert all(abs(array).min() > 0 for name, array in point.items() if name.endswith(".B"))


# --------------------------------------------------------------------------------------------------- planted faults


Gradients = dict[str, Any]
Change = Callable[[Gradients, Any, Any], Gradients]


@dataclass(frozen=True)
class Fault:
    """One operation with a mistake in it, the case that must notice, and the arrays whose verdict must change."""

    case: str
    arrays: str
    operation: Any

    @property
    def stand_in(self) -> Any:
        """All operations, this one among them."""
        right = {name: getattr(operations, name) for name in operations.__all__}
        return SimpleNamespace(**right | {self.case.split(",")[0]: self.operation})

    def planted(self, seed: int) -> Case:
        return case_of(self.case, seed, self.stand_in)


def lora_case(seed: int) -> Case:
    return model_case("lora", small_model(rng(seed), d_head=4), METHOD_CASES["lora"], rng(seed + 1))


def case_of(name: str, seed: int, operations: Any = operations) -> Case:
    if not name.endswith(", joined"):
        return operation_case(name, seed, operations)
    return next(case for case in joined_cases(seed, operations) if case.name == name)


def backward_fault(case: str, arrays: str, change: Change) -> Fault:
    """`change(right gradients, saved, dy)` gives the wrong ones; forward stays as it is."""
    right = getattr(operations, case.split(",")[0])

    def backward(saved: Any, dy: Any, wanted: tuple[str, ...]) -> list[Any]:
        gradients = dict(zip(wanted, right.backward(saved, dy, wanted), strict=True))
        return list({**gradients, **change(gradients, saved, dy)}.values())

    return Fault(case, arrays, operation(right.forward, backward))


def saved_fault(case: str, arrays: str, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Fault:
    """Backward works on `change(saved)`; forward stays as it is."""
    right = getattr(operations, case.split(",")[0])
    return Fault(case, arrays, operation(right.forward, lambda s, dy, wanted: right.backward(change(s), dy, wanted)))


def only_backward(wrong: Any, right: Any) -> Any:
    """The output of the right operation with the gradients of the wrong one."""

    def forward(*arguments: Any, wanted: tuple[str, ...]) -> tuple[Any, Any]:
        return right.forward(*arguments, wanted=wanted)[0], wrong.forward(*arguments, wanted=wanted)[1]

    forward.__signature__ = inspect.signature(right.forward)  # type: ignore[attr-defined]
    return operation(forward, wrong.backward)


def scaled(name: str, factor_of: Callable[[Any], float]) -> Change:
    return lambda g, saved, dy: {name: g[name] * factor_of(saved)}


def rows(x: Any) -> Any:
    return x.reshape(-1, x.shape[-1])


def by_head(x: Any, heads: int) -> Any:
    return x.reshape(*x.shape[:2], heads, -1)


def without_correction(g: Gradients, saved: Any, dy: Any) -> Gradients:
    """∂L/∂s = p·(g·v): the term − p·(g·o) is missing, so what it contributes to q and k is added back."""
    q, k, _, o, _, heads, causal, mask = saved
    along = (by_head(dy, heads) * by_head(o, heads)).sum(-1, keepdims=True) / math.sqrt(q.shape[-1] // heads)
    key_seen = operations.attention(q, k, k, heads, causal, mask)  # Σ p k, for each query
    dq = (along * by_head(key_seen, heads)).reshape(q.shape)
    dk = operations.attention.backward(saved, (along * by_head(q, heads)).reshape(q.shape), ("v",))[0]  # Σ p (·)
    return {"q": g["q"] + dq, "k": g["k"] + dk}


def one_key_too_few(q: Any, k: Any, v: Any, heads: int, causal: bool, mask: Any, /, *, wanted: Any) -> Any:
    """A causal mask off by one: query i sees keys j < i + (keys − queries)."""
    seen = None if mask is None else mask[:, :-1]
    return operations.attention.forward(q, k[:, :-1], v[:, :-1], heads, causal, seen, wanted=wanted)


def one_key_too_few_backward(saved: Any, dy: Any, wanted: tuple[str, ...]) -> list[Any]:
    """The gradient of just that: the key that is never seen has none."""
    q, k, v = operations.attention.backward(saved, dy, ("q", "k", "v"))
    return [q, *(np.pad(x, ((0, 0), (0, 1), (0, 0))) for x in (k, v))]


def straight_heads(q: Any, k: Any, v: Any, heads: int, causal: bool, mask: Any, /, *, wanted: Any) -> Any:
    """Heads cut by a reshape alone, without swapping the axes: positions and columns are mixed."""
    batch = len(q)
    pieces = (x.reshape(batch * heads, x.shape[1], -1) for x in (q, k, v))
    o, saved = operations.attention.forward(*pieces, 1, causal, mask, wanted=wanted)
    return o.reshape(q.shape), (saved, batch)


def straight_heads_backward(saved: Any, dy: Any, wanted: tuple[str, ...]) -> list[Any]:
    pieces, batch = saved
    gradients = operations.attention.backward(pieces, dy.reshape(pieces[0].shape), wanted)
    return [x.reshape(batch, x.shape[1], -1) for x in gradients]


def strided_groups(q: Any, k: Any, v: Any, heads: int, causal: bool, mask: Any, /, *, wanted: Any) -> Any:
    """Query head h reads key head h mod kv_heads, as if the keys had been tiled."""
    d = q.shape[-1] // heads
    order = np.arange(q.shape[-1]).reshape(-1, k.shape[-1] // d, d).swapaxes(0, 1).ravel()
    o, saved = operations.attention.forward(q[..., order], k, v, heads, causal, mask, wanted=wanted)
    y = np.empty_like(o)
    y[..., order] = o
    return y, (saved, order)


def strided_groups_backward(saved: Any, dy: Any, wanted: tuple[str, ...]) -> list[Any]:
    inner, order = saved
    dq, dk, dv = operations.attention.backward(inner, dy[..., order], ("q", "k", "v"))
    back = np.empty_like(dq)
    back[..., order] = dq
    return [back, dk, dv]


def last_of_each_token(g: Gradients, saved: Any, dy: Any) -> Gradients:
    dW = np.zeros(saved[1])
    dW[saved[0]] += dy
    return {"W": dW}


def gelu_keeping_x(x: Any, /, *, wanted: Any) -> Any:
    return operations.gelu.forward(x, wanted=())[0], x


def erf_slope(x: Any, dy: Any, wanted: Any) -> list[Any]:
    """The derivative of x Φ(x), of which the tanh form is an approximation."""
    cumulative = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return [dy * (cumulative + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi))]


def first_term_of_the_slope(x: Any, dy: Any, wanted: Any) -> list[Any]:
    """(A2) without its second term."""
    return [dy * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))]


def neighbours(x: Any, cos: Any, sin: Any, /, *, wanted: Any) -> Any:
    """Pairs of neighbouring columns, as the paper has them, in place of the halves of a head."""
    return operations.rotary.forward(x, cos, sin, wanted=wanted)[0], (cos, sin)


def neighbours_backward(saved: Any, dy: Any, wanted: Any) -> list[Any]:
    d = 2 * saved[0].shape[-1]
    order = np.arange(dy.shape[-1]).reshape(-1, d // 2, 2).swapaxes(1, 2).ravel()
    dx = np.empty_like(dy)
    dx[..., order] = operations.rotary.backward(saved, dy[..., order], wanted)[0]
    return [dx]


def unweighted(logits: Any, targets: Any, weights: Any, /, *, wanted: Any) -> Any:
    return operations.cross_entropy.forward(logits, targets, np.ones_like(weights), wanted=wanted)


def averaged(logits: Any, targets: Any, weights: Any, /, *, wanted: Any) -> Any:
    return operations.cross_entropy.forward(logits, targets, weights / weights.size, wanted=wanted)


def one_entry_off(name: str, by: float) -> Change:
    def change(g: Gradients, saved: Any, dy: Any) -> Gradients:
        wrong = g[name].copy()
        wrong.flat[abs(wrong).argmax()] *= 1 + by
        return {name: wrong}

    return change


wrong_mask = operation(one_key_too_few, one_key_too_few_backward)
wrong_heads = operation(straight_heads, straight_heads_backward)
wrong_groups = operation(strided_groups, strided_groups_backward)
neighbours_turned = operation(neighbours, neighbours_backward)

# Here forward and backward belong together, so the difference quotient agrees: only the textbook knows better.
CONSISTENT = {
    "a mask off by one": Fault("attention, causal", "qkv", wrong_mask),
    "keys shared by heads that do not stand side by side": Fault("attention, shared keys", "qkv", wrong_groups),
    "a mask off by one beside padding": Fault("attention, causal and padded", "qkv", wrong_mask),
    "heads cut without swapping axes": Fault("attention, causal", "qkv", wrong_heads),
    "weights ignored in the loss": Fault(
        "cross_entropy", "logits", operation(unweighted, operations.cross_entropy.backward)
    ),
    "a mean in place of the sum": Fault(
        "cross_entropy", "logits", operation(averaged, operations.cross_entropy.backward)
    ),
}

# Here only backward is wrong, and both other witnesses say so.
BACKWARD = {
    "a lost scaling in dA": backward_fault("lora_linear", "A", scaled("A", lambda saved: 1 / saved[5])),
    "a lost scaling in dB": backward_fault("lora_linear", "B", scaled("B", lambda saved: 1 / saved[5])),
    "a lost scaling in dx": backward_fault(
        "lora_linear",
        "x",
        lambda g, s, dy: {"x": (rows(dy) @ s[1] + (rows(dy) @ s[3]) @ s[2] * rows(s[6])).reshape(s[7])},
    ),
    "the low-rank branch missing in dx": backward_fault("lora_linear", "x", lambda g, s, dy: {"x": dy @ s[1]}),
    "the gradients of A and B swapped": backward_fault(
        "lora_linear", "AB", lambda g, s, dy: {"A": g["B"].T, "B": g["A"].T}
    ),
    "a dropout mask ignored in dA": backward_fault(
        "lora_linear", "A", lambda g, s, dy: {"A": s[5] * (rows(dy) @ s[3]).T @ rows(s[0])}
    ),
    "a dropout mask ignored in dx": backward_fault(
        "lora_linear", "x", lambda g, s, dy: {"x": dy @ s[1] + s[5] * (dy @ s[3]) @ s[2]}
    ),
    "a sign": backward_fault("linear", "x", scaled("x", lambda saved: -1.0)),
    "a transposed gradient of W": backward_fault("linear", "W", lambda g, s, dy: {"W": g["W"].T}),
    "a gradient of b that is one row's": backward_fault("linear", "b", lambda g, s, dy: {"b": rows(dy)[0]}),
    "a gradient of b of all rows, not summed": backward_fault("linear", "b", lambda g, s, dy: {"b": rows(dy)}),
    "a gradient of b that is the rows' mean": backward_fault("linear", "b", lambda g, s, dy: {"b": rows(dy).mean(0)}),
    "one entry off by 1e-8": backward_fault("linear", "W", one_entry_off("W", 1e-8)),
    "one entry off by less than the quotient can see": backward_fault(
        "cross_entropy", "logits", one_entry_off("logits", 5e-10)
    ),
    "a gradient of b with an axis too many": backward_fault("linear", "b", lambda g, s, dy: {"b": g["b"][None]}),
    "repeated tokens counted once": backward_fault("embedding", "W", last_of_each_token),
    "a layer norm without the mean of g": backward_fault(
        "layer_norm",
        "x",
        lambda g, s, dy: {"x": g["x"] + ((rows(dy) * s[2]).mean(-1, keepdims=True) * s[1]).reshape(*dy.shape[:-1], 1)},
    ),
    "a layer norm without the projection on x": backward_fault(
        "layer_norm",
        "x",
        lambda g, s, dy: {
            "x": g["x"] + (s[0] * s[1] * (rows(dy) * s[2] * s[0]).mean(-1, keepdims=True)).reshape(dy.shape)
        },
    ),
    "gamma forgotten in dx": saved_fault("layer_norm", "x", lambda s: (s[0], s[1], np.ones_like(s[2]))),
    "a gamma that is not summed over rows": backward_fault(
        "layer_norm", "gamma", lambda g, s, dy: {"gamma": rows(dy)[0] * s[0][0]}
    ),
    "the slope of the erf form of gelu": Fault("gelu", "x", operation(gelu_keeping_x, erf_slope)),
    "a slope of gelu without its second term": Fault("gelu", "x", operation(gelu_keeping_x, first_term_of_the_slope)),
    "a softmax without the correction term": backward_fault("attention, causal", "qk", without_correction),
    "an RMS norm without the projection on x": backward_fault(
        "rms_norm", "x", lambda g, s, dy: {"x": (rows(dy) * s[2] * s[1]).reshape(dy.shape)}
    ),
    "an RMS norm that takes the mean out as well": backward_fault(
        "rms_norm", "x", lambda g, s, dy: {"x": g["x"] - g["x"].mean(-1, keepdims=True)}
    ),
    "gamma forgotten in the dx of an RMS norm": saved_fault("rms_norm", "x", lambda s: (*s[:2], np.ones_like(s[2]))),
    "1/σ forgotten in the dgamma of an RMS norm": backward_fault(
        "rms_norm", "gamma", lambda g, s, dy: {"gamma": (rows(dy) * s[0]).sum(0)}
    ),
    "a rotation that is not turned back": saved_fault("rotary", "x", lambda s: (s[0], -s[1])),
    "the rotation of the position before": saved_fault("rotary", "x", lambda s: tuple(np.roll(t, 1, 0) for t in s)),
    "neighbours turned in place of halves, backwards": Fault("rotary", "x", neighbours_turned),
    "a gate without the slope of its sigmoid": backward_fault(
        "silu_gate", "gate", lambda g, s, dy: {"gate": dy * s[1] / (1 + np.exp(-s[0]))}
    ),
    "gate and up exchanged": saved_fault("silu_gate", "gate up", lambda s: s[::-1]),
    "a gate forgotten in dup": backward_fault("silu_gate", "up", lambda g, s, dy: {"up": dy * s[0]}),
    "the slope of the tanh form of gelu": Fault(
        "gelu_exact", "x", only_backward(operations.gelu, operations.gelu_exact)
    ),
    "a slope of the exact gelu without its second term": Fault(
        "gelu_exact",
        "x",
        operation(
            lambda x, /, *, wanted: (operations.gelu_exact.forward(x, wanted=())[0], x),
            lambda x, dy, wanted: [dy * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))],
        ),
    ),
    "a tanh of the wrong power": backward_fault("tanh", "x", lambda g, s, dy: {"x": (1 - s) * dy}),
    "a mean in place of the weights": saved_fault("pool", "h", lambda s: np.full_like(s, s.mean())),
    "shared keys whose group is not summed": backward_fault(
        "attention, shared keys", "kv", lambda g, s, dy: {"k": g["k"] / 2, "v": g["v"] / 2}
    ),
    "keys of another group, backwards": saved_fault(
        "attention, shared keys",
        "qkv",
        lambda s: (s[0], *(np.roll(x, x.shape[-1] // 2, -1) for x in s[1:3]), *s[3:]),
    ),
    "1/√d_head forgotten in dq": backward_fault(
        "attention, padded", "q", scaled("q", lambda s: math.sqrt(s[0].shape[-1] // s[5]))
    ),
    "keys and queries exchanged in dk": backward_fault(
        "attention, causal",
        "k",
        lambda g, s, dy: {"k": np.pad(g["q"], ((0, 0), (0, s[1].shape[1] - s[0].shape[1]), (0, 0)))},
    ),
    "a padding mask ignored backwards": saved_fault("attention, padded", "qkv", lambda s: (*s[:7], None)),
    "a mask off by one, backwards only": Fault(
        "attention, causal", "qkv", only_backward(wrong_mask, operations.attention)
    ),
    "heads cut without swapping axes, backwards only": Fault(
        "attention, causal", "qkv", only_backward(wrong_heads, operations.attention)
    ),
    "weights ignored backwards": saved_fault(
        "cross_entropy", "logits", lambda s: (s[0], s[1], np.full_like(s[2], s[2].mean()), s[3])
    ),
    "a target not subtracted": backward_fault(
        "cross_entropy", "logits", lambda g, s, dy: {"logits": (dy * s[2][:, None] * s[0]).reshape(s[3])}
    ),
    "weights ignored backwards in the head": saved_fault(
        "head_cross_entropy", "W", lambda s: (s[0], (*s[1][:4], np.full_like(s[1][4], s[1][4].mean())), s[2])
    ),
    "a target not subtracted in the head": backward_fault(
        "head_cross_entropy",
        "h",
        lambda g, s, dy: {"h": g["h"] + (dy * s[1][4] * s[1][1][s[1][3]]).reshape(s[2])},
    ),
    "targets of the head exchanged backwards": saved_fault(
        "head_cross_entropy", "W", lambda s: (s[0], (*s[1][:3], np.roll(s[1][3], 1), s[1][4]), s[2])
    ),
    "a sum over the vocabulary that lacks a word": saved_fault(
        "head_cross_entropy", "W", lambda s: (s[0], (*s[1][:2], s[1][2] - 0.1, *s[1][3:]), s[2])
    ),
    "a mean in place of the sum, backwards only": backward_fault(
        "cross_entropy", "logits", scaled("logits", lambda s: 1 / s[2].size)
    ),
}


def frozen_lengths(g: Gradients, saved: Any, dy: Any) -> Gradients:
    """DoRA without (R6): as if the lengths of the rows of V were constants."""
    X, _, A, B, m, n, _, scaling, _ = saved
    dV = (rows(dy) * (m / n)).T @ X
    return {"W": dV, "A": scaling * (B.T @ dV), "B": scaling * (dV @ A.T)}


def last_of_each_special(g: Gradients, saved: Any, dy: Any) -> Gradients:
    special, which, shape = saved
    dS = np.zeros(shape)
    for place in zip(*np.nonzero(special[..., 0]), strict=True):
        dS[which[place]] = dy[place]
    return {"S": dS}


def kronecker_exchanged(A: Any, S: Any, T: Any, /, *, wanted: Any) -> Any:
    """(S T) ⊗ A in place of A ⊗ (S T)."""
    W, saved = operations.kronecker.forward(A, S, T, wanted=wanted)
    n, a, b = saved[3].shape
    return W.reshape(n, a, n, b).transpose(1, 0, 3, 2).reshape(W.shape), saved


def kronecker_exchanged_backward(saved: Any, dW: Any, wanted: Any) -> list[Any]:
    n, a, b = saved[3].shape
    back = dW.reshape(a, n, b, n).transpose(1, 0, 3, 2).reshape(dW.shape)
    return list(operations.kronecker.backward(saved, back, wanted))


CONSISTENT["the two factors of a Kronecker product exchanged"] = Fault(
    "kronecker", "AST", operation(kronecker_exchanged, kronecker_exchanged_backward)
)
# Of the operations that other methods than LoRA need.
BACKWARD |= {
    "lengths of rows that are taken for constants": backward_fault("dora_linear", "WAB", frozen_lengths),
    "a length that is not divided by": backward_fault("dora_linear", "m", lambda g, s, dy: {"m": g["m"] * s[5]}),
    "a lost scaling in dA of DoRA": backward_fault("dora_linear", "A", scaled("A", lambda s: 1 / s[7])),
    "a Kronecker factor transposed": backward_fault("kronecker", "A", lambda g, s, dy: {"A": g["A"].swapaxes(1, 2)}),
    "one term of a Kronecker sum forgotten": backward_fault(
        "kronecker", "S", lambda g, s, dy: {"S": g["S"] * (np.arange(len(s[0])) > 0)[:, None, None]}
    ),
    "a row that was replaced and still moves": backward_fault("replaced_rows", "h", lambda g, s, dy: {"h": dy}),
    "a special token that stands twice, counted once": backward_fault("replaced_rows", "S", last_of_each_special),
    "special tokens off by one": saved_fault("replaced_rows", "S", lambda s: (s[0], (s[1] + 1) % s[2][0], s[2])),
    "a prefix moved by one sequence alone": backward_fault("prepended", "P", lambda g, s, dy: {"P": dy[0, :s]}),
    "a prefix one row too long, backwards only": backward_fault(
        "prepended", "k", lambda g, s, dy: {"k": np.roll(g["k"], 1, axis=1)}
    ),
    "a factor that is not summed over its row": backward_fault(
        "scaled_rows", "v", lambda g, s, dy: {"v": dy[:, 0] * s[0][:, 0]}
    ),
    "a factor forgotten backwards": backward_fault("scaled_rows", "M", lambda g, s, dy: {"M": dy}),
}
# ------------------------------------------------------------------------------------ faults in how blocks are joined


def joining_fault(case: str, arrays: str, name: str, change: Callable[[Any], Any]) -> Fault:
    """Inside the operation, what its module calls `name` is `change` of the right one."""
    right = getattr(operations, case.split(",")[0])
    module = sys.modules[right.forward.__module__]
    wrong = change(getattr(module, name))

    def wrongly(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **settings: Any) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, name, wrong)
                return function(*arguments, **settings)

        return call

    return Fault(case, arrays, operation(wrongly(right.forward), wrongly(right.backward)))


def overwritten(g: Gradients, saved: Any, dy: Any) -> Gradients:
    """dk and dv as if each block of queries, from the last to the first, put its part in the place of the others'."""
    wrong = {name: g[name].copy() for name in ("k", "v")}
    keys, queries = wrong["k"].shape[1], dy.shape[1]
    for start in reversed(range(0, queries, QUERIES)):
        end = min(start + QUERIES, queries)
        of_block = np.where((np.arange(queries) >= start) & (np.arange(queries) < end), 1.0, 0.0)[:, None]
        parts = operations.attention.backward(saved, dy * of_block, ("k", "v"))
        for name, part in zip(("k", "v"), parts, strict=True):
            wrong[name][:, : end + keys - queries] = part[:, : end + keys - queries]
    return wrong


def its_own_keys_alone(right: Any) -> Any:
    """Blocks of queries whose first key is that of their first position, but for the last one."""

    def blocks(Q: Any, K: Any, causal: bool) -> Any:
        *others, last = right(Q, K, causal)
        return [*((i, slice(i.start, j.stop)) for i, j in others), last]

    return blocks


def without_shrinking(right: Any) -> Any:
    """(H4) with the factor e^(m − m') forgotten, in the sum and in the mean."""

    def summed(H: Any, W: Any, wants_mean: bool) -> Any:
        top, total, sum_ = -math.inf, 0.0, 0.0
        for block in (W[:WORDS], W[WORDS:]):
            if len(block):
                top = np.maximum(top, (H @ block.T).max(axis=-1, keepdims=True))
                log_sum, mean = right(H, block, True)
                total = total + np.exp(log_sum - top)
                sum_ = sum_ + np.exp(log_sum - top) * mean
        return top + np.log(total), sum_ / total

    return summed


def of_the_last_rows(right: Any) -> Any:
    """The table's gradient from the last block of rows alone."""

    def gradient(dy: Any, h: Any, W: Any, log_sum: Any, y: Any, w: Any) -> Any:
        last = slice((len(y) - 1) // 512 * 512, None)
        return right(dy, rows(h)[last], W, log_sum[last], y[last], w[last])

    return gradient


JOINING: dict[str, Fault] = {
    "a block of queries in the place of the others' sums": backward_fault("attention, joined", "kv", overwritten),
    "a block of queries that sees only keys of its own": joining_fault(
        "attention, joined", "qkv", "_blocks", its_own_keys_alone
    ),
    "blocks of words left out": joining_fault(
        "head_cross_entropy, joined", "hW", "_words", lambda right: lambda H, W: right(H, W)[:1]
    ),
    "a sum that does not shrink": joining_fault("head_cross_entropy, joined", "hW", "_summed", without_shrinking),
    "a table's gradient from its last rows": joining_fault(
        "head_cross_entropy, joined", "W", "_gradient_of_table", of_the_last_rows
    ),
}
FAULTS = CONSISTENT | BACKWARD | JOINING


def named(fault: Fault, case: Case) -> set[str]:
    """One name, several with spaces between, or several of one letter each."""
    if " " in fault.arrays:
        return set(fault.arrays.split())
    return {fault.arrays} if fault.arrays in case.point else set(fault.arrays)


@pytest.mark.parametrize("name", FAULTS)
def test_the_check_catches(name: str) -> None:
    fault = FAULTS[name]
    right = case_of(fault.case, SQUARE)
    assert all(row.verdict == "equal" for row in check(right))  # contrast
    found = {row.array for row in check(fault.planted(SQUARE)) if row.verdict == "different"}
    assert found == named(fault, right)


@pytest.mark.parametrize("name", JOINING)
def test_where_there_is_one_block_no_fault_in_the_joining_is_seen(name: str) -> None:
    """The reason for the larger cases."""
    fault = JOINING[name]
    small = {"attention, joined": "attention, causal", "head_cross_entropy, joined": "head_cross_entropy"}[fault.case]
    assert all(row.verdict == "equal" for row in check(case_of(small, SQUARE, fault.stand_in)))


@pytest.mark.parametrize("name", CONSISTENT)
def test_of_a_wrong_equation_with_its_right_gradient_only_the_textbook_knows(name: str) -> None:
    for row in check(CONSISTENT[name].planted(SQUARE)):
        assert row.hand_difference <= row.uncertainty < 1e-6
        assert min(row.hand_textbook, row.textbook_difference) > 0.1  # measured: at least 0.3


def test_a_disagreement_below_the_error_of_the_quotient_is_found_by_the_textbook() -> None:
    row = row_of(BACKWARD["one entry off by less than the quotient can see"].planted(SQUARE), "logits")
    assert row.hand_difference <= row.uncertainty
    assert row.verdict == "different"


def test_a_mistake_that_hand_and_textbook_share_is_found_by_the_quotient() -> None:
    """The square with 3x for its slope, in both."""
    wrong = operation(lambda x, /, *, wanted: (x * x, x), lambda x, dy, wanted: [3 * x * dy])
    case = Case("plain", lambda p: wrong(p["x"]).sum(), lambda p: wrong(p["x"]).sum(), {"x": np.array([0.7])}, 1.0)
    row = row_of(case, "x")
    assert row.hand_textbook == 0.0
    assert row.verdict == "different"


def test_a_gradient_that_is_transposed_where_W_is_not_square_is_different() -> None:
    case = BACKWARD["a transposed gradient of W"].planted(OBLONG)
    assert len(set(case.point["W"].shape)) == 2
    assert row_of(case, "W").verdict == "different"


def test_a_gradient_that_is_not_finite_is_different() -> None:
    for wrong in (math.nan, math.inf):
        case = backward_fault("gelu", "x", scaled("x", lambda saved, wrong=wrong: wrong)).planted(SQUARE)
        assert row_of(case, "x").verdict == "different"


def test_at_B_zero_a_fault_in_the_gradient_of_A_would_go_unnoticed() -> None:
    """dA = s (GB)ᵀx is zero there whatever its factor: the reason why the check stands at B ≠ 0."""
    case = BACKWARD["a lost scaling in dA"].planted(SQUARE)
    at_zero = replace(case, point={**case.point, "B": 0.0 * case.point["B"]})
    assert row_of(case, "A").verdict == "different"
    assert row_of(at_zero, "A").verdict == "zero"
    assert all(row.holds for row in check(at_zero))


# --------------------------------------------------------------------------------- faults in how a model is composed


def scaled_by(factor: float) -> Callable[..., Any]:
    right = LoraLinear.__call__
    return lambda module, x: right(replace(module, scaling=factor * module.scaling), x)


def without_residual(block: Block, h: Any, reading: Reading) -> Any:
    attended = h + block.attention(block.attention_norm(h), reading)
    return block.mlp(block.mlp_norm(attended))


def post_norm(block: Block, h: Any, reading: Reading) -> Any:
    attended = block.attention_norm(h + block.attention(h, reading))
    return block.mlp_norm(attended + block.mlp(attended))


def seeing_the_future(layer: Attention, x: Any, reading: Reading) -> Any:
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    return layer.output(operations.attention(q, k, v, layer.heads, False, reading.mask))


def exchanged(layer: Attention, x: Any, reading: Reading) -> Any:
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    return layer.output(operations.attention(k, q, v, layer.heads, layer.causal, reading.mask))


HIDDEN = Transformer.hidden


def padding_seen(model: Transformer, tokens: Any, mask: Any = None, **rest: Any) -> Any:
    return HIDDEN(model, tokens, **rest)


MODEL_FAULTS: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "a scaling lost in the model": (LoraLinear, "__call__", scaled_by(2.0), "blocks.1.mlp.down.B"),
    "a scaling off by a millionth": (LoraLinear, "__call__", scaled_by(1 + 1e-6), "blocks.0.attention.query.A"),
    "a low-rank branch that is left out": (LoraLinear, "__call__", lambda m, x: m.base(x), "blocks.0.mlp.up.A"),
    "a head of the old token table": (LoraEmbedding, "as_head", lambda m: m.base.as_head(), "tokens.B"),
    "a dropped residual": (Block, "__call__", without_residual, "blocks.0.attention.value.B"),
    "a norm after the sum": (Block, "__call__", post_norm, "blocks.0.attention.value.A"),
    "a query that sees the future": (Attention, "__call__", seeing_the_future, "blocks.1.attention.key.A"),
    "queries and keys exchanged": (Attention, "__call__", exchanged, "blocks.1.attention.query.B"),
}


@pytest.mark.parametrize("name", MODEL_FAULTS)
def test_the_check_of_an_adapted_model_catches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, method, wrong, array = MODEL_FAULTS[name]
    whole = lora_case(SQUARE)
    case = replace(whole, point={name: whole.point[name] for name in (array, "norm.beta")})
    assert row_of(case, array).verdict == "equal"
    monkeypatch.setattr(where, method, wrong)
    assert row_of(case, array).verdict == "different"


def test_the_check_of_a_bidirectional_model_catches_padding_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_model(rng(SQUARE), causal=False)
    whole = model_case("full", base, METHOD_CASES["full"], rng(SQUARE + 1))
    case = replace(whole, point={"norm.gamma": whole.point["norm.gamma"]})
    assert row_of(case, "norm.gamma").verdict == "equal"
    monkeypatch.setattr(Transformer, "hidden", padding_seen)
    assert row_of(case, "norm.gamma").verdict == "different"


# ------------------------------------------------------------------------------------------------- the third witness


KNOWN: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "a quadratic": (lambda x: x * x - 3 * x, lambda x: 2 * x - 3, lambda x: x * x + 3 * abs(x)),
    "x to the seventh": (lambda x: x**7, lambda x: 7 * x**6, lambda x: abs(x) ** 7),
    "exp": (np.exp, np.exp, np.exp),
    "sin of 30 x": (lambda x: np.sin(30 * x), lambda x: 30 * np.cos(30 * x), lambda x: 1.0 + 0 * x),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_difference_quotient_is_within_its_own_error_of_a_known_derivative(name: str) -> None:
    f, slope, size = KNOWN[name]
    x = rng().uniform(-2, 2, (5, 4))
    Q, e = difference_quotient(lambda p: f(p["x"]).sum(), {"x": x}, "x", float(size(x).sum()))
    assert Q.shape == e.shape == x.shape
    assert (abs(Q - slope(x)) <= e).all()
    assert e.max() < 1e-7 * abs(slope(x)).max()  # and that says something: measured at most 1.5e-9, at sin of 30 x
    assert (abs(Q - 1.0001 * slope(x)) > e).any()  # a derivative off by a ten-thousandth is not within it


def test_the_difference_quotient_moves_one_entry_of_one_array() -> None:
    x, y = rng().standard_normal((2, 3)), rng(1).standard_normal((3, 2))
    before = x.copy()
    Q, e = difference_quotient(lambda p: (p["x"] @ p["y"]).sum(), {"x": x, "y": y}, "x", 20.0)
    assert (abs(Q - y.sum(axis=1)) <= e).all()
    assert np.array_equal(x, before)


# ------------------------------------------------------------------------------------------------------- the verdicts


def plain_case(f: Callable[[Any], Any], x: float, size: float = 1.0) -> Case:
    """One number in, one out, both witnesses the same function."""
    return Case("plain", lambda p: anp.sum(f(p["x"])), lambda p: anp.sum(f(p["x"])), {"x": np.array([x])}, size)


def test_a_smooth_function_is_equal() -> None:
    assert row_of(plain_case(anp.sin, 0.5), "x").verdict == "equal"


def test_of_a_function_too_rough_for_the_step_nothing_can_be_said() -> None:
    """At sin(6x/h) the quotient of the finest step, h/8, is off by a tenth: its third derivative is (h/6)⁻³."""
    row = row_of(plain_case(lambda x: anp.sin(6 * x / STEP), 0.0), "x")
    assert row.hand_textbook == 0.0
    assert row.verdict == "cannot be said"
    assert not Report(0, (row,)).holds


def test_of_a_function_whose_rounding_drowns_its_slope_nothing_can_be_said() -> None:
    row = row_of(plain_case(lambda x: anp.sin(x) + 1e6, 0.5, size=1e6), "x")
    assert row.verdict == "cannot be said"


def test_a_slope_that_the_error_of_the_quotient_hides_is_not_called_zero() -> None:
    """sin(6x/h) − 6x/h + x/10 has the slope 1/10 at 0, and an e of about 7."""
    row = row_of(plain_case(lambda x: anp.sin(6 * x / STEP) - 6 * x / STEP + 0.1 * x, 0.0), "x")
    assert row.hand_textbook == 0.0
    assert row.uncertainty > 1.0
    assert row.verdict == "cannot be said"


def test_a_gradient_that_vanishes_identically_is_zero_beside_one_that_does_not() -> None:
    def f(p: Any) -> Any:
        return anp.sum(anp.sin(p["x"]) * p["y"] - p["y"] * anp.sin(p["x"])) + anp.sum(p["y"] ** 2)

    case = Case("plain", f, f, {"x": np.array([0.3, 0.4]), "y": np.array([1.0, 2.0])}, 10.0)
    assert {row.array: row.verdict for row in check(case)} == {"x": "zero", "y": "equal"}


def test_two_witnesses_that_disagree_where_the_gradient_is_nearly_zero_are_different() -> None:
    """1e-9 is little, and yet more than 1e-10 of the other array's gradient."""

    def book(p: Any) -> Any:
        return anp.sum(p["x"] ** 2)

    point = {"x": np.array([1.0]), "y": np.array([1.0])}
    hand, size = (lambda p: book(p) + 1e-9 * anp.sum(p["y"])), 1e3
    case = Case("plain", hand, lambda p: book(p) + 0 * anp.sum(p["y"]), point, size)
    assert abs(difference_quotient(hand, point, "y", size)[1]).max() > 1e-9  # which the quotient cannot see
    assert {row.array: row.verdict for row in check(case)} == {"x": "equal", "y": "different"}


# --------------------------------------------------------------------------------------------------------- the report


def test_a_report_is_json(whole: Report) -> None:
    plain = whole.as_dict()
    read = json.loads(json.dumps(plain, allow_nan=False))
    assert (read["seed"], read["holds"], len(read["rows"])) == (0, True, len(whole.rows))
    assert read["rows"][0] == {**plain["rows"][0], "shape": list(whole.rows[0].shape)}


def test_a_report_of_a_gradient_that_is_not_finite_is_json_as_well() -> None:
    case = backward_fault("gelu", "x", scaled("x", lambda saved: math.nan)).planted(SQUARE)
    plain = Report(0, tuple(check(case))).as_dict()
    assert not json.loads(json.dumps(plain, allow_nan=False))["holds"]


def test_one_row_that_does_not_hold_is_a_report_that_does_not() -> None:
    equal = row_of(plain_case(anp.sin, 0.5), "x")
    assert Report(0, (equal,)).holds
    for verdict in ("different", "cannot be said"):
        assert not Report(0, (equal, replace(equal, verdict=verdict))).holds
