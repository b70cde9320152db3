r"""What an honest merge makes of a tensor: W0 + ΔW, and how far from it rounding may lead, whatever the recipe.

**Every honest recipe.** Programs differ in where they round. Behind ΔW lie the products, in float32 or better, and then
none, one or more casts: to the type in which the adapter is stored (PEFT), and to that of the base before the sum
(`safe_merge`, mlx-lm). The sum is taken in a type at least as wide as float32 and then rounded to that of the file.
With u and η of each stage and l of the products, as in equation (V1) of `lora_np.certificate`:

$$E = \gamma_k(u_\text{product})\,T + l\,\eta,\qquad
  E \leftarrow E + u_c\,(|\Delta W| + E) + \eta_c\ \text{for each cast } c,\qquad
  E \leftarrow E + u_\text{wide}\,(|W| + E)                                              \tag{V4}$$

and (V1) to (V3) follow with this E. Every stage only adds, so the bound of all casts together holds for a recipe that
leaves some of them out. A factor s that is no power of two may be multiplied in 16 bits behind the product (on a
device), which is one more cast. Where no term meets an entry, E is 0 and the entry must be that of the base.

**DoRA** gives f·x with x = W0 + ΔW, f = m/‖x‖. With ρ what is known of f, the relative error of a norm of n numbers,
a quotient and their casts, and E of x as above,

$$|\hat f \hat x - f x| \le |f|\,\bigl(|x|\,\delta + E\,(1 + \delta)\bigr),\qquad
  \delta = \frac{\rho}{1 - \rho},\quad \rho = \frac{\|E\|}{\|x\|} + \gamma_{n+2}(u_{32}) + 3u_\text{wide}   \tag{V5}$$

**PiSSA, OLoRA** changed the base before training, W0 − s·B0A0 rounded to its own type: half a unit more, and the error
of a decomposition in float32, for which the usual estimate stands:
$16\sqrt n\,u_{32}\,\sigma_1(1 + \sigma_r/(\sigma_r - \sigma_{r+1}))$.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..engine.arrays import Array, row_blocks
from ..formats.tensors import flat
from ..formats.updates import LowRank, Numbers, Update, in_type
from ..rounding import gamma, of_an_update, underflow, unit_roundoff, within

ENTRIES = 1 << 17  # of a tensor at a time: 1 MiB in float64, of which some twenty are held together
SHORT = ("float16", "bfloat16")


@dataclass(frozen=True)
class Stages:
    """The roundings that an honest merge may make of one tensor, all of them together; see (V4).

    casts   of ΔW before the sum      wide   of the sum before its last rounding, to the type of the file
    more    roundings behind a product beside those of the product itself: factors stored in a wider type
    begun   half a unit of this type, and this much everywhere, where the base itself was changed before training
    slack   share of the update that is let pass beside: 0 for a verdict, more for a guess of what a fault is
    """

    product: str
    casts: tuple[str, ...]
    wide: str
    more: int = 0
    begun: tuple[str, float] | None = None
    slack: float = 0.0


class Expectation(NamedTuple):
    """Rows of a merged tensor in float64: before, after, what is added, E of (V4) or (V5), e of (V1)."""

    before: Array
    value: Array
    update: Array
    E: Array
    e: Array


def stages_of(update: Update, W: Numbers, found: Numbers) -> Stages:
    """All roundings that an honest merge of this tensor may make."""
    stored = {factor.dtype.name for part in update.parts for factor in (part.A, part.B)}
    base = W.dtype.name
    wide64 = base == "float64" and stored <= {"float64"}
    casts = [name for name in sorted(stored) if name in SHORT]
    if any(not _power_of_two(part.scale) for part in update.parts):
        casts += casts
    casts += [name for name in {base, found.dtype.name} if name in SHORT and name not in casts]
    product = "float64" if wide64 else "float32"
    magnitude = update.magnitude is not None and base in SHORT and bool(stored) and stored <= set(SHORT)
    wide = base if magnitude else "float32" if {base, found.dtype.name} & set(SHORT) else "float64"
    wide = "float32" if update.magnitude is not None and base == "float32" else wide
    more = 0 if product == "float64" or "float64" not in stored else 2
    return Stages(product, tuple(casts), wide, more, _begun(update, W))


def _power_of_two(scale: float) -> bool:
    return math.frexp(abs(scale))[0] in (0.0, 0.5)


def _begun(update: Update, W: Numbers) -> tuple[str, float] | None:
    if update.start is None or not update.parts:
        return None
    part: LowRank = update.parts[0]
    S = np.linalg.svd(np.asarray(W, np.float64).reshape(update.matrix), compute_uv=False)
    r = part.rank
    gap = S[r - 1] - (S[r] if r < S.size else 0.0)
    worse = 1.0 + (S[r - 1] / gap if update.start == "pissa" else 1.0)
    return W.dtype.name, 16.0 * math.sqrt(max(update.matrix)) * unit_roundoff(np.float32) * float(S[0]) * float(worse)


def expectation(ready: Update, W: Numbers, rows: slice, stages: Stages, norms: Array | None = None) -> Expectation:
    """These rows of W0, and what they should become."""
    same = tuple(W.shape) == ready.shape
    before = found_rows(ready, W, rows) if same else np.zeros((rows.stop - rows.start, ready.matrix[1]))
    change, terms, k = ready.change(rows), ready.sizes(rows), roundings_of(ready) + stages.more
    if ready.only_sums:
        return of_sums(before, change, terms, k, lost_of(ready), stages)
    value = ready.expected(W, rows)
    if ready.shift is not None:
        terms = terms + abs(ready.shift.scale * np.asarray(ready.shift.b, np.float64)).reshape(terms.shape)
    plain = ready.magnitude is None
    inner = value if plain else ready._sum(W, rows)
    update = inner - before if ready.shift is not None else change
    E = _update_error(before, terms, update, k, lost_of(ready), stages)
    E = E + np.where(E > 0.0, unit_roundoff(stages.wide) * (abs(inner) + E), 0.0)
    if not plain:
        E, terms, k = _scaled(ready, inner, value, E, terms, k, rows, stages, norms)
    if ready.replacement is not None or not plain or ready.tokens is not None:
        update = value - before
    if ready.tokens is not None:
        E, terms = _known(ready, rows, E), _known(ready, rows, terms)
    u = unit_roundoff(np.float64)
    return Expectation(before, value, update, E, within(gamma(k, u), terms) + u * abs(value))


def of_sums(before: Array, change: Array, terms: Array, k: int, lost: float, stages: Stages) -> Expectation:
    """What entries of W0 (`before`) should become where nothing is done but adding s·BA, in any shape."""
    value, u = before + change, unit_roundoff(np.float64)
    E = _update_error(before, terms, change, k, lost, stages)
    E = E + np.where(E > 0.0, unit_roundoff(stages.wide) * (abs(value) + E), 0.0)
    return Expectation(before, value, change, E, within(gamma(k, u), terms) + u * abs(value))


def _update_error(before: Array, terms: Array, update: Array, k: int, lost: float, stages: Stages) -> Array:
    E = of_an_update(update, terms, k, lost, stages.product, stages.casts, stages.slack)
    if stages.begun is not None:
        dtype, everywhere = stages.begun
        E = E + everywhere + unit_roundoff(dtype) * (abs(before) + terms) + underflow(dtype)
    return np.where(terms > 0.0, E, 0.0)


def _scaled(
    ready: Update, inner: Array, value: Array, E: Array, terms: Array, k: int, rows: slice, stages: Stages,
    norms: Array | None,
) -> tuple[Array, Array, int]:  # fmt: skip
    """(V5), and terms and roundings by which the check itself is bounded."""
    assert ready.magnitude is not None
    n = ready.matrix[1] if ready.magnitude.along == "rows" else ready.matrix[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.sqrt((E * E).sum(1) / (inner * inner).sum(1))[:, None] if norms is None else norms[None, :]
        f = abs(np.where(inner == 0.0, 0.0, value / inner))
    rho = share + gamma(n + 2, unit_roundoff(np.float32)) + 3.0 * unit_roundoff(stages.wide)
    delta = np.where(rho < 1.0, rho / np.maximum(1.0 - rho, 1e-300), math.inf)
    return f * (abs(inner) * delta + E * (1.0 + delta)), f * (terms + abs(inner)), k + n + 8


def norm_doubt(ready: Update, W: Numbers, stages: Stages) -> Array | None:
    """‖E‖/‖x‖ of each column, where DoRA measures columns; None elsewhere."""
    if ready.magnitude is None or ready.magnitude.along == "rows":
        return None
    bare, squares = dataclasses.replace(ready, magnitude=None), np.zeros(ready.matrix[1])
    for rows in row_blocks(*ready.matrix, ENTRIES):
        E = expectation(bare, W, rows, stages).E
        squares += (E * E).sum(axis=0)
    with np.errstate(divide="ignore"):
        return np.sqrt(squares) / np.asarray(ready.magnitude.norms)


def _known(ready: Update, rows: slice, E: Array) -> Array:
    """0 in the rows that are replaced: nothing is computed there."""
    assert ready.tokens is not None
    mine = ready.tokens.indices
    E = E.copy()
    E[mine[(mine >= rows.start) & (mine < rows.stop)] - rows.start] = 0.0
    return E


def found_rows(update: Update, found: Numbers, rows: slice) -> Array:
    """These rows of a tensor, seen as the matrix of the update, in float64."""
    start, stop, _ = rows.indices(update.matrix[0])
    block = flat(found, start * update.matrix[1], stop * update.matrix[1])
    return in_type(block, np.float64).reshape(stop - start, update.matrix[1])


def roundings_of(update: Update) -> int:
    """k of (V4): the ranks that meet in one entry, two for the factor s, and the sums of several parts."""
    if len({part.at for part in update.parts}) == len(update.parts) > 1:
        return max(part.rank for part in update.parts) + 2  # one beside the other
    return sum(part.rank + 2 for part in update.parts) + 1


def lost_of(update: Update) -> float:
    """l of (V4): how often half the smallest number may be lost; s multiplies what was lost before it.

    Where s meets B first (mlx-lm), or A, each of its numbers may lose as much, before the other factor multiplies it;
    and so may s itself.
    """
    total = 1.0
    for part in update.parts:
        A, B = (abs(in_type(factor, np.float64)) for factor in (part.a(), part.b()))
        rows, columns = B.sum(axis=1).max(initial=0.0), A.sum(axis=0).max(initial=0.0)
        met_first = rows + columns + rows * A.max(initial=0.0)
        total += float((part.rank + 1) * max(1.0, abs(part.scale)) + 1.0 + 2.0 * met_first)
    return total
