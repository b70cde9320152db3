r"""Methods that put nothing beside the model and only choose what of it is trained.

    full      every array                                          N numbers (C1)
    top       the last `blocks` blocks; 2 is the FTTop2 of the paper    blocks · (12d² + 13d) where d_ff = 4d
    bitfit    every bias and shift                                 (C2)

Nothing is added to depth, context or inference: an adapted model is a plain one.

Sources: Hu et al. 2021, arXiv:2106.09685, section 5.1 (FT, FTTop2); Zaken et al. 2021, arXiv:2106.10199 (BitFit).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import TransformerConfig, bias_count, parameter_count
from ..method import Method, whole
from ..parameters import Arrays, parameters


class _Selection(Method):
    """A method that trains arrays of the model itself."""

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        return model


@dataclass(frozen=True)
class Full(_Selection):
    """Full fine-tuning: every array is trained."""

    def trained(self, model: Any) -> Arrays:
        return parameters(model)

    def numbers(self, config: TransformerConfig) -> int:
        return parameter_count(config)


@dataclass(frozen=True)
class Top(_Selection):
    """Only the last blocks are trained: attention, MLP and norms of each. Raises ValueError when there are fewer."""

    blocks: int = 2

    grows_by = "blocks"

    def __post_init__(self) -> None:
        whole("blocks", self.blocks)

    def trained(self, model: Any) -> Arrays:
        layers = self._within(model.config).layers
        return parameters(model, *(f"blocks.{i}.*" for i in range(layers - self.blocks, layers)))

    def numbers(self, config: TransformerConfig) -> int:
        without = replace(config, layers=self._within(config).layers + self.blocks)
        return parameter_count(without) - parameter_count(config)

    def _within(self, config: TransformerConfig) -> TransformerConfig:
        if self.blocks > config.layers:
            raise ValueError(f"blocks must lie in 1..{config.layers}, the blocks of this model, got {self.blocks}")
        return config


@dataclass(frozen=True)
class BitFit(_Selection):
    """Only the biases of linear maps and the shifts of norms are trained. Raises ValueError where there are none."""

    def trained(self, model: Any) -> Arrays:
        self.numbers(model.config)
        kinds = ("*.b", "*.beta") if model.config.kind.norm == "layer" else ("*.b",)
        return parameters(model, *kinds)

    def numbers(self, config: TransformerConfig) -> int:
        if not (count := bias_count(config)):
            raise ValueError(f"bitfit trains biases, and a model of architecture {config.architecture!r} has none")
        return count
