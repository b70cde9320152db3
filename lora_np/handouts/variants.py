r"""Exercises with numbers of one's own: which they are follows from a name, for ever and on every machine.

An exercise that asks for a number says which sizes, ranks, scales or points it is about. A row of `VARIANTS` draws
others: {what stands in the stored notebook: what stands there for this student}. They are put into the text, the cell
and the worked answer alike, so a check is called with the student's own numbers, and a neighbour's answer is wrong.
An exercise whose answer is a function has no row: one function is right for everybody.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .notebooks import Cell, Notebook, checks_in, source_of, unexecuted, with_source

T = TypeVar("T")


class Draw:
    """Choices that follow from a student and an exercise alone; no library's generator, whose stream may change."""

    def __init__(self, student: str, check: str) -> None:
        self.digest = hashlib.sha256(f"{check}\n{student}".encode())

    def of(self, options: Sequence[T]) -> T:
        self.digest.update(b"next")
        return options[int.from_bytes(self.digest.digest()[:8], "big") % len(options)]

    def text(self, lengths: Sequence[int]) -> str:
        return "".join(self.of("abcdefghijklmnopqrstuvwxyz") for _ in range(self.of(lengths)))


def _pairs(draw: Draw) -> dict[str, str]:
    """Two pairs of prompt and reference; lengths decide the weights, so it is they that differ."""
    lengths = {"ab": range(1, 5), "xyz": range(2, 7), "q": range(1, 5), "hi": range(2, 7)}
    return {f'"{old}"': f'"{draw.text(each)}"' for old, each in lengths.items()}


def _share(draw: Draw) -> dict[Any, Any]:
    """The share of the energy, and the update whose energy it is."""
    share = draw.of(range(51, 98))
    return {"0.95": f"0.{share}", 95: share, '"blocks.2.mlp.up.W"': f'"blocks.{draw.of(range(4))}.mlp.up.W"'}


def _ways(draw: Draw) -> dict[str, str]:
    """Two of the four ways to spend a budget."""
    ways = ["rank 8 on q", "rank 8 on v", "rank 4 on q, v", "rank 2 on q, k, v, o"]
    first = draw.of(ways)
    second = draw.of([way for way in ways if way != first])
    return {'"rank 8 on v"': f'"{first}"', '"rank 2 on q, k, v, o"': f'"{second}"'}


def _last_blocks(draw: Draw) -> dict[str, str]:
    n = draw.of((2, 3, 4))
    return {
        "last 2 blocks": f"last {n} blocks",
        "blocks=2": f"blocks={n}",
        "blocks, layers = 2,": f"blocks, layers = {n},",
    }


MAPS = ("query", "key", "value", "output")


def _adapted_map(draw: Draw) -> str:
    """One of those that tutorial 09 adapts."""
    return f"blocks.{draw.of(range(4))}.attention.{draw.of(('query', 'value'))}"


def _lora_budget(draw: Draw) -> dict[Any, Any]:
    """A rank of LoRA on q, v of GPT-2 medium, and what it trains: 2 · 24 · r (1024 + 1024)."""
    rank = draw.of(range(2, 60))
    return {4: rank, 393_216: 98_304 * rank}


VARIANTS: dict[str, Callable[[Draw], Mapping[Any, Any]]] = {
    "check_cheaper_ranks": lambda of: {192: of.of(range(96, 513, 8)), 768: of.of(range(520, 2049, 8))},
    "check_rank_for_energy": _share,
    "check_factors": lambda of: {8: of.of(range(3, 33))},
    "check_multiply_adds": lambda of: {
        128: of.of(range(20, 500)),
        192: of.of(range(64, 513, 8)),
        768: of.of(range(520, 2049, 8)),
        8: of.of(range(2, 17)),
    },
    "check_alpha": lambda of: {4: of.of(range(2, 10)), 16: of.of(range(6, 49, 2)), 64: of.of(range(20, 100))},
    "check_stacked": lambda of: {
        3: of.of(range(2, 7)),
        5: of.of(range(2, 7)),
        "2.0": of.of(("1.25", "1.5", "1.75", "2.5", "3.0")),
        "0.5": of.of(("0.25", "0.75", "0.2", "0.4", "0.6")),
    },
    "check_attention": lambda of: {
        "default_rng(1)": f"default_rng({of.of(range(1000))})",
        "(2, 5, 8)": f"(2, {of.of(range(4, 8))}, {of.of(range(4, 17, 2))})",
    },
    "check_parameter_count": lambda of: {
        100: of.of(range(50, 1000)),
        32: of.of(range(16, 256)),
        64: of.of(range(32, 257, 4)),
        3: of.of(range(2, 13)),
        256: of.of(range(260, 1025, 4)),
    },
    "check_adapter_bytes": lambda of: {2: of.of(range(1, 33)), "float16": of.of(("float16", "float32"))},
    "check_weights": _pairs,
    "check_last_blocks": _last_blocks,
    "check_first_step": lambda of: {
        "0.0003": f"0.{of.of(range(1, 1000)):04}",
        "0.01": f"0.{of.of(range(1, 100)):03}",
    },
    "check_largest_rank": lambda of: {3_000_000: 100_000 * of.of(range(10, 200))},
    "check_optimizer_bytes": lambda of: {4: of.of(range(1, 65))},
    "check_paired_interval": _ways,
    "check_roundings": lambda of: {768: of.of(range(64, 2049)), 192: of.of(range(64, 2049)), 8: of.of(range(1, 65))},
    "check_factor": lambda of: {"default_rng(3)": f"default_rng({of.of(range(10_000))})"},
    "check_adapters_in_a_copy": lambda of: {12_288: of.of(range(1024, 16_385, 128)), 4: of.of(range(2, 33))},
    "check_break_even": lambda of: {4096: of.of(range(512, 8193, 64)), 16: of.of(range(2, 129))},
    "check_chance": lambda of: {4: of.of(range(2, 9)), 16: of.of(range(10, 49)), 768: of.of(range(400, 2049, 8))},
    "check_amplification": lambda of: {'"blocks.2.attention.value"': f'"{_adapted_map(of)}"'},
    "check_adapter_rank": _lora_budget,
    "check_places_left": lambda of: {393_216: 24 * 1024 * of.of(range(2, 400))},
    "check_pissa": lambda of: {"blocks[0].attention.query": f"blocks[{of.of(range(4))}].attention.{of.of(MAPS)}"},
    "check_scale": lambda of: {64: of.of((16, 25, 36, 49, 64, 81, 100, 144)), 32: of.of(range(6, 61, 2))},
    "check_vanishing": lambda of: {"22.5": repr(of.of((1.25, 1.5, 1.75)) * 2.0 ** of.of(range(-6, 11)))},
    "check_trained": lambda of: {8: of.of(range(2, 65))},
    "check_bits_per_byte": lambda of: {
        "1.6": f"{of.of(range(11, 40)) / 10}",
        200: of.of(range(101, 450)),
        860: of.of(range(500, 2001, 10)),
    },
}


def numbers(student: str, check: str) -> dict[str, str]:
    """What stands in a student's exercise in the place of what stands in the stored one; of most numbers, in each of
    the forms 3000000, 3,000,000 and 3_000_000."""
    found: dict[str, str] = {}
    drawn = VARIANTS[check](Draw(student, check)) if check in VARIANTS else {}
    for old, new in drawn.items():
        forms = ("{}", "{:,}", "{:_}") if isinstance(old, int) else ("{}",)
        for form in forms:
            found.setdefault(form.format(old), form.format(new))
    return found


def in_place(text: str, new: Mapping[str, str]) -> str:
    """A text with each of these put in the place of what it stands for, all at once, and none of them inside another
    number or word. The number of an exercise, **3.**, stays."""
    if not new:
        return text
    edges = {old: (r"(?<![\w.,*])" if old[0].isdigit() else r"(?<!\w)" if old[0].isalpha() else "") for old in new}
    ends = {old: (r"(?![\w*]|[.,_]\d)" if old[-1].isdigit() else r"(?!\w)" if old[-1].isalpha() else "") for old in new}
    any_of = "|".join(f"{edges[old]}{re.escape(old)}{ends[old]}" for old in sorted(new, key=len, reverse=True))
    return re.sub(any_of, lambda found: new[found[0]], text)


def varied(notebook: Notebook, student: str) -> Notebook:
    """A notebook, or its solutions, with the numbers of one student; nothing in it is executed.

    They stand in the cells that call a check, and in the text right above the first of them.
    """
    new = unexecuted(notebook)
    cells: list[Cell] = new["cells"]
    for i, cell in enumerate(cells):
        checks = checks_in(source_of(cell)) if cell["cell_type"] == "code" else []
        for check in dict.fromkeys(checks):
            own = numbers(student, check)
            places = [i - 1, i] if i and cells[i - 1]["cell_type"] == "markdown" else [i]
            for place in places:
                cells[place] = with_source(cells[place], in_place(source_of(cells[place]), own))
    return new


def mine(check: str, source: str) -> str:
    """The lines of an exercise with the numbers of the student whose work nbgrader is grading.

    It is the name of the folder of the submission that counts, which no student can write. Elsewhere they stay as
    they are stored.
    """
    if os.environ.get("NBGRADER_EXECUTION") != "autograde":
        return source
    return in_place(source, numbers(Path.cwd().parent.name, check))
