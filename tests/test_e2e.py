"""The whole way on real restaurant descriptions: adapt, merge, verify, generate, with the base that ships."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from shared_data import shared_data
from test_cli import done

STEPS = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with an adapter and its merged model, and what `adapt` said."""
    data = shared_data("e2e/valid.txt")
    folder = tmp_path_factory.mktemp("e2e")
    line = ["adapt", data, "--rank", 4, "--targets", "qv", "--steps", STEPS, "--batch-size", 4, "--held-out", 0.01]
    said = done(*line, "--out", "ad", cwd=folder)
    done("merge", "ad", "--out", "m", cwd=folder)
    return folder, said


@pytest.mark.slow
def test_a_few_steps_improve_the_held_out_bits_per_byte_clearly(made: tuple[Path, str]) -> None:
    _, said = made
    before, after = (float(bits) for bits in re.findall(r"(\d+\.\d{4}) bits per byte of the held-out", said))
    assert after < 0.9 * before


@pytest.mark.slow
def test_the_merged_model_is_equal_within_its_bound(made: tuple[Path, str]) -> None:
    folder, _ = made
    found = json.loads(done("verify", "ad", "m", "--json", cwd=folder))
    assert found["holds"]
    assert found["model"]["contrast"] > 1000 * found["model"]["gap"]


@pytest.mark.slow
def test_the_merged_model_answers_as_base_and_adapter_do(made: tuple[Path, str]) -> None:
    folder, _ = made
    prompt = ["--prompt", "name : Blue Spice | eat type : coffee shop | area : riverside", "--tokens", 60]
    drawn = [*prompt, "--temperature", 1.0]
    assert done("generate", *drawn, "--adapter", "ad", cwd=folder) != done("generate", *drawn, cwd=folder)  # contrast
    adapted, merged = (done("generate", *prompt, *one, cwd=folder) for one in (["--adapter", "ad"], ["--base", "m"]))
    assert merged == adapted
