r"""The operations of a transformer, one file a chapter, each a forward and its hand-derived backward.

In every file: the equation, the derivation in tagged steps, and code whose lines bear the tags. Throughout,
L is the loss and dy stands for ∂L/∂y, an array of the shape of y.
"""

from .activation import gelu as gelu
from .activation import gelu_exact as gelu_exact
from .activation import tanh as tanh
from .attention import attention as attention
from .dora import dora_linear as dora_linear
from .embedding import embedding as embedding
from .gathered import gathered_linear as gathered_linear
from .gating import silu_gate as silu_gate
from .head import head_cross_entropy as head_cross_entropy
from .kronecker import kronecker as kronecker
from .linear import linear as linear
from .linear import lora_linear as lora_linear
from .loss import cross_entropy as cross_entropy
from .normalization import layer_norm as layer_norm
from .normalization import rms_norm as rms_norm
from .pooling import pool as pool
from .rotary import rotary as rotary
from .rows import prepended as prepended
from .rows import replaced_rows as replaced_rows
from .rows import scaled_rows as scaled_rows

__all__ = [name for name, value in list(globals().items()) if hasattr(value, "forward")]
