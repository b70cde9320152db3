"""`verify … --html FILE`: one page that needs nothing else, with the verdict, a table, and a picture of each fault."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from foreign_world import Q, World, said_by, world
from formats_files import write_file

from lora_np.files import load_model, save_adapter, save_model
from lora_np.lora import LoraLinear
from lora_np.merges import evidence
from lora_np.merges.evidence import gathered
from lora_np.merges.page import Fault, merge_page
from lora_np.methods import LoraConfig
from lora_np.model import initialize
from lora_np.parameters import parameters, with_parameters
from lora_np.wrappers import merge

NORM = "model.norm.weight"
VOID = {"meta", "wbr", "br", "img", "path", "use", "image", "rect"}


class Page(HTMLParser):
    """Counts tags, and fails where one is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def page_of(w: World, merged: dict[str, np.ndarray], name: str = "merged") -> tuple[int, str]:
    write_file(w.root / name / "model.safetensors", merged)
    out = w.root / f"{name}.html"
    code, _ = said_by("verify", w.root / "adapter", w.root / name, "--base", w.root / "base", "--html", out)
    return code, out.read_text(encoding="utf-8")


def test_a_page_needs_nothing_but_itself_and_shows_each_fault(tmp_path: Path) -> None:
    w = world(tmp_path)
    wrong = {**w.plain(), f"{Q}.weight": w.plain({Q: 0.7 * w.change()})[f"{Q}.weight"]}
    wrong |= {NORM: np.where(np.arange(64) == 7, 2, 1).astype(np.float32)}
    code, text = page_of(w, wrong)
    assert code == 1
    assert "NOT EQUAL" in text
    page = Page(text)
    assert page.tags.count("h2") == 2  # the faults
    assert page.tags.count("figure") == 3 + 1  # a cloud, singular values and places; of what is untouched, places
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)
    assert not re.findall(r"(?:src|href|xlink:href)=\"(?!#|data:image/png;base64,)", text)
    assert "url(http" not in text
    for words in ("about 0.7 times", "untouched_changed"):
        assert words in text
    code, text = page_of(w, w.plain(), "right")
    assert (code, Page(text).tags.count("figure")) == (0, 0)
    assert "<b>EQUAL</b>" in text


def test_a_tensor_that_is_missing_is_said_without_a_picture(tmp_path: Path) -> None:
    w = world(tmp_path)
    code, text = page_of(w, {name: array for name, array in w.plain().items() if name != NORM})
    assert (code, Page(text).tags.count("figure")) == (1, 0)
    assert "missing: the merged files do not have it" in text


def test_pages_of_ours_show_the_arrays_that_do_not_hold(tmp_path: Path) -> None:
    base = initialize(load_model().config, np.random.default_rng(0))
    method = LoraConfig(rank=2, targets="attention.query")
    adapted = method.apply(base, np.random.default_rng(0))
    moved = {
        n: a + 0.01 * np.random.default_rng(1).standard_normal(a.shape) for n, a in method.trained(adapted).items()
    }
    adapted = with_parameters(adapted, {name: array.astype(np.float32) for name, array in moved.items()})
    save_model(tmp_path / "base", base)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapted, method, base)
    merged = merge(adapted)
    save_model(tmp_path / "right", merged)
    name = "blocks.0.attention.query.W"
    save_model(tmp_path / "wrong", with_parameters(merged, {name: parameters(base)[name]}))
    for folder, code, figures in (("right", 0, 0), ("wrong", 1, 3)):
        out = tmp_path / f"{folder}.html"
        arguments = ("verify", tmp_path / "adapter", tmp_path / folder, "--base", tmp_path / "base", "--html", out)
        assert said_by(*arguments)[0] == code
        assert Page(out.read_text(encoding="utf-8")).tags.count("figure") == figures
    assert "nothing was merged" in out.read_text(encoding="utf-8")


def test_the_pictures_show_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the update in the lower rows: the cloud has that slope, the grid is empty above, the rank stays 2."""
    monkeypatch.setattr(evidence, "ENTRIES", 700)
    rng = np.random.default_rng(0)
    W, A, B = rng.standard_normal((90, 70)), rng.standard_normal((2, 70)), rng.standard_normal((90, 2))
    change = B @ A
    found = W + np.where(np.arange(90)[:, None] < 45, change, 0.5 * change)

    def rows_of(rows: slice) -> tuple[np.ndarray, ...]:
        gap = abs(found[rows] - W[rows] - change[rows])
        return change[rows], found[rows] - W[rows], np.full(gap.shape, 1e-9), gap

    seen = gathered((90, 70), rows_of, np.float32)
    assert seen.grid.shape == (40, 40)
    assert (seen.grid[:20] <= 1.0).all()
    assert (seen.grid[21:] > 1.0).all()
    slopes = seen.measured / seen.expected
    assert set(np.round(slopes, 6)) == {0.5, 1.0}
    assert seen.spectra is not None
    for values in seen.spectra:
        assert (values[2:] < 1e-10 * values[0]).all()
        assert (values[:2] > 0.01 * values[0]).all()


def test_a_picture_of_the_whole_grid_is_that_of_all_entries() -> None:
    rng = np.random.default_rng(0)
    gap = rng.random((37, 53))
    seen = gathered((37, 53), lambda rows: (gap[rows], gap[rows], np.ones(gap[rows].shape), gap[rows]), np.float32)
    cells = np.zeros((37, 40))
    for column in range(53):
        cells[:, column * 40 // 53] = np.maximum(cells[:, column * 40 // 53], gap[:, column])
    assert (seen.grid == cells).all()


def test_what_stands_in_a_file_does_not_become_part_of_the_page() -> None:
    name = "<script>alert(1)</script>\x1b[2J"
    text = merge_page([name] * 3, False, name, [(name, *["-"] * 7)], name, [Fault(name, name, None)])
    assert "<script" not in text
    assert "\x1b" not in text
    Page(text)


def test_a_page_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    w = world(tmp_path)
    write_file(tmp_path / "merged" / "model.safetensors", w.plain())
    (tmp_path / "there.html").write_text("mine")
    for out, word in (
        (tmp_path / "there.html", "exists"),
        (tmp_path / "no" / "x.html", "no folder"),
        (tmp_path, "exists"),
    ):
        arguments = ("verify", tmp_path / "adapter", tmp_path / "merged", "--base", tmp_path / "base", "--html", out)
        assert said_by(*arguments)[0] == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert word in said
    assert (tmp_path / "there.html").read_text() == "mine"
    arguments = ("verify", tmp_path / "adapter", tmp_path / "nowhere", "--base", tmp_path / "base")
    assert said_by(*arguments, "--html", tmp_path / "new.html")[0] == 2
    assert not (tmp_path / "new.html").exists()


def test_a_wrapper_is_asked_for_its_own_rows() -> None:
    from lora_np.model import Linear

    W, A, B = np.ones((8, 6), np.float32), np.ones((2, 6), np.float32), np.ones((8, 2), np.float32)
    seen = evidence.of_ours(W, LoraLinear(Linear(W), A, B, 0.5), W)
    assert (seen.expected == 1.0).all()
    assert (seen.measured == 0.0).all()
