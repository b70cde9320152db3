"""Cells on a tiny model: a row follows from its settings alone, and says what was run."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from builders import adapted, model

from lora_np.lora import adapters, delta
from lora_np.methods import adapt
from lora_np.paper import runs_lessons
from lora_np.paper.cells import Cell, Row
from lora_np.paper.depth import norms
from lora_np.paper.measuring import KINDS, row_of
from lora_np.paper.runs import method_of
from lora_np.paper.runs_lessons import cut
from lora_np.paper.variants import VARIANTS
from lora_np.parameters import count, parameters, with_parameters

CELL = Cell(task="sentiment", steps=2, examples=8, scored=3, batch=4).having({"rank": 2})
SETTINGS: dict[str, dict[str, Any]] = {
    "subspaces": {"small": 1, "large": 3},
    "intrinsic": {"dimensions": [2, 8]},
    "untied": {"rank": 2, "targets": ["head", "attention.query"]},
}


@cache
def base() -> Any:
    return model(dtype=np.float32, vocab=256, context=300, d_model=8, layers=1)


@cache
def measured(kind: str) -> Row:
    steps = {"progressive": 3, "intrinsic": 12}.get(kind, 2)
    return row_of(base(), CELL.having(SETTINGS.get(kind, {"rank": 2}), kind=kind, steps=steps))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_whenever_it_is_made(kind: str) -> None:
    row = measured(kind)
    assert row_of(base(), row.cell).line == row.line
    assert row.loss is None or math.isfinite(row.loss)


def test_a_run_says_what_was_trained_and_learned() -> None:
    row = measured("run")
    assert row.trained == 2 * 2 * 2 * 8
    assert row.loss != row.before
    assert None not in (row.fit, row.forgot)
    assert measured("scored").score in (0.0, 1 / 3, 2 / 3, 1.0)
    other = row_of(base(), row.cell.having(seed=1))
    assert other.loss != row.loss
    assert other.before == row.before  # what is held out is the same for all seeds


def test_a_run_that_leaves_the_numbers_has_an_infinite_loss() -> None:
    with np.errstate(all="ignore"):
        row = row_of(base(), CELL.having({}, method="full", rate=1e30))
    assert row.loss == math.inf


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_starts_as_the_base_and_counts_what_it_trains(name: str) -> None:
    method = VARIANTS[name](rank=2)
    fresh = adapt(base(), method, np.random.default_rng(0))
    tokens = np.arange(20)[None]
    assert np.array_equal(fresh(tokens), base()(tokens))
    assert count(method.trained(fresh)) == method.numbers(base().config)
    assert count(method.trained(adapt(base(), method, None))) == method.numbers(base().config)
    row = row_of(base(), CELL.having(method=name))
    assert row.trained == method.numbers(base().config)
    assert row.loss != row.before


def test_one_B_is_one_array_for_three_maps_and_the_other_reading_one_A() -> None:
    shapes = {name: [a.shape for a in VARIANTS[name](rank=2).trained(_fresh(name)).values()] for name in VARIANTS}
    assert shapes["shared-b"] == [(2, 8)] * 3 + [(8, 2)]
    assert shapes["shared-a"] == [(2, 8)] + [(8, 2)] * 3
    assert shapes["lora-a-only"] == [(2, 8)] * 2


def _fresh(name: str) -> Any:
    return adapt(base(), VARIANTS[name](rank=2), np.random.default_rng(0))


def test_cutting_keeps_the_largest_parts_and_no_cut_keeps_all() -> None:
    node, rng = adapted(model(), rank=3), np.random.default_rng(0)
    node = with_parameters(node, {p: rng.standard_normal(a.shape) for p, a in parameters(node, "*.B").items()})
    whole, ranks = cut(node, 10**6)
    assert set(ranks.values()) == {3}
    for path, module in adapters(node).items():
        np.testing.assert_allclose(delta(adapters(whole)[path]), delta(module), rtol=0, atol=1e-12)
    fewer, ranks = cut(node, 6)
    assert sum(ranks.values()) >= 6
    assert min(ranks.values()) >= 1
    sizes = {path: np.linalg.svd(delta(m), compute_uv=False) for path, m in adapters(node).items()}
    kept = min(sizes[path][rank - 1] for path, rank in ranks.items() if rank > 1)
    gone = max(sizes[path][rank] for path, rank in ranks.items())
    assert kept >= gone
    for path, module in adapters(fewer).items():
        gap = np.linalg.norm(delta(module) - delta(adapters(node)[path]))
        np.testing.assert_allclose(gap, np.linalg.norm(sizes[path][ranks[path] :]), rtol=1e-9)


def test_an_adapter_that_is_rebased_on_the_same_base_loses_nothing() -> None:
    """Where the base learned nothing, W0 + ΔW − W0' is ΔW, of rank r: carried and re-based are the adapter."""
    rate = runs_lessons.UPDATE_RATE
    try:
        runs_lessons.UPDATE_RATE = 1e-30
        row = row_of(base(), CELL.having(kind="carried"))
    finally:
        runs_lessons.UPDATE_RATE = rate
    assert row.loss is not None
    for name in ("carried", "re-based", "trained anew"):
        assert row.more[name] == pytest.approx(row.loss, abs=1e-5)  # float32, and an SVD of it
    assert measured("carried").more["carried"] != measured("carried").loss


def test_bits_are_stored_only_of_what_was_trained_on() -> None:
    row = row_of(base(), CELL.having(kind="memory", steps=60, examples=4, rate=0.1))
    assert 64.0 >= row.more["stored"] > row.more["half way"]
    assert row.more["a number"] == row.more["stored"] / row.trained


def test_a_gradient_through_nothing_new_is_that_of_the_base() -> None:
    found = norms(base())
    assert {curve[0] for curve in found.values()} == {0.0}
    assert all(curve[1] != 0.0 for curve in found.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "runn"}, "kind must be one of run, "),
        ({"task": "sqll"}, "task must be one of sql, "),
        ({"method": "lorra"}, "method must be one of lora, "),
    ],
    ids=str,
)
def test_an_unknown_name_has_its_nearest(change: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        row_of(base(), CELL.having(**change))


def test_a_setting_that_is_unknown_is_named() -> None:
    with pytest.raises(ValueError, match="rank"):
        method_of(CELL.having({"rnak": 2}))
