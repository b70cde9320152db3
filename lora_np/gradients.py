r"""Three witnesses for every gradient.

1. **hand**: the derivations of `lora_np.operations`, chained by autograd;
2. **textbook**: autograd alone, on the plain equations of `lora_np.textbook`;
3. **difference**: the central difference quotient of the loss, entry by entry, in float64.

The third needs no calculus, but has an error of its own. With $D(h) = (f(x+h) - f(x-h))/2h = f' + c_2 h^2 + c_4 h^4 +
\dots$, each step of Richardson's takes out one more power of h²,

$$T_0(h) = D(h),\qquad T_k(h) = \frac{4^k\,T_{k-1}(h/2) - T_{k-1}(h)}{4^k - 1} = f' + O(h^{2k+2}),\qquad
  e = |T_3(h) - T_2(h/2)| + \frac{2\rho}{h} \tag{Q1}$$

The quotient is $Q = T_3(h)$. The first part of e is the error of T2(h/2), two orders in h worse than that of Q, so it
is a safe estimate; the second is the rounding of f, with ρ = 64 ε Σ|terms of f|: each term has a few dozen roundings
behind it.

Where an array's gradient vanishes identically (a key's bias: softmax does not see what all scores share) all three
must be below e, and the verdict is "zero".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import autograd
import numpy as np

from .cases import Case, Sample, joined_cases, model_cases, operation_cases, sample_case
from .engine.arrays import Array
from .engine.devices import to_device
from .engine.differentiation import value_and_grad
from .parameters import Arrays

Verdict = Literal["equal", "zero", "different", "cannot be said"]
Watch = Callable[[list[Case]], Iterable[Case]]

STEP = 2.0**-10  # h: large enough that ρ/h is small, small enough that h⁶ is
LEVELS = 4  # D at h, h/2, h/4, h/8
ROUNDING = 64.0 * float(np.finfo(np.float64).eps)
AGREEMENT = 1e-10  # between hand and textbook, of the array's largest gradient: a million times their rounding
RESOLUTION = 1e-6  # the largest e, of the same, with which the difference quotient may still testify


@dataclass(frozen=True)
class Row:
    """The verdict on one array; each figure is the largest disagreement of a pair over the array's largest gradient."""

    case: str
    array: str
    shape: tuple[int, ...]
    hand_textbook: float
    hand_difference: float
    textbook_difference: float
    uncertainty: float  # the largest e of (Q1), over the same
    verdict: Verdict

    @property
    def holds(self) -> bool:
        return self.verdict in ("equal", "zero")


@dataclass(frozen=True)
class Report:
    """The rows of a gradient check."""

    seed: int
    rows: tuple[Row, ...]

    @property
    def holds(self) -> bool:
        """True when no array's witnesses disagree or cannot testify; false for an empty report."""
        return bool(self.rows) and all(row.holds for row in self.rows)

    def __str__(self) -> str:
        """A line for each array; of one that does not hold, how far the witnesses are apart."""
        return "\n".join(map(_in_words, self.rows))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; a figure that is not finite becomes None."""
        rows = [finite(dataclasses.asdict(row)) for row in self.rows]
        return {"seed": self.seed, "holds": self.holds, "rows": rows}


def _in_words(row: Row) -> str:
    gaps = (
        f": hand and textbook {row.hand_textbook:.1e} apart, hand and difference {row.hand_difference:.1e}, textbook "
        f"and difference {row.textbook_difference:.1e}, and the quotient is known to {row.uncertainty:.1e}"
    )
    return f"{row.array} {row.shape}: {row.verdict}{'' if row.holds else gaps}"


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same dict with None for every number that JSON cannot hold."""
    bad = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    return {**values, **dict.fromkeys(bad)}


def gradcheck(
    operation: Callable[..., Any] | None = None,
    reference: Callable[..., Any] | None = None,
    point: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    watch: Watch = iter,
    device: str = "cpu",
) -> Report:
    r"""Check every operation and every array of whole models, at random shapes and at a point where B ≠ 0.

    seed    of the shapes and numbers           watch   wraps the list of cases as they are gone through (progress, say)
    device  "cpu" or "gpu": where the derivations and the difference quotients are computed, in float64

    >>> import numpy as np
    >>> from lora_np import gradcheck, operation
    >>> report = gradcheck(watch=lambda cases: cases[:2])  # all of them take a while
    >>> report.holds, {row.verdict for row in report.rows}
    (True, {'equal'})

    Or check an operation of one's own, at a point of one's own, on the CPU:

    operation   made by `lora_np.operation` from a forward and a backward; called with positional arguments
    reference   the same function in plain `autograd.numpy`, which shares no code with it
    point       its arguments by name, in order: arrays of floating point are differentiated, in float64, the rest is
                handed on as it is

    >>> import autograd.numpy as anp
    >>> def softplus_forward(x, /, *, wanted):
    ...     return np.log1p(np.exp(x)), x
    >>> def softplus_backward(x, dy, wanted):
    ...     return [dy / (1.0 + np.exp(-x))]
    >>> softplus = operation(softplus_forward, softplus_backward)
    >>> print(gradcheck(softplus, lambda x: anp.log(1.0 + anp.exp(x)), {"x": np.linspace(-2.0, 2.0, 5)}))
    x (5,): equal

    The gradient of an array has its shape, (d_out, d_in) for W. Raises ValueError where the two do not compute the same
    value, or nothing in the point can be differentiated, and what `to_device` raises where the device is missing.
    """
    if operation is not None:
        return Report(0, tuple(check(_own_case(operation, reference, point))))
    cases = list(all_cases(seed, device))
    return Report(seed, tuple(row for case in watch(cases) for row in check(case)))


def _own_case(ours: Callable[..., Any], book: Any, point: Any) -> Case:
    """An operation of one's own at a point, in float64."""
    if not callable(book) or not isinstance(point, Mapping):
        raise ValueError(
            "gradcheck takes an operation, its reference and a point {name: argument}, got "
            f"{type(book).__name__} and {type(point).__name__}"
        )
    arguments = {name: np.array(v, np.float64) if _is_real(v) else v for name, v in point.items()}
    arrays = tuple(name for name, value in point.items() if _is_real(value))
    if not arrays or not all(np.isfinite(arguments[name]).all() for name in arrays):
        raise ValueError("the point needs an array of floating point to differentiate by, and all of it finite")
    y, expected = (np.asarray(of(*arguments.values())) for of in (ours, book))
    if y.shape != expected.shape:
        raise ValueError(f"the operation gives shape {y.shape}, its reference {expected.shape}")
    gap, size = float(abs(y - expected).max(initial=0.0)), float(abs(expected).max(initial=0.0))
    if not gap <= AGREEMENT * max(size, 1.0):
        raise ValueError(f"the operation and its reference differ by {gap:.3g}: both must compute the same function")
    name = getattr(ours, "__name__", "operation").removesuffix("_forward")
    return sample_case(name, ours, Sample(name, book, arguments, arrays), np.random.default_rng(0))


def _is_real(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def check(case: Case) -> list[Row]:
    """The verdict on each array of a case."""
    _, gradient = value_and_grad(case.hand)(to_device(case.point, case.device))
    hand = to_device(gradient, "cpu")
    with np.errstate(over="ignore"):  # autograd has 1/cosh² for the slope of tanh: 0 where cosh² is beyond all numbers
        book = autograd.grad(case.textbook)(case.point)
    largest = max(float(abs(gradient).max()) for gradient in book.values())
    rows = []
    for name, array in case.point.items():
        difference, error = difference_quotient(
            lambda point: case.hand(to_device(point, case.device)), case.point, name, case.size
        )
        rows.append(_row(case.name, name, array.shape, hand[name], book[name], difference, error, largest))
    return rows


def difference_quotient(loss: Callable[[Arrays], Any], point: Arrays, name: str, size: float) -> tuple[Array, Array]:
    """Q and e of equation (Q1) for every entry of one array; `size` is Σ|terms of the loss|."""
    array = point[name]
    quotient, error = np.empty(array.shape), np.empty(array.shape)
    for entry in np.ndindex(array.shape):

        def at(step: float, entry: tuple[int, ...] = entry) -> float:
            moved = array.copy()
            moved[entry] += step
            return float(loss({**point, name: moved}))

        steps = [STEP / 2**level for level in range(LEVELS)]
        table = [(at(h) - at(-h)) / (2 * h) for h in steps]
        for k in range(1, LEVELS):
            coarser, table = table, [(4**k * fine - coarse) / (4**k - 1) for coarse, fine in pairwise(table)]
        quotient[entry] = table[0]
        error[entry] = abs(table[0] - coarser[1]) + 2.0 * ROUNDING * size / STEP
    return quotient, error


def _row(
    case: str, name: str, shape: tuple[int, ...], hand: Array, book: Array, difference: Array, error: Array, all_: float
) -> Row:
    if hand.shape != shape:
        return Row(case, name, shape, math.inf, math.inf, math.inf, math.inf, "different")
    pairs = [abs(hand - book), abs(hand - difference), abs(book - difference)]
    sizes = [float(abs(gradient).max()) for gradient in (hand, book, difference)]
    uncertainty = float(error.max())
    testified = bool((pairs[1] <= error).all() and (pairs[2] <= error).all())
    verdict: Verdict
    if not all(map(math.isfinite, sizes)):
        verdict = "different"
    elif max(sizes) <= uncertainty <= RESOLUTION * all_ and pairs[0].max() <= AGREEMENT * all_:
        verdict = "zero"
    elif not testified or pairs[0].max() > AGREEMENT * sizes[1]:
        verdict = "different"
    else:
        verdict = "equal" if uncertainty <= RESOLUTION * sizes[1] else "cannot be said"
    scale = all_ if verdict == "zero" else sizes[1]
    figures = [float(gap.max()) / scale if scale else math.inf for gap in (*pairs, error)]
    return Row(case, name, shape, figures[0], figures[1], figures[2], figures[3], verdict)


def all_cases(seed: int = 0, device: str = "cpu") -> Iterator[Case]:
    """Every operation, those that join blocks at sizes at which they do, then whole models, one for each method."""
    yield from operation_cases(seed, device=device)
    yield from joined_cases(seed, device=device)
    yield from model_cases(seed, device)
