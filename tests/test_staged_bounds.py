r"""E of (V1) and (V4), one formula for merges of ours and of others, from both sides: underflow and double rounding.

Every honest recipe is written out here in NumPy: products and s in float32, in three orders; then the update is cast to
the type in which the adapter is stored, to that of the base, to both, or to none; then it is added in float32 and
rounded to the type of the base. Factors reach from 1 down to the subnormal numbers of float32, some are as large as
10⁴, and some stand just above a power of two, where a rounding takes its largest share. No recipe leaves E, and E is
nearly reached: in float32 alone to 0.69 of it, with a cast to 0.99 or more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lora_np.certificate import Stages as OwnStages
from lora_np.certificate import error_of_update
from lora_np.formats.tensors import dtype_of
from lora_np.formats.updates import LowRank, Update
from lora_np.merges.expecting import expectation, stages_of
from lora_np.merges.judging import verdict_of
from lora_np.rounding import of_an_update, spacing, underflow
from lora_np.wrappers import Expected

TYPES = ("float32", "float16", "bfloat16")
F = np.float32
N, WIDTH = 24, 30
Factors = tuple[np.ndarray, np.ndarray, float]

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in cast:RuntimeWarning")


@pytest.fixture(autouse=True)
def _types() -> None:
    pytest.importorskip("ml_dtypes")


def factors(kind: Any) -> Iterator[Factors]:
    rng = np.random.default_rng(0)
    for rank in (1, 3):
        for size in (1.0, 1e-3, 1e-6, 1e-7, 2e-8, 1e-20, 1e-38, 1e-42):
            for s in (1.0, 0.3, 100.0):
                for A, B in (
                    (rng.standard_normal((rank, WIDTH)), rng.standard_normal((N, rank))),
                    (np.ones((rank, WIDTH)), np.linspace(1, 1.02, N)[:, None] * np.ones((N, rank))),
                    (1e4 * rng.standard_normal((rank, WIDTH)), rng.standard_normal((N, rank))),
                ):
                    yield A.astype(kind), (size * B).astype(kind), s


def recipes(A: np.ndarray, B: np.ndarray, s: float, stored: Any, base: Any) -> Iterator[tuple[str, np.ndarray]]:
    """s·BA in float32 and its casts, as the numbers that are added."""
    a, b = A.astype(F), B.astype(F)
    one_by_one = np.zeros((N, WIDTH), F)
    for k in range(len(a)):
        one_by_one = one_by_one + b[:, k : k + 1] * a[k]
    for order, product in {"after": (b @ a) * F(s), "first": (F(s) * b) @ a, "one by one": one_by_one * F(s)}.items():
        for casts in ((), (stored,), (base,), (stored, base)):
            cast = product
            for kind in casts:
                cast = cast.astype(kind).astype(F)
            if np.isfinite(cast).all():
                yield f"{order}, {len(casts)} casts", cast


def update_of(A: np.ndarray, B: np.ndarray, s: float) -> Update:
    return Update("W", (N, WIDTH), (N, WIDTH), (LowRank(A, B, s),))


# How much of E some recipe must reach; measured 0.69, 1.00, 1.00, then 0.99 to 1.00.
REACHED = {("float32", "float32"): 0.6}


@pytest.mark.parametrize("base", TYPES)
@pytest.mark.parametrize("stored", TYPES)
def test_no_recipe_leaves_its_bound_and_the_bound_is_nearly_reached(stored: str, base: str) -> None:
    kinds, worst = (dtype_of(stored), dtype_of(base)), {}
    for A, B, s in factors(kinds[0]):
        update, W = update_of(A, B, s), np.zeros((N, WIDTH), kinds[1])
        made = expectation(update, W, slice(0, N), stages_of(update, W, W))
        for name, product in recipes(A, B, s, *kinds):
            gap = abs(product.astype(np.float64) - made.update)
            used = float(np.divide(gap, made.E, out=np.zeros_like(gap), where=gap > 0.0).max())
            assert used <= 1.0, (name, s, used)
            worst[name] = max(worst.get(name, 0.0), used)
    assert max(worst.values()) >= REACHED.get((stored, base), 0.95), worst


def weights(kind: Any) -> dict[str, np.ndarray]:
    """Of size one, powers of two, and at the small end of the type."""
    rng = np.random.default_rng(1)
    tiny = 2.0 * underflow(kind)
    return {
        "normal": rng.standard_normal((N, WIDTH)).astype(kind),
        "powers of two": np.exp2(rng.integers(-8, 3, (N, WIDTH))).astype(kind),
        "subnormal": (tiny * rng.integers(-9, 10, (N, WIDTH))).astype(kind),
        "zero": np.zeros((N, WIDTH), kind),
    }


@pytest.mark.parametrize("base", TYPES)
@pytest.mark.parametrize("stored", TYPES)
def test_whole_merges_hold_at_every_size_and_what_is_four_bounds_off_does_not(stored: str, base: str) -> None:
    kinds = dtype_of(stored), dtype_of(base)
    used = 0.0
    for name, W in weights(kinds[1]).items():
        for A, B, s in list(factors(kinds[0]))[::11]:
            update = update_of(A, B, s)
            stages = stages_of(update, W, W)
            for recipe, product in recipes(A, B, s, *kinds):
                found = (W.astype(F) + product).astype(kinds[1])
                if not np.isfinite(found).all():
                    continue
                verdict = verdict_of(update, W, found, stages)
                assert verdict.used <= 1.0, (name, recipe, s)
                assert verdict.factor_holds, (name, recipe, s)
                used = max(used, verdict.used)
            made = expectation(update, W, slice(0, N), stages)
            bound = made.E + 0.5 * spacing(abs(made.value) + made.E, kinds[1]) + made.e
            spoiled = np.where(np.arange(W.size).reshape(W.shape) == 94, made.value + 4.0 * bound, found).astype(
                kinds[1]
            )
            if np.isfinite(spoiled).all():
                assert verdict_of(update, W, spoiled, stages).wrong == 1, (name, s)
    assert used >= 0.9


@pytest.mark.parametrize(
    ("stored", "base", "exact", "twice"),
    [("float16", "bfloat16", 1.00390624, 1.0), ("float32", "bfloat16", 1.003906250001, 1.0078125)],
)
def test_a_number_beside_a_tie_is_rounded_twice_and_still_held(
    stored: str, base: str, exact: float, twice: float
) -> None:
    """1.0039 lies beside the middle of two neighbours of bfloat16: by way of float16, or float32, it may fall to
    either, which one rounding alone would not do."""
    A, B = np.full((1, WIDTH), 1.0, F), np.full((N, 1), exact, F)
    update, W = update_of(A, B, 1.0), np.zeros((N, WIDTH), dtype_of(base))
    stages = stages_of(update, W, W)
    for value in (1.0, 1.0078125, twice):
        found = np.full((N, WIDTH), value).astype(dtype_of(base))
        assert verdict_of(update, W, found, stages).used <= 1.0
    found = np.full((N, WIDTH), 1.015625).astype(dtype_of(base))
    assert verdict_of(update, W, found, stages).wrong == N * WIDTH


def test_s_may_meet_the_factors_before_their_product_does_though_it_makes_them_underflow() -> None:
    """0.3·10⁻⁴⁵ is no number of float32, and A is 10³⁰: the whole update is lost in one order and kept in the other."""
    A, B = np.full((1, WIDTH), 1e30, F), np.full((N, 1), 1e-45, F)
    update, W = update_of(A, B, 0.3), np.zeros((N, WIDTH), F)
    stages = stages_of(update, W, W)
    lost, kept = (F(0.3) * B) @ A, (B @ A) * F(0.3)
    assert (lost == 0.0).all()
    assert (kept > 0.0).all()
    for found in (lost, kept):
        assert verdict_of(update, W, found, stages).used <= 1.0
    assert verdict_of(update, W, 9.0 * kept, stages).wrong == N * WIDTH


@pytest.mark.parametrize("cast", [None, "float16", "bfloat16"])
def test_merges_of_ours_and_of_others_are_held_against_one_formula(cast: str | None) -> None:
    A, B, s = next(iter(factors(F)))
    update = s * (B.astype(float) @ A.astype(float))
    terms = s * (abs(B).astype(float) @ abs(A).astype(float))
    expected = Expected(update, update, terms, 3, F, 5.0)
    kind = None if cast is None else dtype_of(cast)
    ours = error_of_update(expected, OwnStages(F, F, kind))
    assert (ours == of_an_update(update, terms, 3, 5.0, F, () if kind is None else (kind,))).all()
