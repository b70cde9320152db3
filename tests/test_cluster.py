"""The map over a Dask cluster, with a real scheduler and two real workers, one of which is killed.

All of it is one test, because a cluster takes seconds to start.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mapped
import numpy as np
import pytest
from builders import adapted, hashes, model, moved
from commands import ended
from test_cli import tiny_base
from test_mapping import PATIENCE, Paced

from lora_np.engine import cluster
from lora_np.engine.cluster import ClusterError, check_versions
from lora_np.engine.mapping import check_engine, engine_map
from lora_np.optimization import TrainingConfig, start
from lora_np.parameters import parameters
from lora_np.training import fit, model_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("distributed", reason="needs lora_np[cluster]")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

HERE = str(Path(__file__).parent)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of Dask's own commands, which can import what the tests map."""
    line = [sys.executable, "-W", "ignore", "-m", *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    process = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": HERE}, start_new_session=True, **quiet)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def cluster_of_two() -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a scheduler, and its workers."""
    port = free_port()
    one = ("distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads=1", "--no-nanny", "--no-dashboard")
    main = ("distributed.cli.dask_scheduler", "--host=127.0.0.1", f"--port={port}", "--no-dashboard", "--no-show")
    with program(*main), program(*one) as first, program(*one) as second:
        address = f"dask://127.0.0.1:{port}"
        workers: set[int] = set()
        while len(workers) < 2:  # the first ones to be there do everything at first
            with contextlib.suppress(ClusterError), engine_map(address) as run:
                workers = {pid for pid, _ in run(mapped.where, [0.1] * 4)}
            time.sleep(0.1)
        yield address, [first, second]


@pytest.mark.slow
def test_a_cluster_gives_the_same_bits_also_when_its_workers_die(tmp_path: Path) -> None:
    with cluster_of_two() as (address, workers), engine_map(address) as run:
        # results, exceptions, and what is sent once
        array, told = np.arange(1000.0), []
        assert run(mapped.square, range(4), then=lambda *done: told.append(done)) == [0, 1, 4, 9]
        assert sorted(told) == [(i, i * i) for i in range(4)]
        with pytest.raises(KeyError, match="two is not served"):
            run(mapped.refuses_two, [2])
        assert {number for _, number in run(mapped.where, [0.0] * 3)} == {1}
        sent = run.sent
        held = mapped.Held(array)
        for _ in range(2):
            assert run(held, [0]) == [(array.tobytes(), True, False, 0)]
            assert array.nbytes < run.sent - sent < array.nbytes + 1000

        # the bits of a training run, with a worker killed in the middle
        node = moved(adapted(model(dtype=np.float32, tied=False), dropout=0.2))
        config = TrainingConfig(steps=12, micro_batches=3)
        state = start(parameters(node, "*.A", "*.B"), config)

        def kill_one(step: int) -> None:
            if step == 5:
                workers[0].kill()

        def trained(engine: str, at: Any = lambda step: None) -> list[Any]:
            found = list(fit(model_loss(node), Paced(node, at), config, state, None, engine))
            assert (found[-1].traffic is not None) == engine.startswith("dask")
            return [(record.loss, hashes(record.state.trained)) for record in found]

        assert trained(address, kill_one) == trained("inline")

        # without any worker the work goes on here
        threading.Timer(0.3, workers[1].kill).start()
        with pytest.warns(RuntimeWarning, match=r"could not do item . \(.*\): it is done here"):
            assert len(run(mapped.where, [0.5] * 3)) == 3
        with pytest.raises(ClusterError, match="has no worker: start some with dask worker"):
            check_engine(address)

    # a scheduler that is gone, as the command says it
    tiny_base(tmp_path / "base")
    (tmp_path / "pairs.tsv").write_text("".join(f"question {i}\tanswer {i % 3} to it\n" for i in range(40)))
    line = ["adapt", "pairs.tsv", "--base", "base", "--out", "out", "--engine", address]
    code, said, error = ended(*line, cwd=tmp_path)
    assert (code, said) == (2, "")
    assert re.fullmatch(rf"lora-np: no scheduler of Dask answers at {address}: .*refused\n", error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "pairs.tsv"]


def test_a_host_that_says_nothing_is_given_up_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SECONDS_TO_CONNECT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(ClusterError, match="no scheduler of Dask answers at dask://127"):
            check_engine(f"dask://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize("address", ["dask://", "dask://host", "dask://:80", "dask://host:port", "dask://host:70000"])
def test_an_address_that_is_none_says_what_one_is(address: str) -> None:
    with pytest.raises(ValueError, match=f"the engine of a cluster is dask://HOST:PORT, got '{address}'"):
        check_engine(address)


def test_another_version_anywhere_on_the_cluster_is_named() -> None:
    same = {"packages": {"lora_np": "1.0", "numpy": "2.4.6"}}
    good = {"client": same, "scheduler": same, "workers": {"tcp://a:1": same, "tcp://b:2": same}}
    check_versions("dask://s:1", good)
    for place, where in ((("scheduler",), "the scheduler"), (("workers", "tcp://b:2"), "worker tcp://b:2")):
        for name, version, has in (("numpy", "2.0.0", "numpy 2.0.0"), ("lora_np", None, "no lora_np")):
            found: Any = json.loads(json.dumps(good))
            about = found[place[0]] if len(place) == 1 else found[place[0]][place[1]]
            about["packages"][name] = version
            with pytest.raises(
                ClusterError, match=f"{where} of dask://s:1 has {has}, and here it is .*: they must be the"
            ):
                check_versions("dask://s:1", found)
