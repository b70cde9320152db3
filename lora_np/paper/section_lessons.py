r"""What "A Note on LoRA" tells, as experiments: where to put adapters, what to share, what comes out of it.

Source: Fomenko et al. 2024, arXiv:2404.05086, sections 1.1, 2.1, 2.3 and 3.
"""

from __future__ import annotations

from ..names import ATTENTION, MLP
from .asking import Claim, Known, Section, above_zero, all_hold, mean, no_worse, paired, shown, values
from .cells import Cell
from .entry import lora
from .methods import REST
from .telling import bars, every, losses, signed

NOTE = "A Note on LoRA, section"
WITHOUT_REGRET = "Schulman et al. 2025, LoRA Without Regret"


def _lora(cell: Cell, rank: int, targets: object, **more: object) -> Cell:
    return cell.having({"rank": rank, "targets": targets, **more}, method="lora", rate=REST)


def placement(known: Known) -> Section:
    """Attention, MLP, both, embeddings at nearly one budget; and one kind after another, with a rule to stop."""
    cell = known.profile.cell
    d = known.base.config.d_model
    width = (known.base.config.d_hidden + d) / d  # what a rank costs an MLP's map, in that of two of attention's
    of_mlp, table = round(4 * 4 / width), round(4 * 8 * d * known.base.config.layers / (known.base.config.vocab + d))
    rows = known.tuned(
        {
            "attention": _lora(cell, 4, ATTENTION),
            "MLP": _lora(cell, of_mlp, MLP),
            "attention and MLP": _lora(cell, 2, (*ATTENTION, *MLP)),
            "embedding": _lora(cell, min(table, d), "tokens", tied_head="tie"),
        }
    )
    steps = known.seeded({"": cell.having({"rank": 4}, kind="progressive", steps=3 * cell.steps // 2, rate=REST)})[""]
    at_once = [row.more["at once"] - (row.loss or 0.0) for row in steps]
    others = [name for name in rows if name != "attention and MLP"]
    best = min(others, key=lambda name: mean(rows[name]))
    claims = (
        Claim(
            "At one budget MLPs alone do better than attention alone.",
            WITHOUT_REGRET,
            above_zero(paired(rows["attention"], rows["MLP"])),
            f"attention less MLP: {signed(paired(rows['attention'], rows['MLP']))} bits per byte",
            every(rows, "attention", "MLP"),
        ),
        Claim(
            "Attention adds nothing to MLPs.",
            WITHOUT_REGRET,
            no_worse(rows["MLP"], rows["attention and MLP"]),
            f"MLP less both: {signed(paired(rows['MLP'], rows['attention and MLP']))} bits per byte",
            every(rows, "MLP", "attention and MLP"),
        ),
        Claim(
            "All matrices are the best place, at one budget.",
            f"{NOTE} 2.1",
            no_worse(rows["attention and MLP"], rows[best]),
            f"both less {best}, the best of the others: {signed(paired(rows['attention and MLP'], rows[best]))}",
            every(rows),
        ),
        Claim(
            "Attention first, then embeddings, then MLPs, as long as it helps, is no worse than all at once.",
            f"{NOTE} 2.1",
            above_zero(at_once),
            f"all at once less one after another: {signed(at_once)} bits per byte; stages kept: "
            f"{', '.join(str(row.more['stages']) for row in steps)} of 3",
            tuple(steps),
        ),
    )
    return Section(
        "placement",
        "Where adapters go",
        "LoRA at nearly one number of trained parameters. A stage that gains less than 2 % of the loss is the last.",
        claims,
        (losses("Placements", rows, "attention"),),
        {"placement": bars(rows)},
        {"placement": "Held-out loss by placement: mean and 95 % interval."},
    )


def heads(known: Known) -> Section:
    """Does LoRA on the un-embedding make LoRA on the embedding redundant?"""
    cell = known.profile.cell.having(kind="untied")
    qv = lora(4, "qv").targets
    assert isinstance(qv, str)
    rows = known.seeded(
        {
            "q, v": _lora(cell, 4, (qv,)),
            "q, v, embedding": _lora(cell, 4, (qv, "tokens"), tied_head="untie"),
            "q, v, un-embedding": _lora(cell, 4, (qv, "head")),
            "q, v and both": _lora(cell, 4, (qv, "tokens", "head"), tied_head="untie"),
        }
    )
    alone = paired(rows["q, v"], rows["q, v, embedding"])
    beside = paired(rows["q, v, un-embedding"], rows["q, v and both"])
    verdict = no_worse(rows["q, v, un-embedding"], rows["q, v and both"])
    claim = Claim(
        "LoRA on the un-embedding makes LoRA on the embedding redundant.",
        f"{NOTE} 2.1",
        verdict,
        f"the embedding gains {signed(alone)} bits per byte without it, and {signed(beside)} beside it",
        every(rows),
    )
    return Section(
        "heads",
        "Embedding and un-embedding",
        "The base with a head of its own, which starts as the token table; all at one learning rate.",
        (claim,),
        (losses("Embedding and un-embedding", rows, "q, v"),),
        {"heads": bars(rows)},
        {"heads": "Held-out loss with adapters on embedding and un-embedding."},
    )


def shared(known: Known) -> Section:
    """One B for queries, keys and values, in both readings of the letters, at one number of trained parameters."""
    cell = known.profile.cell
    qkv = ("attention.query", "attention.key", "attention.value")
    rows = known.tuned(
        {
            "three A, three B": _lora(cell, 4, qkv),
            "three A, one B": cell.having({"rank": 6}, method="shared-b", rate=REST),
            "one A, three B": cell.having({"rank": 6}, method="shared-a", rate=REST),
        }
    )
    own = rows["three A, three B"]
    claims = tuple(
        Claim(
            f"{name} lose nothing beside three of each, at one number of parameters.",
            f"{NOTE} 2.1; which matrix B is there is not said",
            no_worse(rows[name], own),
            f"less three of each: {signed(paired(rows[name], own))} bits per byte",
            every(rows, name, "three A, three B"),
        )
        for name in ("three A, one B", "one A, three B")
    )
    return Section(
        "shared",
        "One B for queries, keys and values",
        "A is what the input meets first, as in the paper. Rank 6 with one of them costs what rank 4 with three does.",
        claims,
        (losses("Sharing", rows, "three A, three B"),),
    )


def adaptive(known: Known) -> Section:
    """Ranks that are cut where they matter least, as it comes out."""
    cell = known.profile.cell.having({"rank": 2}, kind="pruned", rate=REST)
    rows = known.seeded({"": cell})[""]
    gaps = [row.more["rank 2"] - (row.loss or 0.0) for row in rows]
    kept = {name: shown(values(rows, f"kept of {name}"), 1) for name in ("query", "key", "value", "output")}
    claim = Claim(
        "Ranks adapted to the matrix do better than one rank for all, at the same budget.",
        f"{NOTE} 2.3",
        above_zero(gaps),
        f"rank 2 everywhere less 4 cut to 2 on average: {signed(gaps)} bits per byte; kept on average: "
        + ", ".join(f"{name} {text}" for name, text in kept.items()),
        tuple(rows),
    )
    about = "LoRA of rank 4 on all of attention; half way the smallest singular parts of all ΔW are cut, half of them."
    return Section("adaptive", "Ranks adapted by pruning", about, (claim,))


def carried(known: Known) -> Section:
    """An adapter beside an updated base."""
    cell = known.profile.cell.having({"rank": 4}, kind="carried", rate=REST)
    rows = known.seeded({"": cell})[""]

    def less(first: str, second: str) -> list[float]:
        return [a - b for a, b in zip(values(rows, first), values(rows, second), strict=True)]

    claims = (
        Claim(
            "An adapter loses when its base is updated.",
            f"{NOTE} 3",
            above_zero(less("carried", "loss")),
            f"on the updated base less on its own: {signed(less('carried', 'loss'))} bits per byte",
            tuple(rows),
        ),
        Claim(
            "Re-basing by SVD wins some of it back.",
            f"{NOTE} 3, tried here",
            above_zero(less("carried", "re-based")),
            f"carried less re-based: {signed(less('carried', 're-based'))} bits per byte",
            tuple(rows),
        ),
        Claim(
            "It has to be trained anew.",
            f"{NOTE} 3",
            above_zero(
                [
                    min(pair)
                    for pair in zip(less("carried", "trained anew"), less("re-based", "trained anew"), strict=True)
                ]
            ),
            f"the better of both less one that is trained anew: {signed(less('carried', 'trained anew'))} carried, "
            f"{signed(less('re-based', 'trained anew'))} re-based",
            tuple(rows),
        ),
    )
    about = "LoRA of rank 4 on queries and values; the base then learns the museum's labels, whole, and gets it back."
    return Section("carried", "An adapter on an updated base", about, claims)


def depth(known: Known) -> Section:
    """Adapters lengthen what a gradient passes through, LoRA does not."""
    from .depth import norms

    found = norms(known.base)
    far = {name: curve[max(curve)] for name, curve in found.items()}
    verdict = all_hold(["holds here" if abs(far["adapter-h"]) > abs(far["lora"]) else "does not hold here"])
    claim = Claim(
        "Inserted adapters change how large gradients are more than LoRA beside the weights does.",
        f"{NOTE} 1.1",
        verdict,
        "log of the gradient's norm at the embeddings beside that of the base, new weights of one size in every block: "
        + ", ".join(f"{name} {value:+.3f}" for name, value in far.items()),
    )
    return Section(
        "depth",
        "Width against depth",
        "The gradient that reaches the embeddings, by the number of blocks that carry new weights; none is trained.",
        (claim,),
        (),
        {"depth": lambda: _depth_picture(found)},
        {"depth": "log(‖gradient‖ / that of the base) against the blocks that are adapted, mean of several draws."},
    )


def _depth_picture(found: dict[str, dict[int, float]]) -> object:
    from ..figures.study import with_intervals

    points = {name: [(float(n), value, 0.0) for n, value in curve.items()] for name, curve in found.items()}
    return with_intervals(points, "blocks that carry new weights", "log of the ratio of norms")
