r"""Continuous batching: many requests write at once, each with its own adapter; they join and leave between tokens.

    for answer in serve(base, requests, bank, most=32):
        print(answer.number, answer.tokens)

A request that joins has its prompt read first, with those that join at the same time, padded on the right: a causal
position sees nothing behind it. From then on every step reads one token of each sequence that is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..engine.arrays import Array, on_device
from ..generation import check_writes, sample
from ..model import Cache, Transformer, place_of
from .adapter import Adapter
from .bank import AdapterBank
from .memory import Key, PromptMemory
from .mixed import mixed
from .requests import Answer, Request, Writing
from .slots import Rows, right_padded

SEQUENCES = 32  # at once: more are slower for each of them, and hardly faster for all
PROMPTS = 1 << 26  # bytes of prompts that are remembered
Member = tuple[Writing, Adapter | None]


class Batch:
    """The sequences that are written at the moment.

    base    a causal model, plain or with anything beside it that is the same for all    most   sequences at once
    prompts where what was read before is kept, if anywhere, for the base of this digest

    Raises ValueError for a model that does not write, or lies on a device.
    """

    def __init__(self, base: Transformer, most: int = SEQUENCES, prompts: PromptMemory | None = None, digest: str = ""):
        check_writes(base)
        if on_device(place_of(base)):
            raise ValueError("a mixed batch is served on the cpu: move the model with to_device(model, 'cpu')")
        if most < 1:
            raise ValueError(f"a batch must hold at least 1 sequence, got {most}")
        self.base, self.most, self.prompts, self.digest = base, most, prompts, digest
        self.members: list[Member] = []
        self._rows = Rows(len(base.blocks), most, base.config.context)
        self._model: Transformer | None = base  # for the members as they are now; None: to be made

    @property
    def room(self) -> int:
        """How many may join."""
        return self.most - len(self.members)

    def join(self, newcomers: Sequence[Member]) -> list[Answer]:
        """Read the prompts of these and write their first tokens; the answers that are complete with those."""
        done: list[Answer] = []
        for group in _alike(newcomers):
            done += self._read(group)
        return done

    def step(self) -> list[Answer]:
        """One further token of every sequence; the answers that are complete now, whose sequences have left."""
        if not self.members:
            return []
        if self._model is None:
            self._model = mixed(self.base, [adapter for _, adapter in self.members])
        tokens = np.array([[writing.written[-1]] for writing, _ in self.members])
        logits = self._model(tokens, mask=self._rows.mask(), caches=self._rows.caches())[:, -1]
        self._rows.advance()
        ends = self._take([writing for writing, _ in self.members], logits)
        done = [self.members[i][0].answer(end) for i, end in enumerate(ends) if end]
        for i in reversed([i for i, end in enumerate(ends) if end]):
            self._leave(i)
        return done

    def _read(self, group: Sequence[Member]) -> list[Answer]:
        known = [None if self.prompts is None else self.prompts.get(self._key(*member)) for member in group]
        fresh = [member for member, read in zip(group, known, strict=True) if read is None]
        logits, caches = self._prefilled(fresh) if fresh else (np.empty(0), ())
        done, row = [], 0
        for (writing, adapter), read in zip(group, known, strict=True):
            prompt = writing.request.prompt
            if read is not None:
                mine, at, source = read.logits, 0, read.caches
            else:
                mine, at, source, row = logits[row], row, caches, row + 1
                if self.prompts is not None:
                    self.prompts.put(self._key(writing, adapter), caches, at, mine)
            (end,) = self._take([writing], mine[None])
            if end:
                done.append(writing.answer(end))
                continue
            self._rows.join(source, at, len(prompt), min(writing.will_be, self.base.config.context))
            self.members.append((writing, adapter))
            self._model = None
        return done

    def _prefilled(self, group: Sequence[Member]) -> tuple[Array, tuple[Cache, ...]]:
        """Logits (batch, vocab) of what follows each prompt, and the caches that reading them filled."""
        prompts = [writing.request.prompt for writing, _ in group]
        model = mixed(self.base, [adapter for _, adapter in group])
        tokens, caches = right_padded(prompts), self.base.caches(max(map(len, prompts)))
        h = model.hidden(tokens, caches=caches)
        last = h[np.arange(len(prompts)), [len(prompt) - 1 for prompt in prompts]]
        return model.output(last[:, None])[:, 0], caches

    def _take(self, writings: Sequence[Writing], logits: Array) -> list[str | None]:
        """The next token of each, from its row of logits; why it ends, where it does."""
        best = logits.argmax(axis=-1)
        ends = []
        for writing, row, likeliest in zip(writings, logits, best.tolist(), strict=True):
            hot = writing.request.temperature
            token = likeliest if hot == 0.0 else sample(row, hot, writing.rng)
            ends.append(writing.takes(token, self.base.config.context))
        return ends

    def _leave(self, place: int) -> None:
        self._rows.leave(place)
        self.members[place] = self.members[-1]
        self.members.pop()
        self._model = None

    def _key(self, writing: Writing, adapter: Adapter | None) -> Key:
        return self.digest, "" if adapter is None else adapter.digest, writing.request.prompt


def _alike(newcomers: Sequence[Member]) -> Iterator[list[Member]]:
    """Newcomers by length, in groups that padding makes no more than twice as large as they are."""
    group: list[Member] = []
    for member in sorted(newcomers, key=lambda member: len(member[0].request.prompt)):
        longest = len(member[0].request.prompt)
        real = sum(len(writing.request.prompt) for writing, _ in group) + longest
        if group and (len(group) + 1) * longest > 2 * real:
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def serve(
    base: Transformer,
    requests: Iterable[Request],
    bank: AdapterBank | None = None,
    *,
    most: int = SEQUENCES,
    prompt_bytes: int = PROMPTS,
) -> Iterator[Answer]:
    """The answers as they become complete, at most `most` requests at a time; `number` says whose each is.

    Requests are taken one after another as there is room. A sequence of them is checked before any work: ValueError for
    a name that is not known, a prompt longer than the context or a token that is none; others when their turn comes.
    An adapter that cannot be used (see `AdapterBank.skipped`) costs its own requests their answers, and no other.
    """
    if isinstance(requests, Sequence):
        for request in requests:
            check(request, base, bank)
    waiting = enumerate(iter(requests))
    batch = Batch(base, most, PromptMemory(prompt_bytes) if prompt_bytes else None, "" if bank is None else bank.digest)
    ready: deque[Answer] = deque()
    exhausted = False
    while batch.members or not exhausted:
        newcomers: list[Member] = []
        while not exhausted and len(newcomers) < batch.room:
            following = next(waiting, None)
            if following is None:
                exhausted = True
                break
            number, request = following
            check(request, base, bank)
            try:
                adapter = None if bank is None or request.adapter is None else bank[request.adapter]
            except (OSError, ValueError) as error:
                ready.append(Answer(number, request, (), "error", str(error)))
                continue
            newcomers.append((Writing(number, request), adapter))
        ready.extend(batch.join(newcomers))
        ready.extend(batch.step())
        while ready:
            yield ready.popleft()


def check(request: Request, base: Transformer, bank: AdapterBank | None) -> None:
    """Raise ValueError for what can be seen to be wrong before any work."""
    request.check(base)
    if request.adapter is None:
        return
    if bank is None:
        raise ValueError(f"there is no adapter {request.adapter!r}: no bank was given")
    bank.check([request.adapter])
