"""The gradients of LoRA beside a whole model, along directions: they hold, a planted fault shows, room is predicted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from builders import model
from foreign_world import said_by

from lora_np import directions, lora
from lora_np.cases import spoiled
from lora_np.cli import code_of
from lora_np.directions import Plan, check_room, gaps, gradcheck_of, kind_of
from lora_np.files import save_model
from lora_np.methods.lora import LoraConfig

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"architecture": "llama", "heads": 4, "kv_heads": 2, "d_ff": 6, "rope_factor": 2.0},
    "bert, classes": {"architecture": "bert", "causal": False, "types": 2, "classes": 3},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_three_witnesses_agree_on_each_kind_of_array(name: str) -> None:
    plans: list[Plan] = []
    report = gradcheck_of(model(**SHAPES[name]), LoraConfig(rank=2, targets="qv"), tokens=6, told=plans.append)
    assert report.holds
    assert [row.array for row in report.rows] == [f"attention.{m}.{x}" for m in ("query", "value") for x in "AB"]
    assert report.rows[0].shape == (2, 2, 8)  # layers, rank, d_in
    assert (plans[0].directions, plans[0].evaluations) == (2, 2 * 2 * 4 * 4)


@pytest.mark.parametrize("array", ["A", "B"])
def test_a_gradient_that_is_off_by_a_thousandth_is_found(array: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "lora_linear", spoiled("lora_linear", array, lambda g: 1.001 * g).lora_linear)
    report = gradcheck_of(model(), LoraConfig(rank=2, targets="qv"), tokens=6)
    assert {row.array[-1]: row.verdict for row in report.rows}[array] == "different"


def test_one_wrong_entry_of_one_layer_is_found_though_no_direction_shows_it() -> None:
    hand = {f"blocks.{layer}.attention.query.A": np.ones((2, 3)) for layer in range(4)}
    book = {name: array.copy() for name, array in hand.items()}
    assert gaps(hand, book) == {"attention.query.A": 0.0}
    hand["blocks.2.attention.query.A"][1, 1] += 1e-9
    assert gaps(hand, book)["attention.query.A"] == pytest.approx(1e-9)
    assert kind_of("blocks.11.attention.base.query.A") == "attention.query.A"


def test_a_slow_model_is_asked_along_one_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "SECONDS", 0.0)
    plans: list[Plan] = []
    report = gradcheck_of(model(), LoraConfig(rank=1, targets=("attention.value",)), tokens=4, told=plans.append)
    assert plans[0].directions == 1
    assert report.holds


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model().config
    monkeypatch.setattr(directions, "available_bytes", lambda: 1000)
    with pytest.raises(
        ValueError, match=r"x: checking its gradients takes .* GB in float64, and 1e-06 GB are available"
    ):
        check_room(config, 12, "x")
    monkeypatch.setattr(directions, "available_bytes", lambda: None)
    check_room(config, 12, "x")


def test_the_command_proves_a_folder(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", model(context=16, dtype=np.float32))
    code, said = said_by("gradcheck", "--base", tmp_path / "m", "--rank", 1, "--json")
    assert code == 0
    report = json.loads(said)
    assert report["holds"]
    assert len(report["rows"]) == 4
    assert "evaluations of the loss on 12 tokens" in capsys.readouterr().err
    assert code_of(["gradcheck", "--rank", "2"]) == 2
    assert "belong to --base" in capsys.readouterr().err
