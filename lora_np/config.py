r"""The sizes of a transformer, the maps in it that can be adapted, and the sizes that have a name. No array is made.

layers L    d_model d    d_ff f    heads    vocab V    context n
"""

from __future__ import annotations

from dataclasses import dataclass

from .names import ATTENTION, nearest_first


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a transformer.

    vocab     number of token ids             context  longest sequence
    d_model   width of the residual stream    heads    attention heads, a divisor of d_model
    layers    number of blocks                d_ff     width of the MLP; 4 d_model when None
    causal    may a position see only what is before it?
    tied      is the token table also the output head?

    Raises ValueError for a size that is no positive whole number, or heads that do not divide d_model.
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


def maps(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of every map that can be adapted; a token is a one-hot vector, so the table maps V to d."""
    d, f = config.d_model, config.d_hidden
    in_block = {**dict.fromkeys(ATTENTION, (d, d)), "mlp.up": (d, f), "mlp.down": (f, d)}
    blocks = {f"blocks.{layer}.{name}": sizes for layer in range(config.layers) for name, sizes in in_block.items()}
    return {"tokens": (config.vocab, d), **blocks, **({} if config.tied else {"head": (d, config.vocab)})}


def parameter_count(config: TransformerConfig) -> int:
    r"""The number N of parameters of the model.

    $$N = L\,(\underbrace{4d^2 + 4d}_{attention} + \underbrace{2df + f + d}_{MLP}
        + \underbrace{4d}_{two\ norms})
        + \underbrace{(V + n)\,d}_{embeddings} + \underbrace{2d}_{last\ norm}
        \;[\,+\,Vd\ if\ untied\,] \tag{C1}$$

    With f = 4d and a tied head this is L(12d² + 13d) + (V + n)d + 2d, where n is the context.

    >>> parameter_count(SHAPES["gpt2-medium"])
    354823168

    Source: counted from the architecture. Hu et al., Table 3, prints 354.92M for GPT-2 medium (0.097M more
    than its arrays hold) and 774.03M for GPT-2 large (exact); Table 4's 175,255.8M for GPT-3 fits neither a
    tied nor an untied head.
    """
    d, f = config.d_model, config.d_hidden
    block = (4 * d * d + 4 * d) + (2 * d * f + f + d) + 4 * d
    head = 0 if config.tied else config.vocab * d
    return config.layers * block + (config.vocab + config.context) * d + 2 * d + head


def bias_count(config: TransformerConfig) -> int:
    r"""The number of biases, which is what BitFit trains.

    $$L\,(\underbrace{4d}_{q,k,v,o} + \underbrace{f + d}_{MLP} + \underbrace{2d}_{two\ norms}) + d \tag{C2}$$

    Source: Zaken et al. 2021, arXiv:2106.10199. Hu et al., Table 4, prints 14.2M for GPT-3; C2 gives 12.99M.
    """
    d = config.d_model
    return config.layers * (4 * d + config.d_hidden + d + 2 * d) + d


def matrix_multiply_adds(config: TransformerConfig) -> int:
    r"""Multiply-adds of one token with the weight matrices of the model, in one direction.

    $$M = L\,(4d^2 + 2df) + Vd \tag{C5}$$

    The embeddings are looked up, not multiplied; the head (Vd) is multiplied, tied or not. Biases, norms and
    the activation are left out: they grow with d, not with d².
    """
    d = config.d_model
    return config.layers * (4 * d * d + 2 * d * config.d_hidden) + config.vocab * d


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
