r"""From a command line to an exit code: every expected error becomes one line on stderr.

Exit code 0: done and holds; 1: done and does not hold; 2: bad input; 130: interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence

from ..adaptation import Interrupted
from ..devices import DeviceMemoryError
from .options import app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; every expected error becomes one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    warnings.showwarning = lambda message, *_, **__: print(f"lora-np: warning: {message}", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    code = code_of(arguments)
    try:
        sys.stdout.flush()
    except OSError:  # said already: what a full disk did not take must not be tried again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def code_of(arguments: Sequence[str] | None) -> int:
    try:
        code = int(app(arguments or sys.argv[1:] or ["--help"], standalone_mode=False) or 0)
        return _fail("interrupted", 130) if code == 130 else code  # typer has caught Ctrl-C itself
    except Interrupted as stopped:
        return _fail(f"{stopped}; --resume continues", 130)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, TypeError, ArithmeticError, MemoryError, ImportError) as error:
        return _fail(_one_line(error), 2)
    except Exception as error:  # typer's own errors of usage; anything else is a defect and shows its traceback
        if not hasattr(error, "format_message"):
            raise
        return _fail(_one_line(error.format_message()), 2)


def _fail(line: str, code: int) -> int:
    print(f"lora-np: {line}", file=sys.stderr)
    return code


def _one_line(error: object) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if isinstance(error, DeviceMemoryError) else "not enough memory"
    return " ".join(str(error).split())
