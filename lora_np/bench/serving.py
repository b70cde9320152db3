r"""Serving, measured: tokens a second against the number of adapters in a batch, beside merged, alone, and PEFT."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..engine.threads import worker_count
from .measure import Measured, measure, processes, ratio
from .mixing import COUNTS, STEPS, TOGETHER
from .report import machine
from .sizes import GENERATION, Task
from .tables import Row, Table

SEQUENCES, ALONE = 32, 16  # of the mixed batches; of those that are written in a batch and one at a time
SERVED = replace(GENERATION, name="serving", batch=SEQUENCES, seq=32)
FEW = replace(SERVED, batch=ALONE)
SHORT = replace(SERVED, seq=24)


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
    workers: int | None = None,
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
    names += [f"PEFT, {count}" for count in COUNTS] * peers
    tasks = [Task(f"serving, {name}", SERVED, workers) for name in names]
    few = [Task(f"serving, {name}", FEW, workers) for name in ("base, batched", "base, one by one")]
    found: list[Any] = []

    def lines() -> Iterator[str]:
        for group in (tasks, few):
            measured = yield from measure(group, rounds)
            found.append(measured)
        for name in ("many", "trained together"):
            yield f"serving, {name}"
            with processes([Task(f"serving, {name}", SHORT, workers)]) as (child,):
                answer = child.ask("step")
            found.append({**answer["result"], "peak": answer["peak"]})

    for _ in watch(lines(), (len(tasks) + len(few)) * (rounds + 1) + 2):
        pass
    return ServingReport(machine(), rounds, worker_count(workers), tuple(found[0]), tuple(found[1]), *found[2:])


def serving_tables(report: ServingReport) -> list[Table]:
    """(title, head, rows) of everything, as text."""
    return [_speed(report), _few(report), _many(report.many), _together(report.together)]


def _speed(report: ServingReport) -> Table:
    found = {m.workload.removeprefix("serving, "): m for m in report.served}
    one = found["one adapter, not merged"]
    head = ("adapters", "how", "tokens/s", "of one adapter, not merged (range)", "time of PEFT / ours", "same text as")
    rows: list[Row] = []
    for name, m in found.items():
        kind, _, count = name.partition(", ")
        kind, count = (
            (name, "32, one after another" if name == "one by one" else "1")
            if count not in map(str, COUNTS)
            else (kind, count)
        )
        ours = found.get(f"mixed, {count}")
        beside = str(ratio(m, ours)) if kind == "PEFT" and ours else "-"
        twin = {"mixed": "one by one" if count == "32" else None, "PEFT": f"mixed, {count}"}.get(kind)
        twin = {"merged": "one adapter, not merged"}.get(kind, twin)
        same = "-" if twin is None else f"{twin}: {_equal(m, found[twin])}"
        rows.append((count, kind, f"{m.tokens_per_second:,.0f}", str(ratio(one, m)), beside, same))
    title = f"{SERVED.batch} sequences at once, {SERVED.seq} greedy tokens each, the base that ships, rank 8 on qv"
    return title, head, rows


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
    parts = [f"{report.machine}; {report.workers} threads, {report.rounds} rounds."]
    for title, head, rows in serving_tables(report):
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows)]
        parts.append(f"{title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"
