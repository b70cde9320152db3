r"""`lora-np verify` on merges that PEFT made: all of them equal; and wrong ones that PEFT was made to make, by name.

Tiny random models shaped as Llama, GPT-2, BERT and Mixtral, in float32, float16 and bfloat16, merged plainly and with
`safe_merge=True`. Skips where torch, peft or transformers is not installed.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_world import said_by
from test_formats_parity import ALL, bert, gpt2, llama, mixtral

torch = pytest.importorskip("torch", reason="the extra 'parity' is not installed")
peft = pytest.importorskip("peft", reason="the extra 'parity' is not installed")
transformers = pytest.importorskip("transformers", reason="the extra 'parity' is not installed")
pytest.importorskip("ml_dtypes")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "llama": (llama, {"target_modules": ALL}),
    "rslora": (llama, {"target_modules": ALL, "use_rslora": True}),
    "patterns": (llama, {"target_modules": ALL, "rank_pattern": {"layers.1.*q_proj": 2, "down_proj": 5},
                         "alpha_pattern": {"q_proj": 2}}),
    "dora": (llama, {"target_modules": ALL, "use_dora": True}),
    "pissa": (llama, {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa"}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "bert": (bert, {"target_modules": ["query", "value", "dense"], "modules_to_save": ["classifier"]}),
    "mixtral": (mixtral, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
}  # fmt: skip


def adapted(folder: Path, model: Any, size: float = 0.0, **settings: Any) -> Any:
    """The base is saved, and an adapter whose updates are `size` times the weights, or some when 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(folder / "base")
    found = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "lora_dropout": 0.0, **settings}))
    root = 2.0  # √r: an entry of BA is a sum of r products
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.requires_grad and size and "lora_B" in name:  # s = 3, weights of 0.3, A of about 0.2
                parameter.copy_(torch.randn(parameter.shape) * size * 0.3 / (3.0 * root * 0.2))
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.2)
    found.save_pretrained(folder / "adapter")
    return found


def verdict(folder: Path, merged: str = "merged") -> dict[str, Any]:
    code, said = said_by("verify", folder / "adapter", folder / merged, "--base", folder / "base", "--json")
    found = json.loads(said)
    assert code == (0 if found["holds"] else 1)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_what_peft_merges_is_equal_plain_and_safe(tmp_path: Path, name: str, dtype: str) -> None:
    build, settings = MODELS[name]
    model = adapted(tmp_path, build().to(DTYPES[dtype]), **settings)
    for safe in (False, True):
        merged = copy.deepcopy(model).merge_and_unload(safe_merge=safe)
        merged.save_pretrained(tmp_path / f"safe {safe}")
        found = verdict(tmp_path, f"safe {safe}")
        assert found["holds"], found["diagnosis"]
        changed = [tensor for tensor in found["tensors"] if tensor["kind"] == "adapted"]
        assert changed


def layers(model: Any) -> Iterator[Any]:
    return (m for m in model.modules() if hasattr(m, "lora_A") and "default" in m.lora_A)


def scaled(factor: float | Callable[[float], float]) -> Callable[[Any], Any]:
    """Merged by PEFT with another scale."""

    def wrong(model: Any) -> Any:
        for layer in layers(model):
            s = layer.scaling["default"]
            layer.scaling["default"] = factor(s) if callable(factor) else factor * s
        return model.merge_and_unload()

    return wrong


def with_factors(change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any], Any]:
    def wrong(model: Any) -> Any:
        for layer in layers(model):
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            with torch.no_grad():
                new = change(A.clone(), B.clone())
                A.copy_(new[0])
                B.copy_(new[1])
        return model.merge_and_unload()

    return wrong


def without(keep: Callable[[int], bool]) -> Callable[[Any], Any]:
    """Some of the rank set to zero."""
    return with_factors(lambda A, B: (A, B * torch.tensor([float(keep(k)) for k in range(B.shape[1])])))


def twice(model: Any) -> Any:
    again = copy.deepcopy(model)
    once = model.merge_and_unload()
    for name, layer in again.named_modules():
        if hasattr(layer, "base_layer") and hasattr(layer, "lora_A"):
            plain = once.get_submodule(name.removeprefix("base_model.model."))
            layer.base_layer.weight.data.copy_(plain.weight.data)
    return again.merge_and_unload()


def one_layer_lost(model: Any) -> Any:
    for layer in list(layers(model))[:1]:
        layer.scaling["default"] = 0.0
    return model.merge_and_unload()


def another(model: Any) -> Any:
    torch.manual_seed(9)
    return with_factors(lambda A, B: (torch.randn_like(A) * A.std(), torch.randn_like(B) * B.std()))(model)


def norm_changed(model: Any) -> Any:
    merged = model.merge_and_unload()
    with torch.no_grad():
        merged.model.norm.weight.mul_(1.5)
    return merged


def up_changed(model: Any) -> Any:
    merged = model.merge_and_unload()
    with torch.no_grad():
        merged.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    return merged


@dataclasses.dataclass(frozen=True)
class Planted:
    make: Callable[[Any], Any]
    faults: set[str]


PLANTED = {
    "nothing merged": Planted(lambda model: model.unload(), {"not_merged"}),
    "twice": Planted(twice, {"twice"}),
    "sign": Planted(scaled(-1.0), {"sign"}),
    "half, as alpha/r for alpha/√r": Planted(scaled(0.5), {"scale_root"}),
    "double": Planted(scaled(2.0), {"scale_rslora", "twice"}),
    "alpha": Planted(scaled(lambda s: 12.0), {"scale_alpha"}),
    "one": Planted(scaled(lambda s: 1.0), {"scale_one"}),
    "1/r": Planted(scaled(lambda s: 0.25), {"scale_inverse"}),
    "s twice": Planted(scaled(lambda s: s * s), {"scale_squared"}),
    "1 % more": Planted(scaled(1.01), {"scale"}),
    "1 % less": Planted(scaled(0.99), {"scale"}),
    "30 % less": Planted(scaled(0.7), {"scale"}),
    "two of four": Planted(without(lambda k: k < 2), {"partial_rank"}),
    "three of four": Planted(without(lambda k: k != 1), {"partial_rank"}),
    "one layer": Planted(one_layer_lost, {"not_merged"}),
    "transposed": Planted(with_factors(lambda A, B: (B.T.clone(), A.T.clone())), {"transposed"}),
    "another": Planted(another, {"another_adapter"}),
    "a norm": Planted(norm_changed, {"untouched_changed"}),
    "up_proj": Planted(up_changed, {"untouched_changed"}),
}


def wide() -> Any:
    return llama(hidden_size=64, intermediate_size=64, num_key_value_heads=4, attention_bias=False)


@pytest.mark.parametrize("size", [0.2, 0.02, 0.002])
def test_a_merge_that_peft_was_made_to_spoil_is_called_by_its_name_in_bfloat16(tmp_path: Path, size: float) -> None:
    model = adapted(tmp_path, wide().to(torch.bfloat16), size, target_modules=["q_proj"])
    base = np.asarray(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.detach().float())
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path / "right")
    right = verdict(tmp_path, "right")
    assert right["holds"], right["diagnosis"]
    said = {}
    for k, (name, planted) in enumerate(PLANTED.items()):
        planted.make(copy.deepcopy(model)).save_pretrained(tmp_path / f"wrong {k}")
        found = verdict(tmp_path, f"wrong {k}")
        assert not found["holds"], name
        said[name] = {tensor["fault"] for tensor in found["tensors"] if tensor["fault"]}
    assert all(said[name] and said[name] <= planted.faults for name, planted in PLANTED.items()), said
    layer = next(layers(model))
    change = layer.get_delta_weight("default").detach().float().numpy()
    assert 0.5 * size < np.linalg.norm(change) / np.linalg.norm(base) < 2.0 * size


def logits(folder: Path, adapter: Path | None = None) -> tuple[np.ndarray, str]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    kind = str(model.dtype)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.no_grad():
        return model.float()(torch.tensor([[1, 5, 7, 2, 11]])).logits.numpy(), kind


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", "float32"), ("llama", "float16"), ("dora", "bfloat16"), ("gpt2", "bfloat16"),
                        ("mixtral", "bfloat16"), ("mixtral", "float32")],
)  # fmt: skip
def test_what_merge_writes_in_shards_loads_in_transformers_with_equal_logits(
    tmp_path: Path, name: str, dtype: str
) -> None:
    """By PEFT's own recipe the numbers are PEFT's but for last bits of products; both are run in float32."""
    build, settings = MODELS[name]
    adapted(tmp_path, build().to(DTYPES[dtype]), **settings)
    right, _ = logits(tmp_path / "base", tmp_path / "adapter")
    plain, _ = logits(tmp_path / "base")
    places = tmp_path / "adapter", "--base", tmp_path / "base", "--out", tmp_path / "merged"
    assert said_by("merge", *places, "--recipe", "peft", "--shard", "0.000005")[0] == 0
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    found, kind = logits(tmp_path / "merged")
    assert kind == f"torch.{dtype}"
    eps = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    assert abs(right - plain).max() > 0.1 * abs(right).max()  # contrast: the adapter does something
    assert abs(found - right).max() <= (4.0 * eps + 2.0**-17) * abs(right).max()


def test_a_merge_of_float32_written_in_bfloat16_loads_as_that(tmp_path: Path) -> None:
    adapted(tmp_path, llama(), target_modules=ALL)
    places = tmp_path / "adapter", "--base", tmp_path / "base", "--out", tmp_path / "merged"
    assert said_by("merge", *places, "--dtype", "bfloat16")[0] == 0
    found, kind = logits(tmp_path / "merged")
    right, _ = logits(tmp_path / "base", tmp_path / "adapter")
    assert kind == "torch.bfloat16"
    assert 0.0 < abs(found - right).max() < 0.1 * abs(right).max()
