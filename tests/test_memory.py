"""The laws of `memory`: freed memory serves the next step, and what a process holds is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_np.engine.memory import available_bytes, keep_freed_memory, peak_bytes

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
MEBIBYTE = 1 << 20

FAULTS = """
import resource, sys
import numpy as np
from lora_np.engine.memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
def step():
    arrays = [np.ones(1 << 18, np.float32) for _ in range(8)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str, **environment: str) -> tuple[str, int]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    line = [sys.executable, "-c", FAULTS, how]
    said, faults = subprocess.run(
        line, env={**plain, **environment}, capture_output=True, text=True, check=True
    ).stdout.split()
    return said, int(faults)


@linux
@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc")
def test_freed_memory_is_not_cleared_by_the_kernel_a_second_time() -> None:
    """Eight arrays of a mebibyte, ten times: 20,480 pages of 4 KiB at most; with kept memory next to none."""
    _, default = page_faults("default")
    agreed, kept = page_faults("keep")
    assert agreed == "True"
    assert default > 5_000  # contrast; measured: 17,000 to 20,000
    assert kept < 500


@linux
def test_who_has_settings_of_his_own_keeps_them() -> None:
    said, _ = page_faults("keep", MALLOC_ARENA_MAX="4")
    assert said == "False"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (lambda _: None, lambda _: "musl 1.2", _raises(ValueError), _raises(OSError)):
        keep_freed_memory.cache_clear()
        monkeypatch.setattr(os, "confstr", answer)
        assert keep_freed_memory() is False
    keep_freed_memory.cache_clear()


def _raises(error: type[Exception]) -> object:
    def raising(_: str) -> str:
        raise error

    return raising


@linux
def test_the_peak_is_that_of_this_process_and_grows_with_what_it_holds() -> None:
    program = (
        "import numpy as np; from lora_np.engine.memory import peak_bytes;"
        "a = peak_bytes(); np.ones(100 << 18, np.float32); print(a, peak_bytes())"
    )
    ballast = np.ones(100 << 18, np.float32)  # ours, which the child must not report
    first, second = map(int, subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert 95 * MEBIBYTE < second - first < 110 * MEBIBYTE
    assert first < ballast.nbytes + 60 * MEBIBYTE
    assert peak_bytes() >= ballast.nbytes


@linux
def test_what_is_available_is_what_the_system_says() -> None:
    free = available_bytes()
    assert free is not None
    assert 0 < free < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@linux
def test_the_limit_of_a_container_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": "5000000\n", "memory.current": "2000000\n"}
    monkeypatch.setattr(Path, "read_text", lambda path: files[path.name])
    assert available_bytes() == 3_000_000
    files["memory.max"] = "max\n"
    assert available_bytes() > 3_000_000  # type: ignore[operator]


def test_where_there_is_no_such_file_the_peak_is_asked_of_the_system_and_the_rest_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object, **__: object) -> object:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    monkeypatch.setattr(Path, "read_text", missing)
    assert available_bytes() is None
    peak = peak_bytes()
    assert peak > 10 * MEBIBYTE
    monkeypatch.setattr(sys, "platform", "darwin")  # which counts in bytes, not in kilobytes
    assert abs(peak_bytes() - peak / 1024) < peak / 1024
