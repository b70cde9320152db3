"""LoRA in plain JAX under the conformance vectors: lora-np conform plain_jax.py

The first ten lines are an adapter for linear maps; the rest is what else this little implementation has.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")


def run(case):
    kind = {"linear": linear, "dora": linear, "embedding": embedding, "tied": embedding}.get(case.kind)
    if kind is None or case.settings.get("rank_pattern") or case.settings.get("alpha_pattern"):
        raise NotImplementedError(f"this implementation has no {case.kind}, or no patterns")
    dtype = jnp.dtype(case.dtype)
    given = {name: jnp.asarray(a, dtype if a.dtype.kind == "f" else a.dtype) for name, a in case.inputs.items()}
    trained = {name[1:]: given[name[1:]] for name in case.wanted if name[0] == "d" and name[1:] in given}

    def loss(trained):
        outputs = kind({**given, **trained}, case.settings)
        return sum((given[f"d{name}"] * y).sum() for name, y in outputs.items() if not name.startswith("merged"))

    gradient = jax.grad(loss)(trained) if trained else {}
    found = {"scale": scale(case.settings), **{f"d{name}": value for name, value in gradient.items()}}
    for name in case.wanted:
        if name not in found:
            found.update(kind(given, case.settings))
    return {name: np.asarray(found[name], case.inputs["W"].dtype) for name in case.wanted}


def scale(settings):
    return settings["lora_alpha"] / (settings["r"] ** 0.5 if settings["use_rslora"] else settings["r"])


def linear(p, settings):
    stored = jnp.transpose if settings["fan_in_fan_out"] else lambda M: M
    if p["A"].shape[0] != p["B"].shape[1] or not bool(jnp.isfinite(p["B"]).all()):
        raise ValueError("A and B must be finite and of one rank")
    D = scale(settings) * (p["B"] @ p["A"])
    W = stored(p["W"]) + D
    if settings.get("use_dora"):
        norm = jnp.linalg.norm(W, axis=1)
        norm = jax.lax.stop_gradient(norm) if settings["norm"] == "constant" else norm
        W = (p["m"] / norm)[:, None] * W
        y = p["x"] @ W.T + p["b"]
        return {"y": y, "merged": stored(W)}
    dropped = p["x"] * p["mask"] / (1.0 - settings["lora_dropout"]) if settings["training"] else p["x"]
    b = p.get("trained_b", p["b"]) + scale(settings) * p.get("lora_b", jnp.zeros_like(p["b"]))
    return {"y": p["x"] @ stored(p["W"]).T + dropped @ D.T + b, "merged": stored(W), "merged_b": b}


def embedding(p, settings):
    W = p["W"] + scale(settings) * (p["B"] @ p["A"]).T
    if int(p["tokens"].max()) >= len(W):
        raise ValueError("a token is beyond the table")
    found = {"y": W[p["tokens"]], "merged": W}
    return {**found, "logits": p["x"] @ W.T, "merged_head": W} if "x" in p else found
