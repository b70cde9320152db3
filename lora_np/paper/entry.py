r"""One number of the paper beside what arithmetic gives, and the two ways to write one down: `plain` and `trained`.

Each entry carries its formula as text, in which · + − / ² and parentheses, mean(…) and ceil(…) mean what they say, so
that a reader, or a test, can evaluate it once more from the quantities given.

    L  layers    d  d_model    V  words    n  positions    r  rank    K  adapted matrices in a block
    l_p, l_i  special tokens before and behind the prompt             N  numbers of a model    T  those that are trained
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..config import SHAPES, TransformerConfig
from ..method import Method
from ..methods.bottleneck import AdapterH, AdapterL, AdapterP
from ..methods.lora import LoraConfig
from ..methods.prefix import LoraPrefixEmbedding, LoraPrefixLayer, PrefixEmbedding, PrefixLayer
from ..methods.tuning import BitFit, Full, Top
from ..names import PRESETS
from .printed import Printed, shown, verdict

Number = int | Fraction

# The encoders have the blocks of ours; their embeddings end in a layer norm, as our stream does, and n counts the rows
# of the position table and, for RoBERTa, the one of its token type. DeBERTa's are its 512 relative positions.
# Sources: Liu et al. 2019, arXiv:1907.11692; He et al. 2021, arXiv:2006.03654 (version 2, 48 layers).
MODELS = {
    **SHAPES,
    "gpt3, untied": TransformerConfig(50257, 2048, 12288, 96, 96, tied=False),
    "roberta-base": TransformerConfig(50265, 514 + 1, 768, 12, 12, causal=False),
    "roberta-large": TransformerConfig(50265, 514 + 1, 1024, 24, 16, causal=False),
    "deberta-xxl": TransformerConfig(128100, 512, 1536, 48, 24, causal=False),
}


@dataclass(frozen=True)
class Entry:
    """One number.

    place      where it is printed: "Table 4", "Section 4.2", "Repository"
    row        what it is of
    printed    as it is printed; None where the paper leaves it to the reader
    formula    how it is computed, with the quantities of `given`
    value      what comes out, exact: numbers, bytes, or a plain ratio
    note       one sentence: why the two disagree, or what the reader should know
    method     the sizes and the method whose trained numbers these are, where they are
    """

    place: str
    row: str
    printed: Printed | None
    formula: str
    given: Mapping[str, Any]
    value: Fraction
    note: str = ""
    method: tuple[TransformerConfig, Method] | None = None

    @property
    def verdict(self) -> str:
        return verdict(self.printed, self.value)

    @property
    def shown(self) -> str:
        """The value in the unit of what is printed."""
        return shown(self.value, self.printed)

    @property
    def quantities(self) -> str:
        """The quantities of the formula, in words."""
        return ", ".join(f"{name} = {_in_words(value)}" for name, value in self.given.items())

    def as_dict(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "row": self.row,
            "printed": self.printed.text if self.printed else None,
            "formula": self.formula,
            "with": self.quantities,
            "value": int(self.value) if self.value.denominator == 1 else float(self.value),
            "verdict": self.verdict,
            "note": self.note,
        }


def plain(
    place: str,
    row: str,
    printed: str | None,
    formula: str,
    compute: Callable[..., Number],
    note: str = "",
    *,
    rough: bool = False,
    **given: Any,
) -> Entry:
    """Arithmetic with named quantities, of which text is read as the number that it prints: "32.5" is exactly that."""
    exact = {name: Fraction(value) if isinstance(value, str) else value for name, value in given.items()}
    number = None if printed is None else Printed(printed, rough)
    return Entry(place, row, number, formula, exact, Fraction(compute(**exact)), note)


def trained(place: str, row: str, printed: str | None, model: str, method: Method, note: str = "") -> Entry:
    """How many numbers a method trains on a model, as the method itself counts them."""
    config = MODELS[model]
    number = None if printed is None else Printed(printed)
    return Entry(
        place, row, number, *closed_form(config, method), Fraction(method.numbers(config)), note, (config, method)
    )


def lora(rank: int, matrices: str = "qv") -> LoraConfig:
    """LoRA at this rank on the matrices of these letters: q, k, v, o."""
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    targets = matrices if matrices in PRESETS else tuple(f"attention.{names[letter]}" for letter in matrices)
    return LoraConfig(rank, targets=targets)


def closed_form(config: TransformerConfig, method: Method) -> tuple[str, dict[str, Number]]:
    """How many numbers a method trains as a formula and its quantities, for d_ff = 4d; Hu et al., section 5.1."""
    of = {"L": config.layers, "d": config.d_model, "V": config.vocab, "n": config.context}
    of |= {"r": getattr(method, "rank", 0), "K": _matrices(getattr(method, "targets", ()))}
    of |= {"l_p": getattr(method, "prefix", 0), "l_i": getattr(method, "infix", 0)}
    head = "" if config.tied else " + V · d"
    formula = {
        Full: f"L · (12 · d² + 13 · d) + (V + n) · d + 2 · d{head}",
        Top: "2 · (12 · d² + 13 · d)",
        BitFit: "11 · L · d + d",
        PrefixEmbedding: "d · (l_p + l_i)",
        PrefixLayer: "L · d · (l_p + l_i)",
        AdapterH: "2 · L · (2 · d · r + r + d)",
        AdapterP: "L · (2 · d · r + r + d)",
        AdapterL: "L · (2 · d · r + r + d + 2 · d)",
        LoraConfig: "2 · K · L · d · r",
        LoraPrefixEmbedding: "2 · K · L · d · r + d · (l_p + l_i)",
        LoraPrefixLayer: "2 · K · L · d · r + L · d · (l_p + l_i)",
    }[type(method)]
    used = formula.replace("(", " ").replace(")", " ").replace("²", " ").split()
    return formula, {name: value for name, value in of.items() if name in used}


def _matrices(targets: str | tuple[str, ...]) -> int:
    return len(PRESETS[targets] if isinstance(targets, str) else targets)


def _in_words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_in_words, value))
    return f"{int(value):,}" if value == int(value) else f"{float(value):.6g}"
