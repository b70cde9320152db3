"""One map, four engines: the same results and the same bits, whoever does the work and whoever dies of it.

Worker processes take half a second to start, so each of these tests starts few of them. The cluster is in test_cluster.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import mapped
import numpy as np
import pytest
from builders import adapted, hashes, model, moved, random_batch
from test_cli import tiny_base

import lora_np.training
from lora_np.engine import children, processes, threads
from lora_np.engine.mapping import check_engine, engine_map
from lora_np.engine.parcels import ALIGNED, Parcel, opened
from lora_np.engine.processes import ProcessMap
from lora_np.optimization import TrainingConfig, start
from lora_np.parameters import parameters
from lora_np.training import Record, fit, model_loss

PATIENCE = 300.0

posix = pytest.mark.skipif(os.name != "posix", reason="worker processes as POSIX knows them")


def is_gone(pid: int) -> bool:
    """Has this process ended, or does it within our patience?"""
    for _ in range(int(20 * PATIENCE)):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (OSError, IndexError):
            return True
        time.sleep(0.05)
    return False


# ------------------------------------------------------------------------------------------------------ every engine


@posix
@pytest.mark.parametrize("engine", ["inline", "threads", "processes"])
def test_results_stand_in_order_each_is_told_at_once_and_an_exception_reaches_the_caller(engine: str) -> None:
    told: list[tuple[int, int]] = []
    with engine_map(engine, 2) as run:
        assert run(mapped.square, []) == []
        assert run(mapped.square, range(5), then=lambda *done: told.append(done)) == [0, 1, 4, 9, 16]
        with pytest.raises(KeyError, match="two is not served"):
            run(mapped.refuses_two, [0, 1, 2])
        with pytest.raises(mapped.Noted if engine != "processes" else RuntimeError, match="three is not served"):
            run(mapped.refuses_two, [3])
        assert run(mapped.refuses_two, [0, 1]) == [0, 1]  # and the map can be used again
        if engine != "processes":
            assert (run.moved, run.sent, run.shares, run.ready_after) == (0, 0, 0, None)
        else:
            assert run.moved > 0
            assert run.shares == 2
    assert sorted(told) == [(i, i * i) for i in range(5)]


def test_an_engine_that_is_none_raises_and_names_those_that_are() -> None:
    line = "engine must be one of inline, threads, processes, dask://HOST:PORT; got 'thread'"
    for use in (check_engine, lambda name: engine_map(name).__enter__()):
        with pytest.raises(ValueError, match=line):
            use("thread")
    with pytest.raises(ValueError, match="workers must be a whole number"):
        check_engine("inline", 0)


def test_where_no_thread_starts_the_caller_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    me = threading.get_ident()
    monkeypatch.setattr(threading.Thread, "start", refused)
    threads.threads_start.cache_clear()
    try:
        for engine in ("threads", "processes"):
            with engine_map(engine, 4) as run:
                assert run(lambda _: threading.get_ident(), range(3)) == [me] * 3
    finally:
        threads.threads_start.cache_clear()


def test_what_works_for_a_map_has_one_worker_unless_it_asks_for_more() -> None:
    with engine_map("threads", 2) as run:
        assert run(lambda _: threads.worker_count(), range(3)) == [1, 1, 1]
        assert run(lambda _: threads.worker_count(3), range(3)) == [3, 3, 3]


# ----------------------------------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_parcel_gives_back_its_function_with_arrays_that_are_aligned_and_cannot_be_written(order: Any) -> None:
    array = np.asarray(np.random.default_rng(0).standard_normal((3, 5)), order=order)
    parcel = Parcel.of(mapped.Held(array))
    block = b"".join(parcel.pieces())
    assert len(block) == parcel.nbytes
    assert len(block) % ALIGNED == 0
    found, is_f, writeable, _ = opened(parcel.sizes, block)(0)
    assert (found, is_f, writeable) == (array.tobytes(), order == "F", False)


def test_a_digest_is_that_of_every_number() -> None:
    array = np.zeros(1000, np.float32)
    first = Parcel.of(mapped.Held(array)).digest
    assert Parcel.of(mapped.Held(array.copy())).digest == first
    array[999] = 1e-30
    assert Parcel.of(mapped.Held(array)).digest != first


@posix
def test_a_function_is_sent_once_and_only_what_is_mapped_over_moves() -> None:
    array = np.arange(10_000.0)
    function = mapped.Held(array)
    with engine_map("processes", 1) as run:
        for _ in range(3):
            assert run(function, [0, 1]) == [(array.tobytes(), True, False, 0)] * 2
            assert run.sent == Parcel.of(function).nbytes
            assert run.moved - 2 * array.nbytes < 1000  # the answers hold its bytes, by the wish of the test
        run(mapped.Held(array.copy()), [0])
        assert run.sent == Parcel.of(function).nbytes  # the same digest: it is there
        run(mapped.square, [0])
        assert run.sent > Parcel.of(function).nbytes


@posix
@pytest.mark.parametrize("function", [lambda i: i, mapped.Held(threading.Lock())], ids=["λ", "lock"])
def test_what_only_this_process_can_know_is_refused(function: Callable[[int], Any]) -> None:
    with engine_map("processes", 1) as run, pytest.raises(TypeError, match="use the engine threads or inline"):
        run(function, [0])


@posix
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), FileNotFoundError(2, "no such")])
def test_where_memory_cannot_be_shared_each_worker_is_sent_its_own_and_it_is_said(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> Any:
        raise error

    array, started = np.arange(10.0), ProcessMap(1, takes_part=False)
    monkeypatch.setattr(children.tempfile, "TemporaryFile", full)
    try:
        with pytest.warns(RuntimeWarning, match=f"/dev/shm takes no 0.0 MB .{error.strerror}.: every worker process"):
            (found,) = started(mapped.Held(array), [0])
        assert found == (array.tobytes(), True, False, 0)
    finally:
        monkeypatch.undo()
        started.end()


# ------------------------------------------------------------------------------------------------- whoever dies of it


@posix
def test_a_killed_worker_is_noticed_and_its_item_is_done_again() -> None:
    with engine_map("processes", 2) as run:
        before = {pid for pid, _ in run(mapped.where, [0.2] * 4)}
        assert os.getpid() not in before
        victim = min(before)
        threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
        began = time.perf_counter()
        with pytest.warns(RuntimeWarning, match="ended by signal 9: what it was at is done again"):
            found = run(mapped.where, [0.6, 0.6, 0.0])
        assert time.perf_counter() - began < PATIENCE
        assert victim not in {pid for pid, _ in found}
        assert [number for _, number in found] == [1, 1, 1]  # a worker would use no more than itself
        assert is_gone(victim)
        after = run.pids  # type: ignore[attr-defined]
    assert all(map(is_gone, after))


@posix
def test_an_item_that_ends_every_worker_is_given_up_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST_DEATHS", 2)
    with warnings.catch_warnings(), engine_map("processes", 1) as run:
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(ChildProcessError, match=r"item 2 ended 2 worker processes, .* signal 9"):
            run(mapped.ends_its_process, [0, 1])


def patience(patch: pytest.MonkeyPatch, seconds: float, times: float = 20.0) -> None:
    patch.setattr(processes, "SECONDS_TO_HANG", {True: seconds, False: seconds})
    patch.setattr(processes, "TIMES_THE_LONGEST", times)
    patch.setattr(processes, "HEARTBEAT", seconds / 2)
    patch.setattr(children, "SECONDS_TO_TAKE", seconds)


@posix
def test_a_worker_that_is_stopped_is_replaced_and_its_item_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large item does not fit into the socket: that nobody takes it is found out while it is sent, not in waiting."""
    patience(monkeypatch, 0.3)
    with engine_map("processes", 1) as run:
        for size, said in ((1, r"no answer in .* where an item took .*"), (1 << 22, "it took nothing of what .*")):
            items = [bytes([i]) * size for i in range(2)]
            expected = run(mapped.summed, items)
            (victim,) = run.pids  # type: ignore[attr-defined]
            os.kill(victim, signal.SIGSTOP)
            again = r"what it was at is done again, and another takes its place"
            with pytest.warns(RuntimeWarning, match=rf"ended by this one \({said}\): {again}"):
                assert run(mapped.summed, items) == expected
            assert is_gone(victim)
            assert victim not in run.pids  # type: ignore[attr-defined]


@posix
def test_an_item_that_hangs_every_worker_is_given_up_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST_DEATHS", 2)
    patience(monkeypatch, 0.1)
    with warnings.catch_warnings(), engine_map("processes", 1) as run:
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(ChildProcessError, match=r"item 2 ended 2 worker processes, the last one by this one"):
            run(mapped.never_ends, [0, 1])


def test_patience_is_many_times_the_longest_twice_that_the_next_time_and_endless_while_nothing_is_known() -> None:
    for takes_part, least in ((True, 10.0), (False, 600.0)):
        started = ProcessMap(0, takes_part)
        assert started._patience(0) == math.inf
        for longest, seconds in ((0.01, least), (100.0, 2000.0)):
            started._longest = longest
            assert [started._patience(tries) for tries in range(3)] == [seconds, 2 * seconds, 4 * seconds]


@posix
def test_workers_that_cannot_start_are_no_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "PROGRAM", "raise SystemExit('no such luck')")
    with (
        engine_map("processes", 1) as run,
        pytest.raises(ChildProcessError, match=r"end before they are ready, .*exit code 1, and said: no such luck"),
    ):
        run(mapped.square, [1])
    with engine_map("processes", 2, takes_part=True) as run:
        said: list[Any] = []
        while not said:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                assert run(mapped.square, [1, 2]) == [1, 4]
        assert "before it was ready: the work goes on without it" in str(said[0].message)
        assert run(mapped.square, [3]) == [9]


# ------------------------------------------------------------------------------------------------------ in training


class Paced:
    """Another batch at every step, none of them before a worker could have started; `at(step)` is called before."""

    def __init__(self, node: Any, at: Callable[[int], None] = lambda step: None) -> None:
        self.node, self.at = node, at

    def __getitem__(self, step: int, /) -> Any:
        time.sleep(0.02)
        self.at(step)
        return random_batch(self.node, seed=step, batch=5)


def trained_until(node: Any, engine: str, enough: Callable[[Record], bool], batches: Any = None) -> list[Record]:
    config = TrainingConfig(steps=4000, micro_batches=3)
    state = start(parameters(node, "*.A", "*.B"), config)
    found = []
    records: Iterator[Record] = fit(model_loss(node), batches or Paced(node), config, state, 2, engine)
    for record in records:
        found.append(record)
        if enough(record):
            break
    records.close()  # type: ignore[attr-defined]
    return found


def bits(record: Record) -> tuple[Any, ...]:
    return record.loss, record.gradient_norm, hashes(record.state.trained), hashes(record.state.moments)


@posix
def test_every_engine_trains_to_the_same_bits_and_killed_or_stopped_workers_change_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = moved(adapted(model(dtype=np.float32, tied=False), dropout=0.2))
    pids: list[int] = []
    seen: list[int] = []  # steps of which a worker did a part
    hurt: list[int] = []
    patience(monkeypatch, 0.2)

    def hurt_one(step: int) -> None:
        pids.extend(worker.pid for worker in children._alive)
        idle = [worker.pid for worker in children._alive if worker.is_free]
        if seen and idle and len(hurt) < 2:
            hurt.append(idle[0])
            os.kill(idle[0], [signal.SIGSTOP, signal.SIGKILL][len(hurt) - 1])

    def enough(record: Record) -> bool:
        if record.traffic is not None:
            seen.append(record.step)
        return len(hurt) == 2 and record.step > max(seen[0] + 5, 8)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours = trained_until(node, "processes", enough, Paced(node, hurt_one))
    for words in ("ended by signal 9", "ended by this one"):
        assert any(words in str(warning.message) for warning in said)
    steps = ours[-1].step
    assert ours[seen[0] - 1].traffic is not None
    assert all(map(is_gone, pids))
    for engine in ("inline", "threads"):
        theirs = trained_until(node, engine, lambda record: record.step == steps)
        assert [bits(record) for record in theirs] == [bits(record) for record in ours]
    traffic = ours[seen[0] - 1].traffic
    assert traffic is not None
    everything, trained = parameters(node), parameters(node, "*.A", "*.B")
    least = 2 * traffic.shards * sum(array.nbytes for array in trained.values())  # there and back
    assert least < traffic.moved < least + 10_000 * traffic.shards  # names, tokens, and what a pickle adds
    beside = traffic.if_all_were_trained(everything, trained)
    assert beside - traffic.moved == 2 * traffic.shards * sum(
        array.nbytes for name, array in everything.items() if name not in trained
    )


@posix
def test_more_workers_than_shards_are_not_started_and_it_is_said() -> None:
    node = moved(adapted(model(tied=False)))
    state = start(parameters(node, "*.A", "*.B"), TrainingConfig())
    for rows, words in (
        (1, "1 is used: a batch is cut into 1 shard "),
        (2, "2 are used: a batch is cut into 2 shards"),
    ):
        batch = random_batch(node, batch=rows)
        settings = TrainingConfig(steps=1, micro_batches=4)
        with pytest.warns(RuntimeWarning, match=f"7 workers were asked for and {words}"):
            list(fit(model_loss(node), [batch], settings, state, 7, "processes"))


def test_unasked_threads_make_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    node = moved(adapted(model(tied=False)))
    used: list[str] = []
    opened = lora_np.training._mapped
    monkeypatch.setattr(
        lora_np.training, "_mapped", lambda name, *more: used.append(name or "threads") or opened(name, *more)
    )
    state = start(parameters(node, "*.A", "*.B"), TrainingConfig(steps=1, micro_batches=2))
    list(fit(model_loss(node), [random_batch(node, batch=2)], TrainingConfig(steps=1, micro_batches=2), state, 2))
    assert used == ["threads"]


# ------------------------------------------------------------------------------------------------- the whole command


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_a_command_is_stopped_no_process_stays_behind(number: signal.Signals, tmp_path: Path) -> None:
    tiny_base(tmp_path / "base")
    (tmp_path / "pairs.tsv").write_text("".join(f"question {i}\tanswer {i % 3} to it\n" for i in range(40)))
    line = ["adapt", "pairs.tsv", "--base", "base", "--steps", "100000", "--shards", "3", "--engine", "processes"]
    with commands.begun(*line, "--workers", "3", "--out", "out", cwd=tmp_path) as process:
        assert process.stderr is not None
        process.stderr.readline()  # its first step
        workers = children_of(process.pid)
        assert len(workers) == 2
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    assert all(map(is_gone, workers))
