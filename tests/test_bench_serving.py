"""The laws of `bench serving`: what is compared does the same work, and the tables say what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from lora_np.bench import mixing, serving
from lora_np.bench.measure import Measured
from lora_np.bench.mixing import COUNTS, SERVING, adapters
from lora_np.bench.serving import FEW, SERVED, ServingReport, bench_serving, serving_markdown, serving_tables
from lora_np.bench.sizes import Task
from lora_np.cli.main import code_of
from lora_np.files import load_model

TINY = replace(SERVED, batch=3, seq=2)


def result_of(name: str, size: Any = TINY) -> Any:
    return SERVING[name](Task(f"serving, {name}", size))()


def test_what_is_compared_writes_the_same() -> None:
    assert result_of("mixed, 1") == result_of("one adapter, not merged") == result_of("merged")
    assert result_of("mixed, 32") == result_of("one by one")
    assert result_of("base, batched") == result_of("base, one by one")
    assert [len(text) for text in result_of("mixed, 2")] == [2, 2, 2]
    assert len({adapter.digest for adapter in adapters(load_model(), 3)}) == 3


def test_pefts_mixed_batch_writes_the_same() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    found = result_of("beside PEFT")
    assert list(found) == list(map(str, COUNTS))
    assert all(each["equal"] == TINY.batch and each["ours"] > 0 < each["theirs"] for each in found.values())


def test_many_adapters_are_served_within_the_bytes_that_were_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = adapters(load_model(), 1)[0].nbytes
    monkeypatch.setattr(mixing, "MANY", 6)
    monkeypatch.setattr(mixing, "REQUESTS", 8)
    monkeypatch.setattr(mixing, "LIMIT", 2 * one)
    found = result_of("many")
    assert found["equal"] == found["requests"] == 8
    assert found["adapters"] == 6
    assert 0 < found["kept"] <= 2 * one < found["on_disk"]


def test_training_together_ends_where_training_alone_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "STEPS", 2)
    monkeypatch.setattr(mixing, "TOGETHER", 2)
    found = result_of("trained together", replace(TINY, seq=8))
    assert found["gap"] < 1e-5 < 1e-4 < found["moved"]


def report() -> ServingReport:
    def measured(name: str, size: Any, seconds: float) -> Measured:
        texts = [[1, 2]] * (size.batch - 1) + [[3, 4] if name == "merged" else [1, 2]]
        return Measured(f"serving, {name}", size, 8, (seconds, 2 * seconds), 10, (), texts)

    names = ["one adapter, not merged", "merged", *(f"mixed, {n}" for n in COUNTS), "one by one"]
    timed = tuple(measured(name, SERVED, float(i + 1)) for i, name in enumerate(names))
    few = (measured("base, batched", FEW, 1.0), measured("base, one by one", FEW, 6.5))
    many = {"adapters": 1000, "requests": 200, "distinct": 180, "equal": 199, "on_disk": 5 * 10**7}
    many |= {"limit": 1 << 21, "kept": 2_000_000, "opened": 0.5, "served": 4.0, "peak": 10**8}
    together = {"gap": 1e-7, "moved": 0.1, "together": 1.0, "alone": 1.5}
    peers = tuple({"8": {"ours": 1.0, "theirs": times, "equal": 31}} for times in (2.0, 3.0, 4.0))
    return ServingReport("a machine", 2, 1, timed, few, many, together, peers)


def test_the_tables_say_what_was_measured() -> None:
    speed, peers, few, many, together = (rows for _, _, rows in serving_tables(report()))
    by_name = {row[0]: row for row in speed}
    assert len(by_name) == 3 + len(COUNTS)
    assert by_name["one adapter, not merged"][2] == "1.00 (1.00-1.00)"
    assert by_name["mixed, 2 adapters"][2] == "0.25 (0.25-0.25)"
    assert by_name["mixed, 32 adapters"][3] == "one by one: 32 of 32"
    assert by_name["merged"][3] == "one adapter, not merged: 31 of 32"
    assert peers[0][3:] == ("3.00 (2.00-4.00)", "31 of 32")
    assert few[0][2] == "6.50 (6.50-6.50)"
    assert many[0][-1] == "199 of 200"
    assert together[0][2] == "1.50"
    assert "| mixed, 32 adapters |" in serving_markdown(report())
    assert "1 thread, 2 rounds, seconds of processor time" in serving_markdown(report())
    assert json.loads(json.dumps(report().as_dict()))["many"]["kept"] == 2_000_000


def test_bad_settings_are_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        bench_serving(0)
    for arguments, why in (
        (["nothing"], "must be step or serving"),
        (["serving", "--growth"], "takes no --growth"),
        (["serving", "--sizes", "tiny"], "takes no --sizes"),
        (["serving", "--rounds", "0"], "rounds must be at least 1"),
    ):
        assert code_of(["bench", *arguments]) == 2
        assert why in capsys.readouterr().err


def test_peers_that_are_absent_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(ImportError, match=r"peers need peft: pip install"):
        bench_serving(1, peers=True)
