r"""What the commands share: their options, how text becomes settings, and how findings are printed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
import typer.core

from .completing import ENGINE_NAMES, HALF_NAMES, METHOD_NAMES, among, bases, presets
from .streams import printable
from .tables import table as table

GROUPS = ("learn", "adapt", "check", "convert", "measure")
ENDS = {
    "-h, --help": "Show this message; behind a command, its options and an example.",
    "--version": "Say it; with --install-completion TAB completes names.",
}


class Groups(typer.core.TyperGroup):
    """The commands by what a person wants, on one screen: `@app.command(rich_help_panel="check")` names the group."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[Any]] = {group: [] for group in GROUPS}
        for command in self.commands.values():
            groups.setdefault(getattr(command, "rich_help_panel", None) or "more", []).append(command)
        first, second = (max(map(len, names)) for names in (groups, self.commands))
        formatter.write("\n")
        for group, commands in groups.items():
            for number, command in enumerate(commands):
                head = f"  {'' if number else group:{first}}  {command.name:{second}}  "
                lines = textwrap.wrap(first_paragraph(command.help), max(20, formatter.width - len(head)))
                formatter.write(head + f"\n{' ' * len(head)}".join(lines) + "\n")
        formatter.write("\n")
        for names, said in ENDS.items():
            lines = textwrap.wrap(said, max(20, formatter.width - 14))
            formatter.write(f"  {names:10}  " + f"\n{' ' * 14}".join(lines) + "\n")


def first_paragraph(text: str | None) -> str:
    """How a help text begins, whole and in one line."""
    return " ".join((text or "").split("\n\n")[0].split())


app = typer.Typer(
    cls=Groups,
    help="Understand and verify low-rank adaptation, in NumPy.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from ..version import __version__

        say(f"lora-np {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Understand and verify low-rank adaptation, in NumPy."""


def named_base(base: Path | None) -> Path | None:
    """The folder or file that --base names; a model that an installed package brings has a name of one word."""
    if base is None or base.exists():
        return base
    from ..installed import base_path, unknown

    path = base_path(base)
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        raise ValueError(f"--base: {unknown(str(base))}")
    return path


Base = Annotated[
    Path | None,
    typer.Option(
        help="Model to start from: a folder, ours or of transformers, a GGUF file, or a name: smollm2, minilm, "
        "glassllm; the base that ships if left out.",
        callback=named_base,
        autocompletion=bases,
    ),
]
BaseType = Annotated[
    str | None,
    typer.Option(
        "--base-dtype",
        help="Hold the frozen base in float16 or bfloat16: half the memory of float32.",
        autocompletion=among((*HALF_NAMES, "float32")),
    ),
]
Out = Annotated[Path, typer.Option(help="Folder to write; it appears when it is complete.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists at --out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MethodName = Annotated[
    str, typer.Option("--method", help=f"One of {', '.join(METHOD_NAMES)}.", autocompletion=among(METHOD_NAMES))
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the method, as key=value; may be given several times.")
]
Rank = Annotated[int | None, typer.Option(help="LoRA: r, the inner dimension of B A; 4 when left out.")]
Targets = Annotated[
    str | None,
    typer.Option(
        help="LoRA: qv, qkvo, attention+mlp, all-linear, or patterns with commas between; qv when left out.",
        autocompletion=presets,
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted run; the result is the same to the bit.")
]
Device = Annotated[
    str, typer.Option(help="cpu, or gpu: needs CuPy and a CUDA device.", autocompletion=among(("cpu", "gpu")))
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="inline, threads, processes or dask://HOST:PORT: who computes; no bit depends on it.",
        autocompletion=among(ENGINE_NAMES),
    ),
]
Workers = Annotated[int | None, typer.Option(help="How many of them; as many as cores when left out.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
AdapterFolder = Annotated[Path, typer.Argument(help="Adapter folder, as written by `lora-np adapt`.")]


ALL_SIZES = "tiny,small,mid,gpt2,long"


def say(line: str) -> None:
    """A finding, on stdout; a terminal is not made to obey what stands in a file."""
    print(printable(line, kept="\n\t") if sys.stdout.isatty() else line, flush=True)


def in_bytes(n: int) -> str:
    """Exact, and in decimal units."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n:,} B = {n / size:.4g} {unit}"
    return f"{n:,} B"


def held_base(base: Path | None, kind: str | None, device: str = "cpu") -> Any:
    """The model to start from, held as --base-dtype says; raises ValueError where a device would hold it otherwise."""
    from ..files import load_model

    held = None if kind == "float32" else kind
    if held and device != "cpu":
        raise ValueError(f"--base-dtype {kind} is for --device cpu: leave it out")
    return load_model(base, held=held)


def named_targets(targets: str) -> str | tuple[str, ...]:
    parts = tuple(part.strip() for part in targets.split(",") if part.strip())
    return parts[0] if len(parts) == 1 else parts


def chosen_method(name: str, pairs: list[str] | None, named: Mapping[str, Any], *, beside_head: bool = False) -> Any:
    """The method of --method with the settings of --set key=value and those that have an option of their own.

    `beside_head` it may also be "head": nothing but the head.
    A value is read as the field of that name wants it. Raises ValueError for an unknown method, setting or value.
    """
    from ..methods import BESIDE_HEAD, METHODS, method_named
    from ..names import nearest_first

    known = BESIDE_HEAD if beside_head else METHODS
    if name not in known:
        raise ValueError(f"--method must be one of {nearest_first(name, known)}; got {name!r}")
    kinds = get_type_hints(known[name])
    settings = {key: value for key, value in named.items() if value is not None}
    if isinstance(settings.get("targets"), str):
        settings["targets"] = named_targets(settings["targets"])
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {pair!r}")
        settings[key.strip()] = _read(text.strip(), kinds.get(key.strip(), str), key.strip())
    return method_named(name, settings, known)


def _read(text: str, kind: Any, key: str) -> Any:
    """A setting as the type of its field wants it: a number, true or false, names with commas between, or text."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{key} must be true or false, got {text!r}")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{key} must be a {'whole ' * (kind is int)}number, got {text!r}") from None
    if get_origin(kind) is Mapping:
        pairs = [part.strip().rpartition(":") for part in text.split(",")]
        if not all(pattern for pattern, _, _ in pairs):
            raise ValueError(f"{key} takes PATTERN:VALUE with commas between, got {text!r}")
        return {pattern: _read(value, get_args(kind)[1], key) for pattern, _, value in pairs}
    return named_targets(text) if key == "targets" else text


def sizes_of(name: str) -> Any:
    """The sizes that have this name, or those of the model in this folder or file, or of an installed package."""
    from ..config import SHAPES, named_shape
    from ..files import load_config
    from ..installed import INSTALLED, base_path
    from ..names import nearest_first

    if name in SHAPES:
        return named_shape(name)
    path = base_path(name)
    if not path.exists():
        raise ValueError(
            f"model must be one of {nearest_first(name, [*SHAPES, *INSTALLED])}, or a folder; got {name!r}"
        )
    return load_config(path)


def rates_of(text: str | None) -> dict[str, float]:
    """{pattern: factor} of --rates."""
    found: dict[str, float] = _read(text, Mapping[str, float], "--rates") if text else {}
    return found


def two_names(option: str, text: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"{option} takes two names with a comma between, got {text!r}")
    return parts[0], parts[1]


def columns_of(text: str | None) -> Any:
    """Two columns, or three where two texts stand before a label."""
    if text is None:
        return None
    parts = tuple(part.strip() for part in text.split(","))
    if not (2 <= len(parts) <= 3 and all(parts)):
        raise ValueError(f"--columns takes two names with a comma between, or three, got {text!r}")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else parts


def fraction(option: str, value: float) -> float:
    if not 0.0 < value < 1.0:
        raise ValueError(f"{option} must lie between 0 and 1, got {value}")
    return value


def seed_of(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    return seed
