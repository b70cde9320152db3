r"""The same work in JAX: the step written plainly on a dict of arrays, and compiled as a whole by `jax.jit`.

Float32, from the same weights and the same batches. Nothing is tuned beyond what its users would write: the frozen
arrays are arguments, the trained ones are differentiated, and AdamW is part of the compiled step.
"""

from __future__ import annotations

import math
import os
from typing import Any

import jax
import jax.numpy as jnp

from ..engine.threads import worker_count
from ..lora import adapters
from ..names import plain
from ..parameters import parameters
from .sizes import LORA, TRAINING, RandomTokens, Step, Task, adapted_model

Dict = dict[str, Any]


def layer_norm(p: Dict, name: str, x: Any, eps: float) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return scaled * p[f"{name}.gamma"] + p[f"{name}.beta"]


def linear(p: Dict, name: str, x: Any, scaling: Dict) -> Any:
    y = x @ p[f"{name}.W"].T + p[f"{name}.b"]
    return y + scaling[name] * ((x @ p[f"{name}.A"].T) @ p[f"{name}.B"].T) if name in scaling else y


def attention(p: Dict, name: str, x: Any, heads: int, scaling: Dict) -> Any:
    batch, seq, d_model = x.shape
    q, k, v = (
        linear(p, f"{name}.{part}", x, scaling).reshape(batch, seq, heads, -1).swapaxes(1, 2)
        for part in ("query", "key", "value")
    )
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(d_model // heads)
    scores = jnp.where(jnp.tril(jnp.ones((seq, seq), bool)), scores, -jnp.inf)
    o = jax.nn.softmax(scores) @ v
    return linear(p, f"{name}.output", o.swapaxes(1, 2).reshape(batch, seq, d_model), scaling)


def loss(trained: Dict, frozen: Dict, tokens: Any, targets: Any, sizes: Any, scaling: Dict) -> Any:
    p = {**frozen, **trained}
    h = p["tokens.W"][tokens] + p["positions.W"][: tokens.shape[1]]
    for layer in range(sizes.layers):
        block = f"blocks.{layer}"
        normed = layer_norm(p, f"{block}.attention_norm", h, sizes.eps)
        h = h + attention(p, f"{block}.attention", normed, sizes.heads, scaling)
        up = linear(p, f"{block}.mlp.up", layer_norm(p, f"{block}.mlp_norm", h, sizes.eps), scaling)
        h = h + linear(p, f"{block}.mlp.down", jax.nn.gelu(up, approximate=True), scaling)
    logits = layer_norm(p, "norm", h, sizes.eps) @ p["tokens.W"].T
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    return -picked.mean()


def adamw(theta: Any, g: Any, m: Any, v: Any, count: Any) -> tuple[Any, Any, Any]:
    c = TRAINING
    m, v = c.beta1 * m + (1 - c.beta1) * g, c.beta2 * v + (1 - c.beta2) * g * g
    direction = (m / (1 - c.beta1**count)) / (jnp.sqrt(v / (1 - c.beta2**count)) + c.eps)
    return (1 - c.learning_rate * c.weight_decay) * theta - c.learning_rate * direction, m, v


def training(task: Task) -> Step:
    """A LoRA step: forward, loss, backward, AdamW, one call into XLA."""
    if hasattr(os, "sched_setaffinity"):  # XLA makes a thread for every core that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: worker_count(task.workers)])
    model = adapted_model(task)
    sizes, scaling = model.config, {path: module.scaling for path, module in adapters(model).items()}
    trained = {plain(path): jnp.asarray(array) for path, array in LORA.trained(model).items()}
    everything = {plain(path): jnp.asarray(array) for path, array in parameters(model).items()}
    frozen = {name: array for name, array in everything.items() if name not in trained}
    zeros = {name: jnp.zeros_like(array) for name, array in trained.items()}

    @jax.jit
    def compiled(state: Any, tokens: Any, targets: Any, frozen: Dict) -> tuple[Any, Any]:
        trained, m, v, count = state
        value, g = jax.value_and_grad(loss)(trained, frozen, tokens, targets, sizes, scaling)
        new = {name: adamw(trained[name], g[name], m[name], v[name], count + 1) for name in trained}
        return value, (*({name: triple[i] for name, triple in new.items()} for i in range(3)), count + 1)

    batches, state, done = RandomTokens(task.size, task.seed), (trained, zeros, zeros, jnp.zeros(())), 0

    def step() -> float:
        nonlocal state, done
        batch = batches[done]
        done += 1
        value, state = compiled(state, batch.tokens, batch.targets, frozen)
        return float(jax.block_until_ready((value, state))[0])

    return step
