"""The study of the paper on a real Dask cluster of two workers, of which one is killed: rows of the local run."""

from __future__ import annotations

import socket
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from builders import model
from test_repeating import CELLS, ONLY, PROFILE

from lora_np.cli import code_of
from lora_np.disk.folders import partial_folder
from lora_np.files import save_model
from lora_np.paper.repeating import ROWS, repeat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("distributed", reason="needs lora_np[cluster]")
    from test_cluster import cluster_of_two

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_model(tmp_path / "base", model(dtype=np.float32, vocab=256, context=96, d_model=8, layers=1))
    return tmp_path / "base"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # that a worker died is said as a warning
def test_a_cluster_gives_the_same_rows_also_when_a_worker_dies(base: Path, tmp_path: Path) -> None:
    repeat(tmp_path / "here", PROFILE, base=base, only=ONLY, engine="inline")
    with cluster_of_two() as (address, workers):
        seen: list[str] = []

        def say(line: str) -> None:
            seen.append(line)
            if len(seen) == 4:  # after the third row
                workers[0].kill()

        result = repeat(tmp_path / "there", PROFILE, base=base, only=ONLY, engine=address, say=say)
        assert workers[0].poll() is not None
    assert len(result.rows) == CELLS
    assert (tmp_path / "there" / ROWS).read_bytes() == (tmp_path / "here" / ROWS).read_bytes()


def test_a_scheduler_that_does_not_answer_is_one_line_within_ten_seconds_and_nothing_is_lost(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"dask://127.0.0.1:{one.getsockname()[1]}"
    tcp = address.replace("dask://", "tcp://")
    line = ["study", "--paper", "--out", str(tmp_path / "study"), "--base", str(base), "--only", "heads"]
    began = time.perf_counter()
    assert code_of([*line, "--scheduler", tcp]) == 2
    took = time.perf_counter() - began
    error = capsys.readouterr().err
    assert address in error
    assert len(error.splitlines()) == 1
    print(f"said after {took:.1f} s: {error}")  # no test stands on a clock
    assert not (tmp_path / "study").exists()
    assert not partial_folder(tmp_path / "study").exists()
