r"""Where the paper contradicts itself, its own arithmetic, or the authors' repository: each as pairs that should agree.

A pair is derived from the tables of the paper (`lora_np.paper.tables`) and from the closed forms of the ledger, never
typed in twice; an erratum stands only as long as every pair of it differs.

Source: Hu et al. 2021, arXiv:2106.09685v2; microsoft/LoRA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .entry import MODELS, lora
from .printed import Printed
from .tables import (
    ANALYSIS,
    AND_REPOSITORY,
    BUDGETS,
    FTTOP2,
    GLUE,
    PLACEMENTS,
    PREFIX_LAYER_MNLI,
    RANKS,
    SCALES,
    SIDES,
    STARTS,
)


@dataclass(frozen=True)
class Pair:
    """Two statements on one thing: where each stands, and what it says."""

    thing: str
    places: tuple[str, str]
    values: tuple[Any, Any]

    @property
    def differs(self) -> bool:
        return bool(self.values[0] != self.values[1])


@dataclass(frozen=True)
class Erratum:
    """A contradiction: `pairs` that should agree and do not, and in one sentence what to make of it."""

    letter: str
    title: str
    pairs: tuple[Pair, ...]
    note: str

    @property
    def stands(self) -> bool:
        """Does every pair differ?"""
        return all(pair.differs for pair in self.pairs)


def errata() -> tuple[Erratum, ...]:
    """All of them, by letter."""
    return tuple(
        Erratum(chr(ord("a") + i), title, tuple(pairs()), note) for i, (title, pairs, note) in enumerate(_ERRATA)
    )


def _rank_of_the_budget() -> list[Pair]:
    """The rank on q, k, v, o that has as many numbers as are printed: T = r · T(1)."""
    rank = round(Printed("37.7M").value / lora(1, "qkvo").numbers(MODELS["gpt3"]))
    return [Pair("r on q, k, v, o of 37.7M", ("Section D.4", "arithmetic, and Table 15"), (2, rank))]


def _settings_behind_a_row() -> list[Pair]:
    """From how many settings of table 15 the two scores of one row of table 4 come."""
    scores = BUDGETS["LoRA 37.7M"]
    rows = [row for row in ANALYSIS.values() if row[0] == "37.7M"]
    whole = sum(row[1:] == scores for row in rows)
    parts = sum(row[1] == scores[0] for row in rows) + sum(row[2] == scores[1] for row in rows)
    return [Pair("settings behind 74.0 and 91.6", ("Table 4", "Table 15"), (1, whole or parts))]


def _best_placement() -> list[Pair]:
    """What the caption prefers, and the placements that no other is at least as good as in both columns."""
    scores = {targets: tuple(map(Fraction, row[1:])) for targets, row in PLACEMENTS.items()}
    best = [
        targets
        for targets, own in scores.items()
        if not any(other != own and all(b >= a for a, b in zip(own, other, strict=True)) for other in scores.values())
    ]
    return [
        Pair(
            "best placement at 18M",
            ("caption of Table 5", "numbers of Table 5"),
            ("q, v", " or ".join(map(", ".join, best))),
        )
    ]


def _sides() -> list[Pair]:
    return [Pair(thing, ("Section 7.2", other), values) for thing, (other, values) in SIDES.items()]


def _settings_of_the_scripts() -> list[Pair]:
    things = [thing for thing in AND_REPOSITORY if not thing.startswith("FT ")]
    return [Pair(thing, ("Tables 9 to 11", "Repository"), AND_REPOSITORY[thing]) for thing in things]


def _baselines() -> list[Pair]:
    things = [thing for thing in AND_REPOSITORY if thing.startswith("FT ")]
    return [Pair(thing, ("Tables 13, 14", "Repository"), AND_REPOSITORY[thing]) for thing in things]


def _scales() -> list[Pair]:
    """α = the first r that was tried makes s = α/r = 1 there."""
    used = {model: Fraction(alpha, rank) for model, (rank, alpha) in SCALES.items()}
    return [Pair(f"s of {model}", ("Section 4.1", "Tables 9, 11"), (1, s)) for model, s in used.items() if s != 1]


def _starts() -> list[Pair]:
    return [Pair(thing, ("Section 4.1", "Repository"), values) for thing, values in STARTS.items()]


def _one_cell_twice() -> list[Pair]:
    """Cells that tables 6 and 15 both print."""
    return [
        Pair(f"{name}, r = {rank} on {', '.join(targets)}", ("Table 6", "Table 15"), (here, there))
        for (targets, rank), (_, *scores) in ANALYSIS.items()
        if rank in RANKS.get(targets, {})
        for name, here, there in zip(("WikiSQL", "MNLI-m"), RANKS[targets][rank], scores, strict=True)
        if here != there
    ]


def _similarity_of_equals() -> list[Pair]:
    r"""Subspaces that are equal, p = 4: all σ are 1, so d² = p − Σσ² = 0, and φ = Σσ²/p = 1."""
    p = 4
    total = p * 1
    distance_squared = p - total
    return [
        Pair(
            "φ of two equal subspaces of dimension 4",
            ("Appendix G, Σσ²/p", "Appendix G, (1 − d²)/p"),
            (Fraction(total, p), Fraction(1 - distance_squared, p)),
        )
    ]


def _prefix_layer() -> list[Pair]:
    places = tuple(PREFIX_LAYER_MNLI)
    return [Pair("MNLI-m of PreLayer 8 + 8", (places[0], places[1]), tuple(PREFIX_LAYER_MNLI.values()))]  # type: ignore[arg-type]


def _top2() -> list[Pair]:
    return [Pair("FTTop2 of GPT-2 M", ("Table 3", "Tables 13, 14"), FTTOP2)]


def _ties() -> list[Pair]:
    """Averages that lie half way between two printed numbers: which way each is rounded."""
    ways = {}
    for row, (cells, average) in GLUE.items():
        mean = sum(map(Fraction, cells.split())) / 8
        if abs(mean - Fraction(average)) == Fraction(1, 20):
            ways[row] = "up" if Fraction(average) > mean else "down"
    down = [row for row, way in ways.items() if way == "down"]
    up = [row for row, way in ways.items() if way == "up"]
    return [
        Pair(f"a tie: {one}, {other}", ("Table 2", "Table 2"), (ways[one], ways[other]))
        for one in down
        for other in up[:1]
    ]


_ERRATA: tuple[tuple[str, Callable[[], list[Pair]], str], ...] = (
    ("The rank behind 37.7M", _rank_of_the_budget, "r = 4 it is: r = 2 has half as many."),
    (
        "One row of Table 4, two settings",
        _settings_behind_a_row,
        "74.0 is q, k, v, o at r = 4, 91.6 is q, v at r = 8: no one model has both.",
    ),
    (
        "The placement that Table 5 prefers",
        _best_placement,
        "All four at r = 2 tie on WikiSQL and win on MNLI; the caption's choice may have other reasons.",
    ),
    (
        "Left or right singular vectors, W_c or W_o",
        _sides,
        "Right ones of A (r, d) can be compared; left ones have 8 and 64 entries at r = 8 and r = 64, and cannot.",
    ),
    (
        "Settings of the paper and of the scripts",
        _settings_of_the_scripts,
        "The released DeBERTa file has the rank of the scripts; which settings made the tables cannot be said.",
    ),
    (
        "Baselines of the paper and of the README",
        _baselines,
        "The README took its own from Li and Liang 2021; where the paper's are from is not said.",
    ),
    (
        "α as the first r that is tried",
        _scales,
        "Where s is not 1, either another rank was tried first or α was chosen otherwise.",
    ),
    (
        "How A and B start",
        _starts,
        "This package starts A Gaussian and B at zero everywhere, as the paper says; `uniform` is the repository's.",
    ),
    ("One cell, two tables", _one_cell_twice, "The other seventeen cells that both print agree."),
    (
        "The similarity and the distance",
        _similarity_of_equals,
        "With d² = p − Σσ² it must read φ = 1 − d²/p, as the range [0, 1] asks.",
    ),
    ("One result of prefix layers, two tables", _prefix_layer, "Both are the whole of MNLI at l_p = l_i = 8."),
    ("FTTop2, two sizes", _top2, "Two blocks have 25.19M, and 25.17M without biases and norms."),
    ("Rounding of the averages", _ties, "Four averages lie half way; three are rounded up and one down."),
)
