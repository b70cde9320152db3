r"""Multiply-adds: of a token forward, and of a training step."""

from __future__ import annotations

from collections.abc import Iterable

from ..config import TransformerConfig, matrix_multiply_adds
from .counts import lora


def adapter_multiply_adds(config: TransformerConfig, rank: int, targets: str | Iterable[str]) -> int:
    r"""Multiply-adds that an unmerged adapter adds to one token's forward pass; merged, it adds none.

    $$\Delta = \sum_{targets} copies \cdot r\,(d_{in} + d_{out}) \tag{C6}$$

    The same as C3, with one exception: an adapted token embedding reads a column of A, so its lookup costs
    only r·d. When the head is tied, the same A and B serve there once more, at the full r·(V + d).
    """
    return lora(rank, targets).multiply_adds(config)


def forward_multiply_adds(config: TransformerConfig, length: int | None = None) -> int:
    r"""Multiply-adds of one token's forward pass, the mean over n tokens (default: the whole context).

    $$F = M + S, \qquad S = L\,q\,(n + 1) \tag{C7}$$

    S is attention itself: token t meets t keys and t values of q numbers, 2qt, and the mean of t over 1..n is
    (n + 1)/2; q is d where no head_dim says otherwise. Code that also computes the masked half pays 2·L·q·n instead.
    """
    return matrix_multiply_adds(config) + _attention_multiply_adds(config, length)


def step_multiply_adds(
    config: TransformerConfig, rank: int | None = None, targets: str | Iterable[str] = "qv", length: int | None = None
) -> int:
    r"""Multiply-adds of one training step, per token: full fine-tuning, or LoRA when a rank is given.

    Per matrix and token, with y = Wx and g = ∂L/∂y, each line costs one multiply-add per weight:

        forward           y = W x            M
        input gradient    ∂L/∂x = Wᵀ g       M    the chain rule needs it, frozen or not
        weight gradient   ∂L/∂W = g xᵀ       M    only if W is trained

    Attention has no weights: its two products forward become four backward (one for each factor), so 3S. The
    adapter's own matrices are trained, so 3Δ. Hence

    $$full = 3M + 3S \tag{C8}$$
    $$LoRA = 2M + 3S + 3\Delta \tag{C9}$$

    A multiply-add is two floating-point operations and M ≈ N for a large model: 6N against 4N, so a LoRA step
    is at best 1.5 times as fast. C9 counts every input gradient. Those below the first adapted matrix are not
    needed either, so it is an upper bound: tight when every block has a target and there are many blocks.

    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1 (6N). Hu et al., section 4.2, measure 43.1
    tokens/s against 32.5, 1.33 times.
    """
    full = 3 * forward_multiply_adds(config, length)
    if rank is None:
        return full
    return full - matrix_multiply_adds(config) + 3 * adapter_multiply_adds(config, rank, targets)


def _attention_multiply_adds(config: TransformerConfig, length: int | None) -> int:
    tokens = config.context if length is None else length
    if type(tokens) is not int or not 1 <= tokens <= config.context:
        raise ValueError(f"length must lie in 1..context = 1..{config.context}, got {tokens}")
    return config.layers * config.d_queries * (tokens + 1)
