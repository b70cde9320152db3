r"""What many tests build: small models whose every array matters, moved adapters, random batches, and two judges.

`initialize` gives biases of zero, gains of one and weights so small that a mistake in one of them hardly shows.
`model` here draws every array at a size at which it shows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import settings

from lora_np.config import TransformerConfig
from lora_np.engine.arrays import Array
from lora_np.lora import LoraLinear, adapters
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.model import Linear, Transformer, initialize
from lora_np.names import plain
from lora_np.parameters import parameters, with_modules, with_parameters
from lora_np.tasks import Batch

random_shapes = settings(max_examples=25)
few_shapes = settings(max_examples=10)

# float64 results of two correct ways, relative to the largest entry (or to 1, the size of what goes in). Measured
# on 300 cases of every operation and on whole models: below 5e-15, but 8e-14 for layer norms of two or three nearly
# equal numbers, so the margin is 10. The smallest planted fault moves 3e-3.
AGREE = 1e-12

# A gap by rounding alone shrinks from float32 to float64 as the machine epsilons do, by 2^-29. Which roundings meet
# is chance: measured on 40 models, the quotient of the largest gaps lies in 0.5 to 2.9 times 2^-29, so the margin is
# 10. A real gap keeps its size: a planted one lies 2^29 higher.
SHRINKS = 32 * 2.0**-29


def assert_agree(ours: Array, theirs: Array, name: str = "") -> None:
    """Equal shapes, and nowhere further apart than `AGREE` of the largest entry."""
    assert np.shape(ours) == np.shape(theirs), f"{name}: shape {np.shape(ours)} and {np.shape(theirs)}"
    gap = np.abs(np.asarray(ours) - np.asarray(theirs)).max(initial=0.0)
    size = max(1.0, np.abs(theirs).max(initial=0.0))
    assert gap <= AGREE * size, f"{name}: {gap} apart, at a size of {size}"


def assert_shrinks(gap_of: Callable[[Any], Array]) -> None:
    """`gap_of(dtype)` is rounding: there is one in float32, and it shrinks like the epsilons."""
    gap32, gap64 = (float(np.abs(gap_of(dtype)).max()) for dtype in (np.float32, np.float64))
    assert gap32 > 0, "bit for bit equal in float32: the two are not two ways"
    assert gap64 <= SHRINKS * gap32, f"{gap64} in float64 beside {gap32} in float32"


def config(**changes: Any) -> TransformerConfig:
    sizes = {"vocab": 11, "context": 12, "d_model": 8, "layers": 2, "heads": 2, **changes}
    return TransformerConfig(**sizes)


def model(seed: int = 0, dtype: Any = np.float64, **changes: Any) -> Transformer:
    """A transformer of which every array is drawn at random: logits of size 1, biases and shifts of size 0.3."""
    rng = np.random.default_rng(seed)
    plain = initialize(config(**changes), rng, np.float64)
    return cast(with_parameters(plain, {name: _drawn(name, a, rng) for name, a in parameters(plain).items()}), dtype)


def _drawn(name: str, array: Array, rng: np.random.Generator) -> Array:
    noise = rng.standard_normal(array.shape)
    if name.endswith("gamma"):
        return 1.0 + 0.3 * noise
    if name.startswith(("tokens", "positions", "types")):
        return 0.7 * noise
    return 0.3 * noise if array.ndim == 1 else noise / math.sqrt(array.shape[1])


def cast(node: Any, dtype: Any) -> Any:
    """The same model in another precision."""
    return with_parameters(node, {name: array.astype(dtype) for name, array in parameters(node).items()})


def moved(node: Any, seed: int = 1) -> Any:
    """An adapted model as after long training: every B is far from zero, and s·BA as large as W0."""
    rng = np.random.default_rng(seed)
    fresh = {path: module.B for path, module in adapters(node).items()}
    moves = {
        f"{path}.B" if path else "B": 0.5 * rng.standard_normal(B.shape).astype(B.dtype) for path, B in fresh.items()
    }
    return with_parameters(node, moves)


def adapted(base: Transformer, seed: int = 2, **lora: Any) -> Transformer:
    """The base with fresh adapters of rank 2; see `moved`."""
    return adapt(base, LoraConfig(**{"rank": 2, "alpha": 3.0, **lora}), np.random.default_rng(seed))


def rescaled(node: Any, factor: float) -> Any:
    """A planted fault: every s is off by the factor."""
    return with_modules(node, {path: replace(m, scaling=m.scaling * factor) for path, m in adapters(node).items()})


def lora_linear_module(
    rng: np.random.Generator, d_out: int, d_in: int, rank: int, dtype: Any = np.float64, bias: bool = True
) -> LoraLinear:
    """One adapted map with B far from zero and a scaling that is no power of two."""
    normal = rng.standard_normal
    W, A = normal((d_out, d_in)) / math.sqrt(d_in), normal((rank, d_in)) / math.sqrt(d_in)
    B, b = normal((d_out, rank)), normal(d_out) if bias else None
    return cast(LoraLinear(Linear(W, b), A, B, 1.7 / rank), dtype)


def tokens_of(node: Transformer, seed: int = 3, batch: int = 3, seq: int | None = None) -> Array:
    shape = batch, seq or node.config.context
    return np.random.default_rng(seed).integers(0, node.config.vocab, shape)


def random_batch(node: Transformer, seed: int = 3, batch: int = 3, seq: int | None = None) -> Batch:
    """Random tokens, targets and weights; the first position of each row is not trained."""
    rng = np.random.default_rng(seed)
    tokens = tokens_of(node, seed, batch, seq)
    weights = rng.random(tokens.shape)
    weights[:, 0] = 0.0
    targets = rng.integers(0, node.config.vocab, tokens.shape)
    return Batch(tokens, targets, (weights / weights.sum()).astype(np.float32))


def for_textbook(node: Transformer) -> tuple[dict[str, Array], dict[str, float]]:
    """The names that the textbook uses (a frozen W beside its A, not below `base`), and s for each adapted name."""
    arrays = {plain(path): array for path, array in parameters(node).items()}
    return arrays, {path: module.scaling for path, module in adapters(node).items()}


def hashes(arrays: Mapping[str, Array]) -> dict[str, str]:
    """The bytes of each array, as digests: byte-identical means equal here."""
    return {
        name: hashlib.sha256(f"{a.dtype}{a.shape}".encode() + a.tobytes()).hexdigest() for name, a in arrays.items()
    }
