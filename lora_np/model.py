r"""The transformer: frozen dataclasses that hold arrays and can be called.

    tokens (batch, seq) → h (batch, seq, d_model) → logits (batch, seq, vocab)

Each block is pre-norm, as in GPT-2 (Radford et al. 2019, section 2.3) and Llama, or post-norm, as in BERT (Vaswani et
al. 2017, section 3.1):

$$h \leftarrow h + \mathrm{Attention}(\mathrm{Norm}(h)),\qquad
  h \leftarrow h + \mathrm{MLP}(\mathrm{Norm}(h)) \tag{M1}$$
$$h \leftarrow \mathrm{Norm}(h + \mathrm{Attention}(h)),\qquad
  h \leftarrow \mathrm{Norm}(h + \mathrm{MLP}(h)) \tag{M2}$$

Which modules an architecture takes is a row of `config.ARCHITECTURES`; the modules are in `lora_np.modules`.

Nothing is ever mutated: a changed model is a new one that shares the arrays it did not change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import READS, TransformerConfig
from .engine.arrays import Array, array_module, blank, is_array, is_box, on_device
from .engine.devices import check_together, device_of, to_device
from .engine.differentiation import recomputed
from .modules import (
    BLOCKS,
    MLP,
    MLPS,
    NORMS,
    Attention,
    Block,
    Cache,
    ClassificationHead,
    Embedding,
    LayerNorm,
    Linear,
    Reading,
    RMSNorm,
    Rotary,
    longest,
    places,
)
from .operations import cross_entropy, head_cross_entropy
from .parameters import outline, parameters, walk, with_modules, with_parameters

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "Cache",
    "Embedding",
    "LayerNorm",
    "Linear",
    "Reading",
    "Transformer",
    "beside",
    "check_ids",
    "dropout_mask",
    "head_loss",
    "initialize",
    "language_model_loss",
    "place_of",
    "recomputing",
    "skeleton",
    "with_dropout",
    "with_head",
]


@dataclass(frozen=True)
class Transformer:
    """Token and position embedding, blocks, a last norm, and a head (None: the token table, tied).

    Where norms stand after the sums there is no last one, and one of the embeddings instead, `first_norm`; tokens may
    be of several types, which have embeddings of their own.

        tokens (batch, seq) → h (batch, seq, d_model) → logits (batch, seq, vocab)

    Raises, when it is called, TypeError or ValueError: see there.

    >>> import numpy as np
    >>> from lora_np import TransformerConfig, initialize
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> model = initialize(config, np.random.default_rng(0))
    >>> model(np.array([[1, 2, 3]])).shape
    (1, 3, 11)
    >>> model(np.array([[1, 2, 11]]))
    Traceback (most recent call last):
    ValueError: token ids must lie in 0..10, got 11
    """

    config: TransformerConfig
    tokens: Embedding
    positions: Embedding | Rotary
    blocks: tuple[Block, ...]
    norm: LayerNorm | RMSNorm | None = None
    head: Linear | ClassificationHead | None = None
    types: Embedding | None = None
    first_norm: LayerNorm | RMSNorm | None = None

    __repr__ = outline

    def __call__(
        self,
        tokens: Array,
        mask: Array | None = None,
        caches: tuple[Any, ...] | None = None,
        types: Array | None = None,
    ) -> Array:
        """Logits (batch, seq, vocab) of the token that follows each position; (batch, 1, classes) of a classifier.

        tokens (batch, seq) integers; mask (batch, seq) True where a token is real, None when all are; caches one a
        block, when `tokens` continues what they have seen; types (batch, seq) of the tokens, None when all are 0.
        Raises TypeError or ValueError for tokens that are not integers in [0, vocab), more of them than the context
        holds, types of a model that has none, or a device other than that of the model.
        """
        h = self.hidden(tokens, mask, caches, types)
        return self.output(h, mask) if isinstance(self.output, ClassificationHead) else self.output(h)

    @property
    def output(self) -> Any:
        """The head: a map of its own, or the token table read the other way."""
        return self.tokens.as_head() if self.head is None else self.head

    def hidden(
        self,
        tokens: Array,
        mask: Array | None = None,
        caches: tuple[Any, ...] | None = None,
        types: Array | None = None,
        *,
        through: Callable[[Any, Array, Reading], Array] = lambda block, h, reading: block(h, reading),
    ) -> Array:
        """The normalised residual stream before the head, (batch, seq, d_model); `through` applies a block to it."""
        seen = caches[0].length if caches else 0
        _check_tokens(tokens, seen, self)
        _check_types(types, tokens, self)
        place = place_of(self)
        check_together(model=place, tokens=tokens, mask=mask, caches=caches[0].keys if caches else None)
        h, tables = self._embedded(tokens, seen, types), None
        if isinstance(self.positions, Rotary):
            tables = self.positions.tables(seen, tokens.shape[1], place)
        for i, block in enumerate(self.blocks):
            h = through(block, h, Reading(tokens, mask, caches[i] if caches else None, tables))
        return h if self.norm is None else self.norm(h)

    def _embedded(self, tokens: Array, seen: Any, types: Array | None) -> Array:
        """What the first block reads: (batch, seq, d_model)."""
        h = self.tokens(tokens)
        if not isinstance(self.positions, Rotary):
            h = h + self.positions(places(seen, tokens.shape[1], array_module(tokens)))
        if self.types is not None:
            h = h + self.types(array_module(tokens).zeros_like(tokens) if types is None else types)
        return h if self.first_norm is None else self.first_norm(h)

    def caches(self, room: int | None = None) -> tuple[Cache, ...]:
        """Empty caches, one a block, each for so many tokens, or the whole context."""
        return tuple(Cache(room or self.config.context) for _ in self.blocks)


def with_head(
    model: Transformer,
    labels: int | tuple[str, ...],
    reads: str = "first",
    rng: np.random.Generator | None = None,
    pooler: Mapping[str, Array] | None = None,
) -> Transformer:
    """The model with a fresh head of so many classes, or of these labels, in the place of the one that it has.

    It is drawn by rng, blank without; a pooler is as given, if it is. Of an untied head nothing is left.
    """
    classes, names = (labels, ()) if isinstance(labels, int) else (len(labels), labels)
    config = replace(model.config, classes=classes, labels=names, reads=reads, tied=True)
    small, place = replace(config, vocab=1, layers=1, context=1, d_ff=1), place_of(model)
    head = (skeleton(small, place.dtype) if rng is None else initialize(small, rng, place.dtype)).head
    placed = to_device(with_parameters(head, pooler or {}), device_of(place))
    return replace(model, config=config, head=placed)


def recomputing(block: Block, h: Array, reading: Reading) -> Array:
    """block(h, reading), of which backward keeps the input only and evaluates it once more: less memory, more time.

    Its generators are copied as they stand now. Source: Chen et al. 2016, arXiv:1604.06174.
    """
    modules = {path: node for path, node in walk(block) if getattr(node, "generator", None) is not None}
    generators = {f"{path}.generator": module.generator for path, module in modules.items()}
    same = iter((block, with_modules(block, copy.deepcopy(generators)) if generators else block))
    boxed = {path: array for path, array in parameters(block).items() if is_box(array)}
    return recomputed(lambda arrays, h: with_parameters(next(same), arrays)(h, reading), boxed, h)


def _check_tokens(tokens: Array, seen: Any, model: Transformer) -> None:
    if not (is_array(tokens) and tokens.ndim == 2 and tokens.dtype.kind in "iu" and tokens.size):
        got = f"{tokens.dtype} {tokens.shape}" if is_array(tokens) else type(tokens).__name__
        raise TypeError(f"tokens must be integers of shape (batch, seq), got {got}")
    length = longest(seen) + tokens.shape[1]
    if length > model.config.context:
        raise ValueError(f"the context holds {model.config.context} tokens, got a sequence of {length}")
    check_ids(tokens, model.tokens.words)


def _check_types(types: Array | None, tokens: Array, model: Transformer) -> None:
    if types is None:
        return
    if model.types is None:
        raise ValueError("this model has no types of tokens: leave them out")
    if not (is_array(types) and types.dtype.kind in "iu" and types.shape == tokens.shape):
        raise ValueError(f"types must be integers of the shape of tokens, {tokens.shape}, got {np.shape(types)}")
    check_ids(types, model.types.words)


def check_ids(ids: Array, words: int) -> None:
    """Raise ValueError unless these token ids lie in [0, words); those on a device were checked before they moved."""
    if type(ids) is np.ndarray and ids.size and not 0 <= ids.min() <= ids.max() < words:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"token ids must lie in 0..{words - 1}, got {wrong}")


def place_of(model: Any) -> Array:
    """An array of the model, to see where it lives: of the token table where it has one, which is found at once."""
    table = getattr(model, "tokens", model)
    array: Any = getattr(table, "W", None)
    if is_array(array):
        return array
    return next(node for _, node in walk(table) if is_array(node))


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


def language_model_loss(
    model: Any, batch: Any, mask: Array | None = None, types: Array | None = None, *, recompute: bool = False
) -> Any:
    r"""The masked language-modelling loss of a batch, in nats per trained token; Hu et al. 2021, equation 2.

    batch has tokens and targets (batch, seq) and weights (batch, seq) that sum to 1 over the whole batch; mask (batch,
    seq) is True where a token is real, None when all are; `recompute` keeps only the input of each block for backward.
    Of a model that classifies, targets and weights are (batch, 1). Without mask and types those of the batch, if it has
    any. Raises TypeError when a part of it is not on the
    device of the model, ValueError for a target outside [0, vocab) or [0, classes).

    $$L = \sum_t w_t\,\big(\log\sum_v e^{x_{tv}} - x_{t,\mathrm{target}_t}\big),\qquad \sum_t w_t = 1$$

    >>> import numpy as np
    >>> from lora_np import TransformerConfig, initialize, language_model_loss
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> model = initialize(config, np.random.default_rng(0))
    >>> from lora_np.tasks.batches import collate, Sequence
    >>> sequences = [Sequence(np.array([0, 1, 2, 3, 0]), n_prompt=2), Sequence(np.array([0, 4, 5, 0]), n_prompt=1)]
    >>> batch = collate(sequences, end=0)
    >>> batch.tokens.shape, batch.tokens_trained
    ((2, 4), 6)
    >>> abs(float(language_model_loss(model, batch)) - float(np.log(11))) < 0.1  # a fresh model knows nothing
    True
    """
    mask = getattr(batch, "mask", None) if mask is None else mask
    types = getattr(batch, "types", None) if types is None else types
    check_together(model=place_of(model), targets=batch.targets, weights=batch.weights)
    check_ids(batch.targets, model.config.outcomes)
    through = {"through": recomputing} if recompute else {}
    h = model.hidden(batch.tokens, mask, types=types, **through)
    return head_loss(model.output, h, batch.targets, batch.weights, mask)


def head_loss(head: Any, h: Array, targets: Array, weights: Array, mask: Array | None = None) -> Any:
    """The cross-entropy of head(h), whose logits are not made whole where the head is one matrix and nothing else."""
    if isinstance(head, ClassificationHead):
        return cross_entropy(head(h, mask), targets, weights)
    if isinstance(head, Linear) and head.b is None:
        return head_cross_entropy(h, head.W, targets, weights)
    return cross_entropy(head(h), targets, weights)


def initialize(config: TransformerConfig, rng: np.random.Generator, dtype: npt.DTypeLike = np.float32) -> Transformer:
    r"""A fresh model: weights N(0, 0.02²), those that write to the residual stream N(0, 0.02²/2L), biases zero.

    Source: Radford et al. 2019, section 2.3, for the factor 1/√(2L) on the 2L maps that add to the stream.

    A linear map has W (d_out, d_in) and b (d_out,), the token table (vocab, d_model). Raises nothing of its own: the
    sizes were checked when `config` was made.

    >>> import numpy as np
    >>> from lora_np import TransformerConfig, initialize, parameters
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> model = initialize(config, np.random.default_rng(0))
    >>> {path: array.shape for path, array in parameters(model, "blocks.0.mlp.up.*").items()}
    {'blocks.0.mlp.up.W': (32, 8), 'blocks.0.mlp.up.b': (32,)}
    """

    def drawn(scale: float, *shape: int) -> Array:
        return (0.02 * scale * rng.standard_normal(shape)).astype(dtype)

    return _built(config, drawn, lambda value, *shape: np.full(shape, value, dtype))


def skeleton(config: TransformerConfig, dtype: npt.DTypeLike = np.float32) -> Transformer:
    """A model of these sizes that holds no numbers: every array is one zero, seen everywhere. For what needs shapes."""
    return _built(config, lambda _, *shape: blank(shape, dtype), lambda _, *shape: blank(shape, dtype))


def _built(config: TransformerConfig, drawn: Callable[..., Array], constant: Callable[..., Array]) -> Transformer:
    """The tree of modules: weights by drawn(scale, *shape), biases, gains and shifts by constant(value, *shape)."""
    d, q, k, f = config.d_model, config.d_queries, config.d_keys, config.d_hidden
    kind = config.kind
    into_stream = 1.0 / math.sqrt(2.0 * config.layers)

    def dense(name: str, d_out: int, d_in: int, scale: float = 1.0) -> Linear:
        return Linear(drawn(scale, d_out, d_in), constant(0.0, d_out) if name in kind.biases else None)

    def norm() -> Any:
        gains = (1.0, 0.0)[: 2 if kind.norm == "layer" else 1]
        return NORMS[kind.norm](*(constant(value, d) for value in gains), config.eps)

    def block() -> Block:
        maps = (dense("query", q, d), dense("key", k, d), dense("value", k, d), dense("output", d, q, into_stream))
        gate = (dense("gate", f, d),) if kind.mlp == "swiglu" else ()
        mlp = MLPS[kind.mlp](*gate, dense("up", f, d), dense("down", d, f, into_stream))
        return BLOCKS[kind.post](norm(), Attention(*maps, config.heads, config.causal), norm(), mlp)

    def table(words: int) -> Embedding:
        return Embedding(drawn(1.0, words, d))

    return Transformer(
        config,
        table(config.vocab),
        Rotary(config.d_head, config.theta, config.rope) if kind.positions == "rotary" else table(config.context),
        tuple(block() for _ in range(config.layers)),
        None if kind.post else norm(),
        _head(config, drawn, constant),
        table(config.types) if config.types else None,
        norm() if kind.post else None,
    )


def _head(config: TransformerConfig, drawn: Callable[..., Array], constant: Callable[..., Array]) -> Any:
    """None where the token table is the head."""
    d, classes = config.d_model, config.classes
    if classes:
        pooler = Linear(drawn(1.0, d, d), constant(0.0, d)) if READS[config.reads] else None
        return ClassificationHead(pooler, Linear(drawn(1.0, classes, d), constant(0.0, classes)), config.reads)
    return None if config.tied else Linear(drawn(1.0, config.vocab, d))
