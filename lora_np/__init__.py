r"""A transformer small enough to read, LoRA on its attention, every gradient derived by hand and proved, every merge
certified, in NumPy.

    base     = load_model()                                          # the small byte-level model that ships
    config   = LoraConfig(rank=4, targets="qv")
    model    = adapt(base, config, numpy.random.default_rng(0))      # W0 x + s B A x beside every query and value
    trained  = config.trained(model)                                 # {"blocks.0.attention.query.A": array, ...}
    value, gradient = value_and_grad(model_loss(model))(trained, batch, rng)
    merged   = merge(model)                                          # W0 + s B A; the base survives untouched

**Shapes.** Rows are examples, so the paper's Wx reads `x @ W.T`; `...` is any leading axes.

    tokens (batch, seq)          h (batch, seq, d_model)          logits (batch, seq, vocab)
    W (d_out, d_in)              b (d_out,)                       x (..., d_in)     y (..., d_out)
    A (rank, d_in)               B (d_out, rank)                  s = alpha/rank, `scaling`
    q, k, v (batch, seq, d_model), seen by head as (batch, heads, seq, d_head), d_head = d_model / heads
    mlp.up (d_ff, d_model)       mlp.down (d_model, d_ff)         token table (vocab, d_model)

Read `textbook` first, then `lora`; each file of `operations` is a derivation that ends in code.

Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685.
"""

from .certificate import certify
from .config import TransformerConfig
from .engine.devices import to_device
from .engine.differentiation import operation, value_and_grad
from .files import load_adapter, load_model, save_adapter, save_model
from .generation import generate
from .gradients import gradcheck
from .lora import LoraLinear, delta, rounding_bound
from .methods import METHODS, adapt
from .methods.lora import LoraConfig
from .model import Transformer, initialize, language_model_loss
from .optimization import TrainingConfig, start
from .parameters import count, parameters, with_parameters
from .training import evaluate, fit, model_loss
from .version import __version__
from .wrappers import merge

__all__ = [
    "METHODS",
    "LoraConfig",
    "LoraLinear",
    "TrainingConfig",
    "Transformer",
    "TransformerConfig",
    "__version__",
    "adapt",
    "certify",
    "count",
    "delta",
    "evaluate",
    "fit",
    "generate",
    "gradcheck",
    "initialize",
    "language_model_loss",
    "load_adapter",
    "load_model",
    "merge",
    "model_loss",
    "operation",
    "parameters",
    "rounding_bound",
    "save_adapter",
    "save_model",
    "start",
    "to_device",
    "value_and_grad",
    "with_parameters",
]
