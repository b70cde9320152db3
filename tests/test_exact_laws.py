"""The exact laws of training hold, to the bit or within derived chance, and every planted fault is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lora_np.paper.laws import LAWS, Finding, Sides, judged, law_named


@pytest.mark.parametrize("name", LAWS)
def test_a_law_holds_and_each_fault_is_refused(name: str) -> None:
    for seed in range(3):
        found = judged(LAWS[name], seed)
        assert found.verdict == "holds here", (seed, found.why)
        assert set(found.planted) == set(LAWS[name].faults) != set()
        assert all(beyond > 0.0 for beyond in found.planted.values()), (seed, found.why)


@pytest.mark.parametrize("name", [name for name in LAWS if "mean" not in name])
def test_the_exact_ones_hold_to_the_bit(name: str) -> None:
    assert judged(LAWS[name]).gap == 0.0
    assert LAWS[name].sides(np.random.default_rng(0), None)[2] == 0.0


@pytest.mark.parametrize("name", LAWS)
def test_a_law_that_is_broken_on_purpose_does_not_hold(name: str) -> None:
    law = LAWS[name]
    for fault in law.faults:
        broken = replace(law, sides=lambda rng, _, fault=fault: law.sides(rng, fault))
        assert judged(broken).verdict == "does not hold here"


def test_what_no_fault_can_fail_cannot_be_said() -> None:
    law = LAWS["gauge invariance"]
    blind = replace(law, sides=lambda rng, _: law.sides(rng, None))
    assert judged(blind).verdict == "cannot be said"


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_does_not_hold(wrong: float) -> None:
    sides = Sides(np.array([0.0, wrong]), np.zeros(2), 1.0)
    assert sides.excess == np.inf
    assert Finding(LAWS["gauge invariance"], sides.excess, 0.0, {}).verdict == "does not hold here"


def test_the_chance_of_the_mean_step_is_not_too_wide() -> None:
    """Of entries within one standard deviation there are about 68 %: the bound is six of the right size."""
    for name in ("mean first step", "mean first step of SGD"):
        left, right, bound = LAWS[name].sides(np.random.default_rng(5), None)
        within = (np.abs(left - right) <= np.broadcast_to(bound, left.shape) / 6.0).mean()
        assert 0.6 < within < 0.76


def test_an_unknown_law_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="a law is one of gauge of a step, gauge invariance"):
        law_named("gauge")
    assert law_named("first step of SGD") is LAWS["first step of SGD"]
