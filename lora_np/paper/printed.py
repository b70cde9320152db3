r"""A number as it is printed, and the verdict on it beside what arithmetic gives.

    text     "354.92M"  "+2.2%"  "350GB"  "10,000×"  "2/3"
    value    354920000  0.022    3.5e11   10000      2/3       exact, as a fraction
    unit     10⁶        0.01     10⁹      1          1
    last     10⁴        0.001    10⁹      1          0         what one more in the last printed digit would add

The rule, with p printed and v what arithmetic gives:

$$|v - p| \le \tfrac12 last \Rightarrow {=}, \qquad |v - p| \le \tfrac32 last \Rightarrow {\sim}, \qquad
  else \ne \tag{D1}$$

Equal (=) is thus: p is v rounded to the digits that are printed; where v lies half way, both neighbours count. The
second (~) is: rounding v gives one more or one less in the last printed digit, as cutting digits off does. A fraction
has no last digit: it is equal or not. Where the text itself calls a number rough ("roughly", "around", "≈"), zeros at
the end of a whole number are no printed digits: a rough 350GB has a last digit of 10 GB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

EQUAL, NEAR, UNEQUAL, UNPRINTED = "=", "~", "≠", "–"
VERDICTS = (EQUAL, NEAR, UNEQUAL, UNPRINTED)

UNITS = {
    "": Fraction(1),
    "M": Fraction(10**6),
    "B": Fraction(10**9),
    "MB": Fraction(10**6),
    "MiB": Fraction(2**20),
    "GB": Fraction(10**9),
    "TB": Fraction(10**12),
    "%": Fraction(1, 100),
    "×": Fraction(1),
}
_NUMBER = re.compile(r"\+?(\d[\d,]*)(?:\.(\d+))?\s?([A-Za-z%×]*)")


@dataclass(frozen=True)
class Printed:
    """A number as it is printed; `rough` when the text around it says so. Raises ValueError for what is no number."""

    text: str
    rough: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+/[1-9]\d*", self.text) and self._parts is None:
            raise ValueError(f"a printed number is digits and a unit of {', '.join(UNITS)[2:]}; got {self.text!r}")

    @property
    def unit(self) -> Fraction:
        return UNITS[self._parts[2]] if self._parts else Fraction(1)

    @property
    def suffix(self) -> str:
        return self._parts[2] if self._parts else ""

    @property
    def decimals(self) -> int:
        """How many digits stand behind the point."""
        return len(self._parts[1]) if self._parts else 0

    @property
    def value(self) -> Fraction:
        if self._parts is None:
            return Fraction(self.text)
        whole, behind, _ = self._parts
        return Fraction(int(whole + behind), 10 ** len(behind)) * self.unit

    @property
    def last(self) -> Fraction:
        """One unit of the last printed digit; 0 for a fraction."""
        if self._parts is None:
            return Fraction(0)
        whole, behind, _ = self._parts
        zeros = len(whole) - len(whole.rstrip("0")) if self.rough and not behind else 0
        return Fraction(10**zeros, 10 ** len(behind)) * self.unit

    @property
    def _parts(self) -> tuple[str, str, str] | None:
        """Digits before and behind the point, and the unit; None for a fraction, and for what is no number."""
        found = _NUMBER.fullmatch(self.text)
        if not found or found[3] not in UNITS:
            return None
        return found[1].replace(",", ""), found[2] or "", found[3]


def verdict(printed: Printed | None, value: Fraction) -> str:
    """Equation (D1); UNPRINTED where there is nothing to compare with."""
    if printed is None:
        return UNPRINTED
    gap = abs(value - printed.value)
    if 2 * gap <= printed.last:
        return EQUAL
    return NEAR if 2 * gap <= 3 * printed.last else UNEQUAL


def shown(value: Fraction, printed: Printed | None) -> str:
    """The value in the unit of the printed number with two more digits; a whole count in full."""
    suffix = printed.suffix if printed else ""
    if value.denominator == 1 and suffix in ("", "M", "B"):
        return f"{int(value):,}"
    if printed is None:
        return f"{float(value):.6g}"
    if not printed.last:
        return f"{value.numerator}/{value.denominator}"
    return f"{float(value / printed.unit):,.{printed.decimals + 2}f}{suffix}"
