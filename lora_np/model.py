r"""The transformer: frozen dataclasses that hold arrays and can be called.

    tokens (batch, seq) → h (batch, seq, d_model) → logits (batch, seq, vocab)

Each block is pre-norm, as in GPT-2 (Radford et al. 2019, section 2.3):

$$h \leftarrow h + \mathrm{Attention}(\mathrm{LayerNorm}(h)),\qquad
  h \leftarrow h + \mathrm{MLP}(\mathrm{LayerNorm}(h)) \tag{M1}$$

Nothing is ever mutated: a changed model is a new one that shares the arrays it did not change.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Array, array_module, is_array, is_box, on_device
from .costs import Shape
from .devices import check_together, to_device
from .differentiation import recomputed
from .operations import attention, cross_entropy, embedding, gelu, head_cross_entropy, layer_norm, linear
from .parameters import parameters, walk, with_modules, with_parameters


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a transformer.

    vocab     number of token ids             context  longest sequence
    d_model   width of the residual stream    heads    attention heads, a divisor of d_model
    layers    number of blocks                d_ff     width of the MLP; 4 d_model when None
    causal    may a position see only what is before it?
    tied      is the token table also the output head?
    """

    vocab: int
    context: int
    d_model: int
    layers: int
    heads: int
    d_ff: int | None = None
    causal: bool = True
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab", "context", "d_model", "layers", "heads", "d_ff"):
            value = getattr(self, name)
            if not (name == "d_ff" and value is None) and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        for name in ("causal", "tied"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.d_model % self.heads:
            raise ValueError(f"heads must divide d_model, got {self.heads} heads for d_model {self.d_model}")

    @property
    def d_hidden(self) -> int:
        """The width of the MLP in numbers."""
        return self.d_ff or 4 * self.d_model


def shape_of(config: TransformerConfig) -> Shape:
    """The same sizes as the closed forms of `lora_np.costs` know them."""
    c = config
    return Shape("model", c.layers, c.d_model, c.heads, c.d_hidden, c.vocab, c.context, c.tied)


@dataclass(frozen=True)
class Linear:
    r"""$y = W x + b$, with W (d_out, d_in) and b (d_out,) or None."""

    W: Array
    b: Array | None = None

    def __post_init__(self) -> None:
        if self.W.ndim != 2 or (self.b is not None and self.b.shape != self.W.shape[:1]):
            b = None if self.b is None else self.b.shape
            raise ValueError(f"W must be (d_out, d_in) and b (d_out,) or None, got {self.W.shape} and {b}")

    def __call__(self, x: Array) -> Array:
        return linear(x, self.W, self.b)

    def loss(self, h: Array, targets: Array, weights: Array) -> Any:
        """As a head: the cross-entropy of its logits, which are not made whole where there is no bias."""
        if self.b is not None:
            return cross_entropy(self(h), targets, weights)
        return head_cross_entropy(h, self.W, targets, weights)


@dataclass(frozen=True)
class Embedding:
    """Row t of W (vocab, d_model) for token t; read the other way, the logits of a tied head."""

    W: Array

    def __call__(self, tokens: Array) -> Array:
        return embedding(tokens, self.W)

    def logits(self, h: Array) -> Array:
        """h (..., d_model) against every row of the table: (..., vocab)."""
        return linear(h, self.W, None)

    def loss(self, h: Array, targets: Array, weights: Array) -> Any:
        """The cross-entropy of these logits, without ever making them whole."""
        return head_cross_entropy(h, self.W, targets, weights)


@dataclass(frozen=True)
class LayerNorm:
    """Zero mean and unit variance over the last axis, then gain gamma (d,) and shift beta (d,)."""

    gamma: Array
    beta: Array
    eps: float = 1e-5

    def __call__(self, x: Array) -> Array:
        return layer_norm(x, self.gamma, self.beta, self.eps)


@dataclass
class Cache:
    """Keys and values of the positions that one attention layer has seen: (batch, context, d_model), `length` of
    them filled. The only thing here that changes in place; see `lora_np.generation`."""

    keys: Array
    values: Array
    length: int = 0

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Append k and v (batch, new, d_model); give back all keys and all values so far."""
        stop = self.length + k.shape[1]
        self.keys[:, self.length : stop] = k
        self.values[:, self.length : stop] = v
        self.length = stop
        return self.keys[:, :stop], self.values[:, :stop]


@dataclass(frozen=True)
class Attention:
    """Multi-head self-attention: four linear maps around the `attention` operation."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int
    causal: bool = True

    def __call__(self, x: Array, mask: Array | None = None, cache: Cache | None = None) -> Array:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.output(attention(q, k, v, self.heads, self.causal, mask))


@dataclass(frozen=True)
class MLP:
    """Two linear maps with a GELU between them."""

    up: Linear
    down: Linear

    def __call__(self, x: Array) -> Array:
        return self.down(gelu(self.up(x)))


@dataclass(frozen=True)
class Block:
    """One layer of the transformer, equation (M1)."""

    attention_norm: LayerNorm
    attention: Attention
    mlp_norm: LayerNorm
    mlp: MLP

    def __call__(self, h: Array, mask: Array | None = None, cache: Cache | None = None) -> Array:
        attended = h + self.attention(self.attention_norm(h), mask, cache)
        return attended + self.mlp(self.mlp_norm(attended))


@dataclass(frozen=True)
class Transformer:
    """Token and position embedding, blocks, a last layer norm, and a head (None: the token table, tied).

    checkpoint_blocks   keep only the input of each block for backward, which then evaluates the block once more:
                        less memory and more time for the same gradients (Chen et al. 2016, arXiv:1604.06174)
    """

    config: TransformerConfig
    tokens: Embedding
    positions: Embedding
    blocks: tuple[Block, ...]
    norm: LayerNorm
    head: Linear | None = None
    checkpoint_blocks: bool = False

    def __call__(self, tokens: Array, mask: Array | None = None, caches: tuple[Cache, ...] | None = None) -> Array:
        """Logits (batch, seq, vocab) of the token that follows each position.

        tokens (batch, seq) integers; mask (batch, seq) True where a token is real, None when all are; caches one a
        block, when `tokens` continues what they have seen. Raises TypeError or ValueError for tokens that are not
        integers in [0, vocab), more of them than the context holds, or a device other than that of the model.
        """
        h = self.hidden(tokens, mask, caches)
        return self.tokens.logits(h) if self.head is None else self.head(h)

    def loss(self, tokens: Array, targets: Array, weights: Array, mask: Array | None = None) -> Any:
        """The cross-entropy of these logits with targets (batch, seq), each position weighted; raises as they do."""
        check_together(model=self.positions.W, targets=targets, weights=weights)
        if type(targets) is np.ndarray:
            check_ids(targets, self.config.vocab)
        h = self.hidden(tokens, mask)
        return (self.tokens if self.head is None else self.head).loss(h, targets, weights)

    def hidden(self, tokens: Array, mask: Array | None = None, caches: tuple[Cache, ...] | None = None) -> Array:
        """The normalised residual stream before the head, (batch, seq, d_model)."""
        seen = caches[0].length if caches else 0
        _check_tokens(tokens, seen, self.config)
        check_together(model=self.positions.W, tokens=tokens, mask=mask, caches=caches[0].keys if caches else None)
        places = array_module(tokens).arange(seen, seen + tokens.shape[1])
        h = self.tokens(tokens) + self.positions(places)
        for i, block in enumerate(self.blocks):
            if self.checkpoint_blocks and caches is None:
                h = _checkpointed(block, h, mask)
            else:
                h = block(h, mask, caches[i] if caches else None)
        return self.norm(h)

    def caches(self, batch: int) -> tuple[Cache, ...]:
        """Empty caches for `batch` sequences, one a block, allocated once for the whole context."""
        table = self.positions.W
        empty = array_module(table).empty
        shape = (batch, self.config.context, self.config.d_model)
        return tuple(Cache(empty(shape, dtype=table.dtype), empty(shape, dtype=table.dtype)) for _ in self.blocks)


def _checkpointed(block: Block, h: Array, mask: Array | None) -> Array:
    """block(h, mask), evaluated once more in backward: with copies of its generators as they stand now."""
    modules = {path: node for path, node in walk(block) if getattr(node, "generator", None) is not None}
    generators = {f"{path}.generator": module.generator for path, module in modules.items()}
    same = iter((block, with_modules(block, copy.deepcopy(generators)) if generators else block))
    boxed = {path: array for path, array in parameters(block).items() if is_box(array)}
    return recomputed(lambda arrays, h: with_parameters(next(same), arrays)(h, mask), boxed, h)


def _check_tokens(tokens: Array, seen: int, config: TransformerConfig) -> None:
    if not (is_array(tokens) and tokens.ndim == 2 and tokens.dtype.kind in "iu" and tokens.size):
        got = f"{tokens.dtype} {tokens.shape}" if is_array(tokens) else type(tokens).__name__
        raise TypeError(f"tokens must be integers of shape (batch, seq), got {got}")
    length = seen + tokens.shape[1]
    if length > config.context:
        raise ValueError(f"the context holds {config.context} tokens, got a sequence of {length}")
    if type(tokens) is np.ndarray:
        check_ids(tokens, config.vocab)


def check_ids(ids: Array, vocab: int) -> None:
    """Raise ValueError unless all these token ids, which are on the host, lie in [0, vocab)."""
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"token ids must lie in 0..{vocab - 1}, got {wrong}")


def ids_for(model: Any, ids: Array) -> Array:
    """Token ids of the host where the model is. They are checked before they move: a device would wrap wrong ones."""
    if not on_device(model.positions.W) or on_device(ids):
        return ids
    check_ids(ids, model.config.vocab)
    return to_device(ids, "gpu")


def batch_for(model: Any, batch: Any) -> Any:
    """A batch of the host where the model is, its ids checked; one that is there already is passed on."""
    if not on_device(model.positions.W) or on_device(batch.tokens):
        return batch
    check_ids(batch.tokens, model.config.vocab)
    check_ids(batch.targets, model.config.vocab)
    return to_device(batch, "gpu")


def language_model_loss(model: Any, batch: Any) -> Any:
    r"""The masked language-modelling loss of a batch, in nats per trained token; Hu et al. 2021, equation 2.

    batch has tokens and targets (batch, seq) and weights (batch, seq) that sum to 1 over the whole batch. Raises
    TypeError when a part of it is not on the device of the model.
    """
    return model.loss(batch.tokens, batch.targets, batch.weights)


def initialize(config: TransformerConfig, rng: np.random.Generator, dtype: npt.DTypeLike = np.float32) -> Transformer:
    r"""A fresh model: weights N(0, 0.02²), those that write to the residual stream N(0, 0.02²/2L), biases zero.

    Source: Radford et al. 2019, section 2.3, for the factor 1/√(2L) on the 2L maps that add to the stream.
    """
    d, f = config.d_model, config.d_hidden
    into_stream = 1.0 / math.sqrt(2.0 * config.layers)

    def normal(*shape: int, scale: float = 1.0) -> Array:
        return (0.02 * scale * rng.standard_normal(shape)).astype(dtype)

    def dense(d_out: int, d_in: int, scale: float = 1.0) -> Linear:
        return Linear(normal(d_out, d_in, scale=scale), np.zeros(d_out, dtype))

    def norm() -> LayerNorm:
        return LayerNorm(np.ones(d, dtype), np.zeros(d, dtype))

    def block() -> Block:
        heads = Attention(dense(d, d), dense(d, d), dense(d, d), dense(d, d, into_stream), config.heads, config.causal)
        return Block(norm(), heads, norm(), MLP(dense(f, d), dense(d, f, into_stream)))

    return Transformer(
        config,
        Embedding(normal(config.vocab, d)),
        Embedding(normal(config.context, d)),
        tuple(block() for _ in range(config.layers)),
        norm(),
        None if config.tied else Linear(normal(config.vocab, d)),
    )
