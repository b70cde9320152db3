r"""Serving, measured: tokens a second against the number of adapters in a batch, beside merged, alone, and PEFT.

One thread, and seconds of processor time: what else a machine does at the same time is no one's advantage. On a quiet
machine they are the seconds of a clock.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..engine.threads import worker_count
from .measure import Measured, Ratio, measure, processes, ratio
from .mixing import COUNTS, STEPS, TOGETHER
from .report import machine
from .sizes import GENERATION, Size, Task
from .tables import Row, Table

SEQUENCES, ALONE = 32, 16  # of the mixed batches; of those that are written in a batch and one at a time
SERVED = replace(GENERATION, name="serving", batch=SEQUENCES, seq=24)
FEW = replace(SERVED, batch=ALONE)
SHORT = replace(SERVED, seq=12)


@dataclass(frozen=True)
class ServingReport:
    """Every workload by name, measured in turn; what a thousand adapters took, and training eight at once."""

    machine: str
    rounds: int
    workers: int
    served: tuple[Measured, ...]
    few: tuple[Measured, ...]
    many: dict[str, Any]
    together: dict[str, Any]
    peers: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        timed = [
            {**asdict(m), "tokens_per_second": m.tokens_per_second, "result": None} for m in (*self.served, *self.few)
        ]
        return {
            "machine": self.machine,
            "rounds": self.rounds,
            "timed": timed,
            "many": self.many,
            "together": self.together,
        }


def bench_serving(
    rounds: int = 5,
    peers: bool = False,
    workers: int = 1,
    watch: Callable[[Iterator[str], int], Iterable[str]] = lambda lines, _: lines,
) -> ServingReport:
    """Measure everything, each workload in a process of its own, asked in turn.

    Raises ImportError where peers are asked for and not installed, ValueError for fewer than 1 round or where it does
    not fit into memory, ChildError where a process fails.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if missing := [
        name for name in ("torch", "peft", "transformers") if peers and importlib.util.find_spec(name) is None
    ]:
        raise ImportError(f'peers need {" and ".join(missing)}: pip install "lora_np[parity]"')
    names = ["one adapter, not merged", "merged", *(f"mixed, {count}" for count in COUNTS), "one by one"]
    tasks = [_task(name, SERVED, workers) for name in names]
    few = [_task(name, FEW, workers) for name in ("base, batched", "base, one by one")]
    found: list[Any] = []

    def lines() -> Iterator[str]:
        for group in (tasks, few):
            measured = yield from measure(group, rounds)
            found.append(measured)
        for name in ("many", "trained together"):
            yield f"serving, {name}"
            with processes([_task(name, SHORT, workers)]) as (child,):
                answer = child.ask("step")
            found.append({**answer["result"], "peak": answer["peak"]})
        if peers:
            yield "serving, beside PEFT"
            with processes([_task("beside PEFT", SERVED, workers)]) as (child,):
                found.append(tuple(child.ask("step")["result"] for _ in range(rounds + 1))[1:])

    for _ in watch(lines(), (len(tasks) + len(few)) * (rounds + 1) + 2 + peers):
        pass
    return ServingReport(machine(), rounds, worker_count(workers), tuple(found[0]), tuple(found[1]), *found[2:])


def _task(name: str, size: Size, workers: int) -> Task:
    return Task(f"serving, {name}", size, workers, clock="processor")


def serving_tables(report: ServingReport) -> list[Table]:
    """(title, head, rows) of everything, as text."""
    beside = [_peers(report.peers)] if report.peers else []
    return [_speed(report), *beside, _few(report), _many(report.many), _together(report.together)]


def _speed(report: ServingReport) -> Table:
    found = {m.workload.removeprefix("serving, "): m for m in report.served}
    one = found["one adapter, not merged"]
    twins = {"merged": "one adapter, not merged", "mixed, 1": "one adapter, not merged", "mixed, 32": "one by one"}
    head = ("what is served", "tokens/s", "of one adapter, not merged (range)", "same text as")
    rows: list[Row] = []
    for name, m in found.items():
        kind, _, count = name.partition("mixed, ")
        shown = kind or f"mixed, {count} adapters"
        twin = twins.get(name)
        same = f"{twin}: {_equal(m, found[twin])}" if twin else "-"
        rows.append((shown, f"{m.tokens_per_second:,.0f}", str(ratio(one, m)), same))
    return f"{_work(SERVED)}; one by one: each with its own of 32 adapters", head, rows


def _peers(rounds: tuple[dict[str, Any], ...]) -> Table:
    head = ("adapters", "tokens/s", "PEFT, adapter_names", "PEFT's time / ours (range)", "same text")
    rows: list[Row] = []
    for count in rounds[0]:
        ours, theirs = (statistics.median(each[count][side] for each in rounds) for side in ("ours", "theirs"))
        ratios = [each[count]["theirs"] / each[count]["ours"] for each in rounds]
        over = str(Ratio(statistics.median(ratios), min(ratios), max(ratios)))
        speeds = (f"{SERVED.tokens / seconds:,.0f}" for seconds in (ours, theirs))
        rows.append((count, *speeds, over, f"{rounds[0][count]['equal']} of {SERVED.batch}"))
    return "The same beside PyTorch with PEFT, a mixed batch of each in turn in one process", head, rows


def _work(size: Size) -> str:
    return f"{size.batch} sequences at once, {size.seq} greedy tokens each, the base that ships, rank 8 on qv"


def _few(report: ServingReport) -> Table:
    batched, alone = report.few
    rows = [("at once", f"{batched.tokens_per_second:,.0f}", str(ratio(alone, batched)))]
    rows.append(("one at a time", f"{alone.tokens_per_second:,.0f}", "1"))
    title = (
        f"{FEW.batch} sequences of the base alone, {FEW.seq} greedy tokens each; same text: {_equal(batched, alone)}"
    )
    return title, ("how", "tokens/s", "times one at a time (range)"), list(rows)


def _many(found: dict[str, Any]) -> Table:
    head = (
        "on disk",
        "requests, adapters",
        "kept at most",
        "allowed",
        "peak of the process",
        "opened",
        "served",
        "equal",
    )
    row = (
        f"{found['adapters']:,} adapters, {found['on_disk'] / 1e6:.1f} MB",
        f"{found['requests']}, {found['distinct']}",
        f"{found['kept']:,} B",
        f"{found['limit']:,} B",
        f"{found['peak'] / 1e6:.0f} MB",
        f"{found['opened']:.2f} s",
        f"{found['served']:.2f} s",
        f"{found['equal']} of {found['requests']}",
    )
    return "Adapters read when they are asked for; equal: to the answer that the request gets alone", head, [row]


def _together(found: dict[str, Any]) -> Table:
    head = ("in one batch", f"{TOGETHER} runs", "runs / one batch", "largest gap of a number", "largest move of one")
    row = (
        f"{found['together']:.2f} s",
        f"{found['alone']:.2f} s",
        f"{found['alone'] / found['together']:.2f}",
        f"{found['gap']:.1e}",
        f"{found['moved']:.1e}",
    )
    title = f"Training {TOGETHER} adapters, {STEPS} steps of 4 sequences of {SHORT.seq} tokens for each, float32"
    return title, head, [row]


def _equal(one: Measured, other: Measured) -> str:
    same = sum(a == b for a, b in zip(one.result, other.result, strict=True))
    return f"{same} of {len(one.result)}"


def serving_markdown(report: ServingReport) -> str:
    """The tables, for a page."""
    threads = f"{report.workers} thread{'s' * (report.workers > 1)}"
    parts = [f"{report.machine}; {threads}, {report.rounds} rounds, seconds of processor time."]
    for title, head, rows in serving_tables(report):
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows)]
        parts.append(f"{title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"
