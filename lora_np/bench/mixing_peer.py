r"""PEFT's mixed batch: one model, several adapters, and `adapter_names` that say whose each sequence is.

The model is that of `peers`, with keys and values kept from token to token; greedy, float32, from the same numbers.
"""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch.nn import functional as F

from ..engine.threads import worker_count
from ..files import load_model
from ..parameters import parameters
from .mixing import adapters, prompts
from .peers import Attention, Transformer, their_name
from .sizes import ALPHA, RANK, Step, Task


class CachedAttention(Attention):
    """Keys and values of what was read so far stand before those of x."""

    past: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, seq, d_model = x.shape
        q, k, v = (
            part(x).view(batch, seq, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        if self.past is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.past, (k, v), strict=True))
        self.past = k, v
        o = F.scaled_dot_product_attention(q, k, v, is_causal=seq > 1)
        return self.output(o.transpose(1, 2).reshape(batch, seq, d_model))


class CachedTransformer(Transformer):
    """A prompt at first, then a token at a time."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for block in self.blocks:
            block.attention = CachedAttention(config.d_model, config.heads)
        self.seen = 0

    def forget(self) -> None:
        self.seen = 0
        for module in self.modules():
            if isinstance(module, CachedAttention):
                module.past = None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        stop = self.seen + tokens.shape[1]
        h = self.tokens(tokens) + self.positions(torch.arange(self.seen, stop))
        self.seen = stop
        for block in self.blocks:
            h = block(h)
        return F.linear(self.norm(h[:, -1:]), self.tokens.weight)


def generation(task: Task, count: int) -> Step:
    """The tokens that `mixing.mixture` writes with as many adapters."""
    torch.set_num_threads(worker_count(task.workers))
    ours = load_model()
    plain = CachedTransformer(ours.config)
    theirs = plain.state_dict()
    for path, array in parameters(ours).items():
        theirs.pop(their_name(path)).copy_(torch.from_numpy(array))
    assert not theirs, sorted(theirs)
    settings = peft.LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=["query", "value"], lora_dropout=0.0)
    mine = adapters(ours, count)
    model = peft.get_peft_model(plain, settings, adapter_name=mine[0].name)
    for adapter in mine[1:]:
        model.add_adapter(adapter.name, settings)
    held = dict(model.named_parameters())
    for adapter in mine:
        for path, factors in adapter.factors.items():
            for part in "AB":
                into = held[f"base_model.model.{path}.lora_{part}.{adapter.name}.weight"]
                into.data.copy_(torch.from_numpy(getattr(factors, part)))
    model.eval()
    names = [mine[i % count].name for i in range(task.size.batch)]
    given = torch.tensor(prompts(task.size.batch))

    def step() -> list[list[int]]:
        plain.forget()
        written, tokens = [], given
        with torch.inference_mode():
            for _ in range(task.size.seq):
                tokens = model(tokens, adapter_names=names)[:, -1].argmax(-1, keepdim=True)
                written.append(tokens)
        found: list[list[int]] = torch.cat(written, dim=1).tolist()
        return found

    return step
