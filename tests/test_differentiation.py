"""The laws of `differentiation`: a pair becomes an operation, a loss its gradient, and only what is wanted is made."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from builders import adapted, assert_agree, model, moved, random_batch

from lora_np.engine.differentiation import operation, recomputed, value_and_grad
from lora_np.model import language_model_loss
from lora_np.operations import attention, cross_entropy, embedding, gelu, layer_norm, linear, lora_linear
from lora_np.parameters import parameters, with_parameters

a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, -3.0, 4.0])


class Product:
    """y = u v, which remembers what was computed and what was saved."""

    def __init__(self) -> None:
        self.computed: list[str] = []
        self.wanted: list[tuple[str, ...]] = []
        self.call = operation(self.forward, self.backward)

    def forward(self, u: Any, v: Any, /, *, wanted: tuple[str, ...]) -> tuple[Any, Any]:
        self.wanted.append(wanted)
        return u * v, (u, v)

    def backward(self, saved: Any, dy: Any, wanted: tuple[str, ...]) -> list[Any]:
        self.computed += wanted
        gradient = {"u": dy * saved[1], "v": dy * saved[0]}
        return [gradient[name] for name in wanted]


# ------------------------------------------------------------------------------------------- operation()


@pytest.mark.parametrize("names", [("u",), ("v",), ("u", "v")])
def test_only_wanted_gradients_are_computed(names: tuple[str, ...]) -> None:
    product = Product()
    arrays = {"u": a, "v": b}
    _, gradient = value_and_grad(lambda p: anp.sum(product.call(*{**arrays, **p}.values())))(
        {name: arrays[name] for name in names}
    )
    assert product.wanted == [names]
    assert product.computed == list(names)
    assert all(np.array_equal(gradient[name], {"u": b, "v": a}[name]) for name in names)


def test_without_a_gradient_to_come_nothing_is_wanted() -> None:
    product = Product()
    assert np.array_equal(product.call(a, b), a * b)
    assert (product.wanted, product.computed) == ([()], [])


def test_autograds_own_grad_takes_an_operation_as_well() -> None:
    product = Product()
    gradient = autograd.grad(lambda v: anp.sum(product.call(a, v)))(b)
    assert np.array_equal(gradient, a)
    assert product.computed == ["v"]


def test_arguments_are_positional_only() -> None:
    """autograd would give a boxed keyword argument a gradient of zero, silently."""
    with pytest.raises(TypeError, match="keyword"):
        Product().call(a, v=b)
    with pytest.raises(TypeError, match="keyword"):
        value_and_grad(lambda p: anp.sum(Product().call(p["u"], v=p["v"])))({"u": a, "v": b})


SECOND = "operations are differentiable once; for second derivatives use lora_np.textbook"


def test_a_second_derivative_raises_and_names_the_textbook() -> None:
    once = autograd.grad(lambda x: anp.sum(gelu(x)))
    assert np.isfinite(once(a)).all()
    with pytest.raises(TypeError, match=SECOND):
        autograd.grad(lambda x: anp.sum(once(x)))(a)


def test_a_traced_cotangent_raises_and_names_the_textbook() -> None:
    def pulled(dy: Any) -> Any:
        backward, _ = autograd.make_vjp(gelu)(a)
        return anp.sum(backward(dy))

    assert np.isfinite(pulled(b))
    with pytest.raises(TypeError, match=SECOND):
        autograd.grad(pulled)(b)


def test_forward_mode_raises_and_names_the_textbook() -> None:
    with pytest.raises(TypeError, match=r"no derivatives in forward mode; use lora_np\.textbook"):
        autograd.make_jvp(gelu)(a)(b)


class Saved:
    """Something an operation saves whose life can be watched."""


def test_what_an_operation_saves_is_let_go_when_nothing_is_differentiated() -> None:
    """Or every thread would hold on to the last activation and to the weights of every operation."""
    alive: list[Any] = []

    def forward(x: Any, /, *, wanted: tuple[str, ...]) -> tuple[Any, Any]:
        saved = Saved()
        alive.append(weakref.ref(saved))
        return x + 1.0, saved

    call = operation(forward, lambda saved, dy, wanted: [dy])
    call(a)
    gc.collect()
    assert [ref() for ref in alive] == [None]


def test_an_operation_that_raised_leaves_no_trace_in_the_next() -> None:
    product = Product()
    with pytest.raises(ValueError, match="broadcast"):
        value_and_grad(lambda p: anp.sum(product.call(p["u"], b[:2])))({"u": a})
    _, gradient = value_and_grad(lambda p: anp.sum(product.call(a, p["v"])))({"v": b})
    assert np.array_equal(gradient["v"], a)


def test_an_operation_used_twice_keeps_what_each_use_saved() -> None:
    product = Product()
    _, gradient = value_and_grad(lambda p: anp.sum(product.call(product.call(p["u"], p["u"]), b)))({"u": a})
    assert_agree(gradient["u"], 2 * a * b)


# -------------------------------------------------------------------------------------- value_and_grad


def a_model_loss() -> tuple[Callable[..., Any], dict[str, Any], Any]:
    lora = moved(adapted(model(layers=1)))
    trained = parameters(lora)  # all arrays: every operation and every gradient
    return lambda p, batch: language_model_loss(with_parameters(lora, p), batch), trained, random_batch(lora)


def test_the_gradient_is_that_of_autograds_value_and_grad_bit_for_bit() -> None:
    loss, trained, batch = a_model_loss()
    value, gradient = value_and_grad(loss)(trained, batch)
    theirs, their_gradient = autograd.value_and_grad(loss)(trained, batch)
    assert value == theirs
    assert list(gradient) == list(trained)
    for name, array in their_gradient.items():
        assert np.array_equal(gradient[name], array), name
        assert gradient[name].any() or name.endswith("key.base.b"), name  # softmax does not see a key bias


def test_an_array_used_in_several_places_collects_all_of_its_gradient() -> None:
    value, gradient = value_and_grad(lambda p: anp.sum(p["a"] ** 2) + anp.sum(p["a"] * b) + p["a"][0])({"a": a})
    assert value == (a**2).sum() + (a * b).sum() + 1.0
    assert_agree(gradient["a"], 2 * a + b + np.array([1.0, 0.0, 0.0]))


def test_a_loss_that_is_an_array_itself_has_gradient_one() -> None:
    value, gradient = value_and_grad(lambda p: p["a"])({"a": np.array(3.0)})
    assert (float(value), float(gradient["a"])) == (3.0, 1.0)


def test_the_value_and_the_gradient_are_plain_arrays() -> None:
    value, gradient = value_and_grad(lambda p: anp.sum(gelu(p["a"])))({"a": a})
    assert isinstance(value, float)
    assert type(gradient["a"]) is np.ndarray


def test_further_arguments_reach_the_loss_undifferentiated() -> None:
    product = Product()
    value, gradient = value_and_grad(lambda p, v, shift: anp.sum(product.call(p["u"], v)) + shift)({"u": a}, b, 5.0)
    assert value == (a * b).sum() + 5.0
    assert list(gradient) == ["u"]
    assert product.wanted == [("u",)]


def test_a_loss_independent_of_the_arrays_raises() -> None:
    with pytest.raises(ValueError, match="the loss depends on none of the arrays it is differentiated by"):
        value_and_grad(lambda p: np.sum(b))({"a": a})


def test_an_unused_trained_array_gets_zeros_of_its_own_shape_and_type() -> None:
    unused = np.ones((2, 3), np.float32)
    _, gradient = value_and_grad(lambda p: anp.sum(p["a"]))({"a": a, "unused": unused})
    assert gradient["a"].all()
    assert np.array_equal(gradient["unused"], np.zeros((2, 3)))
    assert gradient["unused"].dtype == np.float32


def test_differentiating_changes_no_array() -> None:
    loss, trained, batch = a_model_loss()
    before = {name: array.copy() for name, array in trained.items()}
    value_and_grad(loss)(trained, batch)
    assert all(np.array_equal(trained[name], before[name]) for name in trained)


def test_a_second_derivative_by_value_and_grad_raises() -> None:
    inner = value_and_grad(lambda p: anp.sum(p["a"] ** 2))
    with pytest.raises(TypeError, match=SECOND):
        value_and_grad(lambda p: anp.sum(inner(p)[1]["a"]))({"a": a})
    with pytest.raises(TypeError, match=SECOND):
        autograd.grad(lambda x: anp.sum(inner({"a": x})[1]["a"]))(a)


def inner_of_operation(x: Any, grad: Callable[..., Any]) -> Any:
    """A gradient by q of a loss that x enters from outside, through one of our operations."""
    return anp.sum(grad(lambda q: anp.sum(gelu(q * x)))(b))


def inner_of_autograd(x: Any, grad: Callable[..., Any]) -> Any:
    """The same through autograd's own operations alone."""
    return anp.sum(grad(lambda q: anp.sum(q**2 * x))(b))


def our_grad(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda q: value_and_grad(lambda p: f(p["q"]))({"q": q})[1]["q"]


@pytest.mark.parametrize("inner", [inner_of_operation, inner_of_autograd])
@pytest.mark.parametrize("grad", [our_grad, autograd.grad], ids=["our_grad", "autograd.grad"])
@pytest.mark.filterwarnings("ignore:Output seems independent of input")
def test_a_gradient_within_a_gradient_raises_or_is_right_when_a_box_comes_in_from_outside(
    inner: Callable[..., Any], grad: Callable[..., Any]
) -> None:
    """Never silently wrong: the outer array reaches the inner loss through its closure."""

    def outer(p: dict[str, Any]) -> Any:
        return anp.sum(p["a"]) + inner(p["a"], grad)

    try:
        _, gradient = value_and_grad(outer)({"a": a})
    except TypeError as error:
        assert SECOND in str(error)  # noqa: PT017
    else:
        h = 1e-5
        quotient = [(outer({"a": a + e}) - outer({"a": a - e})) / (2 * h) for e in h * np.eye(3)]
        np.testing.assert_allclose(gradient["a"], quotient, rtol=1e-7)  # measured: 1e-10 where it is right


# ------------------------------------------------------------------------------------ memory and threads


def living_at_the_end_of_backward(differentiate: Callable[..., Any], steps: int) -> int:
    """How many of `steps` saved activations still live when backward reaches the first."""
    refs: list[Any] = []
    living: list[int] = []

    def forward(x: Any, /, *, wanted: tuple[str, ...]) -> tuple[Any, Any]:
        saved = Saved()
        refs.append(weakref.ref(saved))
        return x + 1.0, saved

    def backward(saved: Any, dy: Any, wanted: tuple[str, ...]) -> list[Any]:
        living.append(sum(ref() is not None for ref in refs))
        return [dy]

    call = operation(forward, backward)

    def loss(p: dict[str, Any]) -> Any:
        h = p["a"]
        for _ in range(steps):
            h = call(h)
        return anp.sum(h)

    differentiate(loss)({"a": a})
    assert (len(living), living[0]) == (steps, steps)
    return living[-1]


def test_activations_are_released_as_backward_passes_them() -> None:
    assert living_at_the_end_of_backward(autograd.grad, 20) == 20  # contrast: autograd holds all of them
    assert living_at_the_end_of_backward(value_and_grad, 20) == 1  # the one in use


def test_two_thousand_gradients_in_eight_threads_are_the_serial_ones_bit_for_bit() -> None:
    """While autograd's own grad, whose counter of traces all threads share, runs in the main thread."""
    rng = np.random.default_rng(0)
    p = {"W": rng.standard_normal((4, 4)), "A": rng.standard_normal((2, 4)), "B": rng.standard_normal((4, 2))}
    p |= {"E": rng.standard_normal((5, 4)), "gamma": np.ones(4), "beta": np.zeros(4)}
    tokens = rng.integers(0, 5, (12, 1, 6))

    def loss(p: dict[str, Any], tokens: Any) -> Any:
        x = layer_norm(embedding(tokens, p["E"]), p["gamma"], p["beta"], 1e-5)
        q = lora_linear(gelu(linear(x, p["W"], None)), p["W"], p["beta"], p["A"], p["B"], 0.5, None)
        return cross_entropy(linear(attention(q, x, q, 2, True, None), p["E"], None), tokens, np.ones(tokens.shape))

    gradient_of = value_and_grad(loss)
    serial = [gradient_of(p, t) for t in tokens]
    polynomial = autograd.grad(lambda x: anp.sum(anp.tanh(x) ** 2))
    expected = polynomial(a)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(gradient_of, p, tokens[i % 12]) for i in range(2000)]
        while not all(future.done() for future in futures):
            assert np.array_equal(polynomial(a), expected)
        threaded = [future.result() for future in futures]
    assert len({float(value) for value, _ in serial}) == 12  # the twelve are told apart
    for i, (value, gradient) in enumerate(threaded):
        assert value == serial[i % 12][0]
        assert all(np.array_equal(gradient[name], serial[i % 12][1][name]) for name in p)


# ---------------------------------------------------------------------------------------------------- recomputed


def layers_of(p: dict[str, Any], x: Any) -> Any:
    return gelu(linear(x, p["W"], p["b"])) * p["gain"]


def layer_arrays() -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(0)
    return {"W": rng.standard_normal((6, 6)), "b": rng.standard_normal(6), "gain": rng.standard_normal(6)}, (
        rng.standard_normal((9, 6))
    )


@pytest.mark.parametrize("names", [("W",), ("b", "gain"), ("W", "b", "gain", "x"), ("x",)], ids=" ".join)
def test_what_is_recomputed_has_the_same_value_and_gradients_bit_for_bit(names: tuple[str, ...]) -> None:
    arrays, x = layer_arrays()
    point = {name: {**arrays, "x": x}[name] for name in names}

    def loss(p: dict[str, Any], layer: Any) -> Any:
        inside = {**arrays, **{name: value for name, value in p.items() if name != "x"}}
        h = layer(inside, p.get("x", x))
        return anp.sum(layer(inside, h) ** 2)  # twice, the second on the first

    kept = value_and_grad(lambda p: loss(p, layers_of))(point)
    again = value_and_grad(lambda p: loss(p, lambda inside, h: recomputed(layers_of, inside, h)))(point)
    assert kept[0] == again[0]
    assert all(np.array_equal(kept[1][name], again[1][name]) and kept[1][name].any() for name in names)


def test_what_is_recomputed_is_evaluated_twice_with_a_gradient_and_once_without() -> None:
    arrays, x = layer_arrays()
    calls = []

    def layer(p: dict[str, Any], h: Any) -> Any:
        calls.append(sorted(name for name, value in p.items() if type(value) is not np.ndarray))
        return layers_of(p, h)

    recomputed(layer, arrays, x)
    assert calls == [[]]
    value_and_grad(lambda p: anp.sum(recomputed(layer, {**arrays, **p}, x)))({"b": arrays["b"]})
    assert calls == [[], [], ["b"]]  # boxed the second time, and only what is differentiated


def test_what_is_recomputed_keeps_nothing_in_between() -> None:
    arrays, x = layer_arrays()
    kept: list[weakref.ref[Any]] = []

    def layer(p: dict[str, Any], h: Any) -> Any:
        u = linear(h, p["W"], p["b"])
        kept.append(weakref.ref(u if type(u) is np.ndarray else u._value))
        return gelu(u)

    def loss(p: dict[str, Any]) -> Any:
        y = recomputed(layer, {**arrays, **p}, x)
        assert kept[0]() is None
        return anp.sum(y)

    value_and_grad(loss)({"W": arrays["W"]})


def test_a_second_derivative_of_what_is_recomputed_raises() -> None:
    arrays, x = layer_arrays()
    once = autograd.grad(lambda x: anp.sum(recomputed(layers_of, arrays, x)))
    assert once(x).any()
    with pytest.raises(TypeError, match=SECOND):
        autograd.grad(lambda x: anp.sum(once(x)))(x)


def test_an_array_that_what_is_recomputed_does_not_use_has_gradient_zero() -> None:
    arrays, x = layer_arrays()
    _, gradient = value_and_grad(lambda p: anp.sum(recomputed(layers_of, {**arrays, **p}, x)))(
        {"b": arrays["b"], "idle": np.ones(3)}
    )
    assert gradient["b"].any()
    assert gradient["idle"].tolist() == [0.0, 0.0, 0.0]
