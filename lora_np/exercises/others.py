"""Tutorial 10, the other methods: each moved away from its start, timed beside its base, and checks of equations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..config import TransformerConfig, shape_name
from ..costs.budget import offer
from ..engine.arrays import Array
from ..method import Method
from ..methods import METHODS, adapt
from ..methods.bottleneck import AdapterH
from ..model import Transformer
from ..operations import dora_linear
from ..parameters import with_parameters
from ..wrappers import can_be_merged, merge
from . import checker, shown, unanswered
from .answers import CLOSE, matrix, number, told, whole_number

# The fifteen of the tutorial, in its order; `METHODS` holds three more, which are mixtures or relatives of these.
NAMES = (
    *("lora", "full", "top", "bitfit", "prefix-embedding", "prefix-layer"),
    *("adapter-h", "adapter-l", "adapter-p", "compacter"),
    *("dora", "vera", "pissa", "lora+", "lora-fa"),
)


def moved(base: Transformer, method: Method, seed: int = 0, by: float = 0.1) -> Transformer:
    """The base with this method, everything that it trains moved at random, as if it had been trained."""
    rng = np.random.default_rng(seed)
    model = adapt(base, method, rng)
    new = {
        path: array + (by * rng.standard_normal(array.shape)).astype(array.dtype)
        for path, array in method.trained(model).items()
    }
    return with_parameters(model, new)


def fastest_calls(calls: Mapping[str, Callable[[], Any]], turns: int = 60) -> dict[str, float]:
    """The seconds of each call, in turns, the fastest of each: a busy moment of the machine hits them alike.

    Every other turn goes backwards, so that none always comes behind the same other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            began = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - began)
    return {name: min(taken) for name, taken in seconds.items()}


def slower(
    base: Transformer, methods: Mapping[str, Method], n: int = 64, turns: int = 30
) -> dict[str, dict[str, float]]:
    """By the clock: how many percent longer than the base each method takes while it stands beside it.

    Two ways to read: n tokens of text at once, and one more behind them, from the cache, as in generation. Special
    tokens come on top. What can be merged is timed merged as well, as "NAME, merged".
    """
    text, rng = np.zeros(n, np.int64), np.random.default_rng(0)  # which text it is makes no difference
    models = {name: (adapt(base, method, rng), method.given(text, base.config)) for name, method in methods.items()}
    models |= {f"{name}, merged": (merge(node), text) for name, (node, _) in models.items() if can_be_merged(node)}
    found = {}
    for way, call in {"one more token": _one_more, f"{n} tokens at once": _at_once}.items():
        calls = {name: call(node, tokens) for name, (node, tokens) in {"": (base, text), **models}.items()}
        seconds = fastest_calls(calls, turns if call is _at_once else 16 * turns)
        found[way] = {name: 100.0 * (seconds[name] / seconds[""] - 1.0) for name in models}
    return found


def _at_once(model: Transformer, tokens: Array) -> Callable[[], Any]:
    return partial(model, tokens[None])


def _one_more(model: Transformer, tokens: Array) -> Callable[[], Any]:
    """The same token again and again behind the others, which are read once."""
    caches = model.caches(len(tokens) + 1)
    model(tokens[None], caches=caches)

    def call() -> None:
        for cache in caches:
            cache.length = len(tokens)
        model(np.zeros((1, 1), np.int64), caches=caches)

    return call


# ---------------------------------------------------------------------------------------------------------- checks


@checker
def check_adapter_rank(answer: Any, shape: TransformerConfig, budget: int) -> None:
    """The largest rank of Houlsby's adapters, two a block, that trains at most so many numbers: (C13)."""
    task = f"the largest rank r of adapter-h on {shape_name(shape)} that trains at most {budget:,} numbers"
    if unanswered(answer, task):
        return
    r, d, each = whole_number(answer, "a rank is a whole number"), shape.d_model, budget // (2 * shape.layers)
    assert 1 <= r <= d, f"a rank lies in 1..d_model = 1..{d}, got {r}"
    found, right = AdapterH(r).numbers(shape), (each - d) // (2 * d + 1)
    hints = {
        (2 * each - d) // (2 * d + 1): f"rank {r} fits one adapter a block; adapter-h has two",
        (budget - d) // (2 * d + 1): f"rank {r} fits one adapter; there are two in each of {shape.layers} blocks",
        each // (2 * d): f"rank {r} leaves the biases out: each adapter has r + d of them",
        each // d: f"rank {r} counts one of the two matrices; both have d·r numbers",
    }
    told(r, right, {k: v for k, v in hints.items() if k != right}, _beside(r, found, budget, 2 * shape.layers, d))
    print(f"Right: rank {r} trains {found:,} numbers, and rank {r + 1} would train {AdapterH(r + 1).numbers(shape):,}.")


def _beside(rank: int, found: int, budget: int, adapters: int, d: int) -> str:
    more = "more" if found > budget else "and one rank more would still fit; not all"
    return f"rank {rank} trains {found:,} numbers, {more} of {budget:,}: {adapters} adapters of 2dr + r + d, d = {d}"


@checker
def check_places_left(answer: Any, shape: TransformerConfig, name: str, budget: int) -> None:
    """How many places of the context a prefix of this budget leaves to the text."""
    if unanswered(answer, f"the places that the largest {name} of {budget:,} numbers leaves on {shape_name(shape)}"):
        return
    bill = offer(name, shape, budget).bill
    assert bill is not None, f"{shape_name(shape)} can have no {name}"
    taken, right, found = bill.full_context - bill.context, bill.context, number(answer)
    a_place, d, L = METHODS[name](prefix=1).numbers(shape), shape.d_model, shape.layers  # type: ignore[call-arg]
    in_every_block = a_place > d
    other, why = (
        (budget // d, "prefix-layer learns a row for every block")
        if in_every_block
        else (budget // (d * L), "prefix-embedding learns a row once, not in every block")
    )
    hints: dict[float, str] = {
        taken: f"that is what it takes; the context has {shape.context}",
        shape.context: "that is the whole context, and special tokens stand in it too",
        shape.context - budget: "a special token is not one number: it is a row of d numbers",
        shape.context - other: why,
        shape.context - 2 * taken: "keys and values are not apart here: a place is one row a block",
    }
    told(found, right, hints, f"a place costs {a_place:,} numbers, and {taken} of them fit into {budget:,}")
    print(f"Right: {taken} places are taken, and {right} of {shape.context} are left to the text.")


@checker
def check_dora(answer: Any) -> None:
    """dora(x, W, A, B, m, s) of equation (R1), without a bias: rows of x are examples."""
    if unanswered(answer, "a function (x, W, A, B, m, s) that gives (R1): the rows of W0 + s·BA at the lengths m"):
        return
    assert callable(answer), f"the answer is a function of (x, W, A, B, m, s), got {shown(answer)}"
    rng, s = np.random.default_rng(0), 1.7
    x, W, A, B = (rng.standard_normal(shape) for shape in ((5, 3), (4, 3), (2, 3), (4, 2)))
    m = 1.0 + rng.random(4)
    V = W + s * (B @ A)
    n, own = np.linalg.norm(V, axis=1), np.linalg.norm(W, axis=1)
    got = matrix(answer(x.copy(), W.copy(), A.copy(), B.copy(), m.copy(), s), (5, 4), "dora(x, W, A, B, m, s)")
    right = np.asarray(dora_linear(x, W, None, A, B, m, s))
    known = {
        "the length is missing: divide each row of V by its own, n": m[:, None] * V,
        "m is missing: after dividing by n each row has length 1, and should have length m": V / n[:, None],
        "n is the length of the rows of V = W0 + s·BA, not of W0": V * (m / own)[:, None],
        "s is missing: V = W0 + s·BA": _lengthened(W + B @ A, m),
        "only BA was brought to the length m; W0 belongs to the direction too": W + _lengthened(s * B @ A, m),
        "n is squared: take the root of the sum of squares": V * (m / n**2)[:, None],
        "one length for the whole matrix; each row has its own": m[:, None] * V / np.linalg.norm(V),
        "n divides the columns: it is the length of a row": m[:, None] * V / np.linalg.norm(V, axis=0),
    }
    for hint, wrong in known.items():
        assert not _equal(got, x @ wrong.T), hint
    assert _equal(got, right), f"it is off by up to {abs(got - right).max():.3g}: x Vᵀ, and each column times mᵢ/nᵢ"
    print("Right: every row of W0 + s·BA keeps its direction and gets the length m.")


@checker
def check_pissa(A: Any, B: Any, W: Array, rank: int, scaling: float) -> None:
    """A0 (rank, d_in) and B0 (d_out, rank) where PiSSA starts: s·B0A0 is the part of W of its largest σ."""
    task = f"A0 and B0 with s·B0A0 the rank-{rank} part of W of the largest singular values, s = {scaling:g}"
    if unanswered(A, task) or unanswered(B, task):
        return
    d_out, d_in = W.shape
    A, B = matrix(A, (rank, d_in), "A0"), matrix(B, (d_out, rank), "B0")
    U, sigma, V_T = np.linalg.svd(np.asarray(W, np.float64), full_matrices=False)
    first, found = np.arange(len(sigma)) < rank, scaling * (B @ A)

    def part(weights: Array) -> Array:
        return np.asarray((U * weights) @ V_T)

    top = part(first * sigma)
    known = {
        "s is missing: the layer computes s·BAx, so B0 and A0 hold σ/s": scaling * top,
        "s went in twice: σ/s is shared by the two, √(σ/s) each": top / scaling,
        "the σ are missing: √(σ/s) goes into each of the two": scaling * part(first.astype(float)),
        "every σ went in twice: √σ into each": scaling * part(first * sigma**2),
        "these are the smallest singular values; PiSSA starts from the largest": part(first[::-1] * sigma),
    }
    for hint, wrong in known.items():
        assert not _equal(found, wrong), hint
    gap = float(np.linalg.norm(found - top) / np.linalg.norm(top))
    assert _equal(found, top), f"s·B0A0 is off by {gap:.1%} of what it should be: the first {rank} of U, σ and Vᵀ"
    balance = float(np.linalg.norm(A) / np.linalg.norm(B))
    assert abs(balance - 1.0) < CLOSE, (
        f"the product is right; A0 has {balance:.3g} times the norm of B0, and PiSSA shares σ equally: √(σ/s) each"
    )
    left = float(np.linalg.norm(W - top) / np.linalg.norm(W))
    print(f"Right: W0 − s·B0A0, which stays frozen, keeps {left:.1%} of the norm of W0.")


def _lengthened(V: Array, m: Array) -> Array:
    return V * (m / np.linalg.norm(V, axis=1))[:, None]


def _equal(one: Array, other: Array) -> bool:
    return bool(abs(one - other).max() <= CLOSE * abs(other).max())
