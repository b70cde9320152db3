"""Tutorial 12, a real language model: what its adapter costs, two measures of a loss, and PEFT's names."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..config import TransformerConfig
from ..costs import adapter_bytes, lora_count, parameter_count
from ..formats import names
from ..installed import INSTALLED, place_of
from . import checker, shown, unanswered

LIBRARIES = ("gguf", "tokenizers")
LEAVES = ("A", "B")


def needs(name: str) -> None:
    """Say which model follows; or in a sentence what it takes, and then only the exercises run.

    In a notebook every cell below that calls no check does nothing; elsewhere the program ends here.
    """
    missing = [INSTALLED[name].command] if place_of(name) is None else []
    if not all(map(find_spec, LIBRARIES)):
        missing.append('pip install "lora_np[checkpoints]"')
    if not missing:
        print(f"{name} is here: {INSTALLED[name].about}")
        return
    said = f"Skipped, all but the exercises: {name} is not here. {' and '.join(missing)}, then start again."
    shell = _shell()
    if shell is None:
        raise SystemExit(said)
    print(said)
    shell.input_transformers_post.append(only_exercises)


def only_exercises(lines: list[str]) -> list[str]:
    """The lines of a cell that calls a check; of any other cell, nothing."""
    return lines if any("check_" in line for line in lines) else ["pass\n"]


def _shell() -> Any:
    """The notebook's or the terminal's IPython, where there is one."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


# ---------------------------------------------------------------------------------------------------------- checks


@checker
def check_trained(answer: Any, config: TransformerConfig, rank: int) -> None:
    """How many numbers LoRA of this rank trains on the queries and values of a model whose heads share keys."""
    about = f"{config.layers} blocks, d_model {config.d_model}, {config.heads} heads"
    if unanswered(answer, f"the numbers that LoRA of rank {rank} trains on q and v: {about}, {config.kv_heads} of v"):
        return
    layers, d, k, q = config.layers, config.d_model, config.d_keys, config.d_queries
    right = lora_count(config, rank, "qv")
    hints = {
        layers * rank * 4 * d: f"v has no {d} rows here: {config.kv_heads} heads of {config.d_head}, which is {k}",
        right // layers: f"that is one block; there are {layers}",
        layers * rank * 2 * d: "that is every A; each has a B beside it",
        layers * rank * (q + k): "that is every B; each has an A beside it",
        layers * rank * (d + q): "that is q alone",
        layers * rank * (d + k): "that is v alone",
        lora_count(config, rank, "qkvo"): "that is q, k, v and the output map; asked for are q and v",
        right // rank: f"that is rank 1; the rank is {rank}",
        layers * (d * q + d * k): "that is what q and v hold themselves; A and B are thin",
        adapter_bytes(right, "float32"): "that is their bytes in float32; asked for are numbers",
        parameter_count(config): "that is the whole model, which stays frozen",
    }
    assert _is_number(answer), f"the answer is a number, got {shown(answer)}"
    for wrong, hint in hints.items():
        assert answer == right or answer != wrong, f"{answer:,} is not it: {hint}"
    assert answer == right, f"{answer:,} is not it: each map of each block costs rank · (d_in + d_out)"
    print(f"Right: {right:,} numbers, {right / parameter_count(config):.2%} of the model.")


@checker
def check_bits_per_byte(answer: Any, nats: float, tokens: int, size: int) -> None:
    """Bits per byte of a text of `size` bytes, cut into so many tokens of which each costs so many nats."""
    if unanswered(answer, f"bits per byte of {size} bytes in {tokens} tokens, at {nats} nats a token"):
        return
    assert _is_number(answer), f"the answer is a number, got {shown(answer)}"
    total = nats * tokens / math.log(2.0)
    right = total / size
    hints = {
        nats * tokens / size: "those are nats a byte; one bit is ln 2 nats",
        nats * tokens * math.log(2.0) / size: "a bit is less than a nat, so there are more of them: divide by ln 2",
        nats / math.log(2.0): "those are bits a token; a token is several bytes",
        total * size / tokens**2: "that is bits a token times bytes a token; divide by them",
        total: "those are the bits of the whole text; asked for are bits a byte",
        nats: "that is what it costs a token, in nats",
    }
    for wrong, hint in hints.items():
        assert _close(answer, right) or not _close(answer, wrong), f"{answer:.4g} is not it: {hint}"
    assert _close(answer, right), f"{answer:.4g} is not it: all the bits of the text, by all of its bytes"
    print(f"Right: {right:.4f} bits per byte.")


@checker
def check_names(answer: Any, layers: int = 30) -> None:
    """A function from our name of a factor to the one under which a PEFT folder of a Llama holds it."""
    task = 'theirs("blocks.7.attention.value.A"), the name in a PEFT folder; for q, k, v and output, A and B'
    if unanswered(answer, task):
        return
    assert callable(answer), f"the answer is a function of a name, got {shown(answer)}"
    for ours, right in _names(layers).items():
        found = answer(ours)
        assert isinstance(found, str), f"theirs({ours!r}) must be a text, got {shown(found)}"
        if found != right:
            raise AssertionError(f"theirs({ours!r}) gives {found!r}: {_what_is_wrong(found, right)}")
    print(f"Right: {len(_names(layers))} names of factors in {layers} blocks.")


def _names(layers: int) -> dict[str, str]:
    stems = {
        entry.ours.removesuffix(".W"): entry.theirs.removesuffix(".weight")
        for entry in names.entries("llama", layers)
        if ".attention." in entry.ours and entry.ours.endswith(".W")
    }
    return {
        f"{ours}.{leaf}": f"base_model.model.{theirs}.lora_{leaf}.weight"
        for ours, theirs in stems.items()
        for leaf in LEAVES
    }


def _what_is_wrong(found: str, right: str) -> str:
    if found.replace(".default.", ".") == right:
        return "the name of the adapter stands in PEFT's memory, not in its file"
    if "." not in found:
        return "a name is made of parts with dots between"
    if not right.startswith(found.split(".")[0] + "."):
        return "every name begins with base_model.model, which is PEFT's, and then the model's own model.layers"
    if f"{found}.weight" == right:
        return "the name of a tensor ends with .weight"
    parts, wanted = found.split("."), right.split(".")
    if len(parts) != len(wanted):
        return f"it has {len(parts)} parts between dots, and theirs have {len(wanted)}"
    place = next(i for i, (one, other) in enumerate(zip(parts, wanted, strict=True)) if one != other)
    return f"part {place + 1} is not {parts[place]!r}"


def _is_number(answer: Any) -> bool:
    return isinstance(answer, int | float | np.number) and not isinstance(answer, bool)


def _close(one: float, other: float) -> bool:
    """So near that ln 2 may be written with three digits, 0.693, which is 2e-4 off."""
    return math.isclose(one, other, rel_tol=2e-3)
