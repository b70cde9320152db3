"""The laws of `paper.ledger`: every value is reached twice, every verdict follows from the digits, and the pages are
those that the command writes."""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_data

from lora_np.cli import code_of
from lora_np.config import TransformerConfig, parameter_count
from lora_np.costs import adapter_bytes, training_state_bytes
from lora_np.engine.arrays import Array
from lora_np.method import Method
from lora_np.model import skeleton
from lora_np.optimization import TrainingConfig, start
from lora_np.paper.entry import MODELS, Entry, lora, trained
from lora_np.paper.errata import errata
from lora_np.paper.ledger import chosen, ledger, tally
from lora_np.paper.pages import errata_page, ledger_page, write_page
from lora_np.paper.printed import EQUAL, NEAR, UNEQUAL, UNPRINTED, Printed, verdict
from lora_np.paper.tables import ANALYSIS, GLUE, PLACEMENTS, RANKS
from lora_np.parameters import count, parameters

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = ledger()
OF_METHODS = list({repr(entry.method): entry.method for entry in ENTRIES if entry.method}.values())


def entry_of(place: str, row: str) -> Entry:
    (found,) = (entry for entry in ENTRIES if entry.place == place and entry.row == row)
    return found


# every value, a second way


def evaluated(formula: str, given: Mapping[str, Any]) -> Fraction:
    """What the text of a formula gives: the signs of `lora_np.paper.entry`, read by nothing that computed the value."""
    python = re.sub(r"(\w+)²", r"(\1 * \1)", formula).replace("·", "*")
    return Fraction(_value(ast.parse(unicodedata.normalize("NFKC", python), mode="eval").body, given))


def _value(node: ast.expr, given: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    if isinstance(node, ast.Name):
        return given[node.id] if isinstance(given[node.id], tuple) else Fraction(given[node.id])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        x = _value(node.args[0], given)
        return {"mean": lambda: sum(x, Fraction(0)) / len(x), "ceil": lambda: math.ceil(x)}[node.func.id]()
    assert isinstance(node, ast.BinOp), ast.dump(node)
    a, b = _value(node.left, given), _value(node.right, given)
    by_sign = {ast.Add: lambda: a + b, ast.Sub: lambda: a - b, ast.Mult: lambda: a * b, ast.Div: lambda: a / b}
    return by_sign[type(node.op)]()


def test_the_text_of_the_formula_gives_the_value() -> None:
    for entry in ENTRIES:
        assert evaluated(entry.formula, entry.given) == entry.value, (entry.place, entry.row)


def test_a_wrong_formula_or_quantity_gives_another_value() -> None:
    for entry in ENTRIES:
        name = next(iter(entry.given))
        value = entry.given[name]
        other = {**entry.given, name: tuple(2 * x for x in value) if isinstance(value, tuple) else 2 * value}
        assert evaluated(entry.formula, other) != entry.value, entry.row


@cache
def bare(config: TransformerConfig) -> Any:
    return skeleton(config)


def counted(config: TransformerConfig, method: Method) -> int:
    """How many numbers the arrays hold that the method trains, once it is applied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rank 1024 on a matrix of width 1024 trains more than the matrix has
        return count(method.trained(method.apply(bare(config), None)))


def test_a_count_is_that_of_the_arrays_of_an_applied_skeleton() -> None:
    assert len(OF_METHODS) > 70
    for config, method in OF_METHODS:
        values = {entry.value for entry in ENTRIES if entry.method == (config, method)}
        assert values == {counted(config, method)}, method


def test_a_count_of_another_rank_is_another_count() -> None:
    entry = entry_of("Table 15", "GPT-3, LoRA r = 8 on q, v")
    assert entry.value != counted(MODELS["gpt3"], lora(7))


def roberta(layers: int, d: int) -> dict[str, tuple[int, ...]]:
    """The arrays of RoBERTa with a head of three classes, one by one; d_ff = 4d, vocabulary and positions its own."""
    dense = lambda name, d_out, d_in: {f"{name}.weight": (d_out, d_in), f"{name}.bias": (d_out,)}  # noqa: E731
    norm = lambda name: {f"{name}.weight": (d,), f"{name}.bias": (d,)}  # noqa: E731
    arrays: dict[str, tuple[int, ...]] = {"words": (50265, d), "positions": (514, d), "types": (1, d), **norm("norm")}
    for i in range(layers):
        for name in ("query", "key", "value", "output"):
            arrays |= dense(f"{i}.{name}", d, d)
        arrays |= {**norm(f"{i}.norm1"), **dense(f"{i}.up", 4 * d, d), **dense(f"{i}.down", d, 4 * d)}
        arrays |= norm(f"{i}.norm2")
    return arrays | dense("classifier.dense", d, d) | dense("classifier.out", 3, d)


def deberta() -> dict[str, tuple[int, ...]]:
    """Those of DeBERTa v2 XXL without a head: no position table, 512 relative ones, one convolution of width 3."""
    d, dense = 1536, lambda name, d_out, d_in: {f"{name}.weight": (d_out, d_in), f"{name}.bias": (d_out,)}
    norm = lambda name: {f"{name}.weight": (d,), f"{name}.bias": (d,)}  # noqa: E731
    arrays: dict[str, tuple[int, ...]] = {"words": (128100, d), "relative": (512, d)}
    arrays |= {**norm("norm"), **norm("relative.norm"), **norm("conv.norm")}
    arrays |= {"conv.weight": (d, d, 3), "conv.bias": (d,)}
    for i in range(48):
        for name in ("query", "key", "value", "output"):
            arrays |= dense(f"{i}.{name}", d, d)
        arrays |= {**norm(f"{i}.norm1"), **dense(f"{i}.up", 4 * d, d), **dense(f"{i}.down", d, 4 * d)}
        arrays |= norm(f"{i}.norm2")
    return arrays


def test_the_encoders_have_as_many_numbers_as_their_arrays_listed_one_by_one() -> None:
    for arrays, rows in (
        (
            roberta(12, 768),
            [("Table 2", "RoBERTa base, FT, with a head"), ("Section 5.2", "RoBERTa base, with a head")],
        ),
        (roberta(24, 1024), [("Table 2", "RoBERTa large, FT, with a head")]),
        (deberta(), [("Table 2", "DeBERTa XXL, FT"), ("Section 5.3", "DeBERTa XXL")]),
    ):
        for place, row in rows:
            assert entry_of(place, row).value == sum(map(math.prod, arrays.values()))


def nbytes(arrays: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())


def test_bytes_are_those_of_arrays_of_that_precision() -> None:
    gpt3, place = MODELS["gpt3"], "Section 4.2"
    half, adapter = skeleton(gpt3, np.float16), lora(4)
    assert entry_of(place, "GPT-3 in 16 bits").value == nbytes(parameters(half))
    assert entry_of(place, "LoRA r = 4 in 16 bits").value == nbytes(adapter.trained(adapter.apply(half, None)))
    for name, bits in (("gpt2-medium", np.float32), ("gpt2-large", np.float32)):
        file = nbytes(adapter.trained(adapter.apply(skeleton(MODELS[name], bits), None)))
        assert entry_of("Repository", f"{name}, LoRA r = 4, file in 32 bits").value == Fraction(file * 10**6, 2**20)


def test_what_training_holds_is_that_of_a_small_model_times_the_size() -> None:
    """A policy costs so many bytes a number; here with arrays that are really there."""
    small = TransformerConfig(11, 8, 4, 2, 2)
    N, whole = parameter_count(small), parameter_count(MODELS["gpt3"])
    rows = {
        "W, m, v in 16 bits": (2, 0, 2),
        "W, gradient, m, v in 16 bits": (2, 2, 2),
        "W in 16 bits, m, v in 32": (2, 0, 4),
    }
    rows |= {"W, gradient in 16 bits, m, v in 32": (2, 2, 4), "W, gradient, m, v in 32 bits": (4, 4, 4)}
    for held, (values, gradient, moments) in rows.items():
        arrays = {name: np.zeros(a.shape, f"f{moments}") for name, a in parameters(skeleton(small)).items()}
        bytes_ = nbytes(start(arrays, TrainingConfig()).moments) + (values + gradient) * count(arrays)
        expected = Fraction(bytes_, N) * whole
        assert entry_of("Section 4.2", f"training all of GPT-3: {held}").value == expected


def test_the_released_file_of_roberta_holds_what_the_ledger_counts() -> None:
    with zipfile.ZipFile(shared_data("roberta-lora-mnli/roberta_base_lora_mnli.bin")) as file:
        stored = sum(info.file_size for info in file.infolist() if "/data/" in info.filename)
    row = "roberta-base, LoRA r = 8 and a head of 3 classes, file in 32 bits"
    assert entry_of("Repository", row).value * Fraction(2**20, 10**6) == stored


def test_the_share_saved_is_that_of_the_closed_form() -> None:
    N = 10**12
    saved = 1 - Fraction(training_state_bytes(N, 0), training_state_bytes(0, N))
    assert entry_of("Section 4.2", "saved of W, gradient, m, v").value == saved == Fraction(3, 4)


def test_the_random_column_of_table_7_is_the_size_of_random_projections() -> None:
    r"""E‖UᵀWV‖² = (r/d)² ‖W‖² for orthonormal U, V drawn at random; 400 draws, each within 6 standard errors."""
    rng, d, r = np.random.default_rng(0), 24, 4
    W = rng.standard_normal((d, d)) * np.linspace(0.1, 3.0, d)
    squares = []
    for _ in range(400):
        U, V = (np.linalg.qr(rng.standard_normal((d, r)))[0] for _ in "UV")
        squares.append(np.linalg.norm(U.T @ W @ V) ** 2)
    expected = float(evaluated("r / d · W", {"r": r, "d": d, "W": Fraction(np.linalg.norm(W))})) ** 2
    error = np.std(squares) / math.sqrt(len(squares))
    assert abs(np.mean(squares) - expected) < 6 * error < 0.3 * expected


def test_a_low_rank_update_of_half_the_width_has_as_many_numbers_as_the_matrix() -> None:
    both = counted(MODELS["gpt2-medium"], lora(512))
    assert both == sum(a.size for a in parameters(bare(MODELS["gpt2-medium"]), "*.query.W", "*.value.W").values())
    assert entry_of("Table 18", "GPT-2 M, LoRA r = 512").value == both


def test_no_whole_rank_gives_what_is_printed_for_adapter_h() -> None:
    from lora_np.methods.bottleneck import AdapterH

    printed, config = Printed("11.09M"), MODELS["gpt2-medium"]
    verdicts = {verdict(printed, Fraction(AdapterH(rank).numbers(config))) for rank in range(1, 300)}
    assert EQUAL not in verdicts


def test_a_rank_that_is_not_printed_is_one_of_few_that_fit() -> None:
    for entry in ENTRIES:
        if entry.note.startswith("The rank is not printed") and entry.method and entry.printed:
            config, method = entry.method
            fits = [r for r in range(1, 300) if _count_at(config, method, r, entry.printed) == EQUAL]
            assert getattr(method, "rank") in fits  # noqa: B009
            assert len(fits) <= 20, (entry.row, fits)


def _count_at(config: TransformerConfig, method: Any, rank: int, printed: Printed) -> str:
    return verdict(printed, Fraction(replace(method, rank=rank).numbers(config)))


# the rule


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("18.8M", 18_800_000, EQUAL),
        ("18.8M", 18_874_368, NEAR),  # cut
        ("18.9M", 18_874_368, EQUAL),  # rounded
        ("603.8M", 603_979_776, UNEQUAL),
        ("89.0", Fraction("89.05"), EQUAL),  # half way
        ("89.1", Fraction("89.05"), EQUAL),
        ("89.2", Fraction("89.05"), NEAR),
        ("89.3", Fraction("89.05"), UNEQUAL),
        ("2/3", Fraction(2, 3), EQUAL),
        ("2/3", Fraction(666, 1000), UNEQUAL),
        ("+2.2%", Fraction(22, 1000), EQUAL),
        ("1.2TB", 1_250_000_000_000, EQUAL),
        ("350GB", 349_000_000_000, NEAR),
        ("350GB", 347_000_000_000, UNEQUAL),
    ],
)
def test_the_verdict_follows_from_the_printed_digits(text: str, value: Any, expected: str) -> None:
    assert verdict(Printed(text), Fraction(value)) == expected


def test_zeros_at_the_end_count_only_where_the_number_is_not_rough() -> None:
    value = Fraction(349 * 10**9)
    assert verdict(Printed("350GB", rough=True), value) == EQUAL
    assert verdict(Printed("354GB", rough=True), value) == UNEQUAL  # no zeros, so nothing changes
    assert verdict(Printed("0.10", rough=True), Fraction("0.12")) == UNEQUAL  # behind the point they were meant
    assert Printed("10,000×", rough=True).last == 10_000
    assert Printed("10,000×").last == 1


whole = st.integers(1, 10**9)


@given(st.integers(0, 4), whole, st.fractions(0, 1))
def test_rounding_gives_equal_cutting_at_most_near_and_two_more_unequal(digits: int, n: int, part: Fraction) -> None:
    unit = Fraction(1, 10**digits)
    value = (n + part) * unit

    def of(number: int) -> str:
        text = f"{number // 10**digits}.{number % 10**digits:0{digits}}" if digits else str(number)
        return verdict(Printed(text), value)

    nearest = n + (part >= Fraction(1, 2))
    assert of(nearest) == EQUAL
    assert of(n) in (EQUAL, NEAR)
    assert of(nearest + 2) == of(nearest + 5) == UNEQUAL
    assert {of(nearest + 1), of(nearest - 1)} <= {EQUAL, NEAR} or nearest == 1
    assert verdict(None, value) == UNPRINTED


@pytest.mark.parametrize("text", ["", "M", "1.2.3", "12 apples", "-5", "1e6", "3/0", "1.M", "½"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a printed number is digits and a unit") as error:
        Printed(text)
    assert repr(text) in str(error.value)


# the entries


def test_where_the_two_disagree_one_sentence_says_why() -> None:
    for entry in ENTRIES:
        if entry.verdict in (NEAR, UNEQUAL):
            assert entry.note, (entry.place, entry.row)
        assert re.fullmatch(r"|[^.]([^.]|\.\S)*\.", entry.note), entry.note


def test_no_entry_stands_twice() -> None:
    keys = [(entry.place, entry.row, entry.printed) for entry in ENTRIES]
    assert len(set(keys)) == len(keys)


def test_the_verdicts_that_were_worked_out_by_hand() -> None:
    for place, row, expected in (
        ("Table 3", "GPT-2 M, FT", "≠"),
        ("Table 3", "GPT-2 L, FT", "="),
        ("Table 3", "GPT-2 M, LoRA r = 4", "≠"),
        ("Table 3", "GPT-2 L, LoRA r = 4", "≠"),
        ("Table 3", "GPT-2 M, FTTop2", "="),
        ("Table 4", "GPT-3, BitFit", "≠"),
        ("Table 4", "GPT-3, FT, tied head", "≠"),
        ("Table 4", "GPT-3, FT, untied head", "≠"),
        ("Table 15", "GPT-3, LoRA r = 4 on q, v", "~"),
        ("Table 15", "GPT-3, LoRA r = 64 on q, k, v, o", "≠"),
        ("Table 15", "GPT-3, LoRA+PL r = 8", "≠"),
        ("Table 7", "random directions, r = 64", "~"),
    ):
        assert entry_of(place, row).verdict == expected, row
    assert all(e.verdict == "≠" for e in ENTRIES if "PreLayer" in e.row and e.place == "Table 15")
    assert all(e.verdict == "=" for e in ENTRIES if "AdapterH" in e.row and e.place == "Table 15")
    assert all(e.verdict == "=" for e in ENTRIES if "slower by" in e.row or "average" in e.row)


def test_the_rate_of_lora_is_forty_times_that_of_full_fine_tuning() -> None:
    assert entry_of("Table 12", "rate of LoRA over FT").value == 40


def test_what_is_said_to_be_printed_is_printed() -> None:
    """Number for number in the text of the paper."""
    text = shared_data("../papers/lora-2106.09685v2.txt").read_text(encoding="utf-8").replace(" M", "M")
    for entry in ENTRIES:
        if entry.printed and entry.place != "Repository":
            suffix = entry.printed.suffix
            number = entry.printed.text.removesuffix(suffix) if suffix in ("×", "%") else entry.printed.text
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), (entry.place, entry.row, number)


def test_the_tables_are_those_of_the_paper() -> None:
    text = shared_data("../papers/lora-2106.09685v2.txt").read_text(encoding="utf-8")
    text = re.sub(r"±\.?\d*\.?\d*", "", text)
    for cells, average in GLUE.values():
        assert f"{cells} {average}" in text, cells
    for targets, cells in RANKS.items():
        for column in (0, 1):
            assert " ".join(scores[column] for scores in cells.values()) in text, targets
    for column in (1, 2):
        assert " ".join(row[column] for row in PLACEMENTS.values()) in text
    for numbers, *scores in ANALYSIS.values():
        assert " ".join((numbers.replace("M", " M"), *scores)) in text, scores


# choosing


def test_a_place_is_found_by_its_number_or_its_name() -> None:
    assert {entry.place for entry in chosen("4")} == {entry.place for entry in chosen("table 4")} == {"Table 4"}
    assert {entry.place for entry in chosen("Section 4.2")} == {"Section 4.2"}
    assert {entry.place for entry in chosen("repository")} == {"Repository"}
    assert chosen() == list(ENTRIES)


def test_places_and_verdicts_together_leave_no_entry_out() -> None:
    places = dict.fromkeys(entry.place for entry in ENTRIES)
    parts = [chosen(place, only) for place, only in itertools.product(places, "=~≠–")]
    assert sum(map(len, parts)) == len(ENTRIES)
    assert chosen(only="!=") == chosen(only="≠")


def test_the_tally_counts_every_entry_once() -> None:
    assert sum(tally(ENTRIES).values()) == len(ENTRIES)
    assert all(tally(ENTRIES).values())  # contrast: each verdict occurs


# contradictions


def test_every_contradiction_stands() -> None:
    for erratum in errata():
        assert erratum.pairs
        assert erratum.stands, erratum.title
        assert re.fullmatch(r"[^.]([^.]|\.\S)*\.", erratum.note), erratum.note


def test_a_contradiction_that_is_mended_does_not_stand() -> None:
    for erratum in errata():
        mended = replace(erratum.pairs[0], values=(erratum.pairs[0].values[0],) * 2)
        assert not replace(erratum, pairs=(mended, *erratum.pairs[1:])).stands


def pairs(letter: str) -> dict[str, tuple[Any, Any]]:
    (erratum,) = (erratum for erratum in errata() if erratum.letter == letter)
    return {pair.thing: pair.values for pair in erratum.pairs}


def test_a_the_rank_behind_the_larger_budget_is_four() -> None:
    said, arithmetic = pairs("a")["r on q, k, v, o of 37.7M"]
    printed = Printed("37.7M")
    fits = {r: verdict(printed, Fraction(counted(MODELS["gpt3"], lora(r, "qkvo")))) for r in (said, arithmetic)}
    assert fits == {2: UNEQUAL, 4: EQUAL}
    assert entry_of("Section D.4", "GPT-3, LoRA r = 2 on q, k, v, o").verdict == UNEQUAL


def test_b_no_setting_of_table_15_has_both_scores_of_the_row() -> None:
    assert pairs("b")["settings behind 74.0 and 91.6"] == (1, 2)
    budget = {key: row[1:] for key, row in ANALYSIS.items() if row[0] == "37.7M"}
    assert ("74.0", "91.6") not in budget.values()
    assert budget["qkvo", 4][0] == "74.0"
    assert budget["qv", 8][1] == "91.6"


def test_c_the_preferred_placement_is_beaten_by_its_own_table() -> None:
    assert pairs("c")["best placement at 18M"] == ("q, v", "q, k, v, o")
    mine, other = PLACEMENTS["qv"][1:], PLACEMENTS["qkvo"][1:]
    assert all(Fraction(b) >= Fraction(a) for a, b in zip(mine, other, strict=True))
    assert mine != other


def test_d_left_singular_vectors_of_two_ranks_cannot_be_compared() -> None:
    assert pairs("d")["singular vectors of A that φ compares"] == ("right", "left")
    rng = np.random.default_rng(0)
    (left8, _, right8), (left64, _, right64) = (
        np.linalg.svd(rng.standard_normal((r, 96)), full_matrices=False) for r in (8, 64)
    )
    assert (right8 @ right64.T).shape == (8, 64)
    with pytest.raises(ValueError, match="mismatch"):
        left8.T @ left64


def test_e_the_released_deberta_has_the_rank_of_the_scripts() -> None:
    found = pairs("e")
    assert found["rank of DeBERTa XXL"] == ("8", "16")
    assert found["α of RoBERTa base"] == ("8", "16")
    assert found["rate on CoLA, RoBERTa large"] == ("2E-4", "3E-4")
    config = MODELS["deberta-xxl"]
    head = config.d_model**2 + config.d_model + 3 * config.d_model + 3
    sizes = {r: Fraction(4 * (counted(config, lora(r)) + head) * 10**6, 2**20) for r in (8, 16)}
    assert verdict(Printed("27.1MB"), sizes[16]) == NEAR
    assert verdict(Printed("27.1MB"), sizes[8]) == UNEQUAL


def test_f_every_baseline_of_the_two_differs() -> None:
    assert set(pairs("f").values()) == {("46.2", "46.0"), ("27.7", "30.4"), ("64.2", "63.2"), ("46.5", "47.6")}


def test_g_the_scales_in_use_are_two_and_eight_too() -> None:
    assert {name: s for name, (_, s) in pairs("g").items()} == {"s of RoBERTa large": 2, "s of GPT-2": 8}


def test_h_a_gaussian_and_a_uniform_start_are_two_things() -> None:
    from lora_np.methods.lora import INITIALIZATIONS

    assert pairs("h")["entries of A"] == ("Gaussian", "uniform")
    d = 400
    drawn = {name: draw(np.random.default_rng(0), 50, d) * math.sqrt(d) for name, draw in INITIALIZATIONS.items()}
    assert abs(drawn["uniform"]).max() <= 1 < 3 < abs(drawn["gaussian"]).max()
    for name, variance in (("gaussian", 1.0), ("uniform", 1 / 3)):
        assert abs(drawn[name].var() / variance - 1) < 6 * math.sqrt(2 / drawn[name].size)


def test_i_one_cell_differs_and_seventeen_agree() -> None:
    assert pairs("i") == {"WikiSQL, r = 64 on q, v": ("73.5", "73.6")}
    shared = [(RANKS[t][r], row[1:]) for (t, r), row in ANALYSIS.items() if r in RANKS.get(t, {})]
    cells = [pair for here, there in shared for pair in zip(here, there, strict=True)]
    assert sum(a == b for a, b in cells) == 17 == len(cells) - 1


def test_j_only_one_of_the_two_forms_keeps_the_similarity_between_0_and_1() -> None:
    assert pairs("j") == {"φ of two equal subspaces of dimension 4": (1, Fraction(1, 4))}
    rng, p = np.random.default_rng(0), 4
    U, V = (np.linalg.qr(rng.standard_normal((9, p)))[0] for _ in "UV")
    total = float(np.linalg.norm(U.T @ V) ** 2)
    distance_squared = p - total
    assert math.isclose(total / p, 1 - distance_squared / p)
    assert (1 - distance_squared) / p < 0 < total / p < 1


def test_k_l_m_the_rest_are_what_the_tables_print() -> None:
    assert pairs("k") == {"MNLI-m of PreLayer 8 + 8": ("89.5", "89.6")}
    assert pairs("l") == {"FTTop2 of GPT-2 M": ("25.19M", "24M")}
    assert set(pairs("m").values()) == {("down", "up")}
    means = {row: sum(map(Fraction, cells.split())) / 8 for row, (cells, _) in GLUE.items()}
    assert sum(mean * 10 % 1 == Fraction(1, 2) for mean in means.values()) == 4


# the pages and the command


@pytest.mark.parametrize(
    ("name", "options", "page"),
    [("ledger.md", [], ledger_page(ENTRIES)), ("errata.md", ["--errata"], errata_page(errata()))],
    ids=["ledger", "errata"],
)
def test_the_page_in_docs_is_what_the_command_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: list[str], page: str
) -> None:
    assert code_of(["ledger", *options, "--out", str(tmp_path / name)]) == 0
    written = (tmp_path / name).read_text(encoding="utf-8")
    assert written == page == (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert capsys.readouterr().out.count("\n") == 1


def test_a_page_shows_a_changed_value() -> None:
    entry = ENTRIES[0]
    assert ledger_page([replace(entry, value=entry.value * 2)]) != ledger_page([entry])
    assert "| ≠ |" in ledger_page([replace(entry, value=entry.value * 2)])


def test_every_row_of_a_page_has_as_many_cells_as_its_head() -> None:
    for page in (ledger_page(ENTRIES), errata_page(errata())):
        tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
        assert tables
        for lines in tables:
            assert len({line.count("|") for line in lines.splitlines()}) == 1, lines


def test_the_command_prints_rows_and_then_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["ledger", "--table", "15", "--only", "≠"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(" ≠ " in line for line in lines) == 7
    assert lines[-1] == "7 printed numbers: 0 =, 0 ~, 7 ≠; 0 that are not printed"


def test_the_json_agrees_with_the_entries(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["ledger", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdicts"] == tally(ENTRIES)
    assert [row["verdict"] for row in found["entries"]] == [entry.verdict for entry in ENTRIES]
    assert [row["value"] for row in found["entries"]] == [float(entry.value) for entry in ENTRIES]
    assert code_of(["ledger", "--errata", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["errata"]) == len(errata())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--table", "99"], ["'99'", "nearest first", "Table 9"]),
        (["--table", "4.2"], ["'4.2'", "Section 4.2"]),
        (["--only", "maybe"], ["'maybe'", "=, ~, ≠"]),
        (["--errata", "--table", "4"], ["--errata", "--table"]),
        (["--out", "missing/ledger.md"], ["missing/ledger.md", "No such file"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: Any, capsys: Any, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(["ledger", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert all(word in said.err for word in words), said.err
    assert not list(tmp_path.iterdir())


def test_only_a_page_of_ours_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    page, theirs = tmp_path / "page.md", tmp_path / "theirs.md"
    write_page(page, errata_page(errata()), overwrite=False)
    with pytest.raises(FileExistsError, match="allow --overwrite"):
        write_page(page, ledger_page(ENTRIES), overwrite=False)
    write_page(page, ledger_page(ENTRIES), overwrite=True)
    assert page.read_text(encoding="utf-8") == ledger_page(ENTRIES)
    theirs.write_text("# mine\n")
    for place, word in ((theirs, "not a page"), (tmp_path, "a directory")):
        with pytest.raises(FileExistsError, match=word):
            write_page(place, ledger_page(ENTRIES), overwrite=True)
    link = tmp_path / "link.md"
    link.symlink_to(page)
    with pytest.raises(FileExistsError, match="symbolic link"):
        write_page(link, "", overwrite=True)
    assert theirs.read_text() == "# mine\n"


def test_an_entry_that_is_planted_wrong_is_no_longer_equal() -> None:
    right = trained("Table 4", "planted", "37.7M", "gpt3", lora(8))
    wrong = trained("Table 4", "planted", "37.7M", "gpt3", lora(9))
    assert (right.verdict, wrong.verdict) == (EQUAL, UNEQUAL)
    assert adapter_bytes(int(right.value), "float16") == 2 * right.value
