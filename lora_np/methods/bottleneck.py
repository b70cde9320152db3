r"""Bottleneck adapters: a small network after a module, on whose output the rest of the model then depends.

$$y \leftarrow y + W_\mathrm{up}\,\mathrm{GELU}(W_\mathrm{down}\,y + b_\mathrm{down}) + b_\mathrm{up},\qquad
  W_\mathrm{down}\ (r, d),\ W_\mathrm{up}\ (d, r) \tag{B1}$$

    adapter-h   after attention and after the MLP, before each is added to the stream   Houlsby et al. 2019, 1902.00751
    adapter-l   after the whole block, on its layer norm                                Lin et al. 2020, 2004.03829
    adapter-p   after the MLP, before it is added to the stream                         Pfeiffer et al. 2021, 2005.00247
    compacter   as adapter-h, each matrix a sum of n Kronecker products (K1)            Mahabadi et al. 2021, 2106.04647

`dropped` leaves the first blocks without (AdapterDrop, Rücklé et al. 2020, arXiv:2010.11918). W_up and b_up start at
zero, so that nothing changes. With L̂ adapters of which each has its own layer norm in adapter-l (L̂_LN = L̂, else 0),

$$|\Theta| = \hat L\,(2dr + r + d) + 2\,\hat L_\mathrm{LN}\,d \tag{C13}$$

There is no plain module that computes (B1), so an adapter stays: it makes each block longer, by two matrix products
one after another for each adapter in it.

Source: Hu et al. 2021, arXiv:2106.09685, section 5.1, adapter tuning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..config import TransformerConfig
from ..engine.arrays import Array, array_module, normal
from ..method import Method, whole
from ..model import LayerNorm, Linear, place_of
from ..operations import gelu, kronecker, linear
from ..parameters import Arrays, outline, parameters, walk, with_modules


@dataclass(frozen=True)
class Bottleneck:
    """y + up(GELU(down(y))), equation (B1); on the layer norm of y where there is one."""

    down: Any
    up: Any
    norm: LayerNorm | None = None

    __repr__ = outline

    def __call__(self, y: Array) -> Array:
        return y + self.up(gelu(self.down(y if self.norm is None else self.norm(y))))


@dataclass(frozen=True)
class Followed:
    """A module (attention, MLP or a block) and the adapter that its output goes through."""

    base: Any
    adapter: Bottleneck

    __repr__ = outline

    def __call__(self, x: Array, *reading: Any) -> Array:
        return self.adapter(self.base(x, *reading))


@dataclass(frozen=True)
class KroneckerLinear:
    """A linear map whose matrix is (K1): A (n, n, n), S (n, d_out/n, 1), T (n, 1, d_in/n), and b (d_out,)."""

    A: Array
    S: Array
    T: Array
    b: Array

    __repr__ = outline

    def __call__(self, x: Array) -> Array:
        return linear(x, kronecker(self.A, self.S, self.T), self.b)


@dataclass(frozen=True)
class _Bottlenecks(Method):
    """What the four have in common: where adapters stand, and how many numbers they have.

    rank     r, at most d_model: a wider one would be no bottleneck
    dropped  how many of the first blocks have no adapter
    """

    places: ClassVar[tuple[str, ...]]  # the modules of a block that an adapter follows; "" is the block itself

    rank: int = 8
    dropped: int = 0

    grows_by = "rank"

    def __post_init__(self) -> None:
        whole("rank", self.rank)
        whole("dropped", self.dropped, least=0)

    @property
    def depth(self) -> int:  # type: ignore[override]
        return 2 * len(self.places)

    def apply(self, model: Any, rng: np.random.Generator | None) -> Any:
        """The model with an adapter after every such module; raises ValueError when `dropped` leaves none."""
        chosen = [f"blocks.{i}" for i in self._layers(model.config)]
        paths = [f"{block}.{place}" if place else block for block in chosen for place in self.places]
        old = dict(walk(model))
        return with_modules(model, {path: Followed(old[path], self.adapter(model, rng)) for path in paths})

    def adapter(self, model: Any, rng: np.random.Generator | None) -> Bottleneck:
        """A fresh one: down N(0, 1/d), all else zero."""
        d, like = model.config.d_model, place_of(model)
        xp = array_module(like)
        down = Linear(normal(rng, (self.rank, d), 1.0 / math.sqrt(d), like), xp.zeros(self.rank, like.dtype))
        return Bottleneck(down, Linear(xp.zeros((d, self.rank), like.dtype), xp.zeros(d, like.dtype)))

    def trained(self, model: Any) -> Arrays:
        return parameters(model, "*.adapter.*")

    def numbers(self, config: TransformerConfig) -> int:
        return len(self._layers(config)) * len(self.places) * self.numbers_of_one(config)

    def numbers_of_one(self, config: TransformerConfig) -> int:
        """2dr + r + d."""
        return 2 * config.d_model * self.rank + self.rank + config.d_model

    def multiply_adds(self, config: TransformerConfig) -> int:
        return len(self._layers(config)) * len(self.places) * 2 * config.d_model * self.rank

    def _layers(self, config: TransformerConfig) -> range:
        if self.rank > config.d_model:
            raise ValueError(
                f"rank must lie in 1..d_model = 1..{config.d_model}: wider is no bottleneck, got {self.rank}"
            )
        if self.dropped >= config.layers:
            raise ValueError(f"dropped must leave one of the {config.layers} blocks an adapter, got {self.dropped}")
        return range(self.dropped, config.layers)


@dataclass(frozen=True)
class AdapterH(_Bottlenecks):
    """Two adapters a block: after attention and after the MLP."""

    places = ("attention", "mlp")


@dataclass(frozen=True)
class AdapterP(_Bottlenecks):
    """One adapter a block: after the MLP."""

    places = ("mlp",)


@dataclass(frozen=True)
class AdapterL(_Bottlenecks):
    """One adapter a block, after all of it, with a layer norm of its own."""

    places = ("",)

    def adapter(self, model: Any, rng: np.random.Generator | None) -> Bottleneck:
        plain, d, like = super().adapter(model, rng), model.config.d_model, place_of(model)
        xp = array_module(like)
        return Bottleneck(plain.down, plain.up, LayerNorm(xp.ones(d, like.dtype), xp.zeros(d, like.dtype)))

    def numbers_of_one(self, config: TransformerConfig) -> int:
        """2dr + r + d, and the 2d of its norm."""
        return super().numbers_of_one(config) + 2 * config.d_model


@dataclass(frozen=True)
class Compacter(_Bottlenecks):
    r"""Two adapters a block whose matrices are sums of n Kronecker products with second factors of rank 1 (K1).

    $$|\Theta| = \hat L\,\big(2n^3 + 2(d + r) + r + d\big) \tag{C14}$$

    n must divide d_model and rank. The paper shares the A of (K1) over all layers; here each matrix has its own.
    """

    n: int = 4

    places = ("attention", "mlp")

    @property
    def step(self) -> int:  # type: ignore[override]
        return self.n

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("n", self.n)
        if self.rank % self.n:
            raise ValueError(f"n must divide rank, got n = {self.n} for rank {self.rank}")

    def adapter(self, model: Any, rng: np.random.Generator | None) -> Bottleneck:
        d = self._width(model.config)
        return Bottleneck(self._map(rng, self.rank, d, model), self._map(rng, d, self.rank, model, fresh=False))

    def numbers_of_one(self, config: TransformerConfig) -> int:
        d = self._width(config)
        return 2 * self.n**3 + 2 * (d + self.rank) + self.rank + d

    def _map(
        self, rng: np.random.Generator | None, d_out: int, d_in: int, model: Any, *, fresh: bool = True
    ) -> KroneckerLinear:
        """Entries of W have variance 1/d_in: n terms of a product of A with 1/n, S and T; S at zero for `up`."""
        n, like = self.n, place_of(model)
        zeros = array_module(like).zeros
        S = normal(rng, (n, d_out // n, 1), 1.0, like) if fresh else zeros((n, d_out // n, 1), like.dtype)
        T = normal(rng, (n, 1, d_in // n), 1.0 / math.sqrt(d_in), like)
        return KroneckerLinear(normal(rng, (n, n, n), 1.0 / math.sqrt(n), like), S, T, zeros(d_out, like.dtype))

    def _width(self, config: TransformerConfig) -> int:
        if config.d_model % self.n:
            raise ValueError(f"n must divide d_model, got n = {self.n} for d_model {config.d_model}")
        return config.d_model
