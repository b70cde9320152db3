"""The laws of `exercises.verifying`: its folders are read as they were meant, its verdicts are those of the merges, and
each check names the mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model, moved

from lora_np.exercises import verifying as lab
from lora_np.exercises.folders import their_name, write
from lora_np.exercises.verifying import check_cause, check_merge_once, check_scale, check_vanishing
from lora_np.formats.adapters import read_adapter
from lora_np.formats.huggingface import open_weights
from lora_np.formats.tensors import dtype_of
from lora_np.formats.updates import Adapter
from lora_np.lora import adapters, delta
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig

pytest.importorskip("ml_dtypes")

NORM = "model.norm.weight"


def right(W: Any, A: Any, B: Any, s: Any) -> Any:
    return W + s * (B @ A)


def rejects(hint: str, check: Callable[..., None], *arguments: Any, **about: Any) -> None:
    with pytest.raises(AssertionError, match=re.escape(hint)):
        check(*arguments, **about)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Adapter, Any]:
    """A base and an rsLoRA adapter in folders, read again; and the model that they came of."""
    place = tmp_path_factory.mktemp("world")
    base = model(dtype=np.float32, d_model=32, heads=4)
    lora = LoraConfig(rank=4, alpha=8, targets="qv", scaling="alpha/sqrt(rank)")
    node = moved(adapt(base, lora, np.random.default_rng(0)))
    lab.write_base(place / "base", base)
    lab.write_adapter(place / "adapter", node, peft_type="LORA", r=4, lora_alpha=8, use_rslora=True)
    W0 = open_weights(place / "base")
    return W0, read_adapter(place / "adapter", W0, {"model_type": "llama"}).checked(), node


# ------------------------------------------------------------------------------------------- what the notebook uses


def test_what_is_written_is_what_was_trained(world: Any) -> None:
    W0, adapter, node = world
    assert {tensor.dtype.name for tensor in W0.values()} == {"bfloat16"}
    assert len(W0) == 4 * 2 + 1
    assert len(adapter.updates) == len(adapters(node)) == 4
    for path, module in adapters(node).items():
        update = adapter.updates[f"{their_name(path)}.weight"]
        assert np.allclose(update.prepared(W0[update.name]).change(slice(None)), delta(module), rtol=1e-5, atol=1e-6)


def test_a_folder_that_exists_is_not_written_into(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        write(tmp_path, {"a": np.zeros(2, np.float32)})


def test_a_right_merge_holds_and_each_mistake_has_its_name(world: Any) -> None:
    W0, adapter, _ = world
    once = lab.merged_by(right, adapter, W0)
    verdict = lab.verify(adapter, W0, once)
    assert verdict.holds
    assert 0 < verdict.used <= 1
    assert str(verdict).startswith("EQUAL: ")
    named = {
        "sign": lambda W, A, B, s: W - s * (B @ A),
        "scale_root": lambda W, A, B, s: W + s / 2 * (B @ A),
        "transposed": lambda W, A, B, s: W + s * (B @ A).T,
        "partial_rank": lambda W, A, B, s: W + s * (B[:, :2] @ A[:2]),
    }
    for fault, how in named.items():
        found = lab.verify(adapter, W0, lab.merged_by(how, adapter, W0))
        assert found.faults == {fault: 4}
        assert f"({len(adapter.updates)} {fault})" in str(found)
    assert lab.verify(adapter, W0, W0).faults == {"not_merged": 4}
    assert lab.verify(adapter, W0, lab.merged_by(right, adapter, once)).faults == {"twice": 4}


def test_a_merge_into_another_base_and_a_touched_norm_do_not_hold(world: Any) -> None:
    W0, adapter, _ = world
    rng = np.random.default_rng(0)
    other = {name: lab.nudged(tensor, rng) for name, tensor in W0.items()}
    found = lab.verify(adapter, W0, lab.merged_by(right, adapter, other))
    assert found.faults["untouched_changed"] == 5
    assert not found.holds
    once = lab.merged_by(right, adapter, W0)
    norm = once[NORM].copy()
    norm[0] += norm[0] / 64
    touched = lab.verify(adapter, W0, {**once, NORM: norm})
    assert touched.faults == {"untouched_changed": 1}
    assert touched.used == np.inf


def test_a_scaled_adapter_is_another(world: Any) -> None:
    W0, adapter, _ = world
    half = lab.scaled(adapter, 0.5)
    assert lab.verify(half, W0, lab.merged_by(right, half, W0)).holds
    assert not lab.verify(adapter, W0, lab.merged_by(right, half, W0)).holds


def test_what_is_kept_of_an_update_is_all_of_a_large_one_and_nothing_of_a_tiny_one() -> None:
    rng = np.random.default_rng(0)
    W = 0.02 * rng.standard_normal((40, 30))
    change = lab.drawn_update(rng, W.shape, 1e-2)
    assert np.sqrt(np.mean(change**2)) == pytest.approx(1e-2)
    assert np.linalg.matrix_rank(change) == 8
    assert lab.kept(W, change, "bfloat16") == pytest.approx(1.0, abs=1e-2)
    assert lab.kept(W, 1e-9 * change, "bfloat16") == 0.0
    assert lab.kept(W, 1e-5 * change, "bfloat16") < lab.kept(W, 1e-5 * change, "float32") == pytest.approx(1, abs=1e-2)


def test_casting_once_is_as_good_as_one_cast_and_casting_each_time_is_not() -> None:
    rng = np.random.default_rng(0)
    W = 0.02 * rng.standard_normal((40, 30))
    changes = [lab.drawn_update(rng, W.shape, 4e-5) for _ in range(8)]
    errors = lab.errors_in_a_row(W, changes, "bfloat16")
    assert errors["cast every time"][0] == errors["cast once"][0]
    assert errors["cast once"][-1] < 0.6 * errors["cast every time"][-1]
    assert {len(line) for line in errors.values()} == {8}


@pytest.mark.parametrize("seed", range(12))
def test_a_mystery_is_one_of_the_mistakes_and_of_no_other(seed: int) -> None:
    W0, A, B, s, W = lab.mystery(np.random.default_rng(seed))
    gaps = {cause: abs(how(W0, A, B, np.float32(s)) - W).max() for cause, how in lab.CAUSES.items()}
    same = [cause for cause, gap in gaps.items() if gap == 0]
    assert len(same) == 1
    assert same != ["right"]
    assert sorted(gaps.values())[1] > 0.1


# ------------------------------------------------------------------------------------------------------- the checks

RSLORA = {"r": 64, "lora_alpha": 32, "use_rslora": True}


def test_the_scale(capsys: pytest.CaptureFixture[str]) -> None:
    check_scale(4, RSLORA)
    check_scale(0.5, {"r": 64, "lora_alpha": 32})
    assert capsys.readouterr().out.splitlines()[0].startswith("Right: s = 4. A program that overlooks")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (0.5, "use_rslora is set: the divisor is √r"),
        (32, "that is alpha itself"),
        (2, "that is the inverse"),
        (1 / 64, "alpha is missing"),
        (256, "√r divides"),
        (0.25, "that is the inverse"),
        (1, "there is a scale"),
        (17, "look at all three"),
        ("4", "the answer is one number"),
        (None, "the answer is one number"),
    ],
)
def test_a_wrong_scale_is_named(answer: Any, hint: str) -> None:
    rejects(hint, check_scale, answer, RSLORA)


def test_without_rslora_the_divisor_is_r() -> None:
    rejects("use_rslora is not set", check_scale, 4, {"r": 64, "lora_alpha": 32, "use_rslora": False})


@pytest.mark.parametrize("w", [22.5, -5.5, 0.75, 1.375, 96.0])
def test_the_change_that_vanishes(w: float, capsys: pytest.CaptureFixture[str]) -> None:
    half = 2.0 ** (np.floor(np.log2(abs(w))) - 8)
    check_vanishing(half, w)
    assert capsys.readouterr().out.startswith("Right: half a unit")
    kind = dtype_of("bfloat16")
    assert float(np.float32(w + half).astype(kind)) == w
    assert float(np.float32(w + 1.01 * half).astype(kind)) == w + 2 * half


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (2.0**-3, "that is a whole unit"),
        (2.0**-5, "a little more still vanishes"),
        (2.0**-7, "that is float16"),
        (22.5 * 2.0**-7, "between two powers of two the unit is the same"),
        (22.5 * 2.0**-8, "between two powers of two the unit is the same"),
        (2.0**-7 / 2, "the numbers of bfloat16 lie"),
        (2.0**-20, "that is float32"),
        (1.0, "the numbers of bfloat16 lie"),
        (-(2.0**-4), "the numbers of bfloat16 lie"),
        ([1, 2], "the answer is one number"),
    ],
)
def test_a_wrong_change_that_vanishes_is_named(answer: Any, hint: str) -> None:
    rejects(hint, check_vanishing, answer, 22.5)


def test_epsilon_is_named_where_it_is_nothing_else() -> None:
    rejects("that is ε", check_vanishing, 2.0**-7, 0.3)


@pytest.mark.parametrize("cause", list(lab.CAUSES))
def test_the_cause(cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    W0, A, B, s, _ = lab.mystery(np.random.default_rng(0))
    check_cause(cause, W0, A, B, s, lab.CAUSES[cause](W0, A, B, np.float32(s)))
    assert capsys.readouterr().out.startswith(f"Right: {cause}.")


@pytest.mark.parametrize(
    ("cause", "answer", "hint"),
    [
        ("twice", "right", "'right' has ĉ = 1, and here ĉ is 2"),
        ("alpha/r", "twice", "and here ĉ is 0.5"),
        ("sign", "not merged", "and here ĉ is -1"),
        ("transposed", "not merged", "compare W itself"),
        ("not merged", "transposed", "compare W itself"),
        ("twice", "Twice", "there is no cause 'Twice'"),
        ("twice", 2.0, "the answer is a text"),
        ("twice", None, "the answer is a text"),
    ],
)
def test_a_wrong_cause_is_answered_with_what_speaks_against_it(cause: str, answer: Any, hint: str) -> None:
    W0, A, B, s, _ = lab.mystery(np.random.default_rng(0))
    rejects(hint, check_cause, answer, W0, A, B, s, lab.CAUSES[cause](W0, A, B, np.float32(s)))


def summed(W: Any, updates: Any) -> Any:
    return (W.astype(np.float32) + sum(s * (B @ A) for A, B, s in updates)).astype(W.dtype)


def in_float64(W: Any, updates: Any) -> Any:
    wide = W.astype(np.float64) + sum(s * (B.astype(np.float64) @ A) for A, B, s in updates)
    return wide.astype(W.dtype)


def each_time(W: Any, updates: Any) -> Any:
    for A, B, s in updates:
        W = (W.astype(np.float32) + s * (B @ A)).astype(W.dtype)
    return W


def in_bfloat16(W: Any, updates: Any) -> Any:
    for A, B, s in updates:
        W = W + (np.float32(s) * (B @ A)).astype(W.dtype)
    return W


def cast_updates(W: Any, updates: Any) -> Any:
    parts = [(np.float32(s) * (B @ A)).astype(W.dtype).astype(np.float32) for A, B, s in updates]
    return (W.astype(np.float32) + sum(parts)).astype(W.dtype)


def in_place(W: Any, updates: Any) -> Any:
    for A, B, s in updates:
        W += (s * (B @ A)).astype(W.dtype)
    return W


@pytest.mark.parametrize("answer", [summed, in_float64])
def test_a_merge_that_rounds_once(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check_merge_once(answer)
    assert capsys.readouterr().out.startswith("Right: 12 updates, one rounding")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (each_time, "it rounds after every update"),
        (in_bfloat16, "ΔW was cast before the sum"),
        (cast_updates, "ΔW was cast to bfloat16 before the sum"),
        (lambda W, updates: W.copy(), "nothing was added"),
        (lambda W, updates: summed(W, [(A, B, 1.0) for A, B, _ in updates]), "the scaling is missing"),
        (lambda W, updates: summed(W, updates[-1:]), "only the last update"),
        (lambda W, updates: summed(W, updates[:1]), "only the first update"),
        (lambda W, updates: summed(W, updates).astype(np.float32), "cast once, at the end"),
        (lambda W, updates: summed(W, [(A, -B, s) for A, B, s in updates]), "where one rounding explains"),
        (lambda W, updates: np.full_like(W, np.nan), "where one rounding explains"),
        (lambda W, updates: summed(W, updates).T, "the answer has shape"),
        (in_place, "it wrote into W"),
        (lambda W, updates: None, "it must give back an array"),
        ("W", "the answer is a function"),
    ],
)
def test_a_wrong_merge_is_named(answer: Any, hint: str) -> None:
    rejects(hint, check_merge_once, answer)


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (check_scale, (RSLORA,)),
        (check_vanishing, (5.5,)),
        (check_cause, (None, None, None, 1.0, None)),
        (check_merge_once, ()),
    ],
)
def test_the_placeholder_prints_the_task(
    check: Callable[..., None], arguments: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    check(..., *arguments)
    assert capsys.readouterr().out.startswith("Exercise: ")
