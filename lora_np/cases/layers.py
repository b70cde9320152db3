r"""The rows from which the conformance vectors are written: layers with an adapter, and what must be refused.

Settings are in the words of PEFT's adapter_config.json; names and shapes are those of (K2) in `equations`. A new
vector needs one row of `VECTORS`, or of `REFUSED` when an implementation must refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..engine.arrays import Array
from .equations import Arrays, Settings
from .vectors import DTYPES, Numbers, Vector

LORA: dict[str, Any] = {
    "r": 2,
    "lora_alpha": 3,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "training": False,
    "lora_dropout": 0.0,
}
GRADIENTS = ("dA", "dB", "dx")
ALL = ("scale", "y", *GRADIENTS, "merged")
Row = tuple[str, str, Settings, Callable[[Numbers], Arrays], tuple[str, ...]]


def linear(
    rng: Numbers, d_in: int = 5, d_out: int = 4, rank: int = 2, lead: tuple[int, ...] = (3,), transposed: bool = False
) -> dict[str, Array]:
    W = (d_in, d_out) if transposed else (d_out, d_in)
    return {
        "x": rng(*lead, d_in), "W": rng(*W), "b": rng(d_out), "A": rng(rank, d_in), "B": rng(d_out, rank),
        "dy": rng(*lead, d_out),
    }  # fmt: skip


def _row(
    kind: str, words: str, build: Callable[[Numbers], Arrays], wanted: tuple[str, ...] = ALL, **settings: Any
) -> Row:
    dora = {"use_dora": True, "norm": "constant"} if kind == "dora" else {}
    return kind, words, {**LORA, **dora, **settings}, build, wanted


def _dropout(rng: Numbers) -> dict[str, Array]:
    return {**linear(rng), "mask": rng.keep(3, 5)}


def _fresh(rng: Numbers) -> dict[str, Array]:
    p = linear(rng)
    return {**p, "B": np.zeros_like(p["B"])}


def _dora(rng: Numbers, d_in: int = 5, d_out: int = 4, transposed: bool = False) -> dict[str, Array]:
    return {**linear(rng, d_in, d_out, transposed=transposed), "m": rng(d_out, low=6, high=20)}


def _embedding(rng: Numbers, vocab: int = 7, d: int = 4, head: bool = False) -> dict[str, Array]:
    p = {"tokens": np.array([0, 3, 3, vocab - 1]), "W": rng(vocab, d), "A": rng(2, vocab), "B": rng(d, 2)}
    p["dy"] = rng(4, d)
    return {**p, "x": rng(3, d), "dlogits": rng(3, vocab)} if head else p


def _tokens(rng: Numbers, head: bool = False) -> dict[str, Array]:
    p = {"tokens": np.array([0, 5, 2, 5]), "W": rng(7, 4), "indices": np.array([5, 2]), "rows": rng(2, 4)}
    p["dy"] = rng(4, 4)
    return {**p, "x": rng(3, 4), "dlogits": rng(3, 7)} if head else p


def _experts(rng: Numbers, d_in: int = 4, d_out: int = 5, stacked: bool = False) -> dict[str, Array]:
    E, r = 3, 2
    A, B = (rng(E, r, d_in), rng(E, d_out, r)) if stacked else (rng(E * r, d_in), rng(d_out, E * r))
    return {"x": rng(E, 2, d_in), "W": rng(E, d_out, d_in), "A": A, "B": B, "dy": rng(E, 2, d_out)}


def _fused(rng: Numbers, sizes: list[int], adapted: list[tuple[str, int]], d_in: int = 4) -> dict[str, Array]:
    p = {"x": rng(3, d_in), "W": rng(sum(sizes), d_in), "dy": rng(3, sum(sizes))}
    for name, size in adapted:
        p |= {f"A.{name}": rng(2, d_in), f"B.{name}": rng(size, 2)}
    return p


def _grouped(rng: Numbers, transposed: bool = False) -> dict[str, Array]:
    d, groups, r = 4, 2, 2
    W = rng(d, 3 * d) if transposed else rng(3 * d, d)
    return {"x": rng(3, d), "W": W, "A": rng(groups * r, d), "B": rng(groups * d, r), "dy": rng(3, 3 * d)}


def _mixed(rng: Numbers, which: tuple[int, ...] = (1, 0, -1, 1, 0)) -> dict[str, Array]:
    p = {"x": rng(len(which), 5), "W": rng(4, 5), "which": np.array(which)}
    for k, rank in enumerate((2, 3)):
        p |= {f"A.{k}": rng(rank, 5), f"B.{k}": rng(4, rank)}
    return p


def _cast(rng: Numbers, small: float) -> dict[str, Array]:
    """Factors whose product nearly cancels, so that rounding them first loses the update; a row of small numbers."""
    a, b, fine = rng(1, 5), rng(4, 1), 1.0 / 512.0
    A = np.concatenate([a + fine * rng(1, 5), -a])
    B = np.concatenate([b, b + fine * rng(4, 1)], axis=1)
    rows = np.array([1.0, 1.0, 1.0, small])[:, None]
    W = rows * rng(4, 5) / 8.0
    return {"W": W.astype(np.float32), "A": A.astype(np.float32), "B": (rows * B).astype(np.float32)}


QKV: dict[str, Any] = {"parts": ["q", "k", "v"], "sizes": [6, 2, 2], "adapted": ["q", "v"], "layout": "concatenated"}
GATED: dict[str, Any] = {"parts": ["gate", "up"], "sizes": [3, 3], "adapted": ["gate", "up"], "layout": "concatenated"}
ONE_OF_TWO = ("dA.up", "dB.up")
TWO: dict[str, Any] = {"adapters": [{**LORA}, {**LORA, "r": 3, "lora_alpha": 6, "use_rslora": True}]}
PATTERNS: dict[str, Any] = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.self_attn.q_proj": 10}}
Q1, Q0, OTHER = "layers.1.self_attn.q_proj", "layers.0.self_attn.q_proj", "layers.1.self_attn.my_q_proj"

VECTORS: dict[str, Row] = {
    "linear/plain": _row("linear", "s = α/r, a map that is not square, with a bias", linear, (*ALL, "merged_b")),
    "linear/square": _row("linear", "d_in = d_out = r: shapes betray no mix-up", lambda g: linear(g, 4, 4, 4), r=4),
    "linear/axes": _row("linear", "x with two leading axes", lambda g: linear(g, lead=(2, 3))),
    "linear/fresh": _row("linear", "B = 0: the base, to the bit but for rounding, and no gradient of A", _fresh),
    "linear/rank 1": _row("linear", "r = 1, where α/r and α/√r are the same", lambda g: linear(g, rank=1), r=1),
    "linear/small alpha": _row("linear", "α < r", lambda g: linear(g, rank=4), r=4, lora_alpha=1),
    "linear/rslora": _row("linear", "s = α/√r, r = 4", lambda g: linear(g, rank=4), r=4, lora_alpha=6, use_rslora=True),
    "linear/rslora 2": _row("linear", "s = α/√r, r = 2: not a fraction", linear, use_rslora=True),
    "linear/conv1d": _row(
        "linear", "the base stores (d_in, d_out), as GPT-2's Conv1D", lambda g: linear(g, transposed=True),
        fan_in_fan_out=True,
    ),
    "linear/conv1d square": _row(
        "linear", "the same, square", lambda g: linear(g, 4, 4, transposed=True), fan_in_fan_out=True
    ),
    "linear/rank pattern": _row(
        "linear", "r of this module from rank_pattern", lambda g: linear(g, rank=4), module=Q0, **PATTERNS
    ),
    "linear/both patterns": _row(
        "linear", "r and α of this module from patterns", lambda g: linear(g, rank=4), module=Q1, **PATTERNS
    ),
    "linear/no pattern": _row(
        "linear", "a name that only ends like the pattern: it must begin after a dot", linear, module=OTHER, **PATTERNS
    ),
    "linear/first pattern": _row(
        "linear", "two patterns match: the first one counts", linear, module=Q1,
        alpha_pattern={"q_proj": 5, "layers.1.self_attn.q_proj": 10},
    ),
    "linear/dropout": _row(
        "linear", "training, the mask is given: it acts on what A reads, and on nothing else", _dropout,
        training=True, lora_dropout=0.5,
    ),
    "linear/dropout off": _row(
        "linear", "evaluating: the same settings, and nothing is dropped", linear, lora_dropout=0.5
    ),
    "linear/lora bias": _row(
        "linear", "B has a bias: s scales it too", lambda g: {**linear(g), "lora_b": g(4)},
        (*ALL, "dlora_b", "merged_b"), lora_bias=True,
    ),
    "linear/trained bias": _row(
        "linear", "the bias of the base was trained: the adapter's replaces it",
        lambda g: {**linear(g), "trained_b": g(4)}, (*ALL, "dtrained_b", "merged_b"), bias="lora_only",
    ),
    "dora/plain": _row("dora", "a norm for each output; s inside the norm", _dora, ("scale", "y", "merged")),
    "dora/square": _row("dora", "the same, square", lambda g: _dora(g, 4, 4), ("scale", "y", "merged")),
    "dora/conv1d": _row(
        "dora", "the base stores (d_in, d_out)", lambda g: _dora(g, 4, 4, True), ("y", "merged"), fan_in_fan_out=True
    ),
    "dora/gradient": _row(
        "dora", "gradients through the norm", _dora, (*GRADIENTS, "dm"), norm="differentiated"
    ),
    "dora/gradient, constant": _row(
        "dora", "gradients with the norm as a constant, Liu et al. 2024, section 4.3", _dora, (*GRADIENTS, "dm")
    ),
    "embedding/table": _row(
        "embedding", "ΔW = s(BA)ᵀ; a token that occurs twice", _embedding, ("scale", "y", "dA", "dB", "merged")
    ),
    "embedding/square": _row(
        "embedding", "as many tokens as numbers of each", lambda g: _embedding(g, 4), ("y", "dA", "dB", "merged")
    ),
    "tied/head": _row(
        "tied", "the head reads the adapted table, too: y is looked up, logits = x Ŵᵀ",
        lambda g: _embedding(g, head=True), ("y", "logits", "dA", "dB", "merged", "merged_head"),
    ),
    "tokens/rows": _row(
        "tokens", "trained rows stand in the place of the table's", _tokens, ("y", "drows", "merged")
    ),
    "tokens/tied": _row(
        "tokens", "and the tied head reads them", lambda g: _tokens(g, True),
        ("y", "logits", "drows", "merged", "merged_head"),
    ),
    "experts/peft": _row(
        "experts", "A (E·r, in), expert slowest; B (out, r·E), expert fastest", _experts,
        ("y", "dA", "dB", "dx", "merged"), packing="peft",
    ),
    "experts/peft square": _row(
        "experts", "the same, d_in = d_out", lambda g: _experts(g, 4, 4), ("y", "dA", "dB", "merged"), packing="peft"
    ),
    "experts/stacked": _row(
        "experts", "A (E, r, in), B (E, out, r)", lambda g: _experts(g, stacked=True),
        ("y", "dA", "dB", "dx", "merged"), packing="stacked",
    ),
    "fused/qkv": _row(
        "fused", "q and v of a fused matrix with fewer keys than queries; k is the base's",
        lambda g: _fused(g, [6, 2, 2], [("q", 6), ("v", 2)]), ("y", "dx", "dA.q", "dB.v", "merged"), **QKV,
    ),
    "fused/gate up": _row(
        "fused", "gate before up", lambda g: _fused(g, [3, 3], [("gate", 3), ("up", 3)]),
        ("y", "dx", *ONE_OF_TWO, "merged"), **GATED,
    ),
    "fused/interleaved": _row(
        "fused", "rows of gate and up in turn", lambda g: _fused(g, [3, 3], [("gate", 3), ("up", 3)]),
        ("y", "dx", *ONE_OF_TWO, "merged"), **{**GATED, "layout": "interleaved"},
    ),
    "grouped/qv": _row(
        "grouped", "loralib's MergedLinear: A (2r, d), B (2d, r), for q and v", _grouped,
        ("y", "dA", "dB", "dx", "merged"), **{**QKV, "sizes": [4, 4, 4]},
    ),
    "grouped/qv conv1d": _row(
        "grouped", "the same, the base stores (d_in, 3d)", lambda g: _grouped(g, True),
        ("y", "dA", "dB", "dx", "merged"), **{**QKV, "sizes": [4, 4, 4], "fan_in_fan_out": True},
    ),
    "mixed/two and none": _row(
        "mixed", "each row has its adapter, of its own rank and scale; -1 has none", _mixed, ("y",), **TWO
    ),
    "cast/bfloat16": _row(
        "cast", "a float32 adapter merged into a bfloat16 base", lambda g: _cast(g, 2.0**-24), ("merged",),
        stored="bfloat16",
    ),
    "cast/float16": _row(
        "cast", "a float32 adapter merged into a float16 base", lambda g: _cast(g, 1.0), ("merged",), stored="float16"
    ),
}  # fmt: skip
ONLY = {
    **dict.fromkeys(("dora/plain", "dora/square", "dora/conv1d"), DTYPES[:3]),  # in bfloat16 (K5) allows anything
    "dora/gradient": DTYPES[:2],
    "dora/gradient, constant": DTYPES[:2],
    "cast/bfloat16": ("bfloat16",),
    "cast/float16": ("float16",),
}


def _with(**arrays: Any) -> Callable[[Arrays, Settings], tuple[Arrays, Settings]]:
    return lambda p, settings: ({**p, **{name: change(p) for name, change in arrays.items()}}, settings)


def _without(*names: str) -> Callable[[Arrays, Settings], tuple[Arrays, Settings]]:
    def change(p: Arrays, settings: Settings) -> tuple[Arrays, Settings]:
        kept = {name: array for name, array in p.items() if name not in names}
        return kept, {name: value for name, value in settings.items() if name not in names}

    return change


def _setting(**values: Any) -> Callable[[Arrays, Settings], tuple[Arrays, Settings]]:
    return lambda p, settings: (p, {**settings, **values})


def _with_nan(p: Arrays) -> Array:
    B = p["B"].copy()
    B[1, 0] = np.nan
    return B


Change = Callable[[Arrays, Settings], tuple[Arrays, Settings]]
# The row it is made of, why it must be refused, where that was learnt, and what is changed.
REFUSED: dict[str, tuple[str, str, str, Change]] = {
    "refuse/ranks differ": (
        "linear/plain", "B has three columns for the two rows of A", "", _with(B=lambda p: np.ones((4, 3)))
    ),
    "refuse/A and B exchanged": (
        "linear/plain", "A (d_in, r) and B (r, d_out) come transposed", "osaurus-ai/vmlx-swift#320",
        _with(A=lambda p: p["A"].T, B=lambda p: p["B"].T),
    ),
    "refuse/another base": (
        "linear/plain", "W is of another width than A", "",
        _with(W=lambda p: np.ones((4, 6)), x=lambda p: np.ones((3, 6))),
    ),
    "refuse/rank 0": (
        "linear/plain", "r = 0: s is no number", "", lambda p, s: (
            {**p, "A": p["A"][:0], "B": p["B"][:, :0]}, {**s, "r": 0}
        ),
    ),
    "refuse/no alpha": (
        "linear/plain", "the settings hold no lora_alpha, and no rule says what it is", "ml-explore/mlx-lm#1671",
        _without("lora_alpha"),
    ),
    "refuse/rank of the pattern": (
        "linear/both patterns", "rank_pattern says 8, the tensors say 4", "vllm-project/vllm-omni#6565",
        _setting(rank_pattern={"q_proj": 8}),
    ),
    "refuse/not a number": (
        "linear/plain", "B holds a NaN, which merging would write into the base", "huggingface/peft#3706",
        _with(B=_with_nan),
    ),
    "refuse/bias without a base's": (
        "linear/lora bias", "B has a bias and the base has none to merge it into", "huggingface/peft#2716",
        _without("b"),
    ),
    "refuse/dora without m": (
        "dora/plain", "use_dora, and no magnitude: merged as plain LoRA it would be another model",
        "unslothai/unsloth-zoo#828", _without("m"),
    ),
    "refuse/m of another length": ("dora/plain", "m has a number for each input", "", _with(m=lambda p: np.ones(5))),
    "refuse/token beyond": (
        "embedding/table", "a token that the table has not", "",
        _with(tokens=lambda p: np.array([0, 7]), dy=lambda p: p["dy"][:2]),
    ),
    "refuse/trained twice": (
        "tokens/rows", "two rows for one token", "", _with(indices=lambda p: np.array([5, 5]))
    ),
    "refuse/experts": (
        "experts/peft", "seven rows of A are not shared by three experts", "", _with(A=lambda p: np.ones((7, 4)))
    ),
    "refuse/unknown adapter": (
        "mixed/two and none", "a row asks for an adapter that is not there", "huggingface/peft#2090",
        _with(which=lambda p: np.array([1, 0, -1, 2, 0])),
    ),
}  # fmt: skip


def vectors() -> Iterator[Vector]:
    """Every vector, what must be refused last; without its outputs (`Vector.answered`)."""
    for name, (kind, words, settings, build, wanted) in VECTORS.items():
        yield Vector(name, kind, words, settings, build(Numbers(name)), wanted, ONLY.get(name, DTYPES))
    for name, (like, reason, source, change) in REFUSED.items():
        kind, words, settings, build, wanted = VECTORS[like]
        inputs, changed = change(build(Numbers(like)), settings)
        yield Vector(name, kind, words, changed, inputs, wanted, DTYPES[:2], reason, source)
