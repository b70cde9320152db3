"""The laws of `arrays`: which library an array belongs to, and how it is walked in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from autograd.extend import vspace
from autograd.tracer import new_box
from builders import lora_linear_module, random_shapes
from hypothesis import given
from hypothesis import strategies as st

from lora_np.engine.arrays import ForeignVSpace, array_module, is_array, is_box, largest, register, row_blocks, rows
from lora_np.engine.differentiation import value_and_grad
from lora_np.model import dropout_mask
from lora_np.operations import attention, cross_entropy, embedding, gelu, layer_norm, linear, lora_linear


class Foreign(np.ndarray):
    """A stand-in for a device array: as CuPy's, it brings its own library and refuses to meet a NumPy array."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        _refuse_mixture(inputs)
        target = {} if out is None else {"out": tuple(map(_native, out))}
        result = getattr(ufunc, method)(*map(_native, inputs), **target, **kwargs)
        return _foreign(result) if out is None else out[0]

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        _refuse_mixture(args)
        native = {name: _native(value) for name, value in kwargs.items()}
        return _foreign(function(*map(_native, args), **native))


def _refuse_mixture(values: Any) -> None:
    if any(type(value) is np.ndarray and value.ndim for value in values):
        raise TypeError("a foreign array met a NumPy array")


def _native(value: Any) -> Any:
    return value.view(np.ndarray) if type(value) is Foreign else value


def _foreign(value: Any) -> Any:
    return value.view(Foreign) if type(value) is np.ndarray else value


class ForeignModule:
    """What `cupy` would be: the functions of NumPy by name, giving foreign arrays."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        if isinstance(function, np.ufunc | type) or not callable(function):
            return function
        return lambda *args, **kwargs: _foreign(function(*args, **kwargs))


foreign_numpy = ForeignModule()
register(Foreign, foreign_numpy)


def foreign(array: Any) -> Any:
    return np.asarray(array).view(Foreign)


def test_an_array_belongs_to_numpy_unless_its_type_was_introduced() -> None:
    assert array_module(np.ones(2)) is np
    assert array_module(foreign([1.0])) is foreign_numpy


def test_introducing_a_type_twice_changes_nothing() -> None:
    register(Foreign, np)
    assert array_module(foreign([1.0])) is foreign_numpy


def test_arrays_and_boxes_are_arrays_and_settings_are_not() -> None:
    box = new_box(np.ones(2), 0, None)
    assert all(map(is_array, (np.ones(2), box, foreign([1.0]))))
    assert not any(map(is_array, (1, 2.0, None, "W", (np.ones(2),))))


def test_only_a_box_is_a_box() -> None:
    assert is_box(new_box(np.ones(2), 0, None))
    assert not any(map(is_box, (np.ones(2), 1.0, None)))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 1, 3, 5)])
def test_rows_are_the_last_axis_without_a_copy(shape: tuple[int, ...]) -> None:
    x = np.arange(float(np.prod(shape))).reshape(shape)
    assert rows(x).shape == (x.size // 5, 5)
    assert np.shares_memory(rows(x), x)
    np.testing.assert_array_equal(rows(x).ravel(), x.ravel())


@random_shapes
@given(st.integers(0, 500), st.integers(0, 40), st.integers(1, 200))
def test_row_blocks_cover_every_row_once_in_order(n: int, width: int, elements: int) -> None:
    blocks = list(row_blocks(n, width, elements))
    assert [i for block in blocks for i in range(n)[block]] == list(range(n))
    assert all((b.stop - b.start) * width <= max(elements, width) for b in blocks)


def test_a_foreign_array_has_a_vector_space_of_its_own_library() -> None:
    space = vspace(foreign(np.ones((2, 3), np.float32)))
    assert isinstance(space, ForeignVSpace)
    assert (space.size, space.zeros().sum(), space.ones().sum()) == (6, 0, 6)
    assert type(space.zeros()) is Foreign
    assert space.zeros().dtype == np.float32


def test_a_foreign_array_refuses_to_meet_a_numpy_array() -> None:
    """Or the next tests could not fail."""
    x = foreign([1.0, 2.0])
    for mixture in (lambda: x + np.ones(2), lambda: np.ones(2) @ x, lambda: np.where(np.ones(2) > 0, x, 0.0)):
        with pytest.raises(TypeError, match="a foreign array met a NumPy array"):
            mixture()


def all_operations(p: dict[str, Any], where: Any) -> Any:
    """A loss through every operation; `where` brings constants to the library."""
    tokens, targets = where(np.array([[0, 2, 2], [1, 0, 3]])), where(np.array([[1, 1, 0], [2, 3, 0]]))
    mask = where(np.array([[True, True, False], [True, True, True]]))
    h = layer_norm(embedding(tokens, p["E"]), p["gamma"], p["beta"], 1e-5)
    z = lora_linear(gelu(linear(h, p["W"], p["beta"])), p["W"], None, p["A"], p["B"], 0.5, where(np.full(h.shape, 0.5)))
    return cross_entropy(attention(h, z, h, 2, True, mask), targets, where(np.full(targets.shape, 0.1)))


def test_every_operation_computes_the_same_on_a_registered_type() -> None:
    rng = np.random.default_rng(0)
    shapes = {"E": (4, 4), "gamma": (4,), "beta": (4,), "W": (4, 4), "A": (2, 4), "B": (4, 2)}
    p = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    value, gradient = value_and_grad(all_operations)(p, np.asarray)
    theirs, foreign_gradient = value_and_grad(all_operations)({name: foreign(a) for name, a in p.items()}, foreign)
    assert float(value) == float(theirs)
    for name in p:
        assert type(foreign_gradient[name]) is Foreign
        assert np.array_equal(gradient[name], foreign_gradient[name].view(np.ndarray)), name
        assert gradient[name].any()


def test_the_dropout_mask_of_a_differentiated_array_belongs_to_its_library() -> None:
    """x is a box from the second adapted map on; a NumPy mask times a device array is refused."""
    x = foreign(np.ones((2, 3)))
    kinds = [type(dropout_mask(np.random.default_rng(0), y, 0.5)) for y in (x, new_box(x, 0, None))]
    assert kinds == [Foreign, Foreign]


def test_a_whole_adapted_map_runs_on_a_registered_type() -> None:
    module = lora_linear_module(np.random.default_rng(0), 3, 4, 2)
    x = np.random.default_rng(1).standard_normal((5, 4))
    b = module.base.b
    y = lora_linear(*map(foreign, (x, module.base.W, b, module.A, module.B)), module.scaling, None)
    assert type(y) is Foreign
    assert np.array_equal(y.view(np.ndarray), module(x))


@pytest.mark.parametrize("shape", [(1, 5), (3, 4, 2), (64, 7), (2, 3, 40, 9), (50, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_of_a_row_is_what_numpy_finds_hidden_and_broken_numbers_included(
    shape: tuple[int, ...], dtype: type
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    x[0] = -np.inf
    x[-1, ..., 0] = np.nan
    for view in (x, x.swapaxes(0, -2), x[..., ::-1]):
        found = largest(view)
        assert found.dtype == dtype
        assert np.array_equal(found, view.max(axis=-1, keepdims=True), equal_nan=True)
