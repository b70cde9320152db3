r"""What is exact: the laws of `lora_np.paper.laws`, and table 1, whose overhead is counted before it is timed."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..engine.threads import thread_map
from ..methods import adapt
from ..methods.bottleneck import AdapterH, AdapterL
from ..methods.lora import LoraConfig
from ..model import Transformer
from ..wrappers import merge
from .asking import Claim, Known, Section, Table
from .laws import LAWS, judged
from .tables import LATENCY

SHAPES = ((1, 32), (4, 64), (8, 128))  # batch, length: from few tokens at once to many
ROUNDS = 7


def laws(known: Known) -> Section:
    """Every law, judged anew: they cost a second or two."""
    found = [judged(law) for law in LAWS.values()]
    claims = tuple(Claim(f"{f.law.sentence} {f.law.formula}.", f.law.source, f.verdict, f.why) for f in found)
    return Section(
        "laws", "Exact laws", "To the bit, or within derived chance; each refuses its planted faults.", claims
    )


def latency(known: Known) -> Section:
    """Table 1: a merged LoRA adds nothing to what a token passes through, and adapters do."""
    rng, base = np.random.default_rng(0), known.base
    adapters: dict[str, Any] = {"AdapterL": AdapterL(8), "AdapterH": AdapterH(8)}
    models = {
        "the base": base,
        "LoRA, merged": merge(adapt(base, LoraConfig(), rng)),
        **{name: adapt(base, method, rng) for name, method in adapters.items()},
    }
    depth = {"the base": 0, "LoRA, merged": LoraConfig().depth, **{name: m.depth for name, m in adapters.items()}}
    timed = {shape: _timed(models, shape) for shape in SHAPES}
    lines = [
        (name, str(depth[name]), *(f"{statistics.median(timed[shape][name]):+.1%}" for shape in SHAPES))
        for name in models
        if name != "the base"
    ]
    printed = _printed()
    few, many = SHAPES[0], SHAPES[-1]
    falls = all(statistics.median(timed[few][name]) > statistics.median(timed[many][name]) > 0.0 for name in adapters)
    claims = (
        Claim(
            "A merged LoRA adds no product to a block; AdapterL adds two, AdapterH four, one after another.",
            "Hu et al. 2021, table 1",
            "holds here" if [depth[n] for n in models] == [0, 0, 2, 4] else "does not hold here",
            ", ".join(f"{name}: {depth[name]}" for name in models if name != "the base"),
        ),
        Claim(
            "The overhead of adapters is larger for few tokens at once than for many.",
            "Hu et al. 2021, table 1",
            "holds here" if falls else "cannot be said",
            f"medians of {ROUNDS} ratios, timed in turn on a machine that may be busy; printed: {printed}",
        ),
    )
    head = ("model", "products more", *(f"batch {batch}, {length} tokens" for batch, length in SHAPES))
    table = Table("Time of a forward pass beside the base's", head, tuple(lines))
    return Section(
        "table-1", "Table 1: latency", "Counted, then timed. Timings are not rows: no two are alike.", claims, (table,)
    )


def _printed() -> str:
    """The paper's own overheads, from the milliseconds that it prints."""
    parts = []
    for (batch, length), (lora, one, two) in LATENCY.items():
        over = [float(other) / float(lora) - 1.0 for other in (one, two)]
        parts.append(f"{batch}×{length}: {over[0]:+.1%}, {over[1]:+.1%}")
    return "; ".join(parts)


def _timed(models: Mapping[str, Transformer], shape: tuple[int, int]) -> dict[str, list[float]]:
    """How much longer than the base each takes, as a share, each round timed in turn."""
    tokens = np.random.default_rng(1).integers(32, 127, (shape[0], min(shape[1], models["the base"].config.context)))
    tokens %= models["the base"].config.vocab
    ratios: dict[str, list[float]] = {name: [] for name in models}
    with thread_map(1):
        for _ in range(ROUNDS):
            seconds = {name: _seconds(functools.partial(model, tokens)) for name, model in models.items()}
            for name, took in seconds.items():
                ratios[name].append(took / seconds["the base"] - 1.0)
    return ratios


def _seconds(call: Callable[[], Any]) -> float:
    """The shorter of two, so that what else the machine does counts less."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
