"""One run from a file to an adapter: stopped anywhere it ends with the same bits, and its numbers are what they say."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import hashes, model

from lora_np import adaptation, files
from lora_np.adaptation import CHECKPOINT, DataConfig, Interrupted, Outcome, Result, Text, adapt_to_file, read_file
from lora_np.costs import lora_count
from lora_np.disk import folders
from lora_np.disk.folders import partial_folder
from lora_np.disk.marks import MARK
from lora_np.files import load_adapter, read_arrays, write_arrays
from lora_np.lora import adapters
from lora_np.method import Method
from lora_np.methods import METHODS
from lora_np.methods.lora import LoraConfig
from lora_np.methods.tuning import BitFit, Full, Top
from lora_np.model import Transformer
from lora_np.optimization import TrainingConfig
from lora_np.parameters import parameters, with_parameters
from lora_np.tasks import epoch
from lora_np.tokenizers import ByteTokenizer
from lora_np.training import Record, evaluate

STEPS = 12
LORA = LoraConfig(rank=2, alpha=3.0, dropout=0.2)
TRAINING = TrainingConfig(steps=STEPS, learning_rate=1e-2, warmup=3)
DATA = DataConfig(batch_size=4)


def base(seed: int = 0) -> Transformer:
    return model(seed, np.float32, vocab=256, context=48)


def pairs(answers: str = "the answer") -> str:
    """24 pairs of 12 prompts, two answers each."""
    return "".join(f"question {i % 12}\t{answers} {i % 12 % 3}, {'ab'[i // 12]}\n" for i in range(24))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text(pairs())
    return path


def run(file: Path, name: str = "out", **changes: Any) -> Result:
    """Adapt a small base to the file; the changes go where their names belong."""
    start = changes.pop("base", None) or base()
    configs = [
        dataclasses.replace(
            config, **{f.name: changes.pop(f.name) for f in dataclasses.fields(config) if f.name in changes}
        )
        for config in (changes.pop("method", LORA), TRAINING)
    ]
    data = dataclasses.replace(DATA, **changes.pop("data", {}))
    return adapt_to_file(file, file.parent / name, start, *configs, data, **{"checkpoint_every": 5, **changes})


def stopped_after(number: int, by: type[BaseException] = KeyboardInterrupt) -> Callable[..., Iterator[Record]]:
    """A watcher that raises when so many records of this process have been kept."""

    def watch(records: Iterator[Record], total: int, done: int) -> Iterator[Record]:
        for passed, record in enumerate(records):
            if passed == number:
                raise by
            yield record
        raise by

    return watch


def adapter_bytes(file: Path, name: str = "out") -> bytes:
    return (file.parent / name / "adapter.safetensors").read_bytes()


def checkpoint_of(file: Path, name: str = "out") -> Path:
    return partial_folder(file.parent / name) / CHECKPOINT


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# stopped and resumed


def test_a_run_moves_every_trained_array_and_leaves_exactly_an_adapter(file: Path) -> None:
    start = base()
    before = hashes(parameters(start))
    run(file, base=start)
    trained, _ = load_adapter(file.parent / "out", start)
    assert all(abs(module.B).max() > 0 for module in adapters(trained).values())
    assert hashes(parameters(start)) == before
    assert names(file.parent / "out") == [MARK, "adapter.json", "adapter.safetensors"]
    assert names(file.parent) == ["out", "pairs.tsv"]


@pytest.mark.parametrize("kept", [0, 1, 4, 5, 6, 11, 12])
def test_a_run_interrupted_anywhere_resumes_to_the_same_bits(file: Path, kept: int) -> None:
    run(file, "whole")
    with pytest.raises(Interrupted) as stopped:
        run(file, watch=stopped_after(kept))
    assert stopped.value.step == kept
    assert str(stopped.value) == f"interrupted after step {kept}"
    assert not (file.parent / "out").exists()
    assert read_arrays(checkpoint_of(file))[1]["step"] == str(kept)
    run(file, resume=True)
    assert adapter_bytes(file) == adapter_bytes(file, "whole")


@pytest.mark.parametrize(("kept", "step"), [(0, 0), (4, 0), (5, 5), (9, 5), (10, 10), (11, 10)])
def test_a_run_that_dies_resumes_from_its_last_checkpoint_to_the_same_bits(file: Path, kept: int, step: int) -> None:
    run(file, "whole")
    with pytest.raises(SystemError):
        run(file, watch=stopped_after(kept, SystemError))
    assert read_arrays(checkpoint_of(file))[1]["step"] == str(step)
    run(file, resume=True)
    assert adapter_bytes(file) == adapter_bytes(file, "whole")


def test_a_run_interrupted_again_and_again_resumes_to_the_same_bits(file: Path) -> None:
    run(file, "whole")
    for number, kept in enumerate((3, 0, 4, 1)):
        with pytest.raises(Interrupted):
            run(file, watch=stopped_after(kept), resume=number > 0)
    assert read_arrays(checkpoint_of(file))[1]["step"] == "8"
    run(file, resume=True)
    assert adapter_bytes(file) == adapter_bytes(file, "whole")


@pytest.mark.parametrize("where", [(Text, "bits_per_byte"), (adaptation, "save_adapter")], ids=["score", "save"])
def test_a_run_that_fails_after_training_keeps_all_its_steps(
    file: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
) -> None:
    run(file, "whole")
    real = getattr(*where)

    def full(*arguments: Any) -> Any:
        if where[0] is Text and not adapters(arguments[1]):
            return real(*arguments)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(*where, full)
        with pytest.raises(OSError, match="No space left"):
            run(file)
    assert read_arrays(checkpoint_of(file))[1]["step"] == str(STEPS)
    run(file, resume=True, watch=lambda records, total, done: pytest.fail("trained again") if done < total else records)
    assert adapter_bytes(file) == adapter_bytes(file, "whole")


def test_a_run_killed_just_before_its_folder_appears_can_be_resumed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise SystemError

    run(file, "whole")
    with monkeypatch.context() as patched:
        patched.setattr(folders, "rename_new", killed)
        with pytest.raises(SystemError):
            run(file)
    run(file, resume=True)
    assert adapter_bytes(file) == adapter_bytes(file, "whole")


def test_what_a_killed_process_left_beside_its_checkpoint_is_not_delivered(file: Path) -> None:
    with pytest.raises(Interrupted):
        run(file, watch=stopped_after(5))
    checkpoint = checkpoint_of(file)
    checkpoint.with_name(f".{CHECKPOINT}.{os.getpid() + 1}").write_bytes(b"half a chec")  # killed before its rename
    run(file, resume=True)
    assert names(file.parent / "out") == [MARK, "adapter.json", "adapter.safetensors"]


# another run is refused


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"method": Full()}, "method"),
        ({"rank": 4}, "method rank"),
        ({"alpha": 4.0}, "method alpha"),
        ({"targets": "qkvo"}, "method targets"),
        ({"dropout": 0.0}, "method dropout"),
        ({"bias": "all"}, "method bias"),
        ({"steps": 13}, "steps"),
        ({"learning_rate": 2e-2}, "learning_rate"),
        ({"seed": 1}, "seed"),
        ({"data": {"seed": 1}}, "data seed"),
        ({"data": {"batch_size": 3}}, "data batch_size"),
        ({"data": {"held_out": 0.3}}, "data held_out"),
        ({"data": {"format": "tsv"}}, "data format"),
        ({"base": base(seed=1)}, "base"),
    ],
    ids=str,
)
def test_resuming_as_another_run_is_refused_and_names_the_difference(
    file: Path, change: dict[str, Any], key: str
) -> None:
    with pytest.raises(Interrupted):
        run(file, watch=stopped_after(6))
    before = checkpoint_of(file).read_bytes()
    with pytest.raises(ValueError, match=f"another run: {key} was .*, now it is "):
        run(file, resume=True, **change)
    assert checkpoint_of(file).read_bytes() == before


def test_resuming_with_a_changed_file_is_refused(file: Path) -> None:
    with pytest.raises(Interrupted):
        run(file, watch=stopped_after(6))
    file.write_text(pairs("another answer"))
    with pytest.raises(ValueError, match="another run: file was"):
        run(file, resume=True)


@pytest.mark.parametrize("prefix", ["trained.", "m.", "v."])
@pytest.mark.parametrize("damage", ["missing", "renamed", "misshapen"])
def test_a_checkpoint_whose_arrays_do_not_fit_is_refused_by_the_name_of_the_array(
    file: Path, prefix: str, damage: str
) -> None:
    with pytest.raises(Interrupted):
        run(file, watch=stopped_after(6))
    path = checkpoint_of(file)
    arrays, header = read_arrays(path)
    name = f"{prefix}blocks.0.attention.query.A"
    array = arrays.pop(name)
    if damage == "renamed":
        arrays[name.replace("query", "quesy")] = array
    elif damage == "misshapen":
        arrays[name] = array[:, :-1]
    write_arrays(path, arrays, header)
    with pytest.raises(ValueError, match=r"query\.A|quesy\.A") as found:
        run(file, resume=True)
    assert str(path) in str(found.value)
    assert not (file.parent / "out").exists()


# what exists is not lost


def test_a_finished_run_is_refused_and_made_again_when_asked(file: Path) -> None:
    run(file)
    before = adapter_bytes(file)
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="exists"):
            run(file, rank=1, resume=resume)
    assert adapter_bytes(file) == before
    run(file, rank=1, overwrite=True)
    assert adapter_bytes(file) != before
    assert names(file.parent) == ["out", "pairs.tsv"]


def test_an_unfinished_run_is_neither_discarded_nor_taken_over_unless_asked(file: Path) -> None:
    run(file, "whole", seed=1)
    with pytest.raises(Interrupted):
        run(file, watch=stopped_after(6))
    before = checkpoint_of(file).read_bytes()
    with pytest.raises(FileExistsError, match=r"unfinished run.*--resume.*--overwrite"):
        run(file)
    assert checkpoint_of(file).read_bytes() == before
    run(file, seed=1, overwrite=True)
    assert adapter_bytes(file) == adapter_bytes(file, "whole")


def test_the_old_adapter_stands_until_the_new_one_is_complete(file: Path) -> None:
    run(file)
    before = adapter_bytes(file)
    with pytest.raises(Interrupted):
        run(file, rank=1, overwrite=True, watch=stopped_after(6))
    assert adapter_bytes(file) == before
    run(file, rank=1, overwrite=True, resume=True)
    assert adapter_bytes(file) != before


def test_resuming_what_never_began_is_refused(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run(file, resume=True)
    assert names(file.parent) == ["pairs.tsv"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(file, "whole")
    with pytest.raises(Interrupted):
        run(file, watch=stopped_after(6))
    before = checkpoint_of(file).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run(file, resume=True)
        with pytest.raises(OSError, match="No space left"):
            run(file, "other")
    assert checkpoint_of(file).read_bytes() == before
    assert names(file.parent) == ["out.partial", "pairs.tsv", "whole"]
    run(file, resume=True)
    assert adapter_bytes(file) == adapter_bytes(file, "whole")


# what is held out


def test_no_held_out_prompt_is_trained_on(file: Path) -> None:
    train, held_out, _ = read_file(file, DATA, base(), LORA)
    prompts = [{tuple(s.tokens[: s.n_prompt]) for s in part.sequences} for part in (train, held_out)]
    assert prompts[0]
    assert prompts[1]
    assert not prompts[0] & prompts[1]
    assert len(train) + len(held_out) == 24


def test_what_is_held_out_leaves_no_trace_in_the_adapter(file: Path) -> None:
    run(file)
    _, held_out, _ = read_file(file, DATA, base(), LORA)
    secret = {ByteTokenizer().decode(s.tokens[: s.n_prompt]).strip() for s in held_out.sequences}
    lines = [line.split("\t") for line in pairs().splitlines()]
    altered = [[prompt, "zzz" if prompt in secret else answer] for prompt, answer in lines]
    assert lines != altered
    file.write_text("".join(f"{prompt}\t{answer}\n" for prompt, answer in altered))
    run(file, "altered")
    assert adapter_bytes(file) == adapter_bytes(file, "altered")


def test_an_error_counts_the_examples_of_the_file(file: Path) -> None:
    file.write_text(pairs() + "question 12\t" + "x" * 60 + "\n")
    with pytest.raises(ValueError, match="example 25 is 73 tokens long, and the context holds 48"):
        run(file)
    assert names(file.parent) == ["pairs.tsv"]
    assert run(file, data={"truncate": True}).train


# the numbers


def test_the_result_says_what_was_done(file: Path) -> None:
    said: list[str] = []
    start = base()
    result = run(file, base=start, say=said.append)
    train, held_out, plain = read_file(file, DATA, start, LORA)
    trained, _ = load_adapter(file.parent / "out", start)
    assert (result.train, result.held_out, result.steps) == (len(train), len(held_out), STEPS)
    assert result.trained == lora_count(start.config, 2, "qv")
    assert result.file_bytes == len(adapter_bytes(file))
    assert result.before == plain.bits_per_byte(start)
    assert result.after == held_out.bits_per_byte(trained)
    assert hashes(parameters(result.model)) == hashes(parameters(trained))
    assert result.after < result.before
    assert said == [
        f"{result.train} examples to train on, {result.held_out} held out; {result.trained:,} trained parameters",
        f"base: {result.before:.4f} bits per byte of the held-out references",
        f"adapted: {result.after:.4f} bits per byte of the held-out references",
    ]


def test_a_model_that_knows_nothing_needs_eight_bits_for_each_byte(file: Path) -> None:
    start = base()
    blank = with_parameters(start, {name: array * 0 for name, array in parameters(start, "tokens.W").items()})
    _, held_out, _ = read_file(file, DATA, start, LORA)
    rounding = 8 * float(np.finfo(np.float32).eps)  # of a logarithm, a product with a weight, a sum
    assert held_out.bits_per_byte(blank) == pytest.approx(8.0, rel=rounding)


def test_bits_are_nats_divided_by_ln_2_whatever_the_batch_size(file: Path) -> None:
    nats = evaluate(base(), epoch(read_file(file, DATA, base(), LORA)[1].sequences, 1, 0))
    for batch_size in (1, 2, 7):
        _, held_out, _ = read_file(file, dataclasses.replace(DATA, batch_size=batch_size), base(), LORA)
        assert held_out.bits_per_byte(base()) == pytest.approx(nats / np.log(2.0), rel=1e-6)


def test_the_number_of_threads_changes_no_bit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for workers in ("1", "2", "3"):
        monkeypatch.setenv("LORA_NP_THREADS", workers)
        results.append(run(file, workers))
    assert adapter_bytes(file, "1") == adapter_bytes(file, "2") == adapter_bytes(file, "3")
    one, two, three = (dataclasses.astuple(dataclasses.replace(r, model=hashes(parameters(r.model)))) for r in results)
    assert one == two == three


def test_how_often_a_checkpoint_is_written_changes_no_bit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(file)
    written: list[str] = []
    real = files.save_checkpoint
    monkeypatch.setattr(
        adaptation, "save_checkpoint", lambda path, state, about: (written.append(state.step), real(path, state, about))
    )
    run(file, "often", checkpoint_every=1)
    assert written == [*range(STEPS + 1), STEPS]
    assert adapter_bytes(file) == adapter_bytes(file, "often")


def test_recomputing_changes_no_bit(file: Path) -> None:
    results = [run(file, name, recompute=name == "again") for name in ("kept", "again")]
    assert adapter_bytes(file, "kept") == adapter_bytes(file, "again")
    assert results[0].after == results[1].after


@pytest.mark.parametrize("method", [Full(), Top(blocks=1), BitFit()], ids=lambda method: type(method).__name__)
def test_another_method_is_stopped_resumed_and_read_back_in_the_same_way(file: Path, method: Method) -> None:
    start = base()
    whole = run(file, "whole", base=start, method=method)
    with pytest.raises(Interrupted):
        run(file, method=method, watch=stopped_after(7))
    run(file, method=method, resume=True)
    assert adapter_bytes(file) == adapter_bytes(file, "whole")
    found, read = load_adapter(file.parent / "out", start)
    assert read == method
    assert hashes(parameters(found)) == hashes(parameters(whole.model))
    moved = {n for n, a in parameters(found).items() if not np.array_equal(a, parameters(start)[n])}
    assert moved <= set(method.trained(found))
    assert len(moved) > len(method.trained(found)) / 2  # a key's bias is not seen by softmax
    assert whole.after < whole.before


# the run that every other way calls


def outcome(file: Path, method: Method = LORA, **settings: Any) -> Outcome:
    train, held_out, _ = read_file(file, DATA, base(), method)
    return adaptation.run(train.batches, held_out.bits_per_byte, base(), method, TRAINING, **settings)


def test_an_outcome_says_what_a_run_came_to(file: Path) -> None:
    seen: list[Record] = []

    def watch(records: Iterator[Record], total: int, done: int) -> Iterator[Record]:
        assert (total, done) == (STEPS, 0)
        for record in records:
            seen.append(record)
            yield record

    found = outcome(file, scored=(0, 4, STEPS), watch=watch)
    assert found.losses == tuple(record.loss for record in seen)
    assert found.seconds == tuple(record.seconds for record in seen)
    assert found.trained == lora_count(base().config, 2, "qv")
    assert [step for step, _ in found.scores] == [4, STEPS]
    held_out = read_file(file, DATA, base(), LORA)[1]
    assert found.score == found.scores[-1][1] == held_out.bits_per_byte(found.model)
    fourth = with_parameters(found.model, seen[3].state.trained)
    assert found.scores[0][1] == held_out.bits_per_byte(fourth) != found.score


def test_a_run_without_a_folder_is_that_of_the_command(file: Path) -> None:
    run(file)
    adapter, _ = load_adapter(file.parent / "out", base())
    assert hashes(parameters(outcome(file).model)) == hashes(parameters(adapter))


def test_the_seed_of_a_run_draws_what_the_method_draws(file: Path) -> None:
    one, same, other = (hashes(parameters(outcome(file, seed=seed).model)) for seed in (0, 0, 1))
    assert one == same != other


def test_a_run_that_nothing_tells_from_others_keeps_no_checkpoint_and_is_not_resumed(file: Path) -> None:
    folder = file.parent / "out"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        outcome(file, folder=folder, watch=stopped_after(6))
    assert names(folder) == []
    outcome(file, folder=folder)
    assert names(folder) == ["adapter.json", "adapter.safetensors"]


def test_what_a_method_wants_to_learn_faster_does(file: Path) -> None:
    """LoRA+ is LoRA whose B has its own rate; what is said of the training goes before what the method says."""
    plus, plain = METHODS["lora+"](rank=2, alpha=3.0, dropout=0.2, ratio=16.0), LORA  # type: ignore[call-arg]
    train, held_out, _ = read_file(file, DATA, base(), plain)

    def trained(method: Method, rates: dict[str, float]) -> dict[str, str]:
        training = dataclasses.replace(TRAINING, rates=rates)
        found = adaptation.run(train.batches, held_out.bits_per_byte, base(), method, training)
        return hashes(parameters(found.model, "*.A", "*.B"))

    assert trained(plus, {}) == trained(plain, {"*.B": 16.0}) != trained(plain, {})
    assert trained(plus, {"*.B": 1.0}) == trained(plain, {})
