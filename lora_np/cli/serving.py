"""Many requests at once, each with its own adapter: what `generate --prompts` and `bench serving` do."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from ..disk.marks import Kind
from ..disk.writing import write_atomically, write_json
from .options import say, table
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
    import numpy as np

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


SERVING = Kind("bench serving", ("serving.json", "serving.md"))


def measured_serving(
    what: str,
    rest: Mapping[str, bool],
    rounds: int,
    peers: bool,
    workers: int | None,
    out: Path | None,
    as_json: bool,
    overwrite: bool,
) -> int:
    """`rest` says which options were given that mean nothing here."""
    from ..bench.serving import bench_serving, serving_markdown, serving_tables
    from ..disk.folders import new_folder
    from ..progress import watch

    if what != "serving":
        raise ValueError(f"what to measure must be step or serving, got {what!r}")
    if given := [name for name, was_given in rest.items() if was_given]:
        raise ValueError(f"bench serving takes no {given[0]}")
    place = nullcontext() if out is None else new_folder(out, SERVING, overwrite=overwrite)
    with place as folder:
        report = bench_serving(
            rounds, peers, workers or 1, lambda lines, total: watch(lines, "timing", total, show=str)
        )
        if folder is not None:
            write_json(folder / "serving.json", report.as_dict())
            write_atomically(folder / "serving.md", serving_markdown(report).encode())
    if as_json:
        say(json.dumps(report.as_dict(), indent=2))
        return 0
    say(report.machine)
    for title, head, rows in serving_tables(report):
        table(title, head, rows)
    return 0
