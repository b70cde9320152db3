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

**Longer contexts** than a model was first trained for are had by slower angles: all of them by a factor f (Chen et al.
2023, arXiv:2306.15595), or, as in Llama 3.1, only those that turn few times in the first context n. Pair i makes
$t_i = n\,\omega_i/2\pi$ turns in it; with less than `low` it becomes slower, with more than `high` it stays as it is:

$$\omega_i \leftarrow \omega_i\left(\frac{1 - c_i}{f} + c_i\right),\qquad
  c_i = \min\left(1, \max\left(0, \frac{t_i - low}{high - low}\right)\right) \tag{R4}$$

where $c_i = 0$ for all i when no n is given.

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


UNSCALED = (1.0, 1.0, 4.0, 0)


def rotary_tables(
    positions: Any, d_head: int, theta: float, dtype: Any, rope: tuple[float, float, float, int] = UNSCALED
) -> tuple[Array, Array]:
    """cos and sin of (R2) for positions on the host (..., seq): the angles in float64, each result rounded once."""
    angles = np.asarray(positions, np.float64)[..., None] * frequencies(d_head, theta, rope)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def frequencies(d_head: int, theta: float, rope: tuple[float, float, float, int] = UNSCALED) -> Array:
    """ω of (R2), made slower as (R4) says; rope is its factor, low, high and n."""
    factor, low, high, context = rope
    omega = theta ** (-np.arange(0, d_head, 2) / d_head)
    if factor == 1.0:
        return omega
    kept = np.clip((context * omega / (2.0 * np.pi) - low) / (high - low), 0.0, 1.0) if context else 0.0
    return omega * ((1.0 - kept) / factor + kept)  # (R4)


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
