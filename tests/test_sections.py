"""Sections judge the rows that they are given: a claim that the rows bear out holds, and one that they refute does not.

The rows are made up, so that what ought to be found is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from builders import model

from lora_np import figures
from lora_np.paper import section_lessons, section_methods, section_ranks, section_since, section_subspaces
from lora_np.paper.asking import (
    TUNING,
    Claim,
    Known,
    Profile,
    Section,
    Unknown,
    above_zero,
    all_hold,
    around,
    no_worse,
    slope,
)
from lora_np.paper.cells import Cell, Row
from lora_np.paper.methods import MIDDLE, REST
from lora_np.paper.sections import FREE, SECTIONS

Made = Callable[[Cell], Row]
PROFILE = Profile("made up", Cell(task="sentiment", steps=4), tasks=("sentiment",), ranks=(1, 2, 4))


@cache
def base() -> Any:
    return model(vocab=256, context=300, d_model=16)


class Shapes(dict[str, Any]):
    """What only cells of one kind have, at values that mean nothing."""

    def __missing__(self, name: str) -> Any:
        grids = ("ranks", "seeds", "updates", "gaussian", "weight")
        if name.removesuffix(" by chance") in grids:
            return [[0.25] * 4] * 4
        return [[0.5] * 96] if name.startswith("energy") else 1.0

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]


def made(loss: Callable[[Cell], float], more: Callable[[Cell], Mapping[str, Any]] = lambda cell: {}) -> Made:
    """A world in which the loss of a cell is this, and a hundredth of it chance."""

    def row(cell: Cell) -> Row:
        chance = np.random.default_rng([cell.seed, 5]).standard_normal() / 100.0
        value = loss(cell) * (1.0 + chance)
        return Row(cell, 100.0, 4.0, value, value, value, 0.1, Shapes(more(cell)))

    return row


def asked(section: Callable[[Known], Section], world: Made, **changes: Any) -> Section:
    """The section, asked again until it has all its rows; every round must ask for something new."""
    rows: dict[Cell, Row] = {}
    for _ in range(6):
        known = Known(rows, base(), replace(PROFILE, **changes))
        try:
            return section(known)
        except Unknown:
            assert known.missing
            assert not set(known.missing) & set(rows)
            rows.update({cell: world(cell) for cell in known.missing})
    raise AssertionError("it asks without end")


def verdict_of(section: Section, words: str) -> str:
    (found,) = [claim.verdict for claim in section.claims if words in claim.sentence]
    return found


@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in FREE])
def test_every_section_comes_to_an_end_with_claims_figures_and_rows(name: str) -> None:
    section = asked(SECTIONS[name], made(lambda cell: 1.0 + cell.seed % 7 / 100))
    assert section.name == name
    assert section.claims
    for claim in section.claims:
        assert claim.sentence
        assert claim.source
        assert claim.found
        assert claim.rows
        assert all(row.cell.seed != TUNING for row in claim.rows)  # a rate is chosen on a seed that is not reported
    for draw in section.figures.values():
        assert figures.svg(draw()).startswith("<svg")
    for table in section.tables:
        assert {len(line) for line in table.lines} == {len(table.head)}


@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in FREE])
def test_where_everything_diverges_nothing_is_said_to_hold_that_is_measured_by_loss(name: str) -> None:
    def row(cell: Cell) -> Row:
        return Row(cell, 100.0, 4.0, math.inf, None, None, None, Shapes())

    section = asked(SECTIONS[name], row)
    if name not in ("figure-3-4-8", "table-2-3-4"):  # theirs hold no loss, or are those of `variants` three times
        for draw in section.figures.values():
            figures.svg(draw())
    by_loss = [claim for claim in section.claims if "bits per byte" in claim.found and "less" in claim.found]
    assert all(
        claim.verdict == "cannot be said" for claim in by_loss if "nan" in claim.found or "number" in claim.found
    )


def test_on_par_means_no_worse_by_a_twentieth() -> None:
    for full, expected in ((1.0, "holds here"), (1.04, "holds here"), (2.0, "holds here"), (0.5, "does not hold here")):
        world = made(lambda cell, full=full: full if cell.method == "full" else 1.0)
        assert asked(section_methods.on_par, world).claims[0].verdict == expected, full


def test_a_tuned_rate_is_the_best_of_its_grid_on_its_own_seed() -> None:
    def loss(cell: Cell) -> float:
        assert (cell.side == "validation") == (cell.seed == TUNING)
        return 1.0 + abs(math.log(cell.rate / around(REST)[2]))

    rows: dict[Cell, Row] = {}
    for _ in range(2):
        known = Known(rows, base(), PROFILE)
        with pytest.raises(Unknown):
            known.tuned({"one": PROFILE.cell.having({"rank": 4}, rate=REST)})
        rows.update({cell: made(loss)(cell) for cell in known.missing})
    found = Known(rows, base(), PROFILE).tuned({"one": PROFILE.cell.having({"rank": 4}, rate=REST)})["one"]
    assert {row.cell.rate for row in found} == {around(REST)[2]}
    assert [row.cell.seed for row in found] == [0, 1, 2]
    assert len(rows) == 6


def best_at(rates: Mapping[str, float]) -> Made:
    """A world in which each method has its best learning rate here; ranks of LoRA under their own names, if any."""

    def loss(cell: Cell) -> float:
        rank = cell.with_settings.get("rank")
        rate = rates.get(f"{cell.method} {rank}", rates.get(cell.method, REST))
        return 1.0 + math.log(cell.rate / rate) ** 2

    return made(loss)


def test_the_ratio_of_learning_rates_is_found() -> None:
    ten = asked(section_since.rates, best_at({"lora": 0.03, "full": 0.004}))
    assert [claim.verdict for claim in ten.claims] == ["holds here"] * 3
    same = asked(section_since.rates, best_at({"lora": 0.0075, "full": 0.016}))
    assert [claim.verdict for claim in same.claims] == ["does not hold here", "does not hold here", "holds here"]
    moving = asked(section_since.rates, best_at({"lora 4": 0.0075, "lora 16": 0.12}))
    assert verdict_of(moving, "does not depend on the rank") == "does not hold here"


def test_few_matrices_want_more_where_they_do() -> None:
    def loss(cell: Cell) -> float:
        targets = cell.with_settings["targets"]
        single = isinstance(targets, tuple) and len(targets) == 1
        return 1.0 + abs(math.log(cell.rate / (around(REST)[2] if single else REST)))

    assert verdict_of(asked(section_ranks.placements, made(loss)), "Few matrices") == "holds here"
    assert verdict_of(asked(section_ranks.placements, best_at({})), "Few matrices") == "cannot be said"


def test_a_scale_that_falls_is_told_from_one_that_does_not() -> None:
    def world(plain: float, root: float) -> Made:
        def more(cell: Cell) -> dict[str, float]:
            power = root if "sqrt" in cell.settings else plain
            return {"moved": cell.with_settings["rank"] ** power * (1 + cell.seed / 1000)}

        return made(lambda cell: 1.0, more)

    falls = asked(section_since.scaling, world(-0.5, 0.0))
    assert [claim.verdict for claim in falls.claims] == ["holds here"] * 2
    other = asked(section_since.scaling, world(0.1, 0.6))
    assert [claim.verdict for claim in other.claims] == ["does not hold here"] * 2


def test_what_is_forgotten_is_compared_at_one_loss() -> None:
    def row(forgets: float, slower: float = 2.5) -> Made:
        def of(cell: Cell) -> Row:
            loss = (1.0 if cell.method == "full" else slower) * 8.0 / cell.steps * (1 + cell.seed / 1000)
            learned = (3.0 - loss) * (1.0 if cell.method == "full" else forgets)
            return Row(cell, 1.0, 3.0, loss, loss, None, learned)

        return of

    assert verdict_of(asked(section_since.forgetting, row(0.5)), "forgotten less") == "holds here"
    assert verdict_of(asked(section_since.forgetting, row(2.0)), "forgotten less") == "does not hold here"
    beyond = asked(section_since.forgetting, row(0.5, slower=1.0))  # a loss that full fine-tuning was not run to
    assert verdict_of(beyond, "forgotten less") == "cannot be said"


def test_capacity_that_still_rises_cannot_be_said() -> None:
    def world(half: float, end: float) -> Made:
        return made(lambda cell: end, lambda cell: {"half way": half, "stored": end, "a number": end / 100})

    total = 128 * 16
    assert verdict_of(asked(section_since.capacity, world(100, 200)), "two bits") == "cannot be said"
    assert verdict_of(asked(section_since.capacity, world(200, 201)), "two bits") == "holds here"
    assert verdict_of(asked(section_since.capacity, world(20, 20)), "two bits") == "does not hold here"
    assert verdict_of(asked(section_since.capacity, world(total, total)), "two bits") == "cannot be said"


def test_subspaces_are_judged_beside_their_chance() -> None:
    def world(phi: float, chance: float) -> Made:
        def more(cell: Cell) -> dict[str, Any]:
            tilt = cell.seed / 1000
            grid = [[phi + tilt] * 4] * 4
            found: dict[str, Any] = dict.fromkeys(("ranks", "seeds", "updates"), grid)
            return {**found, "seeds by chance": [[chance] * 4] * 4, "small factor": 20 + tilt, "large factor": 3.0} | {
                "small own": phi + tilt,
                "small random": 0.3,
                "small top": 0.6,
            }

        return made(lambda cell: 1.0, more)

    alike, chance = (asked(section_subspaces.subspaces, world(phi, 0.1)) for phi in (0.9, 0.0))
    for words in ("φ(1, 1) > 0.5", "Two seeds share"):
        assert verdict_of(alike, words) == "holds here"
        assert verdict_of(chance, words) == "does not hold here"
    assert verdict_of(alike, "At a higher rank the amplification") == "holds here"
    assert verdict_of(alike, "in W already") == verdict_of(chance, "not what W emphasizes") == "holds here"
    assert verdict_of(alike, "not what W emphasizes") == verdict_of(chance, "in W already") == "does not hold here"


def test_an_adapter_that_is_carried_is_judged_on_both_bases() -> None:
    def world(carried: float, rebased: float, anew: float) -> Made:
        found = {"carried": carried, "re-based": rebased, "trained anew": anew}
        return made(lambda cell: 1.0, lambda cell: {k: v + cell.seed / 1000 for k, v in found.items()})

    lost = asked(section_lessons.carried, world(3.0, 2.0, 1.0))
    assert [claim.verdict for claim in lost.claims] == ["holds here"] * 3
    kept = asked(section_lessons.carried, world(0.5, 0.8, 0.9))
    assert [claim.verdict for claim in kept.claims] == ["does not hold here"] * 3


def test_only_the_methods_that_were_asked_for_are_run() -> None:
    section = asked(section_methods.methods, made(lambda cell: 1.0), methods=("lora", "bitfit"))
    assert {row.cell.method for claim in section.claims for row in claim.rows} <= {"lora", "bitfit"}
    assert section.claims[0].verdict == "cannot be said"
    assert section.claims[0].found == "one of the two was not run"


def test_verdicts_follow_the_interval() -> None:
    assert above_zero([1.0, 1.1, 0.9]) == "holds here"
    assert above_zero([-1.0, -1.1, -0.9]) == "does not hold here"
    assert above_zero([1.0, -1.1, 0.9]) == above_zero([1.0]) == above_zero([1.0, math.nan]) == "cannot be said"
    assert all_hold(["holds here", "cannot be said", "does not hold here"]) == "does not hold here"
    assert all_hold(["holds here", "cannot be said"]) == "cannot be said"
    assert all_hold([]) == "holds here"
    rows = {x: [Row(Cell(seed=s), loss=x + s / 100) for s in range(3)] for x in (1.0, 1.02, 1.2)}
    assert no_worse(rows[1.02], rows[1.0]) == no_worse(rows[1.0], rows[1.2]) == "holds here"
    assert no_worse(rows[1.2], rows[1.0]) == "does not hold here"
    wide = [Row(Cell(seed=s), loss=1.0 + s) for s in range(3)]
    assert no_worse(wide, rows[1.0]) == "cannot be said"
    assert slope([1, 2, 4], [3.0, 1.5, 0.75]) == pytest.approx(-1.0)


def test_a_grid_is_a_third_itself_and_three_times() -> None:
    for middle in {*MIDDLE.values(), REST}:
        low, same, high = around(middle)
        assert same == middle
        assert 2.5 <= middle / low <= 3.5
        assert 2.5 <= high / middle <= 3.5


def test_a_claim_without_rows_is_one_that_is_computed_anew() -> None:
    assert Claim("a", "b", "holds here", "c").rows == ()
    assert set(FREE) < set(SECTIONS)
