r"""Multi-head scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    q (batch, queries, d_model)    k, v (batch, keys, kv_heads · d_head)    y (batch, queries, d_model)

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

**Shared keys.** Where k and v have fewer heads than q, each of theirs serves a group of heads / kv_heads that stand
side by side (Ainslie et al. 2023, arXiv:2305.13245); how many they have is read off their shape. The queries of a group
are rows of one product with the same keys, so nothing is repeated, and the sums over i in (S5) and (S8) run over the
queries of all heads of the group.

**In float32** the difference in (S6) cancels when all v share a large common part. Since $\sum_j p_{ij} = 1$, any
constant vector may be taken out of v and o alike; and since (S6) sums to zero over j, any constant may be taken out
of k in (S7). Taking out the means over the keys is exact in real arithmetic and far better in floating point.

The scores are made for 64 queries at a time, causal ones up to the block's last key: above the diagonal only half of
each 64 × 64 block on it is computed, and hidden. Backward makes p again from the saved ℓ instead of keeping it, so no
array of queries × keys is ever whole. What is then taken off every row, ℓ in (S2) and $g_i\cdot o_i$ in (S6), costs no
pass over the scores: it stands in a column of its own beside the queries and beside g, and meets a column of ones
beside the keys and the values, $[a, -c]\cdot[b, 1] = a\cdot b - c$.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..engine.arrays import Array, array_module, largest, on_device
from ..engine.differentiation import operation
from ..engine.threads import each

Group = tuple[slice, slice]  # of sequences, of heads

QUERIES = 64  # rows of scores made at a time: narrow enough to skip most of what lies above the diagonal
SCORES = 1 << 19  # numbers of one call: fewer, and two threads spend their time handing over the interpreter lock
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
    shared = _shared(q, k, heads)
    Q, K, V = _split(q, heads, shared), _split(k, heads // shared), _split(v, heads // shared)
    if causal and q.shape[1] > k.shape[1]:
        raise ValueError(f"causal attention needs a key for every query, got {q.shape[1]} and {k.shape[1]} keys")
    scale = 1.0 / math.sqrt(Q.shape[-1])
    o = xp.empty_like(q)
    O = _split(o, heads, shared)
    log_sum = xp.empty((len(q), heads, q.shape[1], 1), dtype=q.dtype)
    L = log_sum.reshape(*Q.shape[:-1], 1)
    later = _later(Q, causal)

    def group(at: Group) -> None:
        queries, keys_T, values = Q[at] * scale, K[at].swapaxes(-1, -2), V[at]
        if q.shape[1] > 1:  # a copy that only one query would read is not worth it
            keys_T = xp.ascontiguousarray(keys_T)
        for i, j in _blocks(Q, K, causal):
            p = _folded(queries, i) @ keys_T[..., j]  # (S1)
            _hide(p, shared, later, None if mask is None else mask[at[0], j])
            top = largest(p)
            if mask is not None:
                top = xp.where(top > -math.inf, top, xp.zeros_like(top))
            p -= top
            xp.exp(p, out=p)
            total = p.sum(axis=-1, keepdims=True)
            if mask is not None:
                total = xp.maximum(total, xp.finfo(q.dtype).tiny)
            if wanted:
                L[at][..., i, :] = _unfolded(top + xp.log(total), shared)  # (S2)
            O[at][..., i, :] = _unfolded((p @ values[:, :, j]) / total, shared)  # (S3)

    each(group, _groups(Q, K))
    return o, (q, k, v, o, log_sum, heads, causal, mask) if wanted else None


def attention_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(S4) to (S8)."""
    q, k, v, o, log_sum, heads, causal, mask = saved
    xp = array_module(q)
    shared = _shared(q, k, heads)
    Q, O, G = (_split(x, heads, shared) for x in (q, o, dy))
    K, V = (_split(x, heads // shared) for x in (k, v))
    L = log_sum.reshape(*Q.shape[:-1], 1)
    scale = 1.0 / math.sqrt(Q.shape[-1])
    dq, dk, dv = xp.empty_like(q), xp.empty_like(k), xp.empty_like(v)
    dQ, dK, dV = _split(dq, heads, shared), _split(dk, heads // shared), _split(dv, heads // shared)
    later = _later(Q, causal)

    def group(at: Group) -> None:
        K_mean, V_mean = (x[at].mean(axis=-2, keepdims=True) for x in (K, V))
        along = (G[at] * (O[at] - V_mean[:, :, None])).sum(axis=-1, keepdims=True)
        queries, grads = _with_column(Q[at] * scale, -L[at]), _with_column(G[at], -along)
        keys_T, values_T = (
            xp.ascontiguousarray(_with_column(x, 1.0).swapaxes(-1, -2)) for x in (K[at], V[at] - V_mean)
        )
        keys = K[at] - K_mean
        for i, j in reversed(_blocks(Q, K, causal)):  # the last queries see all keys: theirs are the first sums
            query, grad = _folded(queries, i), _folded(grads, i)
            p = query @ keys_T[..., j]
            _hide(p, shared, later, None if mask is None else mask[at[0], j])
            xp.exp(p, out=p)  # (S2)
            last = i.stop == q.shape[1]
            if "v" in wanted:
                _add(dV[at], j, p.swapaxes(-1, -2) @ grad[..., :-1], last)  # (S5)
            if wanted == ("v",):
                continue
            ds = grad @ values_T[..., j]  # (S4)
            ds *= p  # (S6)
            if "q" in wanted:
                dQ[at][..., i, :] = _unfolded((ds @ keys[:, :, j]) * scale, shared)  # (S7)
            if "k" in wanted:
                _add(dK[at], j, ds.swapaxes(-1, -2) @ query[..., :-1], last)  # (S8)

    each(group, _groups(Q, K))
    gradient = {"q": dq, "k": dk, "v": dv}
    return [gradient[name] for name in wanted]


def _add(total: Array, keys: slice, part: Array, first: bool) -> None:
    """Add the part of one block of queries to the sums of these keys; the first part takes the place of nothing."""
    if first:
        total[...] = part
    else:
        total[:, :, keys] += part


def _shared(q: Array, k: Array, heads: int) -> int:
    """How many heads of q read each head of k; raises ValueError where that is no whole number."""
    if k.shape[-1] == q.shape[-1]:
        return 1
    kv_heads, rest = divmod(heads * k.shape[-1], q.shape[-1])
    if rest or not kv_heads or heads % kv_heads:
        raise ValueError(
            f"keys and values must have a number of heads that divides {heads}, each of {q.shape[-1] // heads} columns,"
            f" got {k.shape[-1]} columns"
        )
    return heads // kv_heads


def _split(x: Array, heads: int, shared: int = 0) -> Array:
    """(batch, seq, d_model) seen as (batch, heads, seq, d_head), without a copy.

    shared   of so many heads a group is made: (batch, heads / shared, shared, seq, d_head)
    """
    batch, seq, d_model = x.shape
    if not shared:
        return x.reshape(batch, seq, heads, d_model // heads).swapaxes(1, 2)
    return x.reshape(batch, seq, heads // shared, shared, d_model // heads).transpose(0, 2, 3, 1, 4)


def _folded(x: Array, i: slice) -> Array:
    """Rows i of (batch, kv_heads, shared, seq, d) as (batch, kv_heads, shared · rows, d); no copy where shared is 1."""
    part = x[:, :, :, i]
    return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _unfolded(x: Array, shared: int) -> Array:
    """The other way, (batch, kv_heads, shared, rows, d), without a copy."""
    return x.reshape(*x.shape[:2], shared, -1, x.shape[-1])


def _with_column(x: Array, last: Any) -> Array:
    """[x, last]: one more column beside those of x, so that [a, c]·[b, 1] = a·b + c."""
    y = array_module(x).empty((*x.shape[:-1], x.shape[-1] + 1), dtype=x.dtype)
    y[..., :-1] = x
    y[..., -1:] = last
    return y


def _groups(Q: Array, K: Array) -> Iterator[Group]:
    """Sequences and heads whose scores are made in one call: whole sequences, or some heads of one."""
    batch, heads, shared, queries, _ = Q.shape
    rows, most = (queries, DEVICE_SCORES) if on_device(Q) else (min(QUERIES, queries), SCORES)
    pairs = max(1, most // (rows * shared * K.shape[2]))
    for b in range(0, batch, max(1, pairs // heads)):
        for h in range(0, heads, min(pairs, heads)):
            yield slice(b, b + max(1, pairs // heads)), slice(h, h + min(pairs, heads))


def _blocks(Q: Array, K: Array, causal: bool) -> list[tuple[slice, slice]]:
    """The pieces of a score matrix that are worth making: (queries, keys)."""
    queries, keys = Q.shape[3], K.shape[2]
    rows = queries if on_device(Q) else QUERIES
    ends = [(start, min(start + rows, queries)) for start in range(0, queries, rows)]
    return [(slice(start, end), slice(0, end + keys - queries if causal else keys)) for start, end in ends]


def _later(Q: Array, causal: bool) -> Array | None:
    """−∞ above the diagonal, for the square at the end of a block of scores; None where nothing is hidden."""
    queries = Q.shape[3]
    if not causal or queries == 1:
        return None
    return _above(queries, Q.dtype, array_module(Q)) if on_device(Q) else _above_here(min(QUERIES, queries), Q.dtype)


def _above(n: int, dtype: Any, xp: Any) -> Array:
    return xp.triu(xp.full((n, n), -math.inf, dtype=dtype), 1)


@functools.lru_cache(maxsize=2 * QUERIES)
def _above_here(n: int, dtype: Any) -> Array:
    """The same square for every call of a step: making it took as long as adding it."""
    square = _above(n, dtype, np)
    square.flags.writeable = False
    return square


def _hide(p: Array, shared: int, later: Array | None, mask: Array | None) -> None:
    """Set to −∞ the scores (batch, kv_heads, shared · queries, keys) of keys that a query may not see: later ones, and
    padding."""
    if later is not None:
        scores = _unfolded(p, shared)
        n = scores.shape[-2]
        scores[..., -n:] += later[:n, :n]
    if mask is not None:
        array_module(p).copyto(p, -math.inf, where=~mask[:, None, None])


attention = operation(attention_forward, attention_backward)
