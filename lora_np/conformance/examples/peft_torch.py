"""PEFT's layers on PyTorch under the conformance vectors: lora-np conform peft_torch.py

Each kind of vector becomes a tiny model that PEFT wraps by its own configuration. `linear` is the adapter that most
people need; the others show how tables, trained tokens, experts and mixed batches are asked.
"""

import warnings

import numpy as np
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

KNOWN = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "lora_dropout")
TYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def run(case):
    warnings.simplefilter("ignore")
    kinds = {"linear": linear, "dora": linear, "cast": linear, "embedding": table, "tied": table, "tokens": tokens,
             "experts": experts, "mixed": mixed}  # fmt: skip
    if case.kind not in kinds:
        raise NotImplementedError("PEFT adapts a fused map as one, not its parts")
    dtype = torch.float32 if case.kind == "cast" else TYPES[case.dtype]
    given = {name: torch.tensor(a, dtype=dtype if a.dtype.kind == "f" else None) for name, a in case.inputs.items()}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # in which modules are made
    try:
        found = kinds[case.kind](case, given)
    finally:
        torch.set_default_dtype(usual)
    return {name: _numpy(found[name]) for name in case.wanted}


def _numpy(value):
    value = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()


def config(case, **more):
    return LoraConfig(**{name: case.settings[name] for name in KNOWN if name in case.settings}, **more)


def wrapped(base, path, settings, adapter="default", wide=False):
    """The base at this path of a model, and PEFT's model of it; wide: factors in float32, whatever the base."""
    model = nn.Module()
    here, *rest = model, *path.split(".")
    for name in rest[:-1]:
        here.add_module(name, nn.Module())
        here = here.get_submodule(name)
    here.add_module(rest[-1], base)
    model.forward = lambda x: model.get_submodule(path)(x)
    return get_peft_model(model, settings, adapter_name=adapter, autocast_adapter_dtype=wide)


def put(parameter, value):
    """Set a parameter; PyTorch alone would repeat a number where a shape does not fit."""
    if parameter.shape != value.shape:
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is given {tuple(value.shape)}")
    with torch.no_grad():
        parameter.copy_(value)


def layer_of(model):
    return next(module for module in model.modules() if isinstance(module, LoraLayer))


def gradients(case, given, outputs, parameters):
    """Of Σ dy·y + Σ dlogits·logits with respect to what the case wants."""
    wanted = [name for name in case.wanted if name[0] == "d" and name[1:] in parameters]
    if not wanted:
        return {}
    loss = sum((given[f"d{name}"] * y).sum() for name, y in outputs.items())
    return dict(zip(wanted, torch.autograd.grad(loss, [parameters[name[1:]] for name in wanted]), strict=True))


def linear(case, p):
    if case.settings.get("norm") == "differentiated" and "dA" in case.wanted:
        raise NotImplementedError("PEFT holds the norm of DoRA constant")
    turned = case.settings["fan_in_fan_out"]
    d_out, d_in = reversed(p["W"].shape) if turned else p["W"].shape
    base = Conv1D(d_out, d_in) if turned else nn.Linear(d_in, d_out, bias="b" in p)
    stored = TYPES[case.settings["stored"]] if case.kind == "cast" else p["W"].dtype
    base.to(stored)
    put(base.weight, p["W"].to(stored))
    if "b" in p:
        put(base.bias, p.get("trained_b", p["b"]))
    path = case.settings.get("module", "map")
    more = {"fan_in_fan_out": turned, "bias": case.settings.get("bias", "none")}
    model = wrapped(base, path, config(case, target_modules=[path], **more), wide=case.kind == "cast")
    layer = layer_of(model)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    put(A, p["A"])
    put(B, p["B"])
    parameters = {"A": A, "B": B}
    if "lora_b" in p:
        put(layer.lora_B["default"].bias, p["lora_b"])
        parameters["lora_b"] = layer.lora_B["default"].bias
    if "trained_b" in p:
        parameters["trained_b"] = layer.base_layer.bias
    if case.kind == "dora":
        put(layer.lora_magnitude_vector["default"].weight, p["m"])
        parameters["m"] = layer.lora_magnitude_vector["default"].weight
    if case.settings["training"]:
        layer.lora_dropout["default"] = Masked(p["mask"], case.settings["lora_dropout"])
    model.train(case.settings["training"])
    found = {"scale": layer.scaling["default"]}
    if "x" in p:
        parameters["x"] = p["x"].requires_grad_()
        found["y"] = model.base_model.model.get_submodule(path)(p["x"])
        found.update(gradients(case, p, {"y": found["y"]}, parameters))
    if "merged" in case.wanted:
        merged = model.merge_and_unload(safe_merge=True).get_submodule(path)
        found.update(merged=merged.weight, merged_b=getattr(merged, "bias", None))
    return found


class Masked(nn.Module):
    """Dropout whose mask is given."""

    def __init__(self, mask, p):
        super().__init__()
        self.mask, self.p = mask, p

    def forward(self, x):
        return x * self.mask / (1.0 - self.p)


class Tied(nn.Module):
    """A token table and a head, which reads the same table when `tied`."""

    def __init__(self, W, tied):
        super().__init__()
        self.embed_tokens = nn.Embedding(*W.shape)
        self.lm_head = nn.Linear(W.shape[1], W.shape[0], bias=False)
        put(self.embed_tokens.weight, W)
        put(self.lm_head.weight, W)
        self.config = {"tie_word_embeddings": tied}
        self._tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"} if tied else {}
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(self, tokens, x):
        return {"y": self.embed_tokens(tokens)} | ({} if x is None else {"logits": self.lm_head(x)})


def table(case, p):
    tied = "x" in p
    settings = config(case, target_modules=["embed_tokens"], ensure_weight_tying=tied)
    model = get_peft_model(Tied(p["W"], tied), settings, autocast_adapter_dtype=False)
    layer = layer_of(model)
    A, B = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    put(A, p["A"])
    put(B, p["B"])
    outputs = model.base_model.model(p["tokens"], p.get("x"))
    found = {"scale": layer.scaling["default"], **outputs, **gradients(case, p, outputs, {"A": A, "B": B})}
    return {**found, **both(model.merge_and_unload(safe_merge=True))}


def tokens(case, p):
    tied = "x" in p
    settings = TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=p["indices"].tolist())
    model = get_peft_model(Tied(p["W"], tied), settings)
    rows = next(value for name, value in model.named_parameters() if "trainable_tokens_delta" in name)
    put(rows, p["rows"])
    outputs = model.base_model.model(p["tokens"], p.get("x"))
    found = {**outputs, **gradients(case, p, outputs, {"rows": rows})}
    return {**found, **both(model.merge_and_unload(safe_merge=True))}


def both(merged):
    return {"merged": merged.embed_tokens.weight, "merged_head": merged.lm_head.weight}


class Experts(nn.Module):
    """A parameter (E, d_out, d_in) as the experts of transformers hold it."""

    def __init__(self, W):
        super().__init__()
        self.weight = nn.Parameter(W.clone())

    def forward(self, x):
        return torch.matmul(x, self.weight.transpose(1, 2))


def experts(case, p):
    if case.settings["packing"] != "peft":
        raise NotImplementedError("PEFT packs the factors of experts into matrices")
    model = wrapped(Experts(p["W"]), "experts", config(case, target_modules=[], target_parameters=["experts.weight"]))
    layer = layer_of(model)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    put(A, p["A"])
    put(B, p["B"])
    y = model.base_model.model.experts(p["x"].requires_grad_())
    found = {"y": y, **gradients(case, p, {"y": y}, {"A": A, "B": B, "x": p["x"]})}
    return {**found, "merged": model.merge_and_unload(safe_merge=True).experts.weight}


def mixed(case, p):
    base = nn.Linear(p["W"].shape[1], p["W"].shape[0], bias=False)
    put(base.weight, p["W"])
    ready = [
        LoraConfig(target_modules=["map"], **{name: own[name] for name in KNOWN if name in own})
        for own in case.settings["adapters"]
    ]
    model = wrapped(base, "map", ready[0], adapter="0")
    for k, settings in enumerate(ready[1:], 1):
        model.add_adapter(str(k), settings, autocast_adapter_dtype=False)
    layer = layer_of(model)
    for k in range(len(ready)):
        put(layer.lora_A[str(k)].weight, p[f"A.{k}"])
        put(layer.lora_B[str(k)].weight, p[f"B.{k}"])
    model.eval()
    names = ["__base__" if k < 0 else str(k) for k in p["which"].tolist()]
    return {"y": model(p["x"], adapter_names=names)}


def main():
    """The same without the command: `python peft_torch.py`."""
    from lora_np.conformance import conform, read_vectors

    for result in conform(run, read_vectors().chosen()):
        print(result.name, result.status, result.why)


if __name__ == "__main__":
    np.set_printoptions(precision=4)
    main()
