"""The bounds of `certificate` from both sides: no honest merge leaves them, and they are no wider than they must be.

An honest merge is whatever adds s·BA to W0 with one rounding after another, in any order; so here the products are made
by a matrix product, term by term, or with s first, in the precision of the adapter, and the sum in that of the base, in
a finer one, or exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lora_np import certificate
from lora_np.certificate import ArrayVerdict, Certificate, ModelGaps, Stages, adapted_verdict, certify_arrays
from lora_np.lora import LoraLinear
from lora_np.model import Linear

HALF, SINGLE, DOUBLE = np.float16, np.float32, np.float64
PRECISIONS = [HALF, SINGLE, DOUBLE]

Case = tuple[Any, Any, Any, float]  # W0, A, B, s


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(seed: int, *shape: int) -> Any:
    return rng(seed).standard_normal(shape)


def judged(case: Case, found: Any, stages: Stages | None = None) -> ArrayVerdict:
    W, A, B, s = case
    return adapted_verdict("W", W, LoraLinear(Linear(W), A, B, s), found, stages)


# ------------------------------------------------------------------------------------------------ honest merges


def term_by_term(A: Any, B: Any) -> Any:
    """BA with a rounding after each product and each sum, as no matrix library would do it."""
    total = np.zeros((len(B), A.shape[1]), A.dtype)
    for j in range(len(A)):
        total = total + B[:, j : j + 1] * A[j]
    return total


def updates(case: Case) -> dict[str, Any]:
    """s·BA in the precision of A and B."""
    _, A, B, s = case
    at = A.dtype.type(s)
    return {"a product": s * (B @ A), "term by term": at * term_by_term(A, B), "s first": (at * B) @ A}


def honest(case: Case) -> Iterator[tuple[str, Any, Stages | None]]:
    """Merges in the precision of W0, and in which stages they were made where that must be said."""
    W, A, B, s = case
    coarse = np.dtype(W.dtype)
    exact = W.astype(DOUBLE) + s * (B.astype(DOUBLE) @ A.astype(DOUBLE))
    yield "rounded once", exact.astype(coarse), None
    for name, update in updates(case).items():
        yield name, (W.astype(np.promote_types(SINGLE, A.dtype)) + update).astype(coarse), None
        if A.dtype != coarse:
            yield f"{name}, cast", W + update.astype(coarse), Stages(A.dtype, coarse, coarse)
        else:
            yield f"{name}, summed", W + update, None


def adversarial(dtype: Any, rank: int, adapter: Any = None) -> Iterator[Case]:
    """Weights of size 1, of powers of two, all of one size, and of zero; updates from nothing to overwhelming."""
    shape, adapter = (20, 24), adapter or dtype
    signs = np.sign(normal(1, *shape))
    weights = {
        "normal": normal(2, *shape),
        "powers of two": np.ldexp(signs, rng(3).integers(-9, 4, shape)),
        "one size": signs,
        "zero": 0.0 * signs,
    }
    A, B = normal(4, rank, shape[1]), normal(5, shape[0], rank)
    for W in weights.values():
        for size in (1e-8, 1e-5, 1e-3, 1.0, 30.0):
            for s in (1.7 / rank, 2.0, 0.01, 200.0):
                yield W.astype(dtype), A.astype(adapter), (size * B).astype(adapter), s


def assert_held(case: Case) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # what leaves float16 is no merge, honest or not
        merges = list(honest(case))
    for name, found, stages in merges:
        if np.isfinite(found).all():
            verdict = judged(case, found, stages)
            size = abs(case[2]).max()
            assert verdict.used <= 1.0, f"{name}: {verdict.used} of the bound at {size}, s = {case[3]}"
            assert verdict.factor_holds, f"{name}: {verdict.factor_low} {verdict.factor} {verdict.factor_high}"
            assert verdict.holds == math.isfinite(verdict.bound)


@pytest.mark.parametrize("rank", [1, 2, 7, 64])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_no_honest_merge_leaves_its_bounds(dtype: Any, rank: int) -> None:
    for case in adversarial(dtype, rank):
        assert_held(case)


@pytest.mark.parametrize("rank", [1, 7, 64])
@pytest.mark.parametrize(("dtype", "adapter"), [(HALF, SINGLE), (SINGLE, DOUBLE), (SINGLE, HALF)])
def test_no_honest_merge_of_two_precisions_leaves_its_bounds(dtype: Any, adapter: Any, rank: int) -> None:
    """A sum that is made in the finer precision and then stored rounds twice."""
    for case in adversarial(dtype, rank, adapter):
        assert_held(case)


@pytest.mark.parametrize("rank", [1, 16])
def test_no_honest_merge_into_bfloat16_leaves_its_bounds(rank: int) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for case in adversarial(ml_dtypes.bfloat16, rank, SINGLE):
        assert_held(case)


# ------------------------------------------------------------------------------------------- the bounds are used


@pytest.mark.parametrize("dtype", [HALF, SINGLE])
def test_nine_tenths_of_the_bound_are_used_where_the_sum_rounds(dtype: Any) -> None:
    """Of many entries some lie near the middle of two numbers. Twice the bound would be used to a half."""
    case = normal(0, 99, 99).astype(dtype), normal(1, 1, 99).astype(dtype), (0.1 * normal(2, 99, 1)).astype(dtype), 1.7
    found = case[0] + case[3] * (case[2] @ case[1])
    assert 0.9 < judged(case, found).used <= 1.0


@pytest.mark.parametrize("dtype", [HALF, SINGLE])
@pytest.mark.parametrize("rank", [2, 8, 64])
def test_the_bound_grows_with_the_rank_as_roundings_may(dtype: Any, rank: int) -> None:
    """1 + u + u + … is 1 when it is summed term by term: r − 1 terms are lost, each in one rounding.

    Beside W0 = 0 nothing else rounds. The bound has r + 2 roundings and half a unit of the sum: at rank 64 nine tenths
    of it are used.
    """
    u = np.finfo(dtype).eps / 2
    A, B = np.full((rank, 3), 0.999 * u, dtype), np.ones((3, rank), dtype)
    A[0] = 1.0
    case = np.zeros((3, 3), dtype), A, B, 1.0
    found = term_by_term(A, B)
    assert (found == 1.0).all()
    used = judged(case, found).used
    assert 0.94 * (rank - 1) / (rank + 4) < used <= 1.0


@pytest.mark.parametrize("dtype", [HALF, SINGLE])
def test_of_the_roundings_of_a_single_term_six_tenths_are_used(dtype: Any) -> None:
    """BA, s, and their product: the worst of 250,000 draws. Twice as many would be used to less than a half."""
    worst = 0.0
    for seed in range(25):
        case = np.zeros((99, 99), dtype), normal(seed, 1, 99).astype(dtype), normal(-seed % 99, 99, 1).astype(dtype)
        s = 1.0 + rng(seed).random()
        found = dtype(s) * (case[2] @ case[1])
        worst = max(worst, judged((*case, s), found).used)
    assert 0.6 < worst <= 1.0


def test_what_underflow_takes_is_allowed_and_no_more() -> None:
    """The smallest number of float16 is 2⁻²⁴, and s multiplies what was lost below it."""
    tiny = 2.0**-24
    A, B = np.full((1, 1), 0.49, HALF), np.full((1, 1), tiny, HALF)
    case = np.zeros((1, 1), HALF), A, B, 1000.0
    assert (B @ A).item() == 0.0
    lost = judged(case, case[0])
    assert 0.1 < lost.used <= 1.0
    assert judged(case, case[0] + HALF(20 * lost.bound)).used > 1.0


# ------------------------------------------------------------------------------------------------- the scale (V3)


def pretrained(dtype: Any, size: float, weights: str = "normal", width: int = 96) -> Case:
    """Weights of 0.02, and an update of this size beside them, in float32."""
    W = 0.02 * (np.sign(normal(0, width, width)) if weights == "one size" else normal(0, width, width))
    A, B, s = normal(1, 4, width) / math.sqrt(width), normal(2, width, 4), 2.0
    B *= size * 0.02 / (s * B @ A).std()
    return W.astype(dtype), A.astype(SINGLE), B.astype(SINGLE), s


def merged_by(case: Case, factor: float) -> Any:
    """In float32, then stored, with a scale that is off by a factor."""
    W, A, B, s = case
    return (W.astype(SINGLE) + SINGLE(factor * s) * (B @ A)).astype(W.dtype)


def dtype_named(name: str) -> Any:
    return np.dtype(getattr(pytest.importorskip("ml_dtypes"), name)) if name == "bfloat16" else np.dtype(name)


@pytest.mark.parametrize("size", [0.2, 0.02, 0.002])
@pytest.mark.parametrize("weights", ["normal", "one size"])
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_a_scale_one_percent_off_is_found_by_the_factor(name: str, weights: str, size: float) -> None:
    """In bfloat16 most of an update of 0.2 % is swallowed: a unit in the last place is 0.4 to 0.8 % of a weight."""
    case = pretrained(dtype_named(name), size, weights)
    right = judged(case, merged_by(case, 1.0))
    assert right.holds
    assert (right.swallowed > 0.5) == (name == "bfloat16" and size == 0.002)
    for factor in (0.99, 1.01):
        wrong = judged(case, merged_by(case, factor))
        assert not wrong.factor_holds
        assert not wrong.holds
        assert right.factor_low == wrong.factor_low  # what an honest one comes to does not depend on what was found
        assert wrong.factor is not None
        assert wrong.factor_low is not None
        assert (wrong.factor > wrong.factor_low) == (factor > 1.0)


@pytest.mark.parametrize("factor", [1.0 - 1e-4, 1.0 + 1e-4])
def test_a_scale_off_by_a_ten_thousandth_beside_weights_of_one_size_is_found(factor: float) -> None:
    case = pretrained(SINGLE, 0.05, "one size")
    wrong = judged(case, merged_by(case, factor))
    assert judged(case, merged_by(case, 1.0)).holds
    assert not wrong.factor_holds
    assert not wrong.holds
    assert wrong.factor == pytest.approx(factor, abs=1e-5)


@pytest.mark.parametrize("size", [0.2, 0.02, 0.002])
def test_the_interval_of_the_factor_is_narrow_in_float32(size: float) -> None:
    """Measured: 1.4 to 2.3 millionths wide."""
    case = pretrained(SINGLE, size)
    verdict = judged(case, merged_by(case, 1.0))
    assert verdict.factor_low is not None
    assert verdict.factor_high is not None
    assert 0.0 < verdict.factor_high - verdict.factor_low < 4e-6
    assert verdict.factor_low < verdict.factor < verdict.factor_high  # type: ignore[operator]


def test_an_update_that_rounding_swallows_whole_has_a_factor_of_nothing() -> None:
    """1 − 10⁻⁸ is 1 in float32: an honest merge changes nothing, and one that does did not come from this update."""
    case = np.ones((4, 4), SINGLE), np.full((1, 4), 1e-4, SINGLE), np.full((4, 1), -1e-4, SINGLE), 1.0
    honest = judged(case, merged_by(case, 1.0))
    assert honest.holds
    assert (honest.factor, honest.swallowed) == (0.0, 1.0)
    assert not judged(case, np.nextafter(case[0], SINGLE(0))).holds


def test_a_factor_outside_its_interval_does_not_hold_though_every_entry_keeps_its_bound() -> None:
    """Below a power of two the units are half as large, so (V1), which takes the larger, leaves room on that side.

    Terms of ±1/32 that cancel make E half as large as that room, and larger than the update, −10⁻⁸, itself.
    """
    A = np.array([[1.0], [1.0]], SINGLE)
    B = np.array([[1 / 32 - 1e-8, -1 / 32]], SINGLE)
    case = np.ones((1, 1), SINGLE), A, B, 1.0
    below = judged(case, np.nextafter(case[0], SINGLE(0)))
    assert judged(case, case[0]).holds
    assert below.used <= 1.0
    assert not below.factor_holds
    assert not below.holds


# ---------------------------------------------------------------------------------------------- what is unknown


def of_high_rank(rank: int) -> Case:
    A, B = normal(0, rank, 5).astype(HALF), normal(1, 4, rank).astype(HALF)
    B[0] = 0.0  # a row of which all is known
    return normal(2, 4, 5).astype(HALF), A, B, 0.001


def test_where_a_bound_is_infinite_nothing_holds_and_it_is_said() -> None:
    """2050 terms and two roundings more, in units of 2⁻¹¹: (r + 2) u is more than 1."""
    case = of_high_rank(2050)
    right = case[0] + case[3] * (case[2] @ case[1])
    wrong = right.copy()
    wrong[1:] += HALF(7.0)
    for found in (right, wrong):
        verdict = judged(case, found)
        assert not verdict.can_be_said
        assert not verdict.holds
        assert "W is not W0 + s·BA: cannot be said" in Certificate((verdict,), gaps()).diagnosis


def test_where_the_bound_is_just_finite_an_honest_merge_holds() -> None:
    case = of_high_rank(2045)
    verdict = judged(case, case[0] + case[3] * (case[2] @ case[1]))
    assert verdict.can_be_said
    assert verdict.holds


# ------------------------------------------------------------------------------------------ which entry, and where


def test_the_verdict_is_that_of_the_entry_that_uses_most_of_its_bound() -> None:
    """A thousand rounds by more than the entry beside it is wrong."""
    W = np.array([[1000.0, 1e-3]], SINGLE)
    case = W, np.array([[0.3, 0.3]], SINGLE), np.array([[1.0]], SINGLE), 1.0
    found = merged_by(case, 1.0)
    right = judged(case, found)
    assert right.holds
    wrong = found.copy()
    wrong[0, 1] += SINGLE(1e-6)
    verdict = judged(case, wrong)
    exact = W.astype(DOUBLE) + case[2].astype(DOUBLE) @ case[1].astype(DOUBLE)
    gap = abs(wrong - exact)
    assert gap[0, 0] > gap[0, 1]  # contrast: the largest gap is not the one that tells
    assert (verdict.entry, verdict.wrong, verdict.gap) == ((0, 1), 1, gap[0, 1])
    assert verdict.used == verdict.gap / verdict.bound > 1.0
    assert not verdict.holds


@pytest.mark.parametrize("entries", [1, 30, 100, 10**6])
def test_the_blocks_in_which_an_array_is_read_change_no_verdict(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = pretrained(SINGLE, 0.1, width=17)
    found = merged_by(case, 1.0)
    found[13, 5] += SINGLE(1e-5)
    found[16, 2] += SINGLE(3e-5)
    whole = judged(case, found)
    monkeypatch.setattr(certificate, "ENTRIES", entries)
    blocks = judged(case, found)
    assert (whole.entry, whole.wrong) == ((16, 2), 2)
    exactly = ("entry", "wrong", "gap", "bound", "used", "swallowed")
    assert all(getattr(blocks, name) == getattr(whole, name) for name in exactly)
    for name in ("factor", "factor_low", "factor_high"):
        assert getattr(blocks, name) == pytest.approx(getattr(whole, name), rel=1e-14)


class OnDisk:
    """An array that is read when rows of it are asked for, and notes the most that were."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype, self.most = array, array.shape, array.dtype, 0

    def __getitem__(self, rows: slice) -> Any:
        read = self.array[rows]
        self.most = max(self.most, read.size)
        return read


def test_no_array_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "ENTRIES", 100)
    W, A, B, s = pretrained(SINGLE, 0.1, width=50)
    base, merged = ({"W": OnDisk(a), "b": OnDisk(normal(9, 500))} for a in (W, merged_by((W, A, B, s), 1.0)))
    verdicts = list(certify_arrays(base, {"W": LoraLinear(Linear(W), A, B, s)}, merged))  # type: ignore[arg-type]
    assert [(verdict.name, verdict.adapted, verdict.holds) for verdict in verdicts] == [
        ("W", True, True),
        ("b", False, True),
    ]
    assert {array.most for array in (*base.values(), *merged.values())} == {100}


@pytest.mark.parametrize(
    "change", [lambda a: -a, lambda a: a.astype(DOUBLE), lambda a: a + SINGLE(1e-45)], ids=["sign", "type", "smallest"]
)
def test_a_frozen_array_is_equal_to_the_bit_or_not_at_all(change: Any) -> None:
    """A zero has a sign, and the same numbers in another precision are other bits."""
    zeros = np.zeros((3, 2), SINGLE)
    (right,) = certify_arrays({"x": zeros}, {}, {"x": zeros.copy()})
    (wrong,) = certify_arrays({"x": zeros}, {}, {"x": change(zeros)})
    assert right.holds
    assert not wrong.holds


# ------------------------------------------------------------------------------------------------ the whole model


def gaps(**changes: Any) -> ModelGaps:
    """Those of an honest merge in float32."""
    of_size_one = {"size": 1.0, "contrast": 1.0, "gap": 1e-6, "own": 1e-6, "gap64": 1e-15, "coarse": 1e-6}
    return ModelGaps(**{**of_size_one, **changes})


ROOM = 2.0**-19  # of a gap that is rounding in float32 there may be this much in float64: 2¹⁰ times what epsilon says


@pytest.mark.parametrize("own", [1e-6, 1e-2])
def test_a_gap_must_shrink_nearly_as_much_as_the_precision(own: float) -> None:
    assert gaps(gap=own, own=own, coarse=own, gap64=0.99 * ROOM * own).is_rounding
    assert not gaps(gap=own, own=own, coarse=own, gap64=1.01 * ROOM * own).is_rounding


def test_a_gap_of_float16_must_shrink_by_the_epsilons_of_that() -> None:
    own, room = 1e-2, 2.0**10 * 2.0**-42
    for factor, is_rounding in ((0.99, True), (1.01, False)):
        found = gaps(precision="float16", gap=own, own=own, coarse=own, gap64=factor * room * own)
        assert found.is_rounding == is_rounding


def test_a_gap_of_float64_is_held_against_the_same_in_float32() -> None:
    for factor, is_rounding in ((0.99, True), (1.01, False)):
        own = factor * ROOM * 1e-6
        assert gaps(precision="float64", gap=own, own=own, gap64=own).is_rounding == is_rounding


def test_where_rounding_happens_to_cancel_it_may_be_of_the_size_of_epsilon() -> None:
    lucky = {"own": 0.0, "coarse": 0.0}
    eps = 2.0**-23
    assert gaps(**lucky, gap=63 * eps, gap64=0.99 * ROOM * eps).is_rounding
    assert not gaps(**lucky, gap=65 * eps, gap64=0.0).is_rounding
    assert not gaps(**lucky, gap=0.0, gap64=1.01 * ROOM * eps).is_rounding


def test_a_gap_must_be_like_that_of_an_honest_merge() -> None:
    assert gaps(own=1e-6, gap=63e-6).is_rounding
    assert not gaps(own=1e-6, gap=65e-6).is_rounding


def test_a_certificate_holds_where_every_array_and_the_whole_model_do() -> None:
    array = ArrayVerdict("W", True, 0.5, 1.0, 0.5, (0, 0), 0, 1.0, 0.9, 1.1)
    assert Certificate((array,), gaps()).holds
    for wrong in ({"used": 1.01}, {"bound": math.inf}, {"factor": 1.2}, {"factor": 0.8}):
        assert not Certificate((array, dataclasses.replace(array, **wrong)), gaps()).holds
    assert not Certificate((array,), gaps(gap=1.0)).holds
