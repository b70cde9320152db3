"""The conformance kit: the vectors are right, exact enough and find every bug; an implementation is judged in words."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_np import cases
from lora_np.cases.equations import RULES, answers, scale
from lora_np.cases.layers import REFUSED
from lora_np.cases.vectors import DTYPES, Vector
from lora_np.cli import code_of
from lora_np.conformance import (
    FOLDER,
    MUTANTS,
    conform,
    expected_failures,
    files,
    killed,
    load_run,
    made,
    mutants,
    ours,
    pages,
    plugin,
    read_vectors,
    tally,
)
from lora_np.conformance.running import Case, case_of, judge, verdict
from lora_np.gradients import check

ROOT = Path(__file__).parent.parent
FROZEN = read_vectors()
BY_NAME = {vector.name: vector for vector in FROZEN.vectors}
PLAIN = BY_NAME["linear/plain"]


def book(case: Case) -> dict[str, Any]:
    return answers(case.kind, case.settings, case.inputs, case.wanted)


# ----------------------------------------------------------------------------------------------- the vectors are right


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivations_and_merges_of_this_package_hold_for_every_vector(dtype: str) -> None:
    results = conform(ours.run, FROZEN.vectors, [dtype])
    assert [f"{r.name}: {r.why}" for r in results if r.status != "passed"] == []
    assert len(results) == sum(dtype in vector.dtypes for vector in FROZEN.vectors) > 30


def hand_case(vector: Vector) -> cases.Case:
    """The loss of a vector as a case for the three witnesses of every gradient."""
    p, s = vector.inputs, vector.settings
    factor = (
        0.0
        if vector.kind == "tokens"
        else ours.factor(s, s.get("module", ""), ours.rank_of(case_of(vector, "float64")))
    )
    point = {name[1:]: p[name[1:]] for name in vector.wanted if name[0] == "d" and name[1:] in p}

    def loss(outputs: Mapping[str, Any]) -> Any:
        return sum((p[f"d{name}"] * value).sum() for name, value in outputs.items())

    def hand(at: Mapping[str, Any]) -> Any:
        return loss(ours.FORWARD[vector.kind]({**p, **at}, s, factor))

    def by_book(at: Mapping[str, Any]) -> Any:
        from lora_np.cases.equations import FORWARD

        return loss(FORWARD[vector.kind]({**p, **at}, s, RULES))

    return cases.Case(vector.name, hand, by_book, point, float(sum(abs(a).sum() for a in vector.sizes.values())))


HELD = "dora/gradient, constant"  # whose loss has another gradient than the one that is asked
WITH_GRADIENT = [
    v.name for v in FROZEN.vectors if not v.refused and any(n[0] == "d" for n in v.wanted) and v.name != HELD
]


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_every_gradient_of_a_vector_has_three_witnesses(name: str) -> None:
    rows = check(cases.along(hand_case(BY_NAME[name]), np.random.default_rng(0), directions=1))
    assert rows
    assert {row.array: row.verdict for row in rows if not row.holds} == {}


def test_a_norm_that_is_held_constant_is_told_from_one_that_is_not() -> None:
    held, whole = BY_NAME[HELD], BY_NAME["dora/gradient"]
    for vector, other in ((held, "differentiated"), (whole, "constant")):
        wrong = answers(vector.kind, {**vector.settings, "norm": other}, vector.inputs, vector.wanted)
        assert abs(wrong["dB"] - vector.outputs["dB"]).max() > 0.1


def exact(vector: Vector) -> bool:
    """Are all its numbers fractions of powers of two, so that float64 holds every product and sum?"""
    settings = [vector.settings, *vector.settings.get("adapters", ())]
    return vector.kind not in ("dora", "cast") and all((scale(one) * 2.0**20).is_integer() for one in settings)


def test_the_vectors_that_are_computed_now_are_the_frozen_ones() -> None:
    again = made()
    assert [vector.name for vector in again] == list(BY_NAME)
    assert sum(exact(vector) for vector in again if not vector.refused) >= 25
    for vector in again:
        frozen = BY_NAME[vector.name]
        assert (vector.kind, vector.words, dict(vector.settings)) == (frozen.kind, frozen.words, dict(frozen.settings))
        assert (vector.wanted, vector.dtypes, vector.roundings) == (frozen.wanted, frozen.dtypes, frozen.roundings)
        for name, array in vector.inputs.items():
            np.testing.assert_array_equal(array, frozen.inputs[name])
        for name, array in vector.outputs.items():
            spread = 0.0 if exact(vector) else 1e-14 * frozen.sizes[name]  # another BLAS, another order of sums
            assert (abs(array - frozen.outputs[name]) <= spread).all(), (vector.name, name)
            np.testing.assert_allclose(vector.sizes[name], frozen.sizes[name], rtol=1e-12)


def test_inputs_are_the_same_numbers_in_every_type() -> None:
    for vector in FROZEN.vectors:
        for array in vector.inputs.values():
            if array.dtype.kind == "f" and vector.kind != "cast" and np.isfinite(array).all():
                assert (array * 8.0 == np.rint(array * 8.0)).all()
                assert abs(array).max(initial=0.0) < 16.0  # 7 bits, of which bfloat16 has 8


def test_no_term_is_so_small_that_float16_would_lose_more_than_was_counted() -> None:
    for vector in FROZEN.vectors:
        for size in vector.sizes.values() if vector.kind != "cast" else ():
            assert not ((size > 0.0) & (size < 2.0**-6)).any()


# ------------------------------------------------------------------------------------------------------- exact enough


def in_type(dtype: Any, order: str) -> Callable[[Case], dict[str, Any]]:
    """An honest implementation of linear maps that rounds to this type after each operation, terms in some order."""

    def product(x: Any, y: Any) -> Any:
        total = np.zeros((*x.shape[:-1], y.shape[1]), dtype)
        ks = range(x.shape[-1]) if order != "backwards" else range(x.shape[-1] - 1, -1, -1)
        for k in ks:
            total = (total + (x[..., k : k + 1] * y[k]).astype(dtype)).astype(dtype)
        return total

    def run(case: Case) -> dict[str, Any]:
        p = {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in case.inputs.items()}
        s = np.asarray(scale(case.settings)).astype(dtype)
        W = p["W"].T if case.settings["fan_in_fan_out"] else p["W"]
        rows, dy = p["x"].reshape(-1, p["x"].shape[-1]), p["dy"].reshape(-1, len(W))
        D = (s * product(p["B"], p["A"])).astype(dtype)
        merged = (W + D).astype(dtype)
        z = product(rows, p["A"].T)
        beside = (s * product(z, p["B"].T)).astype(dtype)
        y = product(rows, merged.T) if order == "merged" else (product(rows, W.T) + beside).astype(dtype)
        dz = (s * product(dy, p["B"])).astype(dtype)
        dW = product(dy.T, rows)
        found = {
            "scale": s,
            "y": (y + p["b"]).astype(dtype).reshape(p["dy"].shape),
            "dA": product(dz.T, rows) if order != "merged" else (s * product(p["B"].T, dW)).astype(dtype),
            "dB": (s * (product(dy.T, z) if order != "merged" else product(dW, p["A"].T))).astype(dtype),
            "dx": (product(dy, W) + product(dz, p["A"])).astype(dtype).reshape(p["x"].shape),
            "merged": merged.T if case.settings["fan_in_fan_out"] else merged,
            "merged_b": p["b"],
        }
        return {name: np.asarray(found[name], np.float64) for name in case.wanted}

    return run


@pytest.mark.parametrize("order", ["forwards", "backwards", "merged"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_honest_implementation_holds_in_whatever_order_it_sums(dtype: str, order: str) -> None:
    kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    names = [
        n for n in BY_NAME if re.fullmatch(r"linear/(plain|square|axes|fresh|rank 1|small.*|rslora.*|conv1d.*)", n)
    ]
    results = [judge(in_type(kind, order), BY_NAME[name], dtype) for name in names]
    assert [f"{r.name}: {r.why}" for r in results if r.fails] == []
    assert max(max(r.used.values()) for r in results) > 0.01  # contrast: it does round


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_an_error_of_scale_of_some_roundings_more_than_allowed_is_caught(dtype: str) -> None:
    allowed = PLAIN.tolerances["merged"][dtype]

    def off(case: Case) -> dict[str, Any]:
        wrong = replace(RULES, merge_scale=lambda s: s * (1.0 + 40.0 * allowed))
        case = replace(case, inputs={name: np.asarray(a, np.float64) for name, a in case.inputs.items()})
        return answers(case.kind, case.settings, case.inputs, case.wanted, wrong)

    assert judge(book, PLAIN, dtype).status == "passed"
    assert judge(off, PLAIN, dtype).why.startswith("merged is off by")


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_a_cast_merge_holds_whether_the_update_is_rounded_first_or_not_and_one_percent_of_scale_does_not(
    stored: str,
) -> None:
    kind = pytest.importorskip("ml_dtypes").bfloat16 if stored == "bfloat16" else np.float16

    def merge(case: Case, first: bool, factor: float) -> dict[str, Any]:
        p, s = case.inputs, np.float32(factor * scale(case.settings))
        D = s * (p["B"] @ p["A"])
        D = D.astype(kind).astype(np.float32) if first else D
        return {"merged": (p["W"] + D).astype(kind).astype(np.float32)}

    vector = BY_NAME[f"cast/{stored}"]
    for first in (True, False):
        result = judge(lambda case, first=first: merge(case, first, 1.0), vector, stored)  # type: ignore[misc]
        assert result.status == "passed", result.why
        assert result.used["merged"] > 0.3
    assert judge(lambda case: merge(case, False, 1.5), vector, stored).fails


# -------------------------------------------------------------------------------------- and the vectors find every bug


def test_every_mutant_is_killed_by_what_it_computes_and_the_equations_themselves_pass() -> None:
    table = killed(FROZEN.vectors)
    assert len(MUTANTS) >= 50  # of which 20 were asked for
    assert [name for name, by in table.items() if not any("off by" in why for why in by.values())] == []
    assert mutants.catches(table) == {name: caught for name, caught in FROZEN.catches.items() if caught}
    unchanged = replace(next(iter(MUTANTS.values())), rules=RULES)
    for dtype in DTYPES:
        assert not any(
            r.fails for r in conform(mutants.run_of(unchanged), [v for v in FROZEN.vectors if not v.refused], [dtype])
        )


def test_in_16_bits_only_what_is_not_asked_there_survives() -> None:
    for dtype in DTYPES[2:]:
        alive = {name for name, by in killed(FROZEN.vectors, dtype).items() if not by}
        of_dora = {name for name in MUTANTS if name.startswith(("norm", "magnitude"))}
        assert alive <= of_dora


def test_each_thread_that_is_named_is_a_repository_and_a_number() -> None:
    named = [place for mutant in MUTANTS.values() for place in mutant.reports]
    named += [source for _, _, source, _ in REFUSED.values() if source]
    assert len({*named}) >= 30
    assert [place for place in named if not re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", place)] == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_must_be_refused_is_refused_in_words_and_one_who_answers_or_has_not_tried_fails(name: str) -> None:
    vector = BY_NAME[name]
    assert judge(ours.run, vector, "float32").why.startswith("refused, ")
    assert judge(lambda case: {}, vector, "float32").why == f"was not refused, though {vector.refused}"

    def absent(case: Case) -> Any:
        raise NotImplementedError("no such thing")

    assert judge(absent, vector, "float32").why == "not implemented: no such thing"


# --------------------------------------------------------------------------------------------------- judged in words

GOOD = book(case_of(PLAIN, "float32"))
ANSWERS: dict[str, tuple[Callable[[Case], Any], str]] = {
    "no mapping": (lambda case: list(GOOD), "run(case) must give back a mapping from names to arrays, got list"),
    "nothing": (lambda case: None, "run(case) must give back a mapping from names to arrays, got NoneType"),
    "a key less": (lambda case: {n: a for n, a in GOOD.items() if n != "dB"}, "dB is missing"),
    "a wrong key": (
        lambda case: {**GOOD, "merge": GOOD["merged"]}, "'merge' was not asked for; the nearest are merged,"
    ),
    "a wrong shape": (lambda case: {**GOOD, "y": GOOD["y"].T}, "y must have shape (3, 4), got (4, 3)"),
    "a narrower type": (
        lambda case: {**GOOD, "y": GOOD["y"].astype(np.float16)}, "y must come in float32 or wider, got float16"
    ),
    "whole numbers": (
        lambda case: {**GOOD, "y": GOOD["y"].astype(int)}, "y must hold floating numbers, got int64"
    ),
    "objects": (lambda case: {**GOOD, "y": object()}, "y must hold floating numbers, got object"),
    "NaN": (lambda case: {**GOOD, "y": np.full((3, 4), np.nan)}, "y holds a number that is not finite"),
    "a gap": (lambda case: {**GOOD, "dx": GOOD["dx"] + 1e-3}, "dx is off by "),
    "an error": (lambda case: 1 / 0, "ZeroDivisionError: division by zero"),
    "an exit": (lambda case: sys.exit(0), "it left the program in place of an answer"),
    "a long error": (lambda case: [][int("1" * 9)], "IndexError: list index out of range"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_a_bad_answer_is_a_failed_vector_with_one_clear_line(name: str) -> None:
    run, words = ANSWERS[name]
    result = judge(run, PLAIN, "float32")
    assert result.fails
    assert result.why.startswith(words)
    assert "\n" not in result.why


def test_a_good_answer_passes_and_says_how_much_of_the_tolerance_it_used() -> None:
    result = verdict(PLAIN, "float32", GOOD)
    assert result.status == "passed"
    assert set(result.used) == set(PLAIN.wanted)


def test_a_function_of_a_file_or_a_module_is_had_by_name(desk: Path) -> None:
    for place in (
        "adapter.py:other",
        str(desk / "adapter.py"),
        "lora_np.conformance.ours",
        "lora_np.conformance.ours:run",
    ):
        assert judge(load_run(place), BY_NAME["linear/axes"], "float32").why in ("", "dA is missing")


def test_nothing_that_is_done_to_a_case_reaches_the_next_one() -> None:
    def spoil(case: Case) -> Any:
        found = book(case)
        for array in case.inputs.values():
            array[...] = 0
        case.settings["r"] = 99  # type: ignore[index]
        return found

    assert tally(conform(spoil, [PLAIN, PLAIN])) == {"passed": 2}
    assert judge(book, PLAIN, "float32").status == "passed"


def test_the_list_of_expected_failures_takes_names_patterns_and_types_and_refuses_others() -> None:
    found = expected_failures("linear/plain@float16 # rounds\n\n# a remark\ndora/*\n", BY_NAME)
    assert found["linear/plain@float16"] == "rounds"
    assert {"dora/plain", "dora/gradient@float64"} <= set(found)
    assert "linear/plain" not in found
    with pytest.raises(ValueError, match=r"names 'linear/plane', which is no vector; the nearest are linear/plain"):
        expected_failures("linear/plane", BY_NAME)


# ---------------------------------------------------------------------------------------------------- the command

ADAPTER = """
import numpy as np
print("said while it is imported")

def run(case):
    print("said while it is asked")
    if case.kind != "linear":
        raise NotImplementedError(case.kind)
    p, s = case.inputs, case.settings["lora_alpha"] / case.settings["r"]
    merged = p["W"] + s * p["B"] @ p["A"]
    return {"scale": np.asarray(s), "y": p["x"] @ merged.T + p["b"], "merged": merged}

other = run
number = 3
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "adapter.py").write_text(ADAPTER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ASK = ["conform", "adapter.py", "--outputs", "scale,y,merged"]


def test_an_adapter_of_ten_lines_is_judged_and_the_exit_code_says_how(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of([*ASK, "--only", "linear/plain", "--only", "linear/axes"]) == 0
    assert capsys.readouterr().out == "2 vectors: 2 passed\n"
    assert code_of([*ASK, "--only", "linear/*"]) == 1
    said = capsys.readouterr().out
    assert "linear/rslora" in said
    assert "times its tolerance" in said
    (desk / "known.txt").write_text("linear/rslora*\nlinear/*pattern*\nlinear/conv1d*\nlinear/* # all of them\n")
    assert code_of([*ASK, "--only", "linear/*", "--xfails", "known.txt"]) == 0
    assert "linear/plain (float32) passes: take it out of the list" in capsys.readouterr().out


def test_json_holds_the_verdicts_and_nothing_that_the_adapter_says(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of([*ASK, "--json", "--dtype", "float64", "--only", "linear/*"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["holds"]
    assert sum(told["counts"].values()) == len(told["results"]) > 10
    assert told["vectors"] == hashlib.sha256((FOLDER / files.NUMBERS).read_bytes()).hexdigest()
    assert code_of(["conform", "--json", "--only", "dora/*"]) == 0
    assert json.loads(capsys.readouterr().out)["holds"]


BAD: dict[str, tuple[list[str], str]] = {
    "no file": (["nowhere.py"], "nowhere.py"),
    "a folder": (["."], "cannot be imported"),
    "a folder by a file's name": (["folder.py"], "folder.py"),
    "no module": (["no_such_module_anywhere"], "cannot be imported: ModuleNotFoundError"),
    "a file without its ending": (["adapter"], "to run the file, name it: adapter.py"),
    "no function": (["adapter.py:runs"], "adapter.py must have a function runs(case); the nearest are run"),
    "no function, a number": (["adapter.py:number"], "must have a function number(case)"),
    "a syntax error": (["broken.py"], "broken.py cannot be imported: SyntaxError"),
    "an error while importing": (["failing.py"], "failing.py cannot be imported: KeyError"),
    "an adapter that exits": (["leaving.py"], "leaving.py cannot be imported: SystemExit"),
    "a type": (["adapter.py", "--dtype", "float23"], "--dtype must be one of float32, "),
    "a pattern that matches nothing": (["adapter.py", "--only", "liner/plain"], "the nearest are linear/plain"),
    "an output": (["adapter.py", "--outputs", "z"], "--outputs 'z' is the output of no vector"),
    "an expected failure": (["adapter.py", "--xfails", "wrong.txt"], "the nearest are linear/plain"),
    "no list": (["adapter.py", "--xfails", "none.txt"], "none.txt"),
    "a list that is no text": (["adapter.py", "--xfails", "bytes.txt"], "bytes.txt is no text"),
    "two jobs": (["--mutants", "--write", "new"], "--mutants stands alone: leave out --write"),
    "an adapter and a job": (["adapter.py", "--mutants"], "--mutants stands alone: leave out adapter.py"),
    "no vectors": (["--vectors", "empty"], "vectors.json"),
    "types that nothing is asked in": (["--only", "cast/bfloat16"], "no vector is asked in these types"),
    "a place that is taken": (["--write", "empty"], "empty exists"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(desk: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (desk / "broken.py").write_text("def run(case:\n")
    (desk / "failing.py").write_text("{}['missing']\n")
    (desk / "leaving.py").write_text("raise SystemExit(0)\n")
    (desk / "wrong.txt").write_text("linear/plane\n")
    (desk / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (desk / "empty").mkdir()
    (desk / "folder.py").mkdir()
    arguments, words = BAD[name]
    before = sorted(desk.rglob("*"))
    assert code_of(["conform", *arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("said ")]
    assert len(error) == 1
    assert words in error[0]
    assert sorted(path for path in desk.rglob("*") if "__pycache__" not in path.parts) == before


def test_mutants_are_shown_with_what_kills_them_and_one_that_lives_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {name: MUTANTS[name] for name in ("alpha alone", "experts in reverse")}
    for place in ("lora_np.conformance.MUTANTS", "lora_np.conformance.mutants.MUTANTS"):
        monkeypatch.setattr(place, two)
    assert code_of(["conform", "--mutants"]) == 0
    assert "float64: 2 mutants, 2 killed, 0 alive" in capsys.readouterr().out
    assert code_of(["conform", "--mutants", "--only", "linear/plain", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["alive"] == {"float64": ["experts in reverse"]}
    assert told["killed"]["float64"]["alpha alone"]["linear/plain"].endswith("times its tolerance")


# ------------------------------------------------------------------------------------------------------------ the files


def test_the_files_are_small_and_need_json_and_safetensors_alone() -> None:
    from safetensors.numpy import load_file

    about, tensors = json.loads((FOLDER / files.INDEX).read_text("utf-8")), load_file(FOLDER / files.NUMBERS)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000
    entry = next(entry for entry in about["vectors"] if entry["name"] == "linear/plain")
    p = {name: tensors[f"linear/plain/in/{name}"] for name in entry["inputs"]}
    s = entry["settings"]["lora_alpha"] / entry["settings"]["r"]
    y = p["x"] @ (p["W"] + np.float32(s) * p["B"] @ p["A"]).T + p["b"]
    gap, size = abs(y - tensors["linear/plain/out/y"]), tensors["linear/plain/size/y"]
    assert (gap <= entry["outputs"]["y"]["tolerance"]["float32"] * size).all()
    assert p["x"].dtype == np.float32


def test_writing_them_anew_gives_the_same_files_but_for_what_another_matrix_library_rounds_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(["conform", "--write", str(tmp_path / "new")]) == 0
    assert code_of(["conform", "--vectors", str(tmp_path / "new"), "--only", "linear/*"]) == 0
    here, there = (json.loads((folder / files.INDEX).read_text("utf-8")) for folder in (FOLDER, tmp_path / "new"))
    assert {**here, "sha256": ""} == {**there, "sha256": ""}
    assert (tmp_path / "new" / files.SCHEMA).read_text("utf-8") == (FOLDER / files.SCHEMA).read_text("utf-8")
    assert code_of(["conform", "--write", str(tmp_path / "new")]) == 2  # what is there stays


def test_the_index_is_as_its_schema_says_and_the_schema_refuses_another() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads((FOLDER / files.SCHEMA).read_text("utf-8")))
    about = json.loads((FOLDER / files.INDEX).read_text("utf-8"))
    validator.validate(about)
    for spoil in (
        lambda a: a.pop("sha256"),
        lambda a: a["vectors"][0].pop("kind"),
        lambda a: a["vectors"][0]["outputs"]["y"]["tolerance"].update(float32=-1),
        lambda a: a["vectors"][0].update(dtypes=["float8"]),
        lambda a: a["vectors"][0].update(refused="and answered"),
    ):
        wrong = json.loads(json.dumps(about))
        spoil(wrong)
        assert not validator.is_valid(wrong)


def spoiled(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    about = json.loads((folder / files.INDEX).read_text("utf-8"))
    change(about)
    (folder / files.INDEX).write_text(json.dumps(about), "utf-8")


SPOILS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (
        lambda f: (f / files.NUMBERS).write_bytes((f / files.NUMBERS).read_bytes()[:-1] + b"\x7f"), "digest is another"
    ),
    "half a file": (
        lambda f: (f / files.NUMBERS).write_bytes((f / files.NUMBERS).read_bytes()[:5000]), "its digest is another"
    ),
    "no numbers": (lambda f: (f / files.NUMBERS).unlink(), files.NUMBERS),
    "no JSON": (lambda f: (f / files.INDEX).write_text("{"), "not JSON"),
    "another format": (lambda f: spoiled(f, lambda a: a.update(format="x")), "format must be lora-conformance-1"),
    "no list of vectors": (lambda f: spoiled(f, lambda a: a.pop("vectors")), "not as its schema says"),
    "vectors that are none": (lambda f: spoiled(f, lambda a: a.update(vectors=[3])), "not as its schema says"),
    "an empty list": (lambda f: spoiled(f, lambda a: a.update(vectors=[])), "at least one"),
    "a vector twice": (lambda f: spoiled(f, lambda a: a["vectors"].append(a["vectors"][0])), "each vector once"),
    "an input that is not there": (
        lambda f: spoiled(f, lambda a: a["vectors"][0]["inputs"].append("z")), "not as its schema says"
    ),
    "a tolerance of nothing": (
        lambda f: spoiled(f, lambda a: a["vectors"][0]["outputs"]["y"]["tolerance"].update(float32=0.0)), "tolerance"
    ),
    "a tolerance of everything": (
        lambda f: spoiled(f, lambda a: a["vectors"][0]["outputs"]["y"]["tolerance"].update(float32=1e9)), "tolerance"
    ),
    "an unknown type": (lambda f: spoiled(f, lambda a: a["vectors"][0].update(dtypes=["float8"])), "linear/plain"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILS)
def test_spoiled_vectors_judge_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil, words = SPOILS[name]
    spoil(tmp_path)
    assert code_of(["conform", "--vectors", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert words in printed.err


def test_the_vectors_and_the_plug_in_are_in_the_wheel() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = about["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "lora_np/conformance/vectors/*" in wheel["artifacts"]
    assert wheel["force-include"]["lora_np_pytest.py"] == "lora_np_pytest.py"
    assert about["project"]["entry-points"]["pytest11"] == {"lora_np": "lora_np_pytest"}


# ----------------------------------------------------------------------------------------------------- the page in docs


def results_of(text: str) -> str:
    return text.partition("## What others compute today\n\n")[2].partition("\n## The vectors")[0]


def test_the_page_in_docs_is_what_the_command_writes_but_for_what_other_libraries_compute() -> None:
    there = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    assert pages.page(FROZEN, results_of(there)) == there
    for title, (name, _) in pages.LIBRARIES.items():
        assert f"{title} " in results_of(there)
        assert pages.known_of(name, FROZEN)
    assert "not known before" not in results_of(there)


def test_the_section_about_other_libraries_shows_what_holds_and_why_the_rest_does_not() -> None:
    run = {"lora_np": conform(ours.run, FROZEN.vectors, ["float32", "float64"])}
    run |= {f"{title} 1": conform(book, FROZEN.vectors) for title in pages.LIBRARIES}
    shown = pages.section(FROZEN, run)
    assert "| `linear/plain` | ✓ | ✓ | ✓ | ✓ | ✓ |" in shown
    assert "| PEFT 1 | `refuse/no alpha` |" not in shown  # the book has no default
    assert "| PEFT 1 | `refuse/not a number` | float32 | was not refused" in shown
    assert "not known before" in shown


def test_a_page_is_replaced_only_where_the_command_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    pages.write_page(path, pages.MARK + "one", overwrite=False)
    with pytest.raises(FileExistsError, match="allow --overwrite"):
        pages.write_page(path, pages.MARK + "two", overwrite=False)
    pages.write_page(path, pages.MARK + "two", overwrite=True)
    assert path.read_text("utf-8").endswith("two")
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="not a page that lora-np conform wrote"):
        pages.write_page(path, pages.MARK, overwrite=True)


def test_the_adapter_on_the_page_holds_as_the_page_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(
        r"```python\n(import numpy.*?)```", (ROOT / "docs" / "conformance.md").read_text("utf-8"), re.DOTALL
    )
    assert code
    (tmp_path / "adapter.py").write_text(code[1])
    asked = ["--outputs", "scale,y,merged", "--only", "linear/plain", "--only", "linear/axes", "--only", "linear/fresh"]
    assert code_of(["conform", str(tmp_path / "adapter.py"), *asked]) == 0


# ------------------------------------------------------------------------------------------------------------- pytest


def test_the_plug_in_imports_nothing_until_it_is_used() -> None:
    tree = ast.parse((ROOT / "lora_np_pytest.py").read_text("utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_a_test_that_asks_for_the_case_runs_once_a_vector_and_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nlora_conform_dtypes = float64\nlora_conform_xfails = known.txt\n")
    (tmp_path / "known.txt").write_text("dora/*  # not here\n")
    (tmp_path / "test_a.py").write_text(
        'import sys\nBEFORE = "lora_np" in sys.modules\n\ndef test_it_is_not_imported():\n    assert not BEFORE\n'
    )
    (tmp_path / "test_b.py").write_text(
        "from lora_np.conformance.ours import run\n\ndef test_conforms(lora_case):\n"
        '    assert lora_case.case.dtype == "float64"\n    if lora_case.case.name.startswith("dora/"):\n'
        "        lora_case.check(lambda case: {})\n    lora_case.check(run)\n"
    )
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "lora_np_pytest"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    of_dora = sum(v.name.startswith("dora/") for v in FROZEN.vectors)
    asked = sum("float64" in v.dtypes for v in FROZEN.vectors)
    assert f"{asked - of_dora + 1} passed, {of_dora} xfailed" in done.stdout, done.stdout


class Config:
    """What the plug-in asks of pytest's."""

    def __init__(self, folder: Path, dtypes: list[str], xfails: str = "") -> None:
        self.rootpath, self.values = folder, {"lora_conform_dtypes": dtypes, "lora_conform_xfails": xfails}

    def getini(self, name: str) -> Any:
        return self.values[name]


def test_what_the_configuration_says_wrongly_is_said_in_one_line(tmp_path: Path) -> None:
    assert len(plugin.cases(Config(tmp_path, []))) == sum("float32" in v.dtypes for v in FROZEN.vectors)
    with pytest.raises(pytest.UsageError, match="lora_conform_dtypes: one of float32"):
        plugin.cases(Config(tmp_path, ["float23"]))
    with pytest.raises(pytest.UsageError, match=r"lora_conform_xfails: .*none\.txt"):
        plugin.cases(Config(tmp_path, [], "none.txt"))
    with pytest.raises(AssertionError, match=r"linear/plain \(float32\): y is missing|scale is missing"):
        plugin.LoraCase(PLAIN, "float32").check(lambda case: {})


# ----------------------------------------------------------------------------------------------- libraries of others


@pytest.mark.slow  # imports PyTorch with PEFT, JAX or MLX
@pytest.mark.parametrize("title", pages.LIBRARIES)
def test_an_example_holds_but_for_what_its_list_says(title: str) -> None:
    name, distribution = pages.LIBRARIES[title]
    needs = {"PEFT": ("torch", "peft", "transformers"), "loralib": ("torch", "loralib"), "mlx-lm": ("mlx", "mlx_lm")}
    for module in needs.get(title, ("jax",)):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{distribution} is not installed")
    known = pages.known_of(name, FROZEN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = conform(load_run(str(pages.EXAMPLES / f"{name}.py")), FROZEN.vectors, ["float32"], known)
    assert [f"{r.name}: {r.why}" for r in results if r.status not in ("passed", "expected failure")] == []
