r"""Rotary positions (Su et al. 2021, arXiv:2104.09864, section 3.2): a position turns queries and keys.

    x (batch, seq, heads · d_head)    cos, sin (seq, d_head / 2) or (batch, seq, d_head / 2)    y as x

The columns of a head are taken in pairs, column i of its first half with column i of its second (the paper pairs
neighbours; this is the order of the checkpoints of Llama, the same up to a permutation of columns). Pair i at position
p is turned by the angle $p\,\omega_i$:

$$\begin{pmatrix} y_1 \\ y_2 \end{pmatrix}
    = \begin{pmatrix} \cos p\omega_i & -\sin p\omega_i \\ \sin p\omega_i & \cos p\omega_i \end{pmatrix}
      \begin{pmatrix} x_1 \\ x_2 \end{pmatrix} = R_{p\omega_i}\, x \tag{R1}\qquad
  \omega_i = \theta^{-2i/d_\mathrm{head}} \tag{R2}$$

A query at p and a key at q then meet as $(R_{p\omega} x)\cdot(R_{q\omega} z) = x\cdot R_{(q-p)\omega} z$: what a head
sees of positions is their distance.

**Derivation.** (R1) is linear in x, so $\partial L/\partial x = R^T\,\partial L/\partial y$, and a rotation
turned back is its transpose:

$$\partial L/\partial x = R_{-p\omega_i}\,\partial L/\partial y \tag{R3}$$

the same operation with −sin. Nothing is kept for backward but the two tables, which all layers share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.arrays import Array, array_module, fused, row_blocks
from ..engine.differentiation import operation
from ..engine.threads import each


def rotary_forward(x: Array, cos: Array, sin: Array, /, *, wanted: tuple[str, ...]) -> tuple[Array, Any]:
    """(R1); raises ValueError where the tables do not fit the positions and the columns of x."""
    _, seq, d_model = x.shape
    if cos.shape != sin.shape or cos.shape[-2] != seq or d_model % (2 * cos.shape[-1]):
        raise ValueError(
            f"cos and sin must be (..., {seq}, d_head / 2) with d_head a divisor of {d_model},"
            f" got {cos.shape} and {sin.shape}"
        )
    return _rotated(x, cos, sin), (cos, sin)


def rotary_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(R3); the tables have no gradient, so x is all that can be wanted."""
    cos, sin = saved
    return [_rotated(dy, cos, -sin)]  # (R3)


def rotary_tables(positions: Any, d_head: int, theta: float, dtype: Any) -> tuple[Array, Array]:
    """cos and sin of (R2) for positions on the host (..., seq): the angles in float64, each result rounded once."""
    angles = np.asarray(positions, np.float64)[..., None] * theta ** (-np.arange(0, d_head, 2) / d_head)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    """(R1), some positions of all sequences at a time: (x1, x2) cos + (x2, x1) (−sin, sin)."""
    xp = array_module(x)
    y = xp.empty_like(x)
    X, Y = (z.reshape(*x.shape[:2], -1, 2, cos.shape[-1]) for z in (x, y))
    c, s = (xp.empty((*cos.shape[:-1], 1, 2, cos.shape[-1]), dtype=cos.dtype) for _ in range(2))
    c[...] = cos[..., None, None, :]
    s[..., 0, :], s[..., 1, :] = -sin[..., None, :], sin[..., None, :]

    def block(p: slice) -> None:
        Y[:, p] = X[:, p, :, ::-1]
        _turned(X[:, p], c[..., p, :, :, :], s[..., p, :, :, :], Y[:, p])

    each(block, row_blocks(x.shape[1], len(x) * x.shape[2], xp=xp))
    return y


@fused
def _turned(xp: Any, x: Array, cos: Array, sin: Array, y: Array) -> None:
    y *= sin
    y += x * cos


rotary = operation(rotary_forward, rotary_backward)
