"""The real command as a process of its own, with the signal dispositions that the tests rely on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Whoever started the tests may have them ignored, as a shell does for a job in the background; a child inherits that.
AS_FROM_A_TERMINAL = (
    "import signal\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "for name in {'SIGTERM', 'SIGHUP'} & {*dir(signal)}: signal.signal(getattr(signal, name), signal.SIG_DFL)\n"
)
IN_THE_BACKGROUND = AS_FROM_A_TERMINAL + "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
COMMAND = "from lora_np_command import main; main()\n"


def begun(*arguments: Any, cwd: Path, before: str = AS_FROM_A_TERMINAL, **settings: Any) -> subprocess.Popen[str]:
    """`lora-np` with these arguments, which has begun to be."""
    line = [sys.executable, "-c", before + COMMAND, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    return subprocess.Popen(line, cwd=cwd, text=True, env=unmeasured({"PYTHONUTF8": "1"}), **pipes)


def unmeasured(more: Mapping[str, str]) -> dict[str, str]:
    """The environment without what makes a process measure its coverage: that takes a lock, and where a signal meets it
    there, it never lets go."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")} | dict(more)


def ended(*arguments: Any, cwd: Path, **settings: Any) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr."""
    with begun(*arguments, cwd=cwd, **settings) as process:
        said, error = process.communicate(timeout=300)
    return process.returncode, said, error
