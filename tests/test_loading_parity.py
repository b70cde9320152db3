r"""Against transformers itself, in float64: models it saved, read by us, give its logits. Skips without torch.

Both sum the same terms in another order: within 1e-10 of the largest logit, a million roundings. Two things of theirs
are float32 whatever a model is held in, the mean square of a Llama's norms and the angles of its positions; they are
exchanged here for the same in float64, and a test shows what they would cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_np.files import load_model
from lora_np.loading import load_foreign
from lora_np.parameters import parameters

torch = pytest.importorskip("torch", reason="the extra 'parity' is not installed")
transformers = pytest.importorskip("transformers", reason="the extra 'parity' is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20,
         "vocab_size": 23, "max_position_embeddings": 16}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(3, 23, (3, 9))
TYPES = (np.arange(9) >= 4).astype(int) * np.ones((3, 1), int)
MASK = np.arange(9) < np.array([[9], [6], [2]])


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 12}  # fmt: skip


def slower(frequency: float, rope: dict[str, Any]) -> float:
    """As transformers documents it: by wavelengths, in three ranges."""
    kind, factor = rope.get("rope_type", "default"), rope.get("factor", 1.0)
    if kind in ("default", "linear"):
        return frequency / factor
    first, wave = rope["original_max_position_embeddings"], 2 * math.pi / frequency
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    if wave < first / high:
        return frequency
    if wave > first / low:
        return frequency / factor
    smooth = (first / wave - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def gpt2() -> Any:
    config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=4, vocab_size=23, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def llama(**changes: Any) -> Any:
    more = {"num_key_value_heads": 2, "tie_word_embeddings": False, **changes}
    more = more if "rope_parameters" in changes else {"rope_theta": 500.0, **more}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **more))


def qwen2() -> Any:
    config = transformers.Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True)
    return transformers.Qwen2ForCausalLM(config)


def bert() -> Any:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=3))


def roberta() -> Any:
    config = transformers.RobertaConfig(**SIZES, num_labels=3, type_vocab_size=1, pad_token_id=1)
    return transformers.RobertaForSequenceClassification(config)


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, one key head": lambda: llama(num_key_value_heads=1),
    "llama, keys of its own": lambda: llama(num_key_value_heads=4),
    "llama, positions of llama 3": lambda: llama(rope_parameters=LLAMA3),
    "llama, linear positions": lambda: llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
    ),
    "llama, heads wider than the stream": lambda: llama(head_dim=10),
    "qwen2": qwen2,
    "bert": bert,
    "roberta": roberta,
}
every_model = pytest.mark.parametrize("name", MODELS)


def saved(name: str, folder: Path) -> Any:
    """A model of theirs with arrays of a size at which they show, in float64, and on disk."""
    torch.manual_seed(0)
    model = MODELS[name]().to(torch.float64).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and "bias" not in path and "orm" in path + "ln_" else 0.0
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(centre + torch.randn(parameter.shape, dtype=torch.float64) * scale)
    model.tie_weights()
    model.save_pretrained(folder)
    return model


def in_float64(model: Any) -> Any:
    """Their model with its float32 parts exchanged for the same equations in float64."""

    class Norm(torch.nn.Module):
        def __init__(self, theirs: Any) -> None:
            super().__init__()
            self.weight, self.eps = theirs.weight, theirs.variance_epsilon

        def forward(self, x: Any) -> Any:
            return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps)

    class Angles(torch.nn.Module):
        def __init__(self, theta: float, d_head: int, rope: dict[str, Any]) -> None:
            super().__init__()
            plain = theta ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
            self.frequencies = torch.tensor([slower(float(f), rope) for f in plain], dtype=torch.float64)

        def forward(self, x: Any, position_ids: Any) -> Any:
            angles = position_ids[..., None].to(torch.float64) * self.frequencies
            both = torch.cat((angles, angles), dim=-1)
            return both.cos(), both.sin()

    for path, node in list(model.named_modules()):
        if type(node).__name__.endswith("RMSNorm"):
            model.set_submodule(path, Norm(node))
    if hasattr(model.model, "rotary_emb"):
        config = model.config
        rope = getattr(config, "rope_parameters", None) or {}
        theta = rope.get("rope_theta", getattr(config, "rope_theta", None))
        model.model.rotary_emb = Angles(theta, model.model.layers[0].self_attn.head_dim, rope)
    return model


def their_logits(model: Any, name: str) -> Any:
    given: dict[str, Any] = {"input_ids": torch.tensor(TOKENS)}
    if name in ("bert", "roberta"):
        given["attention_mask"] = torch.tensor(MASK.astype(int))
    if name == "bert":
        given["token_type_ids"] = torch.tensor(TYPES)
    with torch.no_grad():
        return model(**given).logits.numpy()


def our_logits(node: Any, name: str) -> Any:
    if name == "bert":
        return node(TOKENS, MASK, types=TYPES)[:, 0]
    return node(TOKENS, MASK)[:, 0] if name == "roberta" else node(TOKENS)


def gap(ours: Any, theirs: Any) -> float:
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.3
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@every_model
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = saved(name, tmp_path)
    exact = theirs if name in ("gpt2", "bert", "roberta") else in_float64(theirs)
    node = load_model(tmp_path, np.float64)
    assert gap(our_logits(node, name), their_logits(exact, name)) <= 1e-10
    moved = next(path for path in parameters(node) if path.endswith("1.mlp.up.W"))
    parameters(node)[moved][0, 0] += 1e-6
    assert gap(our_logits(node, name), their_logits(exact, name)) > 1e-10  # contrast: so much is seen


def test_what_theirs_computes_in_float32_is_seen(tmp_path: Path) -> None:
    theirs = saved("llama", tmp_path)
    found = gap(our_logits(load_model(tmp_path, np.float64), "llama"), their_logits(theirs, "llama"))
    assert 1e-9 < found < 1e-5


@every_model
def test_in_float32_logits_are_theirs_within_its_roundings(name: str, tmp_path: Path) -> None:
    """Some hundred roundings, of which most cancel, on each way: 1e-4 of the largest logit is far above them."""
    theirs = saved(name, tmp_path).to(torch.float32)
    assert gap(our_logits(load_model(tmp_path), name), their_logits(theirs, name)) < 1e-4


def test_an_encoder_without_a_head_gives_the_states_of_theirs(tmp_path: Path) -> None:
    theirs = saved("bert", tmp_path).bert
    theirs.save_pretrained(tmp_path / "bare")
    node = load_model(tmp_path / "bare", np.float64)
    with torch.no_grad():
        states = theirs(torch.tensor(TOKENS), torch.tensor(MASK.astype(int)), torch.tensor(TYPES)).last_hidden_state
    assert gap(node.hidden(TOKENS, MASK, types=TYPES)[MASK], states.numpy()[MASK]) <= 1e-10
    headed = load_foreign(tmp_path / "bare", np.float64, classes=4, rng=np.random.default_rng(0))
    assert headed(TOKENS, MASK, types=TYPES).shape == (3, 1, 4)
    pooler = theirs.pooler.dense.weight.detach().numpy()
    assert np.array_equal(parameters(headed)["head.pooler.W"], pooler)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_gradients_of_lora_are_those_of_peft(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra 'parity' is not installed")
    from lora_np.engine.differentiation import value_and_grad
    from lora_np.methods import adapt
    from lora_np.methods.lora import LoraConfig
    from lora_np.model import language_model_loss
    from lora_np.parameters import with_parameters
    from lora_np.tasks import Batch

    theirs = saved(name, tmp_path)
    exact = in_float64(theirs) if name == "llama" else theirs
    their_name = {"gpt2": "attn.c_proj", "llama": "o_proj", "bert": "attention.output.dense"}[name]
    adapted = peft.get_peft_model(exact, peft.LoraConfig(r=2, lora_alpha=3, target_modules=[their_name])).to(
        torch.float64
    )
    adapted.eval()
    found = {path: p for path, p in adapted.named_parameters() if "lora_" in path}
    with torch.no_grad():
        for p in found.values():
            p.copy_(torch.randn(p.shape, dtype=torch.float64) * 0.3)
    labels = np.array([[2], [0], [1]]) if name == "bert" else np.roll(TOKENS, -1, 1)
    given = {"attention_mask": torch.tensor(MASK.astype(int))} if name == "bert" else {}
    logits = adapted(torch.tensor(TOKENS), **given).logits
    logits = logits[:, None] if name == "bert" else logits
    flat = logits.reshape(-1, logits.shape[-1])
    torch.nn.functional.cross_entropy(flat, torch.tensor(labels.reshape(-1))).backward()
    node = adapt(load_model(tmp_path, np.float64), LoraConfig(2, 3.0, ("attention.output",)), np.random.default_rng(0))
    arrays = {}
    for path, p in found.items():
        layer = next(int(part) for part in path.split(".") if part.isdecimal())
        arrays[f"blocks.{layer}.attention.output.{'A' if 'lora_A' in path else 'B'}"] = p
    point = {path: p.detach().numpy().copy() for path, p in arrays.items()}
    batch = Batch(TOKENS, labels, np.full(labels.shape, 1.0 / labels.size))
    mask = MASK if name == "bert" else None
    _, gradient = value_and_grad(lambda q: language_model_loss(with_parameters(node, q), batch, mask))(point)
    for path, p in arrays.items():
        assert np.abs(gradient[path] - p.grad.numpy()).max() <= 1e-10 * np.abs(p.grad.numpy()).max(), path
        assert np.abs(gradient[path]).max() > 1e-4
