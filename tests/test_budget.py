"""One budget for every method, and the paper's columns of parameters: what `lora-np params` says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_np.cli import code_of
from lora_np.config import SHAPES, TransformerConfig, parameter_count
from lora_np.costs import bill, budget
from lora_np.costs.budget import Offer, budget_of, compare, offer
from lora_np.figures.methods import one_budget
from lora_np.methods import METHODS

SMALL = TransformerConfig(vocab=9, context=12, d_model=8, layers=2, heads=2)


def sizes_of(name: str, config: TransformerConfig) -> Iterator[tuple[Any, int]]:
    """Every size that a method can have on a small model, with how many numbers it trains; none is left out."""
    start = METHODS[name]()
    values = [None] if start.grows_by is None else range(1, 1 + max(config.d_model, config.context))
    for value in values:
        try:
            method = start if start.grows_by is None else replace(start, **{start.grows_by: value})
            yield value, method.numbers(config)
        except ValueError:
            continue


# ---------------------------------------------------------------------------------------------------------- the search


@settings(max_examples=60)
@given(st.sampled_from(sorted(METHODS)), st.integers(1, 500))
def test_an_offer_is_the_largest_size_within_the_budget_or_the_least_of_all(name: str, allowed: int) -> None:
    found = offer(name, SMALL, allowed)
    counts = [numbers for _, numbers in sizes_of(name, SMALL)]
    assert counts == sorted(counts)
    assert found.bill is not None
    within = [numbers for numbers in counts if numbers <= allowed]
    assert found.within == bool(within)
    assert found.bill.trained == found.bill.counted == (max(within) if within else min(counts))


def test_a_fault_in_the_search_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubling without halving: right for budgets that fit a power of two, and for no other."""
    test = test_an_offer_is_the_largest_size_within_the_budget_or_the_least_of_all
    right = budget._doubled
    monkeypatch.setattr(budget, "_doubled", lambda fits: iter([*right(fits)][:1]))
    with pytest.raises(AssertionError):
        test()


def test_every_method_is_offered_in_the_order_of_the_table_and_reasons_are_given() -> None:
    offers = compare(SHAPES["base"], budget_of(SHAPES["base"]))
    assert [found.name for found in offers] == list(METHODS)
    notes = {found.name: found.note for found in offers if found.note}
    assert notes == {
        "full": "it has one size, 158.8 times the budget",
        "top": "blocks=1 is its least, 36.2 times the budget",
        "compacter": "rank=192 is the most that this model can have",
        "vera": "rank=192 is the most that this model can have",
    }
    assert all(found.within for found in offers if found.name not in ("full", "top"))
    assert all(found.bill is not None and found.bill.holds for found in offers)


def test_a_method_that_the_model_cannot_have_is_listed_with_the_reason() -> None:
    odd = replace(SMALL, d_model=6)
    found = offer("compacter", odd, 1000)
    assert found == Offer("compacter", None, False, "n must divide d_model, got n = 4 for d_model 6")
    assert found in compare(odd, 1000)


def test_a_budget_of_every_number_warns_of_nothing() -> None:
    """At such sizes an adapter is larger than the matrix it adapts, which a table shows without a warning."""
    offers = compare(SMALL, parameter_count(SMALL))
    assert all(found.within for found in offers if found.bill)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_a_budget_that_is_no_number_of_numbers_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="budget must be a whole number of at least 1"):
        compare(SMALL, wrong)


def test_a_budget_that_no_method_keeps_names_the_least() -> None:
    with pytest.raises(ValueError, match="no method trains as few as 5 numbers on this model: the least is") as found:
        compare(SMALL, 5)
    assert str(found.value).endswith("prefix-embedding with prefix=1, 8 of them")


# ------------------------------------------------------------------------------------- the paper's columns (its ledger)

M, L, GPT3 = "gpt2-medium", "gpt2-large", "gpt3"
# What arithmetic gives, and what the paper prints (in millions) where that is the same number.
PAPER: list[tuple[str, str, dict[str, Any], int, str | None]] = [
    (M, "full", {}, 354_823_168, None),  # printed: 354.92
    (L, "full", {}, 774_030_080, "774.03"),
    (M, "lora", {"rank": 4}, 393_216, None),  # 0.35
    (L, "lora", {"rank": 4}, 737_280, None),  # 0.77
    (GPT3, "lora", {"rank": 1}, 4_718_592, "4.7"),
    (GPT3, "lora", {"rank": 2, "targets": ("attention.value",)}, 4_718_592, "4.7"),
    (GPT3, "lora", {"rank": 2}, 9_437_184, "9.4"),
    (GPT3, "lora", {"rank": 4}, 18_874_368, None),  # 18.8, cut and not rounded
    (GPT3, "lora", {"rank": 8}, 37_748_736, "37.7"),
    (GPT3, "lora", {"rank": 4, "targets": "qkvo"}, 37_748_736, "37.7"),
    (GPT3, "lora", {"rank": 64}, 301_989_888, None),  # 301.9, cut and not rounded
    (GPT3, "lora", {"rank": 64, "targets": "qkvo"}, 603_979_776, None),  # 603.8, twice 301.9
    (GPT3, "prefix-embedding", {"prefix": 32, "infix": 8}, 491_520, None),  # 0.4
    (GPT3, "prefix-embedding", {"prefix": 64, "infix": 8}, 884_736, "0.9"),
    (GPT3, "prefix-embedding", {"prefix": 128, "infix": 8}, 1_671_168, "1.7"),
    (GPT3, "prefix-embedding", {"prefix": 256, "infix": 8}, 3_244_032, "3.2"),
    (GPT3, "prefix-embedding", {"prefix": 512, "infix": 8}, 6_389_760, "6.4"),
    (GPT3, "prefix-layer", {"prefix": 2, "infix": 2}, 4_718_592, None),  # 5.1
    (GPT3, "prefix-layer", {"prefix": 8, "infix": 0}, 9_437_184, None),  # 10.1
    (GPT3, "prefix-layer", {"prefix": 8, "infix": 8}, 18_874_368, None),  # 20.2
    (GPT3, "prefix-layer", {"prefix": 32, "infix": 4}, 42_467_328, None),  # 44.1
    (GPT3, "prefix-layer", {"prefix": 64, "infix": 0}, 75_497_472, None),  # 76.1
    (GPT3, "adapter-h", {"rank": 1}, 7_078_080, "7.1"),
    (GPT3, "adapter-h", {"rank": 4}, 21_234_432, "21.2"),
    (GPT3, "adapter-h", {"rank": 8}, 40_109_568, "40.1"),
    (GPT3, "adapter-h", {"rank": 16}, 77_859_840, "77.9"),
    (GPT3, "adapter-h", {"rank": 64}, 304_361_472, "304.4"),
    (GPT3, "bitfit", {}, 12_988_416, None),  # 14.2
    (GPT3, "lora+prefix-embedding", {"rank": 8, "prefix": 8, "infix": 4}, 37_896_192, None),  # 37.8
    (GPT3, "lora+prefix-embedding", {"rank": 32, "prefix": 8, "infix": 4}, 151_142_400, "151.1"),
    (GPT3, "lora+prefix-embedding", {"rank": 64, "prefix": 8, "infix": 4}, 302_137_344, "302.1"),
    (GPT3, "lora+prefix-layer", {"rank": 8, "prefix": 8, "infix": 4}, 51_904_512, None),  # 52.8
    (M, "adapter-l", {"rank": 6}, 368_784, "0.37"),
    (M, "adapter-l", {"rank": 224}, 11_089_152, "11.09"),
    (L, "adapter-l", {"rank": 8}, 875_808, "0.88"),
    (L, "adapter-l", {"rank": 248}, 23_002_848, "23.00"),
    (M, "adapter-h", {"rank": 112}, 11_064_576, None),  # 11.09: no whole rank gives it
    (M, "top", {"blocks": 2}, 25_192_448, "25.19"),
]


@pytest.mark.parametrize("row", PAPER, ids=lambda row: f"{row[0]} {row[1]} {row[2]}")
def test_the_papers_columns_of_parameters_come_out(row: Any) -> None:
    model, name, chosen, exact, printed = row
    found = bill(SHAPES[model], METHODS[name](**chosen))
    assert found.trained == found.counted == exact
    if printed is not None:
        assert f"{exact / 1e6:.{len(printed.partition('.')[2])}f}" == printed


# Encoders of RoBERTa (Liu et al. 2019) and DeBERTa XXL (He et al. 2021), as far as methods see them.
ENCODERS = {
    "RoBERTa base": TransformerConfig(50265, 514, 768, 12, 12, causal=False),
    "RoBERTa large": TransformerConfig(50265, 514, 1024, 24, 16, causal=False),
    "DeBERTa XXL": TransformerConfig(128100, 512, 1536, 48, 24, causal=False),
}


@pytest.mark.parametrize(
    ("model", "name", "chosen", "exact", "printed"),
    [
        ("RoBERTa base", "lora", {"rank": 8}, 294_912, "0.3"),
        ("RoBERTa base", "bitfit", {}, 102_144, "0.1"),
        ("RoBERTa base", "adapter-p", {"rank": 16}, 304_320, "0.3"),
        ("RoBERTa base", "adapter-p", {"rank": 48}, 894_528, "0.9"),
        ("RoBERTa base", "adapter-p", {"rank": 48, "dropped": 8}, 298_176, "0.3"),
        ("RoBERTa large", "lora", {"rank": 8}, 786_432, "0.8"),
        ("RoBERTa large", "adapter-p", {"rank": 64}, 3_171_840, None),  # 3.0
        ("RoBERTa large", "adapter-p", {"rank": 16}, 811_392, "0.8"),
        ("RoBERTa large", "adapter-h", {"rank": 64}, 6_343_680, None),  # 6.0
        ("RoBERTa large", "adapter-h", {"rank": 8}, 835_968, "0.8"),
        ("DeBERTa XXL", "lora", {"rank": 16}, 4_718_592, "4.7"),
        ("DeBERTa XXL", "lora", {"rank": 8}, 2_359_296, None),  # table 10 says r = 8 and 4.7
    ],
)
def test_the_papers_columns_of_encoders_come_out(
    model: str, name: str, chosen: dict[str, Any], exact: int, printed: str | None
) -> None:
    assert METHODS[name](**chosen).numbers(ENCODERS[model]) == exact
    assert printed is None or f"{exact / 1e6:.1f}" == printed


# ------------------------------------------------------------------------------------------------------- the command


def said(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> str:
    assert code_of([str(argument) for argument in arguments]) == code
    shown = capsys.readouterr()
    return shown.out if code == 0 else shown.err


def test_params_shows_the_closed_form_and_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ("--method", "prefix-layer", "--set", "prefix=32", "--set", "infix=4")
    lines = said(capsys, "params", "gpt3", *chosen).splitlines()
    found = {line[:46].strip(): line[46:].strip() for line in lines if "  " in line}
    assert found["trained, by the closed form"] == "42,467,328"
    assert found["trained, counted on a model without numbers"] == "42,467,328"
    assert found["context left to the text"] == "2,012 of 2,048"
    assert found["can be merged"] == "no"


def test_params_ends_with_1_where_the_two_differ(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = METHODS["dora"].numbers
    monkeypatch.setattr(METHODS["dora"], "numbers", lambda method, config: right(method, config) + 1)
    assert code_of(["params", "base", "--method", "dora"]) == 1
    assert code_of(["params", "base", "--compare"]) == 1
    assert code_of(["params", "base", "--method", "vera"]) == 0


def test_params_compares_every_method_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "params", "base", "--compare", "--budget", 10_000)
    assert "every method at a budget of 10,000 trained numbers" in shown
    rows = {line.split()[0]: line for line in shown.splitlines() if line.split() and line.split()[0] in METHODS}
    assert list(rows) == list(METHODS)
    sizes = ["9,216", "0.4722%", "36.86", "kB", "73.73", "kB"]
    assert rows["lora"].split() == ["lora", "rank=3", *sizes, "9,216", "0", "640", "yes"]
    assert rows["adapter-l"].split()[-3:] == ["2", "640", "no"]
    assert "top: blocks=1 is its least, 44.5 times the budget" in shown


def test_a_comparison_is_json_that_holds_every_bill(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "params", "gpt2-medium", "--compare", "--json"))
    assert (found["model"], found["budget"]) == ("gpt2-medium", 393_216)
    assert [row["name"] for row in found["methods"]] == list(METHODS)
    assert all(row["bill"]["trained"] == row["bill"]["counted"] for row in found["methods"])


def test_a_comparison_is_drawn_and_not_over_what_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["params", "base", "--compare", "--out"]
    assert f"the same as a picture in {tmp_path / 'new.svg'}" in said(capsys, *line, tmp_path / "new.svg")
    assert ElementTree.fromstring((tmp_path / "new.svg").read_bytes()).tag.endswith("svg")
    old = tmp_path / "old.png"
    old.write_bytes(b"another")
    assert "exists: choose another --out, or allow --overwrite" in said(capsys, *line, old, code=2)
    assert old.read_bytes() == b"another"
    said(capsys, *line, old, "--overwrite")
    assert old.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.svg", "old.png"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--compare", "--budget", 191], "no method trains as few as 191 numbers on this model: the least is"),
        (["--compare", "--budget", 0], "budget must be a whole number of at least 1, got 0"),
        (["--compare", "--out", "methods.pdf"], "--out must name a picture, FILE.svg or FILE.png, got methods.pdf"),
        (["--compare", "--out", "no/methods.svg"], "is no folder: make it, or choose another --out"),
        (["--compare", "--rank", 3], "--compare chooses the settings of every method itself"),
        (["--compare", "--set", "rank=3"], "--compare chooses the settings of every method itself"),
        (["--budget", 5000], "--budget and --out belong to --compare"),
        (["--out", "methods.svg"], "--budget and --out belong to --compare"),
        (["--method", "loraa"], "--method must be one of lora, "),
        (["--method", "prefix-embedding", "--set", "prefix=639"], "prefix and infix must leave 2 of the 640 places"),
        (["--method", "adapter-h", "--set", "rank=193"], "rank must lie in 1..d_model = 1..192"),
    ],
    ids=str,
)
def test_params_refuses_in_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[Any],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = said(capsys, "params", "base", *arguments, code=2).splitlines()
    assert expected in line
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- the picture


def picture() -> Any:
    return one_budget(compare(SHAPES["base"], 12_288), 12_288)


def test_the_picture_holds_every_number_of_the_table() -> None:
    offers = compare(SHAPES["base"], 12_288)
    bills: list[Any] = [found.bill for found in offers]
    columns = [
        [place(bill) for bill in bills]
        for place in (
            lambda bill: bill.trained,
            lambda bill: 100 * bill.added / bill.forward,
            lambda bill: bill.depth,
            lambda bill: bill.full_context - bill.context,
        )
    ]
    every = one_budget(offers, 12_288).axes
    for axes, column in zip(every, columns, strict=True):
        marks = [point for line in axes.lines if line.get_marker() != "None" for point in line.get_xydata().tolist()]
        assert [x for x, _ in sorted(marks, key=lambda point: point[1])] == column
    assert [text.get_text().split()[0] for text in every[0].get_yticklabels()] == list(METHODS)


def test_no_text_of_the_picture_overlaps_another_or_leaves_it() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = picture()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = [text for legend in figure.legends for text in legend.get_texts()]
    for axis in (figure.axes[0].yaxis, *(axes.xaxis for axes in figure.axes)):
        low, high = sorted(axis.get_view_interval())
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        shown += [axis.label, *(text for place, text in ticks if low <= place <= high)]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in shown if text.get_text()]
    assert len(boxes) > len(METHODS) + 4 + 8 + 3  # rows, columns, two ticks in each at least, and the legend
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    for one, other in itertools.combinations(boxes, 2):
        common = one.intersection(one, other)
        assert common is None or min(common.width, common.height) < 1.0


def test_a_picture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one with a bill, got none"):
        one_budget([Offer("compacter", None, False, "")], 5)
