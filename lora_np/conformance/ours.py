r"""This package as an implementation under test: the vectors a second time, by derivations and by what merges files.

Forward and gradients come from `lora_np.operations`, s and the checks of ranks from the reader of PEFT's settings, and
merged tensors from `lora_np.formats.updates`, as `lora-np merge` writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np

from ..engine.differentiation import value_and_grad
from ..formats.grammar import settings as read_settings
from ..formats.updates import LowRank, Magnitude, Shift, TokenRows, Update
from ..lora import LoraEmbedding, LoraLinear
from ..model import Embedding, Linear
from ..operations import dora_linear, embedding, linear, lora_linear, replaced_rows
from .running import Arrays, Case

Parts = tuple[LowRank, ...]


def run(case: Case) -> Arrays:
    """What the case wants, in the type of its inputs; raises ValueError for what must be refused."""
    p, settings = case.inputs, case.settings
    check(case)
    s = 0.0 if case.kind in ("tokens", "mixed") else factor(settings, settings.get("module", ""), rank_of(case))
    found: dict[str, Any] = {"scale": s}
    names = [name[1:] for name in case.wanted if name[0] == "d" and name[1:] in p]
    if names:

        def loss(point: dict[str, Any]) -> Any:
            outputs = FORWARD[case.kind]({**p, **point}, settings, s)
            return sum(anp.sum(p[f"d{name}"] * value) for name, value in outputs.items())

        _, gradient = value_and_grad(loss)({name: p[name] for name in names})
        found |= {f"d{name}": value for name, value in gradient.items()}
    if case.kind in FORWARD:
        found |= FORWARD[case.kind](p, settings, s)
    if any(name.startswith("merged") for name in case.wanted):
        found |= merged(case, s)
    return {name: np.asarray(found[name]) for name in case.wanted}


def check(case: Case) -> None:
    """What no shape shows."""
    p, settings = case.inputs, case.settings
    for name, array in p.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got a number that is not: merged, it would spoil the base")
    if "lora_alpha" not in settings:
        raise ValueError("lora_alpha must be given: without it the scale of this adapter is not known")
    if settings.get("use_dora") and p.get("m", np.zeros(0)).shape != p["B"].shape[:1]:
        raise ValueError("use_dora needs a magnitude for each output")
    if "lora_b" in p and "b" not in p:
        raise ValueError("a bias of B needs a base with a bias to be merged into")
    if "indices" in p and len(set(p["indices"].tolist())) < len(p["indices"]):
        raise ValueError("each token must have one trained row, got two for one")
    if "which" in p and not (p["which"] < len(settings["adapters"])).all():
        raise ValueError(f"there are {len(settings['adapters'])} adapters, and a row asks for another one")
    if case.kind == "experts" and settings["packing"] == "peft" and len(p["A"]) % len(p["W"]):
        raise ValueError(f"{len(p['A'])} rows of A are not shared by {len(p['W'])} experts")


def factor(settings: Any, module: str, rank: int) -> float:
    """s, by the rules of PEFT's settings; raises ValueError where they say another rank than the tensors have."""
    known = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    config = {"peft_type": "LORA", **{name: settings[name] for name in known if name in settings}}
    s, said = read_settings(config, "the case").factor(module, rank)
    if said != rank:
        raise ValueError(f"the settings say rank {said}, but A has rank {rank}")
    return s


def rank_of(case: Case) -> int:
    """The rank of one adapter, by its tensors."""
    A = next(array for name, array in case.inputs.items() if name.partition(".")[0] == "A")
    if case.kind == "experts":
        return A.shape[1] if A.ndim == 3 else len(A) // len(case.inputs["W"])
    return len(A) // (len(case.settings["adapted"]) if case.kind == "grouped" else 1)


# ------------------------------------------------------------------------------------------------- beside the base


def _stored(p: Any, settings: Any) -> Any:
    return p["W"].T if settings.get("fan_in_fan_out") else p["W"]


def _linear(p: Any, settings: Any, s: float) -> dict[str, Any]:
    W, b = _stored(p, settings), p.get("trained_b", p.get("b"))
    LoraLinear(Linear(W, None), _plain(p["A"]), _plain(p["B"]), s)  # whose shapes are checked
    mask = p["mask"] / (1.0 - settings["lora_dropout"]) if settings["training"] and "mask" in p else None
    if not settings.get("use_dora"):
        y = lora_linear(p["x"], W, b, p["A"], p["B"], s, mask)
        return {"y": y + s * p["lora_b"] if "lora_b" in p else y}
    if settings["norm"] == "differentiated":
        return {"y": dora_linear(p["x"], W, b, p["A"], p["B"], p["m"], s)}
    V = W + s * (_plain(p["B"]) @ _plain(p["A"]))
    y = lora_linear(p["x"], W, None, p["A"], p["B"], s, None)
    return {"y": y * (p["m"] / np.sqrt((V * V).sum(axis=1))) + b}


def _plain(array: Any) -> Any:
    return getattr(array, "_value", array)


def _embedding(p: Any, settings: Any, s: float) -> dict[str, Any]:
    adapted = LoraEmbedding(Embedding(p["W"]), p["A"], p["B"], s)
    return {"y": adapted(p["tokens"])} | ({"logits": adapted.as_head()(p["x"])} if "x" in p else {})


def _tokens(p: Any, settings: Any, s: float) -> dict[str, Any]:
    """The trained rows take the places of their tokens, which are given ids behind all words of the table."""
    vocab, at = len(p["W"]), {int(token): k for k, token in enumerate(p["indices"])}
    ids = np.array([vocab + at[int(t)] if int(t) in at else int(t) for t in range(vocab)])
    table = replaced_rows(p["W"], p["rows"], ids, vocab)
    found = {"y": embedding(p["tokens"], table)}
    return found | ({"logits": linear(p["x"], table, None)} if "x" in p else {})


def _experts(p: Any, settings: Any, s: float) -> dict[str, Any]:
    E, r = len(p["W"]), settings["r"]
    if settings["packing"] == "stacked":
        pairs = [(p["A"][e], p["B"][e]) for e in range(E)]
    else:
        B = anp.reshape(p["B"], (-1, r, E))
        pairs = [(anp.reshape(p["A"], (E, r, -1))[e], B[:, :, e]) for e in range(E)]
    y = [lora_linear(p["x"][e], p["W"][e], None, A, B, s, None) for e, (A, B) in enumerate(pairs)]
    return {"y": anp.stack(y)}


def _parts(p: Any, settings: Any) -> list[tuple[Any, Any, slice]]:
    """A, B and rows of every adapted part of a fused matrix."""
    names, sizes = settings["parts"], settings["sizes"]
    found = []
    for k, name in enumerate(settings["adapted"]):
        start, count = sum(sizes[: names.index(name)]), sizes[names.index(name)]
        rows = slice(start, start + count)
        if settings["layout"] == "interleaved":
            rows = slice(names.index(name), None, len(names))
        A, B = p.get(f"A.{name}"), p.get(f"B.{name}")
        if "A" in p:
            A, B = p["A"][k * settings["r"] : (k + 1) * settings["r"]], p["B"][k * count : (k + 1) * count]
        found.append((A, B, rows))
    return found


def _fused(p: Any, settings: Any, s: float) -> dict[str, Any]:
    W = _stored(p, settings)
    y = linear(p["x"], W, None)
    for A, B, rows in _parts(p, settings):
        place = np.zeros((len(W), len(W[rows])), W.dtype)
        place[rows] = np.eye(len(W[rows]), dtype=W.dtype)
        y = y + s * linear(linear(linear(p["x"], A, None), B, None), place, None)
    return {"y": y}


def _mixed(p: Any, settings: Any, s: float) -> dict[str, Any]:
    y = linear(p["x"], p["W"], None)
    for k, own in enumerate(settings["adapters"]):
        mine = p["which"] == k
        update = LoraLinear(Linear(p["W"], None), p[f"A.{k}"], p[f"B.{k}"], factor(own, "", len(p[f"A.{k}"])))
        y[mine] = update(p["x"][mine])
    return {"y": y}


FORWARD: dict[str, Callable[[Any, Any, float], dict[str, Any]]] = {
    "linear": _linear, "dora": _linear, "embedding": _embedding, "tied": _embedding, "tokens": _tokens,
    "experts": _experts, "fused": _fused, "grouped": _fused, "mixed": _mixed,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- merged into the base


def merged(case: Case, s: float) -> dict[str, Any]:
    """What `Update` makes of the base: the same lines that merge and verify the files of other programs."""
    p, settings = case.inputs, case.settings
    W, turned = p["W"], bool(settings.get("fan_in_fan_out"))
    tokens = TokenRows(p["indices"], p["rows"]) if "indices" in p else None
    m = Magnitude(p["m"], "columns" if turned else "rows") if settings.get("use_dora") else None
    matrix = (int(np.prod(W.shape[:-1])), W.shape[-1])
    if case.kind in ("fused", "grouped"):
        change = np.zeros_like(_stored(p, settings), np.float64)
        for A, B, rows in _parts(p, settings):
            change[rows] += LowRank(A, B, s).rows(0, len(B))
        found = W + (change.T if turned else change)
    else:
        parts = () if case.kind == "tokens" else _low_rank(case, s, turned)
        update = Update("W", W.shape, matrix, parts, magnitude=m, tokens=tokens).prepared(W)
        found = update.expected(W, slice(None)).reshape(W.shape)
    result = {"merged": found.astype(W.dtype), "merged_head": found.astype(W.dtype)}
    if "merged_b" in case.wanted:
        b = p.get("trained_b", p["b"])
        shift = Shift(p["lora_b"], s) if "lora_b" in p else None
        result["merged_b"] = Update("b", b.shape, (1, b.size), shift=shift).expected(b, slice(None))[0].astype(b.dtype)
    return result


def _low_rank(case: Case, s: float, turned: bool) -> Parts:
    A, B, W = (case.inputs[name] for name in "ABW")
    if case.kind == "experts":
        E, rows = W.shape[:2]
        return tuple(LowRank(A, B, s, at=e * rows, expert=e, experts=E) for e in range(E))
    return (LowRank(A, B, s, transposed=turned or case.kind in ("embedding", "tied")),)
