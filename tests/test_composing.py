"""The laws of adapters made of adapters: what says exact is, and what does not says how far it is off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from builders import assert_agree, hashes, model
from serving_world import adapters_of, base_of

from lora_np.engine.arrays import Array
from lora_np.parameters import parameters, with_parameters
from lora_np.serving.adapter import Adapter, Factors, applied
from lora_np.serving.composing import (
    Composed,
    added,
    averaged_apart,
    compressed,
    concatenated,
    difference,
    distance,
    norm,
    singular_values,
)
from lora_np.wrappers import merge


def deltas(adapter: Adapter) -> dict[str, Array]:
    """ΔW of every map, formed: what the library does not do."""
    return {path: f.scaling * np.asarray(f.B @ f.A, np.float64) for path, f in adapter.factors.items()}


def size(arrays: dict[str, Array]) -> float:
    return math.sqrt(sum(float((array**2).sum()) for array in arrays.values()))


def off(made: Adapter, meant: dict[str, Array]) -> float:
    """The relative error of an adapter, by forming everything."""
    is_ = deltas(made)
    return size({path: is_.get(path, 0.0) - delta for path, delta in meant.items()}) / size(meant)


def weighted(adapters: list[Adapter], weights: list[float]) -> dict[str, Array]:
    total: dict[str, Any] = {}
    for weight, adapter in zip(weights, adapters, strict=True):
        for path, delta in deltas(adapter).items():
            total[path] = total.get(path, 0.0) + weight * delta
    return total


def twins(count: int = 3) -> list[Adapter]:
    """Adapters of the same maps and ranks, with scales of their own."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        factors = {
            path: Factors(rng.standard_normal((2, 8)), rng.standard_normal((8, 2)), 0.5 + i)
            for path in ("blocks.0.attention.query", "blocks.1.attention.value")
        }
        made.append(Adapter(f"t{i}", factors))
    return made


def test_a_weighted_sum_is_exact_whatever_ranks_maps_and_scales() -> None:
    base = base_of()
    adapters, weights = adapters_of(base)[:4], [0.7, -1.3, 2.0, 0.25]
    found = concatenated("sum", adapters, weights)
    assert found.exact
    assert found.label.startswith("exact: 0.7·a0 + -1.3·a1")
    meant = weighted(adapters, weights)
    for path, delta in deltas(found.adapter).items():
        assert_agree(delta, meant[path], path)
        assert found.adapter.ranks[path] == sum(a.ranks.get(path, 0) for a in adapters)
    assert set(found.adapter.factors) == set(meant)


def test_a_sum_is_served_as_the_sum_of_the_updates() -> None:
    base = base_of()
    adapters = adapters_of(base)[:2]
    tokens = np.array([[1, 2, 3, 4]])
    both = added("both", adapters)
    meant = weighted(adapters, [1.0, 1.0])
    by_hand = with_parameters(base, {f"{p}.W": parameters(base)[f"{p}.W"] + delta for p, delta in meant.items()})
    assert_agree(applied(base, both.adapter)(tokens), by_hand(tokens))
    assert abs(by_hand(tokens) - base(tokens)).max() > 0.5  # contrast


def test_weight_one_alone_is_the_identity_to_the_bit() -> None:
    for adapter in adapters_of(base_of(np.float32)):
        for found in (concatenated("x", [adapter]), concatenated("x", [adapter], [1.0]), added("x", [adapter])):
            assert found.exact
            assert found.adapter.digest == adapter.digest
            assert found.adapter.name == "x"
        assert concatenated("x", [adapter], [0.5]).adapter.digest != adapter.digest


def test_averaging_factors_apart_says_how_far_its_cross_terms_lead() -> None:
    adapters, weights = twins(), [0.5, 0.3, 0.2]
    found = averaged_apart("mean", adapters, weights)
    assert not found.exact
    assert "cross terms" in found.label
    assert found.error == pytest.approx(off(found.adapter, weighted(adapters, weights)), rel=1e-10)
    assert found.label.startswith(f"approximate, relative error {found.error:.3g}: ")
    assert found.error > 0.3
    one = averaged_apart("one", adapters[:1], [1.0])
    assert one.exact  # one adapter has no cross terms
    with pytest.raises(ValueError, match="the same maps and ranks"):
        averaged_apart("mean", adapters_of(base_of())[:2])


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_a_compressed_adapter_is_the_best_of_its_rank_and_its_error_is_true(rank: int) -> None:
    whole = added("sum", twins()).adapter  # of rank 6
    found = compressed("small", whole, rank)
    assert max(found.adapter.ranks.values()) == rank
    meant = deltas(whole)
    assert found.error == pytest.approx(off(found.adapter, meant), rel=1e-9)
    best = {path: np.linalg.svd(delta, compute_uv=False)[rank:] for path, delta in meant.items()}
    assert found.error == pytest.approx(size(best) / size(meant), rel=1e-9)
    assert found.error > 0.01
    errors = [compressed("small", whole, k).error for k in range(1, 7)]
    assert errors == sorted(errors, reverse=True)


def test_compressing_to_a_rank_that_is_there_already_changes_no_bit() -> None:
    whole = added("sum", twins()).adapter
    found = compressed("same", whole, 6)
    assert found.exact
    assert found.adapter.digest == whole.digest
    doubled = added("twice", [twins()[0], twins()[0]]).adapter  # stored as rank 4, and of rank 2
    again = compressed("once", doubled, 2)
    assert again.exact
    assert off(again.adapter, deltas(doubled)) < 1e-14
    with pytest.raises(ValueError, match="rank must be at least 1"):
        compressed("none", whole, 0)


def test_no_update_is_ever_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a map of 4000 × 3000: all that is in memory at once is a 25th of it."""
    rng = np.random.default_rng(0)
    big = Adapter("big", {"m": Factors(rng.standard_normal((4, 3000)), rng.standard_normal((4000, 4)), 1.0)})
    import tracemalloc

    tracemalloc.start()
    compressed("small", big, 2)
    distance(big, big)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4000 * 3000 * 8 / 25


def test_norms_and_singular_values_are_those_of_the_update() -> None:
    for adapter in adapters_of(base_of()):
        meant = deltas(adapter)
        assert norm(adapter) == pytest.approx(size(meant), rel=1e-12)
        for path, factors in adapter.factors.items():
            values = np.linalg.svd(meant[path], compute_uv=False)[: len(factors.A)]
            assert_agree(singular_values(factors)[: len(values)], values)
    one, other = twins(2)
    assert distance(one, other) == pytest.approx(
        size({p: d - deltas(other)[p] for p, d in deltas(one).items()}) / size(deltas(other)), rel=1e-12
    )
    assert distance(one, one) < 1e-14
    nothing = Adapter("zero", {p: f._replace(B=0 * f.B) for p, f in one.factors.items()})
    assert distance(nothing, nothing) == 0.0
    assert distance(one, nothing) == math.inf


def test_the_difference_of_two_checkpoints_is_an_adapter_of_the_first() -> None:
    base, adapter = base_of(), adapters_of(base_of())[1]
    before = hashes(parameters(base))
    after = merge(applied(base, adapter))
    found = difference("back", base, after, 2)
    assert found.exact
    assert set(found.adapter.factors) == set(adapter.factors)
    assert off(found.adapter, deltas(adapter)) < 1e-13
    assert hashes(parameters(base)) == before
    small = difference("back", base, after, 1)
    assert small.error == pytest.approx(off(small.adapter, deltas(adapter)), rel=1e-6)
    assert "approximate" in small.label


def test_a_difference_names_what_no_adapter_holds() -> None:
    base = base_of()
    arrays = parameters(base)
    moved = {"norm.gamma": arrays["norm.gamma"] + 1.0, "blocks.0.mlp.up.W": arrays["blocks.0.mlp.up.W"] + 1.0}
    found = difference("some", base, with_parameters(base, moved), 1)
    assert "left out: norm.gamma" in found.label
    left, whole = moved["norm.gamma"].size, moved["norm.gamma"].size + moved["blocks.0.mlp.up.W"].size
    assert found.error == pytest.approx(math.sqrt(left / whole), rel=1e-9)
    assert list(found.adapter.factors) == ["blocks.0.mlp.up"]
    with pytest.raises(ValueError, match="nothing for an adapter to hold"):
        difference("none", base, base, 1)
    with pytest.raises(ValueError, match="different models"):
        difference("none", base, model(2, layers=1), 1)


@pytest.mark.parametrize("weights", [[1.0], [1.0, math.nan], [1.0, math.inf], []])
def test_every_adapter_has_one_finite_weight(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="one finite weight"):
        concatenated("x", twins(2), weights)
    with pytest.raises(ValueError, match="one finite weight"):
        concatenated("x", [])


def test_a_label_says_exact_or_how_far_off() -> None:
    adapter = twins(1)[0]
    assert Composed(adapter, 0.0, "why").label == "exact: why"
    assert Composed(adapter, 0.1234567, "why").label == "approximate, relative error 0.123: why"
