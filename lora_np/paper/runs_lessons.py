r"""Cells of the lessons: what takes more than one adaptation, or looks into one.

memory       bits stored of random pairs                 untied       the head parted from the token table first
progressive  more kinds of matrices, one after another   pruned       the least singular parts taken out half way
carried      an adapter on an updated base               sizes        how large a step the adapter's branch has made
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..adaptation import run as adapted_run
from ..lora import LoraLinear, adapters, delta
from ..methods import adapt
from ..methods.lora import LoraConfig
from ..methods.tuning import Full
from ..model import Transformer, language_model_loss
from ..names import ATTENTION, MLP
from ..optimization import start
from ..parameters import Arrays, parameters, with_modules, with_parameters
from ..tasks import epoch
from ..tasks.memory import BITS, MEMORY
from ..training import NonFiniteError, fit, model_loss
from .cells import Cell, Row
from .runs import Sides, method_of, trained, training_of

STAGES = (ATTENTION, (*ATTENTION, "tokens"), (*ATTENTION, "tokens", *MLP))
GAIN = 0.02  # of the loss: a stage that gains less is the last
UPDATE_TASK, UPDATE_RATE = "museum", 1e-3  # what an updated base has learned meanwhile


def memory(cell: Cell, base: Transformer) -> Row:
    """Bits stored of `examples` random pairs, half way and at the end; all of them are in every batch of the score."""
    method = method_of(cell)
    sides = Sides.of(cell.having(task=MEMORY.name), base, method)
    pairs, marks = cell.examples, (max(1, cell.steps // 2), cell.steps)

    def stored(model: Transformer) -> float:
        """(T4), without the mark that ends each value."""
        nats = 0.0
        for batch in epoch(sides.train.sequences, 64, sides.train.tokenizer.end):
            values = batch.weights * (batch.targets != sides.train.tokenizer.end)
            nats += float(language_model_loss(model, replace(batch, weights=values))) * batch.tokens_trained
        return BITS * pairs - nats / math.log(2.0)

    try:
        outcome = adapted_run(
            sides.train.batches, stored, base, method, training_of(cell), seed=cell.seed, scored=marks[:1]
        )
    except NonFiniteError:
        return Row(cell, float(method.numbers(base.config)), loss=math.inf)
    half = outcome.scores[0][1]
    more = {"stored": outcome.score, "half way": half, "a number": outcome.score / outcome.trained}
    return Row(cell, float(outcome.trained), score=outcome.score, more=more)


def untied(cell: Cell, base: Transformer) -> Row:
    """The run of a cell on the same base with a head of its own, which starts as the token table."""
    own = replace(base, head=base.tokens.as_head(), config=replace(base.config, tied=False))
    method = method_of(cell)
    sides = Sides.of(cell, own, method)
    try:
        outcome = trained(cell, own, method, sides)
    except NonFiniteError:
        return Row(cell, loss=math.inf)
    return Row(cell, float(outcome.trained), loss=outcome.score)


def progressive(cell: Cell, base: Transformer) -> Row:
    """Attention first, then embeddings as well, then MLPs, each for as many steps; stopped where one gains too little.

    more: the loss after each stage, the stages that were kept, and that of all matrices from the beginning, for as many
    steps as all stages have together.
    """
    about = cell.with_settings
    rank, per_stage = int(about["rank"]), cell.steps // len(STAGES)
    losses: list[float] = []
    kept: Mapping[str, Any] = {}
    for targets in STAGES:
        method = LoraConfig(rank, targets=targets, tied_head="tie")
        sides = Sides.of(cell, base, method)
        model = adapt(base, method, np.random.default_rng(cell.seed))
        model = with_modules(model, {path: module for path, module in kept.items() if path in adapters(model)})
        model = _fitted(model, method.trained(model), sides, cell.having(steps=per_stage))
        kept = adapters(model)
        losses.append(sides.held_out.bits_per_byte(model))
        if len(losses) > 1 and losses[-2] - losses[-1] < GAIN * losses[-2]:
            break
    every = LoraConfig(rank, targets=STAGES[-1], tied_head="tie")
    at_once = trained(cell, base, every, Sides.of(cell, base, every)).score
    more = {"losses": losses, "stages": len(losses), "at once": at_once}
    return Row(cell, loss=losses[-1], more=more)


def _fitted(model: Any, arrays: Arrays, sides: Sides, cell: Cell) -> Any:
    """The model after the steps of this cell, from where it stands."""
    config = training_of(cell)
    state = start(arrays, config)
    for record in fit(model_loss(model), sides.train.batches, config, state):
        state = record.state
    return with_parameters(model, state.trained)


def pruned(cell: Cell, base: Transformer) -> Row:
    """Rank 2r for half of the steps, then the r·m largest of all singular parts of m maps, then the other half.

    more: what fixed ranks r and 2r come to in all steps, and the ranks that each kind of matrix keeps on average.
    """
    about = cell.with_settings
    rank, targets = int(about["rank"]), about.get("targets", "qkvo")
    wide, narrow = LoraConfig(2 * rank, targets=targets), LoraConfig(rank, targets=targets)
    sides = Sides.of(cell, base, wide)
    half = cell.having(steps=max(1, cell.steps // 2))
    fresh = adapt(base, wide, np.random.default_rng(cell.seed))
    model = _fitted(fresh, wide.trained(fresh), sides, half)
    model, ranks = cut(model, rank * len(adapters(model)))
    model = _fitted(model, parameters(model, "*.A", "*.B"), sides, half)
    fixed = {f"rank {m.rank}": trained(cell, base, m, sides).score for m in (narrow, wide)}
    kinds: dict[str, list[int]] = {}
    for path, kept in ranks.items():
        kinds.setdefault(path.rpartition(".")[2], []).append(kept)
    means = {f"kept of {name}": float(np.mean(found)) for name, found in kinds.items()}
    return Row(cell, loss=sides.held_out.bits_per_byte(model), more={**fixed, **means})


def cut(model: Any, total: int) -> tuple[Any, dict[str, int]]:
    """The model with the `total` largest singular parts of all its s·BA, at least one a map; and the rank of each."""
    parts = {path: np.linalg.svd(delta(module).astype(np.float64)) for path, module in adapters(model).items()}
    sizes = {path: sigma[: len(adapters(model)[path].A)] for path, (_, sigma, _) in parts.items()}
    least = np.sort(np.concatenate(list(sizes.values())))[::-1][min(total, sum(map(len, sizes.values()))) - 1]
    ranks = {path: max(1, int((sigma >= least).sum())) for path, sigma in sizes.items()}
    return with_modules(model, {p: _of_rank(adapters(model)[p], parts[p], r) for p, r in ranks.items()}), ranks


def _of_rank(module: LoraLinear, parts: Any, rank: int) -> LoraLinear:
    """The wrapper whose s·BA are the first singular parts, in equal shares."""
    left, sigma, right = parts
    root = np.sqrt(sigma[:rank] / module.scaling)
    A, B = (root[:, None] * right[:rank]), left[:, :rank] * root
    return replace(module, A=A.astype(module.A.dtype), B=B.astype(module.B.dtype))


def carried(cell: Cell, base: Transformer) -> Row:
    """An adapter trained on W0, put beside W0' that has learned something else meanwhile.

    more: the loss of the updated base alone, with the adapter as it is, re-based (the largest parts of W0 + ΔW − W0',
    so that the sum comes nearest to what it was), and with one that is trained anew.
    """
    method = method_of(cell)
    assert isinstance(method, LoraConfig)
    sides = Sides.of(cell, base, method)
    first = trained(cell, base, method, sides)
    other = cell.having(task=UPDATE_TASK, rate=UPDATE_RATE)
    updated = trained(other, base, Full(), Sides.of(other, base, Full())).model
    score = sides.held_out.bits_per_byte
    old = adapters(first.model)
    beside = adapt(updated, method, np.random.default_rng(0))
    new = {path: module.base for path, module in adapters(beside).items()}
    as_it_is = {path: replace(module, base=new[path]) for path, module in old.items()}
    rebased = {path: _rebased(module, new[path]) for path, module in old.items()}
    more = {
        "updated base": score(updated),
        "carried": score(with_modules(beside, as_it_is)),
        "re-based": score(with_modules(beside, rebased)),
        "trained anew": trained(cell, updated, method, sides).score,
    }
    return Row(cell, loss=first.score, more=more)


def _rebased(module: LoraLinear, base: Any) -> LoraLinear:
    """Beside another W0': the r largest singular parts of W0 + s·BA − W0', the nearest of rank r to what there was."""
    wanted = module.base.W.astype(np.float64) + delta(module) - base.W
    return _of_rank(replace(module, base=base), np.linalg.svd(wanted), len(module.A))


def sizes(cell: Cell, base: Transformer) -> Row:
    """After the steps of a cell: the root mean square of s·BAx over maps, and the norm of the last gradient."""
    method = method_of(cell)
    sides = Sides.of(cell, base, method)
    fresh = adapt(base, method, np.random.default_rng(cell.seed))
    config = training_of(cell)
    state, norm = start(method.trained(fresh), config), math.nan
    try:
        for record in fit(model_loss(fresh), sides.train.batches, config, state):
            state, norm = record.state, record.gradient_norm
    except NonFiniteError:
        return Row(cell, loss=math.inf)
    model = with_parameters(fresh, state.trained)
    rng = np.random.default_rng(0)
    squares = []
    for module in adapters(model).values():
        x = rng.standard_normal((64, module.A.shape[1]))
        squares.append(float(np.mean((module.scaling * (x @ module.A.T) @ module.B.T) ** 2)))
    more = {"moved": math.sqrt(float(np.mean(squares))), "gradient": norm}
    return Row(cell, loss=sides.held_out.bits_per_byte(model), more=more)
