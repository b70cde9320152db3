r"""How far a mean of a few values, or a share of many, may be off by chance: 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t, 0.975 quantile, by the number of values (degrees of freedom plus one)
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
NORMAL = 1.959964  # its 0.975 quantile


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


@dataclass(frozen=True)
class Share:
    r"""So many right of so many asked.

    With $\hat p = k/n$ and z the quantile of the normal distribution, the interval of Wilson is

    $$\frac{\hat p + \frac{z^2}{2n} \pm z\sqrt{\frac{\hat p(1-\hat p)}{n} + \frac{z^2}{4n^2}}}{1 + z^2/n} \tag{I2}$$

    which holds for independent answers, and is of use at 0 and 1 too. Raises ValueError unless 0 ≤ k ≤ n and n ≥ 1.

    Source: Wilson 1927, Journal of the American Statistical Association 22.
    """

    right: int
    asked: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.asked or self.asked < 1:
            raise ValueError(f"a share is of at least 1, and 0 to all of them, got {self.right} of {self.asked}")

    @property
    def value(self) -> float:
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        p, n, z2 = self.value, self.asked, NORMAL * NORMAL
        middle, half = p + z2 / (2 * n), NORMAL * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f}-{high:.3f})"
