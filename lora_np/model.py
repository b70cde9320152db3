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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .arrays import Array, array_module, blank, is_array, is_box, on_device
from .config import TransformerConfig
from .devices import check_together, to_device
from .differentiation import recomputed
from .operations import attention, cross_entropy, embedding, gelu, head_cross_entropy, layer_norm, linear
from .parameters import parameters, walk, with_modules, with_parameters


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


@dataclass(frozen=True)
class Embedding:
    """Row t of W (vocab, d_model) for token t; read the other way, a tied head."""

    W: Array

    def __call__(self, tokens: Array) -> Array:
        return embedding(tokens, self.W)

    @property
    def words(self) -> int:
        """How many tokens have a row."""
        return int(self.W.shape[0])

    def as_head(self) -> Linear:
        """The map from h (..., d_model) to its product with every row: logits (..., vocab)."""
        return Linear(self.W)


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
    """Keys and values of the positions that one attention layer has seen: (batch, room, width), `length` of them
    filled; made when the first arrive. The only thing here that changes in place; see `lora_np.generation`."""

    room: int
    keys: Array | None = None
    values: Array | None = None
    length: int = 0

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Append k and v (batch, new, width); give back all keys and all values so far."""
        if self.keys is None or self.values is None:
            empty, shape = array_module(k).empty, (k.shape[0], self.room, k.shape[2])
            self.keys, self.values = empty(shape, dtype=k.dtype), empty(shape, dtype=k.dtype)
        stop = self.length + k.shape[1]
        self.keys[:, self.length : stop] = k
        self.values[:, self.length : stop] = v
        self.length = stop
        return self.keys[:, :stop], self.values[:, :stop]


class Reading(NamedTuple):
    """What a block is told beside h.

    tokens  (batch, seq), those that are read now        mask   (batch, seq), True where a token is real; None: all are
    cache   what this block has seen before them
    """

    tokens: Array
    mask: Array | None = None
    cache: Cache | None = None


@dataclass(frozen=True)
class Attention:
    """Multi-head self-attention: four linear maps around the `attention` operation."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int
    causal: bool = True

    def __call__(self, x: Array, reading: Reading) -> Array:
        return self.attend(self.query(x), *self.keys_and_values(x, reading.cache), reading.mask)

    def keys_and_values(self, x: Array, cache: Cache | None) -> tuple[Array, Array]:
        """Those of x, behind those that the cache holds."""
        k, v = self.key(x), self.value(x)
        return (k, v) if cache is None else cache.extend(k, v)

    def attend(self, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        """What the queries find among these keys and values, through the output map."""
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

    def __call__(self, h: Array, reading: Reading) -> Array:
        attended = h + self.attention(self.attention_norm(h), reading)
        return attended + self.mlp(self.mlp_norm(attended))


@dataclass(frozen=True)
class Transformer:
    """Token and position embedding, blocks, a last layer norm, and a head (None: the token table, tied)."""

    config: TransformerConfig
    tokens: Embedding
    positions: Embedding
    blocks: tuple[Block, ...]
    norm: LayerNorm
    head: Linear | None = None

    def __call__(self, tokens: Array, mask: Array | None = None, caches: tuple[Cache, ...] | None = None) -> Array:
        """Logits (batch, seq, vocab) of the token that follows each position.

        tokens (batch, seq) integers; mask (batch, seq) True where a token is real, None when all are; caches one a
        block, when `tokens` continues what they have seen. Raises TypeError or ValueError for tokens that are not
        integers in [0, vocab), more of them than the context holds, or a device other than that of the model.
        """
        return self.output(self.hidden(tokens, mask, caches))

    @property
    def output(self) -> Any:
        """The head: a map of its own, or the token table read the other way."""
        return self.tokens.as_head() if self.head is None else self.head

    def hidden(
        self,
        tokens: Array,
        mask: Array | None = None,
        caches: tuple[Cache, ...] | None = None,
        through: Callable[[Any, Array, Reading], Array] = lambda block, h, reading: block(h, reading),
    ) -> Array:
        """The normalised residual stream before the head, (batch, seq, d_model); `through` applies a block to it."""
        seen = caches[0].length if caches else 0
        _check_tokens(tokens, seen, self)
        check_together(model=place_of(self), tokens=tokens, mask=mask, caches=caches[0].keys if caches else None)
        places = array_module(tokens).arange(seen, seen + tokens.shape[1])
        h = self.tokens(tokens) + self.positions(places)
        for i, block in enumerate(self.blocks):
            h = through(block, h, Reading(tokens, mask, caches[i] if caches else None))
        return self.norm(h)

    def caches(self) -> tuple[Cache, ...]:
        """Empty caches, one a block, each for the whole context."""
        return tuple(Cache(self.config.context) for _ in self.blocks)


def recomputing(block: Block, h: Array, reading: Reading) -> Array:
    """block(h, reading), of which backward keeps the input only and evaluates it once more: less memory, more time.

    Its generators are copied as they stand now. Source: Chen et al. 2016, arXiv:1604.06174.
    """
    modules = {path: node for path, node in walk(block) if getattr(node, "generator", None) is not None}
    generators = {f"{path}.generator": module.generator for path, module in modules.items()}
    same = iter((block, with_modules(block, copy.deepcopy(generators)) if generators else block))
    boxed = {path: array for path, array in parameters(block).items() if is_box(array)}
    return recomputed(lambda arrays, h: with_parameters(next(same), arrays)(h, reading), boxed, h)


def _check_tokens(tokens: Array, seen: int, model: Transformer) -> None:
    if not (is_array(tokens) and tokens.ndim == 2 and tokens.dtype.kind in "iu" and tokens.size):
        got = f"{tokens.dtype} {tokens.shape}" if is_array(tokens) else type(tokens).__name__
        raise TypeError(f"tokens must be integers of shape (batch, seq), got {got}")
    length = seen + tokens.shape[1]
    if length > model.config.context:
        raise ValueError(f"the context holds {model.config.context} tokens, got a sequence of {length}")
    check_ids(tokens, model.tokens.words)


def check_ids(ids: Array, words: int) -> None:
    """Raise ValueError unless these token ids lie in [0, words); those on a device were checked before they moved."""
    if type(ids) is np.ndarray and ids.size and not 0 <= ids.min() <= ids.max() < words:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"token ids must lie in 0..{words - 1}, got {wrong}")


def place_of(model: Any) -> Array:
    """An array of the model, to see where it lives."""
    return next(node for _, node in walk(model) if is_array(node))


def beside(model: Any, thing: Any) -> Any:
    """Token ids, or a batch of them, where the model is. Ids that move are checked: a device would wrap wrong ones."""
    if not on_device(place_of(model)):
        return thing
    for _, node in walk(thing):
        if is_array(node) and node.dtype.kind in "iu":
            check_ids(node, model.tokens.words)
    return to_device(thing, "gpu")


def with_dropout(model: Any, rng: np.random.Generator) -> Any:
    """The model as it trains: every part that drops entries draws from `rng` which, in the order of the layers."""
    dropping = [path for path, node in walk(model) if hasattr(node, "generator") and node.dropout]
    return with_modules(model, {f"{path}.generator" if path else "generator": rng for path in dropping})


def dropout_mask(rng: np.random.Generator, x: Array, probability: float) -> Array:
    """0 with the given probability, else 1/(1−p), so that the expected value of mask·x is x; drawn on the host."""
    keep = rng.random(x.shape, dtype=np.float32) >= probability
    return array_module(x).asarray((keep / (1.0 - probability)).astype(x.dtype))


def language_model_loss(model: Any, batch: Any, mask: Array | None = None, *, recompute: bool = False) -> Any:
    r"""The masked language-modelling loss of a batch, in nats per trained token; Hu et al. 2021, equation 2.

    batch has tokens and targets (batch, seq) and weights (batch, seq) that sum to 1 over the whole batch; mask (batch,
    seq) is True where a token is real, None when all are; `recompute` keeps only the input of each block for backward.
    Raises TypeError when a part of it is not on the device of the model, ValueError for a target outside [0, vocab).
    """
    check_together(model=place_of(model), targets=batch.targets, weights=batch.weights)
    check_ids(batch.targets, model.config.vocab)
    h = model.hidden(batch.tokens, mask, through=recomputing) if recompute else model.hidden(batch.tokens, mask)
    return head_loss(model.output, h, batch.targets, batch.weights)


def head_loss(head: Any, h: Array, targets: Array, weights: Array) -> Any:
    """The cross-entropy of head(h), whose logits are not made whole where the head is one matrix and nothing else."""
    if isinstance(head, Linear) and head.b is None:
        return head_cross_entropy(h, head.W, targets, weights)
    return cross_entropy(head(h), targets, weights)


def initialize(config: TransformerConfig, rng: np.random.Generator, dtype: npt.DTypeLike = np.float32) -> Transformer:
    r"""A fresh model: weights N(0, 0.02²), those that write to the residual stream N(0, 0.02²/2L), biases zero.

    Source: Radford et al. 2019, section 2.3, for the factor 1/√(2L) on the 2L maps that add to the stream.
    """

    def drawn(scale: float, *shape: int) -> Array:
        return (0.02 * scale * rng.standard_normal(shape)).astype(dtype)

    return _built(config, drawn, lambda value, *shape: np.full(shape, value, dtype))


def skeleton(config: TransformerConfig, dtype: npt.DTypeLike = np.float32) -> Transformer:
    """A model of these sizes that holds no numbers: every array is one zero, seen everywhere. For what needs shapes."""
    return _built(config, lambda _, *shape: blank(shape, dtype), lambda _, *shape: blank(shape, dtype))


def _built(config: TransformerConfig, drawn: Callable[..., Array], constant: Callable[..., Array]) -> Transformer:
    """The tree of modules: weights by drawn(scale, *shape), biases, gains and shifts by constant(value, *shape)."""
    d, f = config.d_model, config.d_hidden
    into_stream = 1.0 / math.sqrt(2.0 * config.layers)

    def dense(d_out: int, d_in: int, scale: float = 1.0) -> Linear:
        return Linear(drawn(scale, d_out, d_in), constant(0.0, d_out))

    def norm() -> LayerNorm:
        return LayerNorm(constant(1.0, d), constant(0.0, d))

    def block() -> Block:
        heads = Attention(dense(d, d), dense(d, d), dense(d, d), dense(d, d, into_stream), config.heads, config.causal)
        return Block(norm(), heads, norm(), MLP(dense(f, d), dense(d, f, into_stream)))

    return Transformer(
        config,
        Embedding(drawn(1.0, config.vocab, d)),
        Embedding(drawn(1.0, config.context, d)),
        tuple(block() for _ in range(config.layers)),
        norm(),
        None if config.tied else Linear(drawn(1.0, config.vocab, d)),
    )
