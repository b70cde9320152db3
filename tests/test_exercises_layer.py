"""The checks of tutorial 02, and the counter of multiply-adds."""

from typing import Any

import numpy as np
import pytest

from lora_np.exercises.layer import Counter, check_alpha, check_multiply_adds, check_stacked
from lora_np.lora import LoraLinear
from lora_np.model import Linear

SIZES = {"n": 10, "d_in": 6, "d_out": 8, "rank": 2}
DENSE, BRANCH, UPDATE = 48, 28, 96


def module(rank: int, scaling: float, seed: int) -> LoraLinear:
    rng = np.random.default_rng(seed)
    return LoraLinear(Linear(np.zeros((8, 6))), rng.standard_normal((rank, 6)), rng.standard_normal((8, rank)), scaling)


FIRST, SECOND = module(3, 2.0, 0), module(2, 0.5, 1)


def stacked(s: float, t: float, u: float = 1.0, v: float = 1.0) -> tuple[Any, Any]:
    """A and B of both adapters, with these factors on the two parts of B and of A."""
    A = np.concatenate([u * FIRST.A, v * SECOND.A])
    return A, np.concatenate([s * FIRST.B, t * SECOND.B], axis=1)


def test_the_counter_multiplies_and_counts() -> None:
    counter, P, Q = Counter(), np.ones((2, 3)), np.ones((3, 5))
    np.testing.assert_array_equal(counter(P, Q), P @ Q)
    counter(P, Q)
    assert counter.multiply_adds == 2 * (2 * 3 * 5)


def test_the_counter_agrees_with_the_check(capsys: Any) -> None:
    counter = Counter()
    x, W, A, B = np.zeros((10, 6)), np.zeros((8, 6)), np.zeros((2, 6)), np.zeros((8, 2))
    counter(x, W.T) + counter(counter(x, A.T), B.T)
    check_multiply_adds(counter.multiply_adds, **SIZES)
    assert "Right: 760" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (BRANCH * 10, "branch alone"),
        (DENSE * 10, "W0x alone"),
        (DENSE + BRANCH, "one row"),
        (UPDATE + 2 * 10 * DENSE, "forms the whole"),
        (UPDATE + 10 * DENSE, "merged order"),
        (1, "n·k·m"),
        ("many", "n·k·m"),
    ],
)
def test_a_wrong_count_is_explained(answer: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_multiply_adds(answer, **SIZES)


def test_the_alpha_that_keeps_s_is_accepted(capsys: Any) -> None:
    check_alpha(64.0, 4, 16, 64)
    check_alpha(64, 4, 16, 64)
    assert capsys.readouterr().out.count("Right: s = 8") == 2


@pytest.mark.parametrize(
    ("answer", "hint"),
    [(256, "keeps α/r"), (8, "8 is s itself"), (16, "a smaller one"), (100, "α = 100 gives"), ("64", "is a number")],
)
def test_a_wrong_alpha_is_explained(answer: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_alpha(answer, 4, 16, 64)


@pytest.mark.parametrize("factors", [(2.0, 0.5), (1.0, 1.0, 2.0, 0.5), (2.0, 1.0, 1.0, 0.5)])
def test_stacked_adapters_are_accepted_wherever_s_goes(factors: Any, capsys: Any) -> None:
    check_stacked(*stacked(*factors), FIRST, SECOND)
    assert "of rank 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pair", "hint"),
    [
        (stacked(1.0, 1.0), "two s are missing"),
        (stacked(2.0, 0.5, 2.0, 0.5), "twice"),
        (stacked(2.0, 2.0), "one s was used"),
        ((FIRST.A, FIRST.B), "the ranks add up"),
        ((stacked(2.0, 0.5)[0][::-1], stacked(2.0, 0.5)[1]), "in one order"),
    ],
)
def test_wrong_stacks_are_explained(pair: tuple[Any, Any], hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_stacked(*pair, FIRST, SECOND)


def test_a_placeholder_is_told_the_task(capsys: Any) -> None:
    check_multiply_adds(..., **SIZES)
    check_alpha(..., 4, 16, 64)
    check_stacked(..., ..., FIRST, SECOND)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["Exercise"] * 3
