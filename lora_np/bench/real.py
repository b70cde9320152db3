r"""A step of LoRA on a real model: its time and memory, held in float32 and in 16 bits, beside PyTorch with PEFT.

The model is a folder of transformers, a GGUF file, or one that a package brings; an encoder gets a fresh head of two
classes. All sides start from the same numbers and see the same batches, so their losses can be compared as well.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..engine.halves import HALVES
from ..engine.threads import worker_count
from ..files import load_config
from ..installed import base_path, called
from .measure import Measured, check_room, measure, ratio
from .report import PEERS, machine
from .sizes import RANK, TARGETS, Size, Task
from .tables import Row, Table

HELD = ("float32", *HALVES)


@dataclass(frozen=True)
class RealConfig:
    """What to measure: a step on `batch` sequences of `seq` random tokens each.

    Raises ValueError for a batch or a length below 1, or beyond the model's positions; ImportError where peers are
    asked for and not installed.
    """

    base: str
    batch: int = 4
    seq: int = 64
    rounds: int = 5
    peers: bool = False
    workers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        context = load_config(self.base).context
        if self.batch < 1 or self.rounds < 1 or not 1 <= self.seq <= context:
            raise ValueError(
                f"batch and rounds must be at least 1 and seq in 1..{context}, the positions of the model; got "
                f"{self.batch}, {self.rounds} and {self.seq}"
            )
        missing = [name for name in PEERS if self.peers and importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"peers need PyTorch, PEFT and transformers ({', '.join(missing)} missing): "
                'pip install "lora_np[parity]"'
            )

    @property
    def name(self) -> str:
        """What the model is called: the name by which it was asked for, or its folder or file."""
        return called(base_path(self.base))

    @property
    def tasks(self) -> list[Task]:
        config = load_config(self.base)
        size = Size(
            self.name, config.d_model, config.layers, config.heads, self.batch, self.seq, config.vocab, self.base
        )
        names = [f"real, {kind}" for kind in HELD] + ["real peer"] * self.peers
        return [Task(name, size, self.workers, seed=self.seed) for name in names]


@dataclass(frozen=True)
class RealReport:
    """What was measured, and on what; the first is held in float32, the last may be the peer."""

    config: RealConfig
    machine: str
    measured: tuple[Measured, ...]

    @property
    def peer(self) -> Measured | None:
        return self.measured[-1] if self.config.peers else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(self.config), "name": self.config.name,
            "machine": self.machine, "workers": worker_count(self.config.workers),
            "measured": {m.workload: {"median_seconds": m.median, "seconds": m.seconds, "peak_bytes": m.peak,
                                      "loss": m.result} for m in self.measured},
        }  # fmt: skip


def bench_real(
    config: RealConfig, watch: Callable[[Iterator[str], int], Iterable[str]] = lambda lines, _: lines
) -> RealReport:
    """Measure everything, in processes asked in turn. Raises ValueError where it will not fit into memory."""
    tasks = config.tasks
    check_room(tasks)
    found: list[Measured] = []

    def lines() -> Iterator[str]:
        measured = yield from measure(tasks, config.rounds)
        found.extend(measured)

    for _ in watch(lines(), len(tasks) * (config.rounds + 1)):
        pass
    return RealReport(config, machine(), tuple(found))


def table_of(report: RealReport) -> Table:
    """(title, head, rows), as text."""
    first, peer = report.measured[0], report.peer
    head: Row = (
        *("held in", "step", "tokens/s", "over float32 (range)", "peak memory"),
        *(("over PyTorch + PEFT (range)", "memory over it") if peer else ()),
        "loss",
    )
    rows: list[Row] = []
    for m in report.measured:
        name = "PyTorch + PEFT, float32" if m is peer else m.workload.removeprefix("real, ")
        beside = () if peer is None else ("-", "-") if m is peer else (str(ratio(m, peer)), f"{m.peak / peer.peak:.2f}")
        over = "-" if m in (first, peer) else str(ratio(m, first))
        shown = (f"{m.median:.2f} s", f"{m.size.tokens / m.median:,.0f}", over, f"{m.peak / 1e6:,.0f} MB")
        rows.append((name, *shown, *beside, f"{m.result:.6f}"))
    c = report.config
    return f"A LoRA step on {c.name}, rank {RANK} on {TARGETS}, {c.batch} sequences of {c.seq} tokens", head, rows
