"""mlx-lm's layers under the conformance vectors: lora-np conform mlx_layers.py

mlx-lm takes the scale itself, not α: it is computed here, as a converter of adapters would.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

mx.set_default_device(mx.cpu)
TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
WITHOUT = {
    "rank_pattern": "patterns",
    "alpha_pattern": "patterns",
    "lora_bias": "bias of B",
    "fan_in_fan_out": "Conv1D",
}


def run(case):
    kinds = {"linear": linear, "dora": linear, "embedding": table, "tied": table, "experts": experts}
    settings = case.settings
    lacking = [words for name, words in WITHOUT.items() if settings.get(name)]
    if settings.get("packing") == "peft" or (settings.get("norm") == "differentiated" and "dA" in case.wanted):
        lacking.append("such factors" if "packing" in settings else "gradient through the norm")
    if case.kind not in kinds or lacking or case.dtype not in TYPES or "trained_b" in case.inputs:
        raise NotImplementedError(f"mlx-lm has no {(lacking or [case.kind])[0]}")
    dtype = TYPES[case.dtype]
    given = {name: mx.array(a).astype(dtype) if a.dtype.kind == "f" else mx.array(a) for name, a in case.inputs.items()}
    scale = settings["lora_alpha"] / (settings["r"] ** 0.5 if settings["use_rslora"] else settings["r"])
    layer, inputs, turned = kinds[case.kind](case, given, scale)
    names = [name[1:] for name in case.wanted if name[0] == "d" and name[1:] in given]
    if names:

        def loss(trained):
            outputs = forward(layer, {**inputs, **trained}, turned)
            return sum((given[f"d{name}"] * value).sum() for name, value in outputs.items())

        gradient = mx.grad(loss)({name: given[name] for name in names})
    found = {"scale": mx.array(scale), **forward(layer, inputs, turned)}
    fused = layer.fuse()
    found.update(merged=fused.weight, merged_head=fused.weight, merged_b=getattr(fused, "bias", None))
    found.update({f"d{name}": gradient[name] for name in names})
    return {name: np.array(found[name].astype(mx.float32)) for name in case.wanted}


def put(layer, name, value):
    """A parameter; MLX would take any shape."""
    if layer[name].shape != value.shape:
        raise ValueError(f"{name} of shape {layer[name].shape} is given {value.shape}")
    layer[name] = value


def forward(layer, inputs, turned):
    """The layer with these factors, in mlx-lm's orientation."""
    for name in {"A", "B", "m"} & set(inputs):
        value = inputs[name].T if turned and name != "m" else inputs[name]
        put(layer, {"A": "lora_a", "B": "lora_b", "m": "m"}[name], value)
    if "indices" in inputs:
        return {"y": layer(inputs["x"][:, :, None, None], inputs["indices"]).squeeze((-3, -2))}
    found = {"y": layer(inputs["tokens"] if "tokens" in inputs else inputs["x"])}
    return found | ({"logits": layer.as_linear(inputs["x"])} if "dlogits" in inputs else {})


class Masked(nn.Module):
    """Dropout whose mask is given."""

    def __init__(self, mask, p):
        super().__init__()
        self.kept = mask / (1.0 - p)

    def __call__(self, x):
        return x * self.kept


def linear(case, p, scale):
    d_out, d_in = p["W"].shape
    base = nn.Linear(d_in, d_out, bias="b" in p)
    put(base, "weight", p["W"])
    if "b" in p:
        put(base, "bias", p["b"])
    kind = DoRALinear if case.kind == "dora" else LoRALinear
    layer = kind.from_base(base, r=case.settings["r"], dropout=case.settings["lora_dropout"], scale=scale)
    layer.train(case.settings["training"])
    if case.settings["training"]:
        layer.dropout = Masked(p["mask"], case.settings["lora_dropout"])
    return layer, p, True


def table(case, p, scale):
    base = nn.Embedding(*p["W"].shape)
    put(base, "weight", p["W"])
    return LoRAEmbedding.from_base(base, r=case.settings["r"], scale=scale), p, True


def experts(case, p, scale):
    E, d_out, d_in = p["W"].shape
    base = SwitchLinear(d_in, d_out, E, bias=False)
    put(base, "weight", p["W"])
    layer = LoRASwitchLinear.from_base(base, r=case.settings["r"], scale=scale)
    chosen = mx.broadcast_to(mx.arange(E)[:, None], p["x"].shape[:2])  # expert e reads the rows of x[e]
    return layer, {**p, "indices": chosen[:, :, None]}, False
