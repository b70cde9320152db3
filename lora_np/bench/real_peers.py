r"""The same model in transformers, under PEFT's LoRA: the arrays are shared with ours, not copied."""

from __future__ import annotations

from typing import Any

import peft
import torch
import transformers
from torch.nn import functional as F

from ..config import TransformerConfig
from ..engine.threads import worker_count
from ..exporting import CONV1D, beside_theirs
from ..formats import names
from ..formats.huggingface import config_json
from ..installed import base_path
from ..loading import open_foreign
from ..parameters import parameters
from ..wrappers import unwrapped
from .real_work import RealTokens, adapted_real
from .sizes import LORA, TRAINING, Step, Task

MLPS = {"gelu": "gelu_tanh", "gelu, exact": "gelu", "swiglu": "swiglu"}


def adapted(task: Task) -> Any:
    """The model under PEFT's LoRA, every array ours."""
    ours = adapted_real(task)
    family = open_foreign(base_path(task.size.base)).family
    model = peft.get_peft_model(theirs(unwrapped(ours), family), _lora(ours, family))
    state = model.state_dict()
    with torch.no_grad():
        for name, pair in beside_theirs(ours, LORA, family).items():
            for leaf, array in (("lora_A", pair.A), ("lora_B", pair.B)):
                state[f"base_model.model.{name}.{leaf}.default.weight"].copy_(torch.from_numpy(array))
    return model


def _lora(ours: Any, family: str) -> Any:
    modules = beside_theirs(ours, LORA, family)
    first = next(iter(modules.values()))
    return peft.LoraConfig(
        r=first.rank, lora_alpha=first.alpha, target_modules=sorted(modules), fan_in_fan_out=family in CONV1D
    )  # type: ignore[arg-type, unused-ignore]


def theirs(model: Any, family: str) -> Any:
    """A plain model of ours as the class of transformers that computes the same."""
    config = model.config
    about = transformers.AutoConfig.for_model(**config_json(_described(config), family))
    if config.classes:
        about.num_labels = config.classes
    kind = transformers.AutoModelForSequenceClassification if config.classes else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        empty = kind.from_config(about)
    arrays = names.theirs(parameters(model), family, config.layers)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    empty.load_state_dict(state, strict=False, assign=True)
    empty.tie_weights()
    _made_again(empty)
    left = [name for name, p in empty.named_parameters() if p.is_meta]
    assert not left, left
    return empty.eval()


def _described(config: TransformerConfig) -> dict[str, Any]:
    sizes = ("vocab", "context", "d_model", "layers", "heads", "causal", "tied", "eps", "kv_heads")
    values = {name: getattr(config, name) for name in sizes}
    if config.rope_factor != 1.0:
        named = ("rope_factor", "rope_low", "rope_high", "rope_context")[: 4 if config.rope_context else 1]
        values["rope_scaling"] = {name: getattr(config, name) for name in named}
    return {**values, "d_ff": config.d_hidden, "mlp": MLPS[config.kind.mlp], "rope_base": config.theta}


def _made_again(model: Any) -> None:
    """Buffers that are computed, not stored, and that a model on no device has no numbers of."""
    for path, module in list(model.named_modules()):
        if not any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            continue
        if hasattr(module, "inv_freq"):
            model.set_submodule(path, type(module)(config=model.config))
            continue
        for name, buffer in list(module.named_buffers(recurse=False)):
            numbers = torch.zeros(buffer.shape, dtype=buffer.dtype)
            if name == "position_ids":
                numbers = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            module.register_buffer(name, numbers, persistent=False)


def training(task: Task) -> Step:
    """A LoRA step: forward, loss, backward, AdamW."""
    torch.set_num_threads(worker_count(task.workers))
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call, unused-ignore]
    model: Any = adapted(task)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=TRAINING.learning_rate, weight_decay=TRAINING.weight_decay)
    outcomes = model.config.num_labels if not hasattr(model.base_model.model, "lm_head") else task.size.vocab
    batches, done = RealTokens(task.size, outcomes, task.seed), 0

    def step() -> float:
        nonlocal done
        batch = batches[done]
        done += 1
        tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
        logits = model(input_ids=tokens, **({"use_cache": False} if outcomes == task.size.vocab else {})).logits
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step
