r"""One dense map, many low-rank updates: the rows of each adapter are gathered and multiplied by its factors alone.

    x (batch, ..., d_in)    W (d_out, d_in)    b (d_out,)    y (batch, ..., d_out)
    A (R, d_in)    B (d_out, R)    the factors of all adapters one beside the other, R = r_1 + … + r_N

Every sequence of the batch has one adapter or none: which_t in −1 … N−1. Let P_i pick the rows of those that have
adapter i, and A_i (r_i, d_in), B_i (d_out, r_i) be its part of A and B. With rows as examples,

$$Y = X W_0^T + 1 b^T + \sum_i P_i^T\, s_i\,(P_i X) A_i^T B_i^T \tag{J1}$$

which costs $\sum_i n_i r_i (d_\mathrm{in} + d_\mathrm{out})$ multiply-adds beside the dense map's, n_i the rows of
adapter i. Ranks may differ: nothing is padded, for A and B are as high and as wide as the ranks together.

**Derivation.** A row has one adapter, so $P_i P_j^T = 0$ for $i \ne j$ and $P_i P_i^T = 1$: what (J1) adds to rows of
adapter i is the low-rank branch of `lora_linear` on those rows, and only they move its factors. With $G_i = P_i G$ and
$Z_i = (P_i X) A_i^T$, (G0) to (G3) of `lora_np.operations.linear` become

$$\partial L/\partial Z_i = s_i\, G_i B_i \tag{J2}\qquad \partial L/\partial B_i = s_i\, G_i^T Z_i \tag{J3}$$
$$\partial L/\partial A_i = (\partial L/\partial Z_i)^T P_i X \tag{J4}\qquad
  \partial L/\partial X = G W_0 + \sum_i P_i^T\, (\partial L/\partial Z_i)\, A_i \tag{J5}$$

An adapter without a row has a gradient of exactly zero. Adapters that stand side by side with one rank and one number
of sequences are a run: they are one product of stacks, (k, n, d_in) by (k, d_in, r), and one call.

Sources: Sheng et al. 2023, S-LoRA, arXiv:2311.03285, and Chen et al. 2023, Punica, arXiv:2310.18547, for gathering.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine.arrays import Array, array_module, rows
from ..engine.differentiation import operation
from .linear import Wanted, product

Which = tuple[int, ...]


class Run(NamedTuple):
    """Adapters side by side that have one rank and one number of sequences.

    members   the sequences, those of one adapter after those of another: a slice where they are neighbours
    first     the first adapter    adapters   how many    rank   of each    at   their part of A and B
    """

    members: Any
    first: int
    adapters: int
    rank: int
    at: slice


@lru_cache(maxsize=512)
def runs_of(which: Which, ranks: tuple[int, ...]) -> tuple[Run, ...]:
    """The runs of a batch; adapters without a sequence, or of rank 0 here, belong to none."""
    members: list[list[int]] = [[] for _ in ranks]
    for sequence, adapter in enumerate(which):
        if adapter >= 0:
            members[adapter].append(sequence)
    found: list[Run] = []
    kinds = [(rank, len(mine)) if rank and mine else None for rank, mine in zip(ranks, members, strict=True)]
    first = column = 0
    while first < len(ranks):
        stop = first + 1
        while stop < len(ranks) and kinds[stop] == kinds[first]:
            stop += 1
        width = sum(ranks[first:stop])
        if kinds[first] is not None:
            mine = [sequence for each in members[first:stop] for sequence in each]
            found.append(Run(_picked(mine), first, stop - first, ranks[first], slice(column, column + width)))
        first, column = stop, column + width
    return tuple(found)


def _picked(sequences: list[int]) -> Any:
    start, stop = sequences[0], sequences[0] + len(sequences)
    return slice(start, stop) if sequences == list(range(start, stop)) else np.array(sequences)


def gathered_linear_forward(
    x: Array,
    W: Array,
    b: Array | None,
    A: Array,
    B: Array,
    which: Which,
    ranks: tuple[int, ...],
    scalings: tuple[float, ...],
    /,
    *,
    wanted: Wanted,
) -> tuple[Array, Any]:
    r"""(J1).

    which      the adapter of each sequence, −1 for none        ranks, scalings   r and s of each adapter
    """
    X = x.reshape(len(x), -1, x.shape[-1])
    y = product(rows(x), W.T, b)
    Y = y.reshape(*X.shape[:2], len(W))
    runs, kept = runs_of(which, ranks), []
    for run in runs:
        A_run, B_run = _factors(A, B, run)
        z = _gathered(X, run) @ A_run.swapaxes(1, 2)  # (k, n, r)
        branch = (z * _scales(scalings, run, z)) @ B_run.swapaxes(1, 2)
        Y[_at(run, X)] += branch.reshape(-1, *Y.shape[1:])  # (J1)
        kept.append(z)
    keeps_x = "A" in wanted or "W" in wanted
    saved = (x if keeps_x else None, W, A, B, runs, scalings, kept if "B" in wanted else None, x.shape)
    return y.reshape(*x.shape[:-1], len(W)), saved if wanted else None


def gathered_linear_backward(saved: Any, dy: Array, wanted: Wanted) -> list[Array]:
    """(J2) to (J5), and (D2), (D3) of `linear` where W or b are trained as well."""
    x, W, A, B, runs, scalings, kept, shape = saved
    xp = array_module(dy)
    G = dy.reshape(len(dy), -1, dy.shape[-1])
    X: Any = None if x is None else x.reshape(*G.shape[:2], -1)
    dZ = []
    for run in runs if "x" in wanted or "A" in wanted else ():
        g = _gathered(G, run)
        dZ.append(_scales(scalings, run, g) * (g @ _factors(A, B, run)[1]))  # (J2)

    def gradient_x() -> Array:
        dX = product(rows(G), W).reshape(*G.shape[:2], -1)
        for run, dz in zip(runs, dZ, strict=True):
            dX[_at(run, G)] += (dz @ _factors(A, B, run)[0]).reshape(-1, *dX.shape[1:])  # (J5)
        return dX.reshape(shape)

    def gradient_A() -> Array:
        dA = xp.zeros_like(A)
        for run, dz in zip(runs, dZ, strict=True):
            dA[run.at] = (dz.swapaxes(1, 2) @ _gathered(X, run)).reshape(-1, A.shape[1])  # (J4)
        return dA

    def gradient_B() -> Array:
        dB = xp.zeros_like(B)
        for run, z in zip(runs, kept, strict=True):
            g = _gathered(G, run)
            part = _scales(scalings, run, g) * (g.swapaxes(1, 2) @ z)  # (J3)
            dB[:, run.at] = part.swapaxes(0, 1).reshape(len(B), -1)
        return dB

    gradient: dict[str, Callable[[], Array]] = {
        "x": gradient_x,
        "W": lambda: product(rows(G).T, rows(x)),  # (D2)
        "b": lambda: rows(G).sum(axis=0),  # (D3)
        "A": gradient_A,
        "B": gradient_B,
    }
    return [gradient[name]() for name in wanted]


def _factors(A: Array, B: Array, run: Run) -> tuple[Array, Array]:
    """A_i (k, r, d_in) and B_i (k, d_out, r) of the adapters of a run, without a copy."""
    shape = run.adapters, run.rank
    return A[run.at].reshape(*shape, -1), B[:, run.at].reshape(-1, *shape).swapaxes(0, 1)


def _at(run: Run, like: Array) -> Any:
    """The sequences of a run as an index of arrays of this library."""
    return run.members if isinstance(run.members, slice) else array_module(like).asarray(run.members)


def _gathered(x: Array, run: Run) -> Array:
    """The rows of a run, (k, n, width): x (batch, rows, width) holds those of each sequence."""
    return x[_at(run, x)].reshape(run.adapters, -1, x.shape[-1])


def _scales(scalings: tuple[float, ...], run: Run, like: Array) -> Any:
    """s of each adapter of a run, to multiply (k, n, width)."""
    mine = scalings[run.first : run.first + run.adapters]
    if len(set(mine)) == 1:
        return mine[0]
    return array_module(like).asarray(np.array(mine)[:, None, None].astype(like.dtype))


gathered_linear = operation(gathered_linear_forward, gathered_linear_backward)
