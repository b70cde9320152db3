r"""What a model learns from: files and generated tasks, and the batches made of them."""

from .batches import Batch, Batches, Sequence, collate, encode, epoch, prompt_tokens, split
from .generated import bits_per_byte_floor, entropy_bits, generate
from .readers import FORMATS, Example, read_examples

__all__ = [
    "FORMATS",
    "Batch",
    "Batches",
    "Example",
    "Sequence",
    "bits_per_byte_floor",
    "collate",
    "encode",
    "entropy_bits",
    "epoch",
    "generate",
    "prompt_tokens",
    "read_examples",
    "split",
]
