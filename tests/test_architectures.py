"""Llama and BERT out of the same parts: modules for them, built here, against the textbook in float64."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import autograd
import numpy as np
import pytest
from builders import assert_agree, cast
from strict_array import StrictArray, counted, strict

from lora_np import differentiation, textbook
from lora_np.arrays import Array, array_module
from lora_np.devices import to_device
from lora_np.differentiation import value_and_grad
from lora_np.lora import LoraConfig, adapt, merge
from lora_np.model import MLP, Cache, Embedding, LayerNorm, Linear
from lora_np.operations import (
    attention,
    cross_entropy,
    gelu_exact,
    head_cross_entropy,
    pool,
    rms_norm,
    rotary,
    silu_gate,
    tanh,
)
from lora_np.operations.rotary import rotary_tables
from lora_np.parameters import parameters, with_parameters

# ------------------------------------------------------------------------------------------------------ the modules


@dataclass(frozen=True)
class Reading:
    """What a block is told beside its input: the same for every block of a pass.

    mask    (batch, keys) True where a key may be seen; None when all may
    tables  cos and sin of these positions where positions are rotary
    """

    mask: Array | None = None
    tables: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class RMSNorm:
    """Unit mean square over the last axis, then gain gamma (d,)."""

    gamma: Array
    eps: float = 1e-5

    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.gamma, self.eps)


@dataclass(frozen=True)
class Rotary:
    """Positions that turn queries and keys and add nothing to tokens. It holds no array: they are not learned."""

    d_head: int
    theta: float = 1e4

    def tables(self, start: int, seq: int, like: Array) -> tuple[Array, Array]:
        """cos and sin of the positions from `start` on, in the precision and in the place of `like`."""
        xp = array_module(like)
        cos, sin = rotary_tables(np.arange(start, start + seq), self.d_head, self.theta, like.dtype)
        return xp.asarray(cos), xp.asarray(sin)


@dataclass(frozen=True)
class Attention:
    """Self-attention; keys and values may have fewer heads than queries, and positions may turn both."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int
    causal: bool = True

    def __call__(self, x: Array, reading: Reading, cache: Cache | None) -> Array:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if reading.tables is not None:
            q, k = rotary(q, *reading.tables), rotary(k, *reading.tables)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.output(attention(q, k, v, self.heads, self.causal, reading.mask))


@dataclass(frozen=True)
class ExactMLP(MLP):
    """Two linear maps with the exact GELU between them."""

    def __call__(self, x: Array) -> Array:
        return self.down(gelu_exact(self.up(x)))


@dataclass(frozen=True)
class GatedMLP:
    """Three linear maps: one opens the gate for another, the third leads back."""

    gate: Linear
    up: Linear
    down: Linear

    def __call__(self, x: Array) -> Array:
        return self.down(silu_gate(self.gate(x), self.up(x)))


@dataclass(frozen=True)
class Block:
    """The norm before each step, as in GPT-2 and Llama."""

    attention_norm: Any
    attention: Attention
    mlp_norm: Any
    mlp: Any

    def __call__(self, h: Array, reading: Reading, cache: Cache | None) -> Array:
        attended = h + self.attention(self.attention_norm(h), reading, cache)
        return attended + self.mlp(self.mlp_norm(attended))


@dataclass(frozen=True)
class PostBlock(Block):
    """The norm after each sum, as in BERT."""

    def __call__(self, h: Array, reading: Reading, cache: Cache | None) -> Array:
        attended = self.attention_norm(h + self.attention(h, reading, cache))
        return self.mlp_norm(attended + self.mlp(attended))


@dataclass(frozen=True)
class ClassificationHead:
    """Reads the first position: a map with tanh, then a row of logits. (batch, seq, d) -> (batch, 1, classes)."""

    pooler: Linear
    output: Linear

    def __call__(self, h: Array) -> Array:
        first = array_module(h).zeros(h.shape[:2], dtype=h.dtype)
        first[:, 0] = 1.0
        return self.output(tanh(self.pooler(pool(h, first))))


@dataclass(frozen=True)
class Model:
    """A transformer of any of the three architectures; what is None is not there."""

    tokens: Embedding
    positions: Embedding | Rotary
    blocks: tuple[Block, ...]
    norm: Any = None
    head: Any = None
    types: Embedding | None = None
    first_norm: LayerNorm | None = None

    def hidden(self, tokens: Array, mask: Array | None = None, types: Array | None = None, caches: Any = None) -> Array:
        """The residual stream before the head, (batch, seq, d_model)."""
        start, seq = caches[0].length if caches else 0, tokens.shape[1]
        h = self.tokens(tokens)
        tables = None
        if isinstance(self.positions, Rotary):
            tables = self.positions.tables(start, seq, next(iter(parameters(self).values())))
        else:
            h = h + self.positions(array_module(tokens).arange(start, start + seq))
        if self.types is not None:
            h = h + self.types(array_module(tokens).zeros_like(tokens) if types is None else types)
        if self.first_norm is not None:
            h = self.first_norm(h)
        reading = Reading(mask, tables)
        for i, block in enumerate(self.blocks):
            h = block(h, reading, caches[i] if caches else None)
        return h if self.norm is None else self.norm(h)

    def __call__(
        self, tokens: Array, mask: Array | None = None, types: Array | None = None, caches: Any = None
    ) -> Array:
        h = self.hidden(tokens, mask, types, caches)
        return self.tokens.logits(h) if self.head is None else self.head(h)

    def caches(self, batch: int, context: int) -> tuple[Cache, ...]:
        """The width of a cache is that of its layer's keys."""

        def empty(layer: Attention) -> Array:
            W = parameters(layer.key)[next(name for name in parameters(layer.key) if name.endswith("W"))]
            return array_module(W).empty((batch, context, len(W)), dtype=W.dtype)

        return tuple(Cache(empty(block.attention), empty(block.attention)) for block in self.blocks)


# ---------------------------------------------------------------------------------------------- how they are built

VOCAB, D, HEADS, D_FF, LAYERS, CONTEXT, CLASSES = 11, 16, 4, 20, 2, 9, 3
THETA = 100.0


def drawn(seed: int) -> Callable[..., Any]:
    rng = np.random.default_rng(seed)
    return lambda *shape, scale=1.0: scale * rng.standard_normal(shape)


def llama(kv_heads: int = 2, tied: bool = True, seed: int = 0, dtype: Any = np.float64, layers: int = LAYERS) -> Model:
    normal = drawn(seed)

    def dense(d_out: int, d_in: int) -> Linear:
        return Linear(normal(d_out, d_in, scale=d_in**-0.5))

    def norm() -> RMSNorm:
        return RMSNorm(1.0 + normal(D, scale=0.3))

    kv = D // HEADS * kv_heads
    blocks = tuple(
        Block(
            norm(),
            Attention(dense(D, D), dense(kv, D), dense(kv, D), dense(D, D), HEADS),
            norm(),
            GatedMLP(dense(D_FF, D), dense(D_FF, D), dense(D, D_FF)),
        )
        for _ in range(layers)
    )
    tokens = Embedding(normal(VOCAB, D, scale=0.7))
    node = Model(tokens, Rotary(D // HEADS, THETA), blocks, norm(), None if tied else dense(VOCAB, D))
    return cast(node, dtype)


def bert(head: str | None = "classes", seed: int = 0, dtype: Any = np.float64) -> Model:
    normal = drawn(seed)

    def dense(d_out: int, d_in: int) -> Linear:
        return Linear(normal(d_out, d_in, scale=d_in**-0.5), normal(d_out, scale=0.3))

    def norm() -> LayerNorm:
        return LayerNorm(1.0 + normal(D, scale=0.3), normal(D, scale=0.3))

    blocks = tuple(
        PostBlock(
            norm(),
            Attention(dense(D, D), dense(D, D), dense(D, D), dense(D, D), HEADS, causal=False),
            norm(),
            ExactMLP(dense(D_FF, D), dense(D, D_FF)),
        )
        for _ in range(LAYERS)
    )
    tokens, positions, types = (Embedding(normal(n, D, scale=0.7)) for n in (VOCAB, CONTEXT, 2))
    classes = ClassificationHead(dense(D, D), dense(CLASSES, D)) if head else None
    return cast(Model(tokens, positions, blocks, None, classes, types, norm()), dtype)


RNG = np.random.default_rng(3)
TOKENS = RNG.integers(0, VOCAB, (3, CONTEXT))
TYPES = (np.arange(CONTEXT) >= 4).astype(int) * np.ones((3, 1), int)
MASK = np.arange(CONTEXT) < np.array([[CONTEXT], [6], [2]])
TARGETS, WEIGHTS = RNG.integers(0, VOCAB, TOKENS.shape), RNG.random(TOKENS.shape) / TOKENS.size
LABELS, EACH = np.array([[2], [0], [1]]), np.full((3, 1), 1 / 3)


@dataclass(frozen=True, repr=False)
class Architecture:
    """A model, its loss, and what the textbook is told to write the same."""

    node: Model
    loss: Callable[[Model], Any]
    settings: dict[str, Any]

    def textbook_logits(self, p: dict[str, Any], **changes: Any) -> Any:
        return textbook.logits(p, TOKENS, HEADS, **{**self.settings, **changes})

    def textbook_loss(self, p: dict[str, Any]) -> Any:
        classify = self.settings.get("post", False)
        targets, weights = (LABELS, EACH) if classify else (TARGETS, WEIGHTS)
        return textbook.cross_entropy(self.textbook_logits(p), targets, weights)

    @property
    def logits(self) -> Any:
        if self.settings.get("post"):
            return self.node(TOKENS, MASK, TYPES)
        return self.node(TOKENS)


def language_loss(node: Model) -> Any:
    h = node.hidden(TOKENS)
    if node.head is None:
        return head_cross_entropy(h, node.tokens.W, TARGETS, WEIGHTS)
    return head_cross_entropy(h, node.head.W, TARGETS, WEIGHTS)


def classes_loss(node: Model) -> Any:
    return cross_entropy(node(TOKENS, MASK, TYPES), LABELS, EACH)


BERT = {"causal": False, "mask": MASK, "post": True, "exact": True, "types": TYPES}
ARCHITECTURES = {
    "Llama, shared keys, tied": Architecture(llama(), language_loss, {"theta": THETA}),
    "Llama, one key head, own head": Architecture(llama(1, tied=False), language_loss, {"theta": THETA}),
    "Llama, keys of its own": Architecture(llama(HEADS), language_loss, {"theta": THETA}),
    "BERT, a class": Architecture(bert(), classes_loss, BERT),
}
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


# --------------------------------------------------------------------------------------------------------- the laws


@every_architecture
def test_logits_are_the_textbooks(name: str) -> None:
    """Allowed, as everywhere, 1e-12 of the largest."""
    architecture = ARCHITECTURES[name]
    theirs = architecture.textbook_logits(parameters(architecture.node))
    assert np.abs(theirs).max() > 0.5
    assert_agree(architecture.logits, theirs, "logits")


@every_architecture
def test_the_gradient_of_every_array_is_the_textbooks(name: str) -> None:
    architecture = ARCHITECTURES[name]
    p = parameters(architecture.node)
    value, gradient = value_and_grad(lambda q: architecture.loss(with_parameters(architecture.node, q)))(p)
    theirs, their_gradient = autograd.value_and_grad(architecture.textbook_loss)(p)
    assert_agree(value, theirs, "loss")
    assert set(gradient) == set(p)
    for path in p:
        assert_agree(gradient[path], their_gradient[path], path)
        assert ".key.b" in path or np.abs(gradient[path]).max() > 1e-6, path  # softmax does not see a key's bias


CHANGES: dict[str, tuple[str, Callable[[Model], Model]]] = {
    "another θ": ("Llama, shared keys, tied", lambda m: replace(m, positions=Rotary(D // HEADS, 101.0))),
    "the mean taken out as well": (
        "Llama, shared keys, tied",
        lambda m: replace(m, norm=LayerNorm(m.norm.gamma, np.zeros(D))),
    ),
    "gate and up exchanged": (
        "Llama, shared keys, tied",
        lambda m: with_block(m, mlp=GatedMLP(m.blocks[0].mlp.up, m.blocks[0].mlp.gate, m.blocks[0].mlp.down)),
    ),
    "the norms before the steps": (
        "BERT, a class",
        lambda m: replace(m, blocks=tuple(Block(*vars(block).values()) for block in m.blocks)),
    ),
    "GELU in its tanh form": ("BERT, a class", lambda m: with_block(m, mlp=MLP(*vars(m.blocks[0].mlp).values()))),
    "types forgotten": ("BERT, a class", lambda m: replace(m, types=None)),
    "no norm of the embeddings": ("BERT, a class", lambda m: replace(m, first_norm=None)),
    "queries that see the past only": (
        "BERT, a class",
        lambda m: with_block(m, attention=replace(m.blocks[0].attention, causal=True)),
    ),
}


def with_block(node: Model, **changes: Any) -> Model:
    return replace(node, blocks=(replace(node.blocks[0], **changes), *node.blocks[1:]))


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_of_a_slightly_other_architecture_is_found(change: str) -> None:
    """The smallest, a θ of 101 for 100, moves logits by 1e-3; that of the tanh form 1e-4."""
    name, alter = CHANGES[change]
    architecture = ARCHITECTURES[name]
    theirs = architecture.textbook_logits(parameters(architecture.node))
    assert_agree(architecture.logits, theirs)
    with pytest.raises(AssertionError, match="apart"):
        assert_agree(replace(architecture, node=alter(architecture.node)).logits, theirs)


def test_padding_changes_no_logits_of_what_is_read() -> None:
    node, other = bert(), np.where(MASK, TOKENS, (TOKENS + 1) % VOCAB)
    assert (other != TOKENS).any()
    assert np.array_equal(node(other, MASK, TYPES), node(TOKENS, MASK, TYPES))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_generation_with_caches_is_the_whole_pass(kv_heads: int) -> None:
    node = llama(kv_heads)
    caches = node.caches(3, CONTEXT)
    assert caches[0].keys.shape == (3, CONTEXT, D // HEADS * kv_heads)
    parts = [node(TOKENS[:, a:b], caches=caches) for a, b in ((0, 4), (4, 5), (5, 6), (6, 9))]
    assert_agree(np.concatenate(parts, axis=1), node(TOKENS))


def test_lora_on_queries_values_and_gates_adapts_and_merges() -> None:
    node = llama()
    config = LoraConfig(rank=2, targets=("attention.query", "attention.value", "mlp.gate"))
    fresh: Any = adapt(node, config, np.random.default_rng(0))  # type: ignore[arg-type]
    assert np.array_equal(fresh(TOKENS), node(TOKENS))
    arrays = parameters(fresh, "*.B")
    lora = with_parameters(fresh, {path: drawn(1)(*B.shape, scale=0.5) for path, B in arrays.items()})
    assert np.abs(lora(TOKENS) - node(TOKENS)).max() > 0.1
    assert_agree(merge(lora)(TOKENS), lora(TOKENS))  # type: ignore[operator]


def test_every_cotangent_in_float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, add = set(), differentiation.add_outgrads

    def watched(previous: Any, gradient: Any) -> Any:
        seen.add(gradient.dtype)
        return add(previous, gradient)

    monkeypatch.setattr(differentiation, "add_outgrads", watched)
    for node, loss in ((llama(dtype=np.float32), language_loss32), (bert(dtype=np.float32), classes_loss32)):
        assert loss(node).dtype == np.float32
        value_and_grad(lambda q, node=node, loss=loss: loss(with_parameters(node, q)))(parameters(node))
    assert seen == {np.dtype(np.float32)}


def language_loss32(node: Model) -> Any:
    return head_cross_entropy(node.hidden(TOKENS), node.tokens.W, TARGETS, WEIGHTS.astype(np.float32))


def classes_loss32(node: Model) -> Any:
    return cross_entropy(node(TOKENS, MASK, TYPES), LABELS, EACH.astype(np.float32))


# -------------------------------------------------------------------------------------------------------- the device


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`import cupy` gives the stand-in."""
    monkeypatch.setitem(sys.modules, "cupy", strict)
    return strict


def llama_loss(node: Model, ids: Any, targets: Any, weights: Any) -> Any:
    return head_cross_entropy(node.hidden(ids), node.tokens.W, targets, weights)


def bert_loss(node: Model, ids: Any, mask: Any, types: Any, labels: Any, each: Any) -> Any:
    return cross_entropy(node(ids, mask, types), labels, each)


@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_on_a_device_the_same_bits_and_only_the_tables_are_copied(gpu: Any, name: str) -> None:
    """cos and sin of a pass: 2 copies. BERT's positions are numbered on the device."""
    small = np.float32
    node: Model = llama(dtype=small) if name == "Llama" else bert(dtype=small)
    loss, batch = (
        (llama_loss, (TOKENS, TARGETS, WEIGHTS.astype(small)))
        if name == "Llama"
        else (bert_loss, (TOKENS, MASK, TYPES, LABELS, EACH.astype(small)))
    )
    there, moved = to_device(node, "gpu"), to_device(batch, "gpu")
    with counted() as counts:
        value, gradient = value_and_grad(lambda q: loss(with_parameters(there, q), *moved))(parameters(there))
    assert (counts.h2d, counts.d2h, counts.index_copies) == (2 if name == "Llama" else 0, 0, 0)
    host_value, host = value_and_grad(lambda q: loss(with_parameters(node, q), *batch))(parameters(node))
    assert value.get() == host_value
    for path, array in host.items():
        assert type(gradient[path]) is StrictArray
        assert np.array_equal(gradient[path].get(), array), path


# Per block, measured: 50 forward, 87 backward with every array trained. Seven maps; two norms of 5 and a gate of 1;
# two rotations of 6, of which 4 widen the tables; the rest is attention. See `test_gpu.FORWARD_CEILING`.
LAUNCHES = (53, 90)


def test_a_block_of_llama_calls_few_kernels(gpu: Any) -> None:
    found = []
    for layers in (1, 2, 3):
        node = to_device(llama(layers=layers, dtype=np.float32), "gpu")
        batch, forward = to_device((TOKENS, TARGETS, WEIGHTS.astype(np.float32)), "gpu"), []

        def loss(q: Any, node: Any = node, batch: Any = batch, forward: Any = forward) -> Any:
            with counted() as counts:
                value = llama_loss(with_parameters(node, q), *batch)
            forward.append(counts.launches)
            return value

        with counted() as counts:
            value_and_grad(loss)(parameters(node))
        found.append((forward[0], counts.launches - forward[0]))
    one, two, three = found
    assert (two[0] - one[0], two[1] - one[1]) == (three[0] - two[0], three[1] - two[1])
    assert three[0] - two[0] <= LAUNCHES[0]
    assert three[1] - two[1] <= LAUNCHES[1]
