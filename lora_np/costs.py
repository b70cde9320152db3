r"""What LoRA costs and saves, in closed form: parameters, bytes, multiply-adds. No model is allocated.

One vocabulary for the whole page:

    L  layers          d  d_model        f  d_ff         V  vocab        n  length, at most context   (tokens)
    r  rank            N  parameters of the model        Θ  trained parameters of LoRA
    M  multiply-adds of one token with every weight matrix (a matrix of k weights costs k of them)

Sources: Hu et al. 2021, arXiv:2106.09685 (LoRA); Radford et al. 2019 and Brown et al. 2020, arXiv:2005.14165
(the shapes of GPT-2 and GPT-3). Where the paper prints another number than its arithmetic gives, the
arithmetic wins and the docstring says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

ITEM_SIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # bytes

ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.output")
MLP = ("mlp.up", "mlp.down")
PRESETS = {
    "qv": ("attention.query", "attention.value"),
    "qkvo": ATTENTION,
    "attention+mlp": ATTENTION + MLP,
    "all-linear": ATTENTION + MLP,  # and the head, where it is a matrix of its own
}


# ---------------------------------------------------------------------------------------------------- checks


def _check_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")


def _check_count(name: str, value: int) -> None:
    _check_int(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_rank(rank: int, d_in: int, d_out: int, target: str) -> None:
    _check_int("rank", rank)
    if not 1 <= rank <= min(d_in, d_out):
        raise ValueError(
            f"rank must lie in 1..min(d_in, d_out) = 1..{min(d_in, d_out)} for {target}, got {rank}"
            + (": a higher rank cannot make B @ A more expressive" if rank > 0 else "")
        )


def _nearest_first(name: str, valid: Iterable[str]) -> str:
    by_likeness = sorted(valid, key=lambda other: -SequenceMatcher(None, name, other).ratio())
    return ", ".join(by_likeness)


# ---------------------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Shape:
    """The sizes that decide what a GPT-2 style transformer costs; `tied`: the head is the token embedding."""

    name: str
    layers: int
    d_model: int
    heads: int
    d_ff: int
    vocab: int
    context: int
    tied: bool = True

    def __post_init__(self) -> None:
        for field in ("layers", "d_model", "heads", "d_ff", "vocab", "context"):
            _check_count(field, getattr(self, field))
        if self.d_model % self.heads:
            raise ValueError(f"heads must divide d_model = {self.d_model}, got heads = {self.heads}")


def _gpt(name: str, layers: int, d_model: int, heads: int, vocab: int = 50257, context: int = 1024) -> Shape:
    return Shape(name, layers, d_model, heads, 4 * d_model, vocab, context)


SHAPES = {
    shape.name: shape
    for shape in (
        _gpt("gpt2", 12, 768, 12),
        _gpt("gpt2-medium", 24, 1024, 16),
        _gpt("gpt2-large", 36, 1280, 20),
        _gpt("gpt2-xl", 48, 1600, 25),
        _gpt("gpt3", 96, 12288, 96, context=2048),
        _gpt("base", 4, 192, 6, vocab=256, context=640),  # the byte-level model that ships
    )
}


def named_shape(name: str) -> Shape:
    """`SHAPES[name]`; an unknown name raises ValueError that lists the known ones, nearest first."""
    if name not in SHAPES:
        raise ValueError(f"model must be one of {_nearest_first(name, SHAPES)}; got {name!r}")
    return SHAPES[name]


# ------------------------------------------------------------------------------------------------ parameters


def parameter_count(shape: Shape) -> int:
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
    d, f = shape.d_model, shape.d_ff
    block = (4 * d * d + 4 * d) + (2 * d * f + f + d) + 4 * d
    head = 0 if shape.tied else shape.vocab * d
    return shape.layers * block + (shape.vocab + shape.context) * d + 2 * d + head


def bias_count(shape: Shape) -> int:
    r"""The number of biases, which is what BitFit trains.

    $$L\,(\underbrace{4d}_{q,k,v,o} + \underbrace{f + d}_{MLP} + \underbrace{2d}_{two\ norms}) + d \tag{C2}$$

    Source: Zaken et al. 2021, arXiv:2106.10199. Hu et al., Table 4, prints 14.2M for GPT-3; C2 gives 12.99M.
    """
    d = shape.d_model
    return shape.layers * (4 * d + shape.d_ff + d + 2 * d) + d


def lora_count(shape: Shape, rank: int, targets: str | Iterable[str]) -> int:
    r"""The number Θ of parameters that LoRA trains.

    $$|\Theta| = \sum_{targets} copies \cdot r\,(d_{in} + d_{out}) \tag{C3}$$

    A is (r, d_in) and B is (d_out, r); a block's matrix has L copies, the token embedding (V to d) and an
    untied head have one. A square attention matrix costs 2·r·d.

    >>> lora_count(SHAPES["gpt3"], rank=4, targets="qv")
    18874368

    Raises ValueError for an unknown target and for a rank outside 1..min(d_in, d_out).

    Source: Hu et al., section 5.1, |Θ| = 2 × L̂_LoRA × d_model × r. For GPT-2 medium with r = 4 on q and v
    this gives 393,216, where Table 3 prints 0.35M.
    """
    maps = _maps(shape)
    count = 0
    for target in target_modules(shape, targets):
        d_in, d_out, copies = maps[target]
        _check_rank(rank, d_in, d_out, target)
        count += copies * rank * (d_in + d_out)
    return count


def target_modules(shape: Shape, targets: str | Iterable[str]) -> tuple[str, ...]:
    """The module names that a preset, one name or several names stand for; each once, in the order given."""
    if targets == "all-linear" and not shape.tied:
        return (*PRESETS["all-linear"], "head")
    if isinstance(targets, str):
        names = PRESETS.get(targets, (targets,))
        valid = [*_maps(shape), *PRESETS]
    else:
        names = tuple(dict.fromkeys(targets))
        valid = [*_maps(shape)]
    if not names:
        raise ValueError("targets must name at least one module, got none")
    for name in names:
        if name not in _maps(shape):
            tied = " (this model's head is its token embedding: target tokens)" if name == "head" else ""
            raise ValueError(f"target must be one of {_nearest_first(name, valid)}; got {name!r}{tied}")
    return names


class _Map(NamedTuple):
    """A matrix that LoRA can adapt, and how many of it the model has."""

    d_in: int
    d_out: int
    copies: int


def _maps(shape: Shape) -> dict[str, _Map]:
    d, f, layers = shape.d_model, shape.d_ff, shape.layers
    blocks = {name: _Map(d, d, layers) for name in ATTENTION}
    blocks |= {"mlp.up": _Map(d, f, layers), "mlp.down": _Map(f, d, layers)}
    head = {} if shape.tied else {"head": _Map(d, shape.vocab, 1)}
    return blocks | {"tokens": _Map(shape.vocab, d, 1)} | head


# ----------------------------------------------------------------------------------------------------- bytes


def adapter_bytes(count: int, dtype: str) -> int:
    r"""The size of the adapter's numbers in a file: count × item size, in bytes; the header comes on top.

    >>> adapter_bytes(lora_count(SHAPES["gpt3"], rank=4, targets="qv"), "float16")
    37748736

    Source: Hu et al., section 4.2: a checkpoint of "roughly" 35 MB against 350 GB. This is 36 MiB.
    """
    if dtype not in ITEM_SIZE:
        raise ValueError(f"dtype must be one of {_nearest_first(dtype, ITEM_SIZE)}; got {dtype!r}")
    return count * ITEM_SIZE[dtype]


def optimizer_bytes(count: int, item_size: int = 4) -> int:
    """The bytes of Adam's state for `count` trained parameters: two moments each (Kingma & Ba 2015)."""
    return 2 * count * item_size


def gradient_bytes(count: int, item_size: int = 4) -> int:
    """The bytes of the gradient of `count` trained parameters; a frozen one has none."""
    return count * item_size


def training_state_bytes(frozen: int, trained: int, item_size: int = 4) -> int:
    r"""The bytes that training with Adam holds, activations apart.

    $$item \cdot (frozen + \underbrace{4}_{value,\ gradient,\ two\ moments} \cdot trained) \tag{C4}$$

    Full fine-tuning is (0, N), LoRA is (N, Θ): with Θ ≪ N a quarter of the bytes remains.

    Source: Hu et al., section 4.2, which reports 1.2 TB → 350 GB for GPT-3 and "up to 2/3" saved. C4 saves
    up to 3/4; counting only the value and the two moments, and no gradient, saves up to 2/3.
    """
    return item_size * (frozen + trained) + gradient_bytes(trained, item_size) + optimizer_bytes(trained, item_size)


# -------------------------------------------------------------------------------------------- multiply-adds


def matrix_multiply_adds(shape: Shape) -> int:
    r"""Multiply-adds of one token with the weight matrices of the model, in one direction.

    $$M = L\,(4d^2 + 2df) + Vd \tag{C5}$$

    The embeddings are looked up, not multiplied; the head (Vd) is multiplied, tied or not. Biases, norms and
    the activation are left out: they grow with d, not with d².
    """
    d = shape.d_model
    return shape.layers * (4 * d * d + 2 * d * shape.d_ff) + shape.vocab * d


def adapter_multiply_adds(shape: Shape, rank: int, targets: str | Iterable[str]) -> int:
    r"""Multiply-adds that an unmerged adapter adds to one token's forward pass; merged, it adds none.

    $$\Delta = \sum_{targets} copies \cdot r\,(d_{in} + d_{out}) \tag{C6}$$

    The same as C3, with one exception: an adapted token embedding reads a column of A, so its lookup costs
    only r·d. When the head is tied, the same A and B serve there once more, at the full r·(V + d).
    """
    every = lora_count(shape, rank, targets)
    if "tokens" not in target_modules(shape, targets):
        return every
    in_head = rank * (shape.vocab + shape.d_model) if shape.tied else 0
    return every - rank * shape.vocab + in_head


def forward_multiply_adds(shape: Shape, length: int | None = None) -> int:
    r"""Multiply-adds of one token's forward pass, the mean over n tokens (default: the whole context).

    $$F = M + S, \qquad S = L\,d\,(n + 1) \tag{C7}$$

    S is attention itself: token t meets t keys and t values of d numbers, 2dt, and the mean of t over 1..n is
    (n + 1)/2. Code that also computes the masked half pays 2·L·d·n instead.
    """
    return matrix_multiply_adds(shape) + _attention_multiply_adds(shape, length)


def step_multiply_adds(
    shape: Shape, rank: int | None = None, targets: str | Iterable[str] = "qv", length: int | None = None
) -> int:
    r"""Multiply-adds of one training step, per token: full fine-tuning, or LoRA when a rank is given.

    Per matrix and token, with y = Wx and g = ∂L/∂y, each line costs one multiply-add per weight:

        forward           y = W x            M
        input gradient    ∂L/∂x = Wᵀ g       M    the chain rule needs it, frozen or not
        weight gradient   ∂L/∂W = g xᵀ       M    only if W is trained

    Attention has no weights: its two products forward become four backward (one for each factor), so 3S. The
    adapter's own matrices are trained, so 3Δ. Hence

    $$full = 3M + 3S \tag{C8}$$
    $$LoRA = 2M + 3S + 3\Delta \tag{C9}$$

    A multiply-add is two floating-point operations and M ≈ N for a large model: 6N against 4N, so a LoRA step
    is at best 1.5 times as fast. C9 counts every input gradient. Those below the first adapted matrix are not
    needed either, so it is an upper bound: tight when every block has a target and there are many blocks.

    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1 (6N). Hu et al., section 4.2, measure 43.1
    tokens/s against 32.5, 1.33 times.
    """
    full = 3 * forward_multiply_adds(shape, length)
    if rank is None:
        return full
    return full - matrix_multiply_adds(shape) + 3 * adapter_multiply_adds(shape, rank, targets)


def _attention_multiply_adds(shape: Shape, length: int | None) -> int:
    tokens = shape.context if length is None else length
    _check_count("length", tokens)
    if tokens > shape.context:
        raise ValueError(f"length must lie in 1..context = 1..{shape.context} for {shape.name}, got {tokens}")
    return shape.layers * shape.d_model * (tokens + 1)


# --------------------------------------------------------------------------------------------------- summary


@dataclass(frozen=True)
class CostReport:
    """Everything above for one model and one adapter. Sizes in bytes; multiply-adds per token."""

    shape: Shape
    rank: int
    targets: tuple[str, ...]
    length: int

    parameters: int  # N
    trained: int  # Θ
    share: float  # Θ / N

    adapter_bytes: Mapping[str, int]  # by dtype
    optimizer_bytes_full: int
    optimizer_bytes_lora: int
    optimizer_bytes_saved: int
    gradient_bytes_saved: int
    training_state_bytes_full: int
    training_state_bytes_lora: int

    forward_base: int
    forward_adapted: int
    forward_merged: int
    step_full: int
    step_lora: int
    frozen_gradients_skipped: int  # multiply-adds of the weight gradients that are never formed


def summary(
    shape: Shape,
    rank: int,
    targets: str | Iterable[str] = "qv",
    length: int | None = None,
    item_size: int = 4,
) -> CostReport:
    r"""The whole bill of LoRA at `rank` on `targets`, against full fine-tuning of the same model.

    `item_size` is that of the numbers in training (weights, gradients, Adam's moments), in bytes.

    >>> report = summary(SHAPES["gpt2-medium"], rank=4, targets="qv")
    >>> report.trained, f"{report.share:.3%}", report.adapter_bytes["float32"]
    (393216, '0.111%', 1572864)
    """
    names = target_modules(shape, targets)
    parameters, trained = parameter_count(shape), lora_count(shape, rank, names)
    forward = forward_multiply_adds(shape, length)
    return CostReport(
        shape=shape,
        rank=rank,
        targets=names,
        length=shape.context if length is None else length,
        parameters=parameters,
        trained=trained,
        share=trained / parameters,
        adapter_bytes={dtype: adapter_bytes(trained, dtype) for dtype in ITEM_SIZE},
        optimizer_bytes_full=optimizer_bytes(parameters, item_size),
        optimizer_bytes_lora=optimizer_bytes(trained, item_size),
        optimizer_bytes_saved=optimizer_bytes(parameters - trained, item_size),
        gradient_bytes_saved=gradient_bytes(parameters - trained, item_size),
        training_state_bytes_full=training_state_bytes(0, parameters, item_size),
        training_state_bytes_lora=training_state_bytes(parameters, trained, item_size),
        forward_base=forward,
        forward_adapted=forward + adapter_multiply_adds(shape, rank, names),
        forward_merged=forward,
        step_full=step_multiply_adds(shape, length=length),
        step_lora=step_multiply_adds(shape, rank, names, length),
        frozen_gradients_skipped=matrix_multiply_adds(shape),
    )
