r"""Adapters trained here load in PEFT, with equal logits and equal gradients: float64, to 1e-10 of the largest.

Skips without torch but for what is refused, and for what PEFT has no part in.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import adapted, model, moved

from lora_np.exporting import Beside, beside_theirs, export_peft
from lora_np.formats.tensors import open_tensors
from lora_np.lora import adapters, delta
from lora_np.methods import adapt
from lora_np.methods.bottleneck import AdapterH
from lora_np.methods.lora import LoraConfig
from lora_np.methods.variants import DoRA, PiSSA
from lora_np.parameters import parameters, with_parameters

with_peft = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")),
    reason="the extra 'parity' is not installed",
)
LORA = LoraConfig(rank=2, alpha=3.0, targets="qv")


def test_a_module_that_fuses_maps_gets_the_update_of_each_in_its_rows() -> None:
    node = moved(adapted(model(), targets=("attention.query", "attention.value", "mlp.up")))
    for name, pair in beside_theirs(node, LORA, "gpt2").items():
        update = pair.scaling * (pair.B @ pair.A)
        layer = name.split(".")[2]
        parts = {path.rpartition(".")[2]: delta(m) for path, m in adapters(node).items() if f"blocks.{layer}." in path}
        if "c_attn" in name:
            expected = np.concatenate([parts["query"], np.zeros_like(parts["query"]), parts["value"]])
            assert pair.rank == 4
        else:
            expected = parts["up"]
        assert np.array_equal(update, expected), name
    assert len(beside_theirs(node, LORA, "gpt2")) == 4


@pytest.mark.parametrize(("scaling", "rank"), [(2.0, 4), (3.0 / 7.0, 7), (0.1 / 3.0, 3), (8.0 / 3.0, 3)])
def test_alpha_over_rank_is_the_scale_to_the_bit(scaling: float, rank: int) -> None:
    assert Beside(np.zeros((rank, 2)), np.zeros((2, rank)), scaling).alpha / rank == scaling


REFUSED: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "no model of transformers": (LORA, {}, "", "needs a base that transformers knows"),
    "another method": (AdapterH(rank=2), {}, "gpt2", "has no place in an adapter of PEFT"),
    "DoRA": (DoRA(rank=2), {}, "gpt2", "has no place in an adapter of PEFT"),
    "biases": (LoraConfig(rank=2, bias="all"), {}, "gpt2", "has no place in an adapter of PEFT"),
    "a tied head": (LoraConfig(rank=2, targets=("tokens",), tied_head="tie"), {}, "gpt2", "adapts no tied head"),
}


@pytest.mark.parametrize(("method", "sizes", "family", "word"), REFUSED.values(), ids=REFUSED)
def test_what_peft_has_no_place_for_is_refused_by_name(
    method: Any, sizes: dict[str, Any], family: str, word: str, tmp_path: Path
) -> None:
    node = adapt(model(**sizes), method, np.random.default_rng(0))
    with pytest.raises(ValueError, match=word):
        export_peft(tmp_path / "out", node, method, family)
    assert not list(tmp_path.iterdir())


def test_a_folder_holds_the_arrays_as_they_are(tmp_path: Path) -> None:
    base = model(architecture="llama", heads=4, kv_heads=2, dtype=np.float32)
    node = moved(adapt(base, LORA, np.random.default_rng(0)))
    assert export_peft(tmp_path / "out", node, LORA, "llama", "here") == 4
    tensors = open_tensors(tmp_path / "out" / "adapter_model.safetensors")
    A = tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"]
    assert np.array_equal(np.asarray(A), parameters(node)["blocks.1.attention.value.A"])
    about = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["base_model_name_or_path"]) == (2, 3, "here")


# ---------------------------------------------------------------------------------------------------------- with PEFT


def in_peft(name: str, tmp_path: Path, method: Any) -> tuple[Any, Any]:
    """A random model of theirs on disk, ours adapted beside it and moved; the same exported and loaded by PEFT."""
    import peft
    import test_loading_parity as parity
    import torch

    from lora_np.loading import load_foreign, open_foreign

    theirs = parity.saved(name, tmp_path / "base")
    exact = theirs if name in ("gpt2", "bert", "roberta") else parity.in_float64(theirs)
    family = open_foreign(tmp_path / "base").family
    fresh = adapt(load_foreign(tmp_path / "base", np.float64), method, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    point = {n: 0.4 * rng.standard_normal(a.shape) for n, a in method.trained(fresh).items()}
    node = with_parameters(fresh, point)
    export_peft(tmp_path / "adapter", node, method, family)
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(about | {"task_type": None}))
    loaded = peft.PeftModel.from_pretrained(exact, tmp_path / "adapter", is_trainable=True).to(torch.float64).eval()
    return node, loaded


MODELS = ("gpt2", "llama", "llama, tied", "llama, one key head", "qwen2", "bert", "roberta")


@with_peft
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_peft(name: str, tmp_path: Path) -> None:
    import test_loading_parity as parity
    import torch

    from lora_np.engine.differentiation import value_and_grad
    from lora_np.model import language_model_loss
    from lora_np.tasks import Batch

    targets = "attention+mlp" if name in ("llama, tied", "bert") else "qv"
    method = LoraConfig(rank=2, alpha=3.0, targets=targets)
    node, loaded = in_peft(name, tmp_path, method)
    encoder = name in ("bert", "roberta")
    assert parity.gap(parity.our_logits(node, name), parity.their_logits(loaded, name)) <= 1e-10
    fresh = parity.our_logits(with_parameters(node, {n: 0.0 * a for n, a in method.trained(node).items()}), name)
    assert parity.gap(fresh, parity.their_logits(loaded, name)) > 1e-3  # contrast: the adapter does something

    labels = np.array([[2], [0], [1]]) if encoder else np.roll(parity.TOKENS, -1, 1)
    given = {"attention_mask": torch.tensor(parity.MASK.astype(int))} if encoder else {}
    logits = loaded(input_ids=torch.tensor(parity.TOKENS), **given).logits
    flat = logits.reshape(-1, logits.shape[-1])
    torch.nn.functional.cross_entropy(flat, torch.tensor(labels.reshape(-1))).backward()
    batch = Batch(parity.TOKENS, labels, np.full(labels.shape, 1.0 / labels.size))
    mask = parity.MASK if encoder else None
    loss = lambda p: language_model_loss(with_parameters(node, p), batch, mask)  # noqa: E731
    _, gradient = value_and_grad(loss)(method.trained(node))
    found = {path.replace(".default", ""): p.grad.numpy() for path, p in loaded.named_parameters() if "lora_" in path}
    # What stands in one module of theirs is put together as (X1) puts it: a gradient is exported as an adapter is.
    as_adapter = beside_theirs(
        with_parameters(node, gradient), method, {"llama, tied": "llama"}.get(name, _family(name))
    )
    assert len(found) == 2 * len(as_adapter)
    for module, pair in as_adapter.items():
        A, B = (found[f"base_model.model.{module}.lora_{leaf}.weight"] for leaf in "AB")
        assert np.abs(pair.A - A).max() <= 1e-10 * np.abs(A).max(), module
        inside = np.where(pair.B != 0.0, B, 0.0)  # rows of theirs that no map of ours has
        assert np.abs(pair.B - inside).max() <= 1e-10 * np.abs(B).max(), module
        assert min(np.abs(A).max(), np.abs(pair.B).max()) > 1e-5


def _family(name: str) -> str:
    return name.partition(",")[0]


@with_peft
@pytest.mark.filterwarnings("ignore")
def test_pissa_is_exported_as_the_lora_it_is_stored_as(tmp_path: Path) -> None:
    import test_loading_parity as parity

    node, loaded = in_peft("llama", tmp_path, PiSSA(rank=2, alpha=4.0, targets=("attention.value",)))
    assert parity.gap(parity.our_logits(node, "llama"), parity.their_logits(loaded, "llama")) <= 1e-10
