"""The base that ships: its text, what it must beat, how it is made, and what its README says of it."""

from __future__ import annotations

import gzip
import itertools
import math
import platform
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import few_shapes, hashes
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from lora_np.config import TransformerConfig
from lora_np.costs import SHAPES, parameter_count
from lora_np.engine.differentiation import value_and_grad
from lora_np.files import BASE, digest, load_model
from lora_np.model import Transformer, initialize, language_model_loss
from lora_np.optimization import TrainingConfig, learning_rate
from lora_np.parameters import count, parameters
from lora_np.pretrained import corpus, make, scores
from lora_np.pretrained.baselines import gzip_bits_per_byte, ngram_bits_per_byte
from lora_np.pretrained.corpus import documents, parts, stream, without_copies
from lora_np.pretrained.windows import PlacedBatch, PlacedLoss, Recipe, Windows, waves
from lora_np.tasks import Batch

README = BASE / "README.md"


def text(content: str) -> np.ndarray:
    return np.frombuffer(content.encode(), np.uint8)


# what ships


def test_the_model_that_ships_fits_four_megabytes_and_is_stored_in_float16() -> None:
    file = BASE / "model.safetensors"
    assert file.stat().st_size <= 4_000_000
    base = load_model()
    assert all(array.dtype == np.float32 for array in parameters(base).values())
    assert hashes({n: a.astype(np.float16).astype(np.float32) for n, a in parameters(base).items()}) == hashes(
        parameters(base)
    )
    assert 2 * count(base) < file.stat().st_size < 2 * count(base) + 10_000  # a header on top


def test_the_model_that_ships_has_the_sizes_that_the_closed_forms_and_the_script_say() -> None:
    assert load_model().config == make.SIZES
    assert count(load_model()) == parameter_count(SHAPES["base"])


# the text


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return documents()


@pytest.fixture(scope="module")
def split(found: dict[str, str]) -> tuple[list[str], list[str]]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lora_np.pretrained.corpus.documents", lambda: found)
        return parts()


def test_documents_are_topics_and_docstrings_each_once_and_worth_reading(found: dict[str, str]) -> None:
    kinds = {source.split()[0] for source in found.values()}
    assert kinds == {"topic", "file"}
    assert all(len(document) >= 40 and "\0" not in document for document in found)
    assert len(found) > 3000
    doc = json_docstring()
    assert found[doc] == "file json/__init__.py"


def json_docstring() -> str:
    import inspect
    import json

    return inspect.getdoc(json).strip()  # type: ignore[union-attr]


def test_no_source_stands_on_both_sides(found: dict[str, str], split: tuple[list[str], list[str]]) -> None:
    train, held_out = split
    sources = [{found[document] for document in part} for part in (train, held_out)]
    assert not sources[0] & sources[1]
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == len(found)
    assert 0.02 < len(sources[1]) / len(sources[0] | sources[1]) < 0.12  # one in sixteen, by a hash


def test_the_parts_are_the_same_each_time(split: tuple[list[str], list[str]], found: dict[str, str]) -> None:
    again = dict(reversed(found.items()))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lora_np.pretrained.corpus.documents", lambda: again)
        train, held_out = parts()
    assert sorted(train) == sorted(split[0])  # the order of the documents decides nothing
    assert sorted(held_out) == sorted(split[1])


def test_a_stream_has_a_nul_before_between_and_after_its_documents() -> None:
    assert stream(["a", "é"]).tobytes() == b"\0a\0\xc3\xa9\0"
    assert stream(["a", "é"]).dtype == np.uint8


def test_a_file_that_is_no_python_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doc = "A docstring that is long enough to be worth a place."
    (tmp_path / "good.py").write_text(f'"""{doc}"""\nraise SystemExit("executed")\n')
    (tmp_path / "broken.py").write_text(f'"""{doc} Broken."""\ndef (:\n')
    (tmp_path / "latin.py").write_bytes(f'"""{doc} Latin: '.encode() + b'\xe9"""\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "skipped.py").write_text(f'"""{doc} Skipped."""\n')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    (tmp_path / "unclosed.py").write_text("# A comment long enough to be worth a place, were this Python.\nf(\n")
    files = {document: source for document, source in documents().items() if source.startswith("file")}
    assert files == {doc: "file good.py"}
    assert corpus.comments() == []


def test_the_comment_lines_of_one_column_that_follow_each_other_are_one_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """\
# The first line of a comment, and
#   a second that is indented.

# After an empty line another comment begins.
def f():
    # This one stands further to the right than the last.
    return 1  # and this one, beside code, is not taken however long it is
# Here is the text of a comment that repeats itself.
x = "# This is a string and no comment, whatever it looks like."
# Here is the text of a comment that repeats itself.
# short
"""
    (tmp_path / "good.py").write_text(source)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert corpus.comments() == [
        "The first line of a comment, and\n  a second that is indented.",
        "After an empty line another comment begins.",
        "This one stands further to the right than the last.",
        "Here is the text of a comment that repeats itself.",
        "Here is the text of a comment that repeats itself.\nshort",
    ]


def test_comments_of_a_held_out_file_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"module{i}.py" for i in range(64)]
    for name in names:
        (tmp_path / name).write_text(f"# A comment of {name} that is long enough to be worth a place.\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    kept = {name for name in names if not corpus.is_held_out(f"file {name}")}
    assert 0 < len(kept) < len(names)
    assert {text.split()[3] for text in corpus.comments()} == kept


def test_docstrings_of_a_package_are_read_without_its_tests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    doc = "A docstring that is long enough to be worth a place."
    info = tmp_path / "toy-1.0.dist-info"
    for folder in (info, tmp_path / "toy" / "tests"):
        folder.mkdir(parents=True)
    (info / "METADATA").write_text("Name: toy\nVersion: 1.0\n")
    (info / "RECORD").write_text(
        "".join(f"{name},,\n" for name in ("toy/b.py", "toy/a.py", "toy/tests/c.py", "toy/d.txt"))
    )
    for name in ("b.py", "a.py", "tests/c.py", "d.txt"):
        (tmp_path / "toy" / name).write_text(f'"""{doc} {name}"""\nraise SystemExit("executed")\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert corpus.package_documents("toy") == [f"{doc} a.py", f"{doc} b.py"]
    with pytest.raises(PackageNotFoundError):
        corpus.package_documents("no-such-package-here")


def test_every_package_that_is_read_is_one_that_this_package_brings() -> None:
    wanted, known = ["lora_np"], set[str]()
    while wanted:
        requirements = [Requirement(line) for line in requires(wanted.pop()) or []]
        new = {r.name.lower() for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})} - known
        known |= new
        wanted += [name for name in new if _installed(name)]
    assert set(corpus.PACKAGES) <= known


def _installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


HELD = "A sentence that is held out must not be trained on, nor may a text that repeats it."


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        (HELD, False),
        ("Once more: " + HELD, False),
        (HELD[:50] + " but then it goes on with words of its own for a while.", False),
        ("This text is its own, and so is every run of forty characters of it.", True),
        (HELD[:40] + "x" * 400, True),  # one run of forty in four hundred
    ],
)
def test_a_text_stays_unless_it_repeats_a_held_out_one(text: str, stays: bool) -> None:
    assert without_copies([text], [HELD]) == ([text] if stays else [])


def test_each_text_is_trained_on_from_one_origin_and_copies_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    own = "A docstring of the standard library that is long enough."
    other = "A docstring that two packages carry, each in the same words."
    monkeypatch.setattr(corpus, "parts", lambda: ([own], [HELD]))
    monkeypatch.setattr(corpus, "comments", lambda: [own, HELD])
    monkeypatch.setattr(corpus, "PACKAGES", {"a": "MIT", "b": "MIT"})
    monkeypatch.setattr(corpus, "package_documents", lambda name: [other, HELD, own])
    assert corpus.training_texts() == {"standard library": [own], "its comments": [], "a": [other], "b": []}


# what it must beat


def test_gzip_is_charged_for_every_bit_of_its_output() -> None:
    held_out = text("abc" * 100)
    assert gzip_bits_per_byte(held_out) == 8 * len(gzip.compress(b"abc" * 100, 9)) / 300
    assert gzip_bits_per_byte(held_out) < 8 < gzip_bits_per_byte(text("a"))


def test_witten_bell_is_what_a_hand_computes() -> None:
    train = text("aab")
    # one byte:      N = 3, T = 2:  P1(a) = (2 + 2/256)/5,  P1(b) = (1 + 2/256)/5,  P1(c) = (0 + 2/256)/5
    # after an a:    a once, b once; N = 2, T = 2:  P2(b|a) = (1 + 2 P1(b))/4,  P2(c|a) = (0 + 2 P1(c))/4
    # after a b or c: nothing was seen, so P2 = P1
    P1 = {"a": (2 + 2 / 256) / 5, "b": (1 + 2 / 256) / 5, "c": (0 + 2 / 256) / 5}
    for letter, probability in P1.items():
        assert ngram_bits_per_byte(train, text(letter), order=1) == pytest.approx(-math.log2(probability), rel=1e-12)
    P2 = {"ab": (1 + 2 * P1["b"]) / 4, "ac": 2 * P1["c"] / 4, "ba": P1["a"], "cc": P1["c"]}
    for letters, probability in P2.items():
        assert ngram_bits_per_byte(train, text(letters), order=2) == pytest.approx(-math.log2(probability), rel=1e-12)
    both = -math.log2(P2["ab"]) - math.log2(P2["ba"])
    assert ngram_bits_per_byte(train, text("aba"), order=2) == pytest.approx(both / 2, rel=1e-12)


@few_shapes
@given(st.text("abc", min_size=6, max_size=40), st.text("abd", min_size=4, max_size=4))
def test_the_probabilities_of_all_next_bytes_sum_to_one(train: str, history: str) -> None:
    bits = [ngram_bits_per_byte(text(train), np.append(text(history), np.uint8(c))) for c in range(256)]
    assert sum(2.0**-b for b in bits) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_a_longer_history_is_used_where_it_helps(order: int) -> None:
    train = text("abcdefgh" * 200)
    bits = ngram_bits_per_byte(train, text("abcdefgh" * 10), order)
    assert bits == pytest.approx(3.0, abs=0.01) if order == 1 else bits < 0.02


def test_bytes_above_127_are_bytes_like_others() -> None:
    train = np.array([255, 0] * 100, np.uint8)
    assert ngram_bits_per_byte(train, train[:20], order=5) < 0.1
    assert ngram_bits_per_byte(train, np.array([7] * 20, np.uint8), order=5) > 8


# how it is made


LAST = [after - 1 for after, _, _ in make.RECIPE.stages[1:]] + [make.RECIPE.steps - 1]


@pytest.mark.parametrize(("stage", "last"), [*zip(make.RECIPE.stages, LAST, strict=True)])
def test_a_window_is_decided_by_its_step_and_predicts_its_next_bytes(stage: tuple[int, int, int], last: int) -> None:
    first, batch, size = stage
    content, context = np.arange(5000).astype(np.uint8), make.SIZES.context
    windows, again = (Windows(text, make.RECIPE, context, seed=3) for text in (content, content.copy()))
    for step in (first, first + 1, last):
        one = windows[step]
        assert hashes(arrays_of(one)) == hashes(arrays_of(again[step]))
        assert one.tokens.shape == one.targets.shape == one.weights.shape == (batch, size)
        assert (one.targets == (one.tokens + 1) % 256).all()
        assert one.weights.sum() == pytest.approx(1.0, rel=1e-5)
        assert one.begin.shape == (batch, 1)
        assert one.begin.min() >= 0
        assert one.begin.max() + size <= context
    assert (windows[first].tokens != windows[first + 1].tokens).any()


def arrays_of(batch: Batch) -> dict[str, np.ndarray]:
    return {name: array for name, array in vars(batch).items() if array is not None}


def test_short_windows_stand_everywhere_in_the_position_table() -> None:
    windows = Windows(np.arange(5000).astype(np.uint8), make.RECIPE, make.SIZES.context, seed=0)
    size = windows[0].tokens.shape[1]
    begins = np.concatenate([windows[step].begin[:, 0] for step in range(400)])
    covered = np.zeros(make.SIZES.context, int)
    for begin in begins:
        covered[begin : begin + size] += 1
    assert size < make.SIZES.context
    assert covered.min() > 0
    assert {0, make.SIZES.context - size} <= set(begins.tolist())  # both ends too


def test_the_stages_end_with_the_whole_context_and_within_the_training() -> None:
    begins, _, sizes = zip(*make.RECIPE.stages, strict=True)
    assert begins[0] == 0
    assert list(begins) == sorted(set(begins))
    assert begins[-1] < make.RECIPE.steps
    assert sizes[-1] == make.SIZES.context


def test_the_rate_rises_is_held_and_falls_to_zero_without_a_leap() -> None:
    rates = [
        learning_rate(step, training)
        for before, training in zip((0, *(t.steps for t in make.RECIPE.trainings)), make.RECIPE.trainings, strict=False)
        for step in range(before, training.steps)
    ]
    assert len(rates) == make.RECIPE.steps
    peak = make.RISING.learning_rate
    assert max(rates) == peak
    assert rates[make.RISING.warmup : make.SHORT + 1] == [peak] * (make.SHORT + 1 - make.RISING.warmup)
    assert rates[-1] < 1e-3 * peak
    largest = peak / make.RISING.warmup  # one step of the warm-up is the largest there is
    assert max(abs(np.diff(rates))) <= largest * (1 + 1e-12)


@pytest.mark.parametrize("apart", [1, 7, 100])
def test_the_products_of_two_waves_depend_on_how_far_they_are_apart(apart: int) -> None:
    table = waves(640, 192, 0.1).astype(np.float64)
    products = (table[apart:] * table[: len(table) - apart]).sum(axis=1)
    near = (table * table).sum(axis=1)
    # each entry is rounded once, by eps/2 of itself: a sum by eps Σ|ab| ≤ eps near, two by twice that and a little
    bound = 2.01 * np.finfo(np.float32).eps * near.max()
    assert np.ptp(near) <= bound
    assert np.ptp(products) <= bound
    assert products.max() < near.min() - 100 * bound
    assert near.mean() == pytest.approx(192 * 0.1**2, rel=1e-6)


TINY = TransformerConfig(vocab=256, context=12, d_model=8, layers=1, heads=2)


def placed(begin: list[int]) -> PlacedBatch:
    rng = np.random.default_rng(7)
    tokens, targets = rng.integers(0, 256, (2, len(begin), 5))
    weights = np.full((len(begin), 5), 1.0 / (5 * len(begin)))
    return PlacedBatch(tokens, targets, weights, begin=np.array(begin)[:, None])


def tiny() -> Transformer:
    return initialize(TINY, np.random.default_rng(1), np.float64)


def gradient_of(model: Transformer, batch: Batch) -> tuple[float, dict[str, Any]]:
    value, gradient = value_and_grad(PlacedLoss(model))(parameters(model), batch, np.random.default_rng(0))
    return float(value), gradient


def test_a_window_at_the_first_position_costs_what_the_model_says() -> None:
    model, batch = tiny(), placed([0, 0, 0])
    assert gradient_of(model, batch)[0] == pytest.approx(float(language_model_loss(model, batch)), rel=1e-14)


def test_a_window_at_another_place_costs_what_a_model_with_a_moved_table_says() -> None:
    model, batch = tiny(), placed([4])
    moved = replace(model, positions=replace(model.positions, W=np.roll(model.positions.W, -4, axis=0)))
    there = float(language_model_loss(moved, batch))
    assert abs(there - float(language_model_loss(model, batch))) > 1e-4
    assert gradient_of(model, batch)[0] == pytest.approx(there, rel=1e-14)


def test_positions_are_trained_where_a_window_stands_and_nowhere_else() -> None:
    _, gradient = gradient_of(tiny(), placed([1, 6]))
    touched = abs(gradient["positions.W"]).max(axis=1) > 0
    assert touched.nonzero()[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


@few_shapes
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(1, 7))
def test_the_shards_of_a_batch_keep_the_places_of_their_rows(begin: list[int], n: int) -> None:
    batch, model = placed(begin), tiny()
    shards = batch.shards(n)
    assert np.concatenate([shard.begin for shard in shards if isinstance(shard, PlacedBatch)]).tolist() == [
        [place] for place in begin
    ]
    whole, parts_of_it = gradient_of(model, batch)[0], sum(gradient_of(model, shard)[0] for shard in shards)
    assert parts_of_it == pytest.approx(whole, rel=1e-13)


def test_bits_per_byte_charges_every_byte_after_the_first_once() -> None:
    base = load_model()
    content = text("The os module. " * 90)  # more than two windows of the context
    context = base.config.context
    logits = [
        base(content[begin : begin + context].astype(np.int64)[None])[0].astype(np.float64)
        for begin in range(0, len(content) - 1, context)
    ]
    every = np.concatenate(logits)[: len(content) - 1]
    chosen = every[np.arange(len(every)), content[1:]]
    bits = (np.log(np.exp(every - every.max(1, keepdims=True)).sum(1)) + every.max(1) - chosen).mean() / math.log(2.0)
    assert make.bits_per_byte(base, content) == pytest.approx(bits, rel=1e-4)


def test_every_band_is_charged_for_the_bytes_that_stand_in_it() -> None:
    model = tiny()
    content = text("tick tock tick tock tock")
    windows = [content[begin : begin + 13].astype(np.int64) for begin in range(0, len(content) - 12, 4)]
    assert len(windows) == 3
    costs = []
    for window in windows:
        p = np.exp(model(window[None, :-1])[0])
        costs.append(-np.log2((p / p.sum(axis=1, keepdims=True))[np.arange(12), window[1:]]))
    bands = np.array(costs).reshape(3, 3, 4).mean(axis=(0, 2))
    assert scores.bits_by_position(model, content, band=4) == pytest.approx(bands.tolist(), rel=1e-12)
    assert np.ptp(bands) > 1e-3


def test_untrained_positions_are_found_out_by_their_band() -> None:
    base = load_model()
    table = np.array(base.positions.W)
    table[320:384] = np.random.default_rng(0).normal(0.0, table.std(), (64, table.shape[1]))
    spoiled = replace(base, positions=replace(base.positions, W=table))
    content = stream(["Return the name of the file, or None when it has no name. " * 24])[:1200]
    whole, broken = (scores.bits_by_position(model, content) for model in (base, spoiled))
    assert broken[:5] == whole[:5]
    assert broken[5] > 1.05 * whole[5]


def test_a_continuation_is_what_the_model_finds_most_likely() -> None:
    model = tiny()
    written = scores.continuation(model, "tick", most=3)
    ids = [0, *b"tick"]
    for _ in range(3):
        best = int(model(np.array([ids]))[0, -1].argmax())
        if best == 0:
            break
        ids.append(best)
    assert written == bytes(ids[5:]).decode(errors="replace")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that makes a tiny model of a tiny text in a second or two."""
    texts = {"standard library": ["tick tock " * 20], "its comments": ["tock tick " * 20], "autograd": []}
    monkeypatch.setattr(make, "SIZES", TINY)
    held = TrainingConfig(steps=700, learning_rate=1e-2, warmup=5, decay="constant")
    falling = replace(held, steps=1100, warmup=700, decay="linear")
    monkeypatch.setattr(make, "RECIPE", Recipe((held, falling), ((0, 2, 6), (700, 1, 12))))
    monkeypatch.setattr(make, "parts", lambda: ([], ["tick tock tick " * 5]))
    monkeypatch.setattr(make, "training_texts", lambda: texts)
    monkeypatch.setattr(make, "PROMPTS", ("tick ",))


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


def test_making_it_twice_makes_the_same_bytes_even_when_it_is_stopped(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.make(tmp_path / "a")
    fit = make.fit

    def stopped(*arguments: Any) -> Iterator[Any]:
        for record in fit(*arguments):
            if record.step == 800:
                raise KeyboardInterrupt
            yield record

    with monkeypatch.context() as patched:
        patched.setattr(make, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            make.make(tmp_path / "b")
    make.make(tmp_path / "b")
    assert written(tmp_path / "a") == written(tmp_path / "b")
    readmes = [(tmp_path / x / "README.md").read_text() for x in "ab"]
    logs = [[row[:2] for row in log_rows(readme)] for readme in readmes]
    assert logs[0] == logs[1]
    assert [step for step, _ in logs[0]] == [500, 1000]


def test_a_checkpoint_of_another_text_is_refused(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    make.make(tmp_path)
    before = written(tmp_path)
    monkeypatch.setattr(make, "training_texts", lambda: {"standard library": ["another text " * 20]})
    with pytest.raises(ValueError, match="another run: text"):
        make.make(tmp_path)
    assert written(tmp_path) == before


def test_the_script_writes_a_model_that_learned_and_a_readme_with_its_numbers(tmp_path: Path, small: None) -> None:
    make.make(tmp_path)
    made = load_model(tmp_path / "model")
    readme = (tmp_path / "README.md").read_text()
    held_out = stream(make.parts()[1])
    bits = make.bits_per_byte(made, held_out)
    assert bits < 1.5
    assert f"| this model | {bits:.3f} |" in readme
    once = stream(["tick tock " * 20, "tock tick " * 20])
    assert f"| byte 5-gram | {ngram_bits_per_byte(once, held_out):.3f} |" in readme
    assert f"| gzip -9 | {gzip_bits_per_byte(held_out):.3f} |" in readme
    assert f"| 0–11 | {scores.bits_by_position(made, held_out, 12)[0]:.3f} |" in readme
    assert f"`{digest(made)}`" in readme
    assert f"{count(made):,} parameters" in readme
    assert f"```text\n{make.PROMPTS[0]}{scores.continuation(made, make.PROMPTS[0])}\n```" in readme


def test_texts_of_the_standard_library_are_repeated_and_others_are_not(small: None) -> None:
    whole = make.training_text().tobytes()
    assert whole.count(b"\0" + b"tick tock " * 20 + b"\0") >= 1
    assert len(whole) == 1 + (make.TIMES + 1) * 201


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["--evaluate"], ["this", "byte", "gzip"]),
        (["--bands"], [f"{i}–{i + 63}" for i in range(0, 640, 64)]),
        (["--out", "here"], []),
    ],
)
def test_as_a_command_it_makes_a_model_or_only_scores_the_one_that_ships(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], first: list[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(make, "make", asked.append)
    monkeypatch.setattr(make, "parts", lambda: ([], ["The os module " * 50]))
    monkeypatch.setattr(make, "training_texts", lambda: {"standard library": ["The os module " * 20]})
    monkeypatch.setattr(sys, "argv", ["make", *options])
    make.main()
    lines = capsys.readouterr().out.splitlines()
    assert asked == ([Path("here")] if options[0] == "--out" else [])
    assert [line.split()[0] for line in lines] == first


def test_asked_for_help_the_module_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["make", "--help"])
    monkeypatch.delitem(sys.modules, "lora_np.pretrained.make")  # runpy warns of a module that it finds imported
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("lora_np.pretrained.make", run_name="__main__")
    assert ended.value.code == 0
    assert "--evaluate" in capsys.readouterr().out


# what its README says


def readme() -> str:
    if not README.exists():
        pytest.skip("no pretrained/README.md here")
    return README.read_text(encoding="utf-8")


def stated() -> dict[str, float]:
    names = ("this model", "byte 5-gram", "gzip -9")
    return {
        name: float(bits)
        for name, bits in re.findall(r"^\| ([^|]+) \| (\d\.\d{3}) \|$", readme(), re.M)
        if name in names
    }


def stated_bands() -> list[float]:
    return [float(bits) for bits in re.findall(r"^\| \d+–\d+ \| (\d\.\d{3}) \|$", readme(), re.M)]


def log_rows(content: str) -> list[tuple[int, float, float]]:
    """Step, training loss and minutes of each line of a log."""
    rows = re.findall(r"^\| ([\d,]+) \| (\d\.\d{3}) \| (?:\d\.\d{3})? *\| ([\d.]+) \|$", content, re.M)
    return [(int(step.replace(",", "")), float(loss), float(minutes)) for step, loss, minutes in rows]


def test_the_readme_is_of_the_model_that_ships_and_of_the_script() -> None:
    said = " ".join(readme().split())
    base = load_model()
    assert f"`{digest(base)}`" in said
    assert f"{count(base):,} parameters" in said
    assert [*settings_of(readme())] == [make.SIZES, *make.RECIPE.trainings]
    assert all(f"from step {begin:,}: {n} windows of {size} bytes" in said for begin, n, size in make.RECIPE.stages)
    assert all(f"| {name} | " in said and f" | {licence} | " in said for name, licence in corpus.PACKAGES.items())


def settings_of(text: str) -> Iterator[Any]:
    """The sizes and the trainings that a README states. A setting that came later is not in an older one: it is at the
    value that leaves things as they were before it."""
    known = {kind.__name__: kind for kind in (TransformerConfig, TrainingConfig)}
    for line in re.findall(r"^(?:- sizes:|  -) (\w+\(.*\))$", text, re.M):
        yield eval(line, {"__builtins__": {}}, known)


def test_a_readme_that_states_another_setting_is_found() -> None:
    for stated_, other in (("beta2=0.99", "beta2=0.999"), ("clip=1.0", "clip=2.0"), ("layers=4", "layers=5")):
        assert stated_ in readme()
        assert [*settings_of(readme().replace(stated_, other))] != [make.SIZES, *make.RECIPE.trainings]


def test_the_model_that_ships_beats_both_baselines() -> None:
    bits = stated()
    assert set(bits) == {"this model", "byte 5-gram", "gzip -9"}
    assert bits["this model"] < min(bits["byte 5-gram"], bits["gzip -9"])


def test_no_band_of_the_context_is_worse_than_one_that_has_less_before_it() -> None:
    bands = stated_bands()
    assert len(bands) == make.SIZES.context // make.BAND
    assert all(later <= 1.005 * earlier for earlier, later in itertools.pairwise(bands))
    assert max(bands[3:]) <= 1.05 * min(bands)


def test_the_log_covers_the_whole_training() -> None:
    rows = log_rows(readme())
    steps, losses, minutes = zip(*rows, strict=True)
    assert list(steps) == list(range(make.LOGGED, make.RECIPE.steps + 1, make.LOGGED))
    assert list(minutes) == sorted(minutes)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_numbers_of_the_readme_are_found_again_with_the_same_text(split: tuple[list[str], list[str]]) -> None:
    table = re.findall(r"^\| ([\w -]+) \| ([\d.]+) \| [^|]+ \| [\d,]+ \|$", readme(), re.M)
    here = {name: version(name) for name in corpus.PACKAGES}
    here |= dict.fromkeys(("standard library", "its comments"), platform.python_version())
    if dict(table) != here:
        pytest.skip("the text differs a little: the README is of other versions")
    held_out = stream(split[1])
    found = make.scores(load_model(), held_out)
    assert {name: round(bits, 3) for name, bits in found.items()} == pytest.approx(stated(), abs=1.01e-3)
