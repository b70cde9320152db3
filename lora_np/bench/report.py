r"""The whole benchmark: which workloads, in which order, and what is said of them."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..engine.devices import library
from ..engine.threads import worker_count
from .growth import CHANGES, START, Growth, growth
from .measure import OPTIONAL, Measured, Ratio, check_room, measure, predicted_bytes, ratio
from .sizes import GENERATION, Size, Task

TEXTBOOK_SIZES = ("tiny", "small", "mid")  # beyond, a step of it takes half a minute and more
PEERS = ("torch", "peft", "transformers")
ENGINES = ("inline", "threads", "processes")


@dataclass(frozen=True)
class BenchConfig:
    """What to measure.

    sizes     of `lora_np.bench.sizes`       rounds   each workload is timed that often, in turn with the others
    peers     PyTorch with PEFT as well, and where they can be had torch.compile and JAX
    growth    how time and memory grow       engines  the same step by each engine of this machine
    workers   threads or processes; None: as many as the library would use

    Raises ValueError for no size, fewer than 1 round or a number of workers outside 1..256, and ImportError where peers
    are asked for and not installed.
    """

    sizes: tuple[Size, ...]
    rounds: int = 5
    peers: bool = False
    growth: bool = False
    engines: bool = False
    workers: int | None = None
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("sizes must name at least one size")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        worker_count(self.workers)
        library(self.device)
        missing = [name for name in PEERS if self.peers and importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"peers need PyTorch, PEFT and transformers ({', '.join(missing)} missing): "
                'pip install "lora_np[parity]"'
            )


@dataclass(frozen=True)
class SizeReport:
    """One size: every workload that ran, and the ratios of the LoRA step to them. None: it did not run.

    harder   peers that compile the step       engines  the LoRA step by each engine       skipped  {workload: why}
    """

    size: Size
    predicted_bytes: int
    lora: Measured
    full: Measured
    textbook: Measured | None = None
    peer: Measured | None = None
    harder: tuple[Measured, ...] = ()
    engines: tuple[Measured, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def to_full(self) -> Ratio:
        return ratio(self.lora, self.full)

    @property
    def to_textbook(self) -> Ratio | None:
        return None if self.textbook is None else ratio(self.lora, self.textbook)

    @property
    def to_peer(self) -> Ratio | None:
        return None if self.peer is None else ratio(self.lora, self.peer)

    @property
    def memory_to_peer(self) -> float | None:
        return None if self.peer is None else self.lora.peak / self.peer.peak


@dataclass(frozen=True)
class BenchReport:
    """Everything that was measured, and on what."""

    config: BenchConfig
    machine: str
    sizes: tuple[SizeReport, ...]
    generation: tuple[Measured, ...]
    growth: tuple[Growth, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "machine": self.machine,
            "workers": worker_count(self.config.workers),
            "rounds": self.config.rounds,
            "seed": self.config.seed,
            "sizes": [_size_as_dict(report) for report in self.sizes],
            "generation": [
                {"workload": m.workload, "tokens": m.size.seq, "tokens_per_second": m.tokens_per_second, **_plain(m)}
                for m in self.generation
            ],
            "growth": [asdict(g) for g in self.growth],
        }


def bench(
    config: BenchConfig, watch: Callable[[Iterator[str], int], Iterable[str]] = lambda lines, _: lines
) -> BenchReport:
    """Measure everything; `watch` is given one line for each thing that begins, and how many there will be.

    Raises ValueError, before anything is allocated, where a size will not fit into memory; ChildError where one of the
    processes fails.
    """
    groups = [_tasks(size, config) for size in config.sizes]
    generation = _generation_tasks(config)
    at_first = Task("lora", START, config.workers, config.device, seed=config.seed)
    growing = tuple(CHANGES) if config.growth else ()
    for group in groups:
        check_room(group)
    found: list[Any] = []
    skipped: list[dict[str, str]] = [{**unavailable(config)} for _ in groups]

    def lines() -> Iterator[str]:
        for group, why in zip((*groups, generation), (*skipped, None), strict=True):
            measured = yield from measure(group, config.rounds, why)
            found.append(measured)
        for name in growing:
            grown = yield from growth(name, at_first, config.rounds)
            found.append(grown)

    total = sum(len(group) for group in (*groups, generation)) * (config.rounds + 1)
    total += sum(len(CHANGES[name]) * (config.rounds + 2) for name in growing)
    for _ in watch(lines(), total):
        pass
    sizes = [_of_size(*about) for about in zip(groups, found, skipped, strict=False)]
    return BenchReport(config, machine(), tuple(sizes), tuple(found[len(groups)]), tuple(found[len(groups) + 1 :]))


def _tasks(size: Size, config: BenchConfig) -> list[Task]:
    """The workloads of a size that are alive together."""
    names = ["lora", "full"]
    names += ["textbook"] * (size.name in TEXTBOOK_SIZES and config.device == "cpu")
    names += ["peer"] * config.peers
    names += [name for name in OPTIONAL if config.peers and name not in unavailable(config)]
    names += [f"lora, {engine}" for engine in ENGINES if config.engines]
    return [Task(name, size, config.workers, config.device, seed=config.seed) for name in names]


def _generation_tasks(config: BenchConfig) -> list[Task]:
    names = ["base", "merged", "adapted"] + ["peer"] * (config.peers and config.device == "cpu")
    return [Task(f"generation, {name}", GENERATION, config.workers, config.device) for name in names]


def unavailable(config: BenchConfig) -> dict[str, str]:
    """Why peers that compile are left out: {workload: reason}."""
    if not config.peers:
        return {}
    reasons = {}
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        reasons["peer, compiled"] = "torch.compile needs a C++ compiler"
    if importlib.util.find_spec("jax") is None:
        reasons["peer, jax"] = 'JAX is not installed: pip install "lora_np[peers]"'
    elif config.device != "cpu":
        reasons["peer, jax"] = "JAX is compared on the cpu only"
    return reasons


def _of_size(tasks: list[Task], measured: list[Measured], skipped: dict[str, str]) -> SizeReport:
    by_name = {m.workload: m for m in measured}
    return SizeReport(
        *(tasks[0].size, predicted_bytes(tasks[0]), by_name["lora"], by_name["full"]),
        textbook=by_name.get("textbook"),
        peer=by_name.get("peer"),
        harder=tuple(m for m in measured if m.workload in OPTIONAL),
        engines=tuple(m for m in measured if m.workload.startswith("lora, ")),
        skipped=skipped,
    )


def machine() -> str:
    """What it was measured on, in a line: processor, cores, memory, and the versions that matter."""
    from threadpoolctl import threadpool_info

    libraries = {f"{x['internal_api']} {x['version']}" for x in threadpool_info() if x["user_api"] == "blas"}
    parts = [_processor(), f"{worker_count()} cores", f"Python {platform.python_version()}", f"NumPy {np.__version__}"]
    return ", ".join([*parts, *sorted(libraries)])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.partition(":")[2].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _size_as_dict(report: SizeReport) -> dict[str, Any]:
    alone = (report.lora, report.full, report.textbook, report.peer)
    measured = {m.workload: _plain(m) for m in (*alone, *report.harder, *report.engines) if m}
    ratios = {"full": report.to_full, "textbook": report.to_textbook, "peer": report.to_peer}
    return {
        **asdict(report.size),
        "tokens_per_second": report.lora.tokens_per_second,
        "roofline": report.lora.roofline,
        "predicted_array_bytes": report.predicted_bytes,
        "memory_to_peer": report.memory_to_peer,
        "lora_over": {
            **{name: asdict(r) for name, r in ratios.items() if r},
            **{m.workload: asdict(ratio(report.lora, m)) for m in report.harder},
        },
        "measured": measured,
        "skipped": dict(report.skipped),
    }


def _plain(m: Measured) -> dict[str, Any]:
    return {"median_seconds": m.median, "seconds": m.seconds, "peak_bytes": m.peak, "result": m.result}
