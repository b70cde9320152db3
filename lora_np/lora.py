r"""The heart: low-rank adaptation of a frozen model.

$$h = W_0 x + \Delta W x = W_0 x + s\,B A x,\qquad s = \alpha/r \tag{L1}$$

W0 (d_out, d_in) is frozen; A (rank, d_in) and B (d_out, rank) are trained. `LoraLinear` computes
both side by side, `delta` is s·BA, and `merged` adds it in, so that nothing is left to compute at inference. Which maps
of a model get one, and at which rank and scale, are settings: `lora_np.methods.lora`.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1, equation 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .engine.arrays import Array
from .engine.devices import to_host
from .model import Embedding, Linear, dropout_mask
from .operations import embedding, linear, lora_linear
from .parameters import outline
from .rounding import gamma, unit_roundoff
from .wrappers import Expected, wrappers


@dataclass(frozen=True)
class LoraLinear:
    r"""A frozen linear map plus its low-rank update, equation (L1).

    base       Linear: W (d_out, d_in), b (d_out,) or None    frozen
    A          (rank, d_in)                                   trained, starts random
    B          (d_out, rank)                                  trained, starts at zero
    scaling    s
    dropout    probability of leaving an entry of x out of the branch
    generator  draws what is left out; None, as in a fresh model, leaves nothing out (see `with_dropout`)

    Raises ValueError when the shapes of base, A and B do not fit.

    >>> import numpy as np
    >>> from lora_np import LoraLinear
    >>> from lora_np.model import Linear
    >>> base = Linear(np.eye(3), None)
    >>> module = LoraLinear(base, A=np.ones((1, 3)), B=np.array([[1.0], [0.0], [2.0]]), scaling=0.5)
    >>> module(np.array([1.0, 2.0, 3.0]))  # x + B A x / 2, and A x = 6
    array([4., 2., 9.])
    >>> module.merged().W
    array([[1.5, 0.5, 0.5],
           [0. , 1. , 0. ],
           [1. , 1. , 2. ]])
    """

    base: Linear
    A: Array
    B: Array
    scaling: float
    dropout: float = 0.0
    generator: np.random.Generator | None = None

    __repr__ = outline

    def __post_init__(self) -> None:
        _check_shapes(self.base.W.shape, self.A.shape, self.B.shape)

    def __call__(self, x: Array) -> Array:
        mask = None if self.generator is None else dropout_mask(self.generator, x, self.dropout)
        return lora_linear(x, self.base.W, self.base.b, self.A, self.B, self.scaling, mask)

    def merged(self) -> Linear:
        r"""The plain map with $W = W_0 + s\,B A$."""
        return replace(self.base, W=self.base.W + delta(self))

    def expected(self, rows: slice = slice(None)) -> Expected:
        """Rows of the merged W: BA takes `rank` roundings, s one, and one more because s itself is rounded."""
        return _expected(self.base.W[rows], self.B[rows], self.A, self.scaling)


@dataclass(frozen=True)
class LoraEmbedding:
    r"""A frozen token table plus its low-rank update.

    A token is a one-hot vector, so as a linear map the table W (vocab, d_model) acts by its transpose: d_in = vocab,
    d_out = d_model, A is (rank, vocab) and B (d_model, rank), and row t becomes $W_t + s\,B A_{:,t}$. The gradient of
    a token reaches only its own column of A, which is why released code starts A at zero and B at random here; this
    one keeps the paper's rule, B = 0, everywhere. There is no dropout: a token is there or not.
    """

    base: Embedding
    A: Array
    B: Array
    scaling: float

    __repr__ = outline

    def __post_init__(self) -> None:
        _check_shapes(self.base.W.shape[::-1], self.A.shape, self.B.shape)

    def __call__(self, tokens: Array) -> Array:
        return self.base(tokens) + self.scaling * linear(embedding(tokens, self.A.T), self.B, None)

    @property
    def words(self) -> int:
        return self.base.words

    def as_head(self) -> LoraLinear:
        """The tied head of the adapted table: h (W + s (BA)ᵀ)ᵀ = h Wᵀ + s (h B) A."""
        return LoraLinear(self.base.as_head(), self.B.T, self.A.T, self.scaling)

    def merged(self) -> Embedding:
        r"""The plain table $W + s\,(BA)^T$."""
        return replace(self.base, W=self.base.W + delta(self))

    def expected(self, rows: slice = slice(None)) -> Expected:
        """Rows of the merged table, as in `LoraLinear`."""
        return _expected(self.base.W[rows], self.A.T[rows], self.B.T, self.scaling)


Adapted = (LoraLinear, LoraEmbedding)


def adapters(model: Any) -> dict[str, Any]:
    """The maps and tables of a model that carry LoRA, by dotted path."""
    return {path: node for path, node in wrappers(model).items() if isinstance(node, Adapted)}


def delta(module: LoraLinear | LoraEmbedding) -> Array:
    r"""$\Delta W = s\,B A$, in the orientation of the frozen array: (d_out, d_in); (vocab, d_model) for a table.

    Raises nothing of its own: shapes that do not fit were refused when the module was made.

    >>> import numpy as np
    >>> from lora_np import LoraLinear, delta
    >>> from lora_np.model import Linear
    >>> base = Linear(np.eye(3), None)
    >>> module = LoraLinear(base, A=np.ones((1, 3)), B=np.array([[1.0], [0.0], [2.0]]), scaling=0.5)
    >>> delta(module)
    array([[0.5, 0.5, 0.5],
           [0. , 0. , 0. ],
           [1. , 1. , 1. ]])
    """
    update = module.scaling * (module.B @ module.A)
    return update.T if isinstance(module, LoraEmbedding) else update


def rounding_bound(module: LoraLinear, x: Array) -> Array:
    r"""How far merged and adapted outputs of one map may differ by rounding alone: elementwise, (..., d_out).

    With $T = |W_0||x| + s|B||A||x| + |b|$ and the unit roundoff u of the coarsest product that is made,

    - adapted: Ax (d_in), B· (rank), the factor s, two additions:  n = d_in + rank + 3;
    - merged:  BA (rank), the factor s, + W0, ·x (d_in), + b:      n = d_in + rank + 3;

    and the two differ by at most twice γ_n T. One more rounding covers T, which is itself computed, in float64:

    $$|y_\text{adapted} - y_\text{merged}| \le 2\gamma_n T,\qquad n = d_\mathrm{in} + r + 4 \tag{L2}$$

    Raises ValueError when x does not have d_in columns.

    >>> import numpy as np
    >>> from lora_np import LoraLinear, rounding_bound
    >>> from lora_np.model import Linear
    >>> rng = np.random.default_rng(0)
    >>> W, A, B, x = (rng.standard_normal(shape, np.float32) for shape in ((8, 16), (2, 16), (8, 2), (5, 16)))
    >>> module = LoraLinear(Linear(W, None), A, B, scaling=2.0)
    >>> bound = rounding_bound(module, x)
    >>> bound.shape, bool((abs(module(x) - module.merged()(x)) <= bound).all())
    ((5, 8), True)
    >>> bool((abs(module(x) - module.base(x)) <= bound).any())  # and not so wide that anything would pass
    False
    """
    W, A, B = (np.abs(np.asarray(to_host(array), np.float64)) for array in (module.base.W, module.A, module.B))
    size = np.abs(np.asarray(to_host(x), np.float64))
    terms = size @ W.T + abs(module.scaling) * ((size @ A.T) @ B.T)
    if module.base.b is not None:
        terms += np.abs(to_host(module.base.b))
    made = ((module.base.W, x), (module.A, x), (module.A, module.B), (module.base.W, module.A, module.B, x))
    u = max(unit_roundoff(np.result_type(*(array.dtype for array in product))) for product in made)
    return 2.0 * gamma(sum(A.shape) + 4, u) * terms


def _expected(W: Array, left: Array, right: Array, scaling: float) -> Expected:
    """W + s·left·right for rows of W and of left: the update has left's width of terms, and two roundings for s.

    Each term may lose η to underflow before s meets it, s itself η before it meets them, the product once more; and if
    s meets left or right first, each of those numbers may.
    """
    precision, rank = np.result_type(left.dtype, right.dtype), len(right)
    W, left, right = (np.asarray(to_host(array), np.float64) for array in (W, left, right))
    update, size = scaling * (left @ right), abs(left) @ abs(right)
    first = abs(left).sum(axis=1, keepdims=True) + abs(right).sum(axis=0)
    lost = abs(scaling) * (rank + 1) + 2.0 * (size + first) + 1.0
    return Expected(W + update, update, abs(scaling) * size, rank + 2, precision, lost)


def _check_shapes(W: tuple[int, ...], A: tuple[int, ...], B: tuple[int, ...]) -> None:
    d_out, d_in = W
    if not (len(A) == len(B) == 2 and A[1] == d_in and B[0] == d_out and A[0] == B[1]):
        raise ValueError(f"A must be (rank, {d_in}) and B ({d_out}, rank) beside this map, got {A} and {B}")
