r"""The operations of a transformer, one file a chapter, each a forward and its hand-derived backward.

In every file: the equation, the derivation in tagged steps, and code whose lines bear the tags. Throughout,
L is the loss and dy stands for ∂L/∂y, an array of the shape of y.
"""

from .activation import gelu
from .attention import attention
from .dora import dora_linear
from .embedding import embedding
from .head import head_cross_entropy
from .kronecker import kronecker
from .linear import linear, lora_linear
from .loss import cross_entropy
from .normalization import layer_norm
from .rows import prepended, replaced_rows, scaled_rows

__all__ = [
    "attention",
    "cross_entropy",
    "dora_linear",
    "embedding",
    "gelu",
    "head_cross_entropy",
    "kronecker",
    "layer_norm",
    "linear",
    "lora_linear",
    "prepended",
    "replaced_rows",
    "scaled_rows",
]
