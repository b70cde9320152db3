r"""Tables 2, 3, 4, 15, 16 and figure 2: methods × budgets × tasks, under tuned learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from ..costs.budget import offer
from ..methods.lora import LoraConfig
from .asking import (
    Claim,
    Known,
    Section,
    Table,
    Verdict,
    all_hold,
    interval,
    mean,
    named,
    no_worse,
    paired,
    shown,
    values,
)
from .cells import Cell, Row
from .methods import MIDDLE, REST
from .telling import bars, curves, signed

COMPARED = ("full", "bitfit", "top", "adapter-h", "adapter-l", "adapter-p", "prefix-embedding", "prefix-layer")
VARIED = ("lora+", "pissa", "dora", "vera", "lora-fa")  # what came after the paper, beside plain LoRA and rsLoRA
GROWN = {"adapter-h": (1, 12), "prefix-layer": (4, 64), "prefix-embedding": (16, 128)}  # sizes beside that at budget


def at_budget(known: Known, names: Iterable[str], cell: Cell) -> dict[str, Cell]:
    """A cell for each method, of the size nearest to the budget of LoRA r=4 on q, v; some models lack one."""
    config = known.base.config
    wanted = [name for name in names if not known.profile.methods or name in known.profile.methods]
    found = {}
    for name in wanted:
        nearest = offer(name, config, LoraConfig(rank=4).numbers(config))
        if nearest.bill is not None:
            grows = {key: value for key, value in nearest.bill.settings.items() if key in nearest.settings}
            found[name] = cell.having(grows, method=name, rate=MIDDLE.get(name, REST))
    return found


def methods(known: Known) -> Section:
    """Tables 2 to 4: every method on every task."""
    profile = known.profile
    cells = {
        (task, name): cell.having(task=task, kind="scored")
        for name, cell in at_budget(known, ("lora", *COMPARED), profile.cell).items()
        for task in profile.tasks
    }
    rows = known.tuned(cells)
    names = list(dict.fromkeys(name for _, name in cells))
    claims = [_on_par(known, task, {name: rows[task, name] for name in names}) for task in profile.tasks]
    tables = [_table(known, task, {name: rows[task, name] for name in names}) for task in profile.tasks]
    return Section(
        "table-2-3-4",
        "Tables 2, 3 and 4: methods on tasks",
        "Every method at the budget of LoRA of rank 4 on queries and values, or its least above it.",
        tuple(claims),
        tuple(tables),
        {f"methods-{task}": bars({n: rows[task, n] for n in names}) for task in profile.tasks},
        {f"methods-{task}": f"Held-out loss on {task}: mean and 95 % interval." for task in profile.tasks},
    )


def _on_par(known: Known, task: str, rows: dict[str, list[Row]]) -> Claim:
    sentence = f"{task}: LoRA performs on par with full fine-tuning or better, at a fraction of its trained numbers."
    source = "Hu et al. 2021, tables 2 to 4"
    if not {"lora", "full"} <= set(rows):
        return Claim(sentence, source, "cannot be said", "one of the two was not run")
    gaps = paired(rows["lora"], rows["full"])
    share = (rows["lora"][0].trained or 0.0) / (rows["full"][0].trained or 1.0)
    found = (
        f"LoRA less full: {signed(gaps)} bits per byte, at {share:.2%} of the numbers, after "
        f"{rows['lora'][0].cell.steps} steps"
    )
    return Claim(sentence, source, no_worse(rows["lora"], rows["full"]), found, (*rows["lora"], *rows["full"]))


def _table(known: Known, task: str, rows: dict[str, list[Row]], middle: Mapping[str, float] = MIDDLE) -> Table:
    first = next(iter(rows.values()))
    metrics = list(dict.fromkeys(key for found in rows.values() for row in found for key in row.more))
    head = ("method", "trained", "learning rate", "bits per byte", *metrics, "less LoRA's")
    lines = [("the base", "0", "", shown(values(first, "before")), *("" for _ in metrics), "")]
    for name, found in rows.items():
        cell = found[0].cell
        edge = "*" if known.at_edge(found, middle.get(cell.method, REST)) else ""
        gaps = signed(paired(found, rows["lora"])) if name != "lora" and "lora" in rows else ""
        lines.append(
            (
                named(cell),
                f"{found[0].trained:,.0f}",
                f"{cell.rate:g}{edge}",
                shown(values(found)),
                *(shown(values(found, metric), 2) for metric in metrics),
                gaps,
            )
        )
    about = (
        f"{first[0].cell.steps} steps of {first[0].cell.batch} examples, {len(first)} seeds; * at the edge of its grid"
    )
    return Table(f"{task}: {about}", head, tuple(lines))


def on_par(known: Known) -> Section:
    """LoRA of rank 8 on queries and values beside full fine-tuning, for as long as the tasks need."""
    profile = known.profile
    pair = {"lora": ({"rank": 8}, REST / 3), "full": ({}, MIDDLE["full"] / 3)}
    cells = {
        (task, name): profile.cell.having(
            settings, task=task, method=name, rate=rate, kind="scored", steps=profile.long * profile.cell.steps
        )
        for task in profile.tasks
        for name, (settings, rate) in pair.items()
    }
    rows = known.tuned(cells)
    claims, tables = [], []
    for task in profile.tasks:
        of = {name: rows[task, name] for name in pair}
        claims.append(_on_par(known, task, of))
        tables.append(_table(known, task, of, {name: cells[task, name].rate for name in pair}))
    return Section(
        "on-par",
        "LoRA beside full fine-tuning, longer",
        "Rank 8 on queries and values, at its own tuned learning rate and full fine-tuning at its own.",
        tuple(claims),
        tuple(tables),
    )


def budgets(known: Known) -> Section:
    """Figure 2 and table 15: loss against trained numbers; LoRA does not fall off as others do."""
    cell = known.profile.cell
    lora = {("lora", rank): cell.having({"rank": rank}, rate=REST) for rank in known.possible(known.profile.ranks)}
    grown: dict[tuple[str, int], Cell] = {}
    for name, least in at_budget(known, GROWN, cell).items():
        key = "rank" if name == "adapter-h" else "prefix"
        sizes = sorted({*GROWN[name], least.with_settings[key]})
        grown |= {(name, size): least.having({**least.with_settings, key: size}) for size in sizes}
    rows = known.tuned({**lora, **grown})
    of: dict[str, dict[int, list[Row]]] = {}
    for (name, size), found in rows.items():
        of.setdefault(name, {})[size] = found
    claims = tuple(_monotone(name, curve) for name, curve in of.items())
    lines = [
        (named(found[0].cell), f"{found[0].trained:,.0f}", f"{found[0].cell.rate:g}", shown(values(found)))
        for found in rows.values()
    ]
    return Section(
        "figure-2",
        "Figure 2 and table 15: loss against trained numbers",
        "Each method at several sizes, each at its own tuned learning rate.",
        claims,
        (Table("Trained numbers and loss", ("method", "trained", "learning rate", "bits per byte"), tuple(lines)),),
        {
            "figure-2": curves(
                {n: {f[0].trained or 1.0: f for f in c.values()} for n, c in of.items()}, "trained numbers"
            )
        },
        {"figure-2": "Held-out loss against the number of trained numbers (logarithmic)."},
    )


def _monotone(name: str, curve: dict[int, list[Row]]) -> Claim:
    sizes = sorted(curve)
    steps = [no_worse(curve[more], curve[less]) for less, more in pairwise(sizes)]
    every = tuple(row for size in sizes for row in curve[size])
    at = ", ".join(f"{curve[size][0].trained:,.0f}: {mean(curve[size]):.3f}" for size in sizes)
    if name == "lora":
        sentence, verdict = "LoRA does not lose when it gets more parameters.", all_hold(steps)
        return Claim(sentence, "Hu et al. 2021, figure 2", verdict, f"bits per byte by trained numbers: {at}", every)
    if name.startswith("prefix"):
        sentence = f"{name} gets worse when it gets more special tokens."
        falls = "does not hold here" in steps
        verdict = "holds here" if falls else "does not hold here"
        return Claim(sentence, "Hu et al. 2021, figure 2", verdict, f"bits per byte by trained numbers: {at}", every)
    sentence, verdict = f"{name} does not lose when it gets more parameters.", all_hold(steps)
    return Claim(sentence, "Hu et al. 2021, figure 2", verdict, f"bits per byte by trained numbers: {at}", every)


def few_examples(known: Known) -> Section:
    """Table 16: methods with few examples to learn from."""
    cell = known.profile.cell.having(task=known.profile.tasks[0])
    sizes = (16, 64, 256)
    four = ("full", "prefix-embedding", "prefix-layer", "lora")
    best = known.tuned(at_budget(known, four, cell))
    cells = {
        (name, n): found[0].cell.having(examples=n, batch=min(cell.batch, n))
        for name, found in best.items()
        for n in sizes
    }
    rows = known.seeded(cells)
    lines = [(str(n), *(shown(values(rows[name, n])) for name in best)) for n in sizes]
    claims = []
    if {"lora", "full"} <= set(best):
        verdict = all_hold(no_worse(rows["lora", n], rows["full", n]) for n in sizes)
        gaps = "; ".join(f"{n} examples: {signed(paired(rows['lora', n], rows['full', n]))}" for n in sizes)
        every = tuple(row for n in sizes for name in ("lora", "full") for row in rows[name, n])
        sentence = "With few examples LoRA is as good as full fine-tuning, or better."
        claims.append(Claim(sentence, "Hu et al. 2021, table 16", verdict, f"LoRA less full, {gaps}", every))
    return Section(
        "table-16",
        "Table 16: few examples",
        f"On {cell.task}, at the learning rates that are best with {cell.examples} examples.",
        tuple(claims),
        (Table("Held-out bits per byte by the number of examples", ("examples", *best), tuple(lines)),),
    )


def variants(known: Known) -> Section:
    """One table of all variants under tuned learning rates."""
    cell = known.profile.cell
    cells = at_budget(known, ("lora", *VARIED), cell)
    rs = {"rank": 4, "scaling": "alpha/sqrt(rank)"}
    cells["rslora"] = cell.having(rs, rate=REST / 3)
    rows = known.tuned(cells)
    if "lora" not in rows:
        return Section("variants", "Variants of LoRA", "LoRA itself was not run.", ())
    lines, best = [], rows["lora"]
    for name, found in rows.items():
        gaps = "" if name == "lora" else signed(paired(found, best))
        edge = "*" if known.at_edge(found, cells[name].rate) else ""
        lines.append((name, f"{found[0].trained:,.0f}", f"{found[0].cell.rate:g}{edge}", shown(values(found)), gaps))
    apart = [name for name, found in rows.items() if name != "lora" and at_apart(paired(found, best), best)]
    verdict: Verdict = "holds here" if not apart else "does not hold here"
    found_all = f"apart from LoRA by more than 2 % and its interval: {', '.join(apart) or 'none'}"
    return Section(
        "variants",
        "All variants under tuned learning rates",
        "LoRA and its relatives at one budget, each at the best of three rates on a seed that is not reported.",
        (
            Claim(
                "With the learning rate tuned for each, LoRA and its variants lie within 1 to 2 % of each other.",
                "Learning Rate Matters, arXiv:2602.04998",
                verdict,
                found_all,
                tuple(row for one in rows.values() for row in one),
            ),
        ),
        (Table("Variants", ("variant", "trained", "learning rate", "bits per byte", "less LoRA's"), tuple(lines)),),
        {"variants": bars(rows)},
        {"variants": "Held-out loss of LoRA and its relatives: mean and 95 % interval."},
    )


def at_apart(gaps: list[float], best: list[Row]) -> bool:
    """Is the difference larger than its interval, and than 2 % of LoRA's loss?"""
    found = interval(gaps)
    return found is None or (not found.covers_zero and abs(found.mean) > 0.02 * mean(best))
