"""The checks of tutorial 03, and the tools it takes derivations apart with."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lora_np import operations as ops
from lora_np.exercises.derivations import (
    alone,
    at_zero_B,
    case,
    check_hidden_fault,
    check_rms_norm_gradient,
    check_scaling_gradient,
    planted,
    spoiled,
    tagged,
)
from lora_np.gradients import Row, check


def row(hand_textbook: float, hand_difference: float, textbook_difference: float, verdict: Any = "different") -> Row:
    return Row("", "", (1,), hand_textbook, hand_difference, textbook_difference, 1e-9, verdict)


def rms_norm(x: Any, gamma: Any, dy: Any, eps: float, *, mean: float = 0.0, along: float = 1.0, sigma: int = 1) -> Any:
    """The gradient of RMS norm, and with other factors the mistakes that are made in it."""
    deviation = np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    g, x_hat = dy * gamma, x / deviation
    projection = x_hat * (g * x_hat).mean(axis=-1, keepdims=True)
    return (g - mean * g.mean(axis=-1, keepdims=True) - along * projection) / deviation**sigma


# ------------------------------------------------------------------------------------------------------- the tools


@pytest.mark.parametrize(
    ("function", "tags"),
    [
        (ops.lora_linear.backward, "G0 G1 G2 G3"),
        (ops.layer_norm.backward, "N4 N5 N6"),
        (ops.attention.backward, "S2 S4 S5 S6 S7 S8"),
        (ops.gelu.forward, "A1 A3"),
        (ops.cross_entropy.backward, "C2"),
    ],
)
def test_every_tag_of_the_tutorial_is_in_the_source(function: Any, tags: str) -> None:
    for tag in tags.split():
        assert f"({tag})" in tagged(function, tag)


def test_a_tagged_line_comes_with_the_lines_above_it() -> None:
    shown = tagged(ops.attention.backward, "S6", lines=2).splitlines()
    assert len(shown) == 2
    assert "(S4)" in shown[0]
    assert shown[1] == "ds *= p  # (S6)"


def test_a_tag_that_no_line_bears_raises() -> None:
    with pytest.raises(ValueError, match=r"no line of gelu_backward bears the tag \(Z9\)"):
        tagged(ops.gelu.backward, "Z9")


def test_an_unknown_case_raises_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"the cases are linear; .*got 'convolution'"):
        case("convolution")


@pytest.mark.parametrize(
    ("gaps", "witness"),
    [
        (row(1.0, 1.0, 1e-12), "hand"),
        (row(1.0, 1e-12, 1.0), "textbook"),
        (row(1e-16, 1.0, 1.0), "difference"),
        (row(1.0, 2.0, 3.0), "all three disagree"),
        (row(1e-16, 1e-12, 1e-12, "equal"), "none"),
    ],
)
def test_the_witness_who_stands_alone_is_named(gaps: Row, witness: str) -> None:
    assert alone(gaps) == witness


def test_a_spoiled_gradient_leaves_hand_alone_in_that_array_only() -> None:
    faulty = case("lora_linear", spoiled("lora_linear", "A", lambda g: 1.01 * g))
    assert {row.array: alone(row) for row in check(faulty) if not row.holds} == {"A": "hand"}


def test_a_spoiled_forward_leaves_the_textbook_alone() -> None:
    right = ops.gelu
    doubled = lambda x, wanted: tuple(2.0 * part for part in right.forward(x, wanted=wanted or ("x",)))  # noqa: E731
    assert {alone(row) for row in check(case("gelu", planted("gelu", right.backward, doubled)))} == {"textbook"}


def test_at_zero_B_any_multiple_of_the_gradient_of_A_passes() -> None:
    faulty = case("lora_linear", spoiled("lora_linear", "A", lambda g: -7 * g))
    assert [row.verdict for row in check(at_zero_B(faulty)) if row.array == "A"] == ["zero"]
    assert [row.verdict for row in check(faulty) if row.array == "A"] == ["different"]


def test_the_cases_are_not_changed_by_what_is_made_of_them() -> None:
    one = case("lora_linear")
    at_zero_B(one)
    assert abs(one.point["B"]).min() > 0
    assert replace(one).point is one.point


# ------------------------------------------------------------------------------------------------------- the checks


def test_the_gradient_of_s_is_accepted(capsys: Any) -> None:
    check_scaling_gradient(lambda x, A, B, dy: (dy * (x @ A.T @ B.T)).sum())
    check_scaling_gradient(lambda x, A, B, dy: np.vdot(dy @ B, x @ A.T))
    assert capsys.readouterr().out.count("Right:") == 2


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x, A, B, dy: dy * (x @ A.T @ B.T), "must be one number"),
        (lambda x, A, B, dy: (x @ A.T @ B.T).sum(), "chain rule"),
        (lambda x, A, B, dy: -(dy * (x @ A.T @ B.T)).sum(), "autograd says"),
        (lambda x, A, B, dy: (dy * (x @ A.T @ B.T)).mean(), "autograd says"),
    ],
)
def test_a_wrong_gradient_of_s_is_explained(answer: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_scaling_gradient(answer)


def test_the_gradient_of_rms_norm_is_accepted(capsys: Any) -> None:
    check_rms_norm_gradient(rms_norm)
    assert "Right:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x, gamma, dy, eps: rms_norm(x, 1.0, dy, eps), "γ is missing"),
        (lambda x, gamma, dy, eps: rms_norm(x, gamma, dy, eps, along=0.0), "σ depends on x too"),
        (lambda x, gamma, dy, eps: rms_norm(x, gamma, dy, eps, mean=1.0), "subtracts no mean"),
        (lambda x, gamma, dy, eps: rms_norm(x, gamma, dy, eps, sigma=0), "1/σ is missing"),
        (lambda x, gamma, dy, eps: rms_norm(x, gamma, dy, eps, along=-1.0), "sign of the projection"),
        (lambda x, gamma, dy, eps: rms_norm(x, gamma, dy, eps, sigma=2), "autograd differs"),
        (lambda x, gamma, dy, eps: x.sum(), "shape of x"),
    ],
)
def test_a_wrong_gradient_of_rms_norm_is_explained(answer: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_rms_norm_gradient(answer)


def test_a_fault_that_hides_at_zero_B_is_accepted(capsys: Any) -> None:
    check_hidden_fault(lambda x, W, A, B, s, dy: dy @ W - s * (dy @ B) @ A)
    check_hidden_fault(lambda x, W, A, B, s, dy: dy @ W)
    assert capsys.readouterr().out.count("it is caught") == 2


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x, W, A, B, s, dy: dy @ W + s * (dy @ B) @ A, "this derivation is right"),
        (lambda x, W, A, B, s, dy: 2 * (dy @ W), "at B = 0 autograd already disagrees"),
        (lambda x, W, A, B, s, dy: dy @ B, "has the shape of x"),
    ],
)
def test_a_fault_that_does_not_hide_is_explained(answer: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check_hidden_fault(answer)


def test_a_placeholder_is_told_the_task(capsys: Any) -> None:
    check_scaling_gradient(...)
    check_rms_norm_gradient(...)
    check_hidden_fault(...)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["Exercise"] * 3
