"""The picture of latency: every method has a row, every way to read a mark. The bills are in test_budget.py."""

from __future__ import annotations

from typing import Any

import pytest

from lora_np.figures.methods import latency

PERCENT = {"one more token": {"lora": 20.0, "adapter-h": 30.0}, "128 tokens at once": {"lora": 4.0, "adapter-h": 3.0}}


def test_every_method_has_a_row_and_every_way_to_read_a_mark() -> None:
    figure = latency(PERCENT)
    [axes] = figure.axes
    one, many, base = axes.get_lines()
    assert [list(line.get_xdata()) for line in (one, many)] == [[20.0, 30.0], [4.0, 3.0]]
    assert list(base.get_xdata()) == [0.0, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lora", "adapter-h"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(PERCENT)
    assert "%" in axes.get_xlabel()


@pytest.mark.parametrize("percent", [{}, {"a": {}}, {"a": {"lora": 1.0}, "b": {"dora": 1.0}}])
def test_a_latency_of_nothing_is_refused(percent: Any) -> None:
    with pytest.raises(ValueError, match="at least one label"):
        latency(percent)
