r"""What sections have in common: differences as text, tables of losses, and pictures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .asking import Table, interval, named, paired, shown, spread, values
from .cells import Row

Rows = Mapping[Any, Sequence[Row]]
LOSS = "held-out loss (bits per byte)"


def signed(gaps: Sequence[float]) -> str:
    """A mean with its sign and interval."""
    return str(interval(gaps) or "not a number")


def every(rows: Rows, *labels: Any) -> tuple[Row, ...]:
    """The rows of these labels, or all."""
    return tuple(row for label in labels or rows for row in rows[label])


def losses(caption: str, rows: Rows, first: Any = None) -> Table:
    """A line for each label: what was run, and its loss; beside it, seed by seed, the difference to the first label."""
    head = ("", "method", "trained", "learning rate", "bits per byte", *(("less " + str(first),) if first else ()))
    lines = []
    for label, found in rows.items():
        row = found[0]
        trained = "" if row.trained is None else f"{row.trained:,.0f}"
        gap = () if not first else ("",) if label == first else (signed(paired(found, rows[first])),)
        lines.append((_text(label), named(row.cell), trained, f"{row.cell.rate:g}", shown(values(found)), *gap))
    return Table(caption, head, tuple(lines))


def bars(rows: Rows, measure: str = "loss", label: str = LOSS) -> Any:
    """A picture of the measure of each label: its mean and interval. It is drawn when it is called."""
    return partial(_bars, rows, measure, label)


def _bars(rows: Rows, measure: str, label: str) -> Any:
    from ..figures.study import intervals

    return intervals({_text(name): spread(values(found, measure)) for name, found in rows.items()}, label)


def curves(points: Mapping[str, Mapping[float, Sequence[Row]]], x: str, measure: str = "loss", y: str = LOSS) -> Any:
    """A picture of a measure against x, a line for each name, x logarithmic. It is drawn when it is called."""
    return partial(_curves, points, x, measure, y)


def _curves(points: Mapping[str, Mapping[float, Sequence[Row]]], x: str, measure: str, y: str) -> Any:
    from ..figures.study import with_intervals

    found = {
        name: [(at, *spread(values(rows, measure))[:2]) for at, rows in sorted(curve.items())]
        for name, curve in points.items()
    }
    return with_intervals(found, x, y, log_x=True)


def _text(label: Any) -> str:
    return ", ".join(map(str, label)) if isinstance(label, tuple) else str(label)
