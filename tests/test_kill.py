"""Killed at any moment, a run continues from its last complete checkpoint to the same bits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import commands
import numpy as np
import pytest
from commands import AS_FROM_A_TERMINAL, IN_THE_BACKGROUND
from test_cli import done, findings, tiny_base

from lora_np.disk.marks import MARK
from lora_np.files import load_adapter, load_model, read_arrays

STEPS = 400
LINE = ["adapt", "pairs.tsv", "--base", "base", "--steps", str(STEPS), "--batch-size", "8", "--dropout", "0.1", "--out"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX knows them")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base, the pairs, and the adapter of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("made")
    tiny_base(folder / "base")
    (folder / "pairs.tsv").write_text("".join(f"question {i}\tanswer {i % 3} to it\n" for i in range(40)))
    done(*LINE, "whole", cwd=folder)
    return folder


def begun(folder: Path, *arguments: str, before: str = AS_FROM_A_TERMINAL) -> subprocess.Popen[str]:
    """The real command, as a process that has begun to be."""
    return commands.begun(*LINE, *arguments, cwd=folder, before=before)


def first_line(process: subprocess.Popen[str]) -> str:
    """What it says when it has done its first step."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert re.match(rf"step \d+/{STEPS}: ", line), line + process.stderr.read()
    return line


def adapter(folder: Path, out: str) -> bytes:
    return (folder / out / "adapter.safetensors").read_bytes()


def steps_kept(folder: Path, out: str) -> int:
    """The step of the last checkpoint, which must be whole and finite; -1 when there is none yet."""
    path = folder / f"{out}.partial" / "checkpoint.safetensors"
    return int(read_arrays(path)[1]["step"]) if path.exists() else -1


def test_a_run_killed_again_and_again_ends_with_the_same_bits(made: Path) -> None:
    rng = np.random.default_rng(20)
    kept, kills = -1, 0
    while kills < 6:
        resume = ["--resume"] if kept >= 0 else []
        with begun(made, "killed", *resume) as process:
            if kills % 3:  # while it trains; else anywhere from the start of the process
                first_line(process)
            time.sleep(rng.uniform(0.0, 0.12 if kills % 3 else 0.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
        assert not (made / "killed").exists()
        assert steps_kept(made, "killed") >= kept
        kept, kills = steps_kept(made, "killed"), kills + 1
    assert 0 <= kept < STEPS
    done(*LINE, "killed", "--resume", cwd=made)
    assert adapter(made, "killed") == adapter(made, "whole")
    load_adapter(made / "killed", load_model(made / "base"))


@pytest.mark.parametrize(
    ("sent", "before"),
    [
        (signal.SIGINT, AS_FROM_A_TERMINAL),
        (signal.SIGTERM, IN_THE_BACKGROUND),
        (signal.SIGHUP, AS_FROM_A_TERMINAL),
    ],
    ids=["Ctrl-C", "kill of a job in the background", "a terminal that goes away"],
)
def test_a_run_that_is_asked_to_stop_saves_says_so_and_goes_on_to_the_same_bits(
    made: Path, sent: signal.Signals, before: str
) -> None:
    out = sent.name
    with begun(made, out, before=before) as process:
        first_line(process)
        time.sleep(0.05)
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    (said,) = findings(stderr)
    stopped = re.fullmatch(r"lora-np: interrupted after step (\d+); --resume continues", said)
    assert stopped, said
    assert int(stopped[1]) == steps_kept(made, out) >= 1
    assert sorted(path.name for path in (made / f"{out}.partial").iterdir()) == [MARK, "checkpoint.safetensors"]
    with begun(made, out, "--resume") as process:
        assert first_line(process).startswith(f"step {int(stopped[1]) + 1}/")
        process.communicate(timeout=300)
    assert process.returncode == 0
    assert adapter(made, out) == adapter(made, "whole")


def test_stopping_twice_in_a_row_loses_nothing(made: Path) -> None:
    with begun(made, "twice") as process:
        first_line(process)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert steps_kept(made, "twice") >= 0
    done(*LINE, "twice", "--resume", cwd=made)
    assert adapter(made, "twice") == adapter(made, "whole")
