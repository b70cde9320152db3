r"""The best rank-r approximation of a matrix that is large, with little beside it in memory.

Of all matrices of rank r the nearest to D in the Frobenius norm is $\sum_{i\le r}\sigma_i u_i v_i^T$, and the square of
its distance is $\lVert D\rVert_F^2 - \sum_{i\le r}\sigma_i^2$ (Eckart & Young 1936).

The leading v_i are looked for in the block Krylov space of $D^TD$, or of $DD^T$ where D is wide, so that what is kept
has the length of the shorter side:

$$\mathcal K = \mathrm{span}\{X, (D^TD)X, (D^TD)^2X, \dots\},\qquad X\ \text{random},\ r + 8\ \text{columns} \tag{K2}$$

It grows until $\sum\theta_i$, the energy that the r largest Ritz values catch, grows by less than 10⁻¹⁰ of itself, or
until it is the whole space. θ is never above σ², so an approximation is never said to be better than it is; how good
it is, is measured on D itself. Squares lose singular values below 10⁻⁸ σ₁, which carry 10⁻¹⁶ of the energy.

Source: Musco & Musco 2015, arXiv:1504.05477, algorithm 2.
"""

from __future__ import annotations

import numpy as np

from ..engine.arrays import Array, row_blocks

MORE, SETTLED, ENTRIES = 8, 1e-10, 1 << 20


def leading(D: Array, rank: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """U (n, r), σ (r,), V (width, r), the leading singular triplets in float64; all of them where there are fewer."""
    if D.shape[0] < D.shape[1]:
        V, S, U = leading(D.T, rank, rng)
        return U, S, V
    n = D.shape[1]
    rank = min(rank, n)
    Q, image = np.zeros((n, 0)), np.zeros((n, 0))  # an orthonormal basis, and DᵀD of it
    block, caught = rng.standard_normal((n, min(rank + MORE, n))), 0.0
    while True:
        fresh = _orthonormal(block, Q)
        block = gram_times(D, fresh)
        Q, image = np.hstack([Q, fresh]), np.hstack([image, block])
        theta, vectors = np.linalg.eigh((Q.T @ image + image.T @ Q) / 2.0)
        energy = float(np.maximum(theta[-rank:], 0.0).sum())
        if energy <= caught * (1.0 + SETTLED) or Q.shape[1] >= n:
            break
        caught = energy
    V = Q @ vectors[:, ::-1][:, :rank]
    left = times(D, V)
    U, S, turn = np.linalg.svd(left, full_matrices=False)
    return U, S, V @ turn.T


def times(D: Array, X: Array) -> Array:
    """D·X in float64, some rows of D at a time."""
    out = np.empty((len(D), X.shape[1]))
    for rows in row_blocks(len(D), max(D.shape[1], X.shape[1]), ENTRIES):
        out[rows] = D[rows].astype(np.float64) @ X
    return out


def gram_times(D: Array, X: Array) -> Array:
    """DᵀD·X in float64, some rows of D at a time."""
    out = np.zeros_like(X)
    for rows in row_blocks(len(D), max(D.shape[1], X.shape[1]), ENTRIES):
        part = D[rows].astype(np.float64)
        out += part.T @ (part @ X)
    return out


def _orthonormal(block: Array, Q: Array) -> Array:
    """The block made orthonormal and orthogonal to Q, twice, which is enough; at most what is left of the space."""
    block = block / np.maximum(np.linalg.norm(block, axis=0), 1e-300)
    for _ in range(2):
        block = block - Q @ (Q.T @ block)
        block, _ = np.linalg.qr(block)
    return block[:, : Q.shape[0] - Q.shape[1]]
