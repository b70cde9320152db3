"""Which version this is."""

__version__ = "0.1.0"
"""The version of this package.

>>> import lora_np
>>> len(lora_np.__version__.split("."))
3
"""
