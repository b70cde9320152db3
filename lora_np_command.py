r"""The command `lora-np`: from its first line on, a signal ends it in one line.

It stands outside the package because importing the package, NumPy above all, takes most of the first second. In that
time there is no work to lose yet, and an exception could be swallowed; so the process ends on the spot. Where nothing
is computed (the version, a help text, what a shell asks when TAB is pressed) NumPy is not imported at all.
"""

import os
import signal
import sys

ASKS = ("-h", "--help", "--version", "--show-completion", "--install-completion")


def main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    if sys.argv[1:] == ["--version"] and _version_said():
        return
    if "_LORA_NP_COMPLETE" in os.environ or not sys.argv[1:] or any(word in ASKS for word in sys.argv[1:]):
        _name_the_package()
    from lora_np.cli import main as command

    command()


def _end(*_: object) -> None:
    try:
        os.write(2, b"lora-np: interrupted\n")
    finally:
        os._exit(130)


def _version_said() -> bool:
    """Say the version; False where it could not be written, which the command then says in its own way."""
    _name_the_package()
    from lora_np.version import __version__

    try:
        os.write(1, f"lora-np {__version__}\n".encode())
    except OSError:
        return False
    return True


def _name_the_package() -> None:
    """Let `lora_np` be a name for its modules alone, without what importing it brings along."""
    from importlib.machinery import PathFinder
    from types import ModuleType

    found = PathFinder.find_spec("lora_np")
    if found is not None and "lora_np" not in sys.modules:
        package = ModuleType("lora_np")
        package.__path__, package.__spec__ = list(found.submodule_search_locations or ()), found
        sys.modules["lora_np"] = package
