r"""Embedding: each token id picks a row of a table.

    tokens (...) integers in [0, vocab)    W (vocab, d_model)    y (..., d_model)

$$y_t = W_{\mathrm{token}_t} \tag{E1}$$

**Derivation.** Row v of the table is used by every position whose token is v, and by no other, so

$$\partial L/\partial W_v = \sum_{t:\ \mathrm{token}_t = v} \partial L/\partial y_t \tag{E2}$$

A token that occurs twice must be added twice: `dW[tokens] += dy` would keep only one of the two.
"""

from __future__ import annotations

from typing import Any

from ..engine.arrays import Array, array_module, rows
from ..engine.differentiation import operation


def embedding_forward(tokens: Array, W: Array, /, *, wanted: tuple[str, ...]) -> tuple[Array, Any]:
    """(E1)."""
    return W[tokens], (tokens, W.shape)


def embedding_backward(saved: Any, dy: Array, wanted: tuple[str, ...]) -> list[Array]:
    """(E2); integers have no gradient, so W is all that can be wanted."""
    tokens, shape = saved
    xp = array_module(dy)
    dW = xp.zeros(shape, dtype=dy.dtype)
    xp.add.at(dW, tokens.reshape(-1), rows(dy))  # (E2)
    return [dW]


embedding = operation(embedding_forward, embedding_backward)
