r"""Three witnesses for every gradient.

1. **hand**: the derivations of `lora_np.operations`, chained by autograd;
2. **textbook**: autograd alone, on the plain equations of `lora_np.textbook`;
3. **difference**: the central difference quotient of the loss, entry by entry, in float64.

The third needs no calculus, but has an error of its own. With $D(h) = (f(x+h) - f(x-h))/2h = f' + c\,h^2 + O(h^4)$,

$$R(h) = \frac{4 D(h/2) - D(h)}{3} = f' + O(h^4),\qquad
  Q = \frac{16 R(h/2) - R(h)}{15} = f' + O(h^6),\qquad
  e = |Q - R(h/2)| + \frac{\rho}{h} \tag{Q1}$$

(Richardson). The first part of e is the error of R(h/2), two orders in h worse than that of Q, so it is a safe
estimate; the second is the rounding of f, with ρ = 64 ε Σ|terms of f|: each term has a few dozen roundings behind it.

Where an array's gradient vanishes identically (a key's bias: softmax does not see what all scores share) all three
must be below e, and the verdict is "zero".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import autograd
import autograd.numpy as anp
import numpy as np

from . import operations as ops
from . import textbook
from .arrays import Array
from .devices import to_device, to_host
from .differentiation import operation, value_and_grad
from .lora import LoraConfig, adapt, adapters
from .model import TransformerConfig, initialize
from .operations.attention import QUERIES
from .operations.head import LOGITS, WORDS
from .parameters import Arrays, parameters, with_parameters

Verdict = Literal["equal", "zero", "different", "cannot be said"]

STEP = 2.0**-10  # h: large enough that ρ/h is small, small enough that h⁴ is
ROUNDING = 64.0 * float(np.finfo(np.float64).eps)
AGREEMENT = 1e-10  # between hand and textbook, of the array's largest gradient: a million times their rounding
RESOLUTION = 1e-6  # the largest e, of the same, with which the difference quotient may still testify


@dataclass(frozen=True)
class Case:
    """One scalar loss written twice, and the point (arrays by name) at which its gradients are compared."""

    name: str
    hand: Callable[[Arrays], Any]
    textbook: Callable[[Arrays], Any]
    point: Arrays
    size: float  # the sum of the absolute values of the terms of the loss, by which its rounding is judged
    device: str = "cpu"  # where `hand` takes its arrays; the textbook's stay on the host


@dataclass(frozen=True)
class Row:
    """The verdict on one array; each figure is the largest disagreement of a pair over the array's largest gradient."""

    case: str
    array: str
    shape: tuple[int, ...]
    hand_textbook: float
    hand_difference: float
    textbook_difference: float
    uncertainty: float  # the largest e of (Q1), over the same
    verdict: Verdict

    @property
    def holds(self) -> bool:
        return self.verdict in ("equal", "zero")


@dataclass(frozen=True)
class Report:
    """The rows of a gradient check."""

    seed: int
    rows: tuple[Row, ...]

    @property
    def holds(self) -> bool:
        """True when no array's witnesses disagree or cannot testify; false for an empty report."""
        return bool(self.rows) and all(row.holds for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; a figure that is not finite becomes None."""
        rows = [finite(dataclasses.asdict(row)) for row in self.rows]
        return {"seed": self.seed, "holds": self.holds, "rows": rows}


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same dict with None for every number that JSON cannot hold."""
    bad = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    return {**values, **dict.fromkeys(bad)}


def gradcheck(seed: int = 0, watch: Callable[[list[Case]], Iterable[Case]] = iter, device: str = "cpu") -> Report:
    """Check every operation and every array of whole models, at random shapes and at a point where B ≠ 0.

    watch   wraps the list of cases as they are gone through (a progress bar, say);
    device  "cpu" or "gpu": where the derivations and the difference quotients are computed, in float64.
    """
    cases = list(all_cases(np.random.default_rng(seed), device))
    return Report(seed, tuple(row for case in watch(cases) for row in check(case)))


def check(case: Case) -> list[Row]:
    """The verdict on each array of a case."""
    _, gradient = value_and_grad(case.hand)(to_device(case.point, case.device))
    hand = to_device(gradient, "cpu")
    book = autograd.grad(case.textbook)(case.point)
    largest = max(float(abs(gradient).max()) for gradient in book.values())
    rows = []
    for name, array in case.point.items():
        difference, error = difference_quotient(
            lambda point: case.hand(to_device(point, case.device)), case.point, name, case.size
        )
        rows.append(_row(case.name, name, array.shape, hand[name], book[name], difference, error, largest))
    return rows


def difference_quotient(loss: Callable[[Arrays], Any], point: Arrays, name: str, size: float) -> tuple[Array, Array]:
    """Q and e of equation (Q1) for every entry of one array; `size` is Σ|terms of the loss|."""
    array = point[name]
    quotient, error = np.empty(array.shape), np.empty(array.shape)
    for entry in np.ndindex(array.shape):

        def at(step: float, entry: tuple[int, ...] = entry) -> float:
            moved = array.copy()
            moved[entry] += step
            return float(loss({**point, name: moved}))

        D = [(at(h) - at(-h)) / (2 * h) for h in (STEP, STEP / 2, STEP / 4)]
        R = [(4 * D[1] - D[0]) / 3, (4 * D[2] - D[1]) / 3]
        quotient[entry] = (16 * R[1] - R[0]) / 15
        error[entry] = abs(quotient[entry] - R[1]) + ROUNDING * size / STEP
    return quotient, error


def _row(
    case: str, name: str, shape: tuple[int, ...], hand: Array, book: Array, difference: Array, error: Array, all_: float
) -> Row:
    if hand.shape != shape:
        return Row(case, name, shape, math.inf, math.inf, math.inf, math.inf, "different")
    pairs = [abs(hand - book), abs(hand - difference), abs(book - difference)]
    sizes = [float(abs(gradient).max()) for gradient in (hand, book, difference)]
    uncertainty = float(error.max())
    testified = bool((pairs[1] <= error).all() and (pairs[2] <= error).all())
    verdict: Verdict
    if not all(map(math.isfinite, sizes)):
        verdict = "different"
    elif max(sizes) <= uncertainty <= RESOLUTION * all_ and pairs[0].max() <= AGREEMENT * all_:
        verdict = "zero"
    elif not testified or pairs[0].max() > AGREEMENT * sizes[1]:
        verdict = "different"
    else:
        verdict = "equal" if uncertainty <= RESOLUTION * sizes[1] else "cannot be said"
    scale = all_ if verdict == "zero" else sizes[1]
    figures = [float(gap.max()) / scale if scale else math.inf for gap in (*pairs, error)]
    return Row(case, name, shape, figures[0], figures[1], figures[2], figures[3], verdict)


def all_cases(rng: np.random.Generator, device: str = "cpu") -> Iterator[Case]:
    """Every operation, those that join blocks at a size at which they do, then whole models."""
    yield from operation_cases(rng, device=device)
    yield from joined_cases(rng, device=device)
    yield adapted_case(rng, device)
    yield full_case(rng, causal=True, device=device)
    yield full_case(rng, causal=False, device=device)


# Σ y·c for a constant c, as an operation: the one of autograd.numpy would meet a device with an array of the host.
projection = operation(
    lambda y, constant, /, *, wanted: ((y * constant).sum(), constant),
    lambda constant, dL, wanted: [dL * constant],
)


def operation_cases(rng: np.random.Generator, operations: Any = ops, device: str = "cpu") -> Iterator[Case]:
    """Each operation between random arguments of random shapes and a random projection to one number.

    operations  where the operations are looked up: `lora_np.operations`, or a stand-in with a planted fault.
    """
    batch, seq, d_in, d_out, heads = (int(n) for n in rng.integers(2, 5, 5))
    rank, vocab, d = int(rng.integers(1, 3)), int(rng.integers(5, 9)), 2 * heads * int(rng.integers(1, 3))
    scaling = float(rng.uniform(0.5, 2.0))

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape)

    def there(array: Array) -> Array:
        return to_device(array, device)

    def projected(name: str, hand: Callable[..., Any], book: Callable[..., Any], **point: Array) -> Case:
        y = to_host(hand(*map(there, point.values())))
        to_number = normal(*y.shape)
        moved = there(to_number)
        return Case(
            name,
            lambda p: projection(hand(*p.values()), moved),
            lambda p: anp.sum(book(*p.values()) * to_number),
            point,
            float(abs(y * to_number).sum()),
            device,
        )

    x, W, b = normal(batch, seq, d_in), normal(d_out, d_in), normal(d_out)
    yield projected("linear", operations.linear, lambda x, W, b: anp.dot(x, W.T) + b, x=x, W=W, b=b)

    mask = (rng.random(x.shape) < 0.7) / 0.7
    dropped = there(mask)
    yield projected(
        "lora_linear",
        lambda x, W, b, A, B: operations.lora_linear(x, W, b, A, B, scaling, dropped),
        lambda x, W, b, A, B: anp.dot(x, W.T) + b + scaling * anp.dot(anp.dot(x * mask, A.T), B.T),
        x=x,
        W=W,
        b=b,
        A=normal(rank, d_in),
        B=normal(d_out, rank),
    )
    tokens = rng.integers(0, vocab - 1, (batch, seq + 3))  # some occur twice, the last one never
    ids = there(tokens)
    yield projected("embedding", lambda W: operations.embedding(ids, W), lambda W: W[tokens], W=normal(vocab, d_in))
    yield projected(
        "layer_norm",
        lambda x, gamma, beta: operations.layer_norm(x, gamma, beta, 1e-5),
        textbook.layer_norm,
        x=normal(batch, seq, d) + 3.0,
        gamma=normal(d),
        beta=normal(d),
    )
    yield projected("gelu", operations.gelu, textbook.gelu, x=2.0 * normal(batch, seq, d))

    keys = seq + int(rng.integers(1, 3))
    seen = rng.random((batch, keys)) < 0.6
    seen[:, 0] = True
    later = np.tril(np.ones((seq, keys), bool), keys - seq)
    for name, causal, padding, visible in (
        ("attention, causal", True, None, np.broadcast_to(later, (batch, 1, seq, keys))),
        ("attention, padded", False, seen, np.broadcast_to(seen[:, None, None], (batch, 1, seq, keys))),
        ("attention, causal and padded", True, seen, later & seen[:, None, None]),
    ):
        hidden = None if padding is None else there(padding)
        yield projected(
            name,
            lambda q, k, v, causal=causal, hidden=hidden: operations.attention(q, k, v, heads, causal, hidden),
            lambda q, k, v, visible=visible: textbook.attention(q, k, v, heads, visible),
            q=normal(batch, seq, d),
            k=normal(batch, keys, d),
            v=normal(batch, keys, d),
        )
    targets, weights = rng.integers(0, vocab, (batch, seq)), rng.random((batch, seq)) * (rng.random((batch, seq)) < 0.8)
    weights[0, 0] = 1.0
    logits, labels = 3.0 * normal(batch, seq, vocab), (there(targets), there(weights))
    yield Case(
        "cross_entropy",
        lambda p: operations.cross_entropy(p["logits"], *labels),
        lambda p: textbook.cross_entropy(p["logits"], targets, weights),
        {"logits": logits},
        float(operations.cross_entropy(there(logits), *labels)),
        device,
    )
    h, W = normal(batch, seq, d_in), normal(vocab, d_in)
    yield Case(
        "head_cross_entropy",
        lambda p: operations.head_cross_entropy(p["h"], p["W"], *labels),
        lambda p: textbook.cross_entropy(anp.dot(p["h"], p["W"].T), targets, weights),
        {"h": h, "W": W},
        float(operations.head_cross_entropy(there(h), there(W), *labels)),
        device,
    )


def joined_cases(rng: np.random.Generator, operations: Any = ops, device: str = "cpu") -> Iterator[Case]:
    """The operations that put sums together from blocks, at sizes at which there are several: along two directions.

    Attention joins blocks of queries; the head joins blocks of words, and for the table's gradient blocks of rows.
    With thousands of entries, a quotient for each would take longer than all other cases.
    """
    batch, heads, queries, keys = 2, 2, 2 * QUERIES + 2, 2 * QUERIES + 3
    seen = rng.random((batch, keys)) < 0.8
    seen[:, 0] = True
    visible = np.tril(np.ones((queries, keys), bool), keys - queries) & seen[:, None, None]
    to_number = rng.standard_normal((batch, queries, 2 * heads))
    q, k, v = (rng.standard_normal((batch, n, 2 * heads)) for n in (queries, keys, keys))
    hidden, moved = to_device((seen, to_number), device)
    by_blocks = Case(
        "attention, joined",
        lambda p: projection(operations.attention(p["q"], p["k"], p["v"], heads, True, hidden), moved),
        lambda p: anp.sum(textbook.attention(p["q"], p["k"], p["v"], heads, visible) * to_number),
        {"q": q, "k": k, "v": v},
        float(abs(textbook.attention(q, k, v, heads, visible) * to_number).sum()),
        device,
    )
    yield along(by_blocks, rng)

    rows, words = LOGITS // WORDS + 1, WORDS + 2
    targets, weights = rng.integers(0, words, rows), rng.random(rows) / rows
    h, W = rng.standard_normal((rows, 2)), rng.standard_normal((words, 2))
    # Longer than all others, so that in many rows the last block brings a larger logit and what was summed shrinks.
    W[WORDS:] *= 6.0 / np.linalg.norm(W[WORDS:], axis=1, keepdims=True)
    labels = to_device((targets, weights), device)
    by_words = Case(
        "head_cross_entropy, joined",
        lambda p: operations.head_cross_entropy(p["h"], p["W"], *labels),
        lambda p: textbook.cross_entropy(anp.dot(p["h"], p["W"].T), targets, weights),
        {"h": h, "W": W},
        float(textbook.cross_entropy(h @ W.T, targets, weights)),
        device,
    )
    yield along(by_words, rng)


# start + Σ p_i U_i, with one row of U for each direction, as an operation for the same reason as the projection.
combination = operation(
    lambda p, start, U, /, *, wanted: (start + (p @ U).reshape(start.shape), U),
    lambda U, dy, wanted: [U @ dy.reshape(-1)],
)


def along(case: Case, rng: np.random.Generator, directions: int = 2) -> Case:
    r"""The case as a function of p: each array a becomes $a + \sum_i p_i U_i$, with random directions U, at p = 0.

    An array's gradient is then that along its few directions, $\partial L/\partial p_i = \langle\partial L/\partial a,
    U_i\rangle$: a mistake in any entry shows there, unless two of them cancel to ten digits.
    """
    start = case.point
    U = {name: rng.standard_normal((directions, array.size)) for name, array in start.items()}
    moved, along_U = to_device((start, U), case.device)

    def hand(p: Arrays) -> Any:
        return case.hand({name: combination(p[name], moved[name], along_U[name]) for name in start})

    def book(p: Arrays) -> Any:
        return case.textbook({n: a + anp.reshape(anp.dot(p[n], U[n]), a.shape) for n, a in start.items()})

    return dataclasses.replace(case, hand=hand, textbook=book, point={name: np.zeros(directions) for name in start})


def adapted_case(rng: np.random.Generator, device: str = "cpu") -> Case:
    """A whole model with LoRA on every linear map and on the tied token table, its biases trained as well."""
    config = LoraConfig(
        rank=2, alpha=3.0, targets=("attention+mlp", "tokens"), bias="all", tied_head="tie", ranks={"mlp.up": 1}
    )
    model = adapt(_small_model(rng, causal=True), config, rng)
    return _model_case("adapted model", model, config.trained, rng, device)


def full_case(rng: np.random.Generator, *, causal: bool, device: str = "cpu") -> Case:
    """A whole model with every array trained: causal, or bidirectional with padding and a head of its own."""
    name = "full model, " + ("causal" if causal else "bidirectional, padded")
    return _model_case(name, _small_model(rng, causal), ("*",), rng, device)


def _small_model(rng: np.random.Generator, causal: bool) -> Any:
    heads = int(rng.integers(2, 4))
    sizes = {"vocab": int(rng.integers(5, 9)), "context": int(rng.integers(6, 9)), "d_model": 2 * heads, "heads": heads}
    config = TransformerConfig(**sizes, layers=2, d_ff=int(rng.integers(5, 9)), causal=causal, tied=causal)
    return initialize(config, rng, np.float64)


def _model_case(name: str, model: Any, select: tuple[str, ...], rng: np.random.Generator, device: str) -> Case:
    """The loss of a model moved to a random point, so that B ≠ 0 and no array is at its special start."""
    model = with_parameters(
        model, {name: array + 0.4 * rng.standard_normal(array.shape) for name, array in parameters(model).items()}
    )
    config, shape = model.config, (2, model.config.context - 1)
    tokens, targets = rng.integers(0, config.vocab, shape), rng.integers(0, config.vocab, shape)
    weights = rng.random(shape) * (rng.random(shape) < 0.7)
    weights[0, -1] = 1.0
    weights /= weights.sum()
    mask = None if config.causal else np.arange(shape[1]) < np.array([[shape[1]], [shape[1] - 2]])
    frozen = {_plain(path): array for path, array in parameters(model).items()}
    scaling = {path: module.scaling for path, module in adapters(model).items()}

    node, ids, padding, *labels = to_device((model, tokens, mask, targets, weights), device)

    def hand(point: Arrays) -> Any:
        return with_parameters(node, point).loss(ids, *labels, padding)

    def book(point: Arrays) -> Any:
        p = {**frozen, **{_plain(path): array for path, array in point.items()}}
        return textbook.loss(p, tokens, targets, weights, config.heads, scaling, config.causal, mask)

    point = parameters(model, *select)
    return Case(name, hand, book, point, float(hand(to_device(point, device))), device)


def _plain(path: str) -> str:
    """The textbook's name for an array: it knows no module around an adapted one."""
    return path.replace(".base.", ".")
