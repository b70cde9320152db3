r"""Historic bugs as changes of one equation each, and which vectors notice them.

A mutant is `lora_np.cases.equations.RULES` with one function exchanged. It is killed by a vector when what it computes
is judged wrong there, or when it cannot compute it. `reports` are threads that describe such a fault in a program that
people use; a mutant without one was planted because nothing stands in its way. What a vector catches, as its file
says, is what this table computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.tracer import getval

from ..cases import equations
from ..cases.equations import RULES, Rules, Settings, answers
from ..cases.vectors import Vector
from .running import Arrays, Case, judge


@dataclass(frozen=True)
class Mutant:
    """A fault in words, threads that report it, REPOSITORY#NUMBER, and the equations that have it."""

    words: str
    reports: tuple[str, ...]
    rules: Rules


def _mutant(words: str, *reports: str, **exchanged: Callable[..., Any]) -> Mutant:
    return Mutant(words, reports, replace(RULES, **exchanged))


def _without(pattern: str) -> Callable[[Settings], float]:
    """(K1) without one of the patterns."""
    return lambda settings: equations.scale({**settings, pattern: {}})


def _any_ending(settings: Settings) -> float:
    ends = {
        p: {f".*{key}": value for key, value in settings.get(p, {}).items()} for p in ("rank_pattern", "alpha_pattern")
    }
    return equations.scale({**settings, **ends})


def _last_pattern(settings: Settings) -> float:
    turned = {p: dict(reversed(settings.get(p, {}).items())) for p in ("rank_pattern", "alpha_pattern")}
    return equations.scale({**settings, **turned})


def _always_dropped(x: Any, mask: Any, settings: Settings) -> Any:
    """Dropout that does not ask whether it is training: of a mask of its own where none is given."""
    p = settings["lora_dropout"]
    return x if p == 0.0 else x * (np.arange(x.shape[-1]) % 2 if mask is None else mask) / (1.0 - p)


def _cut(x: Any, stored: str) -> Any:
    """Numbers rounded to the type that the base is stored in."""
    if stored == "float16":
        return x.astype(np.float16).astype(np.float64)
    bits = np.asarray(x, np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


_dot = anp.dot
_rows, _factors, _group = equations.rows_of, equations.expert_factors, equations.group

MUTANTS: dict[str, Mutant] = {
    "alpha/r forgotten": _mutant(
        "the update is added as it is", "AnswerDotAI/fsdp_qlora#68", scale=lambda s: 1.0
    ),
    "alpha alone": _mutant(
        "s = α", "Blaizzy/mlx-vlm#845", "rasbt/LLMs-from-scratch#821",
        scale=lambda s: equations.scale({**s, "r": 1, "rank_pattern": {}}),
    ),
    "r in place of its root": _mutant(
        "s = α/r for an rsLoRA adapter", "NVIDIA/TensorRT-LLM#1668", "sgl-project/sglang#40835",
        scale=lambda s: equations.scale({**s, "use_rslora": False}),
    ),
    "root of r everywhere": _mutant("s = α/√r for all", scale=lambda s: equations.scale({**s, "use_rslora": True})),
    "r/alpha": _mutant("s upside down", scale=lambda s: 1.0 / equations.scale(s)),
    "rank pattern ignored": _mutant(
        "s from the general r", "vllm-project/vllm-omni#6565", scale=_without("rank_pattern")
    ),
    "alpha pattern ignored": _mutant(
        "s from the general lora_alpha", "vllm-project/vllm-omni#6565", "huggingface/peft#2195",
        scale=_without("alpha_pattern"),
    ),
    "pattern matches any ending": _mutant("my_q_proj is taken for q_proj", scale=_any_ending),
    "last pattern wins": _mutant("of two patterns that match, the second counts", scale=_last_pattern),
    "A and B exchanged": _mutant("A B in place of B A", "paiml/aprender#2138", product=lambda A, B: _dot(A, B)),
    "update transposed": _mutant(
        "(BA)ᵀ in place of BA: factors of another layout", "osaurus-ai/vmlx-swift#320",
        product=lambda A, B: _dot(B, A).T,
    ),
    "one rank lost": _mutant(
        "the last column of B and row of A are left out", product=lambda A, B: _dot(B[:, :-1], A[:-1])
    ),
    "fan_in_fan_out ignored": _mutant(
        "the base is read as (d_out, d_in) whatever it is", "microsoft/LoRA#103", "axolotl-ai-cloud/axolotl#3095",
        oriented=lambda M, s: M,
    ),
    "merged transposed": _mutant(
        "the merge adds the transpose of the update", "microsoft/LoRA#61", "predibase/lorax#106",
        merged=lambda W, D: W + anp.swapaxes(D, -1, -2),
    ),
    "merged twice": _mutant("W + 2ΔW", "huggingface/peft#1355", merged=lambda W, D: W + 2.0 * D),
    "not merged": _mutant(
        "what is saved is the base", "huggingface/trl#386", "ml-explore/mlx-examples#425", "Lightning-AI/lit-llama#185",
        merged=lambda W, D: W + 0.0 * D,
    ),
    "merged with the wrong sign": _mutant("W - ΔW", merged=lambda W, D: W - D),
    "scale forgotten in the merge": _mutant(
        "W + BA", "hao-ai-lab/FastVideo#870", "paiml/aprender#2189", merge_scale=lambda s: 1.0
    ),
    "scale twice in the merge": _mutant("W + s²BA", merge_scale=lambda s: s * s),
    "scale twice in the layer": _mutant("s once in A and once behind B", branch_scale=lambda s: s * s),
    "dropout when evaluating": _mutant(
        "a layer that does not ask whether it is training", "meta-pytorch/torchtune#1049", branch_input=_always_dropped
    ),
    "dropout never applied": _mutant(
        "the setting is read and not used", "meta-pytorch/torchtune#996", "huggingface/peft#1806",
        "AnswerDotAI/fsdp_qlora#68",
        branch_input=lambda x, mask, s: x,
    ),
    "dropout not rescaled": _mutant(
        "what is kept is not divided by 1 - p", branch_input=lambda x, mask, s: x if mask is None else x * mask
    ),
    "dropout before the base": _mutant(
        "the base reads what was dropped, too", base_input=lambda x, mask: x if mask is None else 2.0 * x * mask
    ),
    "bias of B unscaled": _mutant(
        "b + b_B in place of b + s·b_B", "huggingface/peft#2486", "huggingface/peft#3741", shift=lambda b, s: b
    ),
    "bias of B forgotten": _mutant("b alone", shift=lambda b, s: 0.0 * b),
    "trained bias forgotten": _mutant(
        "the bias of the base in place of the adapter's", "huggingface/peft#3306", bias=lambda b, trained: b
    ),
    "norm along the wrong axis": _mutant(
        "DoRA: a norm for each input", "huggingface/peft#1588", "huggingface/peft#3531",
        norm=lambda V, W: anp.sqrt(anp.sum(V * V, axis=0)),
    ),
    "norm of the base": _mutant("DoRA: ‖W‖ in place of ‖W + ΔW‖", norm=lambda V, W: anp.sqrt(anp.sum(W * W, axis=1))),
    "norm not rooted": _mutant("DoRA: ‖V‖²", norm=lambda V, W: anp.sum(V * V, axis=1)),
    "magnitude dropped": _mutant(
        "DoRA merged as plain LoRA", "unslothai/unsloth-zoo#828", with_magnitude=lambda V, n, m, W: V + 0.0 * m[:, None]
    ),
    "magnitude of the update alone": _mutant(
        "DoRA: W + (m/n)ΔW", with_magnitude=lambda V, n, m, W: W + (m / n)[:, None] * (V - W)
    ),
    "norm held constant": _mutant(
        "DoRA: no gradient through the norm, where it was asked for", held=lambda n, s: getval(n)
    ),
    "norm differentiated": _mutant(
        "DoRA: a gradient through the norm, where a constant was asked for", "huggingface/peft#1474",
        held=lambda n, s: n,
    ),
    "table not transposed": _mutant("an embedding gets BA in place of (BA)ᵀ", table=lambda D: D),
    "head reads the base": _mutant(
        "a tied head that does not see the adapted table", "huggingface/peft#2399", "eole-nlp/eole#265",
        "ggml-org/llama.cpp#9065", head=lambda W, adapted: W + 0.0 * adapted,
    ),
    "trained rows added": _mutant("to the rows that they replace", replaced=lambda old, new: old + new),
    "trained rows sorted": _mutant("by their tokens, though the file has another order", rows_order=np.sort),
    "expert slowest in B": _mutant(
        "B packed as A is", "unslothai/unsloth-zoo#1269", "unslothai/unsloth#6930",
        expert_factors=lambda A, B, e, n, packing: (
            _factors(A, B, e, n, packing)[0], B[e] if packing == "stacked" else _group(B.T, B, e, n)[0].T
        ),
    ),
    "expert fastest in A": _mutant(
        "A packed as B is", expert_factors=lambda A, B, e, n, packing: (
            A[e::n] if packing == "peft" else A[e], _factors(A, B, e, n, packing)[1]
        ),
    ),
    "experts in reverse": _mutant(
        "the adapter of another expert",
        expert_factors=lambda A, B, e, n, packing: _factors(A, B, n - 1 - e, n, packing),
    ),
    "gate and up exchanged": _mutant(
        "up before gate", "sgl-project/sglang#34940",
        rows_of=lambda k, sizes, layout: _rows(len(sizes) - 1 - k, sizes, layout),
    ),
    "up over gate": _mutant(
        "both updates at the rows of the first", "thinking-machines-lab/tinker-cookbook#457",
        rows_of=lambda k, sizes, layout: _rows(0, sizes, layout),
    ),
    "interleaved read as concatenated": _mutant(
        "rows that take turns are taken for blocks", "Lightning-AI/litgpt#900",
        rows_of=lambda k, sizes, layout: _rows(k, sizes, "concatenated"),
    ),
    "parts of equal size": _mutant(
        "keys and values are taken to be as many as queries", "Lightning-AI/litgpt#2201", "vllm-project/vllm#36603",
        rows_of=lambda k, sizes, layout: k * (sum(sizes) // len(sizes)) + np.arange(sizes[k]),
    ),
    "parts that are not adapted closed up": _mutant(
        "v at the rows of k",
        rows_of=lambda k, sizes, layout: _rows(min(k, 1), sizes, layout),
    ),
    "every group reads the first A": _mutant(
        "B of up with A of gate", "sgl-project/sglang#27274",
        group=lambda A, B, k, n: (_group(A, B, 0, n)[0], _group(A, B, k, n)[1]),
    ),
    "one adapter for the batch": _mutant(
        "that of the first row", chosen=lambda which, n: 0 * which + which[0]
    ),
    "adapter of another row": _mutant(
        "rows and adapters are off by one", "predibase/lorax#62", chosen=lambda which, n: np.roll(which, 1)
    ),
    "rows without an adapter get one": _mutant(
        "-1 is taken for the first", chosen=lambda which, n: np.maximum(which, 0)
    ),
    "one scale for all adapters": _mutant("that of the first", settings_of=lambda settings, k: settings["adapters"][0]),
    "factors rounded first": _mutant(
        "A and B go to the 16 bits of the base before they are multiplied",
        stored_merge=lambda W, A, B, s, stored: W + s * (_cut(B, stored) @ _cut(A, stored)),
    ),
    "merged through float16": _mutant(
        "a bfloat16 base is rounded to float16 on the way", "axolotl-ai-cloud/axolotl#902",
        stored_merge=lambda W, A, B, s, stored: _cut(_cut(W.astype(np.float64), "float16") + s * (B @ A), "float16"),
    ),
}  # fmt: skip


def run_of(mutant: Mutant) -> Callable[[Case], Arrays]:
    """The mutant as an implementation under test."""
    return lambda case: answers(case.kind, case.settings, case.inputs, case.wanted, mutant.rules)


def killed(vectors: Sequence[Vector], dtype: str = "float64") -> dict[str, dict[str, str]]:
    """For each mutant the vectors that kill it in this type, or in the only one they have, and how."""
    table: dict[str, dict[str, str]] = {}
    for name, mutant in MUTANTS.items():
        run = run_of(mutant)
        table[name] = {}
        for vector in vectors:
            asked = dtype if dtype in vector.dtypes else vector.dtypes[0] if len(vector.dtypes) == 1 else None
            if vector.refused or asked is None:
                continue
            with np.errstate(all="ignore"):
                result = judge(run, vector, asked)
            if result.fails:
                table[name][vector.name] = result.why
    return table


def catches(table: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The same by vector: what each catches."""
    names = {vector for row in table.values() for vector in row}
    return {name: tuple(mutant for mutant, row in table.items() if name in row) for name in names}
