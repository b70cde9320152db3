"""A base, an adapter of PEFT and its merge as folders, made of random numbers: no other library is needed."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from formats_files import write_file, write_peft

from lora_np.cli import code_of
from lora_np.formats.tensors import dtype_of

LAYER = "model.layers.0."
Q, GATE, UP = f"{LAYER}self_attn.q_proj", f"{LAYER}mlp.gate_proj", f"{LAYER}mlp.up_proj"
D, RANK, ALPHA = 64, 4, 12.0
SIZES = (0.2, 0.02, 0.002)  # of an update beside its weights
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class World:
    """What lies in the three folders of `root`, and what is verified there."""

    root: Path
    base: Arrays
    factors: dict[str, tuple[np.ndarray, np.ndarray]]  # module: A, B
    scale: float = ALPHA / RANK

    def change(self, module: str = Q) -> np.ndarray:
        """s·BA in float32, as PEFT computes it on a CPU."""
        A, B = (factor.astype(np.float32) for factor in self.factors[module])
        return (B @ A) * np.float32(self.scale)

    def plain(self, changes: dict[str, np.ndarray] | None = None) -> Arrays:
        """The base and these changes, or the right ones, added as PEFT adds them: in float32 or wider, rounded once."""
        changes = {module: self.change(module) for module in self.factors} if changes is None else changes
        new = {f"{m}.weight": (self.base[f"{m}.weight"] + d).astype(self.base[f"{m}.weight"].dtype)
               for m, d in changes.items()}  # fmt: skip
        return {**self.base, **new}

    def verified(self, merged: Arrays) -> tuple[int, dict[str, Any]]:
        """Exit code and JSON of the real command on these merged tensors."""
        number = len(list(self.root.glob("merged*")))
        write_file(self.root / f"merged{number}" / "model.safetensors", merged)
        return command("verify", self.root / "adapter", self.root / f"merged{number}", "--base", self.root / "base")


def command(*arguments: Any) -> tuple[int, dict[str, Any]]:
    """A command in this process, with --json."""
    code, said = said_by(*arguments, "--json")
    return code, json.loads(said)


def said_by(*arguments: Any) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = code_of(list(map(str, arguments)))
    return code, said.getvalue()


def world(root: Path, size: float = 0.02, dtype: str = "float32", modules: Any = (Q,), **config: Any) -> World:
    """A Llama-like layer in this type, and an adapter in float32 whose updates are `size` times its weights."""
    rng, kind = np.random.default_rng(3), dtype_of(dtype)
    shapes = {Q: (D, D), GATE: (D + 32, D), UP: (D + 32, D)}
    base = {f"{module}.weight": rng.standard_normal(shape) for module, shape in shapes.items()}
    base = {name: array.astype(kind) for name, array in (base | {"model.norm.weight": np.ones(D)}).items()}
    factors = {}
    for module in modules:
        A, B = rng.standard_normal((RANK, D)), rng.standard_normal((shapes[module][0], RANK))
        B *= size / (ALPHA / RANK * np.sqrt(RANK))
        factors[module] = A.astype(np.float32), B.astype(np.float32)
    write_file(root / "base" / "model.safetensors", base)
    (root / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    leaves = {f"{m}.lora_{x}.weight": f for m, pair in factors.items() for x, f in zip("AB", pair, strict=True)}
    write_adapter(root, leaves, **config)
    return World(root, base, factors)


def write_adapter(root: Path, leaves: Arrays, **config: Any) -> None:
    (root / "adapter").mkdir()
    write_peft(root / "adapter", leaves, **{"r": RANK, "lora_alpha": ALPHA, **config})
