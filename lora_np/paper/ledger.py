r"""Every number of the LoRA paper that arithmetic can reproduce: what is printed, what comes out, and the verdict.

Counts of trained numbers come from the methods themselves (`Method.numbers` on the sizes of the model), bytes from
`lora_np.costs`, all else is arithmetic with named quantities: see `lora_np.paper.entry`. The rule of the verdicts is
equation (D1) of `lora_np.paper.printed`.

Source: Hu et al. 2021, arXiv:2106.09685v2; its repository is microsoft/LoRA.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cache

from ..config import parameter_count
from ..costs import adapter_bytes, optimizer_bytes, training_state_bytes
from ..methods.bottleneck import AdapterH, AdapterL, AdapterP
from ..methods.prefix import LoraPrefixEmbedding, LoraPrefixLayer, PrefixEmbedding, PrefixLayer
from ..methods.tuning import BitFit, Full, Top
from ..names import nearest_first
from .entry import MODELS, Entry, Number, closed_form, lora, plain, trained
from .printed import VERDICTS, Printed
from .tables import ANALYSIS, GLUE, LATENCY, LEARNING_RATES, NORM_OF_W, NORMS, PLACEMENTS, RANKS, SCALES

FITS = "The rank is not printed; this one fits."
CUT = "Cut, not rounded."
MEBI = "It is 37.7 MB; with MB read as MiB it is 36, one more than printed."


@cache
def ledger() -> tuple[Entry, ...]:
    """All entries: abstract and sections, tables by number, figures, and the repository."""
    parts = (_introduction, _latency, _system, _encoders, _gpt2, _gpt3, _placement_and_rank, _subspaces, _training)
    return tuple(sorted((entry for part in (*parts, _repository) for entry in part()), key=_order))


def chosen(table: str | None = None, only: str | None = None) -> list[Entry]:
    """The entries of one place ("4", "Table 4", "Section 4.2", "repository"), of one verdict, or both; else all.

    Raises ValueError, with the nearest names, for a place that has no entry or a verdict that is none.
    """
    entries = list(ledger())
    if table is not None:
        places = {entry.place.lower(): entry.place for entry in entries}
        short = {name.split()[-1]: place for name, place in places.items() if name.startswith("table")}
        place = places.get(table.lower()) or short.get(table)
        if place is None:
            near = nearest_first(table if " " in table else f"Table {table}", places.values())
            raise ValueError(f"the ledger has no table {table!r}; its places are, nearest first, {near}")
        entries = [entry for entry in entries if entry.place == place]
    if only is not None:
        wanted = {"!=": "≠", "-": "–"}.get(only, only)
        if wanted not in VERDICTS:
            raise ValueError(f"a verdict must be one of {', '.join(VERDICTS)}; got {only!r}")
        entries = [entry for entry in entries if entry.verdict == wanted]
    return entries


def tally(entries: Iterable[Entry]) -> dict[str, int]:
    """How many entries have each verdict."""
    found = Counter(entry.verdict for entry in entries)
    return {verdict: found[verdict] for verdict in VERDICTS}


def in_one_line(entries: Iterable[Entry]) -> str:
    """The tally as a sentence."""
    found = tally(entries)
    printed = sum(found.values()) - found["–"]
    return (
        f"{printed} printed numbers: {found['=']} =, {found['~']} ~, {found['≠']} ≠; {found['–']} that are not printed"
    )


def _order(entry: Entry) -> tuple[int, str, int]:
    kind, _, number = entry.place.partition(" ")
    rank = ("Abstract", "Section", "Table", "Figure", "Repository").index(kind)
    return (rank, "", int(number)) if number.isdigit() else (rank, number, 0)


# ------------------------------------------------------------------------------------------ by what they are numbers of


def _introduction() -> Iterable[Entry]:
    N, four = parameter_count(MODELS["gpt3"]), lora(4).numbers(MODELS["gpt3"])
    more = "At r = 1 it is 37,000."
    yield trained("Abstract", "GPT-3, all of it", "175B", "gpt3", Full())
    yield plain("Abstract", "GPT-3, all over LoRA r = 4", "10,000×", "a / b", _over, more, rough=True, a=N, b=four)
    yield plain("Abstract", "memory, 1.2 TB over 350 GB", "3×", "a / b", _over, a="1200", b="350")
    yield plain("Section 2", "GPT-3, LoRA r = 4 over all", "0.01%", "a / b", _over, a=four, b=N)


def _latency() -> Iterable[Entry]:
    printed = {(32, 512): ("2.2%", "3.0%"), (16, 256): ("5.0%", "8.4%"), (1, 128): ("20.7%", "30.3%")}
    for (batch, length), (base, *slower) in LATENCY.items():
        for name, time, text in zip(("AdapterL", "AdapterH"), slower, printed[batch, length], strict=True):
            row = f"{name}, batch {batch}, length {length}: slower by"
            yield plain("Table 1", row, text, "t / t0 - 1", lambda t, t0: t / t0 - 1, t=time, t0=base)
    yield trained("Table 1", "AdapterL r = 8, first column", "0.5M", "gpt2-medium", AdapterL(8), FITS)
    yield trained("Table 1", "AdapterL r = 224, the others", "11M", "gpt2-medium", AdapterL(224), FITS)


def _system() -> Iterable[Entry]:
    N, T = parameter_count(MODELS["gpt3"]), lora(4).numbers(MODELS["gpt3"])
    place, whole, small, file = "Section 4.2", 350 * 10**9, 35 * 10**6, adapter_bytes(T, "float16")
    yield plain(place, "GPT-3 in 16 bits", "350GB", "2 · N", _half, rough=True, N=N)
    yield plain(place, "LoRA r = 4 in 16 bits", "35MB", "2 · N", _half, MEBI, rough=True, N=T)
    yield plain(place, "350 GB over that", "10,000×", "a / b", _over, rough=True, a=whole, b=file)
    yield plain(place, "one base, 100 adapters", "354GB", "a + 100 · b", lambda a, b: a + 100 * b, a=whole, b=small)
    yield plain(place, "100 whole models", "35TB", "100 · a", lambda a: 100 * a, a=whole)
    why = "1.2 TB are 6.87 bytes a number, which no precision of W, m, v and gradient gives."
    states: dict[str, tuple[str, Callable[[int], int]]] = {
        "W, m, v in 16 bits": ("6 · N", lambda N: 2 * N + optimizer_bytes(N, 2)),
        "W, gradient, m, v in 16 bits": ("8 · N", lambda N: training_state_bytes(0, N, 2)),
        "W in 16 bits, m, v in 32": ("10 · N", lambda N: 2 * N + optimizer_bytes(N, 4)),
        "W, gradient in 16 bits, m, v in 32": ("12 · N", lambda N: 4 * N + optimizer_bytes(N, 4)),
        "W, gradient, m, v in 32 bits": ("16 · N", lambda N: training_state_bytes(0, N, 4)),
    }
    for held, (formula, state) in states.items():
        yield plain(place, f"training all of GPT-3: {held}", "1.2TB", formula, state, why, N=N)
    row = "training LoRA r = 4: base in 16 bits, all else in 32"
    yield plain(
        place, row, "350GB", "2 · N + 16 · T", lambda N, T: 2 * N + training_state_bytes(0, T), rough=True, N=N, T=T
    )
    three, sizes = "Two thirds count value and moments, without a gradient.", "From 1.2 TB to 350 GB it is 71%."
    values, states_of_all = N + optimizer_bytes(N, 1), training_state_bytes(0, N, 1)
    yield plain(place, "saved of W, m, v", "2/3", "1 - a / b", _saved, a=Fraction(N), b=values)
    yield plain(place, "saved of W, gradient, m, v", "2/3", "1 - a / b", _saved, three, a=Fraction(N), b=states_of_all)
    yield plain(place, "saved, by the sizes printed", "2/3", "1 - a / b", _saved, sizes, a="350", b="1200")
    more = "The rates printed are 1.33 times apart: a quarter less time, a third more speed."
    yield plain(place, "training: less time a token", "25%", "1 - a / b", _saved, a="32.5", b="43.1")
    yield plain(place, "training: more speed", "25%", "b / a - 1", lambda a, b: b / a - 1, more, a="32.5", b="43.1")


def _encoders() -> Iterable[Entry]:
    place = "Table 2"
    for row, (cells, average) in GLUE.items():
        scores = tuple(map(Fraction, cells.split()))
        note = "Half way, and printed down, where the table prints three others of its ties up."
        tie = note if row == "RoBERTa large, LoRA" else ""
        yield plain(place, f"{row}: average", average, "mean(x)", lambda x: sum(x) / Fraction(len(x)), tie, x=scores)
    nominal = "The size that the model goes by: section {} prints it with fewer digits."
    for model, name, decimal, whole in (
        ("roberta-base", "RoBERTa base", "125.0M", "125M"),
        ("roberta-large", "RoBERTa large", "355.0M", "355M"),
    ):
        yield _classifier(place, f"{name}, FT", decimal, model, nominal.format("5.2"))
        yield _classifier("Section 5.2", name, whole, model)
    yield _deberta(place, "DeBERTa XXL, FT", "1500.0M", nominal.format("5.3"))
    yield _deberta("Section 5.3", "DeBERTa XXL", "1.5B", CUT)
    base, large = "roberta-base", "roberta-large"
    yield trained(place, "RoBERTa base, BitFit", "0.1M", base, BitFit())
    yield trained(place, "RoBERTa base, AdapterD r = 16", "0.3M", base, AdapterP(16), FITS)
    yield trained(place, "RoBERTa base, AdapterD r = 48", "0.9M", base, AdapterP(48), FITS)
    yield trained(place, "RoBERTa base, LoRA r = 8", "0.3M", base, lora(8))
    yield trained(place, "RoBERTa large, LoRA r = 8", "0.8M", large, lora(8))
    for name, method, here, there in (
        ("AdapterP", AdapterP, {64: "3.0M", 16: "0.8M"}, {64: "3M", 16: "0.8M"}),
        ("AdapterH", AdapterH, {64: "6.0M", 8: "0.8M"}, {64: "6M", 8: "0.8M"}),
    ):
        for rank in here:
            note = f"Table 9 prints {there[rank]}, which it is." if rank == 64 else ""
            yield trained(place, f"RoBERTa large, {name} r = {rank}", here[rank], large, method(rank), note)
            yield trained("Table 9", f"RoBERTa large, {name} r = {rank}", there[rank], large, method(rank))
    half = "Half of what is printed, which is r = 16, as in the repository."
    yield trained(place, "DeBERTa XXL, LoRA r = 8, as Table 10 says", "4.7M", "deberta-xxl", lora(8), half)
    yield trained(place, "DeBERTa XXL, LoRA r = 16", "4.7M", "deberta-xxl", lora(16))


def _gpt2() -> Iterable[Entry]:
    medium, large = "gpt2-medium", "gpt2-large"
    budget = "A thousandth of the model, a budget that baselines were given; no whole prefix of section 5.1 has it."
    more = "Section 5.1's formula gives more; 0.35M is a thousandth of the model, the budget of PreLayer."
    less = "Section 5.1's formula gives less; 0.77M is a thousandth of the model, the budget of PreLayer."
    yield trained("Table 3", "GPT-2 M, FT", "354.92M", medium, Full(), "0.097M more than its arrays hold.")
    yield trained("Table 3", "GPT-2 M, AdapterH r = 112", "11.09M", medium, AdapterH(112), "No whole rank gives it.")
    yield trained("Table 3", "GPT-2 M, FTTop2", "25.19M", medium, Top(2))
    yield trained("Table 3", "GPT-2 L, FT", "774.03M", large, Full())
    for place in ("Table 13", "Table 14"):
        yield trained(place, "GPT-2 M, FT", "354M", medium, Full(), CUT)
        yield trained(place, "GPT-2 M, FTTop2", "24M", medium, Top(2), "Table 3 prints 25.19M, which it is.")
        yield trained(place, "GPT-2 L, FT", "774M", large, Full())
    for place in ("Table 3", "Table 13", "Table 14"):
        larger = ("11.09M", "23.00M") if place == "Table 3" else ("11M", "23M")
        yield trained(place, "GPT-2 M, AdapterL r = 6", "0.37M", medium, AdapterL(6), FITS)
        yield trained(place, "GPT-2 M, AdapterL r = 224", larger[0], medium, AdapterL(224), FITS)
        yield _share(place, "GPT-2 M, PreLayer", "0.35M", medium, budget)
        yield trained(place, "GPT-2 M, LoRA r = 4", "0.35M", medium, lora(4), more)
        yield trained(place, "GPT-2 L, AdapterL r = 8", "0.88M", large, AdapterL(8), FITS)
        yield trained(place, "GPT-2 L, AdapterL r = 248", larger[1], large, AdapterL(248), FITS)
        yield _share(place, "GPT-2 L, PreLayer", "0.77M", large, budget)
        yield trained(place, "GPT-2 L, LoRA r = 4", "0.77M", large, lora(4), less)


def _gpt3() -> Iterable[Entry]:
    neither = "Neither a tied nor an untied head gives it."
    layers = "Section 5.1's own formula, L · d · (l_p + l_i), gives less."
    biases = "12 vectors of width d in a block would be 14.16M; it has 11."
    yield trained("Table 4", "GPT-3, FT, tied head", "175,255.8M", "gpt3", Full(), neither)
    yield trained("Table 4", "GPT-3, FT, untied head", "175,255.8M", "gpt3, untied", Full(), neither)
    yield trained("Table 4", "GPT-3, BitFit", "14.2M", "gpt3", BitFit(), biases)
    yield trained("Table 15", "GPT-3, FT", "175B", "gpt3", Full())
    for place, printed in (("Table 4", (256,)), ("Table 15", (32, 64, 128, 256, 512)), ("Section D.4", (256,))):
        texts = {32: "0.4M", 64: "0.9M", 128: "1.7M", 256: "3.2M", 512: "6.4M"}
        for length in printed:
            row, note = f"GPT-3, PreEmbed {length} + 8", CUT if length == 32 else ""
            yield trained(place, row, texts[length], "gpt3", PrefixEmbedding(length, 8), note)
    all_layers = {(2, 2): "5.1M", (8, 0): "10.1M", (8, 8): "20.2M", (32, 4): "44.1M", (64, 0): "76.1M"}
    for place, lengths in (("Table 4", [(8, 8)]), ("Table 15", list(all_layers)), ("Section D.4", [(8, 8)])):
        for before, behind in lengths:
            row, text = f"GPT-3, PreLayer {before} + {behind}", all_layers[before, behind]
            yield trained(place, row, text, "gpt3", PrefixLayer(before, behind), layers)
    adapters = {1: "7.1M", 4: "21.2M", 8: "40.1M", 16: "77.9M", 64: "304.4M"}
    for place, ranks in (("Table 4", (1, 8)), ("Table 15", tuple(adapters))):
        for rank in ranks:
            yield trained(place, f"GPT-3, AdapterH r = {rank}", adapters[rank], "gpt3", AdapterH(rank))
    for matrices, rank in (("v", 2), ("qv", 8)):
        yield _lora("Table 4", rank, matrices, ANALYSIS[matrices, rank][0])
    for (matrices, rank), (text, *_) in ANALYSIS.items():
        note = "Twice the 301.9M above it, where both are cut." if rank == 64 and matrices == "qkvo" else CUT
        yield _lora("Table 15", rank, matrices, text, note if rank == 64 or text == "18.8M" else "")
    yield _lora("Section D.4", 1, "qv", "4.7M")
    yield _lora("Section D.4", 2, "v", "4.7M")
    yield _lora("Section D.4", 8, "qv", "37.7M")
    yield _lora("Section D.4", 2, "qkvo", "37.7M", "Half of what is printed, which Table 15 has at r = 4.")
    for rank, text in ((8, "37.8M"), (32, "151.1M"), (64, "302.1M")):
        both = LoraPrefixEmbedding(8, 4, rank)
        yield trained("Table 15", f"GPT-3, LoRA+PE r = {rank}", text, "gpt3", both, CUT if rank == 8 else "")
    short = "The same formula of prefix layers gives less than it prints here too."
    yield trained("Table 15", "GPT-3, LoRA+PL r = 8", "52.8M", "gpt3", LoraPrefixLayer(8, 4, 8), short)


def _placement_and_rank() -> Iterable[Entry]:
    for matrices, (rank, *_) in PLACEMENTS.items():
        yield _lora("Table 5", rank, matrices, "18M", CUT)
    T = lora(4).numbers(MODELS["gpt3"])
    yield plain("Section 7.1", "18M in 16 bits", "35MB", "2 · N", _half, MEBI, rough=True, N=T)
    for matrices, scores in RANKS.items():
        for rank in scores:
            yield _lora("Table 6", rank, matrices, None)
    whole = "As many as W_q and W_v themselves have."
    for power in range(11):
        rank = 2**power
        note = {512: whole, 1024: "Twice as many as the matrices have."}.get(rank, "")
        yield trained("Table 18", f"GPT-2 M, LoRA r = {rank}", None, "gpt2-medium", lora(rank), note)


def _subspaces() -> Iterable[Entry]:
    d, W, place = MODELS["gpt3"].d_model, NORM_OF_W, "Table 7"
    one_draw = "The expected size; what is printed is one draw."
    by_chance = "Of an update as large in random directions: more than the factor of the trained one."
    for r, (_, top, drawn, update) in NORMS.items():
        note = one_draw if r == 64 else ""
        yield plain(place, f"random directions, r = {r}", drawn, "r / d · W", _random, note, r=r, d=d, W=W)
        yield plain(
            place, f"energy of W in its top {r}", None, "a · a / (W · W)", lambda a, W: (a / W) ** 2, a=top, W=W
        )
        row, factor = f"amplification by chance, r = {r}", "D / (r / d · W)"
        yield plain(
            place, row, None, factor, lambda D, r, d, W: D / _random(r, d, W), by_chance, D=update, r=r, d=d, W=W
        )
    for where, r, text, rough in (
        ("Section 7.3", 4, "21.5×", False),
        ("Section H.4", 4, "20×", True),
        ("Section H.4", 64, "2×", True),
    ):
        own, _, _, update = NORMS[r]
        note = CUT if text == "21.5×" else ""
        yield plain(where, f"amplification, r = {r}", text, "a / b", _over, note, rough=rough, a=update, b=own)
    for where, row, j, note in (
        ("Figure 3", "chance level of φ(A₈, A₆₄) at j = 64", 64, ""),
        ("Figure 4", "chance level of φ(A₆₄, A₆₄) at i = j = 64", 64, ""),
        ("Figure 8", "chance level of φ(W, ΔW) at the top 10%", 1229, "It varies by 0.002: 0.2 is far above it."),
    ):
        yield plain(where, row, None, "a / b", _over, note, a=j, b=d)


def _training() -> Iterable[Entry]:
    yield plain(
        "Section H.2",
        "steps on E2E",
        "26,000",
        "x · e / b",
        lambda x, e, b: Fraction(x * e, b),
        rough=True,
        x=42000,
        e=5,
        b=8,
    )
    yield plain("Section F.3", "MNLI by chance", "33.3%", "1 / c", lambda c: Fraction(1, c), c=3)
    fold, of = "Ten is what others found since.", LEARNING_RATES
    yield plain("Table 12", "rate of LoRA over FT", None, "a / b", _over, fold, a=of["LoRA"], b=of["FT"])
    for (model, (rank, alpha)), place in zip(
        SCALES.items(), ("Table 9", "Table 9", "Table 10", "Table 11"), strict=True
    ):
        row = f"s = α/r of {model}"
        yield plain(place, row, None, "a / b", _over, a=alpha, b=rank)


def _repository() -> Iterable[Entry]:
    place, unit = "Repository", Fraction(2**20, 10**6)
    mebi, header = "A file in MB of 2²⁰ bytes.", "In MB of 2²⁰ bytes; the file has a header too."
    width = "36 layers of width 1,024 would be 2.25MB; theirs is 1,280."
    for model, text, note in (("gpt2-medium", "1.5MB", mebi), ("gpt2-large", "2.3MB", width)):
        row, T = f"{model}, LoRA r = 4, file in 32 bits", lora(4).numbers(MODELS[model])
        yield plain(place, row, text, "4 · T / m", _file, note, T=T, m=unit)
    for model, rank, text, note in (
        ("roberta-base", 8, "3.4MB", mebi),
        ("roberta-large", 8, "7.1MB", header),
        ("deberta-xxl", 16, "27.1MB", header),
    ):
        row = f"{model}, LoRA r = {rank} and a head of 3 classes, file in 32 bits"
        T = lora(rank).numbers(MODELS[model]) + _head(MODELS[model].d_model, 3)
        yield plain(place, row, text, "4 · T / m", _file, note, T=T, m=unit)
    wrong = "The README of the encoders prints 0.3M, which it is; 0.8M is RoBERTa large."
    yield trained(place, "RoBERTa base, LoRA r = 8, README", "0.8M", "roberta-base", lora(8), wrong)
    yield trained(place, "RoBERTa base, LoRA r = 8, README of the encoders", "0.3M", "roberta-base", lora(8))
    memory = "The number of examples is from memory."
    yield plain(place, "last checkpoint on E2E", "26289", "ceil(x · e / b)", _steps, memory, x=42061, e=5, b=8)


# -------------------------------------------------------------------------------------------- rows of more than one use


def _lora(place: str, rank: int, matrices: str, printed: str | None, note: str = "") -> Entry:
    return trained(
        place, f"GPT-3, LoRA r = {rank} on {', '.join(matrices)}", printed, "gpt3", lora(rank, matrices), note
    )


def _over(a: Number, b: Number) -> Fraction:
    return Fraction(a) / Fraction(b)


def _random(r: int, d: int, W: Fraction) -> Fraction:
    """What r random directions on either side see of a (d, d) weight of this norm; see `paper.updates`, (S5)."""
    return Fraction(r, d) * W


def _half(N: int) -> int:
    """Bytes of so many numbers of 16 bits."""
    return adapter_bytes(N, "float16")


def _file(T: int, m: Fraction) -> Fraction:
    """The same of 32 bits, in bytes of which a MB has 2²⁰."""
    return adapter_bytes(T, "float32") / m


def _saved(a: Fraction, b: Fraction) -> Fraction:
    return 1 - a / b


def _steps(x: int, e: int, b: int) -> int:
    """The last step of e epochs of x examples in batches of b."""
    return math.ceil(Fraction(x * e, b))


def _share(place: str, row: str, printed: str, model: str, note: str) -> Entry:
    return plain(place, row, printed, "N / 1000", lambda N: Fraction(N, 1000), note, N=parameter_count(MODELS[model]))


def _head(d: int, classes: int) -> int:
    """A dense layer and a classifier."""
    return d * d + d + classes * d + classes


def _classifier(place: str, row: str, printed: str, model: str, note: str = "") -> Entry:
    """An encoder and its head of three classes."""
    formula, given = closed_form(MODELS[model], Full())
    count = Fraction(parameter_count(MODELS[model]) + _head(MODELS[model].d_model, 3))
    formula += " + d² + d + c · d + c"
    return Entry(place, f"{row}, with a head", Printed(printed), formula, {**given, "c": 3}, count, note)


def _deberta(place: str, row: str, printed: str, note: str) -> Entry:
    """Its convolution of width 3, and the norms of that and of the relative positions, come on top."""
    config = MODELS["deberta-xxl"]
    formula, given = closed_form(config, Full())
    count = Fraction(parameter_count(config) + 3 * config.d_model**2 + 5 * config.d_model)
    return Entry(place, row, Printed(printed), f"{formula} + 3 · d² + 5 · d", given, count, note)
