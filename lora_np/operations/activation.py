r"""GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415), the one GPT-2 uses.

$$y = \tfrac12 x\,(1 + t),\qquad t = \tanh u,\qquad u = c\,(x + a x^3),\qquad c = \sqrt{2/\pi},\ a = 0.044715 \tag{A1}$$

**Derivation.** With $dt/dx = (1 - t^2)\,du/dx$ and $du/dx = c\,(1 + 3 a x^2)$, the product rule gives

$$y' = \tfrac12 (1 + t) + \tfrac12 x\,(1 - t^2)\,c\,(1 + 3 a x^2) \tag{A2}$$
$$\phantom{y'} = \tfrac12 (1 + t)\left[1 + x\,(1 - t)\,c\,(1 + 3 a x^2)\right] \tag{A3}$$

The derivative is made in the forward pass, while x and t are in the cache, and is all that is saved: backward is
one multiplication, $\partial L/\partial x = y' \odot \partial L/\partial y$ (A4).
"""

from __future__ import annotations

import math
from typing import Any

from ..arrays import Array, array_module, fused, row_blocks
from ..differentiation import operation
from ..threads import each

C = math.sqrt(2.0 / math.pi)
CUBIC = 0.044715


def gelu_forward(x: Array, /, *, wanted: tuple[str, ...]) -> tuple[Array, Any]:
    """(A1), and (A3) if the gradient is wanted, a cache-sized block at a time."""
    xp = array_module(x)
    flat = x.reshape(-1)
    y = xp.empty_like(flat)
    slope = xp.empty_like(flat) if wanted else None
    each(lambda i: _gelu(flat[i], y[i], None if slope is None else slope[i]), row_blocks(flat.size, 1, xp=xp))
    return y.reshape(x.shape), None if slope is None else slope.reshape(x.shape)


@fused
def _gelu(xp: Any, x: Array, y: Array, slope: Array | None) -> None:
    square = xp.multiply(x, x, out=slope)
    t = square * (C * CUBIC)
    t += C
    t *= x
    xp.tanh(t, out=t)
    xp.multiply(t, 0.5, out=y)
    y += 0.5  # (1 + t) / 2
    if slope is not None:
        square *= 3.0 * C * CUBIC
        square += C  # du/dx
        square *= x
        xp.subtract(1.0, t, out=t)
        square *= t
        square += 1.0
        square *= y  # (A3)
    y *= x  # (A1)


def gelu_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(A4)."""
    xp = array_module(dy)
    dx = xp.empty_like(saved)
    slope, G, flat = saved.reshape(-1), dy.reshape(-1), dx.reshape(-1)
    each(lambda i: xp.multiply(slope[i], G[i], out=flat[i]), row_blocks(flat.size, 1, xp=xp))
    return [dx]


gelu = operation(gelu_forward, gelu_backward)
