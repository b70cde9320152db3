"""A head of classes beside any method: what it reads, what is trained and stored, and what a run of it says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import hashes, model
from formats_files import write_file

from lora_np.adaptation import DataConfig, Interrupted, adapt_to_file, read_file
from lora_np.cases.models import METHOD_CASES
from lora_np.cli import code_of
from lora_np.config import READS, TransformerConfig, maps, parameter_count
from lora_np.data import read_classes
from lora_np.evaluation import Classes, logits_of
from lora_np.files import load_adapter, load_model, save_adapter, save_model
from lora_np.formats import names
from lora_np.formats.huggingface import config_json
from lora_np.methods import adapt, described, method_from
from lora_np.methods.classify import Classify, HeadOnly
from lora_np.methods.lora import LoraConfig
from lora_np.methods.tuning import BitFit, Full
from lora_np.methods.variants import PiSSA
from lora_np.model import initialize, language_model_loss, skeleton, with_head
from lora_np.modules import shares
from lora_np.optimization import TrainingConfig
from lora_np.parameters import count, parameters, with_parameters
from lora_np.tasks import Example
from lora_np.tasks.labelled import collate_labelled, label_all, labels_of
from lora_np.tokenizers import ByteTokenizer, shortened
from lora_np.training import model_loss
from lora_np.wrappers import merge

LABELS = ("bad", "fair", "good")
LORA = LoraConfig(rank=2, alpha=3.0)
WORDS = {"bad": "grim", "fair": "so so", "good": "bright"}


def base(**sizes: Any) -> Any:
    return model(0, np.float32, **{"vocab": 256, "context": 48, **sizes})


def texts(n: int = 60) -> list[Example]:
    rng = np.random.default_rng(0)
    return [Example(f"no {i} is {WORDS[label]}", label) for i in range(n) for label in [LABELS[int(rng.integers(3))]]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.tsv"
    path.write_text("".join(f"{e.prompt}\t{e.reference}\n" for e in texts()))
    return path


# what a head reads


@pytest.mark.parametrize("reads", READS)
def test_a_head_reads_the_first_the_last_or_the_mean_of_what_is_real(reads: str) -> None:
    h = np.random.default_rng(0).standard_normal((3, 5, 2))
    mask = np.arange(5) < np.array([[5], [3], [1]])
    state = (shares(reads, h, mask)[:, None] @ h)[:, 0]
    for row, n in enumerate((5, 3, 1)):
        expected = {"first": h[row, 0], "last": h[row, n - 1], "mean": h[row, :n].mean(axis=0)}[reads]
        np.testing.assert_allclose(state[row], expected, rtol=1e-15, atol=1e-15)
    np.testing.assert_array_equal(shares(reads, h, np.ones((3, 5), bool)), shares(reads, h, None))


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_no_logit_of_a_classifier(reads: str, causal: bool) -> None:
    node = with_head(base(causal=causal), LABELS, reads, np.random.default_rng(1))
    two = [Example("good", "good"), Example("it is so so, or worse", "fair")]
    short, long = label_all(two, LABELS, ByteTokenizer(), 48, truncate=False)
    alone, padded = (logits_of(node, collate_labelled(rows, 0))[0] for rows in ([short], [short, long]))
    np.testing.assert_allclose(alone, padded, rtol=1e-4, atol=1e-6)
    ignoring = replace(collate_labelled([short, long], 0), mask=None)
    gap = abs(alone - logits_of(node, ignoring)[0]).max()
    assert gap > 1e-5 or (reads == "first" and causal)  # the mask does that; nothing of a first token comes from behind


def test_the_loss_of_shards_adds_up_to_that_of_their_batch() -> None:
    node = with_head(base(), LABELS, "last", np.random.default_rng(1))
    batch = collate_labelled(label_all(texts(7), LABELS, ByteTokenizer(), 48, truncate=False), 0)
    whole = float(language_model_loss(node, batch))
    parts = [model_loss(node)({}, shard, np.random.default_rng(0)) for shard in batch.shards(3)]
    assert sum(map(float, parts)) == pytest.approx(whole, rel=1e-5)
    assert whole == pytest.approx(np.log(3), abs=0.2)


@pytest.mark.parametrize("reads", READS)
def test_the_closed_forms_count_the_head(reads: str) -> None:
    sizes = TransformerConfig(50, 10, 12, 2, 2, classes=3, reads=reads, labels=LABELS)
    empty = skeleton(sizes)
    assert parameter_count(sizes) == count(empty)
    assert {p for p in maps(sizes) if p.startswith("head")} == {
        path.removesuffix(".W") for path in parameters(empty) if path.startswith("head") and path.endswith(".W")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [({"reads": "middle"}, "reads must be one of "), ({"labels": ("a",)}, "labels must be 3 different texts"),
     ({"labels": ("a", "a", "b")}, "labels must be 3 different texts"), ({"classes": 0, "labels": ("a",)}, "be 0")],
)  # fmt: skip
def test_a_head_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{"vocab": 5, "context": 5, "d_model": 4, "layers": 1, "heads": 1, "classes": 3, **change})


# the method beside it


@pytest.mark.parametrize("name", [*METHOD_CASES, "head"])
def test_what_is_trained_is_what_the_method_trains_and_the_head_and_its_closed_form_says_so(name: str) -> None:
    method = Classify({**METHOD_CASES, "head": HeadOnly()}[name], LABELS, "mean")
    node = base()
    if "prefix-embedding" in name or "prefix-layer" in name:
        with pytest.raises(ValueError, match="a model that classifies reads none: choose prefix-kv"):
            adapt(node, method, None)
        return
    trained = method.trained(adapt(node, method, None))
    assert {path for path in trained if path.startswith("head.")} == {"head.output.W", "head.output.b"}
    assert sum(array.size for array in trained.values()) == method.numbers(node.config)
    assert method_from(json.loads(json.dumps(described(method)))) == method
    assert (method.depth, method.positions, method.rates) == (
        *(method.method.depth, method.method.positions, method.method.rates),
    )


def test_a_fresh_head_is_drawn_and_the_base_is_left_as_it_was() -> None:
    node = base()
    before = hashes(parameters(node))
    one, two = (adapt(node, Classify(LORA, LABELS), np.random.default_rng(seed)) for seed in (0, 1))
    assert one.config.labels == LABELS
    assert not np.array_equal(one.head.output.W, two.head.output.W)
    assert not one.head.output.b.any()
    assert hashes(parameters(node)) == before
    assert node.config.classes == 0


def test_a_base_that_classifies_keeps_its_head_and_refuses_labels_that_it_does_not_know() -> None:
    node = with_head(base(), LABELS, "last", np.random.default_rng(0))
    kept = adapt(node, Classify(LORA, LABELS, "last"), np.random.default_rng(1))
    assert np.array_equal(kept.head.output.W, node.head.output.W)
    with pytest.raises(ValueError, match=r"the head of this base knows good, .*; got the label 'goo'"):
        adapt(node, Classify(LORA, ("bad", "goo"), "last"), None)
    with pytest.raises(ValueError, match="the head of this base reads the last of bad, fair, good: keep to that"):
        adapt(node, Classify(LORA, LABELS, "mean"), None)
    unnamed = replace(node, config=replace(node.config, labels=()))
    with pytest.raises(ValueError, match=r"the head of this base knows .*2.*; got the label 'bad'"):
        adapt(unnamed, Classify(LORA, LABELS, "last"), None)


@pytest.mark.parametrize("labels", [(), ("a",), ("a", "a")])
def test_fewer_than_two_labels_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 different labels"):
        Classify(LORA, labels)


@pytest.mark.parametrize("method", [LORA, Full(), BitFit(), HeadOnly(), PiSSA(rank=2)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("reads", ["first", "last"])
def test_an_adapter_holds_its_head_and_its_labels_and_a_merged_model_keeps_both(
    method: Any, reads: str, tmp_path: Path
) -> None:
    node, rng = base(), np.random.default_rng(0)
    chosen = Classify(method, LABELS, reads)
    fresh = adapt(node, chosen, rng)
    moved = with_parameters(
        fresh, {n: a + 0.1 * rng.standard_normal(a.shape).astype("f4") for n, a in chosen.trained(fresh).items()}
    )
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", moved, chosen, node)
    again, found = load_adapter(tmp_path / "adapter", node)
    assert isinstance(found, Classify)
    assert (found.labels, found.reads, again.config.labels) == (LABELS, reads, LABELS)
    batch = collate_labelled(label_all(texts(4), LABELS, ByteTokenizer(), 48, truncate=False), 0)
    np.testing.assert_allclose(logits_of(again, batch), logits_of(moved, batch), rtol=1e-3, atol=1e-5)
    plain = again if method in (Full(), BitFit(), HeadOnly()) else merge(again)
    save_model(tmp_path / "merged", plain)
    merged = load_model(tmp_path / "merged")
    assert (merged.config.labels, merged.config.reads) == (LABELS, reads)
    np.testing.assert_allclose(logits_of(merged, batch), logits_of(moved, batch), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"labels": ["a"]}, {"labels": "ab"}, {"labels": [1, 2]}, {"reads": "nowhere"}, {"labels": None}],
    ids=str,
)
def test_a_description_of_classes_that_says_nothing_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    node = base()
    (tmp_path / "a").mkdir()
    save_adapter(
        tmp_path / "a", adapt(node, Classify(LORA, LABELS), np.random.default_rng(0)), Classify(LORA, LABELS), node
    )
    about = json.loads((tmp_path / "a" / "adapter.json").read_text())
    about["classes"] |= change
    (tmp_path / "a" / "adapter.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"adapter\.json"):
        load_adapter(tmp_path / "a", node)


# texts in tokens


def test_bytes_are_laid_out_between_ends_and_two_texts_with_a_tab() -> None:
    tokens, types = ByteTokenizer().classified("ab", "c")
    assert bytes(tokens.astype(np.uint8)) == b"\0ab\tc\0"
    assert not types.any()
    assert bytes(ByteTokenizer().classified("abcdef", "", 5)[0].astype(np.uint8)) == b"\0abc\0"


@pytest.mark.parametrize(
    ("one", "two", "most", "kept"),
    [(9, 2, 6, (4, 2)), (2, 9, 6, (2, 4)), (9, 9, 6, (3, 3)), (9, 9, 7, (4, 3)), (1, 2, 9, (1, 2)), (5, 0, 3, (3, 0))],
)
def test_the_longer_text_is_cut_until_both_are_as_long(one: int, two: int, most: int, kept: tuple[int, int]) -> None:
    found = shortened(np.arange(one), np.arange(two), most)
    assert sorted(map(len, found)) == sorted(kept)
    assert sum(map(len, found)) == min(most, one + two)


def test_a_vocabulary_lays_two_texts_out_and_tells_them_apart_by_type() -> None:
    library = pytest.importorskip("tokenizers")
    from lora_np.vocabularies import FileTokenizer

    words = {word: i for i, word in enumerate(["[CLS]", "[SEP]", "[UNK]", "a", "b", "c"])}
    made = library.Tokenizer(library.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    plain = FileTokenizer(made, 1, 6)
    assert plain.classified("a b")[0].tolist() == [3, 4, 1]  # nothing stands around: begun, and an end
    made.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokens, types = FileTokenizer(made, 1, 6).classified("a b a b", "c")
    assert tokens.tolist() == [0, 3, 4, 3, 4, 1, 5, 1]
    assert types.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert FileTokenizer(made, 1, 6).classified("a b a b", "c", 6)[0].tolist() == [0, 3, 4, 1, 5, 1]
    assert len(FileTokenizer(made, 1, 6).classified("a b a b", "c")[0]) == 8  # nothing stays behind


def test_an_encoder_of_theirs_learns_labels_and_its_merged_model_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A BERT folder as transformers writes it; the merged model must read words, as the adapter's base does."""
    library = pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    words = ["[CLS]", "[SEP]", "[UNK]", "no", "is", "grim", "bright", "so", *map(str, range(60))]
    made = library.Tokenizer(library.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.post_processor = library.processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    sizes = {"causal": False, "types": 2, "eps": 1e-12, "vocab": len(words)}
    node = base(architecture="bert", **sizes)
    about = {name: getattr(node.config, name) for name in ("vocab", "context", "d_model", "layers", "heads", "d_ff")}
    Path("theirs").mkdir()
    write_file(Path("theirs/model.safetensors"), names.theirs(parameters(node), "bert", node.config.layers))
    config = config_json({**about, "causal": False, "tied": True, "eps": 1e-12, "mlp": "gelu"}, "bert")
    Path("theirs/config.json").write_text(json.dumps(config))
    made.save("theirs/tokenizer.json")
    Path("theirs/tokenizer_config.json").write_text('{"sep_token": "[SEP]"}')
    Path("labels.tsv").write_text("".join(f"{e.prompt}\t{e.reference}\n" for e in texts()))
    line = "adapt labels.tsv --out a --base theirs --task classify --rank 2 --steps 5 --batch-size 8"
    assert code_of(line.split()) == 0
    assert code_of(["merge", "a", "--base", "theirs", "--out", "m"]) == 0
    assert code_of(["verify", "a", "m", "--base", "theirs"]) == 0
    assert "EQUAL" in capsys.readouterr().out
    said = []
    for place in ("--base theirs --adapter a", "--base m"):
        assert code_of([*f"generate {place}".split(), "--prompt", "no 7 is bright"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    Path("m/tokenizer.json").unlink()  # contrast: bytes are no words of it
    assert code_of(["generate", "--base", "m", "--prompt", "no 7 is bright"]) == 2


def test_labels_are_those_of_the_file_in_order_and_must_be_two_or_more_and_few() -> None:
    assert labels_of(texts()) == LABELS
    with pytest.raises(ValueError, match="needs 2 to 100 different labels, got only 'x'"):
        labels_of([Example("a", "x"), Example("b", "x")])
    with pytest.raises(ValueError, match=r"got 101 of them, as '0' and '1': is this the column\?"):
        labels_of([Example("a", str(i)) for i in range(101)])


# a run


def run(file: Path, **changes: Any) -> Any:
    data = DataConfig(**{"batch_size": 8, "held_out": 0.2, **changes.pop("data", {})})
    training = TrainingConfig(steps=80, learning_rate=3e-2, warmup=2)
    lines: list[str] = []
    method = changes.pop("method", LORA)
    result = adapt_to_file(
        file, file.parent / "out", changes.pop("base", None) or base(), method, training, data,
        task="classify", say=lines.append, **changes,
    )  # fmt: skip
    return result, lines


def test_a_run_learns_labels_and_says_accuracy_and_matthews_beside_the_commonest_label(file: Path) -> None:
    result, lines = run(file)
    assert result.judged.accuracy == result.after > result.before + 0.3
    assert result.judged.matthews > 0.7
    assert re.fullmatch(r"48 examples to train on, 12 held out; [\d,]+ trained parameters", lines[0])
    assert lines[1] == f"the commonest label always: accuracy {result.before:.4f}"
    assert lines[2] == f"adapted: {result.judged}"
    again, method = load_adapter(file.parent / "out", base())
    train, held_out = read_classes(file, DataConfig(batch_size=8, held_out=0.2), base())
    assert held_out.judged(again) == result.judged
    assert (train.labels, method.labels) == (LABELS, LABELS)  # type: ignore[attr-defined]


def test_a_file_of_its_own_to_validate_on_is_read_whole_and_its_labels_must_be_known(
    file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "dev.tsv"
    other.write_text("grim\tbad\nbright\tgood\n")
    data = {"validation": other}
    result, _ = run(file, data=data)
    assert (result.train, result.held_out) == (60, 2)
    other.write_text("grim\tbad\nbright\tsuperb\n")
    with pytest.raises(ValueError, match=r"dev\.tsv: example 2 has the label 'superb', which is none of bad, .*good"):
        read_classes(file, DataConfig(validation=other), base())
    train, held_out, _ = read_file(file, DataConfig(validation=other), base(), LORA)
    assert (len(train), len(held_out)) == (60, 2)  # so it is for text


def test_too_long_a_text_is_refused_by_its_number_and_cut_on_request(file: Path) -> None:
    with pytest.raises(ValueError, match=r"example \d+ is \d+ tokens long, and 8 are read at most"):
        read_classes(file, DataConfig(longest=8), base())
    train, _ = read_classes(file, DataConfig(longest=8, truncate=True), base())
    assert max(s.length for s in train.sequences) == 8


def test_a_run_of_labels_that_was_stopped_resumes_to_the_same_bits_and_not_with_another_head(file: Path) -> None:
    def stopping(records: Any, total: int, done: int) -> Any:
        for record in records:
            yield record
            if record.step == 30:
                raise KeyboardInterrupt

    run(file)
    whole = (file.parent / "out" / "adapter.safetensors").read_bytes()
    (file.parent / "out").rename(file.parent / "whole")
    with pytest.raises(Interrupted):
        run(file, watch=stopping)
    with pytest.raises(ValueError, match="is of another run: reads was 'last', now it is 'mean'"):
        run(file, resume=True, reads="mean")
    run(file, resume=True)
    assert (file.parent / "out" / "adapter.safetensors").read_bytes() == whole


def test_what_always_says_one_label_has_no_matthews_correlation() -> None:
    node = with_head(base(), LABELS, "last", np.random.default_rng(0))
    dull = with_parameters(node, {"head.output.W": 0 * node.head.output.W, "head.output.b": np.array([0, 0, 1], "f4")})
    sequences = Classes.of(texts(), LABELS, node)
    judged = sequences.judged(dull)
    assert judged.matthews is None
    assert "Matthews cannot be said (0/0)" in str(judged)
    assert judged.accuracy == pytest.approx(sum(e.reference == "good" for e in texts()) / 60)


def test_the_command_trains_answers_merges_and_verifies(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    save_model("base", base())
    line = (
        "adapt labels.tsv --out a --base base --task classify --rank 2 --steps 80 --batch-size 8 --learning-rate 0.03"
    )
    assert code_of(line.split()) == 0
    assert "of accuracy gained by" in capsys.readouterr().out
    assert code_of(["merge", "a", "--base", "base", "--out", "m"]) == 0
    assert code_of(["verify", "a", "m", "--base", "base"]) == 0
    assert "EQUAL" in capsys.readouterr().out
    for model_ in (["--base", "base", "--adapter", "a"], ["--base", "m"]):
        assert code_of(["generate", *model_, "--prompt", "no 7 is bright"]) == 0
        assert capsys.readouterr().out.startswith("good\n    good: 0.")
    head = "adapt labels.tsv --out b --base base --task classify --method head --steps 2"
    assert code_of(head.split()) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--task guess", "task must be one of 'text', 'classify', got 'guess'"),
        ("--task classify --reads middle", "reads must be one of"),
        ("--task classify --reads first", "the first token of a causal model has seen nothing of the text"),
        ("--method head", "--method must be one of"),
        ("--task classify --method headd", "--method must be one of head, "),
        ("--task classify --columns 0,1,2,3", "--columns takes two names with a comma between, or three"),
        ("--task classify --validation nowhere.tsv", "nowhere.tsv is missing"),
        ("--task classify --longest 2", "longest must be a whole number of at least 4, got 2"),
        ("--task classify --columns 1,0", "a classification needs 2 to 100 different labels|needs at least 2"),
    ],
)
def test_what_cannot_be_classified_is_refused_in_one_line(
    options: str, message: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    save_model("base", base())
    if "1,0" in options:
        file.write_text("".join(f"a\tx{i}\n" for i in range(120)))
    assert code_of(["adapt", "labels.tsv", "--out", "a", "--base", "base", *options.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not Path("a").exists()


def test_an_untied_head_of_words_gives_way_to_one_of_classes() -> None:
    node = initialize(replace(base().config, tied=False), np.random.default_rng(0))
    method = Classify(Full(), LABELS, "last")
    fresh = adapt(node, method, np.random.default_rng(0))
    assert "head.W" not in parameters(fresh)
    assert count(fresh) == method.numbers(node.config)
