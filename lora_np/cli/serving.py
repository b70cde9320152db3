"""Many requests at once, each with its own adapter: what `generate --prompts` does."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from .options import say
from .streams import one_line


def answer_all(
    prompts: Path,
    adapters: Path | None,
    base: Path | None,
    said_for_all: tuple[int, float, int, bool],
    *,
    at_once: int,
    most_bytes: int,
) -> int:
    """One JSON line an answer, in the order of the requests; 1 where an adapter had to be skipped."""
    from ..files import load_model
    from ..progress import watch
    from ..serving.bank import AdapterBank
    from ..serving.batching import serve
    from ..serving.lines import Codec, Defaults, answer_line, requests_in
    from ..serving.requests import Answer
    from ..tasks import prompt_tokens
    from ..vocabularies import begun, tokenizer_of

    model = load_model(base)
    tokenizer = tokenizer_of(base, model.config)
    bank = None if adapters is None else AdapterBank(model, adapters, most_bytes=most_bytes, source=base)
    codec = Codec(
        lambda text, raw: begun(tokenizer, text) if raw else prompt_tokens(text, tokenizer),
        tokenizer.encode,
        lambda ids: tokenizer.decode(np.array(ids, dtype=np.int64)),
        tokenizer.end,
    )
    numbered = requests_in(prompts, model, bank, codec, Defaults(*said_for_all))
    lines, requests = [line for line, _ in numbered], [request for _, request in numbered]
    complete: dict[int, Answer] = {}
    said = 0
    for answer in watch(serve(model, requests, bank, most=at_once), "answer", len(requests)):
        complete[answer.number] = answer
        while said in complete:  # in order: a later one waits for those before it
            say(answer_line(lines[said], complete.pop(said), codec))
            said += 1
    skipped = {} if bank is None else bank.skipped
    for name, why in skipped.items():
        print(one_line(f"lora-np: skipped {name}: {why}"), file=sys.stderr)
    return 1 if skipped else 0
