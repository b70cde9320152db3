r"""How large, how low in rank and how new an update ΔW is: each beside its null hypothesis.

    A (r, d_in)    B (d_out, r)    W, ΔW (d_out, d_in)    all norms are those of Frobenius

    amplification  table 7         energy       how much of ΔW its first r directions hold
    correlation    map and map     intruders    directions that the weight did not have

Pure functions on arrays of the host, in float64; where ΔW = s·BA is given by its factors it is never formed.

Sources: Hu et al. 2021, arXiv:2106.09685, section 7.3 and appendix H; Shuttleworth et al. 2024, arXiv:2410.21228.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.arrays import Array
from .subspaces import check_beside, check_factors, float64, orthonormal, update_directions


@dataclass(frozen=True)
class Amplification:
    r"""How much an update enlarges what the weight already does in its directions: table 7 of the paper.

    update, weight   ‖ΔW‖ and ‖W‖, all norms those of Frobenius
    own              ‖UᵀWV‖ for the r left and right singular directions of ΔW
    top              the same for those of W: the largest it can be
    random           for directions drawn at random, its root mean square
    """

    update: float
    weight: float
    own: float
    top: float
    random: float

    @property
    def factor(self) -> float:
        """‖ΔW‖ / ‖UᵀWV‖; infinite where W does nothing in these directions."""
        return self.update / self.own if self.own else math.inf

    @property
    def chance(self) -> float:
        """The factor that an update of this size in random directions has."""
        return self.update / self.random


def amplification(W: Array, B: Array, A: Array, scaling: float) -> Amplification:
    r"""Table 7 of the paper for one adapted map, with the expected value of its random column.

    For random U (d_out, r) and V (d_in, r), $E\,UU^T = (r/d_{out}) I$ and $E\,VV^T = (r/d_{in}) I$, so

    $$E\|U^TWV\|_F^2 = tr(E[UU^T]\,W\,E[VV^T]\,W^T) = \frac{r^2}{d_{out} d_{in}} \|W\|_F^2 \tag{S5}$$

    For a square W the random column is (r/d)‖W‖. Raises ValueError when the shapes do not fit or ΔW is zero.
    """
    check_beside(W, B, A)
    weight, update = float64(W), update_directions(B, A, scaling)
    r, size = len(update.sigma), float(np.linalg.norm(weight))
    if not size:
        raise ValueError("the weight is zero: nothing can be amplified")
    return Amplification(
        update=float(np.linalg.norm(update.sigma)),
        weight=size,
        own=float(np.linalg.norm(update.left.T @ weight @ update.right)),
        top=float(np.linalg.norm(np.linalg.svd(weight, compute_uv=False)[:r])),
        random=r / math.sqrt(weight.size) * size,
    )


@dataclass(frozen=True)
class Energy:
    """The share of ‖ΔW‖² that the first 1, 2, … singular values hold, and what it is where the entries are shuffled.

    kept     (k,), ends at 1
    chance   (k,), the mean over shuffled copies
    """

    kept: Array
    chance: Array

    def rank(self, share: float) -> int:
        """The smallest rank that keeps this share. Raises ValueError for a share outside (0, 1]."""
        return _first_that_reaches(self.kept, share)

    def chance_rank(self, share: float) -> int:
        """The same where the entries are shuffled."""
        return _first_that_reaches(self.chance, share)


def energy(update: Array, rng: np.random.Generator, draws: int = 8) -> Energy:
    r"""How low the rank of a full fine-tuning update is.

    $$E(r) = \sum_{k \le r} \sigma_k^2 \Big/ \sum_k \sigma_k^2 \tag{S6}$$

    By chance: the same entries in random places, which keeps their sizes and takes every structure away.
    Raises ValueError for an update that is zero.
    """
    M = float64(update)
    if M.ndim != 2 or not M.any():
        raise ValueError(f"an update must be a matrix that is not zero, got shape {M.shape}")
    shuffled = [rng.permutation(M.ravel()).reshape(M.shape) for _ in range(draws)]
    return Energy(_energy(M), np.mean([_energy(one) for one in shuffled], axis=0))


# ------------------------------------------------------------------------------------------------ one map and another


@dataclass(frozen=True)
class Correlation:
    r"""How alike the updates of adapted maps of one shape are, by path.

    cosine      (m, m): ⟨ΔW, ΔW'⟩ / ‖ΔW‖‖ΔW'‖, in [−1, 1]
    spread      its standard deviation for directions drawn at random, where its mean is 0: $1/\sqrt{d_{out} d_{in}}$
    """

    paths: tuple[str, ...]
    cosine: Array
    spread: float


def correlation(updates: Mapping[str, tuple[Array, Array]]) -> Correlation:
    r"""The cosine of every pair of updates, each given as (B, A).

    $$\langle BA, B'A' \rangle = tr(A^T B^T B' A') = \sum_{kl} (B^TB')_{kl} (AA'^T)_{kl} \tag{S7}$$

    By chance: let ΔW' be R₁ΔW'R₂ᵀ with random rotations R₁, R₂. Then the mean of ⟨ΔW, R₁ΔW'R₂ᵀ⟩² is
    ‖ΔW‖²‖ΔW'‖²/(d_out d_in), whatever their ranks. Raises ValueError for maps of several shapes, or an update of zero.
    """
    factors = {path: (float64(B), float64(A)) for path, (B, A) in updates.items()}
    for B, A in factors.values():
        check_factors(B, A)
    shapes = {(B.shape[0], A.shape[1]) for B, A in factors.values()}
    if len(shapes) != 1:
        raise ValueError(f"the maps must have one shape (d_out, d_in), got {sorted(shapes) or 'none'}")
    products = [[np.sum((B.T @ D) * (A @ C.T)) for D, C in factors.values()] for B, A in factors.values()]
    gram, norms = np.array(products), np.sqrt(np.maximum(np.diag(products), 0.0))
    if not norms.all():
        path = tuple(factors)[int(np.argmin(norms))]
        raise ValueError(f"the update of {path} is zero: it points nowhere until it is trained")
    return Correlation(tuple(factors), gram / np.outer(norms, norms), 1.0 / math.sqrt(math.prod(shapes.pop())))


# ------------------------------------------------------------------------------------------------- what was not there


@dataclass(frozen=True)
class Intruders:
    """Singular directions of an adapted weight that the weight before did not have.

    cosines    (k,): for each of the k largest, how close the nearest one of the weight before is
    threshold  below which a direction is an intruder
    chance     how many there are on average for a Gaussian update of equal norm
    rotated    and for the update itself, turned at random: equal norm, rank and singular values
    """

    cosines: Array
    threshold: float
    chance: float
    rotated: float

    @property
    def count(self) -> int:
        return int((self.cosines < self.threshold).sum())


def intruders(
    before: Array, after: Array, rng: np.random.Generator, k: int = 10, threshold: float = 0.5, draws: int = 8
) -> Intruders:
    r"""How many of the k largest singular directions of an adapted weight are new.

    $$\#\{j \le k : \max_i |\langle u_i(W_0), u_j(\hat W) \rangle| < \epsilon\} \tag{S8}$$

    u are left singular vectors; i runs over all of them. before, after (d_out, d_in).
    Raises ValueError for other shapes, for k outside 1..min(d_out, d_in) and a threshold outside (0, 1].

    Source: Shuttleworth et al. 2024, arXiv:2410.21228, algorithm 1.
    """
    W, found = float64(before), float64(after)
    if W.ndim != 2 or W.shape != found.shape:
        raise ValueError(f"both must be matrices of one shape, got {W.shape} and {found.shape}")
    if not 1 <= k <= min(W.shape):
        raise ValueError(f"k must lie in 1..{min(W.shape)}, the directions of this matrix, got {k}")
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    update = found - W
    drawn, turned = [], []
    for _ in range(draws):
        noise = rng.standard_normal(W.shape)
        drawn.append(W + noise * (np.linalg.norm(update) / np.linalg.norm(noise)))
        turned.append(W + orthonormal(rng, W.shape[0], W.shape[0]) @ update @ orthonormal(rng, W.shape[1], W.shape[1]))
    own = np.linalg.svd(W, full_matrices=False)[0]
    by_chance, by_turning = (
        float(np.mean([(_nearest(own, one, k) < threshold).sum() for one in several])) for several in (drawn, turned)
    )
    return Intruders(_nearest(own, found, k), threshold, by_chance, by_turning)


# --------------------------------------------------------------------------------------------------------------- parts


def _nearest(own: Array, matrix: Array, k: int) -> Array:
    """For each of the k largest left directions of the matrix, its largest |cosine| with one of `own`."""
    return np.abs(own.T @ np.linalg.svd(matrix, full_matrices=False)[0][:, :k]).max(axis=0)


def _energy(matrix: Array) -> Array:
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    kept = np.cumsum(squares) / np.sum(squares)
    return np.minimum(kept / kept[-1], 1.0)


def _first_that_reaches(kept: Sequence[float] | Array, share: float) -> int:
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a share must lie in (0, 1], got {share}")
    return int(np.argmax(np.asarray(kept) >= share)) + 1
