import numpy as np
import pytest

from lora_np.figures import svg
from lora_np.figures.low_rank import spectra

SIGMA = {"query": [3.0, 4.0 / 3, 0.5, 0.1], "random": [1.0, 0.9, 0.8, 0.7]}


def test_spectra_are_relative_to_the_norm_and_energies_reach_one() -> None:
    figure = spectra(SIGMA)
    sizes, energy = figure.axes
    for line, label in zip(sizes.lines, SIGMA, strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.array(SIGMA[label]) / np.linalg.norm(SIGMA[label]))
        assert line.get_label() == label
    assert [line.get_ydata()[-1] for line in energy.lines] == pytest.approx([1.0, 1.0])
    assert "rank" in energy.get_xlabel()
    assert svg(figure).startswith("<svg")


@pytest.mark.parametrize("wrong", [{}, {"zero": [0.0, 0.0]}])
def test_spectra_of_nothing_raise(wrong: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one matrix"):
        spectra(wrong)
