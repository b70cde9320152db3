r"""A linear map whose rows have a learned length, and a direction that carries a low-rank update (DoRA).

    x (..., d_in)    W (d_out, d_in)    b (d_out,)    A (rank, d_in)    B (d_out, rank)    m (d_out,)    y (..., d_out)

$$V = W_0 + s\,BA,\qquad n_i = \lVert V_i\rVert_2,\qquad u = V x,\qquad y_i = \frac{m_i}{n_i}\,u_i + b_i \tag{R1}$$

**Derivation.** With $g = \partial L/\partial y$ and sums over all rows of examples,

$$\partial L/\partial u_i = g_i\,m_i/n_i \tag{R2}\qquad \partial L/\partial m_i = \frac1{n_i}\sum g_i u_i \tag{R3}\qquad
  \partial L/\partial n_i = -\frac{m_i}{n_i^2}\sum g_i u_i \tag{R4}$$

V is reached on two ways, through u and through its length, $\partial n_i/\partial V_i = V_i/n_i$. The first is that of
`lora_linear` (D2, G1, G2, G3) with ∂L/∂u for the gradient of the output; the second adds

$$N = \mathrm{diag}\Big(\frac1{n}\,\frac{\partial L}{\partial n}\Big)\,V \tag{R5}\qquad
  \partial L/\partial W \mathrel{+}= N,\quad \partial L/\partial B \mathrel{+}= s\,N A^T,\quad
  \partial L/\partial A \mathrel{+}= s\,B^T N \tag{R6}$$

The paper also proposes to leave (R6) out, to save memory; here the gradient is the whole one.

Source: Liu et al. 2024, arXiv:2402.09353, equations 5 and 6, section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine.arrays import Array, array_module, rows
from ..engine.differentiation import operation

Wanted = tuple[str, ...]


def dora_linear_forward(
    x: Array, W: Array, b: Array | None, A: Array, B: Array, m: Array, scaling: float, /, *, wanted: Wanted
) -> tuple[Array, Any]:
    """(R1)."""
    X = rows(x)
    V = W + scaling * (B @ A)
    n = array_module(V).sqrt((V * V).sum(axis=1))
    U = X @ V.T
    y = U * (m / n)
    if b is not None:
        y += b
    saved = (X, V, A, B, m, n, U, scaling, x.shape) if wanted else None
    return y.reshape(*x.shape[:-1], len(W)), saved


def dora_linear_backward(saved: Any, dy: Array, wanted: Wanted) -> list[Array]:
    """(R2) to (R6)."""
    X, V, A, B, m, n, U, scaling, shape = saved
    G = rows(dy)
    dU = G * (m / n)  # (R2)
    pull = (G * U).sum(axis=0) / n
    dV = dU.T @ X - (m * pull / (n * n))[:, None] * V  # (D2), (R4), (R5)
    gradient: dict[str, Callable[[], Array]] = {
        "x": lambda: (dU @ V).reshape(shape),  # (G3)
        "W": lambda: dV,
        "b": lambda: G.sum(axis=0),
        "A": lambda: scaling * (B.T @ dV),  # (G2), (R6)
        "B": lambda: scaling * (dV @ A.T),  # (G1), (R6)
        "m": lambda: pull,  # (R3)
    }
    return [gradient[name]() for name in wanted]


dora_linear = operation(dora_linear_forward, dora_linear_backward)
