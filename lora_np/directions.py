r"""Three witnesses for the gradients of a real model, too large to ask for every entry: along directions.

LoRA stands beside the model with B ≠ 0, all in float64. What the arrays of one kind in all layers, every A of a query
say, move along together is a random direction U, in units of the size of each array:

$$a \leftarrow a + \sum_i p_i\,\rho(a)\,U_i,\qquad \rho(a) = \sqrt{\mathrm{mean}\,a^2} \tag{Q2}$$

The gradient by p at p = 0 is asked of all three witnesses, by (Q1) for the difference quotient. Two of them, the
derivations and the textbook, are also compared in every entry of every array: they cost one backward pass each.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np

from . import textbook
from .cases import Case, combination, textbook_settings
from .config import parameter_count
from .costs import step_bytes
from .engine.differentiation import value_and_grad
from .engine.memory import available_bytes
from .gradients import AGREEMENT, LEVELS, Report, Row, check
from .lora import adapters
from .methods import adapt
from .methods.lora import LoraConfig
from .model import Transformer, language_model_loss
from .names import plain
from .parameters import Arrays, parameters, with_parameters
from .tasks import Batch

DIRECTIONS = 2
SECONDS = 300.0  # with more than that in prospect, one direction is asked in place of two


@dataclass(frozen=True)
class Plan:
    """What a check will ask: how many evaluations of the loss, and in how many seconds at the pace of the first."""

    evaluations: int
    seconds: float
    directions: int


def needed_bytes(config: Any, tokens: int) -> int:
    """The model in float64, and what backward keeps of a text of so many tokens; the textbook keeps some times that."""
    kept = step_bytes(config, 1, tokens, 1, ("tokens",), item_size=8) - 8 * parameter_count(config)
    return 8 * parameter_count(config) + 6 * kept


def check_room(config: Any, tokens: int, where: str) -> None:
    """Raise ValueError, before the model is read, where its float64 and the check would not fit."""
    needed, free = needed_bytes(config, tokens), available_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"{where}: checking its gradients takes {needed / 1e9:.3g} GB in float64, and {free / 1e9:.3g} GB are "
            "available: take a smaller model"
        )


def gradcheck_of(
    base: Transformer,
    method: LoraConfig,
    seed: int = 0,
    tokens: int = 12,
    watch: Callable[[list[Case]], Iterable[Case]] = iter,
    told: Callable[[Plan], None] = lambda plan: None,
) -> Report:
    """The verdict on each kind of array that LoRA trains beside this model, which is in float64, at a random text.

    told   is given what will be asked, before it is
    """
    rng = np.random.default_rng(seed)
    model, trained = moved(base, method, rng)
    batch = random_batch(model, tokens, rng)
    hand, book = losses(model, batch)
    began = time.perf_counter()
    size = float(hand(trained))
    pace = time.perf_counter() - began
    kinds = sorted({kind_of(name) for name in trained})
    each = 2 * LEVELS * len(kinds)
    directions = DIRECTIONS if pace * each * DIRECTIONS <= SECONDS else 1
    told(Plan(each * directions, pace * each * directions, directions))
    entries = gaps(value_and_grad(hand)(trained)[1], autograd.grad(book)(trained))
    cases = [along_kind(kind, trained, hand, book, size, directions, rng) for kind in kinds]
    return Report(seed, tuple(_with(row, entries, trained) for case in watch(cases) for row in check(case)))


def moved(base: Transformer, method: LoraConfig, rng: np.random.Generator) -> tuple[Transformer, Arrays]:
    """The adapted model with every B far from zero, of the size of a trained one, and what is trained of it."""
    fresh = adapt(base, method, rng)
    start = method.trained(fresh)
    trained = {n: a if a.any() else 0.02 * rng.standard_normal(a.shape).astype(a.dtype) for n, a in start.items()}
    return with_parameters(fresh, trained), trained


def random_batch(model: Transformer, tokens: int, rng: np.random.Generator) -> Batch:
    config = model.config
    shape, predicted = (1, tokens), (1, 1) if config.classes else (1, tokens)
    weights = rng.random(predicted)
    targets = rng.integers(0, config.outcomes, predicted)
    return Batch(rng.integers(0, config.vocab, shape), targets, weights / weights.sum())


def losses(model: Transformer, batch: Batch) -> tuple[Callable[[Arrays], Any], Callable[[Arrays], Any]]:
    """The loss as a function of what is trained, by the derivations and by the textbook."""
    everything = {plain(path): array for path, array in parameters(model).items()}
    scaling = {plain(path): module.scaling for path, module in adapters(model).items()}
    settings = textbook_settings(model.config)

    def hand(trained: Arrays) -> Any:
        return language_model_loss(with_parameters(model, trained), batch)

    def book(trained: Arrays) -> Any:
        p = {**everything, **{plain(path): array for path, array in trained.items()}}
        return textbook.loss(p, batch.tokens, batch.targets, batch.weights, model.config.heads, scaling, **settings)

    return hand, book


def kind_of(name: str) -> str:
    """`blocks.7.attention.query.A` is of the kind `attention.query.A`."""
    return ".".join(part for part in plain(name).split(".") if part != "blocks" and not part.isdecimal())


def along_kind(
    kind: str,
    trained: Arrays,
    hand: Callable[[Arrays], Any],
    book: Callable[[Arrays], Any],
    size: float,
    directions: int,
    rng: np.random.Generator,
) -> Case:
    """The case of (Q2): all arrays of one kind, moved together."""
    U = {
        name: np.sqrt(np.mean(array**2)) * rng.standard_normal((directions, array.size))
        for name, array in trained.items()
        if kind_of(name) == kind
    }

    def hand_along(p: Arrays) -> Any:
        return hand({**trained, **{name: combination(p[kind], trained[name], u) for name, u in U.items()}})

    def book_along(p: Arrays) -> Any:
        along = {name: anp.reshape(anp.dot(p[kind], u), trained[name].shape) for name, u in U.items()}
        return book({**trained, **{name: trained[name] + move for name, move in along.items()}})

    return Case("along directions", hand_along, book_along, {kind: np.zeros(directions)}, size)


def gaps(hand: Arrays, book: Arrays) -> dict[str, float]:
    """The largest disagreement in any entry of each kind of array, over the largest entry of that array."""
    found: dict[str, float] = {}
    for name, array in book.items():
        largest = float(abs(array).max())
        gap = float(abs(hand[name] - array).max()) / largest if largest else float(abs(hand[name]).max())
        found[kind_of(name)] = max(gap, found.get(kind_of(name), 0.0))
    return found


def _with(row: Row, entries: dict[str, float], trained: Arrays) -> Row:
    """The row along directions with what every entry of every array of its kind came to."""
    worst = max(row.hand_textbook, entries[row.array])
    shapes = [array.shape for name, array in trained.items() if kind_of(name) == row.array]
    shape: tuple[int, ...] = (len(shapes), *shapes[0])
    differs = row.verdict == "equal" and not worst <= AGREEMENT
    return dataclasses.replace(row, shape=shape, hand_textbook=worst, verdict="different" if differs else row.verdict)
