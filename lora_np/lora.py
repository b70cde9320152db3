r"""The heart: low-rank adaptation of a frozen model.

$$h = W_0 x + \Delta W x = W_0 x + s\,B A x,\qquad s = \alpha/r \tag{L1}$$

W0 (d_out, d_in) is frozen; A (rank, d_in) and B (d_out, rank) are trained. `adapt` puts A and B beside the chosen
maps, `delta` is s·BA, and `merge` adds it in, so that nothing is left to compute at inference.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1, equation 3.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from .arrays import Array, array_module
from .costs import PRESETS
from .devices import to_host
from .model import Embedding, Linear, Transformer
from .operations import cross_entropy, embedding, linear, lora_linear
from .parameters import matches, matching, walk, with_modules

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
class LoraConfig:
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

    def __post_init__(self) -> None:
        for rank in (self.rank, *self.ranks.values()):
            if type(rank) is not int or rank < 1:
                raise ValueError(f"rank must be a whole number of at least 1, got {rank!r}")
        for alpha in (self.alpha, *self.alphas.values()):
            if not (math.isfinite(alpha) and alpha > 0):
                raise ValueError(f"alpha must be a positive number, got {alpha!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        _one_of("scaling", self.scaling, SCALINGS)
        _one_of("initialization", self.initialization, INITIALIZATIONS)
        _one_of("bias", self.bias, BIASES)
        _one_of("tied_head", self.tied_head, ("refuse", "tie", "untie"))
        if not all(isinstance(name, str) for name in self.named):
            raise TypeError(f"targets must be text, got {self.targets!r}")
        if not self.targets:
            raise ValueError("targets must name at least one module or preset")

    @property
    def named(self) -> tuple[str, ...]:
        """The targets as they were named, one or several."""
        return (self.targets,) if isinstance(self.targets, str) else self.targets

    @property
    def patterns(self) -> tuple[str, ...]:
        """The targets with a preset's name replaced by what it stands for."""
        return tuple(pattern for target in self.named for pattern in PRESETS.get(target, (target,)))

    @property
    def trained(self) -> tuple[str, ...]:
        """The selection to train: `parameters(model, *config.trained)`."""
        return ("*.A", "*.B", *BIASES[self.bias])


@dataclass(frozen=True)
class LoraLinear:
    r"""A frozen linear map plus its low-rank update, equation (L1).

    base       Linear: W (d_out, d_in), b (d_out,) or None    frozen
    A          (rank, d_in)                                   trained, starts random
    B          (d_out, rank)                                  trained, starts at zero
    scaling    s
    dropout    probability of leaving an entry of x out of the branch
    generator  draws what is left out; None, as in a fresh model, leaves nothing out (see `with_dropout`)

    Raises ValueError when the shapes of base, A and B do not fit.
    """

    base: Linear
    A: Array
    B: Array
    scaling: float
    dropout: float = 0.0
    generator: np.random.Generator | None = None

    def __post_init__(self) -> None:
        _check_shapes(self.base.W.shape, self.A.shape, self.B.shape)

    def __call__(self, x: Array) -> Array:
        mask = None if self.generator is None else dropout_mask(self.generator, x, self.dropout)
        return lora_linear(x, self.base.W, self.base.b, self.A, self.B, self.scaling, mask)

    def loss(self, h: Array, targets: Array, weights: Array) -> Any:
        """As a head: the cross-entropy of its logits."""
        return cross_entropy(self(h), targets, weights)


@dataclass(frozen=True)
class LoraEmbedding:
    r"""A frozen token table plus its low-rank update.

    A token is a one-hot vector, so as a linear map the table W (vocab, d_model) acts by its transpose: d_in = vocab,
    d_out = d_model, A is (rank, vocab) and B (d_model, rank), and row t becomes $W_t + s\,B A_{:,t}$. The gradient of
    a token reaches only its own column of A, which is why released code starts A at zero and B at random here; this
    one keeps the paper's rule, B = 0, everywhere. There is no dropout: a token is there or not.
    """

    base: Embedding
    A: Array
    B: Array
    scaling: float

    def __post_init__(self) -> None:
        _check_shapes(self.base.W.shape[::-1], self.A.shape, self.B.shape)

    def __call__(self, tokens: Array) -> Array:
        return self.base(tokens) + self.scaling * linear(embedding(tokens, self.A.T), self.B, None)

    def logits(self, h: Array) -> Array:
        """The tied head of the adapted table: h (W + s (BA)ᵀ)ᵀ = h Wᵀ + s (h B) A."""
        return self.base.logits(h) + self.scaling * linear(linear(h, self.B.T, None), self.A.T, None)

    def loss(self, h: Array, targets: Array, weights: Array) -> Any:
        """The cross-entropy of these logits."""
        return cross_entropy(self.logits(h), targets, weights)


Adapted = (LoraLinear, LoraEmbedding)


def adapt(model: Transformer, config: LoraConfig, rng: np.random.Generator) -> Transformer:
    r"""The model with A and B beside every target: B = 0, so no output changes, bit for bit. `model` is untouched.

    Raises ValueError when a pattern matches no module, a rank does not lie in 1..min(d_in, d_out), the token table
    is a target while its head is tied and the config does not say what shall happen to it, or the model already
    carries LoRA. Warns when the adapter is larger than the matrix it adapts: r > d_in d_out / (d_in + d_out).
    """
    if adapters(model):
        raise ValueError("the model carries LoRA already: merge it first, or adapt the base")
    modules = {path: node for path, node in walk(model) if isinstance(node, Linear) or path == "tokens"}
    own_head = ("head",) if "all-linear" in config.named and model.head is not None else ()
    paths = matching(modules, config.patterns + own_head)
    ranks, alphas = _per_path(paths, config.ranks, config.rank), _per_path(paths, config.alphas, config.alpha)
    adapted = {path: _adapted(path, modules[path], ranks[path], alphas[path], config, rng) for path in paths}
    if "tokens" in adapted and model.head is None:
        if config.tied_head == "refuse":
            raise ValueError(
                "the token embedding is also the output head: say tied_head='tie' to adapt both, or 'untie' to keep "
                "the head at the old table"
            )
        if config.tied_head == "untie":
            model = replace(model, head=Linear(model.tokens.W), config=replace(model.config, tied=False))
    return with_modules(model, adapted)


def adapters(model: Any) -> dict[str, Any]:
    """The adapted modules of a model by dotted path."""
    return {path: node for path, node in walk(model) if isinstance(node, Adapted)}


def delta(module: LoraLinear | LoraEmbedding) -> Array:
    r"""$\Delta W = s\,B A$, in the orientation of the frozen array: (d_out, d_in); (vocab, d_model) for a table."""
    update = module.scaling * (module.B @ module.A)
    return update.T if isinstance(module, LoraEmbedding) else update


def merge(model: Transformer) -> Transformer:
    r"""The plain model with $W = W_0 + s\,B A$ in place of every adapted map; `model` and its base are untouched.

    Merged and adapted outputs are equal up to rounding: see `rounding_bound`. Raises ValueError when there is nothing
    to merge, which is also what merging twice meets.
    """
    if not adapters(model):
        raise ValueError("nothing to merge: the model carries no LoRA (is it merged already?)")
    return with_modules(model, {path: _merged(module) for path, module in adapters(model).items()})


def unadapted(model: Transformer) -> Transformer:
    """The frozen base below an adapted model, sharing its arrays."""
    return with_modules(model, {path: module.base for path, module in adapters(model).items()})


def rounding_bound(module: LoraLinear, x: Array) -> Array:
    r"""How far merged and adapted outputs of one map may differ by rounding alone: elementwise, (..., d_out).

    With unit roundoff u = ε/2, a result behind which lie n roundings errs by at most $\gamma_n = nu/(1-nu)$ times the
    sum of the absolute values of its terms, in whatever order they are added (Higham 2002, Accuracy and Stability of
    Numerical Algorithms, section 3.1). With $T = |W_0||x| + s|B||A||x| + |b|$,

    - adapted: Ax (d_in), B· (rank), the factor s, two additions:  n = d_in + rank + 3;
    - merged:  BA (rank), the factor s, + W0, ·x (d_in), + b:      n = d_in + rank + 3;

    and the two differ by at most twice that. One more rounding covers T, which is itself computed, in float64:

    $$|y_\text{adapted} - y_\text{merged}| \le 2\gamma_n T = \frac{n\,\varepsilon}{1 - n\varepsilon/2}\,T,
      \qquad n = d_\mathrm{in} + r + 4 \tag{L2}$$
    """
    W, A, B = (np.abs(np.asarray(to_host(array), np.float64)) for array in (module.base.W, module.A, module.B))
    size = np.abs(np.asarray(to_host(x), np.float64))
    terms = size @ W.T + abs(module.scaling) * ((size @ A.T) @ B.T)
    if module.base.b is not None:
        terms += np.abs(to_host(module.base.b))
    n, eps = sum(A.shape) + 4, float(np.finfo(module.A.dtype).eps)
    return n * eps / (1.0 - n * eps / 2.0) * terms


def with_dropout(model: Transformer, rng: np.random.Generator) -> Transformer:
    """The model as it trains: every low-rank branch leaves entries out, drawn from `rng` in the order of the layers."""
    dropping = {p: m for p, m in adapters(model).items() if isinstance(m, LoraLinear) and m.dropout}
    return with_modules(model, {path: replace(module, generator=rng) for path, module in dropping.items()})


def dropout_mask(rng: np.random.Generator, x: Array, probability: float) -> Array:
    """0 with the given probability, else 1/(1−p), so that the expected value of mask·x is x; drawn on the host."""
    keep = rng.random(x.shape, dtype=np.float32) >= probability
    return array_module(x).asarray((keep / (1.0 - probability)).astype(x.dtype))


def _per_path(paths: list[str], special: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """The value for each path: that of the last pattern that matches it, else the default."""
    matching(paths, special)  # raises for a pattern that names no target
    return {path: ([default] + [v for p, v in special.items() if matches(path, p)])[-1] for path in paths}


def _adapted(path: str, module: Any, rank: int, alpha: float, config: LoraConfig, rng: np.random.Generator) -> Any:
    is_table = isinstance(module, Embedding)
    d_out, d_in = module.W.shape[::-1] if is_table else module.W.shape
    if rank > min(d_in, d_out):
        raise ValueError(
            f"rank must lie in 1..min(d_in, d_out) = 1..{min(d_in, d_out)} for {path}, got {rank}: "
            "a higher rank cannot make B @ A more expressive"
        )
    if rank * (d_in + d_out) > d_in * d_out:
        warnings.warn(
            f"{path}: rank {rank} trains {rank * (d_in + d_out)} numbers, more than the {d_in * d_out} of the matrix",
            stacklevel=3,
        )
    dtype, xp = module.W.dtype, array_module(module.W)
    A = xp.asarray(INITIALIZATIONS[config.initialization](rng, rank, d_in).astype(dtype))  # drawn on the host
    B = xp.zeros((d_out, rank), dtype)
    scaling = float(SCALINGS[config.scaling](rank, alpha))  # a NumPy number would turn float32 into float64
    return LoraEmbedding(module, A, B, scaling) if is_table else LoraLinear(module, A, B, scaling, config.dropout)


def _merged(module: Any) -> Any:
    return replace(module.base, W=module.base.W + delta(module))


def _check_shapes(W: tuple[int, ...], A: tuple[int, ...], B: tuple[int, ...]) -> None:
    d_out, d_in = W
    if not (len(A) == len(B) == 2 and A[1] == d_in and B[0] == d_out and A[0] == B[1]):
        raise ValueError(f"A must be (rank, {d_in}) and B ({d_out}, rank) beside this map, got {A} and {B}")


def _one_of(name: str, value: object, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
