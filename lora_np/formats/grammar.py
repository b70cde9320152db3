r"""PEFT's adapters: adapter_config.json and adapter_model.safetensors (or .bin), read key by key.

    key    "base_model.model." module "." leaf              the name of the adapter ("default") removed on saving
    leaf   lora_A.weight (r, in)   lora_B.weight (out, r)   lora_B.bias (out,)              s = α/r, or α/√r (rsLoRA)
           lora_embedding_A (r, vocab)   lora_embedding_B (d, r)                            ΔW = s·(BA)ᵀ
           lora_magnitude_vector (out,)                                                     DoRA
           token_adapter.trainable_tokens_delta (n, d)                                      rows that replace
           base_layer.weight, base_layer.bias, and any other tensor                         a replacement

What a file says otherwise, or in another way, becomes a finding; what cannot be read exactly is refused by name.

Source: the format as PEFT 0.21 writes it; r_i and α_i by its rule, the first pattern that matches the end of a path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .disk import shown
from .factors import Leaves, pair_of
from .patterns import first_match
from .tensors import Tensor
from .updates import Finding

# Settings that make an adapter one whose merged weights are not W + s·BA of the base that is given.
REFUSED = {
    "layer_replication": "layers are repeated that share their weights, so no merged file has the names of the base",
    "alora_invocation_tokens": "it acts only after its invocation tokens, so it cannot be merged",
    "arrow_config": "it routes between adapters, so it cannot be merged",
    "use_qalora": "its input is averaged in groups beside a quantised base, so it cannot be merged",
    "kasa_config": "its base was truncated by a decomposition that its program repeats on loading",
    "use_bdlora": "its factors are block-diagonal by rules that depend on the program",
}
# Values of init_lora_weights that changed the base before training, and what is needed then.
BEGUN = ("pissa", "olora")  # computed again from the base
BEGUN_ELSEWHERE = re.compile(r"pissa_niter_\d+|corda|lora_ga|loftq")
PLAIN = ("gaussian", "eva", "orthogonal", "mica", "true", "false")
# Settings that are read here or elsewhere, or do not bear on merged weights.
KNOWN = {
    "lora_dropout", "task_type", "inference_mode", "revision", "base_model_name_or_path", "auto_mapping",
    "peft_version", "runtime_config", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "monteclora_config", "velora_config", "qalora_group_size", "exclude_modules",
    "target_modules", "layers_to_transform", "layers_pattern", "peft_type", "r", "lora_alpha", "use_rslora",
    "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias", "lora_bias", "use_dora", "init_lora_weights",
    "target_parameters", "modules_to_save", "trainable_token_indices", "ensure_weight_tying",
}  # fmt: skip
HEADS = ("lm_head", "embed_out", "cls.predictions.decoder", "lm_head.decoder", "score")
TABLES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


@dataclass(frozen=True)
class Settings:
    """adapter_config.json, checked: what of it bears on the merged weights.

    by_rank   s of a module and its rank, in formats that state neither r nor patterns
    """

    r: int
    alpha: float
    rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    transposed: bool = False
    dora: bool = False
    lora_bias: bool = False
    start: str | None = None
    parameters: tuple[str, ...] = ()
    tokens: Any = None
    tying: bool = False
    by_rank: Callable[[str, int], float] | None = None

    def factor(self, module: str, found: int) -> tuple[float, int]:
        """s and r of a module whose factors have rank `found`; where s follows from that alone, it is believed."""
        if self.by_rank is not None:
            return self.by_rank(module, found), found
        rank = int(first_match(self.ranks, module, self.r))
        alpha = float(first_match(self.alphas, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.rslora else rank), rank


def settings(config: Mapping[str, Any], where: str) -> Settings:
    """Raises ValueError for another kind of adapter, what cannot be merged, and values of the wrong type."""

    def get(name: str, kind: Any, default: Any) -> Any:
        value = config.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{where}: {name} cannot be {shown(value)}")
        return value

    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{where}: peft_type must be LORA, got {shown(config.get('peft_type'))}: its formula is another"
        )
    for name, reason in REFUSED.items():
        if config.get(name):
            raise ValueError(f"{where}: {name} is set: {reason}")
    ranks, alphas = get("rank_pattern", dict, {}), get("alpha_pattern", dict, {})
    r, alpha = get("r", int, 8), get("lora_alpha", int | float, 8)
    for rank in (r, *ranks.values()):
        if type(rank) is not int or not 0 < rank < 1 << 31:
            raise ValueError(f"{where}: a rank must be a whole number of at least 1, got {shown(rank)}")
    for value in (alpha, *alphas.values()):
        if type(value) not in (int, float) or not abs(value) < 1e30:
            raise ValueError(f"{where}: lora_alpha must be a number, got {shown(value)}")
    parameters = get("target_parameters", list, [])
    if not all(isinstance(name, str) for name in parameters):
        raise ValueError(f"{where}: target_parameters must be names")
    return Settings(
        r, float(alpha), get("use_rslora", bool, False), ranks, alphas, get("fan_in_fan_out", bool, False),
        get("use_dora", bool, False), get("lora_bias", bool, False), _start(config.get("init_lora_weights"), where),
        tuple(parameters), get("trainable_token_indices", list | dict, None), get("ensure_weight_tying", bool, False),
    )  # fmt: skip


def _start(value: Any, where: str) -> str | None:
    """ "pissa", "olora", "given" where only the initial adapter can tell, or None where the base was left as it is."""
    name = str(value).lower() if isinstance(value, str | bool) or value is None else shown(value)
    if name in BEGUN:
        return name
    if BEGUN_ELSEWHERE.fullmatch(name):
        return "given" if name != "loftq" else "loftq"
    if value is not None and name not in PLAIN:
        raise ValueError(f"{where}: init_lora_weights is {shown(value)}, a start that this reader does not know")
    return None


# The leaves of the grammar, each with the name of an adapter where one was left in.
LEAVES = {
    "A": re.compile(r"(.+)\.lora_A(?:\.([^.]+))?\.weight"),
    "B": re.compile(r"(.+)\.lora_B(?:\.([^.]+))?\.weight"),
    "b": re.compile(r"(.+)\.lora_B(?:\.([^.]+))?\.bias"),
    "EA": re.compile(r"(.+)\.lora_embedding_A(?:\.([^.]+))?"),
    "EB": re.compile(r"(.+)\.lora_embedding_B(?:\.([^.]+))?"),
    "m": re.compile(r"(.+)\.lora_magnitude_vector(?:\.(?!weight$)([^.]+))?(?:\.weight)?"),
    "tokens": re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta(?:\.([^.]+))?"),
    "diag": re.compile(r"(.+)\.lora_diag(?:\.([^.]+))?"),
}
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PREFIX = "base_model.model."


@dataclass
class Read:
    """What the keys of a file say, before the base is asked: leaves by module, and whole tensors by name.

    copies   those of the whole tensors that were saved because their module was adapted, changed or not
    """

    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    copies: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def note(self, kind: str, where: str, what: str, todo: str, *, stops: bool = False) -> None:
        """A finding; of one that stops nothing, only the first of its kind is kept."""
        if stops or all(finding.kind != kind for finding in self.findings):
            self.findings.append(Finding(kind, shown(where, quoted=False), what, todo, stops))

    def leaves(self, settings: Settings, described: Mapping[str, Any]) -> Leaves:
        """What was read, with the scale of each pair of factors."""
        pairs = {module: pair for module, leaves in self.modules.items() if (pair := pair_of(leaves)) is not None}
        scales = {
            module: settings.factor(module, A.shape[-2] if A.ndim > 1 else 1)[0] for module, (A, _) in pairs.items()
        }
        return Leaves(self.modules, scales, self.whole, frozenset(self.copies), settings.dora, described)


def read_keys(tensors: Mapping[str, Tensor]) -> Read:
    """Sort the tensors of an adapter by what their names say."""
    found = Read()
    for key, tensor in tensors.items():
        path = _unwrapped(key, found)
        kind, match = next(((k, m) for k, form in LEAVES.items() if (m := form.fullmatch(path))), ("", None))
        if match is None:
            _whole(found, key, path, tensor)
            continue
        module, name = match[1], match[2]
        if name is not None:
            what = f"it carries the name of an adapter, {shown(name)}, so PEFT would leave it out without a word"
            found.note("adapter_name", key, what, "save it with save_pretrained")
        leaves = found.modules.setdefault(module, {})
        if kind in leaves:
            raise ValueError(f"{shown(key)} stands for the same factor as another tensor of the file")
        leaves[kind] = tensor
    return found


def _unwrapped(key: str, found: Read) -> str:
    """The path without PEFT's prefix and without what wrappers of a training program put into it."""
    path, again = key.removeprefix(PREFIX), 0
    while path.startswith(("base_model.model.", "base_model.")):
        path, again = path.removeprefix("base_model.model.").removeprefix("base_model."), again + 1
    if again:
        found.note("doubled_prefix", key, "base_model stands in its name twice", "rename it; PEFT would leave it out")
    elif not key.startswith(PREFIX):
        found.note(
            "missing_prefix", key, f"its name does not begin with {PREFIX}", "rename it; PEFT would leave it out"
        )
    kept = [part for part in path.split(".") if part not in WRAPPERS]
    if kept[0] == "module":
        kept = kept[1:]
    if ".".join(kept) != path:
        found.note("wrapper", key, "its name holds parts that a training program put there", "save the unwrapped model")
    return ".".join(kept)


def _whole(found: Read, key: str, path: str, tensor: Tensor) -> None:
    """A tensor that replaces one of the base, or a name of no grammar."""
    if "lora_" in path or ".original_module." in path or not path:
        copy = ".original_module." in path
        found.note(
            "copy" if copy else "unknown_tensor", key,
            "it is a copy of the base's own tensor" if copy else "no leaf of PEFT's LoRA has this name",
            "leave it out" if copy else "see what wrote it; it cannot be merged", stops=not copy,
        )  # fmt: skip
        return
    name = re.sub(r"\.modules_to_save\.(?:default\.)?", ".", path)
    if ".modules_to_save." in path:
        found.note("adapter_name", key, "it carries the path of a module that is trained whole", "use save_pretrained")
    if ".base_layer." in name:
        name = name.replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")
        found.copies.add(name)
    if name in found.whole:
        raise ValueError(f"{shown(key)} stands for the same tensor as another one of the file")
    found.whole[name] = tensor
