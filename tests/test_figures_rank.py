"""The laws of `figures.rank`: what was measured is what is drawn, and a slider only where somebody can move it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from lora_np.exercises.rank import Bill, Outcome
from lora_np.figures import rank as figures

BASE, FLOOR = 3.9, 0.05
COSTS = {"q": 1536, "qkvo": 6144}


def outcomes() -> list[Outcome]:
    """Losses that fall with the rank and with the number of matrices; not in order of rank."""
    return [
        Outcome(name, rank, 0, Bill(cost * rank, 8 * cost * rank, 4 * cost * rank + 1000), 3.5 - cost / 1e4 - rank / 20)
        for name, cost in COSTS.items()
        for rank in (4, 1, 16)
    ]


def lines(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_the_lines_are_the_outcomes_by_rank_and_by_parameters() -> None:
    left, right = figures.rank_and_placement(outcomes(), BASE, FLOOR).axes
    expected = sorted((o.rank, o.bill.trained, o.held_out) for o in outcomes() if o.placement == "q")
    assert lines(left)["q"] == [(rank, loss) for rank, _, loss in expected]
    assert list(zip(*right.get_lines()[0].get_data(), strict=True)) == [(size, loss) for _, size, loss in expected]
    assert lines(left)["base"][0][1] == BASE
    assert lines(left)["floor of the task"][0][1] == FLOOR
    assert (left.get_xlabel(), left.get_ylabel()) == ("rank r", "held-out loss (bits per byte)")
    assert right.get_xlabel() == "trained parameters (numbers, log scale)"


def test_every_series_has_one_name_in_the_legend() -> None:
    [legend] = figures.rank_and_placement(outcomes(), BASE, FLOOR).legends
    assert [text.get_text() for text in legend.get_texts()] == ["q", "qkvo", "base", "floor of the task"]
    [legend] = figures.frames(outcomes(), BASE).legends
    assert [text.get_text() for text in legend.get_texts()] == ["other ranks", "base", "q", "qkvo"]


def test_equal_budgets_show_every_seed_and_the_interval() -> None:
    losses = {"one": [1.0, 2.0, 3.0], "two": [2.0, 2.0, 5.0]}
    [axes] = figures.equal_budget(losses, {"one": 0.5, "two": 1.5}).axes
    drawn = [list(line.get_xdata()) for line in axes.get_lines()]
    assert all(values in drawn for values in losses.values())
    assert [2.0] in drawn
    assert [3.0] in drawn  # the means
    [bar] = axes.containers[1].lines[2]
    assert bar.get_segments()[0][:, 0].tolist() == [1.5, 4.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]


def test_step_times_stand_above_their_counts() -> None:
    [axes] = figures.step_time({"q": [3.0, 3.5], "full": [6.0]}, {"q": [50.0, 60.0], "full": [90.0]}).axes
    assert lines(axes) == {"q": [(3.0, 50.0), (3.5, 60.0)], "full": [(6.0, 90.0)]}
    assert axes.get_ylim()[0] == 0.0
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "counted multiply-adds per token (millions)",
        "measured time of a step (ms)",
    )


def test_a_frame_marks_the_outcomes_of_its_rank() -> None:
    [axes] = figures.frame(outcomes(), 4, BASE).axes
    chosen = {o.placement: [(o.bill.trained, o.held_out)] for o in outcomes() if o.rank == 4}
    assert {name: lines(axes)[name] for name in COSTS} == chosen
    assert len(lines(axes)["other ranks"]) == len(outcomes())
    assert axes.get_title() == "rank 4: adapter files\n25 to 97 KiB"


def test_there_is_a_frame_for_every_rank() -> None:
    titles = [axes.get_title().split(":")[0] for axes in figures.frames(outcomes(), BASE).axes]
    assert titles == ["rank 1", "rank 4", "rank 16"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.rank_and_placement([], BASE),
        lambda: figures.equal_budget({}, {}),
        lambda: figures.equal_budget({"one": [1.0]}, {"two": 1.0}),
        lambda: figures.step_time({"q": [1.0]}, {"q": [1.0, 2.0]}),
        lambda: figures.frame(outcomes(), 2, BASE),
        lambda: figures.frames([], BASE),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match=r"at least one|needs|no outcome has rank 2|as many"):
        draw()


# --------------------------------------------------------------------------------------------------------- the slider


def test_without_a_notebook_the_picture_is_still() -> None:
    assert figures.explore(outcomes(), BASE).format == "png"


def test_without_ipywidgets_the_picture_is_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert figures.explore(outcomes(), BASE, live=True).format == "png"


@pytest.mark.parametrize("answers", [True, False])
def test_a_kernel_is_live_when_its_user_can_be_asked(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nbclient`, and so a stored notebook, executes with allow_stdin false; a notebook in a browser with true."""
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=answers))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert figures._somebody_is_there() == answers


class Slider(SimpleNamespace):
    def observe(self, draw: Any, names: str) -> None:
        self.moved = draw


def test_moving_the_slider_draws_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for ipywidgets, so that it is tested wherever ipywidgets is not installed."""
    stand_in = SimpleNamespace(SelectionSlider=Slider, HTML=SimpleNamespace, Layout=SimpleNamespace, VBox=list)
    monkeypatch.setitem(sys.modules, "ipywidgets", stand_in)
    slider, picture = figures.explore(outcomes(), BASE, live=True)
    assert list(slider.options) == [1, 4, 16]
    first = picture.value
    assert first.startswith("<svg")
    slider.value = 16
    slider.moved()
    assert picture.value != first


def test_a_real_slider_is_one() -> None:
    widgets = pytest.importorskip("ipywidgets")
    panel = figures.explore(outcomes(), BASE, live=True)
    slider, picture = panel.children
    assert isinstance(slider, widgets.SelectionSlider)
    before = picture.value
    slider.value = 16
    assert picture.value != before
