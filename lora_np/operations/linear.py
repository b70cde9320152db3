r"""Linear maps: the dense one, and the dense one with a low-rank update beside it.

Rows are examples, so the paper's h = Wx reads `x @ W.T`.

    x (..., d_in)    W (d_out, d_in)    b (d_out,)    A (rank, d_in)    B (d_out, rank)    y (..., d_out)

**Derivation.** One output number of one row is $y_i = \sum_j W_{ij} x_j + b_i$. With $g_i = \partial L/\partial y_i$,

$$\partial L/\partial x_j  = \sum_i g_i W_{ij},\qquad \text{over all rows: } G W            \tag{D1}$$
$$\partial L/\partial W_{ij} = \sum_\text{rows} g_i x_j,\qquad\phantom{over} G^T X            \tag{D2}$$
$$\partial L/\partial b_i  = \sum_\text{rows} g_i                                            \tag{D3}$$

The low-rank branch is two such maps in a row, $z = A\tilde x$ and $y \mathrel{+}= s\,Bz$, where $\tilde x = x \odot m$
is x under the dropout mask m (all ones without dropout). Applying (D1) and (D2) twice,

$$\partial L/\partial z = s\, G B \tag{G0}\qquad \partial L/\partial B = s\, G^T Z \tag{G1}$$
$$\partial L/\partial A = (\partial L/\partial z)^T \tilde X \tag{G2}\qquad
  \partial L/\partial x = G W_0 + \left((\partial L/\partial z)\, A\right) \odot m \tag{G3}$$

With B = 0, (G0) and so (G2) is exactly zero while (G1) is not: the first step moves B, and only B.

**A frozen W in 16 bits** (`lora_np.engine.halves`) takes part as the float32 matrix that it reads as: nothing above
changes, and (D2) is never asked for. `linear` widens blocks of its rows $W_k$, whose outputs stand side by side, so
that in place of the whole product

$$y_k = W_k x + b_k \tag{D4}\qquad \partial L/\partial x = \sum_k G_k W_k \tag{D5}$$

A matrix of one block gives the bits of the float32 one. Of several, (D5) adds in another order, and a matrix library
may in (D4): two sums of n terms differ by at most $2\gamma_n\sum|terms|$.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine.arrays import Array, array_module, on_device, row_blocks, rows
from ..engine.differentiation import operation
from ..engine.halves import HalfArray, is_half, whole
from ..engine.threads import each

ROWS = 512  # of a product at a time: with fewer, the matrix library is further from its best
FEW = range(2, 49)  # rows that are multiplied faster as columns: texts that are generated side by side

Wanted = tuple[str, ...]
Gradients = dict[str, Callable[[], Array]]


def linear_forward(x: Array, W: Array, b: Array | None, /, *, wanted: Wanted) -> tuple[Array, Any]:
    r"""$y = W x + b$."""
    y = _from_blocks(rows(x), W, b) if is_half(W) else product(rows(x), W.T, b)
    saved = (x if "W" in wanted else None, W, x.shape)
    return y.reshape(*x.shape[:-1], W.shape[0]), saved


def linear_backward(saved: Any, dy: Array, wanted: Wanted) -> list[Array]:
    """(D1) to (D3)."""
    x, W, shape = saved
    G = rows(dy)
    gradient: Gradients = {
        "x": lambda: (_to_blocks(G, W) if is_half(W) else product(G, W)).reshape(shape),  # (D1)
        "W": lambda: product(G.T, rows(x)),  # (D2)
        "b": lambda: G.sum(axis=0),  # (D3)
    }
    return [gradient[name]() for name in wanted]


def _from_blocks(X: Array, W: HalfArray, b: Array | None) -> Array:
    """(D4)."""
    blocks = W.blocks()
    if len(blocks) == 1:
        return product(X, W.T, b)
    y = array_module(X).empty((len(X), len(W)), dtype=X.dtype)
    for k in blocks:
        y[:, k] = product(X, W[k].T, None if b is None else b[k])
    return y


def _to_blocks(G: Array, W: HalfArray) -> Array:
    """(D5)."""
    first, *others = W.blocks()
    dX = product(G[:, first], W[first])
    for k in others:
        dX += product(G[:, k], W[k])
    return dX


def product(X: Array, M: Array, b: Array | None = None) -> Array:
    """X M + b; of many rows a block at a time, in which idle threads may share."""
    if len(X) <= ROWS:
        y = times(X, M)
        if b is not None:
            y += b
        return y
    xp = array_module(X)
    y = xp.empty((len(X), M.shape[1]), dtype=X.dtype)

    def block(r: slice) -> None:
        part = times(X[r], M, y[r])
        if b is not None:
            part += b

    each(block, row_blocks(len(X), 1, ROWS, xp))
    return y


def times(X: Array, M: Array, out: Array | None = None) -> Array:
    """X M; of a few rows by a transposed M as (Mᵀ Xᵀ)ᵀ, which takes a matrix library about half the time."""
    xp = array_module(X)
    if len(X) not in FEW or on_device(X) or not M.T.flags.c_contiguous:
        return xp.matmul(X, M, out=out)
    y = (M.T @ X.T).T
    if out is None:
        return np.ascontiguousarray(y)
    out[...] = y
    return out


linear = operation(linear_forward, linear_backward)


def lora_linear_forward(
    x: Array,
    W: Array,
    b: Array | None,
    A: Array,
    B: Array,
    scaling: float,
    mask: Array | None,
    /,
    *,
    wanted: Wanted,
) -> tuple[Array, Any]:
    r"""$y = W_0 x + b + s\, B A (x \odot m)$; Hu et al. 2021, section 4.1, equation 3.

    mask is None, or an array of the shape of x that holds 0 where an entry is dropped and 1/(1-p) where it stays.
    """
    xp, frozen, W = array_module(x), W, whole(W)
    X, M = rows(x), None if mask is None else rows(mask)
    y = xp.empty((len(X), len(W)), dtype=X.dtype)
    Z = xp.empty((len(X), len(A)), dtype=X.dtype)

    def block(r: slice) -> None:
        z = xp.matmul(X[r] if M is None else X[r] * M[r], A.T, out=Z[r])
        part = times(X[r], W.T, y[r])
        part += (scaling * z) @ B.T
        if b is not None:
            part += b

    each(block, row_blocks(len(X), 1, ROWS, xp))
    keeps_x = "A" in wanted or "W" in wanted
    saved = (x if keeps_x else None, frozen, A, B, Z if "B" in wanted else None, scaling, mask, x.shape)
    return y.reshape(*x.shape[:-1], W.shape[0]), saved


def lora_linear_backward(saved: Any, dy: Array, wanted: Wanted) -> list[Array]:
    """(G0) to (G3), and (D2), (D3) where W or b are trained as well."""
    x, W, A, B, Z, scaling, mask, shape = saved
    G, M = rows(dy), None if mask is None else rows(mask)
    dZ: Any = scaling * (G @ B) if "x" in wanted or "A" in wanted else None  # (G0)

    def gradient_x() -> Array:
        xp, W_0 = array_module(G), whole(W)
        dX = xp.empty((len(G), W.shape[1]), dtype=G.dtype)

        def block(r: slice) -> None:
            part = xp.matmul(G[r], W_0, out=dX[r])
            part += dZ[r] @ A if M is None else (dZ[r] @ A) * M[r]  # (G3)

        each(block, row_blocks(len(G), 1, ROWS, xp))
        return dX.reshape(shape)

    gradient: Gradients = {
        "x": gradient_x,
        "W": lambda: product(G.T, rows(x)),  # (D2)
        "b": lambda: G.sum(axis=0),  # (D3)
        "A": lambda: dZ.T @ (rows(x) if M is None else rows(x) * M),  # (G2)
        "B": lambda: scaling * (G.T @ Z),  # (G1)
    }
    return [gradient[name]() for name in wanted]


lora_linear = operation(lora_linear_forward, lora_linear_backward)
