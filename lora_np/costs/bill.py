r"""Everything that one method costs on one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..config import TransformerConfig, parameter_count
from ..method import Method
from ..methods import name_of
from ..model import skeleton
from ..parameters import count
from ..wrappers import can_be_merged
from .arithmetic import forward_multiply_adds
from .memory import ITEM_SIZE, adapter_bytes, optimizer_bytes


@dataclass(frozen=True)
class Bill:
    """What a method trains, stores, and adds to the model; sizes in bytes, multiply-adds per token.

    trained, counted       the closed form, and what an applied skeleton holds: two ways to one number
    forward, added         of the base, and what the method adds to it while it stands beside the base
    depth                  matrix products that each block gets longer by, one after another, as the model is served
    context, full_context  places of the context that are left for text, and all of them
    merged                 is there a plain model that computes the same?
    """

    method: str
    settings: Mapping[str, Any]
    parameters: int
    trained: int
    counted: int
    share: float
    adapter_bytes: Mapping[str, int]
    optimizer_bytes: int
    optimizer_bytes_full: int
    forward: int
    added: int
    depth: int
    context: int
    full_context: int
    merged: bool

    @property
    def holds(self) -> bool:
        """Is the closed form what was counted?"""
        return self.trained == self.counted


def bill(config: TransformerConfig, method: Method, item_size: int = 4) -> Bill:
    r"""The whole bill of a method; `item_size` is that of the numbers in training, in bytes.

    >>> report = bill(SHAPES["gpt2-medium"], LoraConfig(rank=4, targets="qv"))
    >>> report.trained, f"{report.share:.3%}", report.adapter_bytes["float32"]
    (393216, '0.111%', 1572864)

    Raises ValueError for settings that this model cannot have.
    """
    parameters, trained, stored = parameter_count(config), method.numbers(config), method.in_file(config)
    applied = method.apply(skeleton(config), None)
    return Bill(
        method=name_of(method),
        settings=asdict(method),  # type: ignore[call-overload]
        parameters=parameters,
        trained=trained,
        counted=count(method.trained(applied)),
        share=trained / parameters,
        adapter_bytes={dtype: adapter_bytes(stored, dtype) for dtype in ITEM_SIZE},
        optimizer_bytes=optimizer_bytes(trained, item_size),
        optimizer_bytes_full=optimizer_bytes(parameters, item_size),
        forward=forward_multiply_adds(config),
        added=method.multiply_adds(config),
        depth=method.depth,
        context=config.context - method.positions,
        full_context=config.context,
        merged=can_be_merged(applied),
    )
