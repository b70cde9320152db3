r"""Figures 3, 4 and 8 and table 7: which directions an update uses, each beside what it would be by chance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from .asking import Claim, Known, Section, Table, above_zero, interval, shown, values
from .cells import Row
from .methods import REST
from .telling import signed

PAPER, SHUTTLEWORTH = "Hu et al. 2021,", "Shuttleworth et al. 2024, arXiv:2410.21228"
PANELS = {"two ranks": "ranks", "two seeds, A": "seeds", "two seeds, ΔW": "updates", "random": "gaussian"}


def subspaces(known: Known) -> Section:
    """One kind of cell, a row for each seed."""
    cell = known.profile.cell.having({"small": 4, "large": 16}, kind="subspaces", rate=REST)
    rows = known.seeded({"all": cell})["all"]
    every = tuple(rows)

    def first(name: str) -> list[float]:
        """φ(1, 1) less its chance level."""
        return [row.more[name][0][0] - row.more[f"{name} by chance"][0][0] for row in rows]

    def more(name: str) -> list[float]:
        return values(rows, name)

    def over(name: str, other: str) -> list[float]:
        return [a - b for a, b in zip(more(name), more(other), strict=True)]

    weight = [row.more["weight"][-1][-1] / row.more["weight by chance"][-1][-1] for row in rows]
    claims = (
        Claim(
            "The first direction of A at a low rank lies in A at a higher rank: φ(1, 1) > 0.5.",
            f"{PAPER} figure 3",
            above_zero([row.more["ranks"][0][0] - 0.5 for row in rows]),
            f"φ(1, 1) less its chance level {rows[0].more['ranks by chance'][0][0]:.4f}: {signed(first('ranks'))}",
            every,
        ),
        Claim(
            "Two seeds share the first direction of A more than by chance.",
            f"{PAPER} figure 4",
            above_zero(first("seeds")),
            f"φ(1, 1) less chance, of A: {signed(first('seeds'))}; of ΔW: {signed(first('updates'))}",
            every,
        ),
        Claim(
            "Two random matrices do not.",
            f"{PAPER} figure 4, right",
            "holds here" if (found := interval(first("gaussian"))) and found.covers_zero else "cannot be said",
            f"φ(1, 1) less chance: {signed(first('gaussian'))}",
            every,
        ),
        Claim(
            "ΔW amplifies what is in W already: W does more in the directions of ΔW than in random ones.",
            f"{PAPER} table 7",
            above_zero(over("small own", "small random")),
            f"‖UᵀWV‖ of ΔW {shown(more('small own'))}, of random directions {shown(more('small random'))}; factor "
            f"{shown(more('small factor'), 1)}, by chance {shown(more('small factor by chance'), 1)}",
            every,
        ),
        Claim(
            "But not what W emphasizes: it does far more in its own first directions.",
            f"{PAPER} table 7",
            above_zero(over("small top", "small own")),
            f"‖UᵀWV‖ of W {shown(more('small top'))}, of ΔW {shown(more('small own'))}",
            every,
        ),
        Claim(
            "At a higher rank the amplification is smaller.",
            f"{PAPER} table 7",
            above_zero(over("small factor", "large factor")),
            f"rank 4: {shown(more('small factor'), 2)}, rank 16: {shown(more('large factor'), 2)}",
            every,
        ),
        Claim(
            "W and ΔW share little: φ of the first tenth of W's directions is about twice its chance level.",
            f"{PAPER} figure 8",
            _about_twice(weight),
            f"φ over its chance level: {shown(weight, 2)}",
            every,
        ),
        Claim(
            "What full fine-tuning changes has a low rank: fewer directions hold 90 % of it than by chance.",
            f"{PAPER} section 4.1, the hypothesis",
            above_zero(over("rank of 90 % by chance", "rank of 90 %")),
            f"{shown(more('rank of 90 %'), 1)} directions; shuffled {shown(more('rank of 90 % by chance'), 1)}",
            every,
        ),
        Claim(
            "LoRA has more intruder dimensions than full fine-tuning.",
            SHUTTLEWORTH,
            above_zero(over("intruders of LoRA", "intruders of full")),
            f"of the first ten, LoRA: {shown(more('intruders of LoRA'), 2)} (a Gaussian ΔW of its size: "
            f"{shown(more('intruders of LoRA by chance'), 2)}), full: {shown(more('intruders of full'), 2)}",
            every,
        ),
    )
    return Section(
        "figure-3-4-8",
        "Figures 3, 4 and 8, table 7: subspaces",
        "LoRA of ranks 4 and 16 on queries and values, the second from two seeds; full fine-tuning; means over maps.",
        claims,
        (_amplification(rows), _others(rows)),
        {"figure-3-4": partial(_maps, rows), "figure-8": partial(_weight, rows), "energy": partial(_energy, rows)},
        {
            "figure-3-4": "φ(i, j), mean over maps and seeds. By chance it is max(i, j)/d: see the random panel.",
            "figure-8": "φ(W, ΔW) for the first i directions of W, all of ΔW; grey: its chance level.",
            "energy": "The share of ‖ΔW‖² of full fine-tuning in its first directions; grey: entries shuffled.",
        },
    )


def _about_twice(ratios: Sequence[float]) -> Any:
    """Above chance, and below three times chance."""
    found = interval(ratios)
    if found is None:
        return "cannot be said"
    low, high = found.mean - found.half_width, found.mean + found.half_width
    if low > 1.0 and high < 3.0:
        return "holds here"
    return "does not hold here" if low > 3.0 or high < 1.0 else "cannot be said"


def _amplification(rows: Sequence[Row]) -> Table:
    head = ("rank", "‖UᵀWV‖ of ΔW", "of W", "random", "‖ΔW‖", "‖W‖", "factor", "by chance")
    keys = ("own", "top", "random", "update", "weight norm", "factor", "factor by chance")
    lines = [
        (rank, *(f"{statistics.fmean(values(rows, f'{name} {key}')):.3g}" for key in keys))
        for rank, name in (("4", "small"), ("16", "large"))
    ]
    return Table("Table 7: amplification, means over maps and seeds", head, tuple(lines))


def _others(rows: Sequence[Row]) -> Table:
    names = ("rank of 90 %", "intruders of LoRA", "intruders of full", "cosine")
    lines = [(name, shown(values(rows, name)), shown(values(rows, f"{name} by chance"))) for name in names]
    return Table("Beside its null hypothesis", ("measure", "found", "by chance"), tuple(lines))


def _mean(rows: Sequence[Row], name: str) -> Any:
    return np.mean([row.more[name] for row in rows], axis=0)


def _maps(rows: Sequence[Row]) -> Any:
    from ..figures.study import similarity_maps

    return similarity_maps({title: _mean(rows, name).tolist() for title, name in PANELS.items()})


def _weight(rows: Sequence[Row]) -> Any:
    from ..figures.study import with_intervals

    found, chance = _mean(rows, "weight")[:, -1], _mean(rows, "weight by chance")[:, -1]
    curve = [(i, float(value), 0.0) for i, value in enumerate(found, 1)]
    return with_intervals(
        {"φ(W, ΔW)": curve}, "i, directions of W", "φ", chance=[(i, float(v), 0.0) for i, v in enumerate(chance, 1)]
    )


def _energy(rows: Sequence[Row]) -> Any:
    from ..figures.study import with_intervals

    found, chance = _mean(rows, "energy")[0][:96:4], _mean(rows, "energy by chance")[0][:96:4]
    curve = [(1 + 4 * i, float(value), 0.0) for i, value in enumerate(found)]
    by_chance = [(1 + 4 * i, float(value), 0.0) for i, value in enumerate(chance)]
    return with_intervals({"full fine-tuning": curve}, "first directions of ΔW", "share of ‖ΔW‖²", chance=by_chance)


DIMENSIONS = (8, 32, 128, 512)


def intrinsic(known: Known) -> Section:
    """How few random directions of all weights training needs."""
    cell = known.profile.cell.having({"dimensions": DIMENSIONS}, kind="intrinsic", task="sentiment", method="full")
    rows = known.seeded({"": cell.having(steps=6 * cell.steps)})[""]
    found = [int(row.more["d90"]) for row in rows]
    total, chance = int(rows[0].more["D"]), int(rows[0].more["d90 by chance"])
    reached = [d for d in found if d]
    verdict: Any = "holds here" if len(reached) == len(found) and max(reached) < total / 10 else "does not hold here"
    lines = tuple(
        (str(d), shown(values(rows, f"gain at {d}"), 2), f"{rows[0].more[f'gain at {d} by chance']:.4f}")
        for d in DIMENSIONS
    )
    claim = Claim(
        "Training in a random subspace of less than a tenth of all numbers gains nine tenths of what all of them gain.",
        "Li et al. 2018, arXiv:1804.08838; Aghajanyan et al. 2020, arXiv:2012.13255",
        verdict,
        f"d90 by seed: {', '.join(str(d) if d else f'above {DIMENSIONS[-1]}' for d in found)} of D = {total:,}; were "
        f"every direction alike: {chance:,}",
        tuple(rows),
    )
    table = Table("Gain in a random subspace", ("dimension", "gain", "were all directions alike"), lines)
    about = "A model of nine thousand numbers learns a task from nothing, in random directions of all its weights."
    return Section("intrinsic", "Intrinsic dimension", about, (claim,), (table,))
