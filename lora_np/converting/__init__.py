r"""Adapters carried from one program's format to another's, and drawn out of full fine-tunings.

convert     one format into another, with the same ΔW, shown by reading what was written
extract     the best rank-r adapter of a full fine-tuning
"""

from .changing import FORMATS, Converted, convert
from .extracting import Extracted, Extraction, Left, extract
from .proving import Same

__all__ = ["FORMATS", "Converted", "Extracted", "Extraction", "Left", "Same", "convert", "extract"]
