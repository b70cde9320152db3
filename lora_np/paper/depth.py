r"""How large the gradient is that reaches the embeddings, as more and more blocks carry adapters, or LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..engine.differentiation import value_and_grad
from ..method import Method
from ..methods import adapt
from ..methods.bottleneck import AdapterH
from ..methods.lora import LoraConfig
from ..model import Transformer
from ..parameters import parameters, with_parameters
from ..tasks import epoch
from ..tasks.table import task_named
from ..training import model_loss
from .runs import held_out_text

DRAWS, SIZE = 4, 0.3  # of new weights: N(0, SIZE²/n) for n columns
METHODS: Mapping[str, Method] = {"adapter-h": AdapterH(4), "lora": LoraConfig(4, targets="qkvo")}


def norms(base: Transformer) -> dict[str, dict[int, float]]:
    """{method: {blocks: mean log(‖g‖/‖g of the base‖)}}, g the gradient by the token table, over several draws."""
    text = held_out_text(task_named("sentiment").name, 8, "validation", base.config.context)
    batch = next(epoch(text.sequences, 8, text.tokenizer.end))

    def norm(model: Transformer) -> float:
        """Of the gradient by the position table, or by the token table where positions are not learned."""
        arrays = parameters(model)
        path = "positions.W" if "positions.W" in arrays else "tokens.W"
        _, gradient = value_and_grad(model_loss(model))({path: arrays[path]}, batch, np.random.default_rng(0))
        return float(np.linalg.norm(gradient[path]))

    own = norm(base)
    found: dict[str, dict[int, float]] = {}
    for name, method in METHODS.items():
        found[name] = {}
        for blocks in range(base.config.layers + 1):
            logs = [math.log(norm(_drawn(base, method, blocks, seed)) / own) for seed in range(DRAWS)]
            found[name][blocks] = float(np.mean(logs))
    return found


def _drawn(base: Transformer, method: Method, blocks: int, seed: int) -> Transformer:
    """The model with this method, its matrices in the first blocks drawn at one size, and the rest at zero."""
    rng = np.random.default_rng([seed, blocks])
    model = adapt(base, method, rng)
    moved = {}
    for path, array in method.trained(model).items():
        place = int(path.split(".")[1]) if path.startswith("blocks.") else -1
        if array.ndim == 2 and place < blocks:
            moved[path] = (SIZE / math.sqrt(array.shape[1]) * rng.standard_normal(array.shape)).astype(array.dtype)
        else:
            moved[path] = 0.0 * array
    return with_parameters(model, moved)
