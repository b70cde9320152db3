"""What the tests of serving share: a small base that writes, adapters of unequal ranks, maps and scales, requests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from builders import adapted, model, moved

from lora_np.files import digest, save_adapter
from lora_np.generation import generate
from lora_np.model import Transformer
from lora_np.serving.adapter import Adapter, adapter_of, applied, method_of
from lora_np.serving.bank import AdapterBank
from lora_np.serving.requests import Request

CONTEXT, WORDS = 20, 11
KINDS: tuple[tuple[int, Any, float], ...] = (
    (1, "qv", 3.0),
    (2, "qkvo", 1.0),
    (2, "all-linear", 5.0),
    (3, ("blocks.1.mlp.up", "blocks.0.attention.value"), 4.0),
    (2, "qv", 2.0),
)


@cache
def base_of(dtype: Any = np.float64, **changes: Any) -> Transformer:
    return model(2, dtype, context=CONTEXT, tied=False, **changes)


def adapters_of(base: Transformer) -> list[Adapter]:
    """Five, of ranks 1 to 3, on other maps each, with other scales."""
    made = []
    for i, (rank, targets, alpha) in enumerate(KINDS):
        made.append(adapter_of(moved(adapted(base, i, rank=rank, targets=targets, alpha=alpha), i), f"a{i}"))
    return made


def bank_of(base: Transformer) -> AdapterBank:
    bank = AdapterBank(base)
    for adapter in adapters_of(base):
        bank.add(adapter)
    return bank


def requests_of(count: int, seed: int = 0, names: int = len(KINDS)) -> list[Request]:
    """Prompts of 1 to 19 tokens, ends that come or not, greedy and drawn, of every adapter and of none."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        prompt = tuple(rng.integers(0, WORDS, rng.integers(1, CONTEXT)).tolist())
        number, hot = int(rng.integers(-1, names)), float(rng.choice([0.0, 0.0, 1.3]))
        name = None if number < 0 else f"a{number}"
        most, end = int(rng.integers(1, CONTEXT + 5)), int(rng.integers(0, WORDS))
        found.append(Request(prompt, name, most, hot, int(rng.integers(100)), end))
    return found


def alone(base: Transformer, bank: AdapterBank, request: Request) -> tuple[int, ...]:
    """The same request by `generate`, with its adapter beside the base and nobody else there."""
    node = base if request.adapter is None else applied(base, bank[request.adapter])
    rng = np.random.default_rng(request.seed)
    prompt = np.array(request.prompt)
    return tuple(generate(node, prompt, request.most, temperature=request.temperature, rng=rng, end=request.end))


def write_adapter(folder: Path, adapter: Adapter, base: Transformer) -> Path:
    """An adapter folder as `lora-np adapt` writes it."""
    folder.mkdir(parents=True)
    save_adapter(folder, applied(base, adapter), method_of(adapter), digest(base))
    return folder
