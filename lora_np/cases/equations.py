r"""What a layer with an adapter computes, equation by equation, in plain `autograd.numpy`: the book of the vectors.

    s = α/r, or α/√r                                                               (K1)
    y = W x + b + s·BA(x ⊙ mask)                                                   (K2)    gradients: of Σ dy·y
    Ŵ = W + s·BA                                                                   (K3)
    V = W + s·BA,  n = ‖V‖ row by row,  y = (m/n)(V x) + b,  Ŵ = (m/n) V           (K4)    DoRA

`Rules` holds each of them as one function of its own, so that a fault is the exchange of one: `lora_np.conformance`
does that to every row of `lora_np.cases.vectors`. Nothing of `lora_np.operations` is used here.

Sources: Hu et al. 2021, arXiv:2106.09685, equation 3; Kalajdzievski 2023, arXiv:2312.03732, for the root in (K1);
Liu et al. 2024, arXiv:2402.09353, equations 5 and 6, and section 4.3 for n as a constant in the gradient.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
from autograd.tracer import getval

from ..engine.arrays import Array

Settings = Mapping[str, Any]
Arrays = Mapping[str, Any]


def of_module(settings: Settings, pattern: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the module's path, else the general one."""
    for key, value in settings.get(pattern, {}).items():
        if re.match(rf"(.*\.)?({key})$", settings.get("module", "")):
            return value
    return default


def scale(settings: Settings) -> float:
    """(K1)."""
    r = of_module(settings, "rank_pattern", settings["r"])
    alpha = of_module(settings, "alpha_pattern", settings["lora_alpha"])
    return float(alpha / (np.sqrt(r) if settings.get("use_rslora") else r))


def oriented(M: Any, settings: Settings) -> Any:
    """Between (d_out, d_in) and how the base stores it, in either direction."""
    return M.T if settings.get("fan_in_fan_out") else M


def branch_input(x: Any, mask: Any, settings: Settings) -> Any:
    """What the low-rank branch reads: dropped entries are 0, the others divided by 1 - p; all of x when evaluating."""
    return x if mask is None or not settings["training"] else x * mask / (1.0 - settings["lora_dropout"])


def row_norm(V: Any, W: Any) -> Any:
    return anp.sqrt(anp.sum(V * V, axis=1))


def with_magnitude(V: Any, n: Any, m: Any, W: Any) -> Any:
    """(K4), the last equation."""
    return (m / n)[:, None] * V


def expert_factors(A: Any, B: Any, e: int, experts: int, packing: str) -> tuple[Any, Any]:
    """A (rank, d_in) and B (d_out, rank) of expert e.

    peft     A (E·rank, d_in), the expert slowest; B (d_out, rank·E), the expert fastest
    stacked  A (E, rank, d_in), B (E, d_out, rank)
    """
    if packing == "stacked":
        return A[e], B[e]
    return A[e * (len(A) // experts) : (e + 1) * (len(A) // experts)], B[:, e::experts]


def rows_of(part: int, sizes: list[int], layout: str) -> Any:
    """Which rows of a fused matrix belong to a part."""
    if layout == "interleaved":
        return np.arange(part, sum(sizes), len(sizes))
    return np.arange(sum(sizes[:part]), sum(sizes[: part + 1]))


def group(A: Any, B: Any, k: int, groups: int) -> tuple[Any, Any]:
    """A (groups·rank, d_in) and B (groups·d, rank), as loralib packs them: the group is slowest in both."""
    return A[k * (len(A) // groups) : (k + 1) * (len(A) // groups)], B[
        k * (len(B) // groups) : (k + 1) * (len(B) // groups)
    ]


def stored_merge(W: Any, A: Any, B: Any, s: float, stored: str) -> Any:
    """(K3) of a base in 16 bits and factors in float32, before the only rounding."""
    return W + s * (B @ A)


@dataclass(frozen=True)
class Rules:
    """One function for each equation that an implementation can get wrong."""

    scale: Callable[[Settings], float] = scale
    product: Callable[[Any, Any], Any] = lambda A, B: anp.dot(B, A)
    branch_scale: Callable[[float], float] = lambda s: s  # as the layer uses it beside the base
    merge_scale: Callable[[float], float] = lambda s: s  # as it is merged
    oriented: Callable[[Any, Settings], Any] = oriented  # of the base, and of the update when it is merged
    merged: Callable[[Any, Any], Any] = lambda W, D: W + D
    branch_input: Callable[[Any, Any, Settings], Any] = branch_input
    base_input: Callable[[Any, Any], Any] = lambda x, mask: x
    bias: Callable[[Any, Any], Any] = lambda b, trained: b if trained is None else trained
    shift: Callable[[Any, float], Any] = lambda lora_b, s: s * lora_b  # of the output, and of the merged bias
    norm: Callable[[Any, Any], Any] = row_norm
    with_magnitude: Callable[[Any, Any, Any, Any], Any] = with_magnitude
    held: Callable[[Any, Settings], Any] = lambda n, settings: getval(n) if settings["norm"] == "constant" else n
    table: Callable[[Any], Any] = lambda D: D.T  # ΔW of a table (vocab, d) out of BA (d, vocab)
    head: Callable[[Any, Any], Any] = lambda W, adapted: adapted  # which table a tied head reads
    replaced: Callable[[Any, Any], Any] = lambda old, new: new
    rows_order: Callable[[Any], Any] = lambda indices: indices
    expert_factors: Callable[[Any, Any, int, int, str], tuple[Any, Any]] = expert_factors
    rows_of: Callable[[int, list[int], str], Any] = rows_of
    group: Callable[[Any, Any, int, int], tuple[Any, Any]] = group
    chosen: Callable[[Any, int], Any] = lambda which, adapters: which
    settings_of: Callable[[Settings, int], Settings] = lambda settings, k: settings["adapters"][k]
    stored_merge: Callable[[Any, Any, Any, float, str], Any] = stored_merge


RULES = Rules()


def answers(
    kind: str, settings: Settings, inputs: Arrays, wanted: Iterable[str], rules: Rules = RULES
) -> dict[str, Array]:
    """What `wanted` names: "scale"; "y", "logits"; "merged…"; and dA for the gradient of Σ dy·y + Σ dlogits·logits."""
    wanted, forward = tuple(wanted), FORWARD.get(kind)
    gradients = [name for name in wanted if name[0] == "d" and name[1:] in inputs]
    found: dict[str, Any] = {"scale": rules.scale(settings)} if "scale" in wanted else {}
    if forward is not None:
        found |= forward(inputs, settings, rules)
    if any(name.startswith("merged") for name in wanted):
        found |= MERGED[kind](inputs, settings, rules)
    if gradients:

        def loss(point: Arrays) -> Any:
            outputs = forward({**inputs, **point}, settings, rules)  # type: ignore[misc]
            return sum(anp.sum(inputs[f"d{name}"] * value) for name, value in outputs.items())

        point = {name[1:]: inputs[name[1:]] for name in gradients}
        found |= {f"d{name}": value for name, value in autograd.grad(loss)(point).items()}
    return {name: np.asarray(found[name], np.float64) for name in wanted}


# ------------------------------------------------------------------------------------------------------ one linear map


def _update(p: Arrays, rules: Rules, s: float) -> Any:
    return s * rules.product(p["A"], p["B"])


def _bias(p: Arrays, rules: Rules, s: float) -> Any:
    b = rules.bias(p["b"], p.get("trained_b")) if "b" in p else 0.0
    return b + rules.shift(p["lora_b"], s) if "lora_b" in p else b


def _linear(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    s, W = rules.branch_scale(rules.scale(settings)), rules.oriented(p["W"], settings)
    if "m" in p:
        V = W + _update(p, rules, s)
        n = rules.held(rules.norm(V, W), settings)
        return {"y": anp.dot(p["x"], rules.with_magnitude(V, n, p["m"], W).T) + _bias(p, rules, s)}
    x, base = rules.branch_input(p["x"], p.get("mask"), settings), rules.base_input(p["x"], p.get("mask"))
    return {"y": anp.dot(base, W.T) + anp.dot(x, _update(p, rules, s).T) + _bias(p, rules, s)}


def _linear_merged(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    s = rules.merge_scale(rules.scale(settings))
    D = _update(p, rules, s)
    found = {"merged": rules.merged(p["W"], oriented(D, settings) if "m" in p else rules.oriented(D, settings))}
    if "m" in p:
        V, W = rules.oriented(found["merged"], settings), rules.oriented(p["W"], settings)
        found["merged"] = rules.oriented(rules.with_magnitude(V, rules.norm(V, W), p["m"], W), settings)
    return {**found, "merged_b": _bias(p, rules, s)}


# ------------------------------------------------------------------------------------------------------- token tables


def _table(p: Arrays, settings: Settings, rules: Rules, s: float) -> Any:
    return rules.merged(p["W"], rules.table(_update(p, rules, s)))


def _embedding(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    s = rules.branch_scale(rules.scale(settings))
    table = p["W"] + rules.table(_update(p, rules, s))
    found = {"y": table[p["tokens"]]}
    if "x" in p:
        found["logits"] = anp.dot(p["x"], rules.head(p["W"], table).T)
    return found


def _embedding_merged(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    table = _table(p, settings, rules, rules.merge_scale(rules.scale(settings)))
    return {"merged": table, "merged_head": rules.head(p["W"], table)}


def _with_rows(p: Arrays, rules: Rules) -> Any:
    """The table with some rows in the place of its own."""
    indices = rules.rows_order(p["indices"])
    place = (np.arange(len(p["W"]))[:, None] == indices).astype(np.float64)  # (vocab, n)
    old, new = anp.dot(place.T, p["W"]), p["rows"]
    return p["W"] * (1.0 - place.sum(axis=1))[:, None] + anp.dot(place, rules.replaced(old, new))


def _tokens(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    table = _with_rows(p, rules)
    found = {"y": table[p["tokens"]]}
    if "x" in p:
        found["logits"] = anp.dot(p["x"], rules.head(p["W"], table).T)
    return found


def _tokens_merged(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    table = _with_rows(p, rules)
    return {"merged": table, "merged_head": rules.head(p["W"], table)}


# ------------------------------------------------------------------------------------- several maps in one, and several
# adapters beside one


def _expert_updates(p: Arrays, settings: Settings, rules: Rules, s: float) -> Any:
    E = len(p["W"])
    pairs = [rules.expert_factors(p["A"], p["B"], e, E, settings["packing"]) for e in range(E)]
    return anp.stack([s * rules.product(A, B) for A, B in pairs])


def _experts(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    W = p["W"] + _expert_updates(p, settings, rules, rules.branch_scale(rules.scale(settings)))
    return {"y": anp.matmul(p["x"], anp.swapaxes(W, 1, 2))}


def _experts_merged(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    return {
        "merged": rules.merged(p["W"], _expert_updates(p, settings, rules, rules.merge_scale(rules.scale(settings))))
    }


def _fused_update(p: Arrays, settings: Settings, rules: Rules, s: float) -> Any:
    """ΔW of a fused matrix (Σ sizes, d_in), from an adapter for some of its parts."""
    parts, sizes = settings["parts"], settings["sizes"]
    adapted = settings["adapted"]
    D = 0.0
    for k, part in enumerate(adapted):
        if "A" in p:
            A, B = rules.group(p["A"], p["B"], k, len(adapted))
        else:
            A, B = p[f"A.{part}"], p[f"B.{part}"]
        rows = rules.rows_of(parts.index(part), sizes, settings["layout"])
        place = (np.arange(sum(sizes))[:, None] == rows).astype(np.float64)  # (Σ sizes, d)
        D = D + anp.dot(place, s * rules.product(A, B))
    return D


def _fused(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    s = rules.branch_scale(rules.scale(settings))
    W = rules.oriented(p["W"], settings) + _fused_update(p, settings, rules, s)
    return {"y": anp.dot(p["x"], W.T)}


def _fused_merged(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    D = _fused_update(p, settings, rules, rules.merge_scale(rules.scale(settings)))
    return {"merged": rules.merged(p["W"], rules.oriented(D, settings))}


def _mixed(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    adapters = len(settings["adapters"])
    which = rules.chosen(p["which"], adapters)
    y = anp.dot(p["x"], p["W"].T)
    for k in range(adapters):
        s = rules.branch_scale(rules.scale(rules.settings_of(settings, k)))
        D = s * rules.product(p[f"A.{k}"], p[f"B.{k}"])
        y = y + (which == k)[:, None] * anp.dot(p["x"], D.T)
    return {"y": y}


def _stored_merged(p: Arrays, settings: Settings, rules: Rules) -> dict[str, Any]:
    s = rules.merge_scale(rules.scale(settings))
    return {"merged": rules.stored_merge(p["W"], p["A"], p["B"], s, settings["stored"])}


Equation = Callable[[Arrays, Settings, Rules], dict[str, Any]]
FORWARD: dict[str, Equation] = {
    "linear": _linear, "dora": _linear, "embedding": _embedding, "tied": _embedding, "tokens": _tokens,
    "experts": _experts, "fused": _fused, "grouped": _fused, "mixed": _mixed,
}  # fmt: skip
MERGED: dict[str, Equation] = {
    "linear": _linear_merged, "dora": _linear_merged, "embedding": _embedding_merged, "tied": _embedding_merged,
    "tokens": _tokens_merged, "experts": _experts_merged, "fused": _fused_merged, "grouped": _fused_merged,
    "cast": _stored_merged,
}  # fmt: skip
