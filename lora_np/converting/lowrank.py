r"""The best rank-r approximation of a matrix that is large, with little beside it in memory.

Of all matrices of rank r the nearest to D in the Frobenius norm is $\sum_{i\le r}\sigma_i u_i v_i^T$, and the square of
its distance is $\lVert D\rVert_F^2 - \sum_{i\le r}\sigma_i^2$ (Eckart & Young 1936).

The leading v_i are looked for in the block Krylov space of $G = D^TD$, or of $DD^T$ where D is wide, so that what is
kept has the length of the shorter side:

$$\mathcal K = \mathrm{span}\{X, GX, G^2X, \dots\},\qquad X\ \text{random},\ b = r + 8\ \text{columns} \tag{K2}$$

Of an orthonormal basis Q of it, $H = Q^TGQ$ is kept, whose eigenvalues θ and eigenvectors y give the Ritz values and
vectors Qy. A step costs two products of D with b columns. When Q has 4b columns, it starts anew from the 2b best Ritz
vectors and the next block, which still spans a Krylov space (thick restart): neither Q nor H grows with the steps.

**When it ends.** $E = \sum_{i\le r}\theta_i$ never falls and is never above $\sum_{i\le r}\sigma_i^2$ (Ky Fan 1949), so
an approximation is never said to be better than it is. It ends when a step adds less than 10⁻⁹ of what is left out,

$$E_t - E_{t-1} \le 10^{-9}\,\bigl(\lVert D\rVert_F^2 - E_t\bigr) \tag{K3}$$

If each later step adds at most ρ < 1 times the one before, the square of the error is within 10⁻⁹ ρ/(1 − ρ) of the
optimum, relatively: 10⁻⁸ for ρ up to 0.9. That later steps add less and less is what a random start gives with
overwhelming probability, not a theorem about one matrix; the error that is reported is measured on D itself. Squares
lose singular values below 10⁻⁸ σ₁, which carry 10⁻¹⁶ of the energy: what is below 10⁻¹³ of ‖D‖² is not looked for.

Source: Musco & Musco 2015, arXiv:1504.05477, algorithm 2; Wu & Simon 2000, SIAM J. Matrix Anal. Appl. 22(2),
section 3, the restart.
"""

from __future__ import annotations

import numpy as np

from ..engine.arrays import Array, row_blocks

MORE, WIDE, SETTLED, LOST, ENTRIES = 8, 4, 1e-9, 1e-13, 1 << 19  # columns beyond r; the basis, in blocks; (K3)


def leading(D: Array, rank: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """U (n, r), σ (r,), V (width, r), the leading singular triplets in float64; all of them where there are fewer."""
    if D.shape[0] < D.shape[1]:
        V, S, U = leading(D.T, rank, rng)
        return U, S, V
    V = ritz_vectors(D, min(rank, D.shape[1]), rng)
    U, S, turn = np.linalg.svd(times(D, V), full_matrices=False)
    return U, S, V @ turn.T


def ritz_vectors(D: Array, rank: int, rng: np.random.Generator) -> Array:
    """V (width, rank): orthonormal, for a D (n, width) that is not wide; (K2) to (K3)."""
    n, whole, caught = D.shape[1], energy_of(D), 0.0
    size = min(rank + MORE, n)
    Q, H = np.zeros((n, 0)), np.zeros((0, 0))
    fresh = _orthonormal(rng.standard_normal((n, size)), Q)
    while True:
        image = gram_times(D, fresh)
        Q = np.hstack([Q, fresh])
        H = _bordered(H, Q.T @ image)
        theta, vectors = np.linalg.eigh(H)
        energy = float(np.maximum(theta[-rank:], 0.0).sum())
        if energy - caught <= max(SETTLED * (whole - energy), LOST * whole) or Q.shape[1] >= n:
            return np.asarray(Q @ vectors[:, ::-1][:, :rank])
        caught, fresh = energy, _orthonormal(image, Q)
        if Q.shape[1] + size > WIDE * size and Q.shape[1] + size < n:
            best = slice(-(WIDE // 2) * size, None)
            Q, H = Q @ vectors[:, best], np.diag(theta[best])


def _bordered(H: Array, columns: Array) -> Array:
    """H with these columns, and their rows, beside it; symmetric."""
    k = len(H)
    out = np.hstack([np.vstack([H, columns[:k].T]), columns])
    return 0.5 * (out + out.T)


def energy_of(D: Array) -> float:
    """‖D‖² in float64, some rows of D at a time."""
    rows = row_blocks(len(D), D.shape[1], ENTRIES)
    return sum(float(np.square(D[some], dtype=np.float64).sum()) for some in rows)


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
