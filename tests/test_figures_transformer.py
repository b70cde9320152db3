"""The pictures of tutorials 04 and 05 hold the numbers they were given, and say what they show."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lora_np.figures.adapting import KINDS, batch_layout
from lora_np.figures.transformer import attention_heads, block_with_adapters, checkpoint_sizes
from lora_np.tasks import Example, collate, encode
from lora_np.tokenizers import ByteTokenizer

TEXT = "a cat"
SIZES = {"gpt2": (250_000_000, 300_000), "gpt3": (350_000_000_000, 37_748_736)}
BATCH = collate(encode([Example("ab", "xyz"), Example("q", "hi")], ByteTokenizer(), 9), 0)


def probabilities(heads: int, seq: int = len(TEXT)) -> Any:
    p = np.tril(np.random.default_rng(0).random((heads, seq, seq)))
    return p / p.sum(axis=-1, keepdims=True)


PICTURES: dict[str, Any] = {
    "six heads": lambda: attention_heads(probabilities(6), TEXT),
    "two heads": lambda: attention_heads(probabilities(2, 31), 31 * "m", ["one back: 0.0", "first position: 1.2"]),
    "one head": lambda: attention_heads(probabilities(1), TEXT),
    "block": lambda: block_with_adapters("attention+mlp"),
    "sizes": lambda: checkpoint_sizes(SIZES),
    "batch": lambda: batch_layout(BATCH),
}


def test_a_panel_holds_the_probabilities_of_its_head_and_hides_the_future() -> None:
    p = probabilities(6)
    panels = PICTURES["six heads"]().axes[:6]
    for head, axes in enumerate(panels):
        shown = axes.images[0].get_array()
        np.testing.assert_array_equal(shown.mask, np.triu(np.ones((5, 5), bool), 1))
        np.testing.assert_array_equal(shown.filled(0.0), p[head])
        assert axes.get_title() == f"head {head}"
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert "".join(label.get_text() for label in labels) == "a␣cat"
    assert [axes.get_xlabel() != "" for axes in panels] == 3 * [False] + 3 * [True]
    assert [axes.get_ylabel() != "" for axes in panels] == 2 * [True, False, False]


def test_heads_and_characters_must_fit() -> None:
    for p, characters, titles in ((probabilities(2), "ab", None), (probabilities(2), TEXT, ["one"])):
        with pytest.raises(ValueError, match="belong together"):
            attention_heads(p, characters, titles)


@pytest.mark.parametrize(("targets", "pairs"), [("qv", 2), ("qkvo", 4), ("attention+mlp", 6), (("mlp.up",), 1)])
def test_every_target_has_its_two_trapezia(targets: Any, pairs: int) -> None:
    patches = block_with_adapters(targets).axes[0].patches
    assert sum(patch.get_hatch() is not None for patch in patches) == 2 * pairs


def test_a_target_outside_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="'tokens'"):
        block_with_adapters(("tokens",))


def test_checkpoint_sizes_hold_both_sizes_and_their_quotient() -> None:
    (axes,) = PICTURES["sizes"]().axes
    lines = {str(line.get_label()): list(line.get_xdata()) for line in axes.lines}
    assert lines["the whole model"] == [large for large, _ in SIZES.values()]
    assert lines["the adapter, A and B"] == [small for _, small in SIZES.values()]
    assert [text.get_text() for text in axes.texts] == ["833 ×", "9,272 ×"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SIZES)
    with pytest.raises(ValueError, match="at least one model"):
        checkpoint_sizes({})


def test_a_batch_shows_what_is_read_learned_and_padded() -> None:
    figure = PICTURES["batch"]()
    kinds = figure.axes[0].collections[0].get_array()
    np.testing.assert_array_equal(kinds, [[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 2, 0, 0]])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(KINDS)


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_overlaps_another_or_leaves_the_picture(name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = PICTURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    shown = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        shown += [*axes.texts, axes.title]
        if not axes.axison:
            continue
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            shown += [axis.label, *(label for place, label in ticks if low <= place <= high)]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in shown if text.get_text()]
    assert len(boxes) >= 4
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        common = first.intersection(first, second)
        assert common is None or min(common.width, common.height) < 1.0, (one, other)
