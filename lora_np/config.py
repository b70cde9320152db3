r"""The sizes of a transformer, the maps in it that can be adapted, and the sizes that have a name. No array is made.

layers L    d_model d    d_ff f    heads    vocab V    context n    width of the queries q, of the keys k
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from .names import nearest_first


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one kind of transformer from another, and no size.

    norm        "layer" or "rms"                      mlp      "gelu", "gelu, exact" or "swiglu"
    positions   "learned" or "rotary"                 biases   the maps of a block that have one
    post        do the norms stand after the sums, and one after the embeddings? Else before the steps, and one last
    """

    norm: str
    positions: str
    mlp: str
    post: bool
    biases: tuple[str, ...]


# What a head of classes reads of a sequence, and whether a map with tanh, the pooler, stands before its logits.
READS = {"first": True, "mean": False, "last": False}

_ALL = ("query", "key", "value", "output", "up", "down")
ARCHITECTURES = {
    "gpt2": Architecture("layer", "learned", "gelu", post=False, biases=_ALL),
    "llama": Architecture("rms", "rotary", "swiglu", post=False, biases=()),
    "qwen2": Architecture("rms", "rotary", "swiglu", post=False, biases=("query", "key", "value")),
    "bert": Architecture("layer", "learned", "gelu, exact", post=True, biases=_ALL),
}


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a transformer.

    vocab     number of token ids             context  longest sequence
    d_model   width of the residual stream    heads    attention heads, a divisor of d_model
    layers    number of blocks                d_ff     width of the MLP; 4 d_model when None
    causal    may a position see only what is before it?
    tied      is the token table also the output head?

    What follows was not always here; where it says nothing new, it is not written down (`described`).

    architecture  a row of ARCHITECTURES      kv_heads  of keys and values, a divisor of heads; heads when None
    head_dim      columns of one head; d_model / heads when None, and then heads must divide d_model
    theta         of rotary positions         eps       of the norms
    rope_factor   by which rotary angles shrink, 1: not at all; rope_low, rope_high, rope_context: which of them do, by
                  (R4) of `lora_np.operations.rotary`; all where rope_context is 0
    types         kinds of tokens; 0: none    classes   what a head of classes tells apart; 0: the head predicts words
    reads         what that head reads: a row of READS          labels    the names of the classes; none: numbers

    Raises ValueError for a size that is no positive whole number, heads that do not divide d_model, kv_heads that do
    not divide heads, or an architecture that is not known.

    >>> from lora_np import TransformerConfig
    >>> config = TransformerConfig(vocab=256, context=128, d_model=64, layers=2, heads=4)
    >>> config.d_head, config.d_hidden
    (16, 256)
    >>> TransformerConfig(vocab=256, context=128, d_model=64, layers=2, heads=5)
    Traceback (most recent call last):
    ValueError: heads must divide d_model, got 5 heads for d_model 64
    """

    vocab: int
    context: int
    d_model: int
    layers: int
    heads: int
    d_ff: int | None = None
    causal: bool = True
    tied: bool = True
    architecture: str = "gpt2"
    kv_heads: int | None = None
    theta: float = 1e4
    eps: float = 1e-5
    types: int = 0
    classes: int = 0
    reads: str = "first"
    labels: tuple[str, ...] = ()
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_context: int = 0
    head_dim: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab",
            "context",
            "d_model",
            "layers",
            "heads",
            "d_ff",
            "kv_heads",
            "types",
            "classes",
            "rope_context",
            "head_dim",
        ):
            value, field = getattr(self, name), self.__dataclass_fields__[name]
            if value != field.default and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        for name in ("theta", "eps", "rope_factor", "rope_low", "rope_high"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        for name in ("causal", "tied"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.head_dim is None and self.d_model % self.heads:
            raise ValueError(f"heads must divide d_model, got {self.heads} heads for d_model {self.d_model}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads, got {self.kv_heads} for {self.heads} heads")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture must be one of {nearest_first(str(self.architecture), ARCHITECTURES)}; "
                f"got {self.architecture!r}"
            )
        if self.reads not in READS:
            raise ValueError(f"reads must be one of {nearest_first(str(self.reads), READS)}; got {self.reads!r}")
        object.__setattr__(self, "labels", tuple(self.labels))  # a file gives a list
        if self.labels and not (
            all(isinstance(label, str) for label in self.labels) and len(set(self.labels)) == self.classes
        ):
            raise ValueError(f"labels must be {self.classes} different texts, one a class, got {self.labels}")
        if not self.rope_low < self.rope_high:
            raise ValueError(f"rope_low must be below rope_high, got {self.rope_low} and {self.rope_high}")
        if self.kind.positions == "rotary" and self.d_head % 2:
            raise ValueError(
                f"rotary positions turn pairs of columns, got {self.d_head} columns a head: choose other heads"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in described(self).items())})"

    @property
    def kind(self) -> Architecture:
        """The row of its architecture."""
        return ARCHITECTURES[self.architecture]

    @property
    def d_hidden(self) -> int:
        """The width of the MLP in numbers."""
        return self.d_ff or 4 * self.d_model

    @property
    def d_head(self) -> int:
        """The columns of one head."""
        return self.head_dim or self.d_model // self.heads

    @property
    def d_queries(self) -> int:
        """The width q of queries: d where no head_dim says otherwise."""
        return self.d_head * self.heads

    @property
    def d_keys(self) -> int:
        """The width k of keys and values: q where every head has its own."""
        return self.d_head * (self.kv_heads or self.heads)

    @property
    def rope(self) -> tuple[float, float, float, int]:
        """How rotary angles shrink: factor, low, high, context."""
        return self.rope_factor, self.rope_low, self.rope_high, self.rope_context

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called: their labels, or their numbers where nobody named them; () without a head."""
        return self.labels or tuple(map(str, range(self.classes)))

    @property
    def outcomes(self) -> int:
        """What the head tells apart: classes, or words."""
        return self.classes or self.vocab


def described(config: TransformerConfig) -> dict[str, Any]:
    """The settings as a file holds them, and as digests see them: the eight of GPT-2, and of the rest what is new."""
    first = tuple(field.name for field in fields(config)[:8])
    return {
        name: value
        for name, value in asdict(config).items()
        if name in first or value != config.__dataclass_fields__[name].default
    }


def _in_block(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of the maps of one block."""
    d, f, q, k = config.d_model, config.d_hidden, config.d_queries, config.d_keys
    gate = {"mlp.gate": (d, f)} if config.kind.mlp == "swiglu" else {}
    attention = {"query": (d, q), "key": (d, k), "value": (d, k), "output": (q, d)}
    return {**{f"attention.{name}": s for name, s in attention.items()}, **gate, "mlp.up": (d, f), "mlp.down": (f, d)}


def maps(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of every map that can be adapted; a token is a one-hot vector, so the table maps V to d."""
    d = config.d_model
    blocks = {f"blocks.{layer}.{name}": s for layer in range(config.layers) for name, s in _in_block(config).items()}
    head = {} if config.tied else {"head": (d, config.vocab)}
    if config.classes:
        pooler = {"head.pooler": (d, d)} if READS[config.reads] else {}
        head = {**pooler, "head.output": (d, config.classes)}
    return {"tokens": (config.vocab, d), **blocks, **head}


def parameter_count(config: TransformerConfig) -> int:
    r"""The number N of parameters of the model.

    $$N = L\,(\underbrace{4d^2 + 4d}_{attention} + \underbrace{2df + f + d}_{MLP}
        + \underbrace{4d}_{two\ norms})
        + \underbrace{(V + n)\,d}_{embeddings} + \underbrace{2d}_{last\ norm}
        \;[\,+\,Vd\ if\ untied\,] \tag{C1}$$

    With f = 4d and a tied head this is L(12d² + 13d) + (V + n)d + 2d, where n is the context.

    >>> parameter_count(SHAPES["gpt2-medium"])
    354823168

    In other architectures queries have q columns, keys and values k, an MLP may have three matrices, norms only gains,
    and T types of tokens and a head of C classes their own arrays, a pooler of d² among them. With m = 2 or 3, and the
    biases β of (C2),

    $$N = L\,(2dq + 2dk + m\,df + \underbrace{2d}_{gains}) + (V\,[\,+\,n\,]\,+ T)\,d + \underbrace{d}_{one\ more\ gain}
        \;[\,+\,Vd\,]\;[\,+\,d^2 + Cd\,] + \beta \tag{C1b}$$

    Source: counted from the architecture. Hu et al., Table 3, prints 354.92M for GPT-2 medium (0.097M more
    than its arrays hold) and 774.03M for GPT-2 large (exact); Table 4's 175,255.8M for GPT-3 fits neither a
    tied nor an untied head.
    """
    d = config.d_model
    places = config.context if config.kind.positions == "learned" else 0
    head = d * (pooler_width(config) + config.classes) if config.classes else 0 if config.tied else config.vocab * d
    tables = (config.vocab + places + config.types) * d
    return config.layers * (_in_matrices(config) + 2 * d) + tables + d + head + bias_count(config)


def bias_count(config: TransformerConfig) -> int:
    r"""The number of biases and shifts, which is what BitFit trains: β.

    $$L\,(\underbrace{4d}_{q,k,v,o} + \underbrace{f + d}_{MLP} + \underbrace{2d}_{two\ norms}) + d \tag{C2}$$

    Llama has none. BERT has as many as GPT-2, its one more norm being the first; a head of C classes adds C, and
    its pooler d.

    Source: Zaken et al. 2021, arXiv:2106.10199. Hu et al., Table 4, prints 14.2M for GPT-3; C2 gives 12.99M.
    """
    outputs = {path.rpartition(".")[2]: d_out for path, (_, d_out) in _in_block(config).items()}
    shift = config.d_model if config.kind.norm == "layer" else 0
    head = pooler_width(config) + config.classes if config.classes else 0
    return config.layers * (sum(outputs[name] for name in config.kind.biases) + 2 * shift) + shift + head


def pooler_width(config: TransformerConfig) -> int:
    """d of a head of classes with a pooler, else 0."""
    return config.d_model if config.classes and READS[config.reads] else 0


def matrix_multiply_adds(config: TransformerConfig) -> int:
    r"""Multiply-adds of one token with the weight matrices of the model, in one direction.

    $$M = L\,(2dq + 2dk + m\,df) + Vd \tag{C5}$$

    for GPT-2, with q = k = d and m = 2, L(4d² + 2df) + Vd. The embeddings are looked up, not multiplied; the head (Vd)
    is multiplied, tied or not; one of classes works once a sequence, not once a token, and is left out. Biases, norms
    and the activation are left out: they grow with d, not with d².
    """
    head = 0 if config.classes else config.vocab * config.d_model
    return config.layers * _in_matrices(config) + head


def _in_matrices(config: TransformerConfig) -> int:
    """2dq + 2dk + m·df, the matrices of one block."""
    return sum(d_in * d_out for d_in, d_out in _in_block(config).values())


def check_rank(rank: int, d_in: int, d_out: int, path: str) -> None:
    """Raise TypeError or ValueError unless the rank is one that a (d_out, d_in) matrix can have."""
    if type(rank) is not int:
        raise TypeError(f"rank must be an int, got {rank!r}")
    if not 1 <= rank <= min(d_in, d_out):
        raise ValueError(
            f"rank must lie in 1..min(d_in, d_out) = 1..{min(d_in, d_out)} for {path}, got {rank}"
            + (": a higher rank cannot make B @ A more expressive" if rank > 0 else "")
        )


def _gpt(layers: int, d_model: int, heads: int, vocab: int = 50257, context: int = 1024) -> TransformerConfig:
    return TransformerConfig(vocab, context, d_model, layers, heads)


# GPT-2 of Radford et al. 2019, GPT-3 of Brown et al. 2020 (arXiv:2005.14165), and the byte-level model that ships.
SHAPES = {
    "gpt2": _gpt(12, 768, 12),
    "gpt2-medium": _gpt(24, 1024, 16),
    "gpt2-large": _gpt(36, 1280, 20),
    "gpt2-xl": _gpt(48, 1600, 25),
    "gpt3": _gpt(96, 12288, 96, context=2048),
    "base": _gpt(4, 192, 6, vocab=256, context=640),
}


def shape_name(config: TransformerConfig) -> str:
    """What `SHAPES` calls these sizes; "this model" where it does not know them."""
    return next((name for name, known in SHAPES.items() if known == config), "this model")


def named_shape(name: str) -> TransformerConfig:
    """`SHAPES[name]`; an unknown name raises ValueError that lists the known ones, nearest first."""
    if name not in SHAPES:
        raise ValueError(f"model must be one of {nearest_first(name, SHAPES)}; got {name!r}")
    return SHAPES[name]
