r"""A benchmark as tables, each a title, a head and rows of text."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.threads import worker_count
from .measure import ratio
from .report import BenchReport
from .sizes import RANK, TARGETS

Row = tuple[str, ...]
Table = tuple[str, Row, list[Row]]


def tables(report: BenchReport) -> list[Table]:
    """(title, head, rows) of everything, as text."""
    found = [_step_table(report)]
    if any(size.peer for size in report.sizes):
        found.append(_peer_table(report))
    if any(size.harder or size.skipped for size in report.sizes):
        found.append(_harder_table(report))
    if any(size.engines for size in report.sizes):
        found.append(_engine_table(report))
    found.append(_generation_table(report))
    if report.growth:
        found.append(_growth_table(report))
    return found


def markdown(report: BenchReport) -> str:
    """The tables, for a README."""
    return as_markdown(report.machine, report.config.workers, report.config.rounds, tables(report))


def as_markdown(machine: str, workers: int | None, rounds: int, found: Sequence[Table]) -> str:
    """Tables, each below its title, and above them all what they were measured on."""
    parts = [f"{machine}; {worker_count(workers)} threads, {rounds} rounds."]
    for title, head, rows in found:
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows)]
        parts.append(f"{title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _step_table(report: BenchReport) -> Table:
    head = (
        "size",
        "LoRA step",
        "tokens/s",
        "peak memory",
        "arrays, predicted",
        "of GEMM peak",
        "LoRA / full step",
        "textbook / LoRA",
    )
    rows: list[Row] = [
        (
            s.size.name,
            _seconds(s.lora.median),
            f"{s.lora.tokens_per_second:,.0f}",
            _megabytes(s.lora.peak),
            _megabytes(s.predicted_bytes),
            "-" if s.lora.roofline is None else f"{s.lora.roofline:.2f}",
            str(s.to_full),
            "-" if s.to_textbook is None else f"{1 / s.to_textbook.median:.1f}",
        )
        for s in report.sizes
    ]
    return f"A training step with AdamW, LoRA of rank {RANK} on {TARGETS}", head, rows


def _peer_table(report: BenchReport) -> Table:
    head = (
        "size",
        "lora_np",
        "PyTorch + PEFT",
        "time ratio (range)",
        "peak memory",
        "of PyTorch + PEFT",
        "memory ratio",
        "losses differ by",
    )
    rows: list[Row] = [
        (
            s.size.name,
            _seconds(s.lora.median),
            _seconds(s.peer.median),
            str(s.to_peer),
            _megabytes(s.lora.peak),
            _megabytes(s.peer.peak),
            f"{s.memory_to_peer:.2f}",
            f"{abs(s.lora.result - s.peer.result):.1e}",
        )
        for s in report.sizes
        if s.peer
    ]
    return (
        "The same LoRA step beside PyTorch eager with PEFT, in processes asked in turn; below 1, lora_np needs less",
        head,
        rows,
    )


HARDER = {"peer, compiled": "PyTorch + PEFT, torch.compile", "peer, jax": "JAX, jit"}


def _harder_table(report: BenchReport) -> Table:
    head = ("size", "peer", "its step", "first step", "lora_np / it (range)", "its memory", "ratio", "losses differ by")
    rows: list[Row] = []
    for s in report.sizes:
        by_name = {m.workload: m for m in s.harder}
        for name, shown in HARDER.items():
            if m := by_name.get(name):
                times = (_seconds(m.median), _seconds(m.first), str(ratio(s.lora, m)))
                memory = (_megabytes(m.peak), f"{s.lora.peak / m.peak:.2f}")
                rows.append((s.size.name, shown, *times, *memory, f"{abs(s.lora.result - m.result):.1e}"))
            elif name in s.skipped:
                rows.append((s.size.name, shown, f"skipped: {s.skipped[name]}", *["-"] * 5))
    return "Beside peers that compile the step first; below 1, lora_np needs less", head, rows


def _engine_table(report: BenchReport) -> Table:
    head = ("size", "engine", "LoRA step", "of the default (range)", "peak memory of all its processes", "same loss")
    rows: list[Row] = [
        (
            s.size.name,
            m.workload.removeprefix("lora, "),
            _seconds(m.median),
            str(ratio(m, s.lora)),
            _megabytes(m.peak),
            "yes" if m.result == s.engines[0].result else "NO",
        )
        for s in report.sizes
        for m in s.engines
    ]
    shards = worker_count(report.config.workers)
    return f"The same LoRA step by engine, each in {shards} shard{'s' * (shards > 1)}", head, rows


def _generation_table(report: BenchReport) -> Table:
    found = {m.workload.removeprefix("generation, "): m for m in report.generation}
    base = found["base"]
    twins = {"merged": "adapted", "peer": "base"}  # who must write the same
    head = ("model", "tokens/s", "speed of the base / its own (range)", "same text as")
    rows: list[Row] = []
    for name, m in found.items():
        twin = twins.get(name)
        same = "-" if twin is None else f"{twin}: {'yes' if m.result == found[twin].result else 'NO'}"
        shown = "base, in transformers" if name == "peer" else name
        rows.append((shown, f"{m.size.seq / m.median:,.0f}", str(ratio(m, base)), same))
    return "Greedy tokens after a short prompt, the base that ships, one sequence", head, rows


def _growth_table(report: BenchReport) -> Table:
    head = ("what grows", "values", "time (range)", "multiply-adds", "memory", "memory, predicted")
    rows: list[Row] = [
        (
            g.name,
            ", ".join(map(str, g.values)),
            str(g.time),
            f"{g.time_predicted:.2f}",
            f"{g.memory:.2f}",
            f"{g.memory_predicted:.2f}",
        )
        for g in report.growth
    ]
    return "Exponents p of y = c·x^p for a LoRA step, measured and from the closed forms", head, rows


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _megabytes(value: int) -> str:
    return f"{value / 1e6:,.0f} MB"
