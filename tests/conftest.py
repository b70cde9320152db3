"""What every test relies on, whoever started pytest."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

# Before anything imports NumPy. The tests' matrices are small: several threads for one product only spin and wait, and
# fight over the cores with those of the other test processes. A test that needs more than one asks for them.
os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))

import pytest
import warm
from hypothesis import HealthCheck, settings

# The same examples on every machine. No deadline: a busy machine is not a wrong result.
settings.register_profile("anywhere", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("anywhere")

# A shell starts a job in the background with SIGINT ignored, and what is ignored is inherited: the processes that the
# tests start and interrupt would never notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop() -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        warm.end()  # before the coverage of every process is put together
