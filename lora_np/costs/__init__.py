r"""What LoRA costs and saves, in closed form: parameters, bytes, multiply-adds. No model is allocated.

One vocabulary for the whole page:

    L  layers          d  d_model        f  d_ff         V  vocab        n  length, at most context   (tokens)
    r  rank            N  parameters of the model        Θ  trained parameters of LoRA
    M  multiply-adds of one token with every weight matrix (a matrix of k weights costs k of them)

Sources: Hu et al. 2021, arXiv:2106.09685 (LoRA); Radford et al. 2019 and Brown et al. 2020, arXiv:2005.14165
(the shapes of GPT-2 and GPT-3). Where the paper prints another number than its arithmetic gives, the
arithmetic wins and the docstring says so.
"""

from ..config import SHAPES, bias_count, matrix_multiply_adds, named_shape, parameter_count
from .arithmetic import adapter_multiply_adds, forward_multiply_adds, step_multiply_adds
from .bill import Bill, bill
from .counts import lora_count
from .memory import (
    ITEM_SIZE,
    adapter_bytes,
    gradient_bytes,
    optimizer_bytes,
    saved_numbers,
    step_bytes,
    training_state_bytes,
)

__all__ = [
    "ITEM_SIZE",
    "SHAPES",
    "Bill",
    "adapter_bytes",
    "adapter_multiply_adds",
    "bias_count",
    "bill",
    "forward_multiply_adds",
    "gradient_bytes",
    "lora_count",
    "matrix_multiply_adds",
    "named_shape",
    "optimizer_bytes",
    "parameter_count",
    "saved_numbers",
    "step_bytes",
    "step_multiply_adds",
    "training_state_bytes",
]
