"""The puzzles: each is solved by one line of NumPy, and what is nearly right is not taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_np.exercises.puzzles import PUZZLES, check, drawn, show

NOTEBOOK = Path(__file__).parent.parent / "tutorials" / "puzzles" / "lora-puzzles.ipynb"

ANSWERS: dict[int, Any] = {
    1: lambda W, A, B, x, s: x @ W.T + s * (x @ A.T) @ B.T,
    2: lambda W, A, B, s: W + s * B @ A,
    3: lambda A, B, i, j: B[i] @ A[:, j],
    4: lambda W, r: r * sum(W.shape),
    5: lambda W: (W.size - 1) // sum(W.shape),
    6: lambda A, B: ((B.T @ B) * (A @ A.T)).sum(),
    7: lambda x, A, dy, s: s * dy.T @ (x @ A.T),
    8: lambda x, B, dy, s: s * (dy @ B).T @ x,
    9: lambda U, sigma, V_T, r: (U[:, :r] * sigma[:r]) @ V_T[:r],
    10: lambda A1, B1, A2, B2, x: x @ np.concatenate([A1, A2]).T @ np.concatenate([B1, B2], axis=1).T,
    11: lambda As, Bs, which, x: np.einsum("nik,nkj,nj->ni", Bs[which], As[which], x),
    12: lambda U, V: ((U.T @ V) ** 2).sum() / min(U.shape[1], V.shape[1]),
}
WRONG: list[tuple[int, Any, str]] = [
    (1, lambda W, A, B, x, s: x @ W.T + (x @ A.T) @ B.T, "is off by"),
    (1, lambda W, A, B, x, s: (x @ W.T + s * (x @ A.T) @ B.T).T, "has the shape"),
    (2, lambda W, A, B, s: s * (W + B @ A), "is off by"),
    (5, lambda W: W.size // sum(W.shape) + 1, "is off by"),
    (7, lambda x, A, dy, s: dy.T @ (x @ A.T), "is off by"),
    (10, lambda A1, B1, A2, B2, x: x @ A1.T @ B1.T, "is off by"),
    (11, lambda As, Bs, which, x: np.einsum("nik,nkj,nj->ni", Bs[which], As[which * 0], x), "is off by"),
    (12, lambda U, V: ((U.T @ V) ** 2).sum() / max(U.shape[1], V.shape[1]), "is off by"),
]


def test_there_are_twelve() -> None:
    assert len(PUZZLES) == len(ANSWERS) == 12


@pytest.mark.parametrize("number", ANSWERS)
def test_each_is_solved_by_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    check(number, ANSWERS[number])
    assert capsys.readouterr().out.startswith(f"Right: puzzle {number}, ")


@pytest.mark.parametrize(("number", "answer", "said"), WRONG)
def test_what_is_nearly_right_is_not_taken(number: int, answer: Any, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check(number, answer)


def test_shapes_are_never_such_that_a_transposed_matrix_would_do() -> None:
    for seed in range(20):
        given = drawn(["x", "W", "A", "B", "dy"], np.random.default_rng(seed))
        assert len({*given["W"].shape, len(given["x"])}) == 3


@pytest.mark.parametrize("number", ANSWERS)
def test_a_specification_is_shown_and_a_placeholder_told_the_task(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    show(number)
    assert "for " in capsys.readouterr().out or number == 5
    check(number, ...)
    assert capsys.readouterr().out.startswith("Exercise: a function (")


@pytest.mark.parametrize("number", [0, 13, "1"])
def test_another_number_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match="puzzles 1 to 12"):
        show(number)


def test_the_notebook_shows_and_checks_each_in_order() -> None:
    cells = [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    shown = [f"show({number})" for number in ANSWERS]
    assert [cell for cell in cells if cell.startswith("show(")] == shown
    assert [cell.split(",")[0] for cell in cells if cell.startswith("check(")] == [f"check({n}" for n in ANSWERS]
