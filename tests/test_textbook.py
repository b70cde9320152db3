"""The laws of `textbook`: short, independent of the rest, differentiable to second order."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import autograd
import numpy as np
import pytest
from builders import adapted, for_textbook, model, moved, random_batch

from lora_np import textbook

PAGE = Path(textbook.__file__).read_text(encoding="utf-8")


def imports_of(source: str) -> set[str]:
    """Every module that a file imports; a relative one starts with a dot."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def test_the_textbook_imports_nothing_of_ours() -> None:
    assert imports_of(PAGE) == {"math", "autograd.numpy", "autograd.extend"}


def test_a_hidden_import_of_ours_would_be_found() -> None:
    planted = "def f():\n    from .operations import gelu\n    import lora_np.model\n"
    assert imports_of(planted) == {".operations", "lora_np.model"}


def test_the_textbook_stays_short_enough_to_be_read_at_one_sitting() -> None:
    """As one dict says every architecture and every method by what it holds, one file holds them all: a page for each
    (a transformer, its relatives, the methods), and the list of the keys."""
    assert len(PAGE.splitlines()) <= 275


def keys_in(source: str) -> set[str]:
    """The last words of the names that the code asks the dict for: `A` of f"{name}.A"."""
    strings = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    names = [text for text in strings if isinstance(text, str) and re.fullmatch(r"[\w.]*\.\w+", text)]
    return {name.rsplit(".", 1)[1] for name in names}


def test_every_key_that_the_code_asks_for_stands_in_the_docstring() -> None:
    keys, words = keys_in(PAGE), set(re.findall(r"\w+", textbook.__doc__ or ""))
    assert {"A", "W", "scale_d", "residual", "special", "keys", "S"} <= keys
    assert keys <= words
    assert keys_in('p[f"{name}.unheard_of"]') == {"unheard_of"}  # which none would be


# -------------------------------------------------------------------------------- derivatives, once and twice


def lora_loss() -> tuple[Any, np.ndarray]:
    """The loss of a small adapted model as a function of one vector, all of A and B; and a point where B ≠ 0."""
    lora = moved(adapted(model(layers=1, d_model=4, context=5), targets="attention+mlp", rank=1))
    batch = random_batch(lora, batch=2)
    arrays, scaling = for_textbook(lora)
    trained = {name: array for name, array in arrays.items() if name.endswith((".A", ".B"))}

    def loss(vector: Any) -> Any:
        p, start = dict(arrays), 0
        for name, array in trained.items():
            p[name] = vector[start : start + array.size].reshape(array.shape)
            start += array.size
        return textbook.loss(p, batch.tokens, batch.targets, batch.weights, lora.config.heads, scaling)

    return loss, np.concatenate([array.ravel() for array in trained.values()])


def extrapolated(difference: Any) -> tuple[Any, Any]:
    """Richardson: the O(h²) of a central difference taken out by two steps, and how far that moved it."""
    coarse, fine = difference(2e-3), difference(1e-3)
    return (4.0 * fine - coarse) / 3.0, np.abs(fine - coarse) / 3.0


def test_the_gradient_along_a_direction_is_the_difference_quotient_of_the_loss() -> None:
    loss, x = lora_loss()
    v = np.random.default_rng(0).standard_normal(x.shape)
    v /= np.linalg.norm(v)
    slope = autograd.grad(loss)(x) @ v
    quotient, moved_by = extrapolated(lambda h: (loss(x + h * v) - loss(x - h * v)) / (2 * h))
    assert abs(slope) > 0.01
    assert abs(slope - quotient) <= moved_by <= 1e-4 * abs(slope)


def assert_is_the_hessian_along(product: Any, gradient: Any, x: Any, v: Any) -> None:
    """H v is the difference quotient of the gradient, to within what the extrapolation moved it."""
    quotient, moved_by = extrapolated(lambda h: (gradient(x + h * v) - gradient(x - h * v)) / (2 * h))
    size = np.abs(quotient).max()
    assert moved_by.max() <= 1e-4 * size  # or the quotient itself says nothing; measured 3e-6
    assert np.abs(product - quotient).max() <= moved_by.max(), "not the Hessian"


@pytest.mark.parametrize("fault", [None, "1 % too large", "transposed sign"])
def test_the_second_derivative_of_the_loss_is_the_difference_quotient_of_the_first(fault: str | None) -> None:
    loss, x = lora_loss()
    v = np.random.default_rng(0).standard_normal(x.shape)
    v /= np.linalg.norm(v)
    product = autograd.hessian_vector_product(loss)(x, v)
    assert np.abs(product).max() > 0.01
    if fault is None:
        assert_is_the_hessian_along(product, autograd.grad(loss), x, v)
    else:
        with pytest.raises(AssertionError, match="not the Hessian"):
            assert_is_the_hessian_along({"1": 1.01, "t": -1.0}[fault[0]] * product, autograd.grad(loss), x, v)


def test_the_hessian_is_symmetric() -> None:
    """uᵀHv = vᵀHu. Measured: equal to 1e-15 of their size; allowed 1e-11."""
    loss, x = lora_loss()
    u, v = np.random.default_rng(1).standard_normal((2, x.size))
    product = autograd.hessian_vector_product(loss)
    one, other = u @ product(x, v), v @ product(x, u)
    assert abs(one) > 0.01
    assert abs(one - other) <= 1e-11 * abs(one)


# -------------------------------------------------------------------------------------------- its equations


def test_softmax_is_positive_and_sums_to_one() -> None:
    p = textbook.softmax(np.array([[1e3, -1e3, 0.0], [0.0, 0.0, 0.0]]))
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, rtol=1e-15)
    np.testing.assert_allclose(p[1], 1 / 3, rtol=1e-15)


def test_attention_with_one_visible_key_is_its_value() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 4, 6))
    one = np.zeros((1, 1, 4, 4), bool)
    one[..., 2] = True
    np.testing.assert_allclose(textbook.attention(q, k, v, 2, one), np.broadcast_to(v[:, 2:3], v.shape), rtol=1e-15)
    assert not textbook.attention(q, k, v, 2, np.zeros_like(one)).any()


def test_the_low_rank_update_of_the_textbook_is_equation_3_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    W, A, B, x = (rng.standard_normal(shape) for shape in ((3, 4), (2, 4), (3, 2), (5, 4)))
    h = textbook.linear({"map.W": W, "map.A": A, "map.B": B}, "map", x, {"map": 0.5})
    assert np.abs(h - x @ W.T).max() > 0.1
    np.testing.assert_allclose(h, np.stack([W @ row + 0.5 * B @ (A @ row) for row in x]), rtol=1e-12, atol=1e-13)


def test_the_exact_gelu_of_the_textbook_is_the_normal_distribution_times_x_and_so_is_its_slope() -> None:
    """Twice differentiable as well: (x Φ)'' = (2 − x²) φ."""
    x = np.linspace(-5.0, 5.0, 101)
    cumulative = np.array([0.5 * (1.0 + math.erf(v / math.sqrt(2.0))) for v in x])
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(textbook.gelu_exact(x), x * cumulative, atol=1e-15)
    slope = autograd.elementwise_grad(textbook.gelu_exact)
    np.testing.assert_allclose(slope(x), cumulative + x * density, atol=1e-15)
    np.testing.assert_allclose(autograd.elementwise_grad(slope)(x), (2 - x * x) * density, atol=1e-15)


def test_one_shared_key_head_serves_all_queries() -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((1, 4, d)) for i, d in enumerate((6, 2, 2)))
    every = np.ones((1, 1, 4, 4), bool)
    tiled = textbook.attention(q, np.tile(k, 3), np.tile(v, 3), 3, every)
    np.testing.assert_allclose(textbook.attention(q, k, v, 3, every), tiled, rtol=1e-14)
