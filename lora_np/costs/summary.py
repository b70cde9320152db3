r"""Everything for one model and one adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .arithmetic import adapter_multiply_adds, forward_multiply_adds, matrix_multiply_adds, step_multiply_adds
from .counts import lora_count, parameter_count
from .memory import adapter_bytes, gradient_bytes, optimizer_bytes, training_state_bytes
from .shapes import ITEM_SIZE, Shape, target_modules


@dataclass(frozen=True)
class CostReport:
    """Everything above for one model and one adapter. Sizes in bytes; multiply-adds per token."""

    shape: Shape
    rank: int
    targets: tuple[str, ...]
    length: int

    parameters: int  # N
    trained: int  # Θ
    share: float  # Θ / N

    adapter_bytes: Mapping[str, int]  # by dtype
    optimizer_bytes_full: int
    optimizer_bytes_lora: int
    optimizer_bytes_saved: int
    gradient_bytes_saved: int
    training_state_bytes_full: int
    training_state_bytes_lora: int

    forward_base: int
    forward_adapted: int
    forward_merged: int
    step_full: int
    step_lora: int
    frozen_gradients_skipped: int  # multiply-adds of the weight gradients that are never formed


def summary(
    shape: Shape,
    rank: int,
    targets: str | Iterable[str] = "qv",
    length: int | None = None,
    item_size: int = 4,
) -> CostReport:
    r"""The whole bill of LoRA at `rank` on `targets`, against full fine-tuning of the same model.

    `item_size` is that of the numbers in training (weights, gradients, Adam's moments), in bytes.

    >>> report = summary(SHAPES["gpt2-medium"], rank=4, targets="qv")
    >>> report.trained, f"{report.share:.3%}", report.adapter_bytes["float32"]
    (393216, '0.111%', 1572864)
    """
    names = target_modules(shape, targets)
    parameters, trained = parameter_count(shape), lora_count(shape, rank, names)
    forward = forward_multiply_adds(shape, length)
    return CostReport(
        shape=shape,
        rank=rank,
        targets=names,
        length=shape.context if length is None else length,
        parameters=parameters,
        trained=trained,
        share=trained / parameters,
        adapter_bytes={dtype: adapter_bytes(trained, dtype) for dtype in ITEM_SIZE},
        optimizer_bytes_full=optimizer_bytes(parameters, item_size),
        optimizer_bytes_lora=optimizer_bytes(trained, item_size),
        optimizer_bytes_saved=optimizer_bytes(parameters - trained, item_size),
        gradient_bytes_saved=gradient_bytes(parameters - trained, item_size),
        training_state_bytes_full=training_state_bytes(0, parameters, item_size),
        training_state_bytes_lora=training_state_bytes(parameters, trained, item_size),
        forward_base=forward,
        forward_adapted=forward + adapter_multiply_adds(shape, rank, names),
        forward_merged=forward,
        step_full=step_multiply_adds(shape, length=length),
        step_lora=step_multiply_adds(shape, rank, names, length),
        frozen_gradients_skipped=matrix_multiply_adds(shape),
    )
