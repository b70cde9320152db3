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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import few_shapes, hashes
from hypothesis import given
from hypothesis import strategies as st

from lora_np import adaptation
from lora_np.config import TransformerConfig
from lora_np.costs import SHAPES, parameter_count
from lora_np.files import BASE, digest, load_model
from lora_np.optimization import TrainingConfig
from lora_np.parameters import count, parameters
from lora_np.pretrained import make
from lora_np.pretrained.baselines import gzip_bits_per_byte, ngram_bits_per_byte
from lora_np.pretrained.corpus import documents, parts, stream

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
    files = {document: source for document, source in documents().items() if source.startswith("file")}
    assert files == {doc: "file good.py"}


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


@pytest.mark.parametrize("phase", make.PHASES)
def test_a_window_is_decided_by_its_step_and_predicts_its_next_bytes(phase: make.Phase) -> None:
    content = np.arange(5000).astype(np.uint8)
    windows, again = make.Windows(content, phase), make.Windows(content.copy(), phase)
    for begin, batch, size in phase.stages:
        for step in (begin, begin + 1):
            one, other = windows[step], again[step]
            assert hashes(vars(one)) == hashes(vars(other))
            assert one.tokens.shape == one.targets.shape == one.weights.shape == (batch, size)
            assert (one.targets == (one.tokens + 1) % 256).all()
            assert one.weights.sum() == pytest.approx(1.0, rel=1e-5)
        assert (windows[begin].tokens != windows[begin + 1].tokens).any()
    for before, after in itertools.pairwise(phase.stages):
        assert windows[after[0] - 1].tokens.shape == before[1:]


@pytest.mark.parametrize("phase", make.PHASES)
def test_the_stages_end_with_the_whole_context_and_within_the_training(phase: make.Phase) -> None:
    begins, _, sizes = zip(*phase.stages, strict=True)
    assert begins[0] == 0
    assert begins[-1] < phase.training.steps
    assert sizes[-1] == make.SIZES.context


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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that makes a tiny model of a tiny text in less than a second."""
    monkeypatch.setattr(make, "SIZES", TransformerConfig(vocab=256, context=12, d_model=8, layers=1, heads=2))
    short = make.Phase(TrainingConfig(steps=120, learning_rate=2e-2, warmup=5), ((0, 8, 6), (80, 4, 12)))
    long = make.Phase(TrainingConfig(steps=220, learning_rate=2e-2, warmup=5), ((0, 4, 12),))
    monkeypatch.setattr(make, "PHASES", (short, long))
    monkeypatch.setattr(make, "LOGGED", 100)
    monkeypatch.setattr(make, "SCORED", 200)
    monkeypatch.setattr(make, "parts", lambda: (["tick tock " * 20, "tock tick " * 20], ["tick tock tick " * 5]))


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


def test_making_it_twice_makes_the_same_bytes_even_when_it_is_stopped(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.make(tmp_path / "a")
    fit = adaptation.fit

    def stopped(*arguments: Any) -> Iterator[Any]:
        for record in fit(*arguments):
            if record.step == 140:
                raise KeyboardInterrupt
            yield record

    with monkeypatch.context() as patched:
        patched.setattr(adaptation, "fit", stopped)
        with pytest.raises(adaptation.Interrupted):
            make.make(tmp_path / "b")
    make.make(tmp_path / "b")
    assert written(tmp_path / "a") == written(tmp_path / "b")
    row = r"^\| (\d) \| ([\d,]+) \| ([\d.]+ \| [\d.]*) *\|"
    logs = [re.findall(row, (tmp_path / x / "README.md").read_text(), re.M) for x in "ab"]
    assert logs[0] == logs[1]
    assert [(phase, step) for phase, step, _ in logs[0]] == [("1", "100"), ("2", "100"), ("2", "200")]
    assert [scores.endswith("| ") for _, _, scores in logs[0]] == [True, True, False]


def test_the_script_writes_a_model_that_learned_and_a_readme_with_its_numbers(tmp_path: Path, small: None) -> None:
    make.make(tmp_path)
    made = load_model(tmp_path / "model")
    readme = (tmp_path / "README.md").read_text()
    train, held_out = (stream(part) for part in make.parts())
    bits = make.bits_per_byte(made, held_out)
    assert bits < 1.5
    assert f"| this model | {bits:.3f} |" in readme
    assert f"| byte 5-gram | {ngram_bits_per_byte(train, held_out):.3f} |" in readme
    assert f"| gzip -9 | {gzip_bits_per_byte(held_out):.3f} |" in readme
    assert f"`{digest(made)}`" in readme
    assert f"{count(made):,} parameters" in readme
    assert [*settings_of(readme)] == [make.SIZES, *make.PHASES]


@pytest.mark.parametrize("evaluate", [False, True])
def test_as_a_command_it_makes_a_model_or_only_scores_the_one_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], evaluate: bool
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(make, "make", asked.append)
    monkeypatch.setattr(make, "parts", lambda: (["The os module " * 20], ["The os module " * 3]))
    monkeypatch.setattr(sys, "argv", ["make", *(["--evaluate"] if evaluate else ["--out", str(tmp_path)])])
    make.main()
    lines = capsys.readouterr().out.splitlines()
    assert asked == ([] if evaluate else [tmp_path])
    assert [line.split()[0] for line in lines] == (["this", "byte", "gzip"] if evaluate else [])


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
    return {name: float(bits) for name, bits in re.findall(r"^\| ([a-z][\w -]+?) \| (\d\.\d{3}) \|$", readme(), re.M)}


def test_the_readme_is_of_the_model_that_ships_and_of_the_script() -> None:
    said = " ".join(readme().split())
    base = load_model()
    assert f"`{digest(base)}`" in said
    assert f"{count(base):,} parameters" in said
    assert [*settings_of(readme())] == [make.SIZES, *make.PHASES]


def settings_of(text: str) -> Iterator[Any]:
    """The sizes and the phases that a README states. A setting that came later is not in an older one: it is at the
    value that leaves things as they were before it."""
    known = {kind.__name__: kind for kind in (TransformerConfig, make.Phase, TrainingConfig)}
    for line in re.findall(r"^(?:- sizes:|  \d\.) (\w+\(.*\))$", text, re.M):
        yield eval(line, {"__builtins__": {}}, known)


def test_a_readme_that_states_another_setting_is_found() -> None:
    for stated_, other in (("beta2=0.99", "beta2=0.999"), ("clip=1.0", "clip=2.0"), ("layers=4", "layers=5")):
        assert stated_ in readme()
        assert [*settings_of(readme().replace(stated_, other))] != [make.SIZES, *make.PHASES]


def test_the_model_that_ships_beats_both_baselines() -> None:
    bits = stated()
    assert set(bits) == {"this model", "byte 5-gram", "gzip -9"}
    assert bits["this model"] < min(bits["byte 5-gram"], bits["gzip -9"])


def test_the_log_covers_the_whole_training() -> None:
    rows = re.findall(r"^\| (\d) \| ([\d,]+) \| (\d\.\d{3}) \| (?:\d\.\d{3})? *\| ([\d.]+) \|$", readme(), re.M)
    steps = [(int(phase), int(step.replace(",", ""))) for phase, step, *_ in rows]
    every = [(i, n) for i, p in enumerate(make.PHASES, 1) for n in range(500, p.training.steps + 1, 500)]
    assert steps == every
    for phase in range(1, len(make.PHASES) + 1):
        minutes = [float(row[3]) for row in rows if row[0] == str(phase)]
        assert minutes == sorted(minutes)
    assert float(rows[-1][2]) < float(rows[0][2])


@pytest.mark.slow
def test_the_numbers_of_the_readme_are_found_again_under_the_same_python(split: tuple[list[str], list[str]]) -> None:
    of = re.search(r"standard library of Python (\d+\.\d+\.\d+)", " ".join(readme().split()))
    assert of
    if of[1] != platform.python_version():
        pytest.skip(f"the text differs a little: the README is of Python {of[1]}")
    train, held_out = (stream(part) for part in split)
    found = make.scores(load_model(), train, held_out)
    assert {name: round(bits, 3) for name, bits in found.items()} == pytest.approx(stated(), abs=1.01e-3)
