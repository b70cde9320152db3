"""The pictures of the idea: what stands in them, and that nothing stands on anything else."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from lora_np.figures.idea import heat_maps, lora_picture


def texts(figure: Any) -> list[Any]:
    figure.canvas.draw()
    return [text for axes in figure.axes for text in (*axes.texts, axes.title) if text.get_text()]


@pytest.mark.parametrize("sizes", [(192, 192, 4), (768, 192, 8), (192, 768, 1), (12288, 12288, 4)])
def test_the_numbers_are_those_of_the_sizes_and_no_text_stands_on_another(sizes: tuple[int, int, int]) -> None:
    d_out, d_in, rank = sizes
    figure = lora_picture(d_out, d_in, rank)
    found = texts(figure)
    said = " ".join(text.get_text() for text in found)
    assert f"{d_out * d_in:,} numbers" in said
    assert f"= {rank * (d_out + d_in):,} numbers" in said
    boxes = [text.get_window_extent() for text in found]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize("sizes", [(0, 4, 1), (4, 4, 5), (4, 4, 0)])
def test_sizes_that_no_adapter_has_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="the rank at most the smaller"):
        lora_picture(*sizes)


def test_each_heat_map_says_its_shape_and_its_scale() -> None:
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((4, 96)), np.zeros((96, 4))
    found = texts(heat_maps({"W0": 3.0 * np.ones((96, 96)), "B": B, "A": A}))
    assert [text.get_text() for text in found] == [
        "W0\n96 × 96\n±3",
        "B\n96 × 4\n±1",
        f"A\n4 × 96\n±{abs(A).max():.2g}",
    ]
    boxes = [text.get_window_extent() for text in found]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("matrices", [{}, {"b": np.ones(3)}, {"W": np.ones((0, 3))}])
def test_what_is_no_matrix_is_refused(matrices: Any) -> None:
    with pytest.raises(ValueError, match="at least one matrix"):
        heat_maps(matrices)
