"""The laws of `threads`: results in order, errors not swallowed, one matrix thread inside, and a number that is one."""

from __future__ import annotations

import math
import os
import threading
import time
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from lora_np.engine.threads import MOST, VARIABLE, each, thread_map, worker_count

# How long two threads wait for each other; they meet at once, unless there is only one of them.
PATIENCE = 300.0


def blas_threads(_: Any = None) -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


# ------------------------------------------------------------------------------------------------------- the map


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_stand_in_the_order_of_the_items_whoever_is_first(workers: int) -> None:
    finished: list[int] = []
    overtaken = threading.Event()

    def first_last(i: int) -> int:
        if i == 0 and workers > 1:
            assert overtaken.wait(PATIENCE)
        finished.append(i)
        if i == 5:
            overtaken.set()
        return i * i

    with thread_map(workers) as run:
        assert run(first_last, range(6)) == [0, 1, 4, 9, 16, 25]
    assert sorted(finished) == list(range(6))
    assert (finished == list(range(6))) == (workers == 1)


def test_two_workers_are_at_work_at_once() -> None:
    meeting = threading.Barrier(2, timeout=PATIENCE)
    with thread_map(2) as run:
        assert sorted(run(lambda _: meeting.wait(), [0, 1])) == [0, 1]


def test_one_worker_or_one_item_is_worked_on_by_the_caller() -> None:
    me = threading.get_ident()
    for workers, items in ((1, 3), (4, 1)):
        with thread_map(workers) as run:
            assert run(lambda _: threading.get_ident(), range(items)) == [me] * items
    with thread_map(2) as run:
        assert me not in run(lambda _: threading.get_ident(), range(3))  # contrast


def test_no_more_threads_than_workers_are_used() -> None:
    with thread_map(3) as run:
        used = {thread for _ in range(5) for thread in run(lambda _: threading.get_ident(), range(40))}
    assert 1 <= len(used) <= 3


@pytest.mark.parametrize("workers", [1, 3])
def test_no_items_have_no_results(workers: int) -> None:
    with thread_map(workers) as run:
        assert run(abs, []) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_an_exception_reaches_the_caller_and_the_map_can_be_used_again(workers: int) -> None:
    def refuses_two(i: int) -> int:
        if i == 2:
            raise KeyError("two is not served")
        return i

    with thread_map(workers) as run:
        with pytest.raises(KeyError, match="two is not served"):
            run(refuses_two, range(5))
        assert run(refuses_two, [0, 1, 3]) == [0, 1, 3]


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    with thread_map(4) as run:
        run(lambda _: time.sleep(0.01), range(8))
        assert threading.active_count() > before
    assert threading.active_count() == before


# ------------------------------------------------------------------------------------ idle threads, inside one item


def threads_of_each(workers: int, items: int, jobs: int, at_once: int = 1) -> list[set[int]]:
    """Which threads `each` used, for every item of the map; so many jobs wait for one another."""
    meeting = threading.Barrier(at_once, timeout=PATIENCE)

    def one(_: int) -> set[int]:
        used: set[int] = set()
        each(lambda _: (meeting.wait(), used.add(threading.get_ident())), range(jobs))
        return used

    with thread_map(workers) as run:
        return run(one, range(items))


def test_a_single_item_has_the_other_threads_to_itself() -> None:
    (used,) = threads_of_each(2, 1, 8, at_once=2)
    assert len(used) == 2
    assert threading.get_ident() not in used


def test_items_side_by_side_have_no_threads_to_spare() -> None:
    for used in threads_of_each(2, 2, 4):
        assert len(used) == 1
    (used,) = threads_of_each(1, 1, 4)
    assert used == {threading.get_ident()}


def test_one_job_and_a_job_outside_a_map_are_done_by_the_caller() -> None:
    (used,) = threads_of_each(2, 1, 1)
    assert used == {threading.get_ident()}
    done: list[int] = []
    each(lambda _: done.append(threading.get_ident()), range(3))
    assert done == [threading.get_ident()] * 3


def test_every_job_is_done_once_and_an_exception_reaches_the_caller() -> None:
    done: list[int] = []

    def refuses_five(i: int) -> None:
        if i == 5:
            raise KeyError("five is not served")
        done.append(i)

    with thread_map(3) as run:
        run(lambda _: each(done.append, range(20)), [None])
        assert sorted(done) == list(range(20))
        with pytest.raises(KeyError, match="five is not served"):
            run(lambda _: each(refuses_five, range(8)), [None])
        assert run(lambda _: each(done.append, [99]), [None]) == [None]  # and the map can be used again


def test_a_job_sees_the_settings_of_numpy_of_the_caller() -> None:
    def overflow(_: int) -> None:
        np.exp(np.full(4, 1000.0))

    with thread_map(2) as run:
        with np.errstate(over="ignore"):
            run(lambda _: each(overflow, range(4)), [None])
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):  # contrast
            run(lambda _: each(overflow, range(4)), [None])


# --------------------------------------------------------------------------------------------- the matrix library


@pytest.mark.parametrize("workers", [1, 3])
def test_inside_the_matrix_library_uses_one_thread_and_afterwards_what_it_did(workers: int) -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        assert blas_threads() == {2}  # contrast
        with thread_map(workers) as run:
            assert blas_threads() == {1}
            assert run(blas_threads, range(4)) == [{1}] * 4
        assert blas_threads() == {2}


def test_an_exception_inside_restores_the_matrix_library() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        with pytest.raises(RuntimeError, match="stopped"), thread_map(2):
            raise RuntimeError("stopped")
        assert blas_threads() == {2}


def test_a_product_has_the_same_bits_on_any_number_of_workers() -> None:
    factors = [np.random.default_rng(seed).standard_normal((70, 70)).astype(np.float32) for seed in range(8)]
    products = []
    for workers in (1, 2, 4):
        with threadpool_limits(limits=2, user_api="blas"), thread_map(workers) as run:
            products.append([product.tobytes() for product in run(lambda x: x @ x.T, factors)])
    assert products[0] == products[1] == products[2]


# ---------------------------------------------------------------------------------------------- how many workers


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def test_the_argument_is_asked_first_then_the_variable_then_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert worker_count() == min(cores(), MOST)
    monkeypatch.setenv(VARIABLE, "7")
    assert worker_count() == 7
    assert worker_count(3) == 3


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert worker_count() == min(cores(), MOST)


def test_the_edges_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (worker_count(1), worker_count(MOST)) == (1, MOST)
    for number in (1, MOST):
        monkeypatch.setenv(VARIABLE, str(number))
        assert worker_count() == number


@pytest.mark.parametrize("wrong", [0, -1, 257, 2.5, "two", math.nan, math.inf], ids=str)
def test_a_number_of_workers_that_is_none_raises_and_says_the_range(wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"workers must be a whole number in 1\.\.256, got {wrong!r}"):
        worker_count(wrong)


@pytest.mark.parametrize("wrong", ["0", "-1", "257", "2.5", "two", "nan", "inf", " "])
def test_a_variable_that_is_no_number_of_workers_raises_and_is_named(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, wrong)
    with pytest.raises(ValueError, match=rf"{VARIABLE} must be a whole number in 1\.\.256, got '{wrong}'"):
        worker_count()


def test_a_wrong_number_raises_before_anything_is_changed() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        with pytest.raises(ValueError, match="workers must be"), thread_map(0):
            pytest.fail("the body must not be reached")
        assert blas_threads() == {2}
