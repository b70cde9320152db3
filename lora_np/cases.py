r"""One loss written twice, at one point: what witnesses, tests and planted faults all read.

`CASES` holds every operation of `lora_np.operations` beside the same thing in plain `autograd.numpy`; `METHOD_CASES`
every method on a small model, beside `lora_np.textbook`. A new operation, or a new method, needs one row here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import autograd.numpy as anp
import numpy as np

from . import operations as ops
from . import textbook
from .config import TransformerConfig
from .engine.arrays import Array
from .engine.devices import to_device, to_host
from .engine.differentiation import operation
from .method import Method
from .methods.bottleneck import AdapterH, AdapterL, AdapterP, Compacter
from .methods.lora import LoraConfig
from .methods.prefix import LoraPrefixEmbedding, LoraPrefixLayer, PrefixEmbedding, PrefixKeysValues, PrefixLayer
from .methods.tuning import BitFit, Full, Top
from .methods.variants import DoRA, LoraFA, LoraPlus, PiSSA, VeRA
from .model import Transformer, initialize, language_model_loss
from .names import plain
from .operations.attention import QUERIES
from .operations.head import LOGITS, WORDS
from .parameters import Arrays, parameters, with_parameters
from .tasks import Batch
from .wrappers import wrappers


@dataclass(frozen=True)
class Sample:
    """An operation and its textbook, two functions of the same positional arguments, at one point.

    arguments  by name, in order        arrays  those of them that can be differentiated
    """

    operation: str
    book: Callable[..., Any]
    arguments: dict[str, Any]
    arrays: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One scalar loss written twice, and the point (arrays by name) at which its gradients are compared."""

    name: str
    hand: Callable[[Arrays], Any]
    textbook: Callable[[Arrays], Any]
    point: Arrays
    size: float  # the sum of the absolute values of the terms of the loss, by which its rounding is judged
    device: str = "cpu"  # where `hand` takes its arrays; the textbook's stay on the host


@dataclass(frozen=True)
class Draw:
    """Random shapes and numbers for a sample: a few of each, or, `wide`, with all the shapes that have edges."""

    rng: np.random.Generator
    wide: bool = False

    def size(self, low: int = 2, high: int = 4) -> int:
        return int(self.rng.integers(1, 10) if self.wide else self.rng.integers(low, high + 1))

    def lead(self) -> tuple[int, ...]:
        """The leading axes of what an operation does row by row."""
        if not self.wide:
            return self.size(), self.size()
        shapes: list[tuple[int, ...]] = [(), (1,), (7,), (1, 1), (2, 5), (2, 1, 3)]
        return shapes[self.rng.integers(len(shapes))]

    def some(self) -> tuple[int, ...]:
        """Leading axes, at least one."""
        return self.lead() or (4,)

    def maybe(self) -> bool:
        """True; or, wide, true as often as not."""
        return not self.wide or bool(self.rng.random() < 0.5)

    def normal(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape)


# ------------------------------------------------------------------------------------------------- the operations


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


def _dora_linear(draw: Draw) -> Sample:
    dense, rank = _linear(draw), int(draw.rng.integers(1, 6 if draw.wide else 3))
    x, W = dense.arguments["x"], dense.arguments["W"]
    beside = {"A": draw.normal(rank, x.shape[-1]), "B": draw.normal(len(W), rank), "m": draw.normal(len(W)) + 2.0}

    def book(x: Any, W: Any, b: Any, A: Any, B: Any, m: Any, scaling: float) -> Any:
        V = W + scaling * anp.dot(B, A)
        return _dense(x, m[:, None] * V / anp.sqrt(anp.sum(V**2, axis=1, keepdims=True)), b)

    return Sample("dora_linear", book, {**dense.arguments, **beside, "scaling": 0.7}, (*dense.arrays, "A", "B", "m"))


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
}


# Σ y·c for a constant c, as an operation: the one of autograd.numpy would meet a device with an array of the host.
projection = operation(
    lambda y, constant, /, *, wanted: ((y * constant).sum(), constant),
    lambda constant, dL, wanted: [dL * constant],
)


def operation_case(name: str, seed: int = 0, operations: Any = ops, device: str = "cpu") -> Case:
    """An operation between random arguments and, unless it gives one number, a random projection to one.

    Each case draws from a generator of its own: a row more changes no other.

    operations  where the operation is looked up: `lora_np.operations`, or a stand-in with a planted fault
    """
    if name not in CASES:
        raise ValueError(f"the cases are {'; '.join(CASES)}; got {name!r}")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    sample = CASES[name](Draw(rng))
    ours = getattr(operations, sample.operation)
    point = {name: sample.arguments[name] for name in sample.arrays}
    there = {name: to_device(value, device) for name, value in sample.arguments.items()}

    def hand(p: Arrays) -> Any:
        return ours(*{**there, **p}.values())

    def book(p: Arrays) -> Any:
        return sample.book(*{**sample.arguments, **p}.values())

    y = to_host(hand({name: there[name] for name in point}))
    if not y.shape:
        return Case(name, hand, book, point, float(abs(y)), device)
    constant = rng.standard_normal(y.shape)
    moved, size = to_device(constant, device), float(abs(y * constant).sum())
    return Case(name, lambda p: projection(hand(p), moved), lambda p: anp.sum(book(p) * constant), point, size, device)


def operation_cases(seed: int = 0, operations: Any = ops, device: str = "cpu") -> Iterator[Case]:
    """Every row of `CASES`; see `operation_case`."""
    return (operation_case(name, seed, operations, device) for name in CASES)


def joined_cases(seed: int = 0, operations: Any = ops, device: str = "cpu") -> Iterator[Case]:
    """The operations that put sums together from blocks, at sizes at which there are several: along two directions.

    Attention joins blocks of queries; the head joins blocks of words, and for the table's gradient blocks of rows.
    With thousands of entries, a quotient for each would take longer than all other cases.
    """
    rng = np.random.default_rng([seed, zlib.crc32(b"joined")])
    batch, heads, queries, keys = 2, 2, 2 * QUERIES + 2, 2 * QUERIES + 3
    seen = rng.random((batch, keys)) < 0.8
    seen[:, 0] = True
    visible = np.tril(np.ones((queries, keys), bool), keys - queries) & seen[:, None, None]
    to_number = rng.standard_normal((batch, queries, 2 * heads))
    q, k, v = (rng.standard_normal((batch, n, 2 * heads)) for n in (queries, keys, keys))
    hidden, moved = to_device((seen, to_number), device)
    by_blocks = Case(
        "attention, joined",
        lambda p: projection(operations.attention(p["q"], p["k"], p["v"], heads, True, hidden), moved),
        lambda p: anp.sum(textbook.attention(p["q"], p["k"], p["v"], heads, visible) * to_number),
        {"q": q, "k": k, "v": v},
        float(abs(textbook.attention(q, k, v, heads, visible) * to_number).sum()),
        device,
    )
    yield along(by_blocks, rng)

    rows, words = LOGITS // WORDS + 1, WORDS + 2
    targets, weights = rng.integers(0, words, rows), rng.random(rows) / rows
    h, W = rng.standard_normal((rows, 2)), rng.standard_normal((words, 2))
    # Longer than all others, so that in many rows the last block brings a larger logit and what was summed shrinks.
    W[WORDS:] *= 6.0 / np.linalg.norm(W[WORDS:], axis=1, keepdims=True)
    labels = to_device((targets, weights), device)
    by_words = Case(
        "head_cross_entropy, joined",
        lambda p: operations.head_cross_entropy(p["h"], p["W"], *labels),
        lambda p: textbook.cross_entropy(anp.dot(p["h"], p["W"].T), targets, weights),
        {"h": h, "W": W},
        float(textbook.cross_entropy(h @ W.T, targets, weights)),
        device,
    )
    yield along(by_words, rng)


# start + Σ p_i U_i, with one row of U for each direction, as an operation for the same reason as the projection.
combination = operation(
    lambda p, start, U, /, *, wanted: (start + (p @ U).reshape(start.shape), U),
    lambda U, dy, wanted: [U @ dy.reshape(-1)],
)


def along(case: Case, rng: np.random.Generator, directions: int = 2) -> Case:
    r"""The case as a function of p: each array a becomes $a + \sum_i p_i U_i$, with random directions U, at p = 0.

    An array's gradient is then that along its few directions, $\partial L/\partial p_i = \langle\partial L/\partial a,
    U_i\rangle$: a mistake in any entry shows there, unless two of them cancel to ten digits.
    """
    start = case.point
    U = {name: rng.standard_normal((directions, array.size)) for name, array in start.items()}
    moved, along_U = to_device((start, U), case.device)

    def hand(p: Arrays) -> Any:
        return case.hand({name: combination(p[name], moved[name], along_U[name]) for name in start})

    def book(p: Arrays) -> Any:
        return case.textbook({n: a + anp.reshape(anp.dot(p[n], U[n]), a.shape) for n, a in start.items()})

    return replace(case, hand=hand, textbook=book, point={name: np.zeros(directions) for name in start})


def planted(name: str, backward: Callable[..., Any], forward: Callable[..., Any] | None = None) -> Any:
    """The operations of the library with one of them exchanged: where `operation_case` looks them up."""
    right = getattr(ops, name)
    exchanged = operation(forward or right.forward, backward)
    return SimpleNamespace(**{each: getattr(ops, each) for each in ops.__all__} | {name: exchanged})


def spoiled(name: str, array: str, change: Callable[[Array], Array]) -> Any:
    """The operations of the library, with the gradient of one array of one of them changed: a planted fault."""
    right = getattr(ops, name).backward

    def backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
        gradients = zip(wanted, right(saved, dy, wanted), strict=True)
        return [change(gradient) if each == array else gradient for each, gradient in gradients]

    return planted(name, backward)


# --------------------------------------------------------------------------------------------------- whole models

# A setting of every method that fits the small models here; a row of `METHODS` without one is found by a test.
METHOD_CASES: dict[str, Method] = {
    "lora": LoraConfig(
        rank=2, alpha=1.5, targets=("attention+mlp", "tokens"), bias="all", tied_head="tie", ranks={"mlp.up": 1}
    ),
    "full": Full(),
    "top": Top(blocks=1),
    "bitfit": BitFit(),
    "prefix-embedding": PrefixEmbedding(prefix=1, infix=1),
    "prefix-layer": PrefixLayer(prefix=1, infix=1),
    "prefix-kv": PrefixKeysValues(length=2),
    "lora+prefix-embedding": LoraPrefixEmbedding(prefix=1, rank=2),
    "lora+prefix-layer": LoraPrefixLayer(prefix=1, rank=2),
    "adapter-h": AdapterH(rank=2, dropped=1),
    "adapter-l": AdapterL(rank=2, dropped=1),
    "adapter-p": AdapterP(rank=2, dropped=1),
    "compacter": Compacter(rank=2, n=2, dropped=1),
    "dora": DoRA(rank=2, alpha=3.0, targets=("blocks.0.attention.query", "blocks.1.attention.value")),
    "vera": VeRA(rank=2),
    "pissa": PiSSA(rank=2, alpha=4.0, targets=("attention.value",)),
    "lora+": LoraPlus(rank=2, targets=("attention.value",)),
    "lora-fa": LoraFA(rank=2),
}


def model_cases(seed: int = 0, device: str = "cpu") -> Iterator[Case]:
    """Whole models: every method on a causal one, and every array of a bidirectional one with padding."""
    for name, method in METHOD_CASES.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        d_head = 2 if isinstance(method, Full) else 4  # wider norms are smoother
        yield model_case(name, small_model(rng, d_head=d_head), method, rng, device)
    rng = np.random.default_rng([seed, zlib.crc32(b"padded")])
    yield model_case("full, bidirectional and padded", small_model(rng, causal=False), Full(), rng, device)
    for name, (config, method) in ARCHITECTURE_CASES.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        yield model_case(name, initialize(config, rng, np.float64), method, rng, device)


_LLAMA = TransformerConfig(5, 5, 8, 1, 2, 4, architecture="llama", kv_heads=1, theta=100.0)
_BERT = TransformerConfig(5, 5, 8, 1, 2, 4, causal=False, architecture="bert", types=2, classes=3)
_EVERY_MAP = LoraConfig(rank=1, alpha=3.0, targets="attention+mlp")

# Other architectures than GPT-2 as small as they can be: shared keys and a tied table, a head of classes and padding.
ARCHITECTURE_CASES: dict[str, tuple[TransformerConfig, Method]] = {
    "llama, full": (_LLAMA, Full()),
    "llama, lora": (_LLAMA, _EVERY_MAP),
    "bert, full": (_BERT, Full()),
    "bert, lora": (_BERT, replace(_EVERY_MAP, bias="all")),
}


def textbook_settings(config: TransformerConfig) -> dict[str, Any]:
    """What `lora_np.textbook` is told of a model, beside its arrays and its heads."""
    kind = config.kind
    exact = kind.mlp == "gelu, exact"
    return {"causal": config.causal, "theta": config.theta, "eps": config.eps, "post": kind.post, "exact": exact}


def small_model(rng: np.random.Generator, causal: bool = True, d_head: int = 2) -> Transformer:
    """Two blocks of random sizes, in float64; a bidirectional one has a head of its own."""
    heads = int(rng.integers(2, 4))
    sizes: dict[str, Any] = {"vocab": int(rng.integers(5, 9)), "context": int(rng.integers(6, 9)), "heads": heads}
    sizes["d_model"] = d_head * heads
    config = TransformerConfig(**sizes, layers=2, d_ff=int(rng.integers(5, 9)), causal=causal, tied=causal)
    return initialize(config, rng, np.float64)


def model_case(name: str, base: Transformer, method: Method, rng: np.random.Generator, device: str = "cpu") -> Case:
    """The loss of an adapted model moved to a random point, so that B ≠ 0 and no array is at its special start."""
    applied = method.apply(base, rng)
    far = dict.fromkeys(
        method.trained(applied), 0.6 if wrappers(applied) else 0.4
    )  # what is small moves the loss little
    model = with_parameters(
        applied,
        {name: a + far.get(name, 0.4) * rng.standard_normal(a.shape) for name, a in parameters(applied).items()},
    )
    config, shape = model.config, (2, model.config.context - 1)
    predicted = (2, 1) if config.classes else shape
    tokens, targets = rng.integers(0, config.vocab, shape), rng.integers(0, config.outcomes, predicted)
    special = np.arange(config.vocab, model.tokens.words)
    tokens[:, : len(special)] = special
    weights = rng.random(predicted) * (rng.random(predicted) < 0.7)
    weights[0, -1] = 1.0
    weights /= weights.sum()
    mask = None if config.causal else np.arange(shape[1]) < np.array([[shape[1]], [shape[1] - 2]])
    types = rng.integers(0, config.types, shape) if config.types else None
    frozen = {plain(path): array for path, array in parameters(model).items()}
    scaling = {plain(path): node.scaling for path, node in wrappers(model).items() if hasattr(node, "scaling")}

    node, batch, padding, kinds = to_device((model, Batch(tokens, targets, weights), mask, types), device)
    settings = {**textbook_settings(config), "mask": mask, "types": types}

    def hand(point: Arrays) -> Any:
        return language_model_loss(with_parameters(node, point), batch, padding, kinds)

    def book(point: Arrays) -> Any:
        p = {**frozen, **{plain(path): array for path, array in point.items()}}
        return textbook.loss(p, tokens, targets, weights, config.heads, scaling, **settings)

    point = method.trained(model)
    return Case(name, hand, book, point, float(hand(to_device(point, device))), device)
