r"""What a conformance vector is: a layer with an adapter, what it must compute, and how exactly.

All numbers are small multiples of 1/8. So they are the same in float64, float32, float16 and bfloat16, and their
products and sums are exact in float64, in whatever order a library makes them: but for roots and norms, a vector is
the same to the bit on every machine.

The rows themselves are in `lora_np.cases.layers`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import numpy as np

from ..engine.arrays import Array
from ..rounding import gamma
from .equations import RULES, Arrays, Settings, answers

# The unit roundoff of each type that vectors are asked in. NumPy does not know the last one, and need not.
U = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
DTYPES = tuple(U)


@dataclass(frozen=True)
class Vector:
    """One row: the inputs of a layer, its settings in PEFT's words, and what is to be computed.

    kind     which of `FORWARD` and `MERGED` it asks
    wanted   the names of the outputs; dA is the gradient of Σ dy·y with respect to A
    dtypes   in which it is asked; floating inputs come in that type, but those of kind "cast" as they are
    refused  why an implementation must refuse it; None when it must answer
    source   where the refusal was learnt, REPOSITORY#NUMBER
    """

    name: str
    kind: str
    words: str
    settings: Settings
    inputs: Arrays
    wanted: tuple[str, ...]
    dtypes: tuple[str, ...] = DTYPES
    refused: str | None = None
    source: str = ""
    outputs: Arrays = field(default_factory=dict)
    sizes: Arrays = field(default_factory=dict)
    roundings: dict[str, int] = field(default_factory=dict)
    tolerances: dict[str, dict[str, float]] = field(default_factory=dict)  # by output and type, relative to the size

    def answered(self) -> Vector:
        """The same with what must come out, and with what its rounding is judged by; see `sizes`."""
        if self.refused:
            return self
        outputs = answers(self.kind, self.settings, self.inputs, self.wanted)
        found, counts = sizes(self)
        allowed = {
            name: {dtype: tolerance(counts[name], dtype, self.kind) for dtype in self.dtypes} for name in self.wanted
        }
        return replace(self, outputs=outputs, sizes=found, roundings=counts, tolerances=allowed)


class Numbers:
    """Multiples of 1/8 that follow from the name of a vector alone: random bits, of which NumPy keeps the stream."""

    def __init__(self, name: str) -> None:
        self.bits = np.random.PCG64(zlib.crc32(name.encode()))

    def __call__(self, *shape: int, low: int = -12, high: int = 12) -> Array:
        """In low/8 … high/8, and not 0."""
        raw = self.bits.random_raw(int(np.prod(shape))).astype(np.uint64) % np.uint64(high - low + 1)
        eighths = raw.astype(np.int64).reshape(shape) + low
        return np.where(eighths == 0, 1, eighths) / 8.0

    def keep(self, *shape: int) -> Array:
        """Ones and zeros, of each about a half."""
        return (self(*shape) > 0.0).astype(np.float64)


# ------------------------------------------------------------------------------------------------ how exact it must be

OTHERS = (
    10  # roundings of an entry but for its sums: s has two and meets the entry once, the mask two, base, branch and
)
# bias three; one is what float16 loses near zero, where terms are at least 2⁻⁶; one for the value that is published


def sizes(vector: Vector) -> tuple[dict[str, Array], dict[str, int]]:
    r"""For each output: T, an array of its shape, and n, such that an honest result differs by at most γ_n T.

    T is the sum of the absolute values of all terms, which are products of inputs: the same equations of the absolute
    inputs. n counts the sums that lie behind an entry, in whichever order they are made (BA)x or B(Ax), and OTHERS.

    Kind "dora" has a quotient. With S = |W| + s|B||A|, V and n as in (K4) and κ = ‖S‖/‖V‖ row by row, V is off by
    γS, so n by γκn, and with |δ| ≤ γS, |θ| ≤ γκ

    $$\left|\frac{V+\delta}{n(1+\theta)} - \frac Vn\right|
      \le \gamma\,\frac{S + \kappa|V|}{n(1-\gamma\kappa)} \tag{K5}$$

    A gradient has up to three factors 1/n and two of V: its terms with S for V and every sign positive, times 1 + 3κ.
    That is the first order alone, so these gradients are asked in float64 and float32 only.

    Kind "cast": bases of 16 bits, factors in float32. ΔW may be rounded to the base's type before it is added, so
    T = u|W + ΔW| + u(1+u)|ΔW| + 2γ_{r+3}(float32)|s||B||A|, and the tolerance is 1.
    """
    if vector.kind == "cast":
        return {"merged": _size_of_cast(vector)}, {"merged": 1}
    positive = {name: abs(a) if np.issubdtype(a.dtype, np.floating) else a for name, a in vector.inputs.items()}
    counts = {name: _sums(vector, name) + OTHERS for name in vector.wanted}
    if vector.kind == "dora":
        counts = {name: count + vector.inputs["A"].shape[1] + 4 for name, count in counts.items()}
        return _sizes_of_dora(vector, positive, counts), counts
    return answers(vector.kind, vector.settings, positive, vector.wanted), counts


def _sums(vector: Vector, name: str) -> int:
    """How many terms are summed behind an entry of an output, one sum after another."""
    p = vector.inputs
    A, B = (next((a for key, a in p.items() if key.partition(".")[0] == letter), np.zeros((1, 1))) for letter in "AB")
    rank, d_in, d_out = A.shape[0], A.shape[-1], B.shape[0] if B.ndim == 2 else B.shape[1]
    rank = max(rank, max((a.shape[0] for key, a in p.items() if key.startswith("A.")), default=rank))
    rows = int(np.prod(p["x"].shape[:-1])) if "x" in p else p["tokens"].size if "tokens" in p else 0
    if vector.kind in ("embedding", "tied", "tokens"):
        d_in, d_out = p["W"].shape[1], p["W"].shape[1]
        rows += p["tokens"].size
    behind = {"y": d_in + rank, "logits": d_in + rank, "dx": sum(p["W"].shape) + rank, "dA": d_out + rows}
    behind |= {"dB": d_in + rows, "dm": d_in + rank + rows, "drows": rows, "dlora_b": rows, "dtrained_b": rows}
    return behind.get(name.partition(".")[0], 0 if name in ("scale", "merged_b") else rank)


def _sizes_of_dora(vector: Vector, positive: Arrays, counts: dict[str, int]) -> dict[str, Array]:
    p, settings = positive, vector.settings
    s = RULES.scale(settings)
    V = RULES.oriented(vector.inputs["W"], settings) + s * vector.inputs["B"] @ vector.inputs["A"]
    n = np.sqrt((V * V).sum(axis=1))
    S = RULES.oriented(p["W"], settings) + s * p["B"] @ p["A"]
    kappa = np.sqrt((S * S).sum(axis=1)) / n
    worst = kappa / (1.0 - gamma(max(counts.values()), U[vector.dtypes[-1]]) * kappa)
    weights = (p["m"] / n)[:, None] * (S + kappa[:, None] * abs(V)) * (worst / kappa)[:, None]
    x, dy = (p[name].reshape(-1, p[name].shape[-1]) for name in ("x", "dy"))
    G = dy * (p["m"] / n)
    pull = (dy * (x @ S.T)).sum(axis=0) / n
    dV = G.T @ x + (p["m"] * pull / n)[:, None] * S / n[:, None]
    more = 1.0 + 3.0 * kappa.max()
    found = {"scale": np.float64(s), "merged": RULES.oriented(weights, settings), "merged_b": p.get("b")}
    found["y"] = p["x"] @ weights.T + p.get("b", 0.0)
    found |= {"dx": more * (p["dy"] * (p["m"] / n)) @ S, "dm": more * pull}
    found |= {"dA": more * s * p["B"].T @ dV, "dB": more * s * dV @ p["A"].T}
    return {name: np.asarray(found[name]) for name in vector.wanted}


def _size_of_cast(vector: Vector) -> Array:
    p, s = vector.inputs, RULES.scale(vector.settings)
    u, v = U[vector.settings["stored"]], U["float32"]
    W, A, B = (np.asarray(p[name], np.float64) for name in ("W", "A", "B"))
    lost = 2.0 * gamma(len(A) + 3, v) * s * (abs(B) @ abs(A))
    delta = abs(s * B @ A) + lost
    return u * (abs(W + s * B @ A) + (1.0 + u) * delta) + u * (1.0 + u) * delta + lost


def tolerance(roundings: int, dtype: str, kind: str) -> float:
    """γ_n in this precision, and once more in that of the published value."""
    if kind == "cast":
        return 1.0
    return gamma(roundings, U[dtype]) + gamma(roundings, U["float64"])
