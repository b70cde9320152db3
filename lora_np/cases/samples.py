r"""Every operation of `lora_np.operations` beside the same thing in plain `autograd.numpy`, at random arguments.

A new operation needs one row of `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import autograd.numpy as anp
import numpy as np

from .. import textbook
from ..engine.halves import HALVES, half, is_half
from .kinds import Draw, Sample


def _linear(draw: Draw) -> Sample:
    lead, d_in, d_out = draw.lead(), draw.size(), draw.size()
    b = draw.normal(d_out) if draw.maybe() else None
    arguments = {"x": draw.normal(*lead, d_in), "W": draw.normal(d_out, d_in), "b": b}
    return Sample("linear", _dense, arguments, ("x", "W") if b is None else ("x", "W", "b"))


def _dense(x: Any, W: Any, b: Any) -> Any:
    return anp.dot(x, W.T) + (0.0 if b is None else b)


def _lora_linear(draw: Draw) -> Sample:
    dense, rank = _linear(draw), int(draw.rng.integers(1, 6 if draw.wide else 3))
    x, W = dense.arguments["x"], dense.arguments["W"]
    mask = (draw.rng.random(x.shape) < 0.7) / 0.7 if draw.maybe() else None
    beside = {"A": draw.normal(rank, x.shape[-1]), "B": draw.normal(len(W), rank)}
    settings = {"scaling": float(draw.rng.uniform(0.5, 2.0)), "mask": mask}

    def book(x: Any, W: Any, b: Any, A: Any, B: Any, scaling: float, mask: Any) -> Any:
        return _dense(x, W, b) + scaling * anp.dot(anp.dot(x if mask is None else x * mask, A.T), B.T)

    return Sample("lora_linear", book, {**dense.arguments, **beside, **settings}, (*dense.arrays, "A", "B"))


def _gathered_linear(draw: Draw) -> Sample:
    """Unequal ranks and scales, sequences without an adapter and adapters without a sequence; the textbook's is the
    routing mask over all factors side by side."""
    batch, lead, ranks = draw.size(3, 4) if draw.wide else 4, draw.lead()[1:], (1, 2, 2, 3)[: 4 if draw.maybe() else 3]
    which = tuple(int(i) for i in draw.rng.integers(-1, len(ranks), batch)) if draw.wide else (2, 0, -1, 1)
    d_in, d_out, scalings = draw.size(), draw.size(), (0.5, 1.5, 1.5, 2.0)[: len(ranks)]
    owner, s = np.repeat(np.arange(len(ranks)), ranks), np.repeat(scalings, ranks)
    mask = (np.array(which)[:, None] == owner) * s  # (batch, R)
    arrays = {"x": draw.normal(batch, *lead, d_in), "W": draw.normal(d_out, d_in), "b": draw.normal(d_out)}
    arrays |= {"A": draw.normal(sum(ranks), d_in), "B": draw.normal(d_out, sum(ranks))}

    def book(x: Any, W: Any, b: Any, A: Any, B: Any, *_: Any) -> Any:
        routed = anp.dot(x, A.T) * mask.reshape(batch, *(1,) * len(lead), -1)
        return _dense(x, W, b) + anp.dot(routed, B.T)

    settings = {"which": which, "ranks": ranks, "scalings": scalings}
    return Sample("gathered_linear", book, {**arrays, **settings}, tuple(arrays))


def _dora_linear(draw: Draw) -> Sample:
    dense, rank = _linear(draw), int(draw.rng.integers(1, 6 if draw.wide else 3))
    x, W = dense.arguments["x"], dense.arguments["W"]
    beside = {"A": draw.normal(rank, x.shape[-1]), "B": draw.normal(len(W), rank), "m": draw.normal(len(W)) + 2.0}

    def book(x: Any, W: Any, b: Any, A: Any, B: Any, m: Any, scaling: float) -> Any:
        V = W + scaling * anp.dot(B, A)
        return _dense(x, m[:, None] * V / anp.sqrt(anp.sum(V**2, axis=1, keepdims=True)), b)

    return Sample("dora_linear", book, {**dense.arguments, **beside, "scaling": 0.7}, (*dense.arrays, "A", "B", "m"))


def _in_16_bits(sample: Sample, draw: Draw) -> Sample:
    """The same with W frozen and held in 16 bits; the textbook reads the bits by their fields."""
    kind = HALVES[int(draw.rng.integers(2))]

    def book(*arguments: Any) -> Any:
        return sample.book(*(_read(value, kind) if is_half(value) else value for value in arguments))

    held = {**sample.arguments, "W": half(sample.arguments["W"], kind)}
    return replace(sample, book=book, arguments=held, arrays=tuple(name for name in sample.arrays if name != "W"))


def _read(W: Any, kind: str) -> Any:
    """(−1)^sign · 2^(exponent − bias) · (1 + fraction), of a number of 16 bits; none here is subnormal or 0."""
    fraction, bias = (10, 15) if kind == "float16" else (7, 127)
    bits = W.bits.astype(np.int64)
    sign, exponent = np.where(bits >> 15, -1.0, 1.0), (bits & 0x7FFF) >> fraction
    return sign * 2.0 ** (exponent - bias) * (1.0 + (bits & ((1 << fraction) - 1)) / (1 << fraction))


def _embedding(draw: Draw) -> Sample:
    vocab = draw.size(5, 8)
    tokens = draw.rng.integers(0, max(1, vocab - 1), (*draw.some(), 3))  # some occur twice, the last one never
    return Sample("embedding", lambda tokens, W: W[tokens], {"tokens": tokens, "W": draw.normal(vocab, 3)}, ("W",))


def _layer_norm(draw: Draw) -> Sample:
    d = draw.size() if draw.wide else 2 * draw.size()
    x = draw.normal(*draw.lead(), d) + (3.0 if draw.maybe() else 10.0)
    arguments = {"x": x, "gamma": draw.normal(d), "beta": draw.normal(d), "eps": 1e-3 if draw.wide else 1e-5}
    return Sample("layer_norm", textbook.layer_norm, arguments, ("x", "gamma", "beta"))


def _gelu(draw: Draw) -> Sample:
    x = (2.0 if draw.maybe() else 4.0) * draw.normal(*draw.lead(), draw.size())  # beyond 25 autograd's cosh overflows
    return Sample("gelu", textbook.gelu, {"x": x}, ("x",))


def _attention(draw: Draw, causal: bool, padded: bool, shared: int = 1) -> Sample:
    """Around and beyond the 64 queries of a block; more keys than queries, and fewer; padding, and nothing but padding;
    keys of their own, and keys that `shared` heads share."""
    batch, kv_heads, d_head = draw.size(), draw.size(2, 3), draw.size() if draw.wide else 2
    heads, width = kv_heads * shared, kv_heads * d_head
    long = draw.wide and draw.rng.random() < 0.3
    queries = int(draw.rng.choice([63, 64, 65, 131])) if long else draw.size()
    keys = (
        queries + int(draw.rng.integers(0 if draw.wide else 1, 3))
        if causal
        else draw.size() + queries * (not draw.wide)
    )
    mask = None
    if padded and draw.maybe():
        mask = draw.rng.random((batch, keys)) < 0.6
        mask[:, 0] |= not draw.wide
        mask[0] &= draw.maybe()
    q = draw.normal(batch, queries, heads * d_head)
    k, v = draw.normal(batch, keys, width), draw.normal(batch, keys, width)
    arguments = {"q": q, "k": k, "v": v, "heads": heads, "causal": causal, "mask": mask}
    return Sample("attention", _attention_book, arguments, ("q", "k", "v"))


def _attention_book(q: Any, k: Any, v: Any, heads: int, causal: bool, mask: Any) -> Any:
    """Causal ends with the last query seeing all keys."""
    queries, keys = q.shape[1], k.shape[1]
    seen = np.tril(np.ones((queries, keys), bool), keys - queries if causal else keys)
    return textbook.attention(q, k, v, heads, seen[None, None] & (True if mask is None else mask[:, None, None, :]))


def _cross_entropy(draw: Draw) -> Sample:
    lead, vocab = draw.some(), draw.size(5, 8)
    weights = draw.rng.random(lead) * (draw.rng.random(lead) < 0.8)
    weights.flat[0] = 1.0
    arguments = {"logits": 3.0 * draw.normal(*lead, vocab), "targets": draw.rng.integers(0, vocab, lead)}
    return Sample("cross_entropy", textbook.cross_entropy, {**arguments, "weights": weights}, ("logits",))


def _head_cross_entropy(draw: Draw) -> Sample:
    logits, d = _cross_entropy(draw).arguments, draw.size()
    *lead, vocab = logits.pop("logits").shape

    def book(h: Any, W: Any, targets: Any, weights: Any) -> Any:
        return textbook.cross_entropy(anp.dot(h, W.T), targets, weights)

    arguments = {"h": draw.normal(*lead, d), "W": draw.normal(vocab, d), **logits}
    return Sample("head_cross_entropy", book, arguments, ("h", "W"))


def _replaced_rows(draw: Draw) -> Sample:
    batch, seq, special, first, d = draw.size(), draw.size(), draw.size(), draw.size(), draw.size()
    tokens = draw.rng.integers(0, first + special, (batch, seq + 3))

    def book(h: Any, S: Any, tokens: Any, first: int) -> Any:
        place = tokens[..., None] - first == np.arange(len(S))
        return anp.where(np.any(place, axis=-1, keepdims=True), anp.dot(place, S), h)

    arguments = {"h": draw.normal(batch, seq + 3, d), "S": draw.normal(special, d), "tokens": tokens, "first": first}
    return Sample("replaced_rows", book, arguments, ("h", "S"))


def _prepended(draw: Draw) -> Sample:
    batch, width = draw.size(), draw.size()

    def book(P: Any, k: Any) -> Any:
        return anp.concatenate([anp.stack([P] * len(k)), k], axis=1)

    arguments = {"P": draw.normal(draw.size(), width), "k": draw.normal(batch, draw.size(), width)}
    return Sample("prepended", book, arguments, ("P", "k"))


def _scaled_rows(draw: Draw) -> Sample:
    rows = draw.size()
    arguments = {"M": draw.normal(rows, draw.size()), "v": draw.normal(rows)}
    return Sample("scaled_rows", lambda M, v: v[:, None] * M, arguments, ("M", "v"))


def _kronecker(draw: Draw) -> Sample:
    n, rank = draw.size(2, 3), draw.size(1, 2)
    arguments = {
        "A": draw.normal(n, n, n),
        "S": draw.normal(n, draw.size(), rank),
        "T": draw.normal(n, rank, draw.size()),
    }

    def book(A: Any, S: Any, T: Any) -> Any:
        return sum(anp.kron(A[m], anp.dot(S[m], T[m])) for m in range(len(A)))

    return Sample("kronecker", book, arguments, ("A", "S", "T"))


def _rms_norm(draw: Draw) -> Sample:
    norm = _layer_norm(draw)
    return Sample("rms_norm", textbook.rms_norm, {n: norm.arguments[n] for n in ("x", "gamma", "eps")}, ("x", "gamma"))


def _rotary(draw: Draw) -> Sample:
    """Tables for all sequences alike, or for each its own; any angles: the textbook's follow from a position."""
    batch, seq, heads, half = draw.size(), draw.size(), draw.size(2, 3), draw.size(1, 2)
    angles = draw.rng.uniform(-4.0, 4.0, ((seq, half) if draw.maybe() else (batch, seq, half)))

    def book(x: Any, cos: Any, sin: Any) -> Any:
        parts = anp.reshape(x, (*x.shape[:2], -1, 2, cos.shape[-1]))
        one, two, c, s = parts[:, :, :, 0], parts[:, :, :, 1], cos[..., None, :], sin[..., None, :]
        return anp.reshape(anp.stack((one * c - two * s, two * c + one * s), axis=3), x.shape)

    arguments = {"x": draw.normal(batch, seq, heads * 2 * half), "cos": np.cos(angles), "sin": np.sin(angles)}
    return Sample("rotary", book, arguments, ("x",))


def _silu_gate(draw: Draw) -> Sample:
    shape = (*draw.lead(), draw.size())
    arguments = {"gate": (2.0 if draw.maybe() else 6.0) * draw.normal(*shape), "up": draw.normal(*shape)}
    return Sample("silu_gate", lambda gate, up: textbook.silu(gate) * up, arguments, ("gate", "up"))


def _pool(draw: Draw) -> Sample:
    batch, seq = draw.size(), draw.size()

    def book(h: Any, weights: Any) -> Any:
        return anp.sum(weights[..., None] * h, axis=1, keepdims=True)

    return Sample(
        "pool", book, {"h": draw.normal(batch, seq, draw.size()), "weights": draw.rng.random((batch, seq))}, ("h",)
    )


CASES: dict[str, Callable[[Draw], Sample]] = {
    "linear": _linear,
    "lora_linear": _lora_linear,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    "attention, causal": lambda draw: _attention(draw, causal=True, padded=False),
    "attention, padded": lambda draw: _attention(draw, causal=False, padded=True),
    "attention, causal and padded": lambda draw: _attention(draw, causal=True, padded=True),
    "attention, shared keys": lambda draw: _attention(draw, causal=draw.maybe(), padded=draw.wide, shared=2),
    "cross_entropy": _cross_entropy,
    "head_cross_entropy": _head_cross_entropy,
    "dora_linear": _dora_linear,
    "gathered_linear": _gathered_linear,
    "replaced_rows": _replaced_rows,
    "prepended": _prepended,
    "scaled_rows": _scaled_rows,
    "kronecker": _kronecker,
    "rms_norm": _rms_norm,
    "rotary": _rotary,
    "silu_gate": _silu_gate,
    "gelu_exact": lambda draw: replace(_gelu(draw), operation="gelu_exact", book=textbook.gelu_exact),
    "tanh": lambda draw: replace(_gelu(draw), operation="tanh", book=anp.tanh),
    "pool": _pool,
    "linear, 16 bits": lambda draw: _in_16_bits(_linear(draw), draw),
    "lora_linear, 16 bits": lambda draw: _in_16_bits(_lora_linear(draw), draw),
    "head_cross_entropy, 16 bits": lambda draw: _in_16_bits(_head_cross_entropy(draw), draw),
}


# Σ y·c for a constant c, as an operation: the one of autograd.numpy would meet a device with an array of the host.
