r"""The memory of this process: what it may take, the most it took, and that what is freed is kept for the next step.

A training step frees in its second half what it allocated in its first. By default the C library hands such large
pieces back to the kernel, which fills them with zeros page by page when they are asked for again, one step later.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from contextlib import suppress
from pathlib import Path

GIB = 1 << 30
SETTINGS = {  # of mallopt(3): which, and its value
    "M_MMAP_THRESHOLD": (-3, GIB),  # a smaller piece is not mapped by itself
    "M_TRIM_THRESHOLD": (-1, 2 * GIB - 1),  # less than that at the end of the heap is not given back
    "M_TOP_PAD": (-2, GIB // 16),  # the heap grows by this much more than it must
    "M_ARENA_MAX": (-8, 1),  # what one thread freed serves another
}


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for reuse, for the rest of this process; True if it agreed.

    Only glibc is asked, and not where the environment has settings of its own (`MALLOC_…_`).
    """
    try:
        known = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # not this kind of system
        known = False
    if not known or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(which, value) for which, value in SETTINGS.values())


def peak_bytes(pid: int | None = None) -> int:
    """The most memory this process has held at once, its libraries included; or another one, 0 where it cannot be seen.

    What processes share counts in each of them.
    """
    try:
        # getrusage would count what started this process as well
        with open(f"/proc/{pid or 'self'}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        if pid is not None:
            return 0
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int | None:
    """The memory that can be had without swapping, as the system and its container say; None where neither does."""
    rooms = []
    with suppress(OSError, StopIteration), open("/proc/meminfo") as info:
        rooms.append(next(int(line.split()[1]) * 1024 for line in info if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):  # of control groups; "max" is no limit
        limit, held = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        rooms.append(int(limit) - int(held))
    return min(rooms, default=None)
