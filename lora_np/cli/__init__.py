r"""`lora-np`, the command line: one function a command, what is heavy imported only where it is used."""

from . import adapting, checking, foreign, ledgers, measuring  # each adds its commands to `app`, as --help lists them
from .main import code_of, main
from .options import app

__all__ = ["adapting", "app", "checking", "code_of", "foreign", "ledgers", "main", "measuring"]
