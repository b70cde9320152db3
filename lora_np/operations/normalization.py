r"""Layer normalization (Ba et al. 2016, arXiv:1607.06450) and RMS normalization (Zhang and Sennrich 2019,
arXiv:1910.07467) over the last axis.

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

**RMS normalization** takes no mean out and adds no shift:

$$y = \gamma\odot\frac{x}{\sigma},\qquad \sigma^2 = \frac1d\sum_i x_i^2 + \epsilon \tag{N7}$$

Moving one $x_j$ moves $\hat x_i = x_i/\sigma$ directly and through $\sigma$, with
$\partial\sigma/\partial x_j = x_j/(d\,\sigma)$:

$$\frac{\partial \hat x_i}{\partial x_j} = \frac1\sigma\left(\delta_{ij} - \frac{x_i x_j}{d\,\sigma^2}\right) \tag{N8}$$

so that only the projection of $g = \gamma\odot\partial L/\partial y$ on x is taken out:

$$\partial L/\partial x = \frac1\sigma\left(g - x\,\frac{\overline{g x}}{\sigma^2}\right) \tag{N9}\qquad
  \partial L/\partial\gamma = \sum_\text{rows} \frac{x}{\sigma}\odot\partial L/\partial y \tag{N10}$$

For backward a layer norm keeps $\hat x$, an RMS norm x as it came; both keep $1/\sigma$, one number a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine.arrays import Array, array_module, fused, row_blocks, rows
from ..engine.differentiation import operation
from ..engine.threads import each


def layer_norm_forward(
    x: Array, gamma: Array, beta: Array, eps: float, /, *, wanted: tuple[str, ...]
) -> tuple[Array, Any]:
    """(N1), (N2), a cache-sized block of rows at a time."""
    xp = array_module(x)
    X = rows(x)
    n, d = X.shape
    y = xp.empty_like(X)
    x_hat = xp.empty_like(X) if wanted else y  # without a gradient to come, y takes its place
    inverse_sigma = xp.empty((n, 1), dtype=X.dtype)

    def block(r: slice) -> None:
        centred, inverse, part = x_hat[r], inverse_sigma[r], y[r]
        square = part if wanted else xp.empty_like(part)
        _centred(X[r], _mean(X[r]), centred, square)
        _inverse(_mean(square), eps, inverse)
        _scaled(centred, inverse, gamma, beta, part)

    each(block, row_blocks(n, d, xp=xp))
    return y.reshape(x.shape), (x_hat, inverse_sigma, gamma)


def layer_norm_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(N4) to (N6)."""
    x_hat, inverse_sigma, gamma = saved
    xp = array_module(dy)
    G = rows(dy)

    def gradient_x() -> Array:
        dX = xp.empty_like(x_hat)

        def block(r: slice) -> None:
            g, hat = dX[r], x_hat[r]
            product = _weighed(G[r], gamma, hat, g)
            _projected(_mean(g), _mean(product), hat, inverse_sigma[r], product, g)

        each(block, row_blocks(len(G), G.shape[1], xp=xp))
        return dX.reshape(dy.shape)

    gradient: dict[str, Callable[[], Array]] = {
        "x": gradient_x,
        "gamma": lambda: (G * x_hat).sum(axis=0),  # (N5)
        "beta": lambda: G.sum(axis=0),  # (N6)
    }
    return [gradient[name]() for name in wanted]


def _mean(x: Array) -> Array:
    return x.sum(axis=-1, keepdims=True) / x.shape[-1]


# The chains between the means: each of them one kernel on a device.


@fused
def _centred(xp: Any, x: Array, mean: Array, centred: Array, square: Array) -> None:
    xp.subtract(x, mean, out=centred)
    xp.multiply(centred, centred, out=square)


@fused
def _inverse(xp: Any, variance: Array, eps: float, inverse_sigma: Array) -> None:
    xp.divide(1.0, xp.sqrt(variance + eps), out=inverse_sigma)


@fused
def _scaled(xp: Any, centred: Array, inverse_sigma: Array, gamma: Array, beta: Array, y: Array) -> None:
    centred *= inverse_sigma  # (N1)
    xp.multiply(centred, gamma, out=y)
    y += beta  # (N2)


@fused
def _weighed(xp: Any, dy: Array, gamma: Array, x_hat: Array, g: Array) -> Array:
    xp.multiply(dy, gamma, out=g)
    return g * x_hat


@fused
def _projected(xp: Any, mean: Array, along: Array, x_hat: Array, inverse_sigma: Array, rest: Array, g: Array) -> None:
    g -= mean
    g -= xp.multiply(x_hat, along, out=rest)
    g *= inverse_sigma  # (N4)


layer_norm = operation(layer_norm_forward, layer_norm_backward)


def rms_norm_forward(x: Array, gamma: Array, eps: float, /, *, wanted: tuple[str, ...]) -> tuple[Array, Any]:
    """(N7), a cache-sized block of rows at a time."""
    xp = array_module(x)
    X = rows(x)
    n, d = X.shape
    y = xp.empty_like(X)
    inverse_sigma = xp.empty((n, 1), dtype=X.dtype)

    def block(r: slice) -> None:
        part, inverse = y[r], inverse_sigma[r]
        _inverse(_mean(xp.multiply(X[r], X[r], out=part)), eps, inverse)
        _gained(X[r], inverse, gamma, part)

    each(block, row_blocks(n, d, xp=xp))
    return y.reshape(x.shape), (X, inverse_sigma, gamma)


def rms_norm_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(N9) and (N10)."""
    X, inverse_sigma, gamma = saved
    xp = array_module(dy)
    G = rows(dy)

    def gradient_x() -> Array:
        dX = xp.empty_like(G)

        def block(r: slice) -> None:
            g, inverse = dX[r], inverse_sigma[r]
            product = _weighed(G[r], gamma, X[r], g)
            _without_projection(_mean(product), X[r], inverse, product, g)

        each(block, row_blocks(len(G), G.shape[1], xp=xp))
        return dX.reshape(dy.shape)

    gradient: dict[str, Callable[[], Array]] = {
        "x": gradient_x,
        "gamma": lambda: (X * inverse_sigma * G).sum(axis=0),  # (N10)
    }
    return [gradient[name]() for name in wanted]


@fused
def _gained(xp: Any, x: Array, inverse_sigma: Array, gamma: Array, y: Array) -> None:
    xp.multiply(x, inverse_sigma, out=y)
    y *= gamma  # (N7)


@fused
def _without_projection(xp: Any, mean: Array, x: Array, inverse_sigma: Array, rest: Array, g: Array) -> None:
    xp.multiply(x, mean * inverse_sigma * inverse_sigma, out=rest)
    g -= rest
    g *= inverse_sigma  # (N9)


rms_norm = operation(rms_norm_forward, rms_norm_backward)
