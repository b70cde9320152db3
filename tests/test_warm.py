"""A fork of the warm process is, to the code that it runs, a Python that was started for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import warm

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

SHOW = """
import os, sys
print(sys.argv, os.getcwd(), sorted(os.environ.items()), sys.path[0], __name__, sys.stdin.read())
print(sys.stdout.encoding, sys.stdout.line_buffering, sys.stdout.write_through, sys.stderr.errors, "α")
print("to stderr", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""

RUINOUS = """
import builtins, os, resource, signal, lora_np.cli
os.chdir("/"); os.environ["LEFT"] = "behind"; builtins.left = lora_np.left = "behind"
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
print("said", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_fork_finds_what_a_fresh_python_finds(tmp_path: Path, code: int) -> None:
    asked = [str(code), "two words", "ü"], tmp_path, {"OWN": "variable"}, SHOW
    forked, fresh = warm.forked(*asked), warm.fresh(*asked)
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
    assert forked.returncode == code
    assert "'OWN', 'variable'" in forked.stdout


def test_a_traceback_is_on_stderr_and_the_exit_code_1(tmp_path: Path) -> None:
    result = warm.forked([], tmp_path, {}, "raise KeyError('mine')")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith("KeyError: 'mine'\n")


def test_nothing_of_one_run_is_left_to_the_next(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    killed = warm.forked([], tmp_path, {}, RUINOUS)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "said\n")
    look = (
        "import os, builtins, lora_np; print('LEFT' in os.environ, hasattr(builtins, 'left'), hasattr(lora_np, 'left'))"
    )
    after = warm.forked([], tmp_path, {}, f"{look}; open('file', 'w').write('as long as it likes')")
    assert (after.returncode, after.stdout, after.stderr) == (0, "False False False\n", "")


def test_what_decides_how_python_starts_gets_a_python_of_its_own(tmp_path: Path) -> None:
    code = "import sys; print(sys.stdout.encoding)"
    assert warm.run([], tmp_path, {"PYTHONIOENCODING": "ascii"}, code).stdout == "ascii\n"
    assert warm.run([], tmp_path, {}, code).stdout == "utf-8\n"
