"""The laws of `bench`: what is timed is the same work, the sums are right, and nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import model
from commands import unmeasured

from lora_np import bench as public
from lora_np import progress
from lora_np.bench import SIZES, BenchConfig, BenchReport, ChildError, Measured, Size, markdown, named_size, tables
from lora_np.bench.growth import CHANGES, Growth, changed, exponent, growth
from lora_np.bench.measure import OPTIONAL, array_bytes, check_room, measure, predicted_bytes, processes, ratio
from lora_np.bench.process import Process, gemm_rate, held_bytes
from lora_np.bench.report import SizeReport, bench, machine, unavailable
from lora_np.bench.sizes import GENERATION, RandomTokens
from lora_np.bench.workloads import WORKLOADS, Task
from lora_np.cli import code_of
from lora_np.costs import step_multiply_adds
from lora_np.disk.marks import MARK
from lora_np.figures.bench import time_and_memory
from lora_np.files import save_model

LITTLE = Size("little", 16, 2, 2, 4, 12, 32)  # a millisecond or two a step
HURRIED = {"ROUND_SECONDS": 1e-3, "PAUSE": 0.0}  # figures that nobody will read need not be good ones
parity = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "peft", "transformers")),
    reason='needs pip install "lora_np[parity]"',
)


@pytest.fixture(scope="module", autouse=True)
def _hurried() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HURRIED.items():
            patch.setattr(f"lora_np.bench.measure.{name}", value)
        yield


def finished(steps: Any) -> Any:
    """What a generator gives back at its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def measured(workload: str = "lora", seconds: tuple[float, ...] = (1.0, 2.0, 3.0), **more: Any) -> Measured:
    settings = {"size": LITTLE, "rank": 8, "peak": 100_000_000, "gemm": (), "result": 1.0, **more}
    return Measured(workload, seconds=seconds, **settings)


# ------------------------------------------------------------------------------------------------------ the sizes


def test_the_sizes_are_those_of_the_readme() -> None:
    assert list(SIZES) == ["tiny", "small", "mid", "gpt2", "long"]
    assert (SIZES["gpt2"].config.d_model, SIZES["gpt2"].config.vocab, SIZES["gpt2"].tokens) == (768, 50257, 1024)
    assert SIZES["long"].config.context == 1024


def test_an_unknown_size_raises_with_the_known_ones_and_a_batch_is_positive() -> None:
    with pytest.raises(ValueError, match="size must be one of tiny, small, mid, gpt2, long; got 'huge'"):
        named_size("huge")
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        named_size("tiny", 0)
    assert named_size("tiny", 3) == replace(SIZES["tiny"], batch=3)


def test_random_tokens_are_the_same_for_the_same_seed_and_step_and_others_otherwise() -> None:
    tokens = RandomTokens(LITTLE, 0)
    assert np.array_equal(tokens[3].tokens, RandomTokens(LITTLE, 0)[3].tokens)
    assert not np.array_equal(tokens[3].tokens, tokens[4].tokens)
    assert not np.array_equal(tokens[3].tokens, RandomTokens(LITTLE, 1)[3].tokens)
    assert tokens[0].weights.sum() == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------- the workloads


def losses(workload: str, steps: int = 3, workers: int = 1, **task: Any) -> list[float]:
    step = WORKLOADS[workload](Task(workload, LITTLE, workers, **task))
    return [step() for _ in range(steps)]


def test_textbook_and_recomputed_steps_are_the_same_work_as_the_lora_step() -> None:
    """Equal losses, step after step: float32 roundings of numbers near log 32."""
    ours = losses("lora")
    assert losses("lora, recomputed") == ours
    np.testing.assert_allclose(losses("textbook"), ours, rtol=1e-5)
    assert len(set(ours)) == 3
    assert losses("full")[1] != pytest.approx(ours[1], rel=1e-5)  # contrast: other work


def test_a_rank_and_a_seed_make_another_model() -> None:
    assert losses("lora", rank=2) != losses("lora")
    assert losses("lora", seed=1) != losses("lora")


def test_generation_gives_the_tokens_of_the_base_and_merged_those_of_adapted() -> None:
    size = replace(GENERATION, seq=8)
    base, merged, adapted = (
        WORKLOADS[f"generation, {name}"](Task("generation", size, 1))() for name in ("base", "merged", "adapted")
    )
    assert len(base) == 8
    assert merged == adapted != base


@parity
def test_pytorch_with_peft_does_the_same_work() -> None:
    np.testing.assert_allclose(losses("peer"), losses("lora"), rtol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX")
@pytest.mark.filterwarnings("ignore")
def test_jax_does_the_same_work() -> None:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    try:
        np.testing.assert_allclose(losses("peer, jax"), losses("lora"), rtol=1e-5)
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("engine", ["inline", "threads", "processes"])
def test_the_step_by_each_engine_is_the_same_to_the_bit(engine: str) -> None:
    assert losses(f"lora, {engine}") == losses("lora")  # one worker, one shard
    two = losses(f"lora, {engine}", workers=2)
    assert two == losses("lora, inline", workers=2)
    np.testing.assert_allclose(two, losses("lora"), rtol=1e-6)  # two shards: other sums


@parity
def test_transformers_generates_the_same_tokens() -> None:
    size = replace(GENERATION, seq=24)
    ours, theirs = (WORKLOADS[f"generation, {name}"](Task("generation", size, 1))() for name in ("base", "peer"))
    assert ours == theirs


# -------------------------------------------------------------------------------------------------- a process each


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_times_steps_and_ends_with_its_block() -> None:
    with processes([Task("lora", LITTLE, 1)]) as (child,):
        pid = child._child.pid
        first, second = child.ask("step"), child.ask("step")
        assert [first["result"], second["result"]] == losses("lora", 2)
        assert second["seconds"] > 0
        assert second["peak"] >= first["peak"] > 20_000_000
        assert child.ask("gemm")["rate"] > 0
        assert alive(pid)
    assert not alive(pid)


def test_processes_end_when_the_block_raises() -> None:
    pids = []
    tasks = [Task("lora", LITTLE, 1), Task("full", LITTLE, 1)]
    with pytest.raises(KeyboardInterrupt), processes(tasks) as children:  # noqa: PT012
        pids += [child._child.pid for child in children]
        raise KeyboardInterrupt
    assert not any(map(alive, pids))


def test_a_process_that_fails_says_why_in_a_line() -> None:
    with (
        pytest.raises(ChildError, match=r"^nothing, little: KeyError: 'nothing'$"),
        processes([Task("nothing", LITTLE)]),
    ):
        pytest.fail("it must not be set up")


def test_a_process_that_is_killed_is_noticed() -> None:
    with processes([Task("lora", LITTLE, 1)]) as (child,):
        child._child.kill()
        child._child.wait()
        with pytest.raises(ChildError, match="lora, little: exit code -9"):
            child.ask("step")


def test_a_child_ends_when_its_parent_is_gone() -> None:
    child = Process(Task("lora", LITTLE, 1))
    child.wait()
    assert child._child.stdin is not None
    child._child.stdin.close()
    assert child._child.wait(timeout=300) == 0
    child.end()


def test_what_a_library_prints_is_no_answer() -> None:
    program = (
        "import sys, lora_np.bench.process as p;"
        "p.WORKLOADS['loud'] = lambda task: (print('hello'), lambda: print('step') or 1)[1];"
        "p.serve(p.Task('loud', None))"
    )
    done = subprocess.run([sys.executable, "-c", program], input="step\n", capture_output=True, text=True, check=True)
    assert [list(json.loads(line)) for line in done.stdout.splitlines()] == [["ready"], ["seconds", "result", "peak"]]
    assert done.stderr.split() == ["hello", "step"]


def test_on_a_device_it_is_the_memory_of_its_pool_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SimpleNamespace(total_bytes=lambda: 7)
    device = SimpleNamespace(get_default_memory_pool=lambda: pool)
    monkeypatch.setattr("lora_np.bench.process.library", lambda name: {"gpu": device}[name])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert held_bytes(Task("lora", LITTLE, device="gpu")) == 7
    torch = SimpleNamespace(cuda=SimpleNamespace(max_memory_reserved=lambda: 11))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert held_bytes(Task("peer", LITTLE, device="gpu")) == 11
    assert held_bytes(Task("lora", LITTLE)) > 20_000_000


def test_the_rate_of_products_is_that_of_the_clock() -> None:
    began = time.perf_counter()
    rate = gemm_rate(1, n=256, repeats=8)
    assert rate > 2 * 256**3 * 8 / (time.perf_counter() - began)  # the time inside is part of the time outside


# ------------------------------------------------------------------------------------------------------ measuring


def test_every_task_is_timed_in_turn_in_every_round() -> None:
    tasks = [Task("lora", LITTLE, 1), Task("full", LITTLE, 1)]
    steps = measure(tasks, 3)
    said = []
    while True:
        try:
            said.append(next(steps))
        except StopIteration as end:
            lora, full = end.value
            break
    assert said == [
        f"little, {w}, {when}" for when in ("first steps", "round 1", "round 2", "round 3") for w in ("lora", "full")
    ]
    assert [len(lora.seconds), len(full.seconds), len(lora.gemm)] == [3, 3, 3]
    assert lora.result == losses("lora", 2)[1]
    assert full.result == losses("full", 2)[1]


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that is twice as slow in one round is so for both: the quotient of the medians would say 0.8."""
    a, b = measured(seconds=(1.0, 4.0, 3.0)), measured(seconds=(2.0, 8.0, 3.75))
    found = ratio(a, b)
    assert (found.median, found.lowest, found.highest) == (0.5, 0.5, 0.8)
    assert str(found) == "0.50 (0.50-0.80)"


def test_tokens_a_second_and_the_roofline() -> None:
    needed = 2 * LITTLE.tokens * step_multiply_adds(LITTLE.config, 8, "qv")
    m = measured(seconds=(1.0, 2.0, 4.0), gemm=(2 * needed, needed, needed))
    assert m.tokens_per_second == LITTLE.tokens / 2
    assert m.roofline == 0.5  # of 1/2, 1/2, 1/4
    whole = measured("full", seconds=(1.0,), gemm=(needed,))
    assert whole.roofline == pytest.approx(step_multiply_adds(LITTLE.config) / (needed / 2 / LITTLE.tokens))
    assert measured().roofline is None


@pytest.mark.parametrize("name", ["small", "gpt2"])
def test_what_is_predicted_grows_with_what_runs_at_once(name: str) -> None:
    one, two = (predicted_bytes(Task("lora", SIZES[name], workers)) for workers in (1, 2))
    assert one < two < predicted_bytes(Task("full", SIZES[name], 2))
    assert predicted_bytes(Task("lora, recomputed", SIZES[name], 2)) < two


def test_the_predicted_bytes_are_those_that_are_counted() -> None:
    """Within the 15 % of `costs`, for a size at which a model's arrays outweigh Python's objects."""
    size = Size("middling", 128, 3, 4, 8, 128, 512)
    for workload in ("lora", "full"):
        task = Task(workload, size, 1)  # one thread: two are not at their largest at the same moment
        assert abs(array_bytes(task) / predicted_bytes(task) - 1) < 0.15


def test_what_will_not_fit_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_np.bench.measure.available_bytes", lambda: 10**9)
    with pytest.raises(ValueError, match=r"size gpt2 needs about 5\.\d GB at once \(lora 1\.0, full 4\.0.*1\.0 GB are"):
        check_room([Task("lora", SIZES["gpt2"], 2), Task("full", SIZES["gpt2"], 2)])
    with pytest.raises(ValueError, match="needs about"):
        bench(BenchConfig((SIZES["gpt2"],)), lambda *_: pytest.fail("nothing may begin"))
    check_room([Task("lora", LITTLE)])
    monkeypatch.setattr("lora_np.bench.measure.available_bytes", lambda: None)  # the system does not say
    check_room([Task("lora", SIZES["gpt2"])])


# --------------------------------------------------------------------------------------------------------- growth


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0, -1.0])
def test_the_exponent_of_a_power_law_is_found(power: float) -> None:
    x = [1.0, 2.0, 5.0, 11.0]
    assert exponent(x, [3.0 * value**power for value in x]) == pytest.approx(power, abs=1e-12)


def test_a_sum_of_a_constant_and_a_line_has_an_exponent_between() -> None:
    assert 0.3 < exponent([1, 2, 4, 8], [value + 4 for value in (1, 2, 4, 8)]) < 0.5


def test_one_size_changes_and_the_others_stay() -> None:
    start = Task("lora", LITTLE)
    assert {name: changed(name, 5, start) for name in CHANGES} == {
        "tokens": replace(start, size=replace(LITTLE, batch=5)),
        "layers": replace(start, size=replace(LITTLE, layers=5)),
        "vocabulary": replace(start, size=replace(LITTLE, vocab=5)),
        "rank": replace(start, rank=5),
    }


def test_memory_grows_with_tokens_as_predicted() -> None:
    start = Task("lora", Size("middling", 128, 3, 4, 1, 128, 512), 1)
    found = finished(growth("tokens", start, 1, (2, 8)))
    assert found.memory == pytest.approx(found.memory_predicted, abs=0.05)
    assert 0.3 < found.memory < 1.0  # the model stays
    assert found.time_predicted == pytest.approx(1.0)
    assert math.isfinite(found.time.median)


# --------------------------------------------------------------------------------------------------- the whole of it


@pytest.fixture(scope="module")
def report() -> BenchReport:
    said: list[str] = []

    def watch(lines: Any, total: int) -> Any:
        for line in progress.watch(lines, "timing", total, show=str):  # as the command does
            said.append(line)
            yield line
        assert len(said) == total

    return bench(BenchConfig((LITTLE, replace(SIZES["tiny"], batch=2)), rounds=2, workers=1), watch)


def test_a_report_holds_every_size_and_generation(report: BenchReport) -> None:
    little, tiny = report.sizes
    assert little.textbook is None  # it is not one of the sizes at which the textbook runs
    assert tiny.textbook is not None
    assert tiny.to_textbook is not None
    assert tiny.to_textbook.median > 0
    assert (little.peer, little.to_peer, little.memory_to_peer) == (None, None, None)
    assert [m.workload for m in report.generation] == [f"generation, {name}" for name in ("base", "merged", "adapted")]
    assert little.lora.roofline > 0  # type: ignore[operator]


def test_a_report_is_json_and_says_on_what_it_was_measured(report: BenchReport) -> None:
    again = json.loads(json.dumps(report.as_dict()))
    assert [size["name"] for size in again["sizes"]] == ["little", "tiny"]
    assert again["sizes"][1]["lora_over"].keys() == {"full", "textbook"}
    assert again["sizes"][0]["measured"]["lora"]["median_seconds"] == report.sizes[0].lora.median
    assert again["machine"] == machine()
    assert all(word in again["machine"] for word in ("NumPy", "Python", "cores"))


def test_the_tables_say_what_was_measured(report: BenchReport) -> None:
    text = markdown(report)
    (_, head, rows), (_, _, generation) = tables(report)
    assert len(head) == len(rows[0])
    assert [row[0] for row in rows] == ["little", "tiny"]
    assert rows[0][1] == f"{1e3 * report.sizes[0].lora.median:.3g} ms"
    assert rows[0][-1] == "-"
    assert [row[3] for row in generation] == ["-", "adapted: yes", "-"]
    assert text.count("\n| --- |") == 2
    assert all(len(line.split("|")) in (6, 10) for line in text.splitlines() if line.startswith("|"))


def with_peer(report: BenchReport) -> BenchReport:
    little = report.sizes[0]
    peer = replace(little.lora, workload="peer", seconds=(1.0, 2.0), peak=10**9, result=little.lora.result + 1e-6)
    grown = Growth("rank", (1, 2), (0.1, 0.2), (1, 2), ratio(peer, peer), 0.5, 0.9, 1.0)
    generation = (*report.generation, replace(report.generation[0], workload="generation, peer", result=[1]))
    return replace(report, sizes=(replace(little, peer=peer),), growth=(grown,), generation=generation)


def test_with_peers_and_growth_there_are_two_more_tables(report: BenchReport) -> None:
    found = tables(with_peer(report))
    assert len(found) == 4
    (peer,) = found[1][2]
    assert peer[2] == "1.50 s"
    assert peer[-1] == "1.0e-06"
    assert found[2][2][-1][0] == "base, in transformers"
    assert found[2][2][-1][-1] == "base: NO"  # another text, which shows
    assert found[3][2] == [("rank", "1, 2", "1.00 (1.00-1.00)", "0.50", "0.90", "1.00")]
    assert json.dumps(with_peer(report).as_dict())


def test_peers_that_compile_and_engines_have_a_table_each_and_what_is_missing_says_why(report: BenchReport) -> None:
    little = report.sizes[0]
    jax = replace(little.lora, workload="peer, jax", first=3.0, result=little.lora.result + 1e-6)
    inline = replace(little.lora, workload="lora, inline", result=1.0)
    threads = replace(inline, workload="lora, threads", result=0.0)
    size = replace(little, harder=(jax,), engines=(inline, threads), skipped={"peer, compiled": "there is no compiler"})
    more = replace(report, sizes=(size,))
    (_, _, first), (_, head, peers), (_, _, engines), _ = tables(more)
    assert peers[0][:3] == ("little", "PyTorch + PEFT, torch.compile", "skipped: there is no compiler")
    assert peers[1][1] == "JAX, jit"
    assert peers[1][3:5] == ("3.00 s", "1.00 (1.00-1.00)")
    assert peers[1][-1] == "1.0e-06"
    assert {len(row) for row in peers} == {len(head)}
    assert [row[1] for row in engines] == ["inline", "threads"]
    assert [row[-1] for row in engines] == ["yes", "NO"]  # another loss, which shows
    shown = json.loads(json.dumps(more.as_dict()))["sizes"][0]
    assert shown["lora_over"]["peer, jax"]["median"] == 1.0
    assert shown["skipped"] == {"peer, compiled": "there is no compiler"}


def test_why_a_peer_that_compiles_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax" else name)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    config = BenchConfig((LITTLE,), peers=True)
    assert unavailable(BenchConfig((LITTLE,))) == {}
    assert set(unavailable(config)) == set(OPTIONAL)
    assert unavailable(config)["peer, jax"] == 'JAX is not installed: pip install "lora_np[peers]"'


def test_a_peer_that_fails_is_left_out_if_it_is_one_that_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_np.bench.measure.OPTIONAL", ("nothing",))
    tasks = [Task("nothing", LITTLE), Task("lora", LITTLE, 1)]
    why: dict[str, str] = {}
    (only,) = finished(measure(tasks, 1, why))
    assert only.workload == "lora"
    assert only.first > 0
    assert why == {"nothing": "nothing, little: KeyError: 'nothing'"}
    with pytest.raises(ChildError, match="nothing, little"):
        finished(measure(tasks, 1))


def test_the_picture_shows_each_workload_at_each_size(report: BenchReport) -> None:
    left, right = time_and_memory(with_peer(report)).axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["little"]
    assert "ms" in left.get_ylabel()
    assert "MB" in right.get_ylabel()
    assert len(right.lines) == 3  # LoRA, full and peer
    assert float(right.lines[2].get_ydata()[0]) == 1000.0
    with pytest.raises(ValueError, match="at least one size"):
        time_and_memory(replace(report, sizes=()))


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no size": ({"sizes": ()}, ValueError, "at least one size"),
    "no round": ({"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
    "no worker": ({"workers": 0}, ValueError, r"workers must be a whole number in 1\.\.256, got 0"),
    "too many workers": ({"workers": 1000}, ValueError, r"in 1\.\.256, got 1000"),
    "another device": ({"device": "tpu"}, ValueError, "device must be 'cpu' or 'gpu', got 'tpu'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_setting_raises(wrong: str) -> None:
    settings, error, said = WRONG[wrong]
    with pytest.raises(error, match=said):
        BenchConfig(**{"sizes": (LITTLE,), **settings})


def test_peers_that_are_not_installed_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[[str], Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else found(name) or True)
    with pytest.raises(
        ImportError, match=r'PyTorch, PEFT and transformers \(peft missing\): pip install "lora_np\[parity'
    ):
        BenchConfig((LITTLE,), peers=True)
    assert not BenchConfig((LITTLE,)).peers


def test_the_face_of_the_package_has_what_its_example_needs() -> None:
    assert set(public.__all__) >= {"bench", "BenchConfig", "markdown", "SIZES"}
    assert isinstance(SizeReport(LITTLE, 1, measured(), measured("full")).to_full.median, float)
    assert math.isclose(measured().median, 2.0)


def test_a_child_imports_nothing_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("typing", "numpy", "lora_np", "threadpoolctl"):
        (tmp_path / f"{name}.py").write_text(f"open('executed-{name}', 'w').close()\n")
    assert subprocess.run([sys.executable, "-c", "import threadpoolctl"], check=True).returncode == 0
    (tmp_path / "executed-threadpoolctl").unlink()  # contrast: it is there to be imported
    child = Process(Task("lora", SIZES["tiny"], workers=1))
    try:
        assert child.wait() == {"ready": True}
    finally:
        child.end()
    assert not list(tmp_path.glob("executed-*"))


# ------------------------------------------------------------------------------------------------------ the command


def command(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
    hurried = f"import lora_np.bench.measure as m; vars(m).update({HURRIED})"
    line = [sys.executable, "-c", f"{hurried}; from lora_np.cli import main; main()", "bench", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, text=True, env=unmeasured({}), **pipes, **settings)


def test_the_command_writes_its_folder_and_prints_json(
    report: BenchReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a report that is there already; the test below measures with the real command."""
    asked: list[BenchConfig] = []
    monkeypatch.setattr(public, "bench", lambda config, watch: asked.append(config) or report)
    line = ["--sizes", "tiny,small", "--batch", "2", "--rounds", "1", "--workers", "1", "--json"]
    assert code_of(["bench", *line, "--out", str(tmp_path / "found")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert asked == [BenchConfig((named_size("tiny", 2), named_size("small", 2)), rounds=1, workers=1)]
    assert said == json.loads(json.dumps(report.as_dict()))
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == [MARK, "bench.json", "bench.md", "bench.png"]
    assert json.loads((tmp_path / "found/bench.json").read_text()) == said
    assert (tmp_path / "found/bench.md").read_text() == markdown(report)


def test_an_interrupt_ends_every_process_and_leaves_nothing(tmp_path: Path) -> None:
    child = command("--sizes", "tiny", "--out", "found", cwd=tmp_path)
    assert child.stderr is not None
    assert "timing 1/" in child.stderr.readline()
    pids = [int(pid) for pid in subprocess.check_output(["pgrep", "-P", str(child.pid)], text=True).split()]
    assert pids
    child.send_signal(signal.SIGINT)
    _, progress = child.communicate(timeout=300)
    assert child.returncode == 130
    assert progress.splitlines()[-1] == "lora-np: interrupted"
    assert not any(map(alive, pids))
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_a_real_model_names_it_as_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_np import installed
    from lora_np.bench.real import RealConfig, RealReport, table_of

    save_model(tmp_path / "weights", model(dtype=np.float32))
    monkeypatch.setattr(installed, "place_of", lambda name: tmp_path / "weights" if name == "smollm2" else None)
    for base, name in (("smollm2", "smollm2"), (str(tmp_path / "weights"), "smollm2")):
        config = RealConfig(base, batch=1, seq=4, rounds=1)
        measured = tuple(Measured(task.workload, task.size, 8, (1.0,), 10**6, (), 0.5) for task in config.tasks)
        report = RealReport(config, "a machine", measured)
        title, _, rows = table_of(report)
        assert title == f"A LoRA step on {name}, rank 8 on qv, 1 sequences of 4 tokens"
        assert [row[0] for row in rows] == ["float32", "float16", "bfloat16"]
        assert report.as_dict()["name"] == name
    other = tmp_path / "other"
    save_model(other, model(dtype=np.float32))
    assert str(other) in table_of(RealReport(RealConfig(str(other), 1, 4), "a machine", measured))[0]
