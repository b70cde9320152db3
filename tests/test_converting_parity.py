r"""What `convert` writes for PEFT loads in PEFT itself and gives the same logits. Skips where torch or peft is missing.

Where an adapter came from PEFT and went through another format, its factors are the same numbers, so the logits are
equal to the bit. Where it came from us, two programs compute: they agree to a few roundings of float32, and a wrong
scale, order of rows or part of a fused map would show in the first digits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_files import archive_bytes
from test_formats_parity import bert, gpt2, llama

from lora_np.converting import convert
from lora_np.files import load_model, save_adapter
from lora_np.formats.disk import read_json
from lora_np.methods import LoraConfig
from lora_np.methods.variants import DoRA
from lora_np.parameters import with_parameters

torch = pytest.importorskip("torch", reason="the extra 'parity' is not installed")
peft = pytest.importorskip("peft", reason="the extra 'parity' is not installed")
transformers = pytest.importorskip("transformers", reason="the extra 'parity' is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
TOKENS = [[1, 5, 7, 2, 11]]


def trained(folder: Path, build: Any, **settings: Any) -> None:
    """A base and an adapter of PEFT in two folders."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(folder / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 3, "lora_alpha": 5, **settings}))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape) * 0.2
    adapted.save_pretrained(folder / "adapter")


def logits(base: Path, adapter: Path | None, kind: Any) -> np.ndarray:
    model = kind.from_pretrained(base).eval()
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def plain() -> Any:
    return llama(attention_bias=False)


LLAMA = {"target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]}
PLAIN: dict[str, tuple[Any, Any, dict[str, Any], tuple[str, ...]]] = {
    "llama": (plain, "LlamaForCausalLM", LLAMA, ("mlx", "gguf", "lora_np")),
    "rslora": (plain, "LlamaForCausalLM", {**LLAMA, "use_rslora": True}, ("mlx", "lora_np")),
    "patterns": (plain, "LlamaForCausalLM",
                 {**LLAMA, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 10}}, ("lora_np",)),
    "dora": (plain, "LlamaForCausalLM", {**LLAMA, "use_dora": True}, ("mlx", "lora_np")),
    "table": (plain, "LlamaForCausalLM",
              {"target_modules": ["embed_tokens", "q_proj"]}, ("mlx", "gguf", "lora_np")),
    "gpt2": (gpt2, "GPT2LMHeadModel", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
             ("mlx", "gguf", "lora_np")),
    "bert": (bert, "BertForSequenceClassification",
             {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}, ("peft",)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_an_adapter_that_comes_back_from_another_format_gives_peft_the_same_logits(tmp_path: Path, name: str) -> None:
    pytest.importorskip("gguf")
    build, kind, settings, formats = PLAIN[name]
    kind = getattr(transformers, kind)
    trained(tmp_path, build, **settings)
    right = logits(tmp_path / "base", tmp_path / "adapter", kind)
    assert abs(right - logits(tmp_path / "base", None, kind)).max() > 0.1  # contrast: the adapter does something
    for to in formats:
        convert(tmp_path / "adapter", to, tmp_path / to, base=tmp_path / "base")
        convert(tmp_path / to, "peft", tmp_path / f"back from {to}", base=tmp_path / "base")
        again = logits(tmp_path / "base", tmp_path / f"back from {to}", kind)
        assert (again == right).all(), to  # of GPT-2's fused map as well: its parts share one A again


@pytest.mark.parametrize("method", [LoraConfig, DoRA])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_adapter_of_ours_gives_peft_the_logits_that_it_gives_us(tmp_path: Path, name: str, method: Any) -> None:
    build, kind, _, _ = PLAIN[name]
    torch.manual_seed(0)
    build().save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base")
    ours = method(rank=2, alpha=6.0, targets="attention+mlp", ranks={"blocks.0.mlp.up": 3})
    adapted = ours.apply(base, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    moved = {n: (a + 0.3 * rng.standard_normal(a.shape)).astype(a.dtype) for n, a in ours.trained(adapted).items()}
    adapted = with_parameters(adapted, moved)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapted, ours, base)
    assert convert(tmp_path / "adapter", "peft", tmp_path / "peft", base=tmp_path / "base").to_the_bit
    found = logits(tmp_path / "base", tmp_path / "peft", getattr(transformers, kind))
    expected = adapted(np.array(TOKENS))
    assert abs(expected - base(np.array(TOKENS))).max() > 0.1
    assert abs(found - expected).max() <= 2e-5 * abs(expected).max()


def test_an_adapter_of_loralib_with_its_head_and_biases_loads_in_peft(tmp_path: Path) -> None:
    """The released RoBERTa adapters are such files: factors, and the classifier that was trained with them."""
    torch.manual_seed(0)
    model = bert()
    model.save_pretrained(tmp_path / "base")
    rng, tensors = np.random.default_rng(0), {}
    for i in range(2):
        place = f"bert.encoder.layer.{i}.attention.self.query"
        tensors[f"{place}.lora_A"] = rng.standard_normal((2, 16)).astype(np.float32)
        tensors[f"{place}.lora_B"] = rng.standard_normal((16, 2)).astype(np.float32)
        tensors[f"{place}.bias"] = rng.standard_normal(16).astype(np.float32)
    tensors["classifier.weight"] = rng.standard_normal((3, 16)).astype(np.float32)
    tensors["classifier.bias"] = rng.standard_normal(3).astype(np.float32)
    (tmp_path / "a.bin").write_bytes(archive_bytes(tensors))
    assert convert(tmp_path / "a.bin", "peft", tmp_path / "peft", alpha=6.0).to_the_bit
    with torch.no_grad():
        for name, array in tensors.items():
            if name.endswith("lora_A"):
                module = name.removesuffix(".lora_A")
                B = torch.tensor(tensors[f"{module}.lora_B"])
                model.get_submodule(module).weight += 3.0 * (B @ torch.tensor(array))
            elif not name.endswith("lora_B"):
                model.get_parameter(name).copy_(torch.tensor(array))
        right = model.eval()(torch.tensor(TOKENS)).logits.numpy()
    found = logits(tmp_path / "base", tmp_path / "peft", transformers.BertForSequenceClassification)
    assert abs(right - logits(tmp_path / "base", None, transformers.BertForSequenceClassification)).max() > 0.1
    assert abs(found - right).max() <= 1e-5 * abs(right).max()


def test_the_description_that_is_written_is_one_that_peft_reads_back(tmp_path: Path) -> None:
    trained(tmp_path, plain, **LLAMA, rank_pattern={"down_proj": 2})
    convert(tmp_path / "adapter", "mlx", tmp_path / "mlx", base=tmp_path / "base")
    convert(tmp_path / "mlx", "peft", tmp_path / "peft", base=tmp_path / "base")
    known = set(peft.LoraConfig.__dataclass_fields__)
    assert set(read_json(tmp_path / "peft" / "adapter_config.json")) <= known
    assert json.loads(json.dumps(peft.LoraConfig.from_pretrained(tmp_path / "peft").lora_alpha)) == 5
