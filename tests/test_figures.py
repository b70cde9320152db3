import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from lora_np import figures

CURVES = {"rank 1": [(0, 3.5), (10, 2.5), (20, 2.0)], "rank 4": [(0, 3.5), (10, 1.5), (20, 1.0)]}
GAPS = {"blocks.0.attention.query": (2e-6, 3e-4, 0.5), "blocks.0.attention.value": (1e-6, 2e-4, 0.7)}
PICTURES: dict[str, Any] = {
    "learning_curves": lambda: figures.learning_curves(CURVES, floor=0.05),
    "loss_against_rank": lambda: figures.loss_against_rank((1, 4), (2.0, 1.0), (96, 384), 3.5, 0.05, (0.2, 0.1)),
    "merge_error": lambda: figures.merge_error(GAPS),
}
each_picture = pytest.mark.parametrize("name", PICTURES)


def drawn(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """The points of the labelled lines of some axes; matplotlib's own labels start with an underscore."""
    return {str(line.get_label()): list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines}


def texts(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_learning_curves_hold_the_points_given() -> None:
    (axes,) = PICTURES["learning_curves"]().axes
    assert {label: points for label, points in drawn(axes).items() if label in CURVES} == CURVES
    assert axes.get_ylim()[0] == 0.0


def test_the_floor_is_drawn_only_when_there_is_one() -> None:
    (axes,) = PICTURES["learning_curves"]().axes
    assert {y for _, y in drawn(axes)["floor of the task"]} == {0.05}
    assert "floor of the task" not in texts(figures.learning_curves(CURVES))


def test_loss_and_trained_parameters_stand_on_two_axes() -> None:
    loss, size = PICTURES["loss_against_rank"]().axes
    bars = loss.containers[0]
    assert list(zip(*map(list, bars.lines[0].get_data()), strict=True)) == [(1, 2.0), (4, 1.0)]
    (segments,) = (collection.get_segments() for collection in bars.lines[2])
    np.testing.assert_allclose([np.ptp(segment[:, 1]) for segment in segments], [0.4, 0.2])
    assert drawn(size)["trained parameters (right)"] == [(1, 96), (4, 384)]
    assert [tick.get_text() for tick in loss.get_xticklabels()] == ["1", "4"]
    assert "parameters" in size.get_ylabel()


def test_merge_errors_hold_gap_bound_and_effect_of_every_map() -> None:
    (axes,) = PICTURES["merge_error"]().axes
    columns = [[x for x, _ in points] for label, points in drawn(axes).items() if not label.startswith("_")]
    assert columns == [list(column) for column in zip(*GAPS.values(), strict=True)]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(GAPS)
    assert axes.get_xscale() == "log"


def test_a_gap_of_zero_has_no_mark() -> None:
    (axes,) = figures.merge_error({"query": (0.0, 1e-4)}).axes
    ((x, _),) = drawn(axes)["measured |adapted − merged|"]
    assert np.isnan(x)


@each_picture
def test_axes_are_labelled_and_series_are_named(name: str) -> None:
    figure = PICTURES[name]()
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert figure.axes[0].get_xlabel()
    assert len(texts(figure)) == len(set(texts(figure))) >= 3


def test_series_differ_by_more_than_colour() -> None:
    looks = [figures._look(i) for i in range(len(figures.COLOURS))]
    for kind in ("color", "marker", "linestyle"):
        assert len({str(look[kind]) for look in looks}) == len(looks)


@each_picture
def test_no_text_overlaps_another_or_leaves_the_picture(name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = PICTURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    visible = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_visible()]
    shown = [axis.label for axis in visible]
    for axis in visible:
        low, high = sorted(axis.get_view_interval())
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        shown += [text for place, text in ticks if low <= place <= high]
    shown += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in shown if text.get_text()}
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    for one, other in itertools.combinations(boxes, 2):
        common = boxes[one].intersection(boxes[one], boxes[other])
        assert common is None or min(common.width, common.height) < 1.0, (one, other)


@each_picture
def test_svg_is_xml_that_needs_nothing_else(name: str) -> None:
    text = figures.svg(PICTURES[name]())
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & set(root.attrib)
    links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith(("href", "src"))]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"<script|<style|<image|@import|<metadata|url\((?!#)", text)


@each_picture
def test_every_reference_of_an_svg_meets_an_id(name: str) -> None:
    text = figures.svg(PICTURES[name]())
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', text)) <= set(ids)


def test_different_pictures_share_no_id() -> None:
    ids = [set(re.findall(r'\bid="([^"]*)"', figures.svg(make()))) for make in PICTURES.values()]
    assert all(ids)
    assert len(set.union(*ids)) == sum(map(len, ids))


@each_picture
def test_the_same_picture_is_the_same_text(name: str) -> None:
    assert figures.svg(PICTURES[name]()) == figures.svg(PICTURES[name]())


def test_a_saved_picture_is_a_png(tmp_path: Path) -> None:
    figures.save(PICTURES["merge_error"](), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_callers_own_style_is_put_back() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.svg(PICTURES["learning_curves"]())
    assert dict(matplotlib.rcParams) == before


def test_bad_data_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        figures.learning_curves({"rank 1": []})
    with pytest.raises(ValueError, match="one value each per rank, got 2, 1 and 2"):
        figures.loss_against_rank((1, 2), (1.0,), (3, 4))
    with pytest.raises(ValueError, match="at least one adapted map"):
        figures.merge_error({})


def test_importing_the_figures_does_not_import_matplotlib() -> None:
    code = "import sys, lora_np.figures, lora_np.paper.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
