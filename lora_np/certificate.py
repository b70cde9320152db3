r"""Is this merged model W0 + s·BA? Decided array by array, and then for the whole model.

**Array by array.** A merged array that is correct differs from W0 + s·BA by rounding alone. In the precision it was
merged in, BA takes `rank` roundings, the factor s one and the sum one more, so with unit roundoff u = ε/2

$$|\hat W - (W_0 + s\,BA)| \le \gamma_n\,\big(|W_0| + s\,|B||A|\big),\qquad
  \gamma_n = \frac{nu}{1-nu},\quad n = r + 3 \tag{V1}$$

elementwise. The one more is for s, which is rounded where it meets arrays of a lower precision than float64; in float64
it is for the check itself. What is not adapted must be equal to the bit.

**What went wrong**, if something did: the factor $\hat c$ that explains the found update best,

$$\hat c = \frac{\langle \hat W - W_0,\ s\,BA\rangle}{\langle s\,BA,\ s\,BA\rangle} \tag{V2}$$

is 1 for a correct merge, 0 when nothing was merged, 2 when it was merged twice, √r or 1/√r when the scaling rule
differs.

**The whole model.** No useful bound is known for logits behind many layers, so the gap is held against that of an
honest merge, made here. And rounding has a signature: when that merge is made and run in float64 instead of float32,
its gap shrinks by the ratio of the epsilons, 2^29; a gap that is a mistake would stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Array
from .gradients import finite
from .lora import LoraEmbedding, adapters, delta, merge, unadapted
from .model import Transformer
from .parameters import parameters, with_parameters

SHRINKS = 2.0**-19  # a gap that is rounding shrinks by about 2^-29; a thousandfold margin for luck on either side
ALIKE = 64.0  # two honest merges of one adapter differ in a few roundings an entry, so their gaps are of one size


@dataclass(frozen=True)
class ArrayVerdict:
    """One array of the merged model beside what it should be."""

    name: str
    adapted: bool
    gap: float  # |found − expected| at the entry where it uses most of its bound
    bound: float  # (V1) there
    used: float  # gap / bound, at most 1 for a correct merge
    factor: float | None  # (V2); None for an array that is not adapted, or whose update is zero

    @property
    def holds(self) -> bool:
        return self.used <= 1.0


@dataclass(frozen=True)
class ModelGaps:
    """The largest differences between logits, over all positions and words."""

    size: float  # of the adapted model's logits
    contrast: float  # adapted against base: that the adapter does something
    gap32: float  # adapted against this merged model, as they are
    own32: float  # adapted against what `merge` makes of it, in float32
    gap64: float  # the same in float64

    @property
    def is_rounding(self) -> bool:
        """Is the gap like that of an honest merge, and does that one shrink with the precision, as rounding does?"""
        honest = max(self.own32, float(np.finfo(np.float32).eps) * self.size)
        return self.gap32 <= ALIKE * honest and self.gap64 <= SHRINKS * honest


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
        return f"{wrong[0].name} is not W0 + s·BA: {_explained(wrong[0].factor)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; a figure that is not finite becomes None."""
        about = {"holds": self.holds, "diagnosis": self.diagnosis, "model": dataclasses.asdict(self.model)}
        arrays = [{**dataclasses.asdict(array), "holds": array.holds} for array in self.arrays]
        return {**about, "arrays": [finite(array) for array in arrays]}


def certify(adapted: Transformer, merged: Transformer, tokens: Array) -> Certificate:
    """Judge `merged` against the adapted model it should equal; tokens (batch, seq) are run through both.

    Raises ValueError when the merged model carries LoRA or has other arrays than the adapted one merges to.
    """
    if adapters(merged):
        raise ValueError("the merged model still carries LoRA")
    return Certificate(tuple(_arrays(adapted, merged)), _gaps(adapted, merged, tokens))


def _arrays(adapted: Transformer, merged: Transformer) -> Iterator[ArrayVerdict]:
    found, base = parameters(merged), parameters(unadapted(adapted))
    if set(found) != set(base) or any(found[name].shape != base[name].shape for name in base):
        raise ValueError("the merged model has other arrays than this base and adapter merge to")
    modules = adapters(adapted)
    for name, W in base.items():
        module = modules.get(name.removesuffix(".W"))
        if module is None or not name.endswith(".W"):
            gap = _float64(found[name]) - _float64(W)
            yield _verdict(name, False, gap, np.zeros(W.shape), None)
        else:
            yield _adapted_verdict(name, module, found[name])


def _adapted_verdict(name: str, module: Any, found: Array) -> ArrayVerdict:
    exact = dataclasses.replace(module, A=_float64(module.A), B=_float64(module.B))
    W, update = _float64(module.base.W), delta(exact)
    size = abs(exact.B) @ abs(exact.A) * abs(module.scaling)
    terms = abs(W) + (size.T if isinstance(module, LoraEmbedding) else size)
    n, u = module.A.shape[0] + 3, float(np.finfo(found.dtype).eps) / 2.0
    gap = _float64(found) - (W + update)
    norm = float((update * update).sum())
    factor = float(((_float64(found) - W) * update).sum()) / norm if norm else None
    return _verdict(name, True, gap, n * u / (1.0 - n * u) * terms, factor)


def _verdict(name: str, adapted: bool, gap: Array, bound: Array, factor: float | None) -> ArrayVerdict:
    size = abs(gap)
    with np.errstate(divide="ignore", invalid="ignore"):
        used = np.where(size == 0.0, 0.0, size / bound)
    worst = int(used.argmax())
    return ArrayVerdict(
        name, adapted, float(size.flat[worst]), float(bound.flat[worst]), float(used.flat[worst]), factor
    )


def _gaps(adapted: Transformer, merged: Transformer, tokens: Array) -> ModelGaps:
    def in_precision(dtype: npt.DTypeLike) -> Transformer:
        return with_parameters(adapted, {name: array.astype(dtype) for name, array in parameters(adapted).items()})

    def largest(one: Transformer, other: Transformer) -> float:
        return float(abs(one(tokens) - other(tokens)).max())

    narrow, wide = in_precision(np.float32), in_precision(np.float64)
    return ModelGaps(
        size=float(abs(adapted(tokens)).max()),
        contrast=largest(adapted, unadapted(adapted)),
        gap32=largest(adapted, merged),
        own32=largest(narrow, merge(narrow)),
        gap64=largest(wide, merge(wide)),
    )


def _explained(factor: float | None) -> str:
    if factor is None:
        return "the adapter changes nothing here, and yet it differs from the base"
    known = {
        0.0: "nothing was merged",
        1.0: "the update is there, but not exact",
        2.0: "it was merged twice, or with twice the scale",
    }
    nearest = min(known, key=lambda c: abs(c - factor))
    tolerance = 1e-3 if nearest else 1e-6  # an update that is not there leaves exactly 0, rounding aside
    reason = known[nearest] if abs(nearest - factor) < tolerance else "another scale, or another adapter"
    return f"the update found is {factor:.4g} times the one expected ({reason})"


def _float64(array: Array) -> Array:
    return np.asarray(array, np.float64)
