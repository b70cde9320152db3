r"""An adapter apart from any model: a name, and A, B and s for each map that it adapts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..engine.arrays import Array
from ..files import digest_of
from ..lora import LoraLinear
from ..method import Method
from ..methods.lora import LoraConfig
from ..model import Linear, Transformer
from ..names import nearest_first
from ..parameters import walk, with_modules
from ..wrappers import wrappers


class Factors(NamedTuple):
    r"""Beside one map: $\Delta W = s\,BA$, with A (rank, d_in) and B (d_out, rank)."""

    A: Array
    B: Array
    scaling: float


@dataclass(frozen=True, eq=False)
class Adapter:
    """The factors beside each map, by its dotted path. Raises ValueError for none, or where A and B do not fit."""

    name: str
    factors: Mapping[str, Factors]

    def __post_init__(self) -> None:
        if not self.factors:
            raise ValueError(f"adapter {self.name!r} adapts no map")
        for path, (A, B, _) in self.factors.items():
            if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
                raise ValueError(
                    f"adapter {self.name!r}: at {path} A must be (rank, d_in) and B (d_out, rank) of one rank, got "
                    f"{A.shape} and {B.shape}"
                )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what it does: every path, A, B and s; not of its name."""
        arrays = {f"{path}.{part}": getattr(f, part) for path, f in sorted(self.factors.items()) for part in "AB"}
        about = json.dumps({path: f.scaling for path, f in self.factors.items()}, sort_keys=True)
        return digest_of(arrays, about)

    @property
    def nbytes(self) -> int:
        """What its factors take in memory."""
        return sum(f.A.nbytes + f.B.nbytes for f in self.factors.values())

    @property
    def ranks(self) -> dict[str, int]:
        return {path: len(f.A) for path, f in self.factors.items()}

    def renamed(self, name: str) -> Adapter:
        """The same factors under another name."""
        return Adapter(name, self.factors)


def adapter_of(model: Any, name: str, trained: Mapping[str, Array] | None = None) -> Adapter:
    """What stands beside the maps of an adapted model, as an adapter; `trained` holds all that was trained of it.

    Raises ValueError for a model whose adapter is not A and B beside linear maps alone: what cannot be told from
    sequence to sequence.
    """
    found = wrappers(model)
    for path, wrapper in found.items():
        if not isinstance(wrapper, LoraLinear):
            raise ValueError(
                f"adapter {name!r} puts a {type(wrapper).__name__} at {path}: only A and B beside linear maps can be "
                "chosen for each sequence; serve it alone, with --adapter"
            )
    beside = {f"{path}.{part}" for path in found for part in "AB"}
    for path in trained or ():
        if path not in beside:
            raise ValueError(
                f"adapter {name!r} trained {path}: only A and B can be chosen for each sequence; serve it alone, with "
                "--adapter"
            )
    return Adapter(name, {path: Factors(module.A, module.B, module.scaling) for path, module in found.items()})


def applied(base: Transformer, adapter: Adapter) -> Transformer:
    """The base with this one adapter beside it, as for training or for serving it alone."""
    modules = adapted_maps(base, adapter)
    beside = {path: LoraLinear(modules[path], *factors) for path, factors in adapter.factors.items()}
    return with_modules(base, beside)


def adapted_maps(base: Transformer, *adapters: Adapter) -> dict[str, Linear]:
    """The maps of the base that these adapt, by path. Raises ValueError where it has none, or one of another size."""
    maps = {path: node for path, node in walk(base) if isinstance(node, Linear)}
    found = {}
    for adapter in adapters:
        for path, (A, B, _) in adapter.factors.items():
            if path not in maps:
                raise ValueError(
                    f"adapter {adapter.name!r} adapts {path}, and the base has only {nearest_first(path, maps)}"
                )
            if maps[path].W.shape != (len(B), A.shape[1]):
                raise ValueError(
                    f"adapter {adapter.name!r}: the update of {path} is {(len(B), A.shape[1])}, and the base's map is "
                    f"{maps[path].W.shape}: it was made for another base"
                )
            found[path] = maps[path]
    return found


def method_of(adapter: Adapter) -> Method:
    """The settings that describe it, for `save_adapter`: each map with its own rank, and α so that s = α/r."""
    ranks = adapter.ranks
    alphas = {path: float(f.scaling * len(f.A)) for path, f in adapter.factors.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return LoraConfig(
        rank,
        alpha,
        tuple(ranks),
        ranks={path: r for path, r in ranks.items() if r != rank},
        alphas={path: a for path, a in alphas.items() if a != alpha},
    )


def cast(adapter: Adapter, dtype: np.dtype[Any]) -> Adapter:
    """The same in another precision."""
    same = {p: Factors(f.A.astype(dtype, copy=False), f.B.astype(dtype, copy=False), f.scaling)
            for p, f in adapter.factors.items()}  # fmt: skip
    return Adapter(adapter.name, same)
