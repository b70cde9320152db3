r"""Unit roundoff, half a unit in the last place, and how far a result may be off behind which lie n roundings.

Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, sections 2.1, 2.2 and 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
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


def of_an_update(
    update: Array,
    terms: Array,
    roundings: int,
    lost: Array | float,
    product: npt.DTypeLike,
    casts: Iterable[npt.DTypeLike] = (),
    slack: float = 0.0,
) -> Array:
    r"""E: how far a computed update may be off, which is a product in one precision and then cast, or not.

    $$E = \gamma_k(u_\text{product})\,T + l\,\eta_\text{product} + q\,|\Delta W|,\qquad
      E \leftarrow E + u_c\,(|\Delta W| + E) + \eta_c\ \text{for each cast } c \tag{V1}$$

    with T the terms, k roundings behind them, l times lost to underflow, and q a slack, which is 0 for a verdict. Every
    cast only adds, so what holds for all of them holds where some are left out.
    """
    E = within(gamma(roundings, unit_roundoff(product)), terms) + lost * underflow(product)
    if slack:
        E = E + slack * abs(update)
    for cast in casts:
        E = E + unit_roundoff(cast) * (abs(update) + E) + underflow(cast)
    return E


def spacing(size: Array, dtype: npt.DTypeLike) -> Array:
    """One unit in the last place of numbers of this size ≥ 0 in this precision; the size itself is in float64."""
    about = finfo_of(dtype)
    _, exponent = np.frexp(np.maximum(size, float(about.smallest_normal)))
    return np.ldexp(1.0, exponent - about.nmant - 1)


def rounded(x: Array, dtype: npt.DTypeLike) -> Array:
    """The float64 numbers x rounded once to this precision, and given back in float64."""
    with np.errstate(over="ignore"):
        return x.astype(dtype).astype(np.float64)
