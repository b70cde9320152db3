r"""Against PEFT itself: what is read out of an adapter is what PEFT merges. Skips where torch or peft is not installed.

The bound: PEFT computes in float32, so an entry of a merged tensor errs by at most γ_n of the sum of the absolute
values of its terms, n = r + 3 roundings for W + s·BA; DoRA multiplies by a quotient whose norm takes d_in + 1 more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_np.formats.adapters import read_adapter
from lora_np.formats.disk import read_json
from lora_np.formats.huggingface import config_json, open_model
from lora_np.formats.names import theirs
from lora_np.formats.tensors import open_tensors
from lora_np.formats.updates import Adapter

torch = pytest.importorskip("torch", reason="the extra 'parity' is not installed")
peft = pytest.importorskip("peft", reason="the extra 'parity' is not installed")
transformers = pytest.importorskip("transformers", reason="the extra 'parity' is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
EPS = float(np.finfo(np.float32).eps)


def llama(**changes: Any) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "vocab_size": 20, "tie_word_embeddings": False, "attention_bias": True}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **more, **changes}))


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=8)
    )


def bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=20, num_labels=3,
        max_position_embeddings=8,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def mixtral(**changes: Any) -> Any:
    config = transformers.MixtralConfig(**{
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20,
        "num_key_value_heads": 2, "num_local_experts": 4, "tie_word_embeddings": False, **changes,
    })  # fmt: skip
    return transformers.MixtralForCausalLM(config)


def made(folder: Path, build: Callable[[], Any], dtype: Any = None, safe: bool = False, **settings: Any) -> Adapter:
    """Base, trained adapter and merged model in three folders; the adapter as it is read."""
    torch.manual_seed(0)
    model = build() if dtype is None else build().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(folder / "base")
    start = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "lora_dropout": 0.0, **settings})
    adapted = peft.get_peft_model(model, start)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape) * 0.2
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload(safe_merge=safe).save_pretrained(folder / "merged")
    return read_adapter(folder / "adapter", open_tensors(folder / "base"), read_json(folder / "base" / "config.json"))


def gaps(folder: Path, adapter: Adapter, n: int, eps: float) -> dict[str, float]:
    """For each tensor of the merged model, how much of its bound the gap uses; untouched ones must be equal."""
    base, merged = open_tensors(folder / "base"), open_tensors(folder / "merged")
    assert set(base) <= set(merged)
    used = {}
    for name, tensor in merged.items():
        found = np.asarray(tensor)
        if name not in adapter.updates:
            assert (found == np.asarray(base[name])).all(), name
            continue
        W = base.get(name, tensor)
        update = adapter.updates[name].prepared(W)
        everything = slice(0, update.matrix[0])
        expected = update.expected(W, everything)
        size = abs(update.base_rows(W, everything).astype(np.float64)) + update.sizes(everything)
        if update.magnitude is not None:
            size = size * abs(expected) / np.maximum(abs(update._sum(W, everything)), 1e-30) + abs(expected)
        if update.shift is not None:
            size = size + abs(update.shift.scale) * abs(np.asarray(update.shift.b, np.float64))
        bound = n * eps * size + 1e-30
        used[name] = float((abs(found.reshape(expected.shape).astype(np.float64) - expected) / bound).max())
        changed = abs(expected - update.base_rows(W, everything)).max() if not update.new else 1.0
        assert changed > 100 * bound.max() or update.replacement is not None, name  # contrast: it does something
    return used


def gpt_oss() -> Any:
    """Its experts are stored (in, out), and say so."""
    config = transformers.GptOssConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, num_local_experts=4, vocab_size=20, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.GptOssForCausalLM(config)


def qwen3_moe() -> Any:
    config = transformers.Qwen3MoeConfig(
        hidden_size=16, intermediate_size=24, moe_intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, num_experts=4, vocab_size=20, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Qwen3MoeForCausalLM(config)


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (llama, {"target_modules": ALL}),
    "rslora": (llama, {"target_modules": ALL, "use_rslora": True}),
    "patterns": (llama, {"target_modules": ALL, "rank_pattern": {"layers.1.*q_proj": 2, "down_proj": 5},
                         "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 9, "q_proj": 2}}),
    "dora": (llama, {"target_modules": ALL, "use_dora": True}),
    "lora bias": (llama, {"target_modules": ["q_proj", "k_proj"], "lora_bias": True}),
    "biases": (llama, {"target_modules": ["q_proj"], "bias": "all"}),
    "lora_only biases": (llama, {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "head saved": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "head": (llama, {"target_modules": ["lm_head", "q_proj"]}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding dora": (llama, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "tokens": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [7, 2, 19]}),
    "tokens by name": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [0, 5]}}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2 square only": (gpt2, {"target_modules": ["attn.c_proj"]}),
    "gpt2 dora": (gpt2, {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "fan_in_fan_out": True}),
    "gpt2 table": (gpt2, {"target_modules": ["wte", "c_attn"]}),
    "bert": (bert, {"target_modules": ["query", "value", "dense"], "task_type": "SEQ_CLS"}),
    "bert pooler and head": (bert, {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}),
    "experts": (mixtral, {"target_modules": ["q_proj"],
                          "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    "experts stored turned": (gpt_oss, {"target_modules": ["q_proj"],
                              "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    "experts of qwen": (qwen3_moe, {"target_modules": ["q_proj"],
                        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    "experts down only": (mixtral, {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    "router": (mixtral, {"target_modules": [], "target_parameters": ["gate.weight"]}),
    "square experts": (lambda: mixtral(intermediate_size=16), {"target_modules": [],
                       "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_is_what_peft_merges(tmp_path: Path, name: str) -> None:
    build, settings = CASES[name]
    adapter = made(tmp_path, build, **settings).checked()
    n = 3 + 3 + 1 + 24 * (settings.get("use_dora", False))
    used = gaps(tmp_path, adapter, n, EPS / 2)
    assert used
    assert max(used.values()) <= 1.0, used


FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "llama": llama,
    "mixtral": mixtral,
    "bert": bert,
    "roberta": lambda: transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                                   vocab_size=20, max_position_embeddings=8)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                                 vocab_size=20, num_key_value_heads=1, max_position_embeddings=8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_tensor_that_transformers_saves_has_a_name_of_ours_and_goes_back(tmp_path: Path, kind: str) -> None:
    FAMILIES[kind]().save_pretrained(tmp_path)
    tensors, sizes, family = open_model(tmp_path)
    assert family == kind
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    back, there = theirs(arrays, kind, sizes["layers"], sizes.get("experts", 0)), open_tensors(tmp_path)
    assert set(back) == set(there)
    for name, tensor in there.items():
        skipped = 2 if kind == "roberta" and "position_embeddings" in name else 0  # rows that are not used
        assert (back[name][skipped:] == tensor[skipped:]).all(), name
    described = config_json(sizes, kind)
    saved = read_json(tmp_path / "config.json")
    rope = saved.get("rope_parameters") or {}
    for name, value in described.items():
        assert value == saved.get(name, rope.get(name)), name


@pytest.mark.parametrize("dora", [False, True])
def test_convolutions_are_read_as_peft_merges_them(tmp_path: Path, dora: bool) -> None:
    from safetensors.torch import save_file

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Conv1d(3, 5, 2), torch.nn.Conv2d(5, 4, 3)
            self.point, self.linear = torch.nn.Conv2d(4, 6, 1), torch.nn.Linear(4, 3)

    torch.manual_seed(0)
    model = Small()
    for name in ("base", "merged"):
        (tmp_path / name).mkdir()
    save_file(model.state_dict(), tmp_path / "base" / "model.safetensors")
    settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["one", "two", "point", "linear"], use_dora=dora)
    adapted = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape) * 0.2
    adapted.save_pretrained(tmp_path / "adapter")
    state = adapted.merge_and_unload().state_dict()
    save_file({name: array.contiguous() for name, array in state.items()}, tmp_path / "merged" / "model.safetensors")
    adapter = read_adapter(tmp_path / "adapter", open_tensors(tmp_path / "base")).checked()
    used = gaps(tmp_path, adapter, 2 + 3 + 1 + (45 + 1) * dora, EPS / 2)  # the widest norm is over 45 numbers
    assert len(used) == 4
    assert max(used.values()) <= 1.0, used


def test_adapters_of_single_experts_are_merged_as_todays_transformers_converts_them(tmp_path: Path) -> None:
    """Old files name each expert's w1, w2, w3; PEFT joins their A and makes B block-diagonal when it loads them."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    mixtral().save_pretrained(tmp_path / "base")
    arrays = {}
    for name, (d_out, d_in) in {"w1": (24, 16), "w3": (24, 16), "w2": (16, 24)}.items():
        for place in [f"{layer}.block_sparse_moe.experts.{e}" for layer in range(2) for e in range(4)]:
            module = f"base_model.model.model.layers.{place}.{name}"
            arrays[f"{module}.lora_A.weight"] = torch.randn(3, d_in) * 0.2
            arrays[f"{module}.lora_B.weight"] = torch.randn(d_out, 3) * 0.2
    (tmp_path / "adapter").mkdir()
    save_file(arrays, tmp_path / "adapter" / "adapter_model.safetensors")
    peft.LoraConfig(r=3, lora_alpha=5, target_modules=["w1", "w2", "w3"]).save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter", open_tensors(tmp_path / "base")).checked()
    model = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    used = gaps(tmp_path, adapter, 6 + 3 + 1, EPS / 2)  # the rank is twice as high there
    assert len(used) == 2 * 4 * 3
    assert max(used.values()) <= 1.0, used


STARTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "pissa": (llama, {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa"}),
    "pissa gpt2": (gpt2, {"target_modules": ["c_attn"], "init_lora_weights": "pissa", "fan_in_fan_out": True}),
    "olora": (llama, {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "olora"}),
}


@pytest.mark.parametrize("name", STARTS)
def test_a_base_that_was_changed_before_training_is_changed_likewise(tmp_path: Path, name: str) -> None:
    r"""Their start is a float32 decomposition. The part of rank r of W + E differs from that of W by at most
    ‖E‖(2 + 2σ₁/(σ_r − σ_{r+1})) (Wedin's theorem on both spaces), and LAPACK's E is within p·u·σ₁, p = 4·max(n, m); for
    QR, E is multiplied by the condition of the first r columns instead."""
    build, settings = STARTS[name]
    adapter = made(tmp_path, build, **settings).checked()
    base, merged = open_tensors(tmp_path / "base"), open_tensors(tmp_path / "merged")
    assert all(update.start in ("pissa", "olora") for update in adapter.updates.values())
    for key, update in adapter.updates.items():
        W = np.asarray(base[key], np.float64)
        S = np.linalg.svd(W, compute_uv=False)
        condition = S[0] / (S[2] - S[3]) if "pissa" in name else np.linalg.cond(W[:, :3])
        bound = 4 * max(W.shape) * EPS / 2 * S[0] * (2 + 2 * condition)
        expected = update.prepared(base[key]).expected(base[key], slice(0, update.matrix[0]))
        found = np.asarray(merged[key], np.float64)
        assert np.linalg.norm(found - expected, 2) <= bound
        plain = W + (update.change(slice(0, W.shape[0])))
        assert np.linalg.norm(found - plain, 2) > 100 * bound  # contrast: the start matters


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "loftq", "lora_ga"])
def test_a_start_that_only_its_own_numbers_tell_is_refused_by_name(tmp_path: Path, start: str) -> None:
    made(tmp_path, llama, target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**read_json(path), "init_lora_weights": start}))
    with pytest.raises(ValueError, match=start):
        read_adapter(tmp_path / "adapter", open_tensors(tmp_path / "base"))


def test_the_initial_adapter_makes_a_random_start_readable(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llama()
    model.save_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], init_lora_weights="pissa_niter_2")
    adapted = peft.get_peft_model(model, settings)
    adapted.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape) * 0.2
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    base = open_tensors(tmp_path / "base")
    adapter = read_adapter(tmp_path / "adapter", base, start=tmp_path / "start").checked()
    used = gaps(tmp_path, adapter, 2 * (3 + 3 + 1), EPS / 2)
    assert max(used.values()) <= 1.0, used


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("safe", [False, True], ids=["plain", "safe"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_roundings_replays_what_peft_writes_bit_for_bit(tmp_path: Path, dtype: str, safe: bool) -> None:
    """Factors that are multiples of 2⁻³ make every product exact in float32, so only the stated casts round."""
    torch.manual_seed(0)
    model = llama().to(DTYPES[dtype])
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=2, target_modules=ALL))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randint(-9, 10, parameter.shape) / 8)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload(safe_merge=safe).save_pretrained(tmp_path / "merged")
    base, merged = open_tensors(tmp_path / "base"), open_tensors(tmp_path / "merged")
    adapter = read_adapter(tmp_path / "adapter", base).checked()
    different = 0
    for key, update in adapter.updates.items():
        W, found = np.asarray(base[key]), np.asarray(merged[key])
        delta = update.change(slice(0, update.matrix[0]), adapter.order)
        added = W.astype(np.float32) + (delta.astype(W.dtype) if safe else delta).astype(np.float32)
        assert (added.astype(W.dtype) == found).all(), key
        different += int((found != W).sum())
    assert different
