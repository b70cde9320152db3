"""Few bits: the levels are those that were printed, bounds hold and are reached, and no order of merging is free."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest

from lora_np.precision import (
    KINDS,
    NF4,
    Quantised,
    bases,
    doubly_quantised,
    drift,
    orders,
    quantised,
    sizes_swallowed,
    swallowed,
)
from lora_np.precision.quantization import BLOCK, GROUP, normal_float

# Dettmers et al. 2023, arXiv:2305.14314v1, appendix E, as printed: made in float32, so 2^-24 of each may be off;
PRINTED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
GAPS = {"int8": 1 / 127, "nf4": max(np.diff(PRINTED))}


@pytest.fixture(autouse=True)
def _types() -> None:
    pytest.importorskip("ml_dtypes")


def weights(seed: int = 0, shape: tuple[int, int] = (24, 80)) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and an update of rank 2 and of their size."""
    rng = np.random.default_rng(seed)
    change = rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))
    return rng.standard_normal(shape), change / np.sqrt(np.mean(change**2))


def test_the_levels_of_nf4_are_those_that_were_printed() -> None:
    """Quantiles in float32 are good to some units in the last place; a wrong offset moves a level by 1e-3."""
    np.testing.assert_allclose(NF4, PRINTED, rtol=0, atol=2e-7)
    assert len(NF4) == 16
    assert NF4[7] == 0.0


def test_normal_float_has_as_many_levels_as_its_bits_say() -> None:
    for bits in (2, 3, 5, 8):
        book = normal_float(bits)
        assert len(set(book)) == 2**bits
        assert (book[0], book[-1]) == (-1.0, 1.0)
        assert (np.diff(book) > 0).all()
    with pytest.raises(ValueError, match="at least 2"):
        normal_float(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_no_number_is_farther_off_than_its_bound_and_some_nearly_reach_it(kind: str, seed: int) -> None:
    W, _ = weights(seed, (40, 96))
    found = quantised(W, kind)
    used = abs(W - found.numbers) / found.bound
    assert used.max() <= 1.0
    assert used.max() > 0.99  # of 3840 numbers some lie near a middle
    assert np.array_equal(quantised(found.numbers, kind).codes, found.codes)  # what is on the grid stays there


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_bound_is_half_the_largest_gap_of_a_block_and_is_reached_in_its_middle(kind: str) -> None:
    levels = np.arange(-127, 128) / 127 if kind == "int8" else np.array(PRINTED)
    widest = int(np.diff(levels).argmax())
    W = np.full((2, BLOCK), 3.0 * (levels[widest] + levels[widest + 1]) / 2)
    W[:, 0] = 3.0
    found = quantised(W, kind)
    assert (found.numbers[:, 0] == 3.0).all()
    assert abs(found.numbers - W).max() == pytest.approx(3.0 * GAPS[kind] / 2, rel=1e-5)
    assert found.bound.max() == pytest.approx(3.0 * GAPS[kind] / 2, rel=1e-5)


def test_blocks_of_nf4_run_over_rows_and_the_last_may_be_shorter() -> None:
    W, _ = weights(1, (3, 50))
    whole = quantised(W, "nf4").numbers.reshape(-1)
    for start in range(0, W.size, BLOCK):
        piece = W.reshape(-1)[start : start + BLOCK]
        np.testing.assert_array_equal(whole[start : start + BLOCK], quantised(piece[None], "nf4").numbers[0])


def test_zeros_stay_zero_and_what_cannot_be_stored_is_refused() -> None:
    for kind in KINDS:
        assert not quantised(np.zeros((2, 70)), kind).numbers.any()
        with pytest.raises(ValueError, match="finite"):
            quantised(np.array([[1.0, np.nan]]), kind)
    with pytest.raises(ValueError, match="one of float16"):
        quantised(np.ones((1, 1)), "int3")
    with pytest.raises(ValueError, match="does not reach 1e\\+05"):
        quantised(np.full((1, 1), 1e5), "float16")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_an_update_below_half_a_unit_is_swallowed_and_above_it_is_not(kind: str) -> None:
    W = np.full((4, 4), 1.5)  # in the middle of a binade
    half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[kind]
    assert swallowed(W, np.full_like(W, 0.99 * half), kind) == 1.0
    assert swallowed(W, np.full_like(W, 1.01 * half), kind) == 0.0
    assert swallowed(W, np.zeros_like(W), kind) == 0.0


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_update_below_half_the_smallest_gap_leaves_no_trace_and_above_the_largest_it_does(kind: str) -> None:
    W, change = weights(2, (4, BLOCK))
    W = quantised(W, kind).numbers
    scale = abs(W).max(axis=1, keepdims=True)
    signs = np.where(abs(W) == scale, 0.0, np.where(W > 0, -1.0, 1.0))  # the scale of a block stays
    least = GAPS[kind] if kind == "int8" else np.diff(PRINTED).min()
    assert swallowed(W, signs * scale * 0.49 * least, kind) == 1.0
    assert swallowed(W, signs * scale * 0.51 * GAPS[kind], kind) == 0.0 if kind == "int8" else True
    assert swallowed(W, signs * scale * 1.01 * GAPS[kind], kind) == 0.0


def test_the_smaller_an_update_and_the_fewer_the_bits_the_more_is_swallowed() -> None:
    W, change = weights(3)
    found = sizes_swallowed(W, change, [0.001, 0.01, 0.1], KINDS)
    for kind in KINDS:
        sizes, lost = zip(*found[kind], strict=True)
        assert sizes == (0.001, 0.01, 0.1)
        assert lost[0] >= lost[1] >= lost[2]
    for one, other in itertools.pairwise(KINDS):
        assert found[one][1][1] < found[other][1][1]


@pytest.mark.parametrize("kind", KINDS)
def test_both_orders_of_merging_stay_within_their_bounds_and_the_second_pays_twice(kind: str) -> None:
    W, change = weights(4)
    change = 0.1 * change
    first = quantised(W, kind)
    after, before = quantised(W + change, kind), quantised(first.numbers + change, kind)
    assert (abs(after.numbers - (W + change)) <= after.bound).all()
    assert (abs(before.numbers - (W + change)) <= before.bound + first.bound).all()
    found = orders(W, change, kind)
    assert 0.0 < found["merge, then quantise"] < found["quantise, then merge"]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_of_the_three_bases_only_the_dequantised_one_gives_what_was_trained(kind: str) -> None:
    W, change = weights(5)
    change = 0.05 * change
    found, base = bases(W, change, kind), quantised(W, kind)
    size = float(np.sqrt(np.mean(change**2)))
    assert found.dequantised < min(found.in_16_bits, found.requantised)
    stored, twice = quantised(base.numbers + change, "bfloat16"), quantised(W, "bfloat16").bound + 2.0**-9 * abs(change)
    of_base = np.sqrt(np.mean((W - base.numbers) ** 2)) / size
    assert abs(found.in_16_bits - of_base) <= 2.1 * np.sqrt(np.mean(twice**2)) / size  # two roundings to 16 bits
    assert found.dequantised <= np.sqrt(np.mean(stored.bound**2)) / size
    assert found.requantised <= np.sqrt(np.mean(quantised(base.numbers + change, kind).bound ** 2)) / size


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_unmerging_drifts_within_its_bound_and_one_adapter_alone_soon_stops(kind: str) -> None:
    W, change = weights(6, (16, 16))
    several = drift(W, [0.3 * change, 0.2 * change.T, -0.1 * change], kind, 1000)
    assert several.changed[-1] > several.changed[0] > 0.0
    assert all(one <= bound for one, bound in zip(several.largest, several.bound, strict=True))
    assert several.largest[-1] > several.largest[0]
    alone = drift(W, [0.3 * change], kind, 50)
    assert len(set(alone.changed[5:])) == 1
    assert drift(W, [0.0 * change], kind, 3).changed == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="at least one cycle"):
        drift(W, [], kind)


def test_a_checker_of_bounds_sees_a_number_that_is_one_level_off() -> None:
    W, _ = weights(7)
    right = quantised(W, "nf4")
    wrong = Quantised("nf4", np.roll(right.numbers, 1, axis=0), right.codes, right.bound, right.bits)
    assert (abs(W - wrong.numbers) > wrong.bound).any()


def test_scales_in_8_bits_cost_an_eighth_of_their_bits_and_stay_within_their_bound() -> None:
    r"""(Q6); some numbers are farther off than (Q1) allows, or nothing was quantised again."""
    W, _ = weights(3, (300, 140))  # 657 blocks: two groups of 256, and a shorter one that ends with a shorter block
    W *= np.exp(np.random.default_rng(4).standard_normal((300, 1)))  # scales that differ
    once, twice = quantised(W, "nf4"), doubly_quantised(W)
    assert (once.bits, twice.bits) == (4.5, 4.0 + 8 / 64 + 32 / (64 * 256))
    assert np.array_equal(once.codes, twice.codes)
    off = abs(W - twice.numbers)
    assert (off <= twice.bound).all()
    assert (off > once.bound).any()


def test_scales_that_are_all_the_same_or_zero_are_kept_as_they_are() -> None:
    for W in (np.zeros((3, 50)), np.tile([[3.0, -1.0]], (5, 64))):
        np.testing.assert_allclose(doubly_quantised(W).numbers, quantised(W, "nf4").numbers, rtol=1e-15)


def test_a_scale_is_off_by_half_a_step_of_its_group_and_no_group_feels_another() -> None:
    """Each block is its scale alone, and level 1 of it is the scale that was kept."""
    scale = np.concatenate([np.linspace(1.0, 2.0, GROUP), np.linspace(90.0, 100.0, GROUP)])
    W = np.zeros((len(scale), BLOCK))
    W[:, 0] = scale
    off = abs(doubly_quantised(W).numbers[:, 0] - scale).reshape(2, GROUP).max(axis=1)
    step = abs(scale - scale.mean()).reshape(2, GROUP).max(axis=1) / 127
    assert (off <= 0.5 * step).all()
    assert (off > 0.4 * step).all()


def test_the_table_of_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "precision.md").read_text(encoding="utf-8")
    runpy.run_module("lora_np.precision", run_name="__main__")
    said = page.partition("<!-- precision: table -->\n")[2].partition("<!-- end -->")[0]
    assert capsys.readouterr().out == said
    assert "| nf4 |" in said
