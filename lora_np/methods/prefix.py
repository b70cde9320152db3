r"""Prefixes: rows that are learned and that the model reads as if they had been written.

    prefix-embedding   l_p special tokens before the prompt and l_i behind it, each with a learned embedding
    prefix-layer       the same places, but what stands there is learned anew before every block
    prefix-kv          l learned keys and values before those of the text, in every attention

With l = l_p + l_i these train

$$|\Theta| = d\,l \tag{C15}\qquad |\Theta| = L\,d\,l \tag{C16}\qquad |\Theta| = 2\,L\,d\,l \tag{C17}$$

numbers. The first two take l places of the context from the text; the third takes none, since its keys have no place.
All three make every attention wider by l keys. They start from words of the vocabulary, drawn at random, and what the
base makes of them: near what the model knows. There is no plain module that computes the same, so a prefix stays.

Special tokens have ids from vocab on. No word is ever predicted to be one: the head knows the vocabulary only.

Sources: Hu et al. 2021, arXiv:2106.09685, section 5.1 (prefix-embedding and prefix-layer tuning, prefix and infix),
appendix E (with LoRA); Li and Liang 2021, arXiv:2101.00190, section 4 (keys and values).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import TransformerConfig
from ..engine.arrays import Array, array_module, blank, is_blank
from ..method import Method, whole
from ..model import Attention, Block, Embedding, Reading, place_of
from ..operations import prepended, replaced_rows
from ..parameters import Arrays, outline, parameters, with_modules
from .lora import LoraConfig


@dataclass(frozen=True)
class SpecialEmbedding:
    """A token table, and beside it the learned rows of special tokens: special (l, d), for ids from vocab on (P1)."""

    base: Embedding
    special: Array

    __repr__ = outline

    def __call__(self, tokens: Array) -> Array:
        return replaced_rows(_words(self.base, tokens), self.special, tokens, self.base.words)

    @property
    def words(self) -> int:
        """How many tokens have a row, the special ones among them."""
        return self.base.words + len(self.special)

    def as_head(self) -> Any:
        return self.base.as_head()


@dataclass(frozen=True)
class Admitting:
    """A token table that reads `count` special ids as its first word: what stands there is replaced later."""

    base: Embedding
    count: int

    __repr__ = outline

    def __call__(self, tokens: Array) -> Array:
        return _words(self.base, tokens)

    @property
    def words(self) -> int:
        return self.base.words + self.count

    def as_head(self) -> Any:
        return self.base.as_head()


@dataclass(frozen=True)
class SpecialBlock:
    """A block that meets learned rows, special (l, d), wherever a special token stands (P1)."""

    base: Block
    special: Array
    words: int

    __repr__ = outline

    def __call__(self, h: Array, reading: Reading) -> Array:
        return self.base(replaced_rows(h, self.special, reading.tokens, self.words), reading)


@dataclass(frozen=True)
class PrefixedAttention:
    """Attention whose every query also sees learned keys and values (l, width), before all others (P4)."""

    base: Attention
    keys: Array
    values: Array

    __repr__ = outline

    def __call__(self, x: Array, reading: Reading) -> Array:
        k, v = self.base.keys_and_values(x, reading)
        mask = reading.mask
        if mask is not None:
            xp = array_module(mask)
            mask = xp.concatenate([xp.ones((len(mask), len(self.keys)), bool), mask], axis=1)
        return self.base.attend(self.base.queries(x, reading), prepended(self.keys, k), prepended(self.values, v), mask)


@dataclass(frozen=True)
class _Prefix(Method):
    """What the prefixes of tokens have in common: how many, and where they stand.

    prefix   l_p, special tokens before the prompt        infix   l_i, behind it and before the reference
    """

    prefix: int = 8
    infix: int = 0

    grows_by = "prefix"

    def __post_init__(self) -> None:
        whole("prefix", self.prefix, least=0)
        whole("infix", self.infix, least=0)
        if not self.positions:
            raise ValueError("prefix and infix are both 0: there is nothing to learn")

    @property
    def positions(self) -> int:  # type: ignore[override]
        return self.prefix + self.infix

    def given(self, prompt: Array, config: TransformerConfig) -> Array:
        """[prefix; prompt; infix]; raises ValueError for an infix where there is no prompt, as in plain text."""
        if self.infix and len(prompt) < 2:
            raise ValueError("an infix stands behind a prompt, and this text has none: take infix=0")
        ids = np.arange(config.vocab, config.vocab + self.positions)
        return np.concatenate([ids[: self.prefix], prompt, ids[self.prefix :]])

    def _fitting(self, config: TransformerConfig) -> int:
        """How many places it takes; raises ValueError when that leaves no room for a prompt and a reference, or the
        model reads no prompts."""
        if config.classes:
            raise ValueError(
                "special tokens stand around a prompt, and a model that classifies reads none: choose prefix-kv"
            )
        if self.positions > config.context - 2:
            raise ValueError(
                f"prefix and infix must leave 2 of the {config.context} places of the context, got {self.positions}"
            )
        return self.positions

    def multiply_adds(self, config: TransformerConfig) -> int:
        """Every token meets l more keys and l more values in every block."""
        return 2 * config.layers * config.d_model * self.positions


@dataclass(frozen=True)
class PrefixEmbedding(_Prefix):
    """Special tokens with learned embeddings."""

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        length, table = self._fitting(model.config), model.tokens
        drawn = _drawn_words(model, length, rng)
        special = blank((length, model.config.d_model), table.W.dtype) if drawn is None else table.W[drawn]
        return with_modules(model, {"tokens": SpecialEmbedding(table, special)})

    def trained(self, model: Any) -> Arrays:
        return parameters(model, "tokens.special")

    def numbers(self, config: TransformerConfig) -> int:
        return config.d_model * self._fitting(config)


@dataclass(frozen=True)
class PrefixLayer(_Prefix):
    """Special tokens whose activations are learned before every block."""

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        length = self._fitting(model.config)
        streams = _streams(model, length, rng)
        blocks = {
            f"blocks.{i}": SpecialBlock(block, streams[i], model.config.vocab) for i, block in enumerate(model.blocks)
        }
        return with_modules(model, {"tokens": Admitting(model.tokens, length), **blocks})

    def trained(self, model: Any) -> Arrays:
        return parameters(model, "blocks.*.special")

    def numbers(self, config: TransformerConfig) -> int:
        return config.layers * config.d_model * self._fitting(config)


@dataclass(frozen=True)
class PrefixKeysValues(Method):
    """Learned keys and values in every attention, `length` of each."""

    length: int = 8

    grows_by = "length"

    def __post_init__(self) -> None:
        whole("length", self.length)

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        streams = _streams(model, min(self.length, model.config.context), rng)
        return with_modules(
            model,
            {f"blocks.{i}.attention": self._beside(block, streams[i]) for i, block in enumerate(model.blocks)},
        )

    def trained(self, model: Any) -> Arrays:
        return parameters(model, "*.attention.keys", "*.attention.values")

    def numbers(self, config: TransformerConfig) -> int:
        return 2 * config.layers * config.d_keys * self.length

    def multiply_adds(self, config: TransformerConfig) -> int:
        return 2 * config.layers * config.d_model * self.length

    def _beside(self, block: Block, stream: Array) -> PrefixedAttention:
        """The keys and values that the block makes of words; over again where more are asked for than fit."""
        x, attention = block.attended(stream), block.attention
        again = np.arange(self.length) % len(stream)
        if is_blank(stream):
            width = attention.key.W.shape[0]
            return PrefixedAttention(attention, *(blank((self.length, width), stream.dtype) for _ in "kv"))
        return PrefixedAttention(attention, attention.key(x)[again], attention.value(x)[again])


@dataclass(frozen=True)
class _LoraPrefix(_Prefix):
    """LoRA and a prefix together; Hu et al. 2021, appendix E.

    rank, alpha, targets   as in `LoraConfig`
    """

    rank: int = 4
    alpha: float = 8.0
    targets: str | tuple[str, ...] = "qv"

    grows_by = "rank"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()

    def parts(self) -> tuple[_Prefix, LoraConfig]:
        raise NotImplementedError

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        for part in self.parts():
            model = part.apply(model, rng)
        return model

    def trained(self, model: Any) -> Arrays:
        return {name: array for part in self.parts() for name, array in part.trained(model).items()}

    def numbers(self, config: TransformerConfig) -> int:
        return sum(part.numbers(config) for part in self.parts())

    def multiply_adds(self, config: TransformerConfig) -> int:
        return sum(part.multiply_adds(config) for part in self.parts())


@dataclass(frozen=True)
class LoraPrefixEmbedding(_LoraPrefix):
    """LoRA and prefix-embedding tuning, "LoRA+PE"."""

    def parts(self) -> tuple[_Prefix, LoraConfig]:
        return PrefixEmbedding(self.prefix, self.infix), LoraConfig(self.rank, self.alpha, self.targets)


@dataclass(frozen=True)
class LoraPrefixLayer(_LoraPrefix):
    """LoRA and prefix-layer tuning, "LoRA+PL"."""

    def parts(self) -> tuple[_Prefix, LoraConfig]:
        return PrefixLayer(self.prefix, self.infix), LoraConfig(self.rank, self.alpha, self.targets)


def _words(table: Embedding, tokens: Array) -> Array:
    """The rows of the vocabulary, with that of the first word wherever a special token stands."""
    return table(array_module(tokens).where(tokens < table.words, tokens, tokens * 0))


def _drawn_words(model: Any, length: int, rng: np.random.Generator | None) -> Array | None:
    return None if rng is None else rng.integers(0, model.config.vocab, length)


def _streams(model: Any, length: int, rng: np.random.Generator | None) -> list[Array]:
    """What stands before each block where random words are read: (length, d_model) for every block."""
    words = _drawn_words(model, length, rng)
    if words is None:
        return [blank((length, model.config.d_model), place_of(model).dtype) for _ in model.blocks]
    seen: list[Array] = []

    def through(block: Any, h: Array, reading: Reading) -> Array:
        seen.append(h[0])
        return block(h, reading)

    model.hidden(array_module(place_of(model)).asarray(words[None]), through=through)
    return seen
