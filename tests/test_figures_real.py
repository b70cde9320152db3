"""The picture of tutorial 12: every probability is a bar, under its word and its model."""

from __future__ import annotations

from typing import Any

import pytest

from lora_np.figures.real import expected_words, losses_of_steps

BELIEFS = {"base": {" Paris": 0.7, " a": 0.1}, "adapted": {" Fog": 0.9, " Paris": 0.05}}


def test_each_model_has_a_bar_for_each_word_and_all_is_labelled() -> None:
    figure = expected_words(BELIEFS)
    [axes] = figure.axes
    words = [" Paris", " a", " Fog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [repr(word) for word in words]
    for container, (model, belief) in zip(axes.containers, BELIEFS.items(), strict=True):
        assert container.get_label() == model
        assert [bar.get_width() for bar in container] == [belief.get(word, 0.0) for word in words]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("probability that it comes next", "token")
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(BELIEFS)


@pytest.mark.parametrize("beliefs", [{}, {"base": {}}, {"base": {"a": 1.5}}, {"base": {"a": float("nan")}}])
def test_what_is_no_belief_is_refused(beliefs: Any) -> None:
    with pytest.raises(ValueError, match="probabilities from 0 to 1"):
        expected_words(beliefs)


def test_the_loss_of_every_step_is_drawn_from_step_one_and_from_zero() -> None:
    figure = losses_of_steps([2.0, 1.5, 0.5])
    [axes] = figure.axes
    [line] = axes.get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], [2.0, 1.5, 0.5])
    assert axes.get_ylim()[0] == 0.0
    assert axes.get_ylabel() == "loss (nats a token)"
    with pytest.raises(ValueError, match="at least one step"):
        losses_of_steps([])
