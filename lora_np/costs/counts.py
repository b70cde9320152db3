r"""How many of the parameters of a model LoRA trains."""

from __future__ import annotations

from collections.abc import Iterable

from ..config import TransformerConfig
from ..methods.lora import LoraConfig


def lora(rank: int, targets: str | Iterable[str]) -> LoraConfig:
    """LoRA at this rank on these targets."""
    return LoraConfig(rank=rank, targets=targets if isinstance(targets, str) else tuple(targets))


def lora_count(config: TransformerConfig, rank: int, targets: str | Iterable[str]) -> int:
    r"""The number Θ of parameters that LoRA trains.

    $$|\Theta| = \sum_{targets} copies \cdot r\,(d_{in} + d_{out}) \tag{C3}$$

    A is (r, d_in) and B is (d_out, r); a block's matrix has L copies, the token embedding (V to d) and an
    untied head have one. A square attention matrix costs 2·r·d.

    >>> lora_count(SHAPES["gpt3"], rank=4, targets="qv")
    18874368

    Raises ValueError for an unknown target and for a rank outside 1..min(d_in, d_out).

    Source: Hu et al., section 5.1, |Θ| = 2 × L̂_LoRA × d_model × r. For GPT-2 medium with r = 4 on q and v
    this gives 393,216, where Table 3 prints 0.35M.
    """
    return lora(rank, targets).numbers(config)
