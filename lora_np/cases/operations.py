r"""Losses out of the samples, small ones and such as are joined from blocks; and the same with a planted fault."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import autograd.numpy as anp
import numpy as np

from .. import operations as ops
from .. import textbook
from ..engine.arrays import Array
from ..engine.devices import to_device, to_host
from ..engine.differentiation import operation
from ..operations.attention import QUERIES
from ..operations.head import LOGITS, WORDS
from ..parameters import Arrays
from .kinds import Case, Draw, Sample
from .samples import CASES

projection = operation(
    lambda y, constant, /, *, wanted: ((y * constant).sum(), constant),
    lambda constant, dL, wanted: [dL * constant],
)


def operation_case(name: str, seed: int = 0, operations: Any = ops, device: str = "cpu") -> Case:
    """An operation between random arguments and, unless it gives one number, a random projection to one.

    Each case draws from a generator of its own: a row more changes no other.

    operations  where the operation is looked up: `lora_np.operations`, or a stand-in with a planted fault
    """
    if name not in CASES:
        raise ValueError(f"the cases are {'; '.join(CASES)}; got {name!r}")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    sample = CASES[name](Draw(rng))
    ours = getattr(operations, sample.operation)
    return sample_case(name, ours, sample, rng, device)


def sample_case(name: str, ours: Any, sample: Sample, rng: np.random.Generator, device: str = "cpu") -> Case:
    """A function and its textbook at the point of a sample and, unless they give one number, a random projection."""
    point = {name: sample.arguments[name] for name in sample.arrays}
    there = {name: to_device(value, device) for name, value in sample.arguments.items()}

    def hand(p: Arrays) -> Any:
        return ours(*{**there, **p}.values())

    def book(p: Arrays) -> Any:
        return sample.book(*{**sample.arguments, **p}.values())

    y = to_host(hand({name: there[name] for name in point}))
    if not y.shape:
        return Case(name, hand, book, point, float(abs(y)), device)
    constant = rng.standard_normal(y.shape)
    moved, size = to_device(constant, device), float(abs(y * constant).sum())
    return Case(name, lambda p: projection(hand(p), moved), lambda p: anp.sum(book(p) * constant), point, size, device)


def operation_cases(seed: int = 0, operations: Any = ops, device: str = "cpu") -> Iterator[Case]:
    """Every row of `CASES`; see `operation_case`."""
    return (operation_case(name, seed, operations, device) for name in CASES)


def joined_cases(seed: int = 0, operations: Any = ops, device: str = "cpu") -> Iterator[Case]:
    """The operations that put sums together from blocks, at sizes at which there are several: along two directions.

    Attention joins blocks of queries; the head joins blocks of words, and for the table's gradient blocks of rows.
    With thousands of entries, a quotient for each would take longer than all other cases.
    """
    rng = np.random.default_rng([seed, zlib.crc32(b"joined")])
    batch, heads, queries, keys = 2, 2, 2 * QUERIES + 2, 2 * QUERIES + 3
    seen = rng.random((batch, keys)) < 0.8
    seen[:, 0] = True
    visible = np.tril(np.ones((queries, keys), bool), keys - queries) & seen[:, None, None]
    to_number = rng.standard_normal((batch, queries, 2 * heads))
    q, k, v = (rng.standard_normal((batch, n, 2 * heads)) for n in (queries, keys, keys))
    hidden, moved = to_device((seen, to_number), device)
    by_blocks = Case(
        "attention, joined",
        lambda p: projection(operations.attention(p["q"], p["k"], p["v"], heads, True, hidden), moved),
        lambda p: anp.sum(textbook.attention(p["q"], p["k"], p["v"], heads, visible) * to_number),
        {"q": q, "k": k, "v": v},
        float(abs(textbook.attention(q, k, v, heads, visible) * to_number).sum()),
        device,
    )
    yield along(by_blocks, rng)

    rows, words = LOGITS // WORDS + 1, WORDS + 2
    targets, weights = rng.integers(0, words, rows), rng.random(rows) / rows
    h, W = rng.standard_normal((rows, 2)), rng.standard_normal((words, 2))
    # Longer than all others, so that in many rows the last block brings a larger logit and what was summed shrinks.
    W[WORDS:] *= 6.0 / np.linalg.norm(W[WORDS:], axis=1, keepdims=True)
    labels = to_device((targets, weights), device)
    by_words = Case(
        "head_cross_entropy, joined",
        lambda p: operations.head_cross_entropy(p["h"], p["W"], *labels),
        lambda p: textbook.cross_entropy(anp.dot(p["h"], p["W"].T), targets, weights),
        {"h": h, "W": W},
        float(textbook.cross_entropy(h @ W.T, targets, weights)),
        device,
    )
    yield along(by_words, rng)


# start + Σ p_i U_i, with one row of U for each direction, as an operation for the same reason as the projection.
combination = operation(
    lambda p, start, U, /, *, wanted: (start + (p @ U).reshape(start.shape), U),
    lambda U, dy, wanted: [U @ dy.reshape(-1)],
)


def along(case: Case, rng: np.random.Generator, directions: int = 2) -> Case:
    r"""The case as a function of p: each array a becomes $a + \sum_i p_i U_i$, with random directions U, at p = 0.

    An array's gradient is then that along its few directions, $\partial L/\partial p_i = \langle\partial L/\partial a,
    U_i\rangle$: a mistake in any entry shows there, unless two of them cancel to ten digits.
    """
    start = case.point
    U = {name: rng.standard_normal((directions, array.size)) for name, array in start.items()}
    moved, along_U = to_device((start, U), case.device)

    def hand(p: Arrays) -> Any:
        return case.hand({n: combination(p[n], a, along_U[n]) if n in p else a for n, a in moved.items()})

    def book(p: Arrays) -> Any:
        along_it = {n: anp.reshape(anp.dot(p[n], U[n]), start[n].shape) for n in p}
        return case.textbook({n: a + along_it.get(n, 0.0) for n, a in start.items()})

    return replace(case, hand=hand, textbook=book, point={name: np.zeros(directions) for name in start})


def planted(name: str, backward: Callable[..., Any], forward: Callable[..., Any] | None = None) -> Any:
    """The operations of the library with one of them exchanged: where `operation_case` looks them up."""
    right = getattr(ops, name)
    exchanged = operation(forward or right.forward, backward)
    return SimpleNamespace(**{each: getattr(ops, each) for each in ops.__all__} | {name: exchanged})


def spoiled(name: str, array: str, change: Callable[[Array], Array]) -> Any:
    """The operations of the library, with the gradient of one array of one of them changed: a planted fault."""
    right = getattr(ops, name).backward

    def backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
        gradients = zip(wanted, right(saved, dy, wanted), strict=True)
        return [change(gradient) if each == array else gradient for each, gradient in gradients]

    return planted(name, backward)
