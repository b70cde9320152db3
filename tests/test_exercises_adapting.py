"""Each check of tutorial 05 knows the right answer, and says what is wrong with a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import model

from lora_np.exercises.adapting import check_first_step, check_last_blocks, check_weights
from lora_np.parameters import count
from lora_np.tasks import Example

PAIRS = [Example("ab", "xyz"), Example("q", "hi")]  # END a b \n x y z END and END q \n h i END
RIGHT = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0]]) / 7


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().out.splitlines()
    return line


def changed(*places: tuple[int, int, float]) -> Any:
    weights = RIGHT.copy()
    for row, column, value in places:
        weights[row, column] = value
    return weights


def test_the_weights_of_two_pairs_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    check_weights(RIGHT.tolist(), PAIRS)
    assert one_line(capsys) == "Right: 7 tokens are learned, each with weight 1/7."


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (RIGHT[:, :6], r"2 rows of 7: .* got \(2, 6\)"),
        (changed((1, 5, 1 / 7)), "row 1 .* padding is learned"),
        (changed((0, 6, 0)), "row 0 .* the END after the reference"),
        (changed((0, 3, 0)), "the first letter of the reference is learned: column 3 reads the newline"),
        (changed((1, 0, 1 / 7)), "row 1 .* the prompt is given"),
        (changed((0, 4, 0)), "every byte of the reference"),
        (7 * RIGHT, "sum to 1, got 7"),
        (changed(*((0, j, 1 / 8) for j in (3, 4, 5, 6)), *((1, j, 1 / 6) for j in (2, 3, 4))), "counts the same, 1/7"),
    ],
)
def test_wrong_weights_are_told_why(wrong: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_weights(wrong, PAIRS)


def test_the_last_blocks_may_be_selected_in_several_ways(capsys: pytest.CaptureFixture[str]) -> None:
    node = model(layers=4)
    for answer in (("blocks.2.*", "blocks.3.*"), "blocks.[23].*"):
        check_last_blocks(answer, node)
        assert one_line(capsys) == f"Right: {count(node, 'blocks.[23].*'):,} of {count(node):,} numbers."


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (("blocks.3.*", "blocks.4.*"), r"'blocks.4.\*' matches none"),
        (("blocks.1.*", "blocks.2.*"), "arrays too many are selected, blocks.1.attention_norm.gamma"),
        (("blocks.2.*", "blocks.3.*", "norm.*"), "2 arrays too many are selected, norm.gamma"),
        ("blocks.3.*", "arrays are left out, blocks.2.attention_norm.gamma"),
        ((), "no pattern at all"),
    ],
)
def test_a_wrong_selection_is_told_why(wrong: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_last_blocks(wrong, model(layers=4))


@pytest.mark.parametrize("gradient", [-3e-4, 2.0])
def test_the_first_step_of_adam_is_right(gradient: float, capsys: pytest.CaptureFixture[str]) -> None:
    check_first_step(-0.01 if gradient > 0 else 0.01, gradient, 0.01)
    assert one_line(capsys).startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (3e-6, "plain gradient descent"),
        (-0.01, "the sign is not"),
        (0.01 * 0.1 / 0.001**0.5, "start at zero"),
        (0.5, "what is"),
        ("0.01", "is a number"),
    ],
)
def test_a_wrong_first_step_is_told_why(wrong: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_first_step(wrong, -3e-4, 0.01)


@pytest.mark.parametrize(
    "check",
    [
        lambda: check_weights(..., PAIRS),
        lambda: check_last_blocks(..., model()),
        lambda: check_first_step(..., -3e-4, 0.01),
    ],
)
def test_a_placeholder_is_told_its_task(check: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    check()
    assert one_line(capsys).startswith("Exercise: ")
