r"""Which directions an update ΔW = s·BA uses, and how many of them two updates share: φ of the paper's section 7.

    A (r, d_in)    B (d_out, r)    W (d_out, d_in)    U, V: orthonormal columns, largest singular value first

No φ comes without what it would be by chance. All functions are pure, on arrays of the host, in float64, and none forms
ΔW from its factors: with thin QRs B = Q_B R_B and Aᵀ = Q_A R_A,

$$B A = Q_B (R_B R_A^T) Q_A^T = (Q_B U')\,\Sigma\,(Q_A V')^T \tag{S1}$$

takes the SVD of an (r, r) matrix only.

What stands on A alone depends on how the product is cut: B, A and BG⁻¹, GA are one update for every invertible G, but
only the whole row space of A is the same for both, not its first i singular vectors. What stands on ΔW does not.

Source: Hu et al. 2021, arXiv:2106.09685, section 7, appendices G and H. What else is measured of an update is in
`lora_np.paper.updates`, the intrinsic dimension in `lora_np.paper.intrinsic`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..engine.arrays import Array
from ..engine.devices import to_host


class Thin(NamedTuple):
    """A singular value decomposition: left (m, k), sigma (k,) above zero and falling, right (n, k)."""

    left: Array
    sigma: Array
    right: Array


@dataclass(frozen=True)
class Similarity:
    r"""φ of equation (S2) for the first i of one and the first j of another set of directions, i down, j across.

    values   (I, J), in [0, 1]
    d        how many dimensions the directions live in
    """

    values: Array
    d: int

    @property
    def chance(self) -> Array:
        r"""What φ is on average where one of the two subspaces is drawn at random.

        The projection VVᵀ on a random subspace of dimension j has the same distribution in every frame, so its mean is
        a multiple of I; its trace is j, so $E\,VV^T = (j/d) I$ and $E\|U^TV\|_F^2 = tr(U^T E[VV^T] U) = ij/d$. Hence

        $$E\,\varphi = \frac{ij}{d \min(i,j)} = \frac{\max(i,j)}{d} \tag{S3}$$
        """
        i, j = self._ij
        return np.maximum(i, j) / self.d

    @property
    def spread(self) -> Array:
        r"""The standard deviation of φ where one of the two is drawn at random.

        VVᵀ − (j/d)I is a vector of length² j(d − j)/d in the space of symmetric matrices without trace, of dimension
        (d − 1)(d + 2)/2, and points everywhere alike; so is the other. The variance of their product is

        $$\mathrm{Var}\,\|U^TV\|_F^2 = \frac{2\,ij\,(d-i)(d-j)}{d^2 (d-1)(d+2)} \tag{S4}$$
        """
        i, j = self._ij
        variance = 2.0 * i * j * (self.d - i) * (self.d - j) / (self.d**2 * max(1, self.d - 1) * (self.d + 2))
        return np.sqrt(variance) / np.minimum(i, j)

    @property
    def _ij(self) -> tuple[Array, Array]:
        rows, columns = self.values.shape
        return np.arange(1, rows + 1)[:, None], np.arange(1, columns + 1)[None, :]


def similarity(first: Array, second: Array) -> Similarity:
    r"""How much of the span of the first i columns of one lies in that of the first j of the other.

    $$\varphi(U, V, i, j) = \frac{\|U_i^T V_j\|_F^2}{\min(i, j)} = \frac1p \sum_{k \le p} \sigma_k^2(U_i^T V_j)
      \in [0, 1],\qquad p = \min(i,j) \tag{S2}$$

    first (d, I), second (d, J), both with orthonormal columns. φ is 1 − D²/p for the projection metric D.
    Raises ValueError for columns that are not orthonormal, or of different lengths.

    Source: Hu et al. 2021, equation 4 and appendix G (whose last form, (1 − D²)/p, is a misprint).
    """
    U, V = (float64(columns) for columns in (first, second))
    if U.ndim != 2 or V.ndim != 2 or U.shape[0] != V.shape[0]:
        raise ValueError(f"both must have columns of one length (d, i) and (d, j), got {U.shape} and {V.shape}")
    for columns, given in ((U, first), (V, second)):
        _check_orthonormal(columns, 64.0 * len(columns) * float(np.finfo(given.dtype).eps))
    shared = np.cumsum(np.cumsum((U.T @ V) ** 2, axis=0), axis=1)
    least = np.minimum.outer(np.arange(1, U.shape[1] + 1), np.arange(1, V.shape[1] + 1))
    return Similarity(np.minimum(shared / least, 1.0), U.shape[0])


def principal_angles(first: Array, second: Array) -> Array:
    r"""The angles between two subspaces in radians, the smallest first, as many as the smaller one has dimensions.

    $$\cos\theta_k = \sigma_k(U^T V),\qquad \sin\theta_k = \sigma_{p+1-k}(V - U U^T V),\qquad
      \varphi = \frac1p \sum_{k \le p} \cos^2\theta_k \tag{S9}$$

    Cosines near 1 do not tell small angles apart, so those below 45° are taken from their sines.
    Raises ValueError as `similarity` does.

    Source: Björck and Golub 1973, Mathematics of Computation 27 (123), section 3.
    """
    similarity(first, second)
    U, V = sorted((float64(columns) for columns in (first, second)), key=lambda columns: -columns.shape[1])
    shared = U.T @ V
    cosines = np.minimum(np.linalg.svd(shared, compute_uv=False), 1.0)
    sines = np.minimum(np.linalg.svd(V - U @ shared, compute_uv=False)[::-1], 1.0)
    return np.where(cosines**2 >= 0.5, np.arcsin(sines), np.arccos(cosines))


def of_factors(first: Array, second: Array) -> Similarity:
    r"""φ of two A, (r, d) and (r', d), by their right singular vectors: figures 3, 4, 6 and 7 of the paper.

    Two ranks, or two seeds. It depends on how BA is cut into factors; `of_updates` does not.
    """
    return similarity(directions(first).right, directions(second).right)


class Sides(NamedTuple):
    """φ of left and of right singular vectors."""

    left: Similarity
    right: Similarity


def of_updates(first: tuple[Array, Array], second: tuple[Array, Array]) -> Sides:
    """φ of the singular vectors of two updates, each given as (B, A)."""
    one, other = update_directions(*first), update_directions(*second)
    return Sides(similarity(one.left, other.left), similarity(one.right, other.right))


def of_weight(W: Array, B: Array, A: Array) -> Sides:
    r"""φ(W, ΔW): is an update made of the directions in which the weight is large? Figure 8 of the paper.

    i runs over the directions of W, j over those of ΔW. Raises ValueError when the shapes do not fit.
    """
    check_beside(W, B, A)
    weight, update = directions(W), update_directions(B, A)
    return Sides(similarity(weight.left, update.left), similarity(weight.right, update.right))


def across(first: Mapping[str, Array], second: Mapping[str, Array]) -> dict[str, Similarity]:
    """`of_factors` for every adapted map of two runs, by path. Raises ValueError when they adapt different maps."""
    if first.keys() != second.keys() or not first:
        differ = ", ".join(sorted(first.keys() ^ second.keys())) or "none at all"
        raise ValueError(f"both runs must adapt the same maps; in only one of them: {differ}")
    return {path: of_factors(A, second[path]) for path, A in first.items()}


def directions(matrix: Array) -> Thin:
    """The singular vectors of a matrix whose singular value is not zero. Raises ValueError where there is none."""
    M = float64(matrix)
    if M.ndim != 2:
        raise ValueError(f"a matrix has two axes, got shape {M.shape}")
    return _kept(*np.linalg.svd(M, full_matrices=False), size=max(M.shape))


def update_directions(B: Array, A: Array, scaling: float = 1.0) -> Thin:
    r"""The same of s·BA, by (S1): O((d_in + d_out) r²), and nothing of size d_out × d_in is made."""
    check_factors(B, A)
    (Q_B, R_B), (Q_A, R_A) = np.linalg.qr(float64(B)), np.linalg.qr(float64(A).T)
    inner = _kept(*np.linalg.svd(scaling * (R_B @ R_A.T)), size=max(Q_B.shape[0], Q_A.shape[0]))
    return Thin(Q_B @ inner.left, inner.sigma, Q_A @ inner.right)


def orthonormal(rng: np.random.Generator, d: int, k: int) -> Array:
    """k orthonormal columns of length d, drawn at random: every k-dimensional subspace is as likely as any other."""
    if not 1 <= k <= d:
        raise ValueError(f"k orthonormal columns of length d need 1 <= k <= d, got k = {k} and d = {d}")
    Q, R = np.linalg.qr(rng.standard_normal((d, k)))
    return Q * np.where(np.diag(R) < 0, -1.0, 1.0)  # so that the draw does not depend on how a library signs its QR


# --------------------------------------------------------------------------------------------------------------- parts


def _kept(left: Array, sigma: Array, right: Array, size: int) -> Thin:
    """Those singular vectors whose value is above the rounding of the largest; the others could be any."""
    k = int((sigma > sigma[0] * size * np.finfo(np.float64).eps).sum()) if sigma.size else 0
    if not k:
        raise ValueError("the matrix is zero: it has no directions (is the adapter trained?)")
    return Thin(left[:, :k], sigma[:k], right[:k].T)


def check_factors(B: Array, A: Array) -> None:
    if np.ndim(A) != 2 or np.ndim(B) != 2 or B.shape[1] != A.shape[0]:
        raise ValueError(f"B must be (d_out, r) and A (r, d_in), got {np.shape(B)} and {np.shape(A)}")


def check_beside(W: Array, B: Array, A: Array) -> None:
    check_factors(B, A)
    if np.shape(W) != (B.shape[0], A.shape[1]):
        raise ValueError(f"W must be (d_out, d_in) = {(B.shape[0], A.shape[1])} beside B A, got {np.shape(W)}")


def _check_orthonormal(columns: Array, most: float) -> None:
    """A computed Q is orthonormal up to a few d·eps; a matrix that was not made so is off by far more."""
    off = float(np.abs(columns.T @ columns - np.eye(columns.shape[1])).max(initial=0.0))
    if not off <= most:
        raise ValueError(f"columns must be orthonormal, got a product that is {off:.1e} away from the identity")


def float64(array: Array) -> Array:
    """The array on the host in float64. Raises ValueError unless all of it is finite."""
    found = np.asarray(to_host(array), np.float64)
    if not np.isfinite(found).all():
        raise ValueError("a matrix must be finite to have directions and a size")
    return found
