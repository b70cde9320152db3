r"""What a classifier reads of a sequence: a weighted sum of its positions.

    h (batch, seq, d)    weights (batch, seq)    y (batch, 1, d)

$$y_b = \sum_t w_{bt}\,h_{bt} \tag{P1}$$

A weight of 1 on the first position and 0 elsewhere takes the state of the first token (BERT: Devlin et al. 2019,
arXiv:1810.04805, section 3); 1/n on each of n real tokens takes their mean.

**Derivation.** Each state enters once, with its weight:

$$\partial L/\partial h_{bt} = w_{bt}\,\partial L/\partial y_b \tag{P2}$$
"""

from __future__ import annotations

from typing import Any

from ..engine.arrays import Array
from ..engine.differentiation import operation


def pool_forward(h: Array, weights: Array, /, *, wanted: tuple[str, ...]) -> tuple[Array, Any]:
    """(P1)."""
    return weights[:, None] @ h, weights


def pool_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(P2); weights have no gradient."""
    return [saved[..., None] * dy]  # (P2)


pool = operation(pool_forward, pool_backward)
