"""What cannot be read again is not written, what would not fit is not begun, and a changed description is noticed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import adapted, model, moved, random_batch

from lora_np import adaptation
from lora_np.adaptation import DataConfig, adapt_to_file
from lora_np.costs import step_bytes
from lora_np.disk.marks import MARK
from lora_np.files import (
    digest,
    load_adapter,
    load_checkpoint,
    load_model,
    read_arrays,
    save_adapter,
    save_checkpoint,
    save_model,
)
from lora_np.methods.lora import LoraConfig
from lora_np.model import Linear, language_model_loss
from lora_np.names import ATTENTION, MLP
from lora_np.optimization import TrainingConfig, TrainingState, global_norm
from lora_np.parameters import parameters, with_modules, with_parameters

START = model(0, np.float32)


# save_model refuses what load_model would not read

QUERY = START.blocks[0].attention.query
UNREADABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "a head that its config does not have": (lambda: replace(START, head=Linear(START.tokens.W)), "head is"),
    "another number of heads": (
        lambda: with_modules(START, {"blocks.1.attention": replace(START.blocks[1].attention, heads=4)}),
        "blocks.1.attention is",
    ),
    "another epsilon": (lambda: with_modules(START, {"norm": replace(START.norm, eps=1e-6)}), "norm is"),
    "a map without its bias": (
        lambda: with_modules(START, {"blocks.0.attention.query": replace(QUERY, b=None)}),
        "blocks.0.attention.query.b is absent",
    ),
    "a block less": (lambda: replace(START, blocks=START.blocks[:1]), "blocks.1 is absent"),
    "a block too many": (lambda: replace(START, blocks=(*START.blocks, START.blocks[0])), "blocks.2 is"),
    "a module of another kind": (lambda: with_modules(START, {"norm": QUERY}), "norm is Linear"),
    "a longer table": (
        lambda: with_modules(START, {"positions": replace(START.positions, W=START.tokens.W)}),
        "positions.W is an array (11, 8)",
    ),
    "a number that is none": (
        lambda: with_parameters(START, {"norm.beta": np.full(8, np.nan, np.float32)}),
        "norm.beta holds a number that is not finite",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_model_that_would_not_be_read_again_is_not_saved(tmp_path: Path, name: str) -> None:
    build, words = UNREADABLE[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        save_model(tmp_path / "m", build())
    assert not list(tmp_path.iterdir())


def test_numbers_that_a_kind_of_file_cannot_hold_are_refused_by_name(tmp_path: Path) -> None:
    large = with_parameters(START, {"norm.beta": np.full(8, 1e6, np.float32)})
    save_model(tmp_path / "m", large)
    with pytest.raises(ValueError, match=r"norm\.beta holds a number that is not finite in float16"):
        save_model(tmp_path / "half", large, dtype=np.float16)
    for dtype in (np.int8, np.complex64, bool):
        with pytest.raises(ValueError, match="dtype must be float16, float32 or float64"):
            save_model(tmp_path / "half", START, dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# digests cover what a file means


@pytest.mark.parametrize(
    ("key", "value"), [("heads", 4), ("causal", False), ("context", 12), ("d_ff", 32)], ids=lambda value: str(value)
)
def test_a_changed_description_of_a_model_is_noticed_by_name(tmp_path: Path, key: str, value: Any) -> None:
    save_model(tmp_path / "m", START)
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, key: value}))
    if config[key] == value:
        assert load_model(tmp_path / "m").config == START.config
        return
    with pytest.raises(ValueError, match=rf"config.json was changed: {key} was .* now it is {value}"):
        load_model(tmp_path / "m")


ADAPTER_CHANGES: dict[str, Any] = {
    "dropout": 0.5,
    "initialization": "uniform",
    "targets": ["attention.query", "attention.value"],
    "seed": 1,
}


@pytest.mark.parametrize("key", ADAPTER_CHANGES)
def test_a_changed_description_of_an_adapter_is_noticed(tmp_path: Path, key: str) -> None:
    trained = moved(adapted(START))
    save_adapter(tmp_path, trained, LoraConfig(rank=2, alpha=3.0), START)
    load_adapter(tmp_path, START)
    path = tmp_path / "adapter.json"
    about = json.loads(path.read_text())
    about["settings"][key] = ADAPTER_CHANGES[key]
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=rf"adapter.json( was changed: settings {key} was|: )"):
        load_adapter(tmp_path, START)


def test_a_changed_step_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    state = TrainingState(7, parameters(START), {})
    save_checkpoint(tmp_path / "c", state, {"rank": 2})
    assert load_checkpoint(tmp_path / "c", {"rank": 2}).step == 7
    whole = (tmp_path / "c").read_bytes()
    assert whole.count(rb"\"step\": \"7\"") == 1
    (tmp_path / "c").write_bytes(whole.replace(rb"\"step\": \"7\"", rb"\"step\": \"8\""))
    with pytest.raises(ValueError, match="its numbers or its header are not those that were written"):
        load_checkpoint(tmp_path / "c", {"rank": 2})


def test_files_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """They digested the numbers alone, and described them in the JSON beside alone."""
    from safetensors.numpy import save

    from lora_np.files import _digest_of_bytes

    save_model(tmp_path / "m", START)
    (tmp_path / "m" / MARK).unlink()
    path = tmp_path / "m" / "model.safetensors"
    arrays, _ = read_arrays(path)
    path.write_bytes(save(arrays, {"sha256": _digest_of_bytes(arrays, {}), "step": "7"}))
    assert digest(load_model(tmp_path / "m")) == digest(START)
    assert read_arrays(path)[1] == {"step": "7"}


@pytest.mark.parametrize("key", ["alpha", "dropout", "rank"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 10**4000], ids=["large", "negative", "larger"])
def test_a_number_beyond_all_floats_is_refused_by_the_name_of_its_file(tmp_path: Path, key: str, value: int) -> None:
    trained = moved(adapted(START))
    save_adapter(tmp_path, trained, LoraConfig(rank=2, alpha=3.0), START)
    path = tmp_path / "adapter.json"
    about = json.loads(path.read_text())
    about["settings"][key] = value
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_adapter(tmp_path, START)


# at the door of the loss


@pytest.mark.parametrize("wrong", [-100, -1, 11])
def test_a_target_outside_the_vocabulary_is_refused_wherever_it_stands(wrong: int) -> None:
    batch = random_batch(START)
    language_model_loss(START, batch)
    for row, column in ((0, 0), (2, -1)):  # the first has weight zero
        targets = batch.targets.copy()
        targets[row, column] = wrong
        with pytest.raises(ValueError, match=rf"token ids must lie in 0..10, got {wrong}"):
            language_model_loss(START, replace(batch, targets=targets))


@pytest.mark.parametrize(("dtype", "size"), [(np.float16, 300.0), (np.float32, 1e25), (np.float64, 1e200)])
def test_a_norm_overflows_only_where_it_is_too_large_itself(dtype: Any, size: float) -> None:
    """Each step of size/size, square, sum and root rounds by at most half an eps of its result: (n + 3) eps in all."""
    gradient = {"a": np.full((2, 2), size, dtype), "b": np.zeros(3, dtype)}
    with np.errstate(over="ignore"):
        assert not np.isfinite(np.vdot(gradient["a"], gradient["a"]))  # contrast: their squares do overflow
    held = float(gradient["a"][0, 0])
    assert abs(global_norm(gradient) - 2 * held) <= 2 * held * 7 * np.finfo(dtype).eps


def test_a_gradient_that_is_not_finite_has_no_finite_norm() -> None:
    for value in (np.inf, np.nan):
        assert not np.isfinite(global_norm({"a": np.array([1.0, value], np.float32)}))


# a batch that will not fit


def run(tmp_path: Path, **changes: Any) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"question {i}\tanswer\n" for i in range(24)))
    base, recompute = model(0, np.float32, vocab=256, context=48), changes.pop("recompute", False)
    lora = LoraConfig(**{"rank": 2, **changes.pop("lora", {})})
    training, data = TrainingConfig(steps=1), DataConfig(**changes)
    adapt_to_file(file, tmp_path / "out", base, lora, training, data, recompute=recompute)


@pytest.mark.parametrize("targets", ["qv", "all-linear", "tokens", "blocks.0.mlp.up"])
def test_a_batch_that_will_not_fit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: str
) -> None:
    monkeypatch.setattr(adaptation, "fit", lambda *_: pytest.fail("it has started"))
    monkeypatch.setattr(adaptation, "available_bytes", lambda: 100_000)
    with pytest.raises(ValueError, match=r"a step on 16 examples of up to \d+ tokens needs .*--batch-size"):
        run(tmp_path, lora={"targets": targets, "tied_head": "tie"})
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_what_is_predicted_is_the_closed_form_of_the_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = model(0, np.float32, vocab=256, context=48).config
    needed = step_bytes(sizes, 4, 19, 2, (*ATTENTION, *MLP))
    for free, fits in ((needed, True), (needed - 1, False), (None, True)):
        monkeypatch.setattr(adaptation, "available_bytes", lambda free=free: free)
        settings = {"lora": {"targets": "all-linear"}, "batch_size": 4}
        if fits:
            run(tmp_path, **settings)
            for path in (tmp_path / "out").iterdir():
                path.unlink()
            (tmp_path / "out").rmdir()
        else:
            with pytest.raises(ValueError, match="a step on 4 examples of up to 19 tokens"):
                run(tmp_path, **settings)


def test_blocks_that_are_computed_again_need_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = model(0, np.float32, vocab=256, context=48).config
    needed = step_bytes(sizes, 16, 19, 2, ("attention.query", "attention.value"))
    monkeypatch.setattr(adaptation, "available_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="--checkpoint-blocks"):
        run(tmp_path)
    run(tmp_path, recompute=True)
