import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import moved, rescaled

from lora_np import adaptation, figures, files, gradients, proofs
from lora_np.config import TransformerConfig
from lora_np.disk import folders
from lora_np.disk.marks import MARK
from lora_np.lora import adapters, delta
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.model import initialize
from lora_np.paper import report, results, study
from lora_np.parameters import with_parameters
from lora_np.wrappers import merge

CONFIG = results.StudyConfig(ranks=(1, 2), steps=6, batch_size=4, examples=40, held_out=0.2, evaluations=3)
VOID = {"meta", "br", "hr", "img", "link", "input"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = TransformerConfig(vocab=256, context=256, d_model=16, layers=2, heads=2)
    folder = tmp_path_factory.mktemp("base") / "model"
    files.save_model(folder, initialize(sizes, np.random.default_rng(0)))
    return folder


def few_gradients(seed: int, watch: Callable[..., Iterable[Any]], device: str) -> gradients.Report:
    """The check of one operation instead of all; `gradcheck` itself has its own tests."""
    cases = list(gradients.operation_cases(seed))[:1]
    return gradients.Report(seed, tuple(row for case in watch(cases) for row in gradients.check(case)))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few gradients, and empty pictures, which take most of the time of a small study: `made` has real ones."""
    monkeypatch.setattr(gradients, "gradcheck", few_gradients)
    monkeypatch.setattr(figures, "svg", lambda figure: "<svg></svg>")
    monkeypatch.setattr(figures, "save", lambda figure, path: path.touch())


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, results.StudyResult]:
    """A study that is complete, and its folder."""
    out = tmp_path_factory.mktemp("study") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "gradcheck", few_gradients)
        return out, study.study(out, CONFIG, base=base)


def stop_at(label: str, after: int = 2) -> Callable[..., Iterator[Any]]:
    """A `watch` with Ctrl-C in the middle of the work called `label`."""

    def watch(items: Iterable[Any], what: str, total: int, done: int, show: Any) -> Iterator[Any]:
        for number, item in enumerate(items, 1):
            if what == label and number == after:
                raise KeyboardInterrupt
            yield item

    return watch


# --------------------------------------------------------------------------------------------------- a whole study


def test_a_study_leaves_a_complete_folder(made: tuple[Path, results.StudyResult]) -> None:
    out, result = made
    assert result.holds, result.claims
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    pictures = {"learning_curves.png", "loss_against_rank.png", "merge_error.png"}
    of_ranks = {f"adapters/rank-{r}/adapter.{kind}" for r in (1, 2) for kind in ("json", "safetensors")}
    assert names == {MARK, "report.html", "study.json", *pictures, *of_ranks}
    assert not folders.partial_folder(out).exists()


def test_the_json_holds_every_number_of_the_result(made: tuple[Path, results.StudyResult]) -> None:
    out, result = made
    read = json.loads((out / "study.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read == json.loads(json.dumps(result.as_dict()))
    assert results.Run.from_dict(read["runs"][1]) == result.runs[1]


def test_parameters_are_counted_three_ways(made: tuple[Path, results.StudyResult]) -> None:
    out, result = made
    for run, rank in zip(result.runs, (1, 2), strict=True):
        assert run.predicted == run.counted == run.stored == 2 * 2 * rank * (16 + 16)
        assert run.file_bytes == run.header_bytes + 4 * run.stored
        assert run.file_bytes == (out / f"adapters/rank-{rank}/adapter.safetensors").stat().st_size


def test_a_learning_curve_starts_at_the_base_and_ends_at_the_loss(
    made: tuple[Path, results.StudyResult], base: Path
) -> None:
    out, result = made
    plain = files.load_model(base)
    adapted, lora = files.load_adapter(out / "adapters/rank-2", plain)
    assert lora == CONFIG.lora(2)
    task = study.Task.draw(CONFIG, plain)
    assert [step for step, _ in result.runs[1].held_out] == [0, 2, 4, 6]
    assert result.runs[1].held_out[0][1] == result.base_loss
    assert result.runs[1].loss == task.held_out.bits_per_byte(adapted)
    assert result.runs[1].loss < result.base_loss - 0.01
    assert len(result.runs[1].losses) == CONFIG.steps


def test_the_merge_is_proved_for_every_adapted_map(made: tuple[Path, results.StudyResult]) -> None:
    _, result = made
    for run in result.runs:
        assert [p.path for p in run.maps] == [f"blocks.{i}.attention.{n}" for i in (0, 1) for n in ("query", "value")]
        assert all(0 < proof.gap <= proof.bound < proof.effect for proof in run.maps)
        assert 0 < run.used <= 1
        assert run.certificate.holds


def test_the_same_study_again_finds_the_same(
    made: tuple[Path, results.StudyResult], base: Path, tmp_path: Path
) -> None:
    again = study.study(tmp_path / "out", CONFIG, base=base)
    assert timeless(again) == timeless(made[1])


def timeless(result: results.StudyResult) -> results.StudyResult:
    runs = tuple(replace(run, seconds=0.0, step_seconds=0.0) for run in result.runs)
    return replace(result, seconds=0.0, runs=runs)


def test_what_is_done_is_said_line_by_line(base: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    result = study.study(tmp_path / "out", replace(CONFIG, ranks=(2,)), base=base, say=lines.append)
    assert [line.split(":")[0] for line in lines] == ["gradients", "base", "rank-2"]
    assert f"{result.runs[0].predicted:,} predicted" in lines[2]
    assert f"{result.runs[0].loss:.4f} bits per held-out byte" in lines[2]


# ------------------------------------------------------------------------------------------------------- the report


class Page(HTMLParser):
    """Checks that tags are closed in order; collects names, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_well_formed_and_needs_nothing_else(made: tuple[Path, results.StudyResult]) -> None:
    text = (made[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.tags.count("svg") == 3
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("#") for name, value in page.attributes if name.endswith(("href", "src")))
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_report_shows_the_numbers_of_the_run(made: tuple[Path, results.StudyResult]) -> None:
    out, result = made
    text = Page((out / "report.html").read_text(encoding="utf-8")).text
    assert "Everything holds." in text
    for run in result.runs:
        for number in (
            f"{run.counted:,}",
            f"{run.file_bytes:,}",
            f"{run.loss:.4f}",
            f"{run.certificate.model.gap:.1e}",
        ):
            assert number in text
    for shown in (f"{result.base_loss:.4f}", f"{result.floor:.4f}", result.example.prompt, np.__version__, "seed 0"):
        assert shown in text
    assert "may be chance" in text


def test_the_report_says_what_does_not_hold(made: tuple[Path, results.StudyResult]) -> None:
    wrong = replace(made[1], base_digest="another")
    text = Page(report.report(wrong)).text
    assert "Something does not hold." in text
    assert "✗ does not hold the frozen base is unchanged" in text
    assert "not the same after every run" in text


def test_text_in_the_report_is_escaped(made: tuple[Path, results.StudyResult]) -> None:
    runs = tuple(replace(run, sample="<script>\x00 & more") for run in made[1].runs)
    text = report.report(replace(made[1], runs=runs, base_sample=""))
    assert "&lt;script&gt;\N{REPLACEMENT CHARACTER} &amp; more" in text
    assert "(nothing)" in Page(text).text
    assert "script" not in Page(text).tags


def test_several_seeds_give_intervals(base: Path, tmp_path: Path) -> None:
    result = study.study(tmp_path / "out", replace(CONFIG, seeds=2), base=base)
    assert result.holds
    assert {path.name for path in (tmp_path / "out/adapters").iterdir()} == {
        f"rank-{rank}-seed-{seed}" for rank in (1, 2) for seed in (0, 1)
    }
    first, second = (run.loss for run in result.of_rank(2))
    assert first != second
    width = 12.706 * abs(first - second) / 2  # Student's t with one degree of freedom
    assert report.half_width(result.of_rank(2)) == pytest.approx(width)
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert f"{(first + second) / 2:.4f} ± {width:.4f}" in text
    assert "may be chance" not in text


# --------------------------------------------------------------------------------------------------- planted faults


def wrong_scale(model: Any) -> Any:
    return merge(rescaled(model, 1.001))


def in_place(model: Any) -> Any:
    for module in adapters(model).values():
        module.base.W[...] += delta(module)
    return study.unwrapped(model)


def different(seed: int, watch: Any, device: str) -> gradients.Report:
    first, *others = few_gradients(seed, watch, device).rows
    return gradients.Report(seed, (replace(first, verdict="different"), *others))


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "every gradient": (gradients, "gradcheck", different),
    "a fresh adapter": (study, "adapt", lambda *arguments: moved(adapt(*arguments))),
    "predicted = counted": (LoraConfig, "numbers", lambda lora, config: lora.rank),
    "the frozen base": (study, "merge", in_place),
    "every merged map": (study, "merge", wrong_scale),
    "every merged model": (study, "merge", wrong_scale),
}


@pytest.mark.parametrize("claim", FAULTS)
def test_a_planted_fault_is_found(claim: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[claim])
    result = study.study(tmp_path / "out", replace(CONFIG, ranks=(2,)), base=base)
    assert not result.holds
    assert [holds for name, holds in result.claims.items() if name.startswith(claim)] == [False]
    assert json.loads((tmp_path / "out/study.json").read_text())["holds"] is False


def test_a_file_with_other_numbers_is_found(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = files.save_adapter

    def rounded(folder: Any, model: Any, method: Any, base: Any) -> None:
        arrays = {name: np.round(array, 3) for name, array in method.trained(model).items()}
        save(folder, with_parameters(model, arrays), method, base)

    monkeypatch.setattr(adaptation, "save_adapter", rounded)
    result = study.study(tmp_path / "out", replace(CONFIG, ranks=(2,)), base=base)
    assert [claim for claim, holds in result.claims.items() if not holds] == [
        "the file gives back the adapter bit for bit"
    ]


def test_an_adapter_that_does_nothing_proves_nothing(made: tuple[Path, results.StudyResult]) -> None:
    proof = proofs.MapProof("query", gap=0.0, bound=1e-4, effect=0.0)
    assert not proof.holds
    assert not proofs.MapProof("query", gap=1e-6, bound=0.0, effect=1.0).holds
    assert proofs.MapProof("query", gap=1e-6, bound=0.0, effect=1.0).used == np.inf
    assert not proofs.MapProof("query", gap=np.nan, bound=1e-4, effect=1.0).holds


def test_a_study_without_adapters_holds_nothing(made: tuple[Path, results.StudyResult]) -> None:
    assert not replace(made[1], runs=()).holds


# ------------------------------------------------------------------------------------------------- stop and resume


def test_a_stopped_study_leaves_no_folder_and_goes_on_where_it_was(
    made: tuple[Path, results.StudyResult], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lines = tmp_path / "out", list[str]()
    with pytest.raises(KeyboardInterrupt):
        study.study(out, CONFIG, base=base, watch=stop_at("rank-2"), say=lines.append)
    assert not out.exists()
    assert "--resume" in lines[-1]

    fitted: list[str] = []

    def watch(items: Iterable[Any], what: str, *_: Any) -> Iterable[Any]:
        fitted.append(what)
        return items

    result = study.study(out, CONFIG, base=base, resume=True, watch=watch)
    assert fitted == ["rank-2"]
    assert timeless(result) == timeless(made[1])
    assert not folders.partial_folder(out).exists()


def test_an_unfinished_study_is_neither_lost_nor_mixed_with_another(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        study.study(out, CONFIG, base=base, watch=stop_at("rank-1"))
    with pytest.raises(FileExistsError, match="unfinished study: continue it with --resume"):
        study.study(out, CONFIG, base=base)
    with pytest.raises(ValueError, match=r"another study: steps was 6, now it is 7"):
        study.study(out, replace(CONFIG, steps=7), base=base, resume=True)
    assert study.study(out, replace(CONFIG, steps=7, ranks=(1,)), base=base, overwrite=True).holds


def test_a_damaged_part_is_refused(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        study.study(out, CONFIG, base=base, watch=stop_at("rank-1"))
    part = folders.partial_folder(out) / study.PARTS / "gradients.json"
    part.write_text("{}")
    with pytest.raises(ValueError, match="'of' is missing"):
        study.study(out, CONFIG, base=base, resume=True)


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def retrained(path: Path) -> None:
    """An adapter of the same base that is another one, whole and consistent in itself."""
    arrays, _ = files.read_arrays(path / "adapter.safetensors")
    about = {files.ABOUT: (path / "adapter.json").read_text()}
    files.write_arrays(path / "adapter.safetensors", {name: 2 * array for name, array in arrays.items()}, about)


def flattered(path: Path) -> None:
    """A part that says something better than was found."""
    part = json.loads(path.read_text())
    part["result"]["held_out"][-1][1] = 0.5
    path.write_text(json.dumps(part))


def emptied(path: Path) -> None:
    part = json.loads(path.read_text())
    path.write_text(json.dumps({**part, "result": {}}))


CHANGES: list[tuple[str, Callable[[Path], None], str | None]] = [
    ("parts/rank-1.json", removed, None),  # it is made again
    ("parts/rank-1.json", flattered, "is damaged, or was changed"),
    ("parts/rank-1.json", emptied, "is damaged, or was changed"),
    ("parts/gradients.json", emptied, "is damaged, or was changed"),
    ("parts/rank-1.json", lambda path: path.write_text("{"), "is not JSON"),
    ("adapters/rank-1", removed, "adapter.json is missing"),
    ("adapters/rank-1/adapter.safetensors", removed, "adapter.safetensors is missing"),
    ("adapters/rank-1/adapter.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated"),
    ("adapters/rank-1", retrained, "is not the adapter that was measured"),
]


def test_what_was_changed_while_a_study_was_stopped_is_named_with_what_to_do(base: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped.partial"
    with pytest.raises(KeyboardInterrupt):
        study.study(tmp_path / "stopped", CONFIG, base=base, watch=stop_at("rank-2"))
    for number, (name, change, words) in enumerate(CHANGES):
        out = tmp_path / f"out{number}"
        shutil.copytree(stopped, folders.partial_folder(out))
        change(folders.partial_folder(out) / name)
        settings: Any = {"base": base, "resume": True}
        if words is None:
            assert study.study(out, CONFIG, **settings).holds
            continue
        with pytest.raises(ValueError, match=words) as found:
            study.study(out, CONFIG, **settings)
        assert "--resume: it is made again" in str(found.value)
        assert not out.exists()


def test_there_must_be_something_to_resume(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        study.study(tmp_path / "out", CONFIG, base=base, resume=True)
    assert not list(tmp_path.iterdir())


def test_a_finished_study_is_not_overwritten_unasked(made: tuple[Path, results.StudyResult], base: Path) -> None:
    before = (made[0] / "report.html").read_bytes()
    with pytest.raises(FileExistsError, match="exists"):
        study.study(made[0], CONFIG, base=base)
    assert (made[0] / "report.html").read_bytes() == before


# ------------------------------------------------------------------------------------------------------------ config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": ()}, "ranks must be different"),
        ({"ranks": (2, 2)}, "ranks must be different"),
        ({"ranks": (0,)}, "rank must be a whole number"),
        ({"targets": "tokens"}, "targets must be one of qv"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"seeds": 11}, "seeds must be at most 10"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
    ],
)
def test_settings_outside_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_the_full_study_is_longer_and_has_seeds() -> None:
    plain, full = results.StudyConfig(), results.StudyConfig.full()
    assert full.ranks == plain.ranks == (1, 2, 4, 8, 16)
    assert full.steps > plain.steps
    assert full.seeds > 1
    assert max(full.points) == full.steps
    assert dataclasses.asdict(full)["targets"] == "qv"


def test_no_example_is_seen_twice_in_training() -> None:
    for config in (results.StudyConfig(), results.StudyConfig.full()):
        assert config.steps * config.batch_size <= config.examples * (1 - config.held_out)
