r"""The operations of a transformer, one file a chapter, each a forward and its hand-derived backward.

In every file: the equation, the derivation in tagged steps, and code whose lines bear the tags. Throughout,
L is the loss and dy stands for ∂L/∂y, an array of the shape of y.
"""

from .activation import gelu, gelu_exact, tanh
from .attention import attention
from .embedding import embedding
from .gating import silu_gate
from .head import head_cross_entropy
from .linear import linear, lora_linear
from .loss import cross_entropy
from .normalization import layer_norm, rms_norm
from .pooling import pool
from .rotary import rotary

__all__ = [
    "attention",
    "cross_entropy",
    "embedding",
    "gelu",
    "gelu_exact",
    "head_cross_entropy",
    "layer_norm",
    "linear",
    "lora_linear",
    "pool",
    "rms_norm",
    "rotary",
    "silu_gate",
    "tanh",
]
