r"""Cells that look into updates: φ across ranks and seeds, amplification, energy, intruders; each beside its chance.

    small, large  LoRA of two ranks from one seed    other  the large one from another    full  full fine-tuning

Every figure is the mean over adapted maps; the chance level of each is that of `subspaces` and `updates`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..engine.arrays import Array
from ..lora import LoraLinear, adapters, delta
from ..methods.lora import LoraConfig
from ..methods.tuning import Full
from ..model import Transformer
from ..parameters import parameters
from .cells import Cell, Row
from .runs import Sides, trained
from .subspaces import Similarity, of_factors, of_updates, of_weight
from .updates import amplification, correlation, energy, intruders

OTHER = 500  # added to a seed for the second run of a pair
FULL_RATE = 3e-3
TOP = 10  # singular directions of an adapted weight that are looked at for intruders


def subspaces(cell: Cell, base: Transformer) -> Row:
    """settings: small, large (ranks), targets. The rate is that of LoRA."""
    about = cell.with_settings
    small, large, targets = int(about["small"]), int(about["large"]), about.get("targets", "qv")

    def run(rank: int, seed: int) -> tuple[Mapping[str, LoraLinear], float]:
        method = LoraConfig(rank, targets=targets)
        one = cell.having(seed=seed)
        outcome = trained(one, base, method, Sides.of(one, base, method))
        return adapters(outcome.model), outcome.score

    (first, _), (second, loss), (third, _) = run(small, cell.seed), run(large, cell.seed), run(large, cell.seed + OTHER)
    whole = trained(cell.having(rate=FULL_RATE), base, Full(), Sides.of(cell, base, Full())).model
    rng = np.random.default_rng([cell.seed, 7])
    more: dict[str, Any] = {
        **_phi("ranks", [of_factors(first[path].A, second[path].A) for path in first]),
        **_phi("seeds", [of_factors(second[path].A, third[path].A) for path in second]),
        **_phi("updates", [of_updates(_pair(second[p]), _pair(third[p])).left for p in second]),
        **_phi("gaussian", [_of_gaussian(second[path].A, rng) for path in second]),
        **_phi("weight", [_of_weight(second[path]) for path in second]),
        **_amplified("small", first.values()),
        **_amplified("large", second.values()),
        **_of_full(base, whole, list(first), rng),
        **_intruding(base, second, whole, rng),
        **_correlated(second),
    }
    return Row(cell, loss=loss, more=more)


def _pair(module: LoraLinear) -> tuple[Array, Array]:
    return module.B, module.A


def _phi(name: str, found: list[Similarity]) -> dict[str, Any]:
    """The mean of φ over maps, and what it would be by chance."""
    rows, columns = (min(one.values.shape[axis] for one in found) for axis in (0, 1))
    parts = [one.values[:rows, :columns] for one in found]
    return {name: _plain(np.mean(parts, axis=0)), f"{name} by chance": _plain(found[0].chance[:rows, :columns])}


def _plain(values: Array) -> list[Any]:
    return [[round(float(value), 6) for value in row] for row in np.atleast_2d(values)]


def _of_gaussian(A: Array, rng: np.random.Generator) -> Similarity:
    """Two random matrices of this shape: the right panel of figure 4."""
    return of_factors(rng.standard_normal(A.shape), rng.standard_normal(A.shape))


def _of_weight(module: LoraLinear) -> Similarity:
    """φ(W, ΔW) for the first tenth of the directions of W, as in figure 8."""
    found = of_weight(module.base.W, module.B, module.A).right
    return Similarity(found.values[: max(1, found.d // 10)], found.d)


def _amplified(name: str, modules: Iterable[LoraLinear]) -> dict[str, float]:
    found = [amplification(m.base.W, m.B, m.A, m.scaling) for m in modules]
    numbers: dict[str, Callable[[Any], float]] = {
        "factor": lambda a: a.factor,
        "factor by chance": lambda a: a.chance,
        "own": lambda a: a.own,
        "top": lambda a: a.top,
        "random": lambda a: a.random,
        "update": lambda a: a.update,
        "weight norm": lambda a: a.weight,
    }
    return {f"{name} {key}": float(np.mean([of(one) for one in found])) for key, of in numbers.items()}


def _of_full(base: Transformer, whole: Transformer, paths: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """How many directions hold nine tenths of what full fine-tuning changed, beside the same entries shuffled."""
    before, after = parameters(base), parameters(whole)
    found = [energy(after[f"{path}.W"] - before[f"{path}.W"], rng) for path in paths]
    return {
        "rank of 90 %": float(np.mean([one.rank(0.9) for one in found])),
        "rank of 90 % by chance": float(np.mean([one.chance_rank(0.9) for one in found])),
        "energy": _plain(np.mean([one.kept for one in found], axis=0)),
        "energy by chance": _plain(np.mean([one.chance for one in found], axis=0)),
    }


def _intruding(
    base: Transformer, lora: Mapping[str, LoraLinear], whole: Transformer, rng: np.random.Generator
) -> dict[str, float]:
    before, after = parameters(base), parameters(whole)
    top = min(TOP, base.config.d_model)
    of_lora = [intruders(m.base.W, m.base.W + delta(m), rng, top, draws=2) for m in lora.values()]
    of_full = [intruders(before[f"{path}.W"], after[f"{path}.W"], rng, top, draws=2) for path in lora]
    return {
        "intruders of LoRA": float(np.mean([one.count for one in of_lora])),
        "intruders of LoRA by chance": float(np.mean([one.chance for one in of_lora])),
        "intruders of full": float(np.mean([one.count for one in of_full])),
        "intruders of full by chance": float(np.mean([one.chance for one in of_full])),
    }


def _correlated(modules: Mapping[str, LoraLinear]) -> dict[str, float]:
    """The mean |cosine| of the updates of two maps, and that of two random directions, √(2/π) of the spread."""
    found = correlation({path: _pair(module) for path, module in modules.items()})
    pairs = np.abs(found.cosine[np.triu_indices(len(found.paths), 1)])
    return {"cosine": float(pairs.mean()), "cosine by chance": float(np.sqrt(2.0 / np.pi) * found.spread)}
