r"""SwiGLU's gate (Shazeer 2020, arXiv:2002.05202, equation 6): a SiLU of one map times another map.

    gate, up (...)    y (...)

$$y = \mathrm{silu}(g)\odot u,\qquad \mathrm{silu}(g) = g\,\sigma,\qquad \sigma = \frac{1}{1 + e^{-g}} \tag{U1}$$

SiLU is of Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.

**Derivation.** With $e = e^{-g}$, $d\sigma/dg = e/(1 + e)^2 = \sigma\,e\sigma$, where $e\sigma = 1 - \sigma$. Hence

$$\partial L/\partial u = g\,\sigma\odot\partial L/\partial y \tag{U2}\qquad
  \partial L/\partial g = \sigma\,(1 + g\,e\,\sigma)\odot u\odot\partial L/\partial y \tag{U3}$$

Neither loses a digit: e is not taken from 1, but 1 − σ made from e. Where g is below −88, e is held at $e^{88}$, which
is as good as infinite in both precisions: σ is then 10⁻³⁸ in place of less.

For backward g and u are kept, which are there already; σ is made a second time.
"""

from __future__ import annotations

from typing import Any

from ..engine.arrays import Array, array_module, fused, row_blocks
from ..engine.differentiation import operation
from ..engine.threads import each

LARGEST = 88.0  # e to this power is near the largest number of float32


def silu_gate_forward(gate: Array, up: Array, /, *, wanted: tuple[str, ...]) -> tuple[Array, Any]:
    """(U1), a cache-sized block at a time."""
    xp = array_module(gate)
    g, u = gate.reshape(-1), up.reshape(-1)
    y = xp.empty_like(g)
    each(lambda i: _gated(g[i], u[i], y[i]), row_blocks(g.size, 1, xp=xp))
    return y.reshape(gate.shape), (gate, up)


def silu_gate_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(U2) and (U3)."""
    xp = array_module(dy)
    g, u, G = (x.reshape(-1) for x in (*saved, dy))
    gradient = {name: xp.empty_like(G) for name in wanted}
    d_gate, d_up = gradient.get("gate"), gradient.get("up")

    def block(i: slice) -> None:
        _slopes(G[i], g[i], u[i], None if d_gate is None else d_gate[i], None if d_up is None else d_up[i])

    each(block, row_blocks(g.size, 1, xp=xp))
    return [gradient[name].reshape(dy.shape) for name in wanted]


@fused
def _gated(xp: Any, g: Array, u: Array, y: Array) -> None:
    e = g * -1.0
    xp.minimum(e, LARGEST, out=e)
    xp.exp(e, out=e)
    e += 1.0
    xp.divide(g, e, out=y)
    y *= u  # (U1)


@fused
def _slopes(xp: Any, dy: Array, g: Array, u: Array, d_gate: Array | None, d_up: Array | None) -> None:
    e = g * -1.0
    xp.minimum(e, LARGEST, out=e)
    xp.exp(e, out=e)
    sigma = 1.0 / (e + 1.0)
    if d_up is not None:
        xp.multiply(g, sigma, out=d_up)
        d_up *= dy  # (U2)
    if d_gate is not None:
        xp.multiply(e, sigma, out=d_gate)
        d_gate *= g
        d_gate += 1.0
        d_gate *= sigma
        d_gate *= u
        d_gate *= dy  # (U3)


silu_gate = operation(silu_gate_forward, silu_gate_backward)
