"""What every test relies on, whoever started pytest."""

from __future__ import annotations

import signal

import pytest
import warm

# A shell starts a job in the background with SIGINT ignored, and what is ignored is inherited: the processes that the
# tests start and interrupt would never notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    warm.end()  # before the coverage of every process is put together
