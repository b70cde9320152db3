r"""The modules that a transformer is made of: frozen dataclasses that hold arrays and can be called.

Architectures differ in which of them they take, as the tables at the end say. A block is told h and a `Reading`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .engine.arrays import Array, array_module
from .operations import (
    attention,
    embedding,
    gelu,
    gelu_exact,
    layer_norm,
    linear,
    pool,
    rms_norm,
    rotary,
    silu_gate,
    tanh,
)
from .operations.rotary import UNSCALED, rotary_tables
from .parameters import outline


@dataclass(frozen=True)
class Linear:
    r"""$y = W x + b$, with W (d_out, d_in) and b (d_out,) or None."""

    W: Array
    b: Array | None = None

    __repr__ = outline

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

    __repr__ = outline

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

    __repr__ = outline

    def __call__(self, x: Array) -> Array:
        return layer_norm(x, self.gamma, self.beta, self.eps)


@dataclass(frozen=True)
class RMSNorm:
    """Unit mean square over the last axis, then gain gamma (d,)."""

    gamma: Array
    eps: float = 1e-5

    __repr__ = outline

    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.gamma, self.eps)


@dataclass(frozen=True)
class Rotary:
    """Positions that turn queries and keys and add nothing to tokens. It holds no array: they are not learned."""

    d_head: int
    theta: float = 1e4
    rope: tuple[float, float, float, int] = UNSCALED

    __repr__ = outline

    def tables(self, seen: Any, seq: int, like: Array) -> tuple[Array, Array]:
        """cos and sin (seq, d_head / 2) of the positions behind `seen`, in the precision and the place of `like`;
        (batch, seq, d_head / 2) where each sequence has seen its own number of them, (batch, 1)."""
        end = longest(seen) + seq
        cos, sin = _tables(1 << (end - 1).bit_length(), self.d_head, self.theta, like.dtype, self.rope)
        at = slice(seen, end) if isinstance(seen, int) else places(seen, seq)
        asarray = array_module(like).asarray
        return asarray(cos[at]), asarray(sin[at])


def longest(seen: Any) -> int:
    """How many tokens the longest sequence has seen."""
    return seen if isinstance(seen, int) else int(seen.max())


def places(seen: Any, seq: int, xp: Any = np) -> Array:
    """The positions of `seq` tokens behind `seen`: (seq,); (batch, seq) where that is (batch, 1), a number for each."""
    array: Array = xp.arange(seen, seen + seq) if isinstance(seen, int) else xp.asarray(seen + np.arange(seq))
    return array


@functools.lru_cache(maxsize=8)
def _tables(length: int, d_head: int, theta: float, dtype: np.dtype[Any], rope: Any) -> tuple[Array, Array]:
    """Those of all positions below a power of two: a text that grows by one token finds them made."""
    return rotary_tables(np.arange(length), d_head, theta, dtype, rope)


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
    cache   what this block has seen before them           tables  cos and sin of their positions where they are rotary
    """

    tokens: Array
    mask: Array | None = None
    cache: Cache | None = None
    tables: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class Attention:
    """Multi-head self-attention: four linear maps around the `attention` operation.

    Keys and values may have fewer heads than queries, and positions may turn both.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int
    causal: bool = True

    __repr__ = outline

    def __call__(self, x: Array, reading: Reading) -> Array:
        return self.attend(self.queries(x, reading), *self.keys_and_values(x, reading), reading.mask)

    def queries(self, x: Array, reading: Reading) -> Array:
        """Those of x, turned by their positions where these are rotary."""
        q = self.query(x)
        return q if reading.tables is None else rotary(q, *reading.tables)

    def keys_and_values(self, x: Array, reading: Reading) -> tuple[Array, Array]:
        """Those of x, behind those that the cache holds."""
        k, v = self.key(x), self.value(x)
        k = k if reading.tables is None else rotary(k, *reading.tables)
        return (k, v) if reading.cache is None else reading.cache.extend(k, v)

    def attend(self, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        """What the queries find among these keys and values, through the output map."""
        return self.output(attention(q, k, v, self.heads, self.causal, mask))


@dataclass(frozen=True)
class MLP:
    """Two linear maps with a GELU between them."""

    up: Linear
    down: Linear

    __repr__ = outline

    def __call__(self, x: Array) -> Array:
        return self.down(gelu(self.up(x)))


@dataclass(frozen=True)
class ExactMLP(MLP):
    """Two linear maps with the exact GELU between them."""

    __repr__ = outline

    def __call__(self, x: Array) -> Array:
        return self.down(gelu_exact(self.up(x)))


@dataclass(frozen=True)
class GatedMLP:
    """Three linear maps: one opens the gate for another, the third leads back."""

    gate: Linear
    up: Linear
    down: Linear

    __repr__ = outline

    def __call__(self, x: Array) -> Array:
        return self.down(silu_gate(self.gate(x), self.up(x)))


@dataclass(frozen=True)
class Block:
    """One layer of the transformer, equation (M1): the norm before each step, as in GPT-2 and Llama."""

    attention_norm: LayerNorm | RMSNorm
    attention: Attention
    mlp_norm: LayerNorm | RMSNorm
    mlp: MLP | GatedMLP

    __repr__ = outline

    def attended(self, h: Array) -> Array:
        """What attention reads of the stream."""
        return self.attention_norm(h)

    def __call__(self, h: Array, reading: Reading) -> Array:
        attended = h + self.attention(self.attention_norm(h), reading)
        return attended + self.mlp(self.mlp_norm(attended))


@dataclass(frozen=True)
class PostBlock(Block):
    """One layer of BERT, equation (M2): the norm after each sum."""

    __repr__ = outline

    def attended(self, h: Array) -> Array:
        return h

    def __call__(self, h: Array, reading: Reading) -> Array:
        attended = self.attention_norm(h + self.attention(h, reading))
        return self.mlp_norm(attended + self.mlp(attended))


@dataclass(frozen=True)
class ClassificationHead:
    """A row of logits from one state a sequence, behind a map with tanh where there is one.

    (batch, seq, d), and a mask (batch, seq) that is True where a token is real → (batch, 1, classes)
    """

    pooler: Linear | None
    output: Linear
    reads: str = "first"

    __repr__ = outline

    def __call__(self, h: Array, mask: Array | None = None) -> Array:
        state = pool(h, shares(self.reads, h, mask))
        return self.output(state if self.pooler is None else tanh(self.pooler(state)))


def shares(reads: str, h: Array, mask: Array | None) -> Array:
    """The weights (batch, seq) of the positions in (P1): all on the first or last real one, or 1/n on each of n."""
    xp = array_module(h)
    real = xp.ones(h.shape[:2], h.dtype) if mask is None else xp.asarray(mask).astype(h.dtype)
    if reads == "mean":
        return real / real.sum(axis=1, keepdims=True)
    place = 0 if reads == "first" else real.sum(axis=1, keepdims=True) - 1
    return (xp.arange(h.shape[1]) == place).astype(h.dtype) * xp.ones_like(real)


# What the rows of `config.ARCHITECTURES` name.
NORMS: dict[str, Any] = {"layer": LayerNorm, "rms": RMSNorm}
MLPS: dict[str, Any] = {"gelu": MLP, "gelu, exact": ExactMLP, "swiglu": GatedMLP}
BLOCKS: dict[bool, type[Block]] = {False: Block, True: PostBlock}
