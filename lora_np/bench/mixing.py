r"""The work of serving that is timed: sequences of one length, so that a peer without padding can do the same.

Every workload writes `size.seq` tokens for each of `size.batch` sequences, and gives back what it wrote.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.threads import worker_count
from ..files import digest, load_model, save_adapter
from ..generation import generate
from ..model import Transformer
from ..optimization import TrainingConfig, start
from ..parameters import parameters
from ..serving.adapter import Adapter, adapter_of, applied, method_of
from ..serving.bank import AdapterBank
from ..serving.batching import serve
from ..serving.requests import Request, Tokens
from ..serving.together import fit_together
from ..training import fit, model_loss
from ..wrappers import merge
from .sizes import PROMPT, RANK, RandomTokens, Size, Step, Task, with_adapter

COUNTS = (1, 2, 8, 32)  # of distinct adapters in a batch
MANY, REQUESTS, LIMIT = 1000, 200, 1 << 21  # folders, requests over them, bytes of adapters kept
TOGETHER, STEPS = 8, 12  # adapters that are trained at once, and steps


def adapters(base: Transformer, count: int) -> list[Adapter]:
    """Of one rank, on queries and values, with B moved off zero."""
    drawn = (with_adapter(base, RANK, np.random.default_rng(i)) for i in range(count))
    return [adapter_of(model, f"a{i}") for i, model in enumerate(drawn)]


def prompts(count: int) -> list[Tokens]:
    """As many prompts of one length."""
    return [tuple(np.roll(PROMPT, i).tolist()) for i in range(count)]


def limited(step: Step, task: Task) -> Step:
    """The same, the matrix library using no more threads than the task may."""
    from threadpoolctl import threadpool_limits

    def within() -> Any:
        with threadpool_limits(limits=worker_count(task.workers), user_api="blas"):
            return step()

    return within


def batched(make: Callable[[Transformer], Transformer]) -> Callable[[Task], Step]:
    """One model for all sequences."""

    def prepare(task: Task) -> Step:
        model, size = make(load_model()), task.size
        requests = [Request(prompt, None, size.seq) for prompt in prompts(size.batch)]
        return limited(lambda: _written(serve(model, requests, most=size.batch, prompt_bytes=0)), task)

    return prepare


def mixture(count: int) -> Callable[[Task], Step]:
    """Sequence t has adapter t mod count."""

    def prepare(task: Task) -> Step:
        base, size = load_model(), task.size
        bank = AdapterBank(base)
        for adapter in adapters(base, count):
            bank.add(adapter)
        requests = [Request(p, f"a{i % count}", size.seq) for i, p in enumerate(prompts(size.batch))]
        return limited(lambda: _written(serve(base, requests, bank, most=size.batch, prompt_bytes=0)), task)

    return prepare


def alone(count: int) -> Callable[[Task], Step]:
    """One sequence after another, each with its own adapter beside the base; without one where count is 0."""

    def prepare(task: Task) -> Step:
        base, size = load_model(), task.size
        models = [applied(base, adapter) for adapter in adapters(base, count)] or [base]
        given = [(models[i % len(models)], np.array(prompt)) for i, prompt in enumerate(prompts(size.batch))]
        return limited(lambda: [list(generate(model, prompt, size.seq)) for model, prompt in given], task)

    return prepare


def beside_peft(task: Task) -> Step:
    """Our mixed batch and PEFT's, `adapter_names`, in one process and in turn; seconds of processor time of both."""
    from .mixing_peer import generation

    pairs = {count: (mixture(count)(task), generation(task, count)) for count in COUNTS}

    def step() -> dict[str, Any]:
        found = {}
        for count, pair in pairs.items():
            (ours, mine), (theirs, others) = (_timed(one) for one in pair)
            equal = sum(a == b for a, b in zip(mine, others, strict=True))
            found[str(count)] = {"ours": ours, "theirs": theirs, "equal": equal}
        return found

    return step


def _timed(step: Step) -> tuple[float, Any]:
    began = time.process_time()
    found = step()
    return time.process_time() - began, found


def many(task: Task) -> Step:
    """A thousand adapters on disk and few of them in memory; gives back what was seen, not a time."""
    base, rng = load_model(), np.random.default_rng(task.seed)
    chosen = rng.integers(0, MANY, REQUESTS).tolist()
    lengths = rng.integers(1, len(PROMPT) + 1, REQUESTS).tolist()
    requests = [
        Request(tuple(PROMPT[:n].tolist()), f"a{i}", task.size.seq) for i, n in zip(chosen, lengths, strict=True)
    ]

    def step() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as name:
            size = _written_out(base, Path(name))
            began = time.perf_counter()
            bank = AdapterBank(base, name, most_bytes=LIMIT)
            opened, kept, answers = time.perf_counter() - began, 0, []
            for answer in serve(base, requests, bank, most=task.size.batch):
                kept = max(kept, bank.kept_bytes)
                answers.append(answer)
            served = time.perf_counter() - began
            equal = sum(answer.tokens == _alone(base, bank, answer.request) for answer in answers)
        found = {"adapters": MANY, "requests": len(answers), "distinct": len(set(chosen)), "equal": equal}
        return {**found, "on_disk": size, "limit": LIMIT, "kept": kept, "opened": opened, "served": served}

    return limited(step, task)


def _written_out(base: Transformer, folder: Path) -> int:
    """A folder for each of many adapters; the bytes of all files."""
    own = digest(base)
    for adapter in adapters(base, MANY):
        path = folder / adapter.name
        path.mkdir()
        save_adapter(path, applied(base, adapter), method_of(adapter), own)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _alone(base: Transformer, bank: AdapterBank, request: Request) -> Tokens:
    """The same request with nobody beside it."""
    model = applied(base, bank[request.adapter or ""])
    return tuple(generate(model, np.array(request.prompt), request.most))


def trained_together(task: Task) -> Step:
    """Eight adapters in one batch, and eight runs; gives back how far apart they end, and the seconds of both."""
    base, size = load_model(), task.size
    mine = adapters(base, TOGETHER)
    own = Size("own", size.d_model, size.layers, size.heads, 4, size.seq, size.vocab)
    batches = [RandomTokens(own, i) for i in range(TOGETHER)]
    config = TrainingConfig(steps=STEPS, learning_rate=1e-3, warmup=0, decay="constant", clip=None)

    def step() -> dict[str, Any]:
        began = time.perf_counter()
        for record, done in fit_together(base, mine, batches, config, task.workers):
            if record.step == STEPS:
                together = done
        middle = time.perf_counter()
        alone = [
            _trained(applied(base, adapter), own, config, task.workers)
            for adapter, own in zip(mine, batches, strict=True)
        ]
        ended = time.perf_counter()
        gap = moved = 0.0
        for before, after, trained in zip(mine, together, alone, strict=True):
            for path, (A, B, _) in after.factors.items():
                gap = max(gap, *(float(abs(x - trained[f"{path}.{n}"]).max()) for n, x in (("A", A), ("B", B))))
                moved = max(moved, float(abs(A - before.factors[path].A).max()))
        return {"gap": gap, "moved": moved, "together": middle - began, "alone": ended - middle}

    return step


def _trained(model: Transformer, batches: Any, config: TrainingConfig, workers: int | None) -> dict[str, Any]:
    *_, last = fit(model_loss(model), batches, config, start(parameters(model, "*.A", "*.B"), config), workers)
    return last.state.trained


def _written(answers: Any) -> list[list[int]]:
    return [list(answer.tokens) for answer in sorted(answers, key=lambda answer: answer.number)]


def _one(base: Transformer) -> Transformer:
    return applied(base, adapters(base, 1)[0])


SERVING: dict[str, Callable[[Task], Step]] = {
    "base, batched": batched(lambda base: base),
    "base, one by one": alone(0),
    "merged": batched(lambda base: merge(_one(base))),
    "one adapter, not merged": batched(_one),
    **{f"mixed, {count}": mixture(count) for count in COUNTS},
    "one by one": alone(max(COUNTS)),
    "beside PEFT": beside_peft,
    "many": many,
    "trained together": trained_together,
}
