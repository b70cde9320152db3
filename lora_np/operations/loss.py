r"""Cross-entropy of softmax logits, weighted per token.

    logits (..., vocab)    targets (...) integers    weights (...)    loss: one number, in nats

$$L = \sum_t w_t\,\big(\ell_t - x_{t,\mathrm{target}_t}\big),\qquad \ell_t = \log\sum_v e^{x_{tv}} \tag{C1}$$

The weights carry the mask and the mean at once: 1/n on each of the n trained tokens, 0 on prompt and padding. So the
losses of two halves of a batch add up to the loss of the whole. ℓ is computed after taking out the largest logit,
which changes nothing but keeps $e^x$ finite.

**Derivation.** $\partial\ell_t/\partial x_{tv} = e^{x_{tv} - \ell_t} = p_{tv}$, and the target's logit is subtracted
once:

$$\partial L/\partial x_{tv} = w_t\,\big(p_{tv} - [v = \mathrm{target}_t]\big) \tag{C2}$$
"""

from __future__ import annotations

from typing import Any

from ..engine.arrays import Array, array_module, largest, rows
from ..engine.differentiation import operation


def cross_entropy_forward(
    logits: Array, targets: Array, weights: Array, /, *, wanted: tuple[str, ...]
) -> tuple[Any, Any]:
    """(C1)."""
    xp = array_module(logits)
    x, y, w = rows(logits), targets.reshape(-1), weights.reshape(-1)
    top = largest(x)
    p = x - top
    target = xp.take_along_axis(p, y[:, None], axis=-1)
    xp.exp(p, out=p)
    total = p.sum(axis=-1, keepdims=True)
    loss = (w * (xp.log(total) - target)[:, 0]).sum()  # (C1)
    if not wanted:
        return loss, None
    p /= total
    return loss, (p, y, w, logits.shape)


def cross_entropy_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(C2)."""
    p, y, w, shape = saved
    xp = array_module(p)
    scale = dy * w
    dx = p * scale[:, None]
    dx[xp.arange(len(y)), y] -= scale  # (C2)
    return [dx.reshape(shape)]


cross_entropy = operation(cross_entropy_forward, cross_entropy_backward)
