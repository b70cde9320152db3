r"""Layer normalization (Ba et al. 2016, arXiv:1607.06450) over the last axis.

    x (..., d)    gamma (d,)    beta (d,)    y (..., d)

$$\hat x = \frac{x - \mu}{\sigma},\quad \mu = \frac1d\sum_i x_i,\quad
  \sigma^2 = \frac1d\sum_i (x_i-\mu)^2 + \epsilon \tag{N1}$$
$$y = \gamma\odot\hat x + \beta \tag{N2}$$

**Derivation.** Let $g = \gamma\odot\partial L/\partial y$ be the gradient at $\hat x$. Moving one $x_j$ moves
$\hat x_i$ in three ways: directly, through the mean, and through the deviation,

$$\frac{\partial \hat x_i}{\partial x_j}
    = \frac1\sigma\left(\delta_{ij} - \frac1d - \frac{\hat x_i \hat x_j}{d}\right) \tag{N3}$$

so that, summing over i, two means are taken out of g: its own, and its projection on $\hat x$,

$$\partial L/\partial x = \frac1\sigma\left(g - \overline{g} - \hat x\,\overline{g\hat x}\right) \tag{N4}$$
$$\partial L/\partial\gamma = \sum_\text{rows} \hat x\odot\partial L/\partial y \tag{N5}\qquad
  \partial L/\partial\beta = \sum_\text{rows} \partial L/\partial y \tag{N6}$$
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import Array, array_module, fused, row_blocks, rows
from ..differentiation import operation
from ..threads import each


def layer_norm_forward(
    x: Array, gamma: Array, beta: Array, eps: float, /, *, wanted: tuple[str, ...]
) -> tuple[Array, Any]:
    """(N1), (N2), a cache-sized block of rows at a time; on a device by a few fused chains."""
    xp = array_module(x)
    X = rows(x)
    if xp is not np:
        centred, square = _centred(X, _mean(X))
        inverse = _inverse_sigma(_mean(square), eps)
        x_hat, y = _scaled(centred, inverse, gamma, beta)
        return y.reshape(x.shape), (x_hat, inverse, gamma)
    n, d = X.shape
    y = xp.empty_like(X)
    x_hat = xp.empty_like(X) if wanted else y  # without a gradient to come, y takes its place
    inverse_sigma = xp.empty((n, 1), dtype=X.dtype)

    def block(r: slice) -> None:
        centred = xp.subtract(X[r], _mean(X[r]), out=x_hat[r])
        variance = _mean(xp.multiply(centred, centred, out=y[r] if wanted else None))
        inverse_sigma[r] = 1.0 / xp.sqrt(variance + eps)
        centred *= inverse_sigma[r]  # (N1)
        shifted = xp.multiply(centred, gamma, out=y[r])
        shifted += beta  # (N2)

    each(block, row_blocks(n, d))
    return y.reshape(x.shape), (x_hat, inverse_sigma, gamma)


def layer_norm_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(N4) to (N6)."""
    x_hat, inverse_sigma, gamma = saved
    xp = array_module(dy)
    G = rows(dy)

    def gradient_x() -> Array:
        if xp is not np:
            g, product = _products(G, gamma, x_hat)
            means = _mean(g), _mean(product)
            return _projected(g, *means, x_hat, inverse_sigma).reshape(dy.shape)
        n, d = G.shape
        dX = xp.empty_like(x_hat)

        def block(r: slice) -> None:
            g = xp.multiply(G[r], gamma, out=dX[r])
            product = g * x_hat[r]
            along = _mean(product)
            g -= _mean(g)
            g -= xp.multiply(x_hat[r], along, out=product)
            g *= inverse_sigma[r]  # (N4)

        each(block, row_blocks(n, d))
        return dX.reshape(dy.shape)

    gradient: dict[str, Callable[[], Array]] = {
        "x": gradient_x,
        "gamma": lambda: (G * x_hat).sum(axis=0),  # (N5)
        "beta": lambda: G.sum(axis=0),  # (N6)
    }
    return [gradient[name]() for name in wanted]


def _mean(x: Array) -> Array:
    return x.sum(axis=-1, keepdims=True) / x.shape[-1]


# The same, operation for operation, in the chains between the means: what a device does in one kernel each.


@fused
def _centred(xp: Any, x: Array, mean: Array) -> tuple[Array, Array]:
    centred = x - mean
    return centred, centred * centred


@fused
def _inverse_sigma(xp: Any, variance: Array, eps: float) -> Array:
    return 1.0 / xp.sqrt(variance + eps)


@fused
def _scaled(xp: Any, centred: Array, inverse_sigma: Array, gamma: Array, beta: Array) -> tuple[Array, Array]:
    x_hat = centred * inverse_sigma  # (N1)
    return x_hat, x_hat * gamma + beta  # (N2)


@fused
def _products(xp: Any, dy: Array, gamma: Array, x_hat: Array) -> tuple[Array, Array]:
    g = dy * gamma
    return g, g * x_hat


@fused
def _projected(xp: Any, g: Array, mean: Array, along: Array, x_hat: Array, inverse_sigma: Array) -> Array:
    return (g - mean - x_hat * along) * inverse_sigma  # (N4)


layer_norm = operation(layer_norm_forward, layer_norm_backward)
