r"""The head of a language model and its cross-entropy in one: logits of (tokens × vocab) are never whole.

    h (..., d)    W (vocab, d)    targets (...) integers    weights (...)    loss: one number, in nats

With $z_{tv} = h_t\cdot W_v$, the same loss as that of `cross_entropy` on the logits z,

$$L = \sum_t w_t\,\big(\ell_t - h_t\cdot W_{\mathrm{target}_t}\big),\qquad \ell_t = \log\sum_v e^{z_{tv}} \tag{H1}$$

**Derivation.** With (C2) of `lora_np.operations.loss` and the chain rule, where $p_{tv} = e^{z_{tv} - \ell_t}$,

$$\partial L/\partial h_t = w_t\Big(\sum_v p_{tv} W_v - W_{\mathrm{target}_t}\Big) \tag{H2}\qquad
  \partial L/\partial W_v = \sum_t w_t\,\big(p_{tv} - [v = \mathrm{target}_t]\big)\,h_t \tag{H3}$$

Both sums over v, that of ℓ and that of (H2), are made in one pass over blocks of the vocabulary, with the largest
logit so far, m, taken out. A new block with logits z moves it to m', and what was summed before shrinks by
$e^{m-m'}$ (Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3):

$$s \leftarrow e^{m-m'} s + \sum_v e^{z_v - m'},\qquad
  a \leftarrow e^{m-m'} a + \sum_v e^{z_v - m'}\,W_v;\qquad \ell = m + \log s,\quad \sum_v p_v W_v = a/s \tag{H4}$$

L is the end of every graph, so (H2) up to the factor ∂L/∂L is ready when the forward pass is. (H3) needs ℓ first:
backward makes the logits a second time, but only where the table is trained. Since the table is read in blocks of
words, one that is held in 16 bits (`lora_np.engine.halves`) is widened a block at a time, to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine.arrays import Array, array_module, largest, row_blocks, rows
from ..engine.differentiation import operation
from ..engine.threads import each

WORDS = 1 << 11  # of the vocabulary at a time
LOGITS = 1 << 20  # made at a time: 512 rows of them, enough for the matrix product to be at its best
DEVICE_LOGITS = 1 << 27  # the same on a device, where every call costs a launch: half a GiB in float32


def head_cross_entropy_forward(
    h: Array, W: Array, targets: Array, weights: Array, /, *, wanted: tuple[str, ...]
) -> tuple[Any, Any]:
    """(H1), and (H2) if it is wanted."""
    xp = array_module(h)
    H, y, w = rows(h), targets.reshape(-1), weights.reshape(-1, 1)
    log_sum = xp.empty((len(H), 1), dtype=H.dtype)
    mean = xp.empty_like(H) if "h" in wanted else None  # Σ p W

    def block(t: slice) -> None:
        log_sum[t], average = _summed(H[t], W, mean is not None)
        if mean is not None:
            mean[t] = average

    each(block, _row_blocks(H, W))
    target = W[y]
    loss = (w * (log_sum - (H * target).sum(axis=-1, keepdims=True))).sum()  # (H1)
    if mean is not None:
        mean -= target
        mean *= w  # (H2)
    kept = (h, W, log_sum, y, w) if "W" in wanted else None
    return loss, (mean, kept, h.shape)


def head_cross_entropy_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(H2), made by the forward pass, and (H3)."""
    dH, kept, shape = saved
    gradient: dict[str, Callable[[], Array]] = {
        "h": lambda: (dH * dy).reshape(shape),
        "W": lambda: _gradient_of_table(dy, *kept),
    }
    return [gradient[name]() for name in wanted]


def _summed(H: Array, W: Array, wants_mean: bool) -> tuple[Array, Any]:
    """ℓ and, if it is wanted, Σ p W of each row: (H4)."""
    xp = array_module(H)
    top = xp.full((len(H), 1), -math.inf, dtype=H.dtype)
    total = xp.zeros((len(H), 1), dtype=H.dtype)
    sum_ = xp.zeros_like(H) if wants_mean else None
    for v in _words(H, W):
        words = W[v]
        z = H @ words.T
        higher = xp.maximum(top, largest(z))
        shrink = xp.exp(top - higher)
        z -= higher
        xp.exp(z, out=z)
        total *= shrink
        total += z.sum(axis=-1, keepdims=True)
        if sum_ is not None:
            sum_ *= shrink
            sum_ += z @ words
        top = higher
    if sum_ is not None:
        sum_ /= total
    return top + xp.log(total), sum_


def _gradient_of_table(dy: Array, h: Array, W: Array, log_sum: Array, y: Array, w: Array) -> Array:
    """(H3)."""
    xp = array_module(h)
    H = rows(h)
    weighted = H * (w * dy)
    dW = xp.empty_like(W)

    def block(v: slice) -> None:
        dW[v] = 0.0
        for t in _row_blocks(H, W):
            p = H[t] @ W[v].T
            p -= log_sum[t]
            xp.exp(p, out=p)
            dW[v] += p.T @ weighted[t]

    each(block, _words(H, W))
    xp.add.at(dW, y, -weighted)
    return dW


def _words(H: Array, W: Array) -> list[slice]:
    return row_blocks(len(W), 1, WORDS if array_module(H) is np else DEVICE_LOGITS // len(H), np)


def _row_blocks(H: Array, W: Array) -> list[slice]:
    return row_blocks(len(H), min(len(W), WORDS), LOGITS, array_module(H))


head_cross_entropy = operation(head_cross_entropy_forward, head_cross_entropy_backward)
