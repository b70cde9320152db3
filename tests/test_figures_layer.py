import numpy as np
import pytest

from lora_np.figures import svg
from lora_np.figures.layer import cliffs, first_step, starts


def test_starts_hold_the_points_given() -> None:
    figure = starts({"B zero": [(0, 1.0), (1, 0.1)], "both zero": [(0, 1.0), (1, 1.0)]})
    (axes,) = figure.axes
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == {
        "B zero": [1.0, 0.1],
        "both zero": [1.0, 1.0],
    }
    assert (axes.get_yscale(), axes.get_xlabel()) == ("log", "step")
    assert svg(figure).startswith("<svg")


def test_first_steps_are_relative_to_the_first_rank() -> None:
    (axes,) = first_step((1, 4), {"adamw": [2.0, 2.0], "sgd": [0.5, 0.125]}).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.0, 1.0], [1.0, 0.25]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4"]
    assert "relative" in axes.get_ylabel()


def test_cliffs_are_relative_to_the_largest_and_show_where_rounding_is() -> None:
    (axes,) = cliffs({"rank 1": [2.0, 2e-15]}, rounding=1e-14).axes
    values, rounding = axes.lines
    np.testing.assert_allclose(values.get_ydata(), [1.0, 1e-15])
    assert set(rounding.get_ydata()) == {1e-14}
    assert axes.get_yscale() == "log"


def test_pictures_of_nothing_raise() -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        starts({})
    with pytest.raises(ValueError, match="one value for each of the 2 ranks"):
        first_step((1, 4), {"adamw": [1.0]})
    with pytest.raises(ValueError, match="at least one matrix"):
        cliffs({}, 1e-14)
