import math

import pytest

from lora_np.figures import svg
from lora_np.figures.derivations import PAIRS, disagreements
from lora_np.gradients import Row

ROWS = {
    "gelu: x": Row("gelu", "x", (2,), 1e-16, 2e-12, 3e-12, 1e-9, "equal"),
    "linear: W": Row("linear", "W", (2, 2), 0.0, 5e-12, 5e-12, 1e-9, "equal"),
}


def test_every_pair_of_witnesses_is_drawn_for_every_row() -> None:
    figure = disagreements(ROWS)
    (axes,) = figure.axes
    drawn = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert list(drawn) == list(PAIRS)
    assert drawn["textbook, difference"] == [3e-12, 5e-12]
    assert drawn["error of the difference"] == [1e-9, 1e-9]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(ROWS)
    assert svg(figure).startswith("<svg")


def test_exact_agreement_has_no_mark() -> None:
    (axes,) = disagreements(ROWS).axes
    first, second = axes.lines[0].get_xdata()
    assert first == 1e-16
    assert math.isnan(second)


def test_a_picture_of_no_row_raises() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        disagreements({})
