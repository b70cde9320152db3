r"""Rows that are learned: in the place of others, in front of others, or as one factor a row.

    h (batch, seq, d)    tokens (batch, seq) integers    S (special, d)    k (batch, n, w)    P (l, w)

**In the place of others.** Token ids from `first` on are no words: they name rows of S.

$$y_t = \begin{cases} S_{\mathrm{token}_t - \mathrm{first}} & \mathrm{token}_t \ge \mathrm{first}\\ h_t & \text{else}
  \end{cases} \tag{P1}$$

A row of h that was replaced moves nothing, and a row of S is moved by every place it stands at:

$$\partial L/\partial h_t = \partial L/\partial y_t\,[\mathrm{token}_t < \mathrm{first}] \tag{P2}\qquad
  \partial L/\partial S_v = \sum_{t:\ \mathrm{token}_t - \mathrm{first} = v} \partial L/\partial y_t \tag{P3}$$

**In front of others.** Every sequence of the batch reads the same P before its own k, so P gathers from all of them:

$$y = [P;\ k] \tag{P4}\qquad \partial L/\partial P = \sum_\mathrm{batch} \partial L/\partial y_{:l} \tag{P5}\qquad
  \partial L/\partial k = \partial L/\partial y_{l:} \tag{P6}$$

**A factor a row.** $Y = \mathrm{diag}(v)\,M$ (P7), so

$$\partial L/\partial M = \mathrm{diag}(v)\,\partial L/\partial Y \tag{P8}\qquad
  \partial L/\partial v_i = \sum_j \partial L/\partial Y_{ij}\,M_{ij} \tag{P9}$$
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine.arrays import Array, array_module, rows
from ..engine.differentiation import operation

Wanted = tuple[str, ...]


def replaced_rows_forward(h: Array, S: Array, tokens: Array, first: int, /, *, wanted: Wanted) -> tuple[Array, Any]:
    """(P1)."""
    xp = array_module(h)
    special = (tokens >= first)[..., None]
    which = xp.maximum(tokens - first, 0)
    return xp.where(special, S[which], h), (special, which, S.shape)


def replaced_rows_backward(saved: Any, dy: Array, wanted: Wanted) -> list[Array]:
    """(P2) and (P3)."""
    special, which, shape = saved
    xp: Any = array_module(dy)
    nothing = xp.zeros_like(dy)

    def gradient_S() -> Array:
        dS = xp.zeros(shape, dtype=dy.dtype)
        xp.add.at(dS, which.reshape(-1), rows(xp.where(special, dy, nothing)))  # (P3)
        return dS

    gradient: dict[str, Callable[[], Array]] = {"h": lambda: xp.where(special, nothing, dy), "S": gradient_S}  # (P2)
    return [gradient[name]() for name in wanted]


def prepended_forward(P: Array, k: Array, /, *, wanted: Wanted) -> tuple[Array, Any]:
    """(P4)."""
    xp, length = array_module(k), len(P)
    y = xp.empty((len(k), length + k.shape[1], k.shape[2]), dtype=k.dtype)
    y[:, :length] = P
    y[:, length:] = k
    return y, length


def prepended_backward(saved: Any, dy: Array, wanted: Wanted) -> list[Array]:
    """(P5) and (P6)."""
    gradient: dict[str, Callable[[], Array]] = {"P": lambda: dy[:, :saved].sum(axis=0), "k": lambda: dy[:, saved:]}
    return [gradient[name]() for name in wanted]


def scaled_rows_forward(M: Array, v: Array, /, *, wanted: Wanted) -> tuple[Array, Any]:
    """(P7)."""
    return M * v[:, None], (M, v)


def scaled_rows_backward(saved: Any, dy: Array, wanted: Wanted) -> list[Array]:
    """(P8) and (P9)."""
    M, v = saved
    gradient = {"M": lambda: dy * v[:, None], "v": lambda: (dy * M).sum(axis=1)}
    return [gradient[name]() for name in wanted]


replaced_rows = operation(replaced_rows_forward, replaced_rows_backward)
prepended = operation(prepended_forward, prepended_backward)
scaled_rows = operation(scaled_rows_forward, scaled_rows_backward)
