"""What a person at the prompt expects: a version, completion, whole sentences, tables that fold, an open report."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import few_shapes
from hypothesis import given
from hypothesis import strategies as st

import lora_np_command
from lora_np.bench import SIZES
from lora_np.cli import app, code_of, completing
from lora_np.cli.browsing import opened
from lora_np.cli.options import first_paragraph
from lora_np.cli.tables import fitting, paragraph, table, unbroken
from lora_np.config import READS, SHAPES
from lora_np.converting import FORMATS as TO
from lora_np.engine.halves import HALVES
from lora_np.engine.mapping import ENGINES
from lora_np.installed import INSTALLED
from lora_np.merges.recipes import RECIPES
from lora_np.methods import METHODS
from lora_np.paper.sections import SECTIONS
from lora_np.tasks import FORMATS
from lora_np.tasks.table import TASKS
from lora_np.version import __version__

BARE = """
import sys
sys.argv = ["lora-np", *sys.argv[1:]]
from lora_np_command import main
try:
    main()
finally:
    heavy = sorted({"numpy", "autograd", "matplotlib"} & set(sys.modules))
    assert not heavy, heavy
"""


def bare(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a Python of its own, which must import neither NumPy nor autograd."""
    settings = {**os.environ, "PYTHONUTF8": "1", "COLUMNS": "80", **env}
    return subprocess.run(
        [sys.executable, "-c", BARE, *arguments], env=settings, capture_output=True, text=True, timeout=300
    )


# version


def test_the_version_is_said_at_once_and_by_the_command_itself(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = bare("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"lora-np {__version__}\n", "")
    assert code_of(["--version"]) == 0
    assert capfd.readouterr().out == f"lora-np {__version__}\n"
    assert code_of(["--version", "adapt"]) == 0  # before anything else is looked at

    def full(*_: Any) -> int:
        raise OSError

    monkeypatch.setattr(lora_np_command, "os", SimpleNamespace(write=full))
    assert not lora_np_command._version_said()  # then the command says it, and why it cannot


def test_a_help_text_needs_no_numpy() -> None:
    result = bare("adapt", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--targets" in result.stdout


# help


def help_at(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert code_of(["--help"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", [80, 60])
def test_the_root_help_is_made_of_whole_sentences(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = help_at(columns, capsys, monkeypatch)
    assert max(map(len, lines)) <= columns
    said = " ".join(" ".join(lines).split())
    assert "..." not in said.replace("[ARGS]...", "")
    for command in app.registered_commands:
        assert command.callback is not None
        sentence = first_paragraph(command.callback.__doc__)
        assert sentence in said
        assert sentence[-1] in ".?", sentence


def test_at_80_columns_every_command_takes_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = help_at(80, capsys, monkeypatch)
    for command in app.registered_commands:
        assert command.callback is not None
        assert any(line.endswith(first_paragraph(command.callback.__doc__)) for line in lines), command.callback


# completion


def completed(line: str, shell: str = "bash") -> list[str]:
    """What a shell is told for this line, its last word being typed."""
    words = line.split(" ")
    asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
    result = bare(_LORA_NP_COMPLETE=f"complete_{shell}", _TYPER_COMPLETE_FISH_ACTION="get-args", **asked)
    assert (result.returncode, result.stderr) == (0, "")
    return [said for said in result.stdout.splitlines() if said]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lora-np ad", ["adapt"]),
        ("lora-np adapt x --method prefix-", ["prefix-embedding", "prefix-layer", "prefix-kv"]),
        ("lora-np adapt x --targets qv,attention.o", ["qv,attention.output"]),
        ("lora-np adapt --base ./m", []),  # the shell completes files
    ],
)
def test_commands_options_and_words_complete(line: str, expected: list[str]) -> None:
    assert completed(line) == expected


def test_options_complete_with_what_they_mean_one_a_line_in_fish_and_zsh() -> None:
    found = completed("lora-np adapt --t", "fish")
    assert [line.split("\t")[0] for line in found] == ["--task", "--targets", "--tied-head", "--truncate"]
    assert all(line.count("\t") == 1 for line in found)
    (line,) = completed("lora-np params --met", "zsh")
    assert line.startswith("_arguments '*: :((")
    assert '"--method"' in line


WORDS: dict[str, tuple[Any, Any]] = {
    "METHOD_NAMES": (completing.METHOD_NAMES, METHODS),
    "TASK_NAMES": (completing.TASK_NAMES, TASKS),
    "FILE_FORMATS": (completing.FILE_FORMATS, FORMATS),
    "SECTION_NAMES": (completing.SECTION_NAMES, SECTIONS),
    "SIZE_NAMES": (completing.SIZE_NAMES, SIZES),
    "RECIPE_NAMES": (completing.RECIPE_NAMES, RECIPES),
    "READ_NAMES": (completing.READ_NAMES, READS),
    "HALF_NAMES": (completing.HALF_NAMES, HALVES),
    "TO_NAMES": (completing.TO_NAMES, TO),
    "ENGINE_NAMES": (completing.ENGINE_NAMES, [name.replace("HOST:PORT", "") for name in ENGINES]),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_words_that_are_written_out_are_those_of_the_tables(name: str) -> None:
    written, meant = WORDS[name]
    assert sorted(written) == sorted(meant)


def test_bases_and_models_complete_by_name() -> None:
    assert completing.bases("") == list(INSTALLED)
    assert completing.models("gpt2-") == [name for name in SHAPES if name.startswith("gpt2-")]
    assert completing.several(("a", "ab", "b"))("ab,a") == ["ab,a"]  # what was said is not said again


def with_options() -> list[tuple[str, str, Any]]:
    """(command, option, parameter) of every option that takes a word."""
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    return [(name, p.opts[0], p) for name, command in commands.items() for p in command.params]


def test_every_option_whose_help_lists_words_completes_them() -> None:
    for command, option, parameter in with_options():
        if (command, option) != ("inspect", "--base") and option in (
            "--base",
            "--method",
            "--targets",
            "--device",
            "--engine",
            "--to",
            "--format",
            "--task",
        ):
            assert parameter._custom_shell_complete is not None, (command, option)


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@needs_bash
def test_a_real_bash_completes_after_one_line(tmp_path: Path) -> None:
    """`eval "$(lora-np --show-completion)"`, as the README has it, and then TAB."""
    (tmp_path / "lora-np").write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'lora-np'\nfrom lora_np_command import main\nmain()\n"
    )
    (tmp_path / "lora-np").chmod(0o755)
    script = (
        'eval "$(lora-np --show-completion)"; COMP_WORDS=(lora-np merge --recipe pe); COMP_CWORD=3; '
        '_lora_np_completion lora-np; echo "${COMPREPLY[@]}"; complete -p lora-np'
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    result = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert result.stderr == ""
    assert result.stdout.splitlines()[0] == "peft peft_safe"
    assert "-o default" in result.stdout  # and files where no word begins so
    done = subprocess.run(
        ["bash", "-c", "lora-np --install-completion; true"], env=env, capture_output=True, text=True, timeout=300
    )
    assert "bash completion installed in" in done.stdout, done.stderr
    assert "lora-np.sh" in (tmp_path / ".bashrc").read_text()


def test_where_the_shell_cannot_be_told_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shellingham

    def unknown() -> None:
        raise shellingham.ShellDetectionFailure

    for of, said in (
        (unknown, "which one this is cannot be told"),
        (lambda: ("tcsh", "/bin/tcsh"), "this one is tcsh"),
    ):
        monkeypatch.setattr(shellingham, "detect_shell", of)
        assert code_of(["--show-completion"]) == 2
        line = capsys.readouterr().err
        assert said in line
        assert line.count("\n") == 1


# tables


def shown_at(columns: int, rows: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, head: Any = None) -> str:
    head = head or tuple(f"head {i}" for i in range(len(rows[0])))
    with contextlib.redirect_stdout(Screen()) as said:
        monkeypatch.setenv("COLUMNS", str(columns))
        table("What was found", head, rows)
    return re.sub(r"\x1b\[[\d;]*m", "", said.getvalue())


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


ROWS = [
    ("model.layers.0.self_attn.q_proj.weight", "holds", "1.52e-05", "1.53e-05", "0.995", "0.99873 … 1.00115", "0.9%"),
    (
        "model.layers.1.self_attn.q_proj.weight",
        "not_merged",
        "2.11e-03",
        "1.09e-06",
        "1933.656",
        "-",
        "12,345 B = 12 kB",
    ),
]


@pytest.mark.parametrize("columns", [24, 40, 60, 80, 120])
def test_a_table_loses_no_line_and_cuts_no_figure(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown_at(columns, ROWS, monkeypatch)
    lines = said.splitlines()
    assert max(map(len, lines)) <= columns
    for row in ROWS:
        for cell in row[1:]:
            assert any(cell in line for line in lines), cell
        assert row[0] in "".join(line.strip() for line in lines)
    assert all(f"head {i}" in " ".join(said.split()) for i in range(1, 7))


def test_prose_beside_figures_is_folded_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("Adam's moments, all of them trained together", "995,518,464 B = 995.5 MB")]
    said = shown_at(60, rows, monkeypatch)
    assert "995,518,464 B = 995.5 MB" in said
    assert "───" in said  # still a table
    assert "Adam's moments, all of them trained together" in " ".join(
        said.replace("995,518,464 B = 995.5 MB", "").split()
    )


@few_shapes
@given(st.lists(st.tuples(st.text("ab 1.", max_size=40), st.text("xyz 7e-", max_size=40)), min_size=1, max_size=3),
       st.integers(20, 90))  # fmt: skip
def test_columns_never_exceed_the_width_and_never_cut_a_word(rows: list[tuple[str, str]], width: int) -> None:
    widths = fitting(rows, width)
    if widths is not None:
        assert sum(widths) + 3 * len(widths) + 1 <= width
        for row in rows:
            assert all(len(word) <= w for cell, w in zip(row, widths, strict=True) for word in unbroken(cell))
    lines = paragraph(("one", "two"), rows[0], width)
    assert all(len(line) <= width for line in lines)


def test_what_a_terminal_would_obey_is_escaped_in_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\\x1b]0;" in shown_at(80, [("name\x1b]0;evil\x07", "1")], monkeypatch)


# study --open


def studied(monkeypatch: pytest.MonkeyPatch, folder: Path, holds: bool = True) -> int:
    from lora_np.paper import study, summary

    monkeypatch.setattr(study, "study", lambda *_, **__: SimpleNamespace(holds=holds))
    monkeypatch.setattr(summary, "ranks", lambda result: "")
    return code_of(["study", "--out", str(folder), "--open"])


def test_the_report_is_opened_and_where_there_is_no_browser_its_path_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(webbrowser, "get", lambda: SimpleNamespace(open=lambda url: not seen.append(url)))
    assert studied(monkeypatch, tmp_path / "a b") == 0
    assert seen == [(tmp_path / "a b" / "report.html").as_uri()]
    assert "no browser" not in capsys.readouterr().out

    def none() -> None:
        raise webbrowser.Error("could not locate runnable browser")

    for get in (none, lambda: SimpleNamespace(open=lambda url: False)):
        monkeypatch.setattr(webbrowser, "get", get)
        for holds, code in ((True, 0), (False, 1)):
            assert studied(monkeypatch, tmp_path / "s", holds) == code
            assert f"no browser is there to open it: {tmp_path / 's' / 'report.html'}" in capsys.readouterr().out


def test_a_browser_inside_the_terminal_is_not_started_where_nobody_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    browser = webbrowser.GenericBrowser("w3m")
    monkeypatch.setattr(browser, "open", lambda url: not started.append(url))
    monkeypatch.setattr(webbrowser, "get", lambda: browser)
    monkeypatch.delenv("BROWSER", raising=False)
    assert not opened(Path("report.html"))
    assert started == []
    monkeypatch.setenv("BROWSER", "wslview")  # somebody chose it
    assert opened(Path("report.html"))
    assert started == [Path("report.html").absolute().as_uri()]
