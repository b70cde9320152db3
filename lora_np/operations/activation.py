r"""GELU, x times the probability that a normal number is below x (Hendrycks and Gimpel 2016, arXiv:1606.08415).

In its tanh form, the one GPT-2 uses:

$$y = \tfrac12 x\,(1 + t),\qquad t = \tanh u,\qquad u = c\,(x + a x^3),\qquad c = \sqrt{2/\pi},\ a = 0.044715 \tag{A1}$$

**Derivation.** With $dt/dx = (1 - t^2)\,du/dx$ and $du/dx = c\,(1 + 3 a x^2)$, the product rule gives

$$y' = \tfrac12 (1 + t) + \tfrac12 x\,(1 - t^2)\,c\,(1 + 3 a x^2) \tag{A2}$$
$$\phantom{y'} = \tfrac12 (1 + t)\left[1 + x\,(1 - t)\,c\,(1 + 3 a x^2)\right] \tag{A3}$$

The derivative is made in the forward pass, while x and t are in the cache, and is all that is saved: backward is
one multiplication, $\partial L/\partial x = y' \odot \partial L/\partial y$ (A4).

As it stands, the form BERT uses: $y = x\,\Phi(x) = \tfrac12 x\,(1 + \mathrm{erf}(x/\sqrt2))$. NumPy has no erf. But
with $a = |x|$ and the density $\varphi(a) = e^{-a^2/2}/\sqrt{2\pi}$, the tail of the normal distribution is

$$\Phi(-a) = e^{-a^2/2}\,r(a) \tag{A5}\qquad y = \max(x, 0) - a\,\Phi(-a) \tag{A6}$$

where r falls smoothly from ½ to 0, as $1/(a\sqrt{2\pi})$ in the end: a quotient of two polynomials p/q, q of one degree
more than p, is close to it on all of $[0, \infty)$. All coefficients are positive, so nothing cancels. (A6) is
$x\,\Phi(x)$ on both sides, because $\Phi(x) = 1 - \Phi(-x)$; far to the left it keeps digits that 1 + erf would lose.

**Derivation.** The product rule and $\Phi' = \varphi$ give $y' = \Phi(x) + x\,\varphi(x)$, that is

$$w = \Phi(-a) - a\,\varphi(a),\qquad y' = \begin{cases} w & x \le 0 \\ 1 - w & x > 0 \end{cases} \tag{A7}$$

tanh alone, before a classifier: $y = \tanh x$ (A8), $\partial L/\partial x = (1 - y^2)\odot\partial L/\partial y$ (A9).
"""

from __future__ import annotations

import math
from typing import Any

from ..engine.arrays import Array, array_module, fused, row_blocks
from ..engine.differentiation import operation
from ..engine.threads import each

C = math.sqrt(2.0 / math.pi)
CUBIC = 0.044715
DENSITY = 1.0 / math.sqrt(2.0 * math.pi)  # φ(0)

# By the bytes of a number: the coefficients of p and q, highest degree first, and how far r is fitted. Made so that the
# largest relative error up to there is smallest (Remez's algorithm, with 60 digits): 6.5e-8, half of float32's epsilon,
# and 1.3e-17, a twentieth of float64's. Further out a Φ(−a) is nothing beside 1, and r still right to 1e-3.
TAIL: dict[int, tuple[tuple[float, ...], tuple[float, ...], float]] = {
    4: (
        (0.013532142635406130, 0.10404834943568992, 0.33382107791637972, 0.5),
        (0.033941078427441948, 0.26024822378346181, 0.87744431407832158, 1.4655242467321534, 1.0),
        6.0,
    ),
    8: (
        (
            *(4.0879993141593118e-6, 1.0589310707470855e-4, 0.0013092735292759851, 0.010003093688656352),
            *(0.051464821003878288, 0.18269486871823015, 0.43951943550136837, 0.66395910223245274, 0.5),
        ),
        (
            *(1.0247094508932333e-5, 2.6543467004809221e-4, 0.0032921085723975425, 0.025339487150183481),
            *(0.13226425993142577, 0.48249537152948086, 1.2242072107115212, 2.0751840767218601),
            *(2.1258027652677725, 1.0),
        ),
        9.0,
    ),
}
END = 40.0  # |x| beyond it counts as it: e^-800 is 0 in either precision


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
    half = xp.multiply(t, 0.5, out=y)
    half += 0.5  # (1 + t) / 2
    if slope is not None:
        square *= 3.0 * C * CUBIC
        square += C  # du/dx
        square *= x
        xp.subtract(1.0, t, out=t)
        square *= t
        square += 1.0
        square *= half  # (A3)
    half *= x  # (A1)


def gelu_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(A4)."""
    xp = array_module(dy)
    dx = xp.empty_like(saved)
    slope, G, flat = saved.reshape(-1), dy.reshape(-1), dx.reshape(-1)
    each(lambda i: xp.multiply(slope[i], G[i], out=flat[i]), row_blocks(flat.size, 1, xp=xp))
    return [dx]


gelu = operation(gelu_forward, gelu_backward)


def gelu_exact_forward(x: Array, /, *, wanted: tuple[str, ...]) -> tuple[Array, Any]:
    """(A6), and (A7) if the gradient is wanted, a cache-sized block at a time."""
    xp = array_module(x)
    flat = x.reshape(-1)
    y = xp.empty_like(flat)
    slope = xp.empty_like(flat) if wanted else None
    each(lambda i: _gelu_exact(flat[i], y[i], None if slope is None else slope[i]), row_blocks(flat.size, 1, xp=xp))
    return y.reshape(x.shape), None if slope is None else slope.reshape(x.shape)


@fused
def _gelu_exact(xp: Any, x: Array, y: Array, slope: Array | None) -> None:
    p, q, _ = TAIL[x.dtype.itemsize]
    a = xp.absolute(x)
    xp.add(x, a, out=y)
    y *= 0.5  # max(x, 0)
    xp.minimum(a, END, out=a)
    tail = a * a
    tail *= -0.5
    xp.exp(tail, out=tail)
    if slope is not None:
        xp.multiply(tail, a, out=slope)
        slope *= -DENSITY
    tail *= _polynomial(a, p)
    tail /= _polynomial(a, q)  # (A5)
    if slope is not None:
        slope += tail  # w
        rest = slope * -2.0
        rest += 1.0
        rest *= x > 0.0
        slope += rest  # (A7)
    tail *= a
    y -= tail  # (A6)


def _polynomial(a: Array, coefficients: tuple[float, ...]) -> Array:
    """Horner's rule."""
    y = a * coefficients[0]
    for coefficient in coefficients[1:-1]:
        y += coefficient
        y *= a
    y += coefficients[-1]
    return y


gelu_exact = operation(gelu_exact_forward, gelu_backward)


def tanh_forward(x: Array, /, *, wanted: tuple[str, ...]) -> tuple[Array, Any]:
    """(A8)."""
    y = array_module(x).tanh(x)
    return y, y


def tanh_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(A9)."""
    return [(1.0 - saved * saved) * dy]  # (A9)


tanh = operation(tanh_forward, tanh_backward)
