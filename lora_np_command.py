r"""The command `lora-np`: from its first line on, a signal ends it in one line.

It stands outside the package because importing the package, NumPy above all, takes most of the first second. In that
time there is no work to lose yet, and an exception could be swallowed; so the process ends on the spot.
"""

import os
import signal


def main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    from lora_np.cli import main as command

    command()


def _end(*_: object) -> None:
    try:
        os.write(2, b"lora-np: interrupted\n")
    finally:
        os._exit(130)
