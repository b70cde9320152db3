r"""From a command line to an exit code: every expected error becomes one line on stderr.

Exit code 0: done and holds; 1: done and does not hold; 2: bad input, or findings that could not be written to stdout;
130: interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from .. import stopping
from ..stopping import Interrupted
from .completing import check_shell
from .options import app
from .streams import lost, one_line, open_closed, steady


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; every expected error becomes one line on stderr and an exit code."""
    sys.path[:] = [place for place in sys.path if place]  # nothing that lies in the current folder is imported
    open_closed()
    sys.stdout, sys.stderr = steady(sys.stdout, 1), steady(sys.stderr, 2)
    warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
    stopping.heed()
    try:
        code = code_of(arguments)
    except KeyboardInterrupt:  # while the last line was being said
        code = 130
    stopping.disregard()
    if (reason := lost()) and code == 0:
        code = _fail(reason, 2)
    sys.exit(code)


def code_of(arguments: Sequence[str] | None) -> int:
    try:
        told = list(arguments or sys.argv[1:] or ["--help"])
        check_shell(told)
        if "_LORA_NP_COMPLETE" in os.environ:
            os.environ["COLUMNS"] = "10000"  # typer folds what a shell takes line by line
        code = int(app(told, prog_name="lora-np", standalone_mode=False) or 0)
        return _fail("interrupted", 130) if code == 130 else code  # typer has caught Ctrl-C itself
    except Interrupted as stopped:
        return _fail(f"{stopped}; --resume continues", 130)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (OSError, ValueError, TypeError, ArithmeticError, MemoryError, ImportError) as error:
        if stopping.asked() and isinstance(error, ImportError):  # what some libraries make of Ctrl-C
            return _fail("interrupted", 130)
        return _fail(_in_words(error), 2)
    except Exception as error:  # typer's own errors of usage; anything else is a defect and shows its traceback
        if not hasattr(error, "format_message"):
            raise
        return _fail(error.format_message(), 2)


def _fail(line: str, code: int) -> int:
    _say(line)
    return code


def _say(line: str) -> None:
    print(one_line(f"lora-np: {line}"), file=sys.stderr)


def _in_words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        from ..engine.devices import DeviceMemoryError

        return f"not enough memory: {error}" if isinstance(error, DeviceMemoryError) else "not enough memory"
    return str(error)
