r"""`lora-np`, the command line: one function a command, what is heavy imported only where it is used."""

from . import (  # each adds its commands to `app`, as --help lists them
    adapting,
    checking,
    conforming,
    converting,
    foreign,
    ledgers,
    likeness,
    measuring,
)
from .main import code_of, main
from .options import app

__all__ = [
    "adapting",
    "app",
    "checking",
    "code_of",
    "conforming",
    "converting",
    "foreign",
    "ledgers",
    "likeness",
    "main",
    "measuring",
]
