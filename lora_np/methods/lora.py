r"""The settings of LoRA: which maps get a low-rank update, of which rank and scale, and how it starts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ..config import TransformerConfig, bias_count, check_rank, maps
from ..engine.arrays import Array, array_module, blank
from ..lora import LoraEmbedding, LoraLinear, adapters
from ..method import Method, one_of, positive, whole
from ..model import Embedding, Linear, Transformer
from ..names import per_path, targeted
from ..parameters import Arrays, parameters, with_modules
from ..wrappers import frozen_parts

# rank and alpha → s. The second keeps the size of the update steady as the rank grows (Kalajdzievski 2023, rsLoRA).
SCALINGS: dict[str, Callable[[int, float], float]] = {
    "alpha/rank": lambda rank, alpha: alpha / rank,
    "alpha/sqrt(rank)": lambda rank, alpha: alpha / math.sqrt(rank),
}

# How A starts; B starts at zero. Named by what they are, with the variance of an entry:
#   gaussian  N(0, 1/d_in)              1/d_in      the paper's; it states no variance, this one keeps Ax the size of x
#   uniform   U(−1/√d_in, 1/√d_in)      1/(3 d_in)  what released LoRA code draws
INITIALIZATIONS: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "gaussian": lambda rng, rank, d_in: rng.standard_normal((rank, d_in)) / math.sqrt(d_in),
    "uniform": lambda rng, rank, d_in: rng.uniform(-1.0, 1.0, (rank, d_in)) / math.sqrt(d_in),
}

BIASES: dict[str, tuple[str, ...]] = {"none": (), "lora_only": ("*.base.b",), "all": ("*.b", "*.beta")}


@dataclass(frozen=True)
class LoraConfig(Method):
    r"""What is adapted, and how.

    rank            r, the inner dimension of B A
    alpha           α in s = α/r
    targets         a preset ("qv", "qkvo", "attention+mlp", "all-linear") or patterns of module paths; "tokens" is
                    the token embedding
    scaling         "alpha/rank", or "alpha/sqrt(rank)"
    initialization  of A: "gaussian", variance 1/d_in, or "uniform" in ±1/√d_in, variance 1/(3 d_in)
    dropout         probability with which an entry of x is left out of the low-rank branch, in training only
    bias            which biases are trained beside A and B: "none", "lora_only" (of adapted maps) or "all"
    tied_head       when the token table is adapted and is also the head: "tie" adapts both, "untie" leaves the
                    head at the old table, "refuse" raises
    ranks, alphas   {pattern: value} for targets that shall have their own

    Raises ValueError for a value outside its set.

    >>> from lora_np import LoraConfig
    >>> config = LoraConfig(rank=8, alpha=16, targets="qkvo", ranks={"*.query": 4})
    >>> config.rank, config.ranks["*.query"]
    (8, 4)
    >>> LoraConfig(rank=0)
    Traceback (most recent call last):
    ValueError: rank must be a whole number of at least 1, got 0
    """

    rank: int = 4
    alpha: float = 8.0
    targets: str | tuple[str, ...] = "qv"
    scaling: str = "alpha/rank"
    initialization: str = "gaussian"
    dropout: float = 0.0
    bias: Literal["none", "lora_only", "all"] = "none"
    tied_head: Literal["refuse", "tie", "untie"] = "refuse"
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    grows_by = "rank"

    def __post_init__(self) -> None:
        for rank in (self.rank, *self.ranks.values()):
            whole("rank", rank)
        for alpha in (self.alpha, *self.alphas.values()):
            positive("alpha", alpha)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        one_of("scaling", self.scaling, SCALINGS)
        one_of("initialization", self.initialization, INITIALIZATIONS)
        one_of("bias", self.bias, BIASES)
        one_of("tied_head", self.tied_head, ("refuse", "tie", "untie"))
        if not self.targets:
            raise ValueError("targets must name at least one module or preset")
        if not all(isinstance(name, str) for name in self.targets):
            raise TypeError(f"targets must be text, got {self.targets!r}")

    def apply(self, model: Transformer, rng: np.random.Generator | None) -> Transformer:
        r"""The model with A and B beside every target: B = 0, so no output changes, bit for bit.

        Raises ValueError when a pattern matches no module, a rank does not lie in 1..min(d_in, d_out), the token table
        is a target while its head is tied and nothing says what shall happen to it, or the model already carries
        LoRA. Warns when the adapter is larger than the matrix it adapts: r > d_in d_out / (d_in + d_out).
        """
        if adapters(model):
            raise ValueError("the model carries LoRA already: merge it first, or adapt the base")
        able = {path: node for path, node in frozen_parts(model).items() if _can_be_adapted(path, node)}
        paths = targeted(able, self.targets)
        ranks, alphas = per_path(paths, self.ranks, self.rank), per_path(paths, self.alphas, self.alpha)
        beside = {path: self._beside(path, able[path], ranks[path], alphas[path], rng) for path in paths}
        return with_modules(self._with_head(model, beside), beside)

    def trained(self, model: Transformer) -> Arrays:
        return parameters(model, "*.A", "*.B", *BIASES[self.bias])

    def numbers(self, config: TransformerConfig) -> int:
        r"""$|\Theta| = \sum_\text{targets} r\,(d_\mathrm{in} + d_\mathrm{out})$ (C3), and biases that are trained."""
        sizes = self._sizes(config)
        adapted = sum(d_out for path, (_, _, d_out) in sizes.items() if path not in ("tokens", "head"))
        biases = {"none": 0, "lora_only": adapted, "all": bias_count(config)}
        return sum(self.numbers_of_one(*size) for size in sizes.values()) + biases[self.bias]

    def numbers_of_one(self, rank: int, d_in: int, d_out: int) -> int:
        """What it trains beside one map: A and B."""
        return rank * (d_in + d_out)

    def multiply_adds(self, config: TransformerConfig) -> int:
        r"""The same sum (C6), but a token reads one column of A, at r·d; a tied head multiplies by the same A and B."""
        tokens = self.tied_head != "untie" if config.tied else False
        extra = 0
        for path, (rank, d_in, d_out) in self._sizes(config).items():
            extra += rank * (d_in + d_out)
            if path == "tokens":
                extra += -rank * d_in + tokens * rank * (d_in + d_out)
        return extra

    def _sizes(self, config: TransformerConfig) -> dict[str, tuple[int, int, int]]:
        """(rank, d_in, d_out) of every adapted map."""
        able = maps(config)
        paths = targeted(able, self.targets)
        ranks = per_path(paths, self.ranks, self.rank)
        for path in paths:
            check_rank(ranks[path], *able[path], path)
        return {path: (ranks[path], *able[path]) for path in paths}

    def _beside(self, path: str, module: Any, rank: int, alpha: float, rng: np.random.Generator | None) -> Any:
        is_table = isinstance(module, Embedding)
        d_out, d_in = module.W.shape[::-1] if is_table else module.W.shape
        check_rank(rank, d_in, d_out, path)
        if rng is not None and (trained := self.numbers_of_one(rank, d_in, d_out)) > d_in * d_out:
            more = f"{trained} numbers, more than the {d_in * d_out} of the matrix"
            warnings.warn(f"{path}: rank {rank} trains {more}", stacklevel=4)
        dtype, xp = module.W.dtype, array_module(module.W)
        A, B = blank((rank, d_in), dtype), blank((d_out, rank), dtype)
        if rng is not None:  # drawn on the host
            A = xp.asarray(INITIALIZATIONS[self.initialization](rng, rank, d_in).astype(dtype))
            B = xp.zeros((d_out, rank), dtype)
        scaling = float(SCALINGS[self.scaling](rank, alpha))  # a NumPy number would turn float32 into float64
        return LoraEmbedding(module, A, B, scaling) if is_table else LoraLinear(module, A, B, scaling, self.dropout)

    def _with_head(self, model: Transformer, beside: Mapping[str, Any]) -> Transformer:
        """The model, its head parted from the token table if that is adapted and shall not be the head any more."""
        if model.head is not None or not any(isinstance(module, LoraEmbedding) for module in beside.values()):
            return model
        if self.tied_head == "refuse":
            raise ValueError(
                "the token embedding is also the output head: say tied_head='tie' to adapt both, or 'untie' to keep "
                "the head at the old table"
            )
        untied = replace(model, head=model.tokens.as_head(), config=replace(model.config, tied=False))
        return untied if self.tied_head == "untie" else model


def _can_be_adapted(path: str, node: Any) -> bool:
    return isinstance(node, Linear) or (isinstance(node, Embedding) and path.partition(".")[0] == "tokens")
