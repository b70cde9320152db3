"""Tutorial 09, what did the adapter learn: adapters to look into, and checks of chance, of φ, of a factor and a cut."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..adaptation import Outcome, Text
from ..engine.arrays import Array
from ..lora import LoraLinear, adapters
from ..method import Method
from ..model import Transformer
from ..paper.cells import Cell
from ..paper.runs import Sides
from ..paper.runs import trained as trained_cell
from ..paper.subspaces import directions, of_factors, of_updates, orthonormal
from ..paper.updates import amplification
from ..parameters import with_parameters
from . import checker, shown, unanswered
from .answers import CLOSE, matrix, number, told

STEPS = 30
MUSEUM = Cell(task="museum", scored=24)
APART = 1e-3  # φ of two directions that are called orthogonal
LARGEST = 1e9  # condition number beyond which BG⁻¹·GA is no longer BA in float64, to the digits that are compared


def trained(
    base: Transformer, method: Method, rate: float, seed: int, steps: int = STEPS, batch: int = MUSEUM.batch
) -> Outcome:
    """The museum labels, learned by this method: the model and its held-out bits per byte.

    The seed draws what the method draws, the examples, and the order of the batches; what is held out stays.
    """
    cell = replace(MUSEUM, steps=steps, batch=batch, rate=rate, seed=seed)
    return trained_cell(cell, base, method, Sides.of(cell, base, method))


def held_out(base: Transformer) -> Text:
    """The labels that no run has seen, the same for all."""
    return Sides.of(MUSEUM, base).held_out


def agreement(first: Mapping[str, LoraLinear], second: Mapping[str, LoraLinear], i: int) -> dict[str, float]:
    """φ(i, i) of two adapters, means over their maps: of A, of what ΔW reads and of what it writes."""
    pairs = [(module, second[path]) for path, module in first.items()]
    updates = [of_updates((one.B, one.A), (other.B, other.A)) for one, other in pairs]
    parts = {
        "A": [of_factors(one.A, other.A) for one, other in pairs],
        "reads": [both.right for both in updates],
        "writes": [both.left for both in updates],
    }
    return {name: float(np.mean([each.values[i - 1, i - 1] for each in found])) for name, found in parts.items()}


def reading_only(model: Transformer, spans: Mapping[str, Array]) -> tuple[Transformer, float]:
    r"""The adapted model whose updates read the given directions alone, ΔW QQᵀ, and the share of ‖ΔW‖² that is left.

    spans   {path of an adapted map: Q (d_in, k), orthonormal columns}; the share is the mean over the maps
    """
    found, arrays, shares = adapters(model), {}, []
    for path, Q in spans.items():
        module = found[path]
        A = ((module.A @ Q) @ Q.T).astype(module.A.dtype)
        arrays[f"{path}.A"] = A
        shares.append(np.linalg.norm(module.B @ A) ** 2 / np.linalg.norm(module.B @ module.A) ** 2)
    return with_parameters(model, arrays), float(np.mean(shares))


# ---------------------------------------------------------------------------------------------------------- checks


@checker
def check_chance(answer: Any, i: int, j: int, d: int) -> None:
    """φ(i, j) on average where one of the two subspaces is drawn at random in d dimensions."""
    if unanswered(answer, f"φ(i = {i}, j = {j}) on average between random subspaces of {d} dimensions"):
        return
    found, right = number(answer), max(i, j) / d
    hints = {
        0.0: "random directions are nearly orthogonal, one to one; but here each meets several at once",
        min(i, j) / d: "(S3) has the larger of i and j: the more directions there are to be met, the more is met",
        i * j / d: "that is E‖UᵀV‖²; φ divides by min(i, j)",
        i * j / d**2: "that is one d too many: E VVᵀ is (j/d)·I, and the trace of UᵀU is i",
        1.0 / d: "that is one direction beside one other",
        math.sqrt(right): "φ is a mean of squared cosines; do not take the root",
    }
    told(found, right, hints, "E‖UᵀV‖² is ij/d, and φ divides it by min(i, j)")
    print(f"Right: {right:.4g}. Two subspaces that share nothing on purpose share that much.")


@checker
def check_similarity(answer: Any) -> None:
    """phi(U, V) of equation (S2) for two matrices of orthonormal columns, (d, i) and (d, j), as one number."""
    if unanswered(answer, "a function (U, V) that gives φ, one number, for U (d, i) and V (d, j), columns orthonormal"):
        return
    assert callable(answer), f"the answer is a function of (U, V), got {shown(answer)}"
    rng = np.random.default_rng(0)
    for i, j in ((2, 5), (4, 3), (1, 1)):
        U, V = orthonormal(rng, 7, i), orthonormal(rng, 7, j)
        shared = U.T @ V
        right, squares = float((shared**2).sum()) / min(i, j), float((shared**2).sum())
        sigma = np.linalg.svd(shared, compute_uv=False)
        hints = {
            squares: "that is ‖UᵀV‖²; divide by min(i, j), so that a subspace has φ = 1 with itself",
            squares / max(i, j): "divide by the smaller of i and j: a subspace that lies in the other has φ = 1",
            squares / (i * j): "divide by min(i, j), not by the number of entries",
            math.sqrt(squares) / min(i, j): "the norm is squared: φ is a mean of squared cosines",
            math.sqrt(squares): "the norm is squared, and divided by min(i, j)",
            float(sigma.sum()) / min(i, j): "those are the singular values of UᵀV; φ is the mean of their squares",
            float(sigma[0] ** 2): "that is the closest pair of directions; φ is the mean over all min(i, j)",
            float(shared.sum()) / min(i, j): "entries of UᵀV have signs, which cancel; φ adds their squares",
        }
        found = number(answer(U.copy(), V.copy()), f"phi(U, V) must give one number for {i} and {j} columns")
        told(found, right, hints, f"for i = {i} and j = {j} it is {right:.4g}: ‖UᵀV‖²/min(i, j)")
    print("Right: ‖UᵀV‖²/min(i, j), the mean of the squared cosines of the angles between the two.")


@checker
def check_amplification(answer: Any, module: LoraLinear) -> None:
    """The factor ‖ΔW‖/‖UᵀWV‖ of one adapted map, with U and V the r singular directions of ΔW."""
    if unanswered(answer, "‖ΔW‖/‖UᵀWV‖ of this adapted map, with U and V the singular directions of ΔW"):
        return
    found, about = number(answer), amplification(module.base.W, module.B, module.A, module.scaling)
    update = directions(module.B @ module.A)
    first = abs(float(update.left[:, 0] @ module.base.W @ update.right[:, 0]))
    hints = {
        about.factor / module.scaling: f"that is the factor of BA; the update is s·BA, with s = {module.scaling:g}",
        1.0 / about.factor: "that is the inverse; the update stands on top",
        about.update / about.weight: "that is ‖ΔW‖/‖W‖: W in all its directions, not in those of ΔW",
        about.weight / about.update: "that is ‖W‖/‖ΔW‖: W in all its directions, and upside down",
        about.chance: "that is the factor of random directions; take those of ΔW",
        about.update / about.top: "that is what W does in its own first directions; U and V are those of ΔW",
        about.update / first: "that is the first direction of ΔW alone; take all r of them",
        about.own: "that is ‖UᵀWV‖ alone; divide ‖ΔW‖ by it",
        about.update: "that is ‖ΔW‖ alone; divide it by ‖UᵀWV‖",
        1.0: "UᵀΔWV has the norm of ΔW itself; W is what stands between U and V",
    }
    told(found, about.factor, hints, "U and V are the first r left and right singular vectors of `delta(module)`")
    print(f"Right: {about.factor:.4g}, where random directions would have {about.chance:.4g}.")


@checker
def check_other_cut(answer: Any, module: LoraLinear) -> None:
    """An invertible G (r, r): BG⁻¹ and GA are the same update, and the first direction of GA is not that of A."""
    r = len(module.A)
    task = f"an invertible G ({r}, {r}) for which the first direction of GA is orthogonal to the first of A"
    if unanswered(answer, task):
        return
    G = matrix(answer, (r, r))
    A, B = np.asarray(module.A, np.float64), np.asarray(module.B, np.float64)
    size = np.linalg.cond(G)
    assert size < LARGEST, f"G must be invertible, and well enough so in float64: its condition number is {size:.1e}"
    if np.allclose(G.T @ G, (G.T @ G)[0, 0] * np.eye(r), atol=CLOSE * abs(G).max() ** 2):
        raise AssertionError("GᵀG is a multiple of I: (GA)ᵀ(GA) is one of AᵀA, so GA has the same singular vectors")
    phi = float(of_factors(A, G @ A).values[0, 0])
    assert phi < APART, (
        f"φ(1, 1) of A and GA is {phi:.3f}, and should be below {APART:g}: write A = USVᵀ and let G enlarge a "
        "direction of U that is not the first, until it comes first"
    )
    gap = float(np.linalg.norm(B @ np.linalg.inv(G) @ (G @ A) - B @ A) / np.linalg.norm(B @ A))
    print(f"Right: φ(1, 1) is {phi:.1e}, and BG⁻¹·GA is BA but for {gap:.0e} of its norm. The update is the same.")
