"""The stand-in for CuPy is as strict as CuPy: one table of what must raise and what must pass, for both of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from strict_array import ALLOWED, Counts, StrictArray, counted, real_cupy, strict

libraries = pytest.mark.parametrize("library", ["strict", pytest.param("cupy", marks=pytest.mark.gpu)])

HOST = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
IDS = np.array([1, 0, 1])
TWICE = np.array([[1], [2]], np.float32)  # how often each row is named in IDS


def module(library: str) -> Any:
    return strict if library == "strict" else real_cupy()


def placed(xp: Any, value: Any) -> Any:
    return xp.asarray(value)


def host(x: Any) -> Any:
    return x.get() if hasattr(x, "get") else x


# What is tried gets (xp, d, i): the library, HOST on the device, IDS on the device.
Attempt = Callable[[Any, Any, Any], Any]


def assigned(d: Any, key: Any, value: Any) -> Any:
    d[key] = value
    return d


def added(d: Any, value: Any) -> Any:
    d += value
    return d


def written(xp: Any, d: Any, y: Any) -> Any:
    """A chain that writes into an argument, of which there may be none, and gives back something else."""

    def chain(x: Any, y: Any) -> Any:
        twice = xp.multiply(x, 2.0, out=y)
        rest = twice - 3.0
        rest += 2.0
        return rest

    return y, xp.fuse(kernel_name="chain")(chain)(d, y)


MUST_RAISE: dict[str, Attempt] = {
    "d + host": lambda xp, d, i: d + HOST,
    "host + d": lambda xp, d, i: HOST + d,
    "d @ host": lambda xp, d, i: d @ HOST.T,
    "host @ d": lambda xp, d, i: HOST.T @ d,
    "d += host": lambda xp, d, i: added(d, HOST),
    "d + 0-d host": lambda xp, d, i: d + np.array(1.0),
    "d * list": lambda xp, d, i: d * [1.0, 2.0, 3.0],
    "np.asarray(d)": lambda xp, d, i: np.asarray(d),
    "np.array(d)": lambda xp, d, i: np.array(d),
    "np.maximum(d, host)": lambda xp, d, i: np.maximum(d, HOST),
    "xp.maximum(d, host)": lambda xp, d, i: xp.maximum(d, HOST),
    "xp.exp(host)": lambda xp, d, i: xp.exp(HOST),
    "xp.where(host, d, 0)": lambda xp, d, i: xp.where(HOST > 1, d, 0.0),
    "xp.multiply(d, 2, out=host)": lambda xp, d, i: xp.multiply(d, 2.0, out=HOST.copy()),
    "xp.copyto(d, host)": lambda xp, d, i: xp.copyto(d, HOST),
    "np.copyto(host, d)": lambda xp, d, i: np.copyto(HOST.copy(), d),
    "d[:] = host": lambda xp, d, i: assigned(d, slice(None), HOST),
    "host[:] = d": lambda xp, d, i: assigned(HOST.copy(), slice(None), d),
    "d.sum(where=)": lambda xp, d, i: d.sum(where=d > 1),
    "d.max(initial=)": lambda xp, d, i: d.max(initial=0.0),
    "d.reshape(order=None)": lambda xp, d, i: d.reshape((-1,), order=None),
    "d.view(np.ndarray)": lambda xp, d, i: d.view(np.ndarray),
    "np.add.at(d, tuple)": lambda xp, d, i: np.add.at(d, (i, i), 1.0),
    "np.add.at(d, slice)": lambda xp, d, i: np.add.at(d, slice(None), 1.0),
    "np.add.at(host, i)": lambda xp, d, i: np.add.at(HOST.copy(), i, d),
    "bool of many": lambda xp, d, i: bool(d),
    "float of many": lambda xp, d, i: float(d),
    "d[1.0]": lambda xp, d, i: d[1.0],
}

# What must pass, and the NumPy expression whose value, shape and dtype it must have.
MUST_PASS: dict[str, tuple[Attempt, Callable[[Any, Any], Any]]] = {
    "a Python number is weak": (lambda xp, d, i: 2.0 * d + 1, lambda d, i: 2.0 * d + 1),
    "a NumPy number is not": (lambda xp, d, i: d * np.float64(2.0), lambda d, i: d * np.float64(2.0)),
    "np.float64 from the left": (lambda xp, d, i: np.float64(2.0) * d, lambda d, i: np.float64(2.0) * d),
    "a 0-d array is an array": (
        lambda xp, d, i: d * xp.zeros((), xp.float64),
        lambda d, i: d * np.zeros((3,), np.float64),
    ),
    "a 0-d array of float32 stays": (lambda xp, d, i: 2.0 / d.sum() * d, lambda d, i: 2.0 / d.sum() * d),
    "d @ d.T": (lambda xp, d, i: d @ d.T, lambda d, i: d @ d.T),
    "batched product": (
        lambda xp, d, i: d[None].swapaxes(1, 2) @ d[None],
        lambda d, i: d[None].swapaxes(1, 2) @ d[None],
    ),
    "np.exp(d)": (lambda xp, d, i: np.exp(d), lambda d, i: np.exp(d)),
    "np.add(d, d)": (lambda xp, d, i: np.add(d, d), lambda d, i: d + d),
    "np.sum(d)": (lambda xp, d, i: np.sum(d, axis=0), lambda d, i: d.sum(axis=0)),
    "ids pick rows": (lambda xp, d, i: d[i], lambda d, i: d[i]),
    "two arrays pick entries": (lambda xp, d, i: d[xp.asarray([0, 1, 1]), i], lambda d, i: d[[0, 1, 1], i]),
    "an id out of range wraps": (lambda xp, d, i: d[i + 2], lambda d, i: d[(i + 2) % 2]),
    "ids of the host are copied": (lambda xp, d, i: d[IDS], lambda d, i: d[i]),
    "views": (lambda xp, d, i: d[1:, None, ::2][..., -1], lambda d, i: d[1:, None, ::2][..., -1]),
    "d[0, 1] is 0-d": (lambda xp, d, i: d[0, 1], lambda d, i: d[0, 1]),
    "reshape": (lambda xp, d, i: d.T.reshape(-1), lambda d, i: d.T.reshape(-1)),
    "a full reduction is 0-d": (lambda xp, d, i: d.sum(), lambda d, i: d.sum()),
    "argmax": (lambda xp, d, i: d[0].argmax(), lambda d, i: d[0].argmax()),
    "mean": (lambda xp, d, i: d.mean(axis=-1, keepdims=True), lambda d, i: d.mean(axis=-1, keepdims=True)),
    "np.add.at(d, i) adds twice": (lambda xp, d, i: (np.add.at(d, i, 1.0), d)[1], lambda d, i: d + TWICE),
    "xp.add.at adds twice": (lambda xp, d, i: (xp.add.at(d, i, d[i]), d)[1], lambda d, i: d + d * TWICE),
    "d[i] += 1 adds once": (lambda xp, d, i: assigned(d, i, d[i] + 1.0), lambda d, i: d + 1.0),
    "d[a:b] += d": (
        lambda xp, d, i: assigned(d, slice(0, 1), d[0:1] + d[1:2]),
        lambda d, i: np.stack([d[0] + d[1], d[1]]),
    ),
    "copyto with where": (
        lambda xp, d, i: (xp.copyto(d, -math.inf, where=d > 2.0), d)[1],
        lambda d, i: np.where(d > 2.0, -math.inf, d),
    ),
    "copyto with a where that broadcasts": (
        lambda xp, d, i: (xp.copyto(d, 0.0, where=(d > 2.0)[:1]), d)[1],
        lambda d, i: np.where((d > 2.0)[:1], 0.0, d),
    ),
    "where with a device condition": (
        lambda xp, d, i: xp.where(d > 2.0, d, 0.0),
        lambda d, i: np.where(d > 2.0, d, 0.0),
    ),
    "minimum with a number first": (lambda xp, d, i: xp.minimum(2.0 / d.sum(), 1.0), lambda d, i: 2.0 / d.sum()),
    "triu of minus infinity": (
        lambda xp, d, i: xp.triu(xp.full((2, 2), -math.inf, dtype=d.dtype), 1),
        lambda d, i: np.triu(np.full((2, 2), -math.inf, d.dtype), 1),
    ),
    "take_along_axis": (
        lambda xp, d, i: xp.take_along_axis(d, i[:2, None], axis=-1),
        lambda d, i: np.take_along_axis(d, i[:2, None], axis=-1),
    ),
    "vdot is of all numbers": (lambda xp, d, i: xp.vdot(d, d), lambda d, i: np.vdot(d, d)),
    "finfo": (lambda xp, d, i: xp.maximum(d, xp.finfo(d.dtype).tiny), lambda d, i: d),
    "out=": (lambda xp, d, i: xp.tanh(d, out=xp.empty_like(d)), lambda d, i: np.tanh(d)),
    "a fused chain": (
        lambda xp, d, i: xp.fuse(kernel_name="chain")(lambda x, y, s: (x * s + y, xp.sqrt(x)))(d, d[:1], 0.5)[0],
        lambda d, i: d * 0.5 + d[:1],
    ),
    "a fused chain gives the shape of all arguments": (
        lambda xp, d, i: xp.fuse(kernel_name="chain")(lambda x, y: (x + y, 1.0 / y))(d, d[:1])[1],
        lambda d, i: np.broadcast_to(1.0 / d[:1], d.shape),
    ),
    "a fused chain writes into its arguments": (
        lambda xp, d, i: written(xp, d, xp.empty_like(d))[0],
        lambda d, i: 2 * d,
    ),
    "and gives back what it makes beside": (
        lambda xp, d, i: written(xp, d, xp.empty_like(d))[1],
        lambda d, i: 2 * d - 1,
    ),
    "a fused chain may be given nothing": (lambda xp, d, i: written(xp, d, None)[1], lambda d, i: 2 * d - 1),
}


@libraries
@pytest.mark.parametrize("attempt", MUST_RAISE)
def test_what_cupy_refuses_is_refused(library: str, attempt: str) -> None:
    xp = module(library)
    d, i = placed(xp, HOST), placed(xp, IDS)
    with pytest.raises((TypeError, ValueError, IndexError)):
        MUST_RAISE[attempt](xp, d, i)


@libraries
@pytest.mark.parametrize("attempt", MUST_PASS)
def test_what_cupy_computes_is_computed_and_stays_on_the_device(library: str, attempt: str) -> None:
    xp = module(library)
    ours, numpys = MUST_PASS[attempt]
    found = ours(xp, placed(xp, HOST.copy()), placed(xp, IDS))
    expected = np.asarray(numpys(HOST.copy(), IDS.copy()))
    assert type(found) is xp.ndarray
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(host(found), expected, rtol=1e-6)


@libraries
def test_every_allowed_name_is_one_of_cupys(library: str) -> None:
    xp = module(library)
    assert [name for name in sorted(ALLOWED) if not hasattr(xp, name)] == []


def test_every_allowed_name_is_one_of_an_installed_cupys_though_there_be_no_device() -> None:
    cupy = pytest.importorskip("cupy")
    assert [name for name in sorted(ALLOWED) if not hasattr(cupy, name)] == []


# --------------------------------------------------------------------------------------------- what only the fake does


def test_a_name_that_is_not_in_the_list_cannot_be_used() -> None:
    with pytest.raises(AttributeError, match="einsum"):
        _ = strict.einsum
    with pytest.raises(TypeError, match=r"no implementation found for 'numpy\.linalg\.norm'"):
        np.linalg.norm(strict.asarray(HOST))


def counts_of(what: Callable[[Any, Any], Any]) -> Counts:
    d, i = strict.asarray(HOST), strict.asarray(IDS)
    with counted() as counts:
        what(d, i)
    return counts


COSTS: dict[str, tuple[Callable[[Any, Any], Any], Counts]] = {
    "asarray of the host": (lambda d, i: strict.asarray(HOST), Counts(h2d=1)),
    "asarray of the device": (lambda d, i: strict.asarray(d), Counts()),
    "get": (lambda d, i: d.get(), Counts(d2h=1)),
    "asnumpy": (lambda d, i: strict.asnumpy(d), Counts(d2h=1)),
    "float": (lambda d, i: float(d.sum()), Counts(d2h=1, launches=1)),
    "if": (lambda d, i: bool(d[0, 0]), Counts(d2h=1)),
    "repr": (lambda d, i: repr(d), Counts(d2h=1)),
    "a mask as an index": (lambda d, i: d[d > 2], Counts(d2h=1, launches=2)),
    "an index on the host": (lambda d, i: d[IDS], Counts(index_copies=1, launches=1)),
    "a list as an index": (lambda d, i: d[[0, 1]], Counts(index_copies=1, launches=1)),
    "a value on the host": (lambda d, i: assigned(d, i, HOST[IDS]), Counts(index_copies=1, launches=1)),
    "an operator": (lambda d, i: d + d, Counts(launches=1)),
    "a view": (lambda d, i: d[:, 1:].T.reshape(2, 2, order="F"), Counts()),
    "a reshape that copies": (lambda d, i: d.T.reshape(-1), Counts(launches=1)),
    "a slice in place": (lambda d, i: exec("d[:1] += 1.0", {"d": d}), Counts(launches=1)),
    "a product of matrices": (lambda d, i: d.T @ d, Counts(launches=1)),
    "a product of stacks": (lambda d, i: d[None].swapaxes(1, 2) @ d[None], Counts(launches=2)),
    "empty": (lambda d, i: strict.empty_like(d), Counts()),
    "zeros": (lambda d, i: strict.zeros_like(d), Counts(launches=1)),
    "a fused chain": (lambda d, i: strict.fuse(kernel_name="f")(lambda x: x * x + 1.0)(d), Counts(launches=1)),
}


@pytest.mark.parametrize("what", COSTS)
def test_every_copy_and_every_launch_is_counted(what: str) -> None:
    expression, expected = COSTS[what]
    assert counts_of(expression) == expected


@pytest.mark.parametrize("inside", [lambda x: x.sum(), lambda x: x[0], lambda x: x @ x, lambda x: float(x)])
def test_a_fused_chain_refuses_what_is_not_element_wise(inside: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError):
        strict.fuse(kernel_name="f")(inside)(strict.asarray(HOST))


def test_a_fused_chain_does_not_write_into_an_argument_that_is_smaller_than_all_together() -> None:
    """On a device every thread would write to the same place."""

    def chain(x: Any, y: Any) -> None:
        y += 1.0

    d = strict.asarray(HOST)
    strict.fuse(kernel_name="f")(chain)(d, d)
    with pytest.raises(ValueError, match="non-broadcastable output operand"):
        strict.fuse(kernel_name="f")(chain)(d, strict.asarray(HOST[:1]))


def test_an_array_larger_than_the_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "room", HOST.nbytes)
    assert type(strict.asarray(HOST)) is StrictArray
    with pytest.raises(MemoryError, match="Out of memory allocating 48 bytes"):
        strict.zeros((4, 3), np.float32)
