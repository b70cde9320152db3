"""What checks have in common: reading a number or a matrix out of an answer, and telling a wrong number its mistake."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engine.arrays import Array
from . import shown

CLOSE = 1e-6  # relative: what is compared is computed in float64 from arrays that are stored in float32


def number(answer: Any, must: str = "the answer is one number") -> float:
    """Raises AssertionError, with what must hold, for anything but one finite number."""
    found = array(answer, must)
    assert found.size == 1, f"{must}, got an array of shape {found.shape}"
    assert math.isfinite(found.item()), f"{must}, and a finite one, got {found.item()}"
    return float(found.item())


def whole_number(answer: Any, must: str = "the answer is a whole number") -> int:
    """Raises AssertionError, with what must hold, for anything but one whole number."""
    found = number(answer, must)
    assert found == int(found), f"{must}, got {shown(answer)}"
    return int(found)


def matrix(answer: Any, shape: tuple[int, ...], what: str = "the answer") -> Array:
    """Raises AssertionError for anything but finite numbers of this shape."""
    found = array(answer, f"{what} is an array of shape {shape}")
    assert found.shape == shape, f"{what} is an array of shape {shape}, got {found.shape}"
    assert np.isfinite(found).all(), f"{what} is an array of finite numbers"
    return found


def array(answer: Any, must: str) -> Array:
    """Numbers in float64. Raises AssertionError for what is none."""
    assert not isinstance(answer, str | bytes | None), f"{must}, got {shown(answer)}"
    try:
        return np.asarray(answer, np.float64)
    except (TypeError, ValueError):
        raise AssertionError(f"{must}, got {shown(answer)}") from None


NOTHING = 1e-12  # where a wrong answer is 0, which nothing is relatively close to: below it only hints depend on it


def told(found: float, right: float, hints: Mapping[float, str], advice: str, close: float = CLOSE) -> None:
    """Raise AssertionError for a wrong number: with the hint that belongs to it, or else with the advice."""
    if math.isclose(found, right, rel_tol=close):
        return
    for wrong, hint in hints.items():
        assert not math.isclose(found, wrong, rel_tol=close, abs_tol=NOTHING), f"{found:,.6g} is not it: {hint}"
    raise AssertionError(f"{found:,.6g} is not it: {advice}")
