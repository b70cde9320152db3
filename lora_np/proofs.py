r"""Merged = adapted, map by map, on what really reaches each map when tokens run through the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .engine.arrays import Array
from .lora import LoraLinear, adapters, rounding_bound
from .model import Transformer
from .parameters import walk, with_modules


@dataclass(frozen=True)
class MapProof:
    """One adapted map on real activations: |adapted − merged| where it comes closest to its rounding bound."""

    path: str
    gap: float
    bound: float
    effect: float  # the largest |adapted − base|: what the adapter does at all

    @property
    def used(self) -> float:
        """gap / bound: at most 1 for a correct merge."""
        return self.gap / self.bound if self.bound else math.inf

    @property
    def holds(self) -> bool:
        """Within the bound everywhere, and an effect beside which the bound is small enough to mean something."""
        return self.gap <= self.bound < self.effect


def prove_maps(adapted: Transformer, merged: Transformer, tokens: Array) -> tuple[MapProof, ...]:
    """Feed tokens through the adapted model, and compare each adapted map with its merged one on what reached it."""
    recorders = {path: _Recorder(module, []) for path, module in adapters(adapted).items()}
    with_modules(adapted, recorders)(tokens)
    plain = dict(walk(merged))
    return tuple(_map_proof(path, r.module, plain[path], r.inputs[0]) for path, r in recorders.items())


def _map_proof(path: str, module: LoraLinear, merged: Any, x: Array) -> MapProof:
    y, bound = module(x).astype(np.float64), rounding_bound(module, x)
    gap = abs(y - merged(x))
    worst = int((gap / np.maximum(bound, np.finfo(np.float64).tiny)).argmax())
    return MapProof(path, float(gap.flat[worst]), float(bound.flat[worst]), float(abs(y - module.base(x)).max()))


@dataclass(frozen=True)
class _Recorder:
    """An adapted map that keeps what it was called with."""

    module: LoraLinear
    inputs: list[Array]

    def __call__(self, x: Array) -> Array:
        self.inputs.append(x)
        return self.module(x)
