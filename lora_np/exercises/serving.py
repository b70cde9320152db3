r"""Tutorial 08, one base, many tasks: house styles, three ways to serve them, what is held in memory, and checks of two
counts and of a mixed batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..methods import adapt
from ..methods.lora import LoraConfig
from ..model import Transformer
from ..parameters import parameters, with_parameters
from ..serving import AdapterBank, Request, adapter_of, serve, switched
from ..serving.requests import Tokens
from ..tasks import Example
from ..tasks.generated import ways
from . import checker, shown, unanswered
from .answers import number, told

# What the notebook calls a museum, and which of the eight sentences of the task all of its labels are.
STYLES = {"plain": 0, "story": 3, "stern": 6}
CLOSE = 1e-9  # of the largest number compared: in float64 a right answer is a million times closer


def house(examples: Sequence[Example], style: str) -> list[Example]:
    """The same objects, each with the one sentence that is the style of this house."""
    return [Example(example.prompt, ways(example.prompt)[STYLES[style]]) for example in examples]


def bytes_held(*models: Transformer) -> int:
    """Bytes of all arrays of these models together; an array that several of them share is counted once."""
    arrays = {id(array): array for model in models for array in parameters(model).values()}
    return sum(array.nbytes for array in arrays.values())


def fastest(ways_to: Mapping[Hashable, Callable[[], object]], turns: int = 3) -> dict[Hashable, float]:
    """The seconds of each, the fastest of so many; all of them take turns, so that a busy moment hits them alike."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in ways_to}
    for _ in range(turns):
        for name, run in ways_to.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: min(taken) for name, taken in seconds.items()}


def drawn(base: Transformer, count: int, lora: LoraConfig) -> AdapterBank:
    """So many adapters, `a0`, `a1`, ..., with every B moved off zero: not trained, but as much work to serve."""
    bank = AdapterBank(base)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        model = adapt(base, lora, rng)
        moved = {n: (0.1 * rng.standard_normal(B.shape)).astype(B.dtype) for n, B in parameters(model, "*.B").items()}
        bank.add(adapter_of(with_parameters(model, moved), f"a{seed}"))
    return bank


def in_one_batch(base: Transformer, requests: Sequence[Request], bank: AdapterBank) -> dict[int, Tokens]:
    """What is written for each request, all of them in one mixed batch."""
    return {answer.number: answer.tokens for answer in serve(base, requests, bank, most=len(requests), prompt_bytes=0)}


def merged_in_turn(base: Transformer, requests: Sequence[Request], bank: AdapterBank) -> dict[int, Tokens]:
    """The same, one task after another: its adapter is merged, and its requests are one batch of a plain model."""
    written = {}
    for name in dict.fromkeys(request.adapter for request in requests):
        mine = [i for i, request in enumerate(requests) if request.adapter == name]
        plain = base if name is None else switched(base, bank[name]).model
        asked = [replace(requests[i], adapter=None) for i in mine]
        for answer in serve(plain, asked, most=len(asked), prompt_bytes=0):
            written[mine[answer.number]] = answer.tokens
    return written


def one_at_a_time(base: Transformer, requests: Sequence[Request], bank: AdapterBank) -> dict[int, Tokens]:
    """The same, one request after another, its adapter beside the base."""
    return {i: in_one_batch(base, [request], bank)[0] for i, request in enumerate(requests)}


# ---------------------------------------------------------------------------------------------------------- checks


@checker
def check_adapters_in_a_copy(answer: Any, d_in: int, d_out: int, rank: int) -> None:
    """How many adapters of one map take the memory of one merged copy of it."""
    shape = f"a map ({d_out:,}, {d_in:,})"
    if unanswered(answer, f"how many adapters of rank {rank} take the memory of one merged copy of {shape}"):
        return
    own, copy = rank * (d_in + d_out), d_out * d_in
    right = copy / own
    hints = {
        copy / (rank * d_in): "that counts one of A and B; an adapter is both",
        copy / (rank * d_out): "that counts one of A and B; an adapter is both",
        copy / (d_in + d_out): f"that is for rank 1; at rank {rank} each adapter is {rank} times as large",
        1.0 / right: "that is the inverse: how many copies one adapter takes",
        (d_in + d_out) / rank: "a copy holds d_out · d_in numbers, a product and not a sum",
        float(own): "those are the numbers of one adapter; how many of them are as many as a copy has?",
        float(copy): "those are the numbers of a copy; how many adapters hold as many?",
    }
    told(number(answer), right, hints, "a copy holds d_out · d_in numbers, an adapter r rows of A and r columns of B")
    print(f"Right: {right:,.4g} adapters of {own:,} numbers each, or one copy of {copy:,}.")


@checker
def check_break_even(answer: Any, d_in: int, d_out: int, rank: int) -> None:
    """After how many tokens the work of merging one map is paid back."""
    task = f"the tokens after which merging a map ({d_out:,}, {d_in:,}) at rank {rank} has paid for itself"
    if unanswered(answer, task):
        return
    right = d_out * d_in / (d_in + d_out)
    hints = {
        right * rank: "the branch costs r (d_in + d_out) for each token: the rank stands on both sides",
        right / rank: "forming BA costs d_out · r · d_in: the rank stands on both sides",
        float(rank * d_out * d_in): "that is the whole work of BA; divide it by what one token then saves",
        float(d_out * d_in): "that is a row of W0 x; what merging costs is the product BA",
        float(rank * (d_in + d_out)): "that is what one token saves; how many of them pay for the product BA?",
        float(d_in + d_out): "that is what one token saves at rank 1",
        1.0 / right: "that is the inverse",
        2.0 * right: "with the branch gone a token saves both of its products, A x and B (A x)",
    }
    told(number(answer), right, hints, "set the multiply-adds of BA equal to t times those of B(Ax) for one token")
    print(f"Right: after {right:,.4g} tokens, whatever the rank.")


@checker
def check_mixed_rows(answer: Any) -> None:
    """`mixed_rows(X, W, A, B, s, which)`: every row of X through W and its own adapter, or none.

    X (n, d_in), W (d_out, d_in); A, B and s are lists, A[i] (r_i, d_in), B[i] (d_out, r_i); which[t] is the adapter of
    row t, and −1 says none.
    """
    task = "mixed_rows(X, W, A, B, s, which): each row through W and adapter which[t] of the lists A, B, s; -1 is none"
    if unanswered(answer, task):
        return
    assert callable(answer), f"the answer is a function of (X, W, A, B, s, which), got {shown(answer)}"
    for seed in range(5):
        given = _drawn(np.random.default_rng(seed))
        kept = [array.copy() for array in _arrays(given)]
        found = answer(*given)
        assert all(map(np.array_equal, kept, _arrays(given))), "it wrote into what it was given: += changes an array"
        _judge(found, *given)
    print("Right: five batches, each row with its own adapter, of ranks that differ, or with none.")


def _drawn(rng: np.random.Generator) -> tuple[Array, Array, list[Array], list[Array], list[float], list[int]]:
    """A batch of seven rows and three adapters of unequal ranks, each of them used, and none by one row at least."""
    d_out, d_in, ranks = int(rng.integers(4, 7)), int(rng.integers(8, 12)), rng.permutation([1, 2, 4])
    A = [rng.standard_normal((rank, d_in)) for rank in ranks]
    B = [rng.standard_normal((d_out, rank)) for rank in ranks]
    which = rng.permutation([0, 1, 2, 1, 0, -1, -1]).tolist()
    return rng.standard_normal((7, d_in)), rng.standard_normal((d_out, d_in)), A, B, [2.0, 0.5, 3.0], which


def _arrays(given: tuple[Any, ...]) -> list[Array]:
    X, W, A, B, s, which = given
    return [X, W, *A, *B, np.array(s), np.array(which)]


def _judge(found: Any, X: Array, W: Array, A: list[Array], B: list[Array], s: list[float], which: list[int]) -> None:
    assert isinstance(found, np.ndarray), f"it must give back an array (n, d_out), got {shown(found)}"
    assert found.shape == (len(X), len(W)), f"the answer has shape {found.shape}, and should have {(len(X), len(W))}"
    plain, branch = X @ W.T, [scale * X @ a.T @ b.T for a, b, scale in zip(A, B, s, strict=True)]
    rows = np.arange(len(X))
    own = np.where(np.array(which)[:, None] >= 0, np.stack(branch)[which, rows], 0.0)
    right = plain + own
    unscaled = np.array([s[i] if i >= 0 else 1.0 for i in which])[:, None]
    hints = {
        "no row got its adapter: that is X W0ᵀ alone": plain,
        "W0 is missing: that is the branch alone": own,
        "a row without an adapter got the last one: in Python A[-1] is the last of a list": (
            plain + np.stack(branch)[which, rows]
        ),
        "every row got all adapters: each has one, or none": plain + sum(branch),
        "the scaling is missing: the update is s·BA": plain + own / unscaled,
    }
    hints |= {f"every row got adapter {i}": plain + part for i, part in enumerate(branch)}
    most = CLOSE * abs(right).max()
    far = abs(found - right).max(axis=1)
    if (far <= most).all():  # NaN is not
        return
    for hint, wrong in hints.items():
        assert not (abs(found - wrong) <= most).all(), hint
    row = int(np.argmax(~(far <= most)))
    whose = "without an adapter" if which[row] < 0 else f"of adapter {which[row]}"
    raise AssertionError(f"row {row}, {whose}, is off by {far[row]:.3g}: look at what this row is multiplied by")
