r"""How a section of the study asks for rows, and what it says of them.

A section is a function of what is known: it asks for cells, and where some are not measured yet it ends there; they are
measured, and it is asked again. So the rows that a tuned learning rate decides on are asked for in a second round, and
nothing of a study has a state but its file of rows.

A claim is judged by the 95 % interval of Student over seeds: a difference that the interval of zero covers is "cannot
be said".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..model import Transformer
from .cells import Cell, Row
from .intervals import Interval

Verdict = Literal["holds here", "does not hold here", "cannot be said"]
ROOM = 0.05  # of a loss: who is worse by less than that is on par
TUNING = 1000  # the seed on which learning rates are chosen; it is never reported


@dataclass(frozen=True)
class Profile:
    """How much is computed: the cell that all others are changes of, and how often it is run."""

    name: str = "default"
    cell: Cell = field(default_factory=Cell)
    long: int = 3  # times as many steps where a task is to be learned to its end
    seeds: int = 3
    tasks: tuple[str, ...] = ("sentiment", "dart", "sql")
    methods: tuple[str, ...] = ()
    ranks: tuple[int, ...] = (1, 2, 4, 8, 64)


class Unknown(Exception):
    """A section asked for rows that are not measured yet."""


@dataclass
class Known:
    """The rows that there are, the base they are of, and what was asked for in vain."""

    rows: Mapping[Cell, Row]
    base: Transformer
    profile: Profile
    missing: dict[Cell, None] = field(default_factory=dict)
    used: dict[Cell, None] = field(default_factory=dict)

    def of(self, cells: Iterable[Cell]) -> list[Row]:
        """The rows of these cells. Raises Unknown where one is not there yet."""
        asked = list(cells)
        self.used.update(dict.fromkeys(asked))
        new = [cell for cell in asked if cell not in self.rows]
        self.missing.update(dict.fromkeys(new))
        if new:
            raise Unknown
        return [self.rows[cell] for cell in asked]

    def seeded(self, cells: Mapping[Any, Cell], seeds: int | None = None) -> dict[Any, list[Row]]:
        """A row for each seed of each cell."""
        n = self.profile.seeds if seeds is None else seeds
        rows = iter(self.of(cell.having(seed=seed) for cell in cells.values() for seed in range(n)))
        return {label: [next(rows) for _ in range(n)] for label in cells}

    def tuned(self, cells: Mapping[Any, Cell], seeds: int | None = None) -> dict[Any, list[Row]]:
        """The same at the best of three learning rates, (c/3, c, 3c) around that of the cell.

        The rate is chosen by the loss on validation problems, on a seed of its own.
        """
        grids = {label: [cell.having(rate=rate) for rate in around(cell.rate)] for label, cell in cells.items()}
        trials = [self._trial(cell) for grid in grids.values() for cell in grid]
        losses = iter(row.loss or 0.0 for row in self.of(trials))
        best = {label: min(grid, key=lambda _: next(losses)) for label, grid in grids.items()}
        return self.seeded(best, seeds)

    def _trial(self, cell: Cell) -> Cell:
        return cell.having(kind="run", side="validation", seed=TUNING)

    def possible(self, ranks: Iterable[int]) -> tuple[int, ...]:
        """Those ranks that the square matrices of the base can have."""
        return tuple(rank for rank in ranks if rank <= self.base.config.d_model)

    def at_edge(self, rows: Sequence[Row], middle: float) -> bool:
        """Was the best rate one at the end of its grid? A better one may lie beyond."""
        return rows[0].cell.rate != middle


def around(rate: float) -> tuple[float, float, float]:
    """A third of a rate, itself, and three times as much, in one digit."""
    low, high = (float(f"{factor * rate:.1g}") for factor in (1 / 3, 3))
    return low, rate, high


@dataclass(frozen=True)
class Claim:
    """What is claimed, by whom, what was found, and the rows behind it."""

    sentence: str
    source: str
    verdict: Verdict
    found: str
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Table:
    """A caption, a head, and cells of text."""

    caption: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A place of the paper, or a lesson: its claims, its tables, and its figures by name."""

    name: str
    title: str
    about: str
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------ judging


def values(rows: Iterable[Row], measure: str = "loss") -> list[float]:
    """A measure of each row; of `more` where it is none of all rows. Missing is not a number."""
    found = [getattr(row, measure) if hasattr(row, measure) else row.more.get(measure) for row in rows]
    return [math.nan if value is None else float(value) for value in found]


def mean(rows: Iterable[Row], measure: str = "loss") -> float:
    return statistics.fmean(values(rows, measure))


def interval(numbers: Sequence[float]) -> Interval | None:
    """Student's interval; None where there are too few values, or one that is no number."""
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
        return None
    return Interval.of(numbers)


def shown(numbers: Sequence[float], digits: int = 3) -> str:
    """Mean ± half width of the interval."""
    found = interval(numbers)
    if found is None:
        return "diverged" if any(map(math.isinf, numbers)) else f"{statistics.fmean(numbers):.{digits}f}"
    return f"{found.mean:.{digits}f} ± {found.half_width:.{digits}f}"


def spread(numbers: Sequence[float]) -> tuple[float, float, list[float]]:
    """Mean, half width of the interval (0 where it cannot be said), and the values: what a picture takes."""
    finite = [value for value in numbers if math.isfinite(value)]
    found = interval(numbers)
    return (statistics.fmean(finite) if finite else math.nan), (found.half_width if found else 0.0), finite


def above_zero(differences: Sequence[float]) -> Verdict:
    """Does the interval of paired differences lie above zero? Below it the opposite holds."""
    found = interval(differences)
    if found is None or found.covers_zero:
        return "cannot be said"
    return "holds here" if found.mean > 0.0 else "does not hold here"


def no_worse(first: Sequence[Row], second: Sequence[Row]) -> Verdict:
    """Is the loss of the first no worse than that of the second, seed by seed?

    It is where the whole interval lies below ROOM of the second's loss; it is not where the whole lies above zero.
    """
    found, reference = interval(paired(first, second)), mean(second)
    if found is None:
        return "cannot be said"
    if found.mean + found.half_width <= ROOM * reference:
        return "holds here"
    return "does not hold here" if found.mean - found.half_width > 0.0 else "cannot be said"


def paired(first: Sequence[Row], second: Sequence[Row], measure: str = "loss") -> list[float]:
    """first − second, seed by seed."""
    pairs = zip(values(first, measure), values(second, measure), strict=True)
    with_nan = [a - b if math.isfinite(a) and math.isfinite(b) else math.nan for a, b in pairs]
    return with_nan


def all_hold(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several parts: one that does not hold decides, then one that cannot be said."""
    found, bad = list(verdicts), ("does not hold here", "cannot be said")
    worst: Verdict = next((verdict for verdict in bad if verdict in found), "holds here")
    return worst


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent p of y = c·xᵖ by least squares on logarithms."""
    u, v = [math.log(one) for one in x], [math.log(one) for one in y]
    return statistics.linear_regression(u, v).slope


def named(cell: Cell) -> str:
    """The method of a cell with its settings, in short."""
    settings = " ".join(f"{key}={_short(value)}" for key, value in cell.with_settings.items())
    return f"{cell.method} {settings}".strip()


def _short(value: Any) -> str:
    return "+".join(part.rpartition(".")[2] for part in value) if isinstance(value, tuple) else str(value)
