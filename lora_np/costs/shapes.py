r"""The shapes of transformers, the maps in them that LoRA can adapt, and their names."""

from __future__ import annotations

from collections.abc import Iterable
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


def check_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")


def check_count(name: str, value: int) -> None:
    check_int(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_rank(rank: int, d_in: int, d_out: int, target: str) -> None:
    check_int("rank", rank)
    if not 1 <= rank <= min(d_in, d_out):
        raise ValueError(
            f"rank must lie in 1..min(d_in, d_out) = 1..{min(d_in, d_out)} for {target}, got {rank}"
            + (": a higher rank cannot make B @ A more expressive" if rank > 0 else "")
        )


def nearest_first(name: str, valid: Iterable[str]) -> str:
    by_likeness = sorted(valid, key=lambda other: -SequenceMatcher(None, name, other).ratio())
    return ", ".join(by_likeness)


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
            check_count(field, getattr(self, field))
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
        raise ValueError(f"model must be one of {nearest_first(name, SHAPES)}; got {name!r}")
    return SHAPES[name]


def target_modules(shape: Shape, targets: str | Iterable[str]) -> tuple[str, ...]:
    """The module names that a preset, one name or several names stand for; each once, in the order given."""
    if targets == "all-linear" and not shape.tied:
        return (*PRESETS["all-linear"], "head")
    if isinstance(targets, str):
        names = PRESETS.get(targets, (targets,))
        valid = [*maps(shape), *PRESETS]
    else:
        names = tuple(dict.fromkeys(targets))
        valid = [*maps(shape)]
    if not names:
        raise ValueError("targets must name at least one module, got none")
    for name in names:
        if name not in maps(shape):
            tied = " (this model's head is its token embedding: target tokens)" if name == "head" else ""
            raise ValueError(f"target must be one of {nearest_first(name, valid)}; got {name!r}{tied}")
    return names


class _Map(NamedTuple):
    """A matrix that LoRA can adapt, and how many of it the model has."""

    d_in: int
    d_out: int
    copies: int


def maps(shape: Shape) -> dict[str, _Map]:
    d, f, layers = shape.d_model, shape.d_ff, shape.layers
    blocks = {name: _Map(d, d, layers) for name in ATTENTION}
    blocks |= {"mlp.up": _Map(d, f, layers), "mlp.down": _Map(f, d, layers)}
    head = {} if shape.tied else {"head": _Map(d, shape.vocab, 1)}
    return blocks | {"tokens": _Map(shape.vocab, d, 1)} | head
