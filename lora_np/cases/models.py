r"""Every method and every architecture on a small model, beside `lora_np.textbook`.

A new method needs one row of `METHOD_CASES`, a new architecture one of `ARCHITECTURE_CASES`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from .. import textbook
from ..config import TransformerConfig
from ..engine.devices import to_device
from ..method import Method
from ..methods.bottleneck import AdapterH, AdapterL, AdapterP, Compacter
from ..methods.classify import Classify
from ..methods.lora import LoraConfig
from ..methods.prefix import LoraPrefixEmbedding, LoraPrefixLayer, PrefixEmbedding, PrefixKeysValues, PrefixLayer
from ..methods.tuning import BitFit, Full, Top
from ..methods.variants import DoRA, LoraFA, LoraPlus, PiSSA, VeRA
from ..model import Transformer, initialize, language_model_loss
from ..names import plain
from ..parameters import Arrays, parameters, with_parameters
from ..tasks import Batch
from ..wrappers import wrappers
from .kinds import Case
from .operations import along

# A setting of every method that fits the small models here; a row of `METHODS` without one is found by a test.
METHOD_CASES: dict[str, Method] = {
    "lora": LoraConfig(
        rank=1,
        alpha=1.5,
        targets=("attention+mlp", "tokens"),
        bias="all",
        tied_head="tie",
        ranks={"attention.query": 2, "mlp.down": 2},
    ),
    "full": Full(),
    "top": Top(blocks=1),
    "bitfit": BitFit(),
    "prefix-embedding": PrefixEmbedding(prefix=1, infix=1),
    "prefix-layer": PrefixLayer(prefix=1, infix=1),
    "prefix-kv": PrefixKeysValues(length=2),
    "lora+prefix-embedding": LoraPrefixEmbedding(prefix=1, rank=2),
    "lora+prefix-layer": LoraPrefixLayer(prefix=1, rank=2),
    "adapter-h": AdapterH(rank=2, dropped=1),
    "adapter-l": AdapterL(rank=2, dropped=1),
    "adapter-p": AdapterP(rank=2, dropped=1),
    "compacter": Compacter(rank=2, n=2, dropped=1),
    "dora": DoRA(rank=2, alpha=3.0, targets=("blocks.0.attention.query", "blocks.1.attention.value")),
    "vera": VeRA(rank=2),
    "pissa": PiSSA(rank=2, alpha=4.0, targets=("attention.value",)),
    "lora+": LoraPlus(rank=2, targets=("attention.value",)),
    "lora-fa": LoraFA(rank=2),
}


def model_cases(seed: int = 0, device: str = "cpu") -> Iterator[Case]:
    """Whole models: every method on a causal one, every array of a bidirectional one with padding, and architectures.

    What trains whole blocks is asked along two directions of each array, but for full fine-tuning of the first two.
    """
    for name, method in METHOD_CASES.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        d_head = 2 if isinstance(method, Full) else 4  # wider norms are smoother
        case = model_case(name, small_model(rng, d_head=d_head), method, rng, device)
        yield along(case, rng) if isinstance(method, Top) else case
    rng = np.random.default_rng([seed, zlib.crc32(b"padded")])
    yield model_case("full, bidirectional and padded", small_model(rng, causal=False), Full(), rng, device)
    for name, (config, method) in ARCHITECTURE_CASES.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        case = model_case(name, initialize(config, rng, np.float64), method, rng, device)
        yield along(case, rng) if isinstance(method, Full) else case


_LLAMA = TransformerConfig(5, 5, 8, 1, 2, 4, architecture="llama", kv_heads=1, theta=100.0)
_BERT = TransformerConfig(5, 5, 8, 1, 2, 4, causal=False, architecture="bert", types=2, classes=3)
_DECODER = TransformerConfig(5, 5, 8, 1, 2, 4)
_EVERY_MAP = LoraConfig(rank=1, alpha=3.0, targets="attention+mlp")

# Other architectures than GPT-2 as small as they can be: shared keys and a tied table, a head of classes and padding.
ARCHITECTURE_CASES: dict[str, tuple[TransformerConfig, Method]] = {
    "llama, full": (_LLAMA, Full()),
    "llama, lora": (replace(_LLAMA, rope_factor=3.0, rope_context=20), _EVERY_MAP),
    "llama, lora, wide heads": (replace(_LLAMA, head_dim=6), _EVERY_MAP),
    "bert, full": (_BERT, Full()),
    "bert, lora": (_BERT, replace(_EVERY_MAP, bias="all")),
    "bert, full, of the mean": (replace(_BERT, reads="mean"), Full()),
    "gpt2, lora and a head of the last": (_DECODER, Classify(_EVERY_MAP, ("a", "b", "c"), "last")),
}


def textbook_settings(config: TransformerConfig) -> dict[str, Any]:
    """What `lora_np.textbook` is told of a model, beside its arrays and its heads."""
    kind = config.kind
    exact = kind.mlp == "gelu, exact"
    about = {"causal": config.causal, "theta": config.theta, "eps": config.eps, "reads": config.reads}
    return {**about, "post": kind.post, "exact": exact, "rope": config.rope}


def small_model(rng: np.random.Generator, causal: bool = True, d_head: int = 2) -> Transformer:
    """Two blocks of random sizes, in float64; a bidirectional one has a head of its own."""
    heads = int(rng.integers(2, 4))
    sizes: dict[str, Any] = {"vocab": int(rng.integers(5, 9)), "context": int(rng.integers(6, 9)), "heads": heads}
    sizes["d_model"] = d_head * heads
    config = TransformerConfig(**sizes, layers=2, d_ff=int(rng.integers(5, 9)), causal=causal, tied=causal)
    return initialize(config, rng, np.float64)


def model_case(name: str, base: Transformer, method: Method, rng: np.random.Generator, device: str = "cpu") -> Case:
    """The loss of an adapted model moved to a random point, so that B ≠ 0 and no array is at its special start."""
    applied = method.apply(base, rng)
    far = dict.fromkeys(
        method.trained(applied), 0.6 if wrappers(applied) else 0.4
    )  # what is small moves the loss little
    model = with_parameters(
        applied,
        {name: a + far.get(name, 0.4) * rng.standard_normal(a.shape) for name, a in parameters(applied).items()},
    )
    config, shape = model.config, (2, model.config.context - 1)
    predicted = (2, 1) if config.classes else shape
    tokens, targets = rng.integers(0, config.vocab, shape), rng.integers(0, config.outcomes, predicted)
    special = np.arange(config.vocab, model.tokens.words)
    tokens[:, : len(special)] = special
    weights = rng.random(predicted) * (rng.random(predicted) < 0.7)
    weights[0, -1] = 1.0
    weights /= weights.sum()
    mask = (
        None if config.causal and not config.classes else np.arange(shape[1]) < np.array([[shape[1]], [shape[1] - 2]])
    )
    types = rng.integers(0, config.types, shape) if config.types else None
    frozen = {plain(path): array for path, array in parameters(model).items()}
    scaling = {plain(path): node.scaling for path, node in wrappers(model).items() if hasattr(node, "scaling")}

    node, batch, padding, kinds = to_device((model, Batch(tokens, targets, weights), mask, types), device)
    settings = {**textbook_settings(config), "mask": mask, "types": types}

    def hand(point: Arrays) -> Any:
        return language_model_loss(with_parameters(node, point), batch, padding, kinds)

    def book(point: Arrays) -> Any:
        p = {**frozen, **{plain(path): array for path, array in point.items()}}
        return textbook.loss(p, tokens, targets, weights, config.heads, scaling, **settings)

    point = method.trained(model)
    return Case(name, hand, book, point, float(hand(to_device(point, device))), device)
