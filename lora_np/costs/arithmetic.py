r"""Multiply-adds: of a token forward, and of a training step."""

from __future__ import annotations

from collections.abc import Iterable

from .counts import lora_count
from .shapes import Shape, check_count, target_modules


def matrix_multiply_adds(shape: Shape) -> int:
    r"""Multiply-adds of one token with the weight matrices of the model, in one direction.

    $$M = L\,(4d^2 + 2df) + Vd \tag{C5}$$

    The embeddings are looked up, not multiplied; the head (Vd) is multiplied, tied or not. Biases, norms and
    the activation are left out: they grow with d, not with d².
    """
    d = shape.d_model
    return shape.layers * (4 * d * d + 2 * d * shape.d_ff) + shape.vocab * d


def adapter_multiply_adds(shape: Shape, rank: int, targets: str | Iterable[str]) -> int:
    r"""Multiply-adds that an unmerged adapter adds to one token's forward pass; merged, it adds none.

    $$\Delta = \sum_{targets} copies \cdot r\,(d_{in} + d_{out}) \tag{C6}$$

    The same as C3, with one exception: an adapted token embedding reads a column of A, so its lookup costs
    only r·d. When the head is tied, the same A and B serve there once more, at the full r·(V + d).
    """
    every = lora_count(shape, rank, targets)
    if "tokens" not in target_modules(shape, targets):
        return every
    in_head = rank * (shape.vocab + shape.d_model) if shape.tied else 0
    return every - rank * shape.vocab + in_head


def forward_multiply_adds(shape: Shape, length: int | None = None) -> int:
    r"""Multiply-adds of one token's forward pass, the mean over n tokens (default: the whole context).

    $$F = M + S, \qquad S = L\,d\,(n + 1) \tag{C7}$$

    S is attention itself: token t meets t keys and t values of d numbers, 2dt, and the mean of t over 1..n is
    (n + 1)/2. Code that also computes the masked half pays 2·L·d·n instead.
    """
    return matrix_multiply_adds(shape) + _attention_multiply_adds(shape, length)


def step_multiply_adds(
    shape: Shape, rank: int | None = None, targets: str | Iterable[str] = "qv", length: int | None = None
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
    full = 3 * forward_multiply_adds(shape, length)
    if rank is None:
        return full
    return full - matrix_multiply_adds(shape) + 3 * adapter_multiply_adds(shape, rank, targets)


def _attention_multiply_adds(shape: Shape, length: int | None) -> int:
    tokens = shape.context if length is None else length
    check_count("length", tokens)
    if tokens > shape.context:
        raise ValueError(f"length must lie in 1..context = 1..{shape.context} for {shape.name}, got {tokens}")
    return shape.layers * shape.d_model * (tokens + 1)
