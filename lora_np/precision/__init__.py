"""What few bits do to an update: numbers of 16, 8 and 4 bits, and merging, unmerging and quantising in them."""

from .lab import Bases, Drift, bases, drift, orders, sizes_swallowed, swallowed
from .quantization import KINDS, NF4, Quantised, doubly_quantised, normal_float, quantised

__all__ = [
    "KINDS",
    "NF4",
    "Bases",
    "Drift",
    "Quantised",
    "bases",
    "doubly_quantised",
    "drift",
    "normal_float",
    "orders",
    "quantised",
    "sizes_swallowed",
    "swallowed",
]
