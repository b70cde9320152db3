r"""The same work in PyTorch with PEFT: eager or compiled, float32, from the same weights and the same batches.

The model is written as its users would write it: `nn.Linear`, `scaled_dot_product_attention`, `F.gelu`,
`F.cross_entropy`, `torch.optim.AdamW`, and PEFT's `get_peft_model` around the query and value maps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from ..engine.threads import worker_count
from ..files import load_model
from ..parameters import Arrays, parameters
from .sizes import ALPHA, PROMPT, TRAINING, RandomTokens, Step, Task, adapted_model


class Attention(nn.Module):
    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, seq, d_model = x.shape
        q, k, v = (
            part(x).view(batch, seq, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(o.transpose(1, 2).reshape(batch, seq, d_model))


class MLP(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model: int, d_ff: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention, self.mlp = Attention(d_model, heads), MLP(d_model, d_ff)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        h = h + self.attention(self.attention_norm(h))
        return h + self.mlp(self.mlp_norm(h))


class Transformer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        d = config.d_model
        self.tokens, self.positions = nn.Embedding(config.vocab, d), nn.Embedding(config.context, d)
        self.blocks = nn.ModuleList(Block(d, config.d_hidden, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(d)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            h = block(h)
        return F.linear(self.norm(h), self.tokens.weight)


# What PEFT and PyTorch call the arrays that are called W, b, gamma, beta, A and B here.
ENDINGS = {
    "base.W": "base_layer.weight",
    "base.b": "base_layer.bias",
    "A": "lora_A.default.weight",
    "B": "lora_B.default.weight",
    "W": "weight",
    "b": "bias",
    "gamma": "weight",
    "beta": "bias",
}


def their_name(path: str) -> str:
    """`blocks.0.attention.query.base.W` → `blocks.0.attention.query.base_layer.weight`."""
    ending = next(ending for ending in ENDINGS if path.endswith("." + ending))
    return path.removesuffix(ending) + ENDINGS[ending]


def adapted(task: Task) -> Any:
    """The model under PEFT's LoRA, every array copied from ours."""
    ours = adapted_model(task)
    with torch.device("meta"):
        empty = Transformer(ours.config)
    model = peft.get_peft_model(
        empty.to_empty(device="cpu"),
        peft.LoraConfig(r=task.rank, lora_alpha=ALPHA, target_modules=["query", "value"], lora_dropout=0.0),
    )
    theirs = model.base_model.model.state_dict()
    for path, array in parameters(ours).items():
        theirs.pop(their_name(path)).copy_(torch.from_numpy(array))
    assert not theirs, sorted(theirs)
    return model


def training(task: Task, *, compiled: bool = False) -> Step:
    """A LoRA step: forward, loss, backward, AdamW; with `compiled`, the model is what `torch.compile` makes of it."""
    torch.set_num_threads(worker_count(task.workers))
    where = "cuda" if task.device == "gpu" else "cpu"
    model = adapted(task).to(where)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=TRAINING.learning_rate,
        weight_decay=TRAINING.weight_decay,
    )
    batches, done = RandomTokens(task.size, task.seed), 0

    def step() -> float:
        nonlocal done
        batch = batches[done]
        done += 1
        tokens, targets = (torch.from_numpy(array).to(where) for array in (batch.tokens, batch.targets))
        loss = F.cross_entropy(forward(tokens).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def generation(task: Task) -> Step:
    """Greedy tokens from `transformers`, with a key-value cache, of the base that ships."""
    torch.set_num_threads(worker_count(task.workers))
    transformers.logging.set_verbosity_error()
    ours = load_model()
    c = ours.config
    config = transformers.GPT2Config(
        vocab_size=c.vocab,
        n_positions=c.context,
        n_embd=c.d_model,
        n_layer=c.layers,
        n_head=c.heads,
        n_inner=c.d_hidden,
    )
    config.bos_token_id = config.eos_token_id = None
    model = transformers.GPT2LMHeadModel(config).eval()
    theirs = model.transformer.state_dict()
    for path, array in _as_gpt2(parameters(ours)).items():
        theirs.pop(path).copy_(torch.from_numpy(array))
    assert not theirs, sorted(theirs)
    prompt = torch.from_numpy(PROMPT)[None]

    def step() -> list[int]:
        with torch.no_grad():
            found = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=task.size.seq,
                do_sample=False,
                pad_token_id=0,
            )
        return found[0, len(PROMPT) :].tolist()

    return step


def _as_gpt2(ours: Arrays) -> Arrays:
    """The names of GPT-2's arrays, whose matrices are transposed, and query, key and value one beside the other."""
    theirs = {
        "wte.weight": ours["tokens.W"],
        "wpe.weight": ours["positions.W"],
        "ln_f.weight": ours["norm.gamma"],
        "ln_f.bias": ours["norm.beta"],
    }
    for layer in range(sum(path.endswith("attention_norm.gamma") for path in ours)):
        block, name = f"blocks.{layer}.", f"h.{layer}."
        for norm, ln in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
            theirs[f"{name}{ln}.weight"], theirs[f"{name}{ln}.bias"] = (
                ours[f"{block}{norm}.gamma"],
                ours[f"{block}{norm}.beta"],
            )
        for parts, conv in (
            (("attention.query", "attention.key", "attention.value"), "attn.c_attn"),
            (("attention.output",), "attn.c_proj"),
            (("mlp.up",), "mlp.c_fc"),
            (("mlp.down",), "mlp.c_proj"),
        ):
            theirs[f"{name}{conv}.weight"] = np.concatenate([ours[f"{block}{part}.W"] for part in parts]).T
            theirs[f"{name}{conv}.bias"] = np.concatenate([ours[f"{block}{part}.b"] for part in parts])
    return theirs
