r"""Multi-head scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    q (batch, queries, d_model)    k, v (batch, keys, d_model)    y (batch, queries, d_model)

Each head works on its own d_head = d_model / heads columns. For one head, with queries i and keys j,

$$s_{ij} = \frac{q_i\cdot k_j}{\sqrt{d_\mathrm{head}}} \tag{S1}\qquad
  p_{ij} = e^{s_{ij} - \ell_i},\quad \ell_i = \log\textstyle\sum_j e^{s_{ij}} \tag{S2}\qquad
  o_i = \sum_j p_{ij} v_j \tag{S3}$$

Causal: query i sees keys j ≤ i + (keys − queries), so that the last query sees all. A padding mask (batch, keys) is
True where a key may be seen; a query that may see no key gives 0.

**Derivation.** Let $g_i = \partial L/\partial o_i$. (S3) is linear in p and v:

$$\partial L/\partial p_{ij} = g_i\cdot v_j \tag{S4}\qquad \partial L/\partial v_j = \sum_i p_{ij}\, g_i \tag{S5}$$

The softmax (S2) has $\partial p_{ij}/\partial s_{im} = p_{ij}(\delta_{jm} - p_{im})$, hence

$$\partial L/\partial s_{ij} = p_{ij}\Big(g_i\cdot v_j - \sum_m p_{im}\, g_i\cdot v_m\Big)
                             = p_{ij}\,\big(g_i\cdot v_j - g_i\cdot o_i\big) \tag{S6}$$

and (S1) is linear in q and k:

$$\partial L/\partial q_i = \frac{1}{\sqrt{d_\mathrm{head}}}\sum_j \frac{\partial L}{\partial s_{ij}} k_j \tag{S7}\qquad
  \partial L/\partial k_j = \frac{1}{\sqrt{d_\mathrm{head}}}\sum_i \frac{\partial L}{\partial s_{ij}} q_i \tag{S8}$$

**In float32** the difference in (S6) cancels when all v share a large common part. Since $\sum_j p_{ij} = 1$, any
constant vector may be taken out of v and o alike; and since (S6) sums to zero over j, any constant may be taken out
of k in (S7). Taking out the means over the keys is exact in real arithmetic and far better in floating point.

The scores are made for 64 queries at a time and nothing above the diagonal is computed; backward makes p again from
the saved ℓ instead of keeping it, so no array of queries × keys is ever whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..arrays import Array, array_module, on_device
from ..differentiation import operation

QUERIES = 64  # rows of scores made at a time: narrow enough to skip what lies above the diagonal
SCORES = 1 << 18  # numbers of one call: fewer, and two threads spend their time handing over the interpreter lock
DEVICE_SCORES = 1 << 28  # the same on a device, where every call costs a launch: all queries at once, 1 GiB in float32


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    heads: int,
    causal: bool,
    mask: Array | None,
    /,
    *,
    wanted: tuple[str, ...],
) -> tuple[Array, Any]:
    """(S1) to (S3)."""
    xp = array_module(q)
    Q, K, V = (_split(x, heads) for x in (q, k, v))
    if causal and Q.shape[2] > K.shape[2]:
        raise ValueError(f"causal attention needs a key for every query, got {Q.shape[2]} and {K.shape[2]} keys")
    scale = 1.0 / math.sqrt(Q.shape[-1])
    K_T = xp.ascontiguousarray(K.swapaxes(-1, -2))
    o = xp.empty_like(q)
    O = _split(o, heads)
    log_sum = xp.empty((*Q.shape[:3], 1), dtype=q.dtype)
    for batch, i, j in _blocks(Q, K, causal):
        p = (Q[batch, :, i] * scale) @ K_T[batch, :, :, j]  # (S1)
        _hide(p, i, j, Q, K, causal, mask, batch)
        top = p.max(axis=-1, keepdims=True)
        if mask is not None:
            top = xp.where(top > -math.inf, top, xp.zeros_like(top))
        p -= top
        xp.exp(p, out=p)
        total = p.sum(axis=-1, keepdims=True)
        if mask is not None:
            total = xp.maximum(total, xp.finfo(q.dtype).tiny)
        log_sum[batch, :, i] = top + xp.log(total)  # (S2)
        O[batch, :, i] = (p @ V[batch, :, j]) / total  # (S3)
    return o, (q, k, v, o, log_sum, heads, causal, mask) if wanted else None


def attention_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(S4) to (S8)."""
    q, k, v, o, log_sum, heads, causal, mask = saved
    xp = array_module(q)
    Q, K, V, O, G = (_split(x, heads) for x in (q, k, v, o, dy))
    scale = 1.0 / math.sqrt(Q.shape[-1])
    K_mean, V_mean = K.mean(axis=-2, keepdims=True), V.mean(axis=-2, keepdims=True)
    K_T = xp.ascontiguousarray(K.swapaxes(-1, -2))
    V_T = xp.ascontiguousarray((V - V_mean).swapaxes(-1, -2))
    K_centred = K - K_mean
    dq, dk, dv = xp.empty_like(q), xp.zeros_like(k), xp.zeros_like(v)
    dQ, dK, dV = (_split(x, heads) for x in (dq, dk, dv))
    for batch, i, j in _blocks(Q, K, causal):
        g, q_scaled = G[batch, :, i], Q[batch, :, i] * scale
        p = q_scaled @ K_T[batch, :, :, j]
        _hide(p, i, j, Q, K, causal, mask, batch)
        p -= log_sum[batch, :, i]
        xp.exp(p, out=p)  # (S2)
        dV[batch, :, j] += p.swapaxes(-1, -2) @ g  # (S5)
        ds = g @ V_T[batch, :, :, j]  # (S4)
        ds -= (g * (O[batch, :, i] - V_mean[batch])).sum(axis=-1, keepdims=True)
        ds *= p  # (S6)
        dQ[batch, :, i] = (ds @ K_centred[batch, :, j]) * scale  # (S7)
        dK[batch, :, j] += ds.swapaxes(-1, -2) @ q_scaled  # (S8)
    gradient = {"q": dq, "k": dk, "v": dv}
    return [gradient[name] for name in wanted]


def _split(x: Array, heads: int) -> Array:
    """(batch, seq, d_model) seen as (batch, heads, seq, d_head), without a copy."""
    batch, seq, d_model = x.shape
    return x.reshape(batch, seq, heads, d_model // heads).swapaxes(1, 2)


def _blocks(Q: Array, K: Array, causal: bool) -> Iterator[tuple[slice, slice, slice]]:
    """The pieces of the score matrix that are worth making: (sequences, queries, keys)."""
    batch, heads, queries, _ = Q.shape
    keys = K.shape[2]
    rows, scores = (queries, DEVICE_SCORES) if on_device(Q) else (QUERIES, SCORES)
    step = max(1, scores // max(1, heads * min(rows, queries) * keys))
    for b in range(0, batch, step):
        for i in range(0, queries, rows):
            stop = min(i + rows, queries)
            yield slice(b, b + step), slice(i, stop), slice(0, stop + keys - queries if causal else keys)


def _hide(p: Array, i: slice, j: slice, Q: Array, K: Array, causal: bool, mask: Array | None, batch: slice) -> None:
    """Set to −∞ the scores of keys that a query may not see: later ones, and padding."""
    xp = array_module(p)
    n = i.stop - i.start
    if causal and n > 1:  # only the square that ends at the diagonal holds later keys
        p[..., j.stop - n :] += xp.triu(xp.full((n, n), -math.inf, dtype=p.dtype), 1)
    if mask is not None:
        xp.copyto(p, -math.inf, where=~mask[batch, None, None, j])


attention = operation(attention_forward, attention_backward)
