"""The picture of a benchmark: time and memory of a step at every size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _figure, _legend, _look

if TYPE_CHECKING:
    from ..bench import BenchReport

LABELS = {
    "lora": "lora_np, LoRA",
    "full": "lora_np, full",
    "textbook": "textbook, LoRA",
    "peer": "PyTorch + PEFT, LoRA",
}


def time_and_memory(report: BenchReport) -> Any:
    r"""Milliseconds a step with the range of the rounds (left) and peak memory (right), logarithmic, by size.

    Raises ValueError when nothing was measured.
    """
    if not report.sizes:
        raise ValueError("a picture of a benchmark needs at least one size, got none")
    names = [size.size.name for size in report.sizes]
    with _figure(7.6, 4.0) as figure:
        left, right = figure.subplots(1, 2)
        for i, (workload, label) in enumerate(LABELS.items()):
            found = [(place, getattr(size, workload)) for place, size in enumerate(report.sizes)]
            found = [(place, measured) for place, measured in found if measured is not None]
            if not found:
                continue
            places = [place + 0.12 * (i - 1.5) for place, _ in found]
            middle = [1e3 * m.median for _, m in found]
            low = [1e3 * (m.median - min(m.seconds)) for _, m in found]
            high = [1e3 * (max(m.seconds) - m.median) for _, m in found]
            look = _look(i) | {"linestyle": "none"}
            left.errorbar(places, middle, yerr=(low, high), capsize=3, label=label, **look)
            right.plot(places, [m.peak / 1e6 for _, m in found], **look)
        for axes in (left, right):
            axes.set_yscale("log")
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
        left.set(xlabel="size", ylabel="time of a step (ms, log scale)")
        right.set(xlabel="size", ylabel="peak memory (MB, log scale)")
        _legend(figure, columns=2)
    return figure
