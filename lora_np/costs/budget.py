r"""One budget of trained numbers for every method: the largest size of each that stays within it.

A method has one setting by which it grows (`grows_by`: a rank, a length, a number of blocks). Its closed form rises
with that setting, so the largest value within a budget B is found by doubling and halving, in O(log B) evaluations:

$$k^* = \max\,\{k : |\Theta(k)| \le B\} \tag{C21}$$
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..config import TransformerConfig
from ..method import Method, whole
from ..methods import METHODS
from ..methods.lora import LoraConfig
from .bill import Bill, bill


@dataclass(frozen=True)
class Offer:
    """What a method comes to at a budget.

    bill    of the size nearest to the budget: the largest within it, or else its least; None where it has none here
    within  does it train at most the budget?
    note    why it trains much less, or more, or cannot be had on this model
    """

    name: str
    bill: Bill | None
    within: bool
    note: str = ""

    @property
    def settings(self) -> str:
        """What its size depends on, in short: 'rank=4'."""
        if self.bill is None:
            return ""
        grows_by = METHODS[self.name].grows_by
        sizes = {key: value for key, value in self.bill.settings.items() if type(value) is int and value}
        return ", ".join(f"{key}={sizes[key]}" for key in sorted(sizes, key=lambda key: key != grows_by))


def budget_of(config: TransformerConfig, budget: int | None = None) -> int:
    """The budget; when none is given that of LoRA with rank 4 on query and value."""
    return LoraConfig(rank=4, targets="qv").numbers(config) if budget is None else budget


def compare(config: TransformerConfig, budget: int) -> tuple[Offer, ...]:
    """Every method at one budget, in the order of METHODS. Raises ValueError for one that no method can keep."""
    whole("budget", budget)
    offers = tuple(offer(name, config, budget) for name in METHODS)
    if not any(offer.within for offer in offers):
        least = min((o for o in offers if o.bill), key=lambda o: o.bill.trained if o.bill else 0)
        assert least.bill is not None
        raise ValueError(
            f"no method trains as few as {budget:,} numbers on this model: the least is {least.name} with "
            f"{least.settings}, {least.bill.trained:,} of them"
        )
    return offers


def offer(name: str, config: TransformerConfig, budget: int) -> Offer:
    """The largest size of one method that trains at most `budget` numbers; its least where that trains more."""
    least = _sized(METHODS[name](), 1)
    try:
        fewest = least.numbers(config)
    except ValueError as error:
        return Offer(name, None, False, str(error))
    if fewest > budget:
        size = "it has one size" if least.grows_by is None else f"{least.grows_by}={_size(least)} is its least"
        return Offer(name, _bill(config, least), False, f"{size}, {fewest / budget:,.1f} times the budget")
    largest = _largest(least, config, budget)
    limit = least.grows_by is not None and _numbers(_sized(largest, _size(largest) // largest.step + 1), config) is None
    note = f"{largest.grows_by}={_size(largest)} is the most that this model can have" if limit else ""
    return Offer(name, _bill(config, largest), True, note)


def _largest(least: Method, config: TransformerConfig, budget: int) -> Method:
    """(C21)."""
    if least.grows_by is None:
        return least

    def fits(k: int) -> bool:
        numbers = _numbers(_sized(least, k), config)
        return numbers is not None and numbers <= budget

    *_, last = _doubled(fits)
    low, high = last, 2 * last  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return _sized(least, low)


def _doubled(fits: Callable[[int], bool]) -> Iterator[int]:
    k = 1
    while fits(k):
        yield k
        k *= 2


def _sized(method: Method, k: int) -> Method:
    """The method at k steps of the setting by which it grows."""
    if method.grows_by is None:
        return method
    return replace(method, **{method.grows_by: k * method.step})  # type: ignore[type-var]


def _size(method: Method) -> int:
    return int(getattr(method, method.grows_by or ""))


def _numbers(method: Method, config: TransformerConfig) -> int | None:
    """How many it trains; None where the model can have no such size."""
    try:
        return method.numbers(config)
    except ValueError:
        return None


def _bill(config: TransformerConfig, method: Method) -> Bill:
    with warnings.catch_warnings():  # more numbers than the matrix: that can be read from the table
        warnings.simplefilter("ignore")
        return bill(config, method)
