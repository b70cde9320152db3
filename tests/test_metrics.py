"""Metrics beside a second count: definitions, other people's, and the cases where nothing can be said."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from lora_np.tasks import Example
from lora_np.tasks.metrics import (
    accuracy,
    bleu,
    exact_match,
    label_accuracy,
    label_matthews,
    matthews,
    slot_accuracy,
    slots,
)
from lora_np.tasks.problems import Problem


def test_matthews_of_two_classes_is_the_formula_of_the_four_counts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        truth, found = rng.integers(0, 2, 20).tolist(), rng.integers(0, 2, 20).tolist()
        count = {pair: list(zip(truth, found, strict=True)).count(pair) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))}
        tn, fp, fn, tp = (count[pair] for pair in ((0, 0), (0, 1), (1, 0), (1, 1)))
        root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        if root:
            assert matthews(truth, found) == pytest.approx((tp * tn - fp * fn) / root)
        else:
            assert matthews(truth, found) is None


def test_matthews_of_several_classes_is_the_correlation_of_their_indicators() -> None:
    """Gorodkin's definition: the covariance of the one-hot matrices over the root of their variances."""
    rng = np.random.default_rng(1)
    truth, found = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    x, y = (np.eye(4)[labels] - np.eye(4)[labels].mean(axis=0) for labels in (truth, found))
    expected = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    assert matthews(truth.tolist(), found.tolist()) == pytest.approx(expected)


def test_matthews_cannot_be_said_of_one_class_and_is_one_and_minus_one_at_its_ends() -> None:
    assert matthews("aabb", "aaaa") is None
    assert matthews("aaaa", "aabb") is None
    assert matthews("aabb", "aabb") == 1.0
    assert matthews("aabb", "bbaa") == -1.0
    assert matthews("aabb", "abab") == 0.0


@pytest.mark.parametrize("metric", [accuracy, matthews])
def test_predictions_must_be_as_many_as_truths(metric: object) -> None:
    for pair in (("ab", "a"), ("", "")):
        with pytest.raises(ValueError, match="predictions must be as many as truths, and at least one"):
            metric(*pair)  # type: ignore[operator]


def test_labels_are_read_without_the_white_space_around_them() -> None:
    examples = [Example("x", label) for label in ("good", "bad", "good", "bad")]
    assert label_accuracy(examples, [" good", "bad\n", "bad", "ugly"]) == 0.5
    assert label_matthews(examples, ["good", "bad", "good", "bad"]) == 1.0


def test_exact_match_cares_for_words_and_not_for_white_space() -> None:
    assert exact_match([Example("", "SELECT a  FROM b")], ["SELECT a FROM b "]) == 1.0
    assert exact_match([Example("", "SELECT a FROM b")], ["SELECT A FROM b"]) == 0.0


def test_slots_are_the_values_of_pairs_and_both_ends_of_triples() -> None:
    assert slots("name : Old Mill | family friendly : no | food : Thai") == ("Old Mill", "Thai")
    triples = 'Ada_Lind : birthPlace : Turin | Ada_Lind : motto : "to be"'
    assert slots(triples) == ("Ada Lind", "Turin", "to be")
    assert slots("what is it?") == ()


def test_slot_accuracy_is_the_share_of_values_that_are_named() -> None:
    example = Example("name : Old Mill | food : Thai | area : park", "")
    assert slot_accuracy([example], ["The OLD MILL is in the park."]) == pytest.approx(2 / 3)
    assert slot_accuracy([Example("what is it?", "")], ["that"]) is None


def test_bleu_takes_all_references_of_a_prompt_and_is_that_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    one, two = "the cat sat on the mat today", "a small cat sat on a mat"
    problems = [Problem("", one, (one, two), 1.0), Problem("", two, (two,), 0.0)]
    assert bleu(problems, [two, two]) == pytest.approx(100.0)
    assert bleu([Example("", one), Example("", two)], [two, two]) < 99.0
    texts = ["the cat sat on the mat", "a small dog sat on a mat"]
    expected = sacrebleu.corpus_bleu(texts, [[one, two]]).score
    assert bleu([Example("", one), Example("", two)], texts) == pytest.approx(expected)


def test_without_sacrebleu_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r'BLEU needs the sacrebleu package: pip install "lora_np\[tasks\]"'):
        bleu([Example("", "a")], ["a"])
