r"""Is this merged model W0 + s·BA? Decided array by array, and then for the whole model.

**Array by array.** A merged array that is correct differs from $W = W_0 + \Delta W$, $\Delta W = s\,BA$, by rounding
alone, and each stage of a merge rounds in a precision of its own. Let T be Σ|terms| of ΔW, k the roundings behind it
(r for BA, one for s, one more because s is itself rounded where it meets BA), l how often underflow may take a half of
the smallest number (s multiplies what was lost before it), and u, η the unit roundoff and that half in a stage. Then
elementwise

$$E = \gamma_k(u_\text{product})\,T + l\,\eta_\text{product},\qquad
  E \leftarrow E + u_\text{cast}\,(|\Delta W| + E) + \eta_\text{cast}\ \text{if the update is cast},$$
$$|\hat W - W| \;\le\; E + \tfrac12\,\mathrm{ulp}_\text{sum}(|W| + E) + e \tag{V1}$$

The sum W0 + ΔW rounds once, by half a unit in the last place of what it gives; where the products are finer than what
is stored and the update is not cast, the sum may be formed in their precision first, and half a unit of that joins E.
e is the rounding of this check, which is made in float64: the same with u = 2⁻⁵³. What is not adapted must be equal to
the bit.

**The scale.** A wrong scale may hide within (V1) in every single entry, and not in all of them together. The factor
that explains the found update best,

$$\hat c = \frac{\langle \hat W - W_0,\ \Delta W\rangle}{\langle \Delta W,\ \Delta W\rangle} \tag{V2}$$

is near 1 for a correct merge, 0 when nothing was merged, 2 when it was merged twice. How near can be said: let R be W
rounded once. An honest merge rounds a number that differs from W by at most E, so it gives R itself unless W lies
within E of where rounding turns, and then differs from R by at most E + ulp. With D those entries,

$$|\hat c - c_R| \;\le\; \frac{\sum_D (E + \mathrm{ulp} + e)\,|\Delta W|}{\langle \Delta W,\Delta W\rangle},\qquad
  c_R = \frac{\langle R - W_0,\ \Delta W\rangle}{\langle \Delta W,\ \Delta W\rangle} \tag{V3}$$

$c_R$ is the scale that survives: 1, less what is swallowed because it is under half a unit in the last place of W0.

**The whole model.** No useful bound is known for logits behind many layers, so the gap is held against that of an
honest merge, made here. And rounding has a signature: when that merge is made and run in float64 instead of the model's
own precision (in float32, where that is float64), its gap shrinks by the ratio of the epsilons; a gap that is a mistake
would stay.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine.arrays import Array, row_blocks
from .engine.devices import to_host
from .gradients import finite
from .model import Transformer, place_of
from .parameters import parameters, with_parameters
from .rounding import gamma, of_an_update, rounded, spacing, unit_roundoff, within
from .wrappers import Expected, merge, unwrapped, wrappers

SHRINKS = (
    2.0**10
)  # a gap that is rounding shrinks about as the epsilons do; a thousandfold margin for luck on either side
ALIKE = 64.0  # two honest merges of one adapter differ in a few roundings an entry, so their gaps are of one size
ENTRIES = 1 << 20  # of an array at a time: some 8 MiB in float64, of which about ten are held together


@dataclass(frozen=True)
class Stages:
    """The precisions of a merge: of the products in ΔW, of the sum, and of a cast of ΔW before it, if there is one."""

    product: npt.DTypeLike
    sum: npt.DTypeLike
    cast: npt.DTypeLike | None = None


@dataclass(frozen=True)
class ArrayVerdict:
    """One array of the merged model beside what it should be."""

    name: str
    adapted: bool
    gap: float  # |found − expected| at the entry where it uses most of its bound
    bound: float  # (V1) there
    used: float  # gap / bound, at most 1 for a correct merge
    entry: tuple[int, ...]  # which one that is
    wrong: int  # how many entries exceed their bound
    factor: float | None  # (V2); None for an array that is not adapted, or whose update is zero
    factor_low: float | None = None  # the interval (V3)
    factor_high: float | None = None
    swallowed: float = 0.0  # share of the entries that should change, and that rounding leaves as they were

    @property
    def factor_holds(self) -> bool:
        if self.factor is None or self.factor_low is None or self.factor_high is None:
            return True
        return self.factor_low <= self.factor <= self.factor_high

    @property
    def can_be_said(self) -> bool:
        """False where so many roundings meet so coarse a precision that nothing is known."""
        return math.isfinite(self.bound)

    @property
    def holds(self) -> bool:
        return self.can_be_said and self.used <= 1.0 and self.factor_holds


@dataclass(frozen=True)
class ModelGaps:
    """The largest differences between logits, over all positions and words."""

    size: float  # of the adapted model's logits
    contrast: float  # adapted against base: that the adapter does something
    gap: float  # adapted against this merged model, as they are
    own: float  # adapted against what `merge` makes of it
    gap64: float  # the same in float64
    coarse: float  # the same in what is coarser than float64: the model's own precision, or else float32
    precision: str = "float32"  # the model's own

    @property
    def is_rounding(self) -> bool:
        """Is the gap like that of an honest merge, and does that one shrink with the precision, as rounding does?"""
        eps, eps32, eps64 = (float(np.finfo(kind).eps) for kind in (self.precision, np.float32, np.float64))
        coarse_eps = eps if eps > eps64 else eps32
        shrunk = SHRINKS * eps64 / coarse_eps * max(self.coarse, coarse_eps * self.size)
        return self.gap <= ALIKE * max(self.own, eps * self.size) and self.gap64 <= shrunk


@dataclass(frozen=True)
class Certificate:
    """The verdict on a merged model."""

    arrays: tuple[ArrayVerdict, ...]
    model: ModelGaps

    @property
    def holds(self) -> bool:
        return all(array.holds for array in self.arrays) and self.model.is_rounding

    @property
    def diagnosis(self) -> str:
        """One sentence: that it holds, or the likeliest reason why it does not."""
        wrong = [array for array in self.arrays if not array.holds]
        if not wrong:
            equal = "every array is W0 + s·BA within its rounding bound"
            return equal if self.model.is_rounding else f"{equal}, but the logits differ by more than rounding"
        frozen = [array.name for array in wrong if not array.adapted]
        if frozen:
            return f"{frozen[0]} is not adapted and yet differs from the base"
        worst = max(wrong, key=lambda array: (array.used, array.wrong))
        return f"{worst.name} is not W0 + s·BA: {explained(worst)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; a figure that is not finite becomes None."""
        about = {"holds": self.holds, "diagnosis": self.diagnosis, "model": dataclasses.asdict(self.model)}
        arrays = [{**dataclasses.asdict(array), "holds": array.holds} for array in self.arrays]
        return {**about, "arrays": [finite(array) for array in arrays]}


def certify(adapted: Transformer, merged: Transformer, tokens: Array) -> Certificate:
    """Judge `merged` against the adapted model it should equal; tokens (batch, seq) are run through both.

    Raises ValueError when the merged model carries a wrapper, or has other arrays than the adapted one merges to.

    >>> import numpy as np
    >>> from lora_np import LoraConfig, TransformerConfig, adapt, certify
    >>> from lora_np import initialize, merge, parameters, with_parameters
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> base = initialize(config, np.random.default_rng(0))
    >>> model = adapt(base, LoraConfig(rank=2, targets="qv"), np.random.default_rng(1))
    >>> moved = with_parameters(model, {path: B + 0.1 for path, B in parameters(model, "*.B").items()})
    >>> tokens = np.array([[1, 2, 3]])
    >>> certify(moved, merge(moved), tokens).holds
    True
    >>> "nothing was merged" in certify(moved, base, tokens).diagnosis
    True
    """
    if found := wrappers(merged):
        raise ValueError(f"the merged model still carries a {type(next(iter(found.values()))).__name__}")
    base = parameters(unwrapped(adapted))
    wrapped = {f"{path}.W": module for path, module in wrappers(adapted).items() if hasattr(module, "expected")}
    return Certificate(tuple(certify_arrays(base, wrapped, parameters(merged))), _gaps(adapted, merged, tokens))


def certify_arrays(
    base: Mapping[str, Array],
    wrapped: Mapping[str, Any],
    merged: Mapping[str, Array],
    stages: Stages | None = None,
) -> Iterator[ArrayVerdict]:
    """A verdict for each array, in blocks of rows, so that no array need be in memory whole.

    base, merged   arrays by name, in memory or read when rows of them are asked for
    wrapped        for the name of each adapted array, what its `expected(rows)` should be
    stages         in which precisions it was merged; None: the products in that of A and B, the sum in that of what is
                   found

    Raises ValueError when one side has an array that the other has not, or of another shape.
    """
    for name in [*base, *merged]:
        if name not in base or name not in merged or base[name].shape != merged[name].shape:
            raise ValueError(f"the merged model has other arrays than this base and adapter merge to: {name}")
    for name in base:
        if name in wrapped:
            yield adapted_verdict(name, base[name], wrapped[name], merged[name], stages)
        else:
            yield _frozen_verdict(name, base[name], merged[name])


def adapted_verdict(name: str, base: Array, wrapper: Any, found: Array, stages: Stages | None = None) -> ArrayVerdict:
    """Judge one merged array against what the wrapper around `base` expects, by (V1) to (V3)."""
    tally = Tally()
    for rows in row_blocks(found.shape[0], math.prod(found.shape[1:]), ENTRIES):
        expected = wrapper.expected(rows)
        made = stages or Stages(expected.precision, found.dtype)
        tally.add(rows.start, _float64(base[rows]), expected, _float64(found[rows]), made)
    return tally.verdict(name)


def error_of_update(expected: Expected, stages: Stages) -> Array:
    """E of (V1): how far the update may be off before it is added."""
    casts = () if stages.cast is None else (stages.cast,)
    E = of_an_update(expected.update, expected.terms, expected.roundings, expected.lost, stages.product, casts)
    if not casts and unit_roundoff(stages.product) < unit_roundoff(stages.sum):
        return E + 0.5 * spacing(abs(expected.value) + E, stages.product)
    return E


def error_of_check(expected: Expected) -> Array:
    """e of (V1): how far the expected value may itself be off, which is computed in float64."""
    u = unit_roundoff(np.float64)
    return within(gamma(expected.roundings, u), expected.terms) + u * abs(expected.value)


@dataclass
class Tally:
    """What is summed up over the blocks of rows of one array."""

    used: float = -1.0
    gap: float = 0.0
    bound: float = 0.0
    entry: tuple[int, ...] = ()
    wrong: int = 0
    found_update: float = 0.0  # ⟨Ŵ − W0, ΔW⟩
    rounded_update: float = 0.0  # ⟨R − W0, ΔW⟩
    doubt: float = 0.0  # the numerator of (V3)
    norm: float = 0.0  # ⟨ΔW, ΔW⟩
    changed: int = 0
    swallowed: int = 0
    unknown: bool = False  # has an entry no bound?

    def add(self, start: int, W: Array, expected: Expected, found: Array, stages: Stages) -> None:
        value, update = expected.value, expected.update
        E, e = error_of_update(expected, stages), error_of_check(expected)
        bound = E + 0.5 * spacing(abs(value) + E, stages.sum) + e
        self._worst(start, abs(found - value), bound)
        R = rounded(value, stages.sum)
        ulp = spacing(abs(R), stages.sum)
        turns = 0.25 * ulp  # half a unit below a power of two is a quarter of one above it
        doubtful = (turns - abs(value - R) <= E + e) & (update != 0.0)
        doubtful &= (0.5 * ulp - abs(value - R) <= E + e) | (np.frexp(abs(R))[0] == 0.5)
        apart = E + spacing(abs(value) + E, stages.sum) + e
        self.doubt += float((apart * abs(update))[doubtful].sum())
        self.found_update += float(((found - W) * update).sum())
        self.rounded_update += float(((R - W) * update).sum())
        self.norm += float((update * update).sum())
        self.changed += int(np.count_nonzero(update))
        self.swallowed += int(np.count_nonzero((update != 0.0) & (R == W)))

    def join(self, other: Tally) -> None:
        """Add what was summed up over other rows, which come after these."""
        if other.used > self.used:
            self.used, self.gap, self.bound, self.entry = other.used, other.gap, other.bound, other.entry
        self.unknown |= other.unknown
        for name in ("wrong", "found_update", "rounded_update", "doubt", "norm", "changed", "swallowed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def _worst(self, start: int, gap: Array, bound: Array) -> None:
        """NaN in what was found counts as infinitely wrong."""
        with np.errstate(divide="ignore", invalid="ignore"):
            used = np.where(gap == 0.0, 0.0, gap / bound)
        used = np.where(np.isnan(gap), math.inf, used)
        self.wrong += int(np.count_nonzero(used > 1.0))
        self.unknown |= bool(np.isinf(bound).any())
        if not used.size or (worst := float(used.max())) <= self.used:
            return
        at = np.unravel_index(int(used.argmax()), used.shape)
        self.used, self.gap, self.bound = worst, float(gap[at]), float(bound[at])
        self.entry = (start + int(at[0]), *map(int, at[1:]))

    def verdict(self, name: str) -> ArrayVerdict:
        bound = math.inf if self.unknown else self.bound
        seen = (name, True, self.gap, bound, max(self.used, 0.0), self.entry, self.wrong)
        if not self.norm:
            return ArrayVerdict(*seen, None)
        centre, half = self.rounded_update / self.norm, self.doubt / self.norm
        half += 8.0 * unit_roundoff(np.float64)  # of these sums themselves, which NumPy adds in pairs
        return ArrayVerdict(
            *seen, self.found_update / self.norm, centre - half, centre + half, self.swallowed / self.changed
        )


def _frozen_verdict(name: str, base: Array, found: Array) -> ArrayVerdict:
    """Equal to the bit, or not."""
    tally, same = Tally(), base.dtype == found.dtype
    for rows in row_blocks(found.shape[0], math.prod(found.shape[1:]), ENTRIES):
        here, there = _float64(found[rows]), _float64(base[rows])
        same = same and bool((np.signbit(here) == np.signbit(there)).all())  # −0 = 0, but for a bit
        tally._worst(rows.start, abs(here - there), np.zeros(here.shape))
    verdict = tally.verdict(name)
    return dataclasses.replace(verdict, adapted=False, used=verdict.used if same else math.inf)


def _gaps(adapted: Transformer, merged: Transformer, tokens: Array) -> ModelGaps:
    def largest(one: Transformer, other: Transformer) -> float:
        return float(abs(one(tokens) - other(tokens)).max())

    def own(dtype: npt.DTypeLike) -> float:
        model = with_parameters(
            adapted, {n: array.astype(dtype, copy=False) for n, array in parameters(adapted).items()}
        )
        return largest(model, merge(model) if wrappers(model) else model)

    precision = place_of(adapted).dtype
    in_own = own(precision)
    is_wide = precision == np.float64
    return ModelGaps(
        size=float(abs(adapted(tokens)).max()),
        contrast=largest(adapted, unwrapped(adapted)),
        gap=largest(adapted, merged),
        own=in_own,
        gap64=in_own if is_wide else own(np.float64),
        coarse=own(np.float32) if is_wide else in_own,
        precision=str(precision),
    )


def explained(array: ArrayVerdict) -> str:
    """Where an adapted array does not hold, and the likeliest reason."""
    if not array.adapted:
        return f"it is not adapted, and yet {array.wrong:,} of its entries differ from the base"
    where = f"entry {list(array.entry)} is off by {array.gap:.3g}, where rounding explains {array.bound:.3g}"
    if not array.can_be_said:
        return "cannot be said: so many roundings in so coarse a precision may move it by any amount"
    if array.factor is None:
        return f"the adapter changes nothing here, and yet {where}"
    low, high = array.factor_low or 0.0, array.factor_high or 0.0
    if array.factor_holds or f"{array.factor:.4g}" == "1":
        others = "" if array.wrong <= 1 else f", and so are {array.wrong - 1:,} others"
        return f"{where}{others}; on the whole the update is there ({array.factor:.7g} times the one expected)"
    known = {0.0: "nothing was merged", 2.0: "it was merged twice, or with twice the scale"}
    reasons = [reason for c, reason in known.items() if abs(c * (low + high) / 2.0 - array.factor) <= high - low + 1e-6]
    reason = reasons[0] if reasons else "another scale, or another adapter"
    return f"the update found is {array.factor:.4g} times the one expected ({reason}); {where}"


def _float64(array: Array) -> Array:
    return np.asarray(to_host(array), np.float64)
