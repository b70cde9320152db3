"""loralib, the code of the LoRA paper, under the conformance vectors: lora-np conform loralib_torch.py"""

import loralib
import numpy as np
import torch

TYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WITHOUT = {"use_rslora": "rsLoRA", "rank_pattern": "patterns", "alpha_pattern": "patterns", "lora_bias": "bias of B"}


def run(case):
    kinds = {"linear": linear, "grouped": grouped, "embedding": embedding}
    lacking = [words for name, words in WITHOUT.items() if case.settings.get(name)]
    if case.kind not in kinds or lacking:
        raise NotImplementedError(f"loralib has no {(lacking or [case.kind])[0]}")
    dtype = TYPES[case.dtype]
    given = {name: torch.tensor(a, dtype=dtype if a.dtype.kind == "f" else None) for name, a in case.inputs.items()}
    layer = kinds[case.kind](case.settings, given).to(dtype)
    for parameter, name in ((layer.weight, "W"), (layer.lora_A, "A"), (layer.lora_B, "B")):
        put(parameter, given[name])
    if getattr(layer, "bias", None) is not None:
        put(layer.bias, given.get("trained_b", given.get("b")))
    layer.train(True)
    if not case.settings["training"] or case.settings["lora_dropout"] == 0.0:
        layer.lora_dropout = lambda x: x  # evaluating, loralib would have merged
    else:
        layer.lora_dropout = lambda x: x * given["mask"] / (1.0 - case.settings["lora_dropout"])
    x = given["tokens"] if case.kind == "embedding" else given["x"].requires_grad_()
    y = layer(x)
    found = {"scale": torch.tensor(layer.scaling, dtype=torch.float64), "y": y}
    trained = {"A": layer.lora_A, "B": layer.lora_B, "x": x, "trained_b": getattr(layer, "bias", None)}
    wanted = [name for name in case.wanted if name[0] == "d"]
    if wanted:
        gradient = torch.autograd.grad((given["dy"] * y).sum(), [trained[name[1:]] for name in wanted])
        found.update(zip(wanted, gradient, strict=True))
    layer.eval()  # merges
    found.update(merged=layer.weight, merged_b=getattr(layer, "bias", None))
    return {name: _numpy(found[name]) for name in case.wanted}


def _numpy(value):
    return (value.detach() if value.dtype == torch.float64 else value.detach().float()).numpy().astype(np.float64)


def put(parameter, value):
    if parameter.shape != value.shape:
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is given {tuple(value.shape)}")
    parameter.data = value.clone()


def options(settings):
    return {"r": settings["r"], "lora_alpha": settings["lora_alpha"]}


def linear(settings, p):
    turned = settings["fan_in_fan_out"]
    d_out, d_in = reversed(p["W"].shape) if turned else p["W"].shape
    return loralib.Linear(d_in, d_out, bias="b" in p, fan_in_fan_out=turned, **options(settings))


def grouped(settings, p):
    turned = settings["fan_in_fan_out"]
    d_out, d_in = reversed(p["W"].shape) if turned else p["W"].shape
    enabled = [part in settings["adapted"] for part in settings["parts"]]
    more = {"enable_lora": enabled, "fan_in_fan_out": turned, "bias": False}
    return loralib.MergedLinear(d_in, d_out, **more, **options(settings))


def embedding(settings, p):
    return loralib.Embedding(*p["W"].shape, **options(settings))
