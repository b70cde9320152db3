r"""A mean of a few values, and how far it may be off by chance: the 95 % interval of Student."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t, 0.975 quantile, by the number of values (degrees of freedom plus one)
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Interval:
    r"""$\bar x \pm t\,\frac{s}{\sqrt n}$ (I1): a mean and the half width of its 95 % interval, from a few values.

    Source: Student 1908, The probable error of a mean, Biometrika 6.
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Raises ValueError for fewer than 2 values, which say nothing about their spread, or more than 10."""
        if len(values) not in STUDENT:
            raise ValueError(f"an interval is made of {min(STUDENT)} to {max(STUDENT)} values, got {len(values)}")
        return cls(statistics.mean(values), STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values)))

    @property
    def covers_zero(self) -> bool:
        return abs(self.mean) <= self.half_width

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half_width:.3f}"
