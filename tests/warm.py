r"""Runs of the real command that do not import everything again.

Nearly all the time of a short command is Python importing NumPy, typer and rich. Here one process imports them once
and forks itself for each run. Every run is still a process, with arguments, folder, environment, streams and an end of
its own; it can be limited, patched or killed without another noticing. What it does not show is how Python starts: what
the variables PYTHON…, LC_… and OPENBLAS… do, and from where a module is imported. For that there is `fresh`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

PATIENCE = 300.0  # seconds until a run counts as hanging
PLAIN = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "", "COLUMNS": "100"}

Done = subprocess.CompletedProcess[str]


def run(arguments: list[str], cwd: Path, env: dict[str, str], code: str) -> Done:
    """`python -c code arguments` in the folder, `env` on top of the environment: by the quicker way that shows it."""
    how_it_starts = any(name.startswith(("PYTHON", "LC_", "OPENBLAS")) for name in env)
    return (fresh if how_it_starts or not hasattr(os, "fork") else forked)(arguments, cwd, env, code)


def fresh(arguments: list[str], cwd: Path, env: dict[str, str], code: str) -> Done:
    """The same in a Python of its own."""
    line = [sys.executable, "-c", code, *arguments]
    settings = {**os.environ, **PLAIN, **env}
    return subprocess.run(line, cwd=cwd, env=settings, capture_output=True, text=True, timeout=PATIENCE)


def forked(arguments: list[str], cwd: Path, env: dict[str, str], code: str) -> Done:
    """The same in a fork of the warm process."""
    (out, said), (errors, complained) = os.pipe(), os.pipe()
    with ThreadPoolExecutor(2) as readers, open(os.devnull) as nothing:
        both = [readers.submit(_whole, stream) for stream in (out, errors)]
        try:
            streams = nothing.fileno(), said, complained
            returncode = exit_code(arguments, cwd, {**os.environ, **PLAIN, **env}, code, streams)
        finally:
            os.close(said)
            os.close(complained)
        return Done([sys.executable, "-c", code, *arguments], returncode, *(text.result() for text in both))


def exit_code(arguments: list[str], cwd: Path, env: dict[str, str], code: str, streams: tuple[int, int, int]) -> int:
    """The exit code of a fork with exactly this environment, whose stdin, stdout and stderr are these streams."""
    process, ours = _warm()
    socket.send_fds(ours, [b"!"], streams)
    ours.sendall(json.dumps([code, arguments, str(cwd), env]).encode() + b"\n")
    try:
        answer = ours.recv(64)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        end()
        raise
    assert answer, process.communicate()[1].decode()
    return int(answer)


def _whole(stream: int) -> str:
    with open(stream, encoding="utf-8") as file:
        return file.read()


def end() -> None:
    """Let the warm process end, if there is one, and wait for it."""
    if _warm.cache_info().currsize:
        process, ours = _warm()
        _warm.cache_clear()
        ours.close()
        process.communicate(timeout=PATIENCE)


@cache
def _warm() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, started when it is first needed, and the socket to talk to it."""
    ours, its = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, __file__, str(its.fileno())],
        pass_fds=[its.fileno()],
        stdout=subprocess.PIPE,  # as those of the runs, no files: Python asks once whether it can seek in a stream
        stderr=subprocess.PIPE,
        env={**os.environ, **PLAIN},
        process_group=0,  # a run that hangs is killed together with it
    )
    its.close()
    ours.settimeout(PATIENCE)
    return process, ours


# ------------------------------------------------------------------------------------------------ in the warm process


def next_run(requests: socket.socket) -> str | None:
    """Answer each request with the exit code of a fork. In a fork: the code it shall run. When no more come: None."""
    while True:
        told, streams, _, _ = socket.recv_fds(requests, 1, 3)
        if not told:
            return None
        with requests.makefile("r") as lines:
            code, arguments, cwd, env = json.loads(lines.readline())
        pid = os.fork()
        if pid == 0:
            requests.close()
            become(streams, arguments, cwd, env)
            return str(code)
        for stream in streams:
            os.close(stream)
        requests.sendall(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def become(streams: list[int], arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """Make this fork what a Python is that was started just now."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)  # below sys.stdin, sys.stdout and sys.stderr, which nobody has used yet
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    sys.argv[:], sys.path[0] = ["-c", *arguments], ""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)


if __name__ == "__main__":
    import contextlib
    import gc
    import io
    import warnings

    # What the commands import sooner or later. None of it does anything before it is called.
    import safetensors.numpy  # noqa: F401
    import threadpoolctl  # noqa: F401
    import tqdm  # noqa: F401

    import lora_np.cli

    with contextlib.redirect_stdout(io.StringIO()):
        lora_np.cli.code_of(
            ["params", "gpt2"]
        )  # one that writes nothing: typer and rich import more when they are used
    gc.freeze()  # what is here stays: a fork that ends need not look through it
    warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # the matrix library has threads: it may
    code = next_run(socket.socket(fileno=int(sys.argv[1])))
    if code is not None:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
