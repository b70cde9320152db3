r"""What a shell is told when TAB is pressed: commands and options by typer, and here the words that an option takes.

A word list stands here where the table that it repeats would bring NumPy along: a completion is asked for at every TAB.
Tests hold them against those tables. Where no word begins as what was typed does, the shell completes files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
ASKED = ("--install-completion", "--show-completion")

METHOD_NAMES = (
    *("lora", "full", "top", "bitfit", "prefix-embedding", "prefix-layer", "prefix-kv", "lora+prefix-embedding"),
    *("lora+prefix-layer", "adapter-h", "adapter-l", "adapter-p", "compacter", "dora", "vera", "pissa", "lora+"),
    "lora-fa",
)
TASK_NAMES = ("sql", "e2e", "webnlg", "dart", "summary", "sentiment", "acceptability", "entailment", "memory", "museum")
FILE_FORMATS = ("text", "tsv", "csv", "jsonl", "e2e", "sst2", "cola", "rte", "webnlg", "dart", "wikisql")
SECTION_NAMES = (
    *("laws", "table-1", "table-2-3-4", "on-par", "figure-2", "table-5", "table-6-18", "figure-3-4-8", "intrinsic"),
    *("table-16", "variants", "placement", "heads", "shared", "adaptive", "carried", "depth", "learning-rate"),
    *("capacity", "batch-size", "forgetting", "scaling", "halves"),
)
SIZE_NAMES = ("tiny", "small", "mid", "gpt2", "long")
ENGINE_NAMES = ("inline", "threads", "processes", "dask://")
RECIPE_NAMES = ("peft", "peft_safe", "float32", "float64", "mlx", "llama_cpp")
READ_NAMES = ("first", "mean", "last")
HALF_NAMES = ("float16", "bfloat16")
TO_NAMES = ("peft", "mlx", "gguf", "lora_np")

Completer = Callable[[str], list[str]]


def among(words: Sequence[str]) -> Completer:
    """Those of the words that begin as what was typed does."""

    def able(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return able


def several(words: Sequence[str]) -> Completer:
    """The same of the last of some words with commas between."""

    def able(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        said = before.split(",")
        return [f"{before}{comma}{word}" for word in words if word.startswith(last) and word not in said]

    return able


def bases(incomplete: str) -> list[str]:
    """Models that a package brings, by name."""
    from ..installed import INSTALLED

    return among(tuple(INSTALLED))(incomplete)


def models(incomplete: str) -> list[str]:
    """Sizes that have a name, and models that a package brings."""
    from ..config import SHAPES

    return [*among(tuple(SHAPES))(incomplete), *bases(incomplete)]


def presets(incomplete: str) -> list[str]:
    """Presets of targets, and the maps of a block."""
    from ..names import ATTENTION, GATED, PRESETS

    return several((*PRESETS, *ATTENTION, *GATED, "tokens", "head"))(incomplete)


def check_shell(arguments: Sequence[str]) -> None:
    """Raise ValueError where completion is asked for, and which shell this is cannot be told."""
    if not any(asked in arguments for asked in ASKED):
        return
    import shellingham

    try:
        shell = shellingham.detect_shell()[0]
    except (shellingham.ShellDetectionFailure, OSError):
        shell = None
    if shell not in SHELLS:
        found = "which one this is cannot be told" if shell is None else f"this one is {shell}"
        raise ValueError(f"completion is there for {', '.join(SHELLS[:4])}, and {found}: ask from within such a shell")
