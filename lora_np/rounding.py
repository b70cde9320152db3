r"""Unit roundoff, half a unit in the last place, and how far a result may be off behind which lie n roundings.

Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, sections 2.1, 2.2 and 3.1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine.arrays import Array


def finfo_of(dtype: npt.DTypeLike) -> Any:
    """What NumPy knows of this precision, and `ml_dtypes` of those that NumPy has not (bfloat16, float8)."""
    if np.issubdtype(dtype, np.floating):
        return np.finfo(dtype)
    import ml_dtypes

    of: Any = ml_dtypes.finfo  # which has no types
    return of(dtype)


def unit_roundoff(dtype: npt.DTypeLike) -> float:
    r"""$u = \varepsilon/2$: rounding to this precision changes a number by at most u times its size."""
    return float(finfo_of(dtype).eps) / 2.0


def underflow(dtype: npt.DTypeLike) -> float:
    """η, half the smallest number: what rounding may change near zero, where u times the size is less."""
    return float(finfo_of(dtype).smallest_subnormal) / 2.0


def gamma(roundings: int, u: float) -> float:
    r"""$\gamma_n = \frac{nu}{1-nu}$, which bounds |computed − exact| / Σ|terms| of a sum behind which lie n roundings,
    in whatever order; infinite where nu ≥ 1, because nothing is known there."""
    return roundings * u / (1.0 - roundings * u) if roundings * u < 1.0 else math.inf


def within(bound: float, size: Array) -> Array:
    """bound · size, and 0 where the size is 0: nothing times what is not known is nothing."""
    return bound * size if math.isfinite(bound) else np.where(size > 0.0, math.inf, 0.0)


def spacing(size: Array, dtype: npt.DTypeLike) -> Array:
    """One unit in the last place of numbers of this size ≥ 0 in this precision; the size itself is in float64."""
    about = finfo_of(dtype)
    _, exponent = np.frexp(np.maximum(size, float(about.smallest_normal)))
    return np.ldexp(1.0, exponent - about.nmant - 1)


def rounded(x: Array, dtype: npt.DTypeLike) -> Array:
    """The float64 numbers x rounded once to this precision, and given back in float64."""
    with np.errstate(over="ignore"):
        return x.astype(dtype).astype(np.float64)
