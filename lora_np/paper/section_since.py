r"""What was found since the paper, each a sentence that these cells can refute.

Sources: Schulman et al. 2025, LoRA Without Regret; Biderman et al. 2024, arXiv:2405.09673 (learns less, forgets less);
Kalajdzievski 2023, arXiv:2312.03732 (rsLoRA); Hayou et al. 2024, arXiv:2406.08447 (starts); Zhu et al. 2024,
arXiv:2402.16842 (asymmetry).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .asking import (
    Claim,
    Known,
    Section,
    Table,
    Verdict,
    above_zero,
    interval,
    mean,
    no_worse,
    paired,
    shown,
    slope,
    values,
)
from .cells import Row
from .methods import MIDDLE, REST
from .section_lessons import WITHOUT_REGRET
from .telling import curves, every, losses, signed

RATES = tuple(0.0075 * 2**i for i in range(6))
FULL_RATES = tuple(0.0005 * 2**i for i in range(6))
RANKS = (1, 4, 16)


def rates(known: Known) -> Section:
    """The best learning rate: of LoRA beside full fine-tuning, and of one rank beside another."""
    cell = known.profile.cell
    cells = {("lora", r, rate): cell.having({"rank": r}, method="lora", rate=rate) for r in RANKS for rate in RATES}
    cells |= {("full", 0, rate): cell.having({}, method="full", rate=rate) for rate in FULL_RATES}
    rows = known.seeded(cells)
    seeds = range(known.profile.seeds)

    def best(name: str, rank: int) -> list[float]:
        """The best rate of each seed."""
        of = {rate: found for (n, r, rate), found in rows.items() if (n, r) == (name, rank)}
        return [min(of, key=lambda rate: values(of[rate])[seed]) for seed in seeds]

    logs = [math.log10(a / b) for a, b in zip(best("lora", 4), best("full", 0), strict=True)]
    apart = [math.log2(a / b) for a, b in zip(best("lora", RANKS[-1]), best("lora", RANKS[1]), strict=True)]
    found = interval(logs)
    about_ten: Verdict = "cannot be said"
    if found is not None:
        low, high = 10 ** (found.mean - found.half_width), 10 ** (found.mean + found.half_width)
        about_ten = (
            "holds here" if 5 <= low and high <= 20 else "does not hold here" if low > 20 or high < 5 else about_ten
        )
    moved = interval(apart)
    steady: Verdict = "cannot be said"
    if moved is not None:
        widest = abs(moved.mean) + moved.half_width
        steady = (
            "holds here"
            if widest <= 1.0
            else "does not hold here"
            if abs(moved.mean) - moved.half_width > 1
            else steady
        )
    ratios = ", ".join(f"{10**log:.3g}" for log in logs)
    edge = {RATES[0], RATES[-1], FULL_RATES[0], FULL_RATES[-1]}
    at_edge = "; at the end of a grid" if edge & {*best("lora", 4), *best("full", 0)} else ""
    claims = (
        Claim(
            "The best learning rate of LoRA is higher than that of full fine-tuning.",
            WITHOUT_REGRET,
            above_zero(logs),
            f"ratio by seed: {ratios}{at_edge}",
            every(rows),
        ),
        Claim(
            "It is about ten times as high (5 to 20).",
            WITHOUT_REGRET,
            about_ten,
            f"log10 of the ratio: {signed(logs)}{at_edge}; the paper's own on GPT-3 is 40 (docs/ledger.md)",
            every(rows),
        ),
        Claim(
            "With s = α/r it does not depend on the rank: less than a factor of two.",
            WITHOUT_REGRET,
            steady,
            f"log2 of the best rate of rank {RANKS[-1]} over that of rank {RANKS[1]}: {signed(apart)}; best rates "
            + "; ".join(f"r={r}: {', '.join(f'{rate:g}' for rate in best('lora', r))}" for r in RANKS),
            every(rows),
        ),
    )
    names = {("lora", r): f"LoRA, r={r}" for r in RANKS} | {("full", 0): "full"}
    points: dict[str, dict[float, Sequence[Row]]] = {}
    for (name, rank, rate), of in rows.items():
        points.setdefault(names[name, rank], {})[rate] = of
    return Section(
        "learning-rate",
        "The learning rate",
        f"{cell.steps} steps at each of six rates a factor of two apart.",
        claims,
        (),
        {"learning-rate": curves(points, "learning rate")},
        {"learning-rate": "Held-out loss against the learning rate (logarithmic), with 95 % intervals."},
    )


def capacity(known: Known) -> Section:
    """Bits of random pairs that a rank can store."""
    cell = known.profile.cell.having(kind="memory", task="memory", batch=32, rate=REST, examples=128)
    long = cell.having(steps=4 * cell.steps)
    rows = known.seeded({rank: long.having({"rank": rank}) for rank in (1, 4)}, seeds=2)
    a_number = {rank: values(found, "a number") for rank, found in rows.items()}
    rising = any(
        row.more
        and row.more["stored"] < 0.9 * 16.0 * row.cell.examples
        and row.more["stored"] > 1.05 * max(0.0, row.more["half way"])
        for found in rows.values()
        for row in found
    )
    most = max(statistics for found in a_number.values() for statistics in found)
    full = all(row.more and row.more["stored"] >= 0.9 * 16.0 * row.cell.examples for row in rows[4])
    verdict: Verdict = (
        "cannot be said" if rising or full else "holds here" if 1.0 <= most <= 3.0 else "does not hold here"
    )
    state = "still rising at the end" if rising else "all that there was" if full else "not rising any more"
    claims = (
        Claim(
            "LoRA stores about two bits a trained number (1 to 3).",
            WITHOUT_REGRET,
            verdict,
            f"rank 1: {shown(a_number[1])} bits a number, rank 4: {shown(a_number[4])}; {16 * cell.examples:,} bits, "
            f"{state} (an interval of two seeds is wide)",
            every(rows),
        ),
        Claim(
            "A higher rank stores more.",
            WITHOUT_REGRET,
            above_zero(paired(rows[4], rows[1], "score")),
            f"rank 4 less rank 1: {signed(paired(rows[4], rows[1], 'score'))} bits",
            every(rows),
        ),
    )
    about = f"{cell.examples} random pairs of 16 bits, {long.steps} steps of {cell.batch} on queries and values."
    return Section("capacity", "Capacity", about, claims)


def batch_size(known: Known) -> Section:
    """LoRA's gap to full fine-tuning in small and in large batches, over the same examples."""
    cell = known.profile.cell
    seen = cell.steps * cell.batch
    cells = {}
    for batch in (cell.batch // 2, 4 * cell.batch):
        one = cell.having(batch=batch, steps=max(2, seen // batch))
        cells["lora", batch] = one.having({"rank": 4}, method="lora", rate=REST)
        cells["full", batch] = one.having({}, method="full", rate=MIDDLE["full"])
    rows = known.tuned(cells)
    small, large = sorted({batch for _, batch in cells})
    gap = {batch: paired(rows["lora", batch], rows["full", batch]) for batch in (small, large)}
    more = [b - a for a, b in zip(gap[small], gap[large], strict=True)]
    claim = Claim(
        "LoRA's gap to full fine-tuning grows with the batch.",
        WITHOUT_REGRET,
        above_zero(more),
        f"LoRA less full at {small}: {signed(gap[small])}, at {large}: {signed(gap[large])}; second less first: "
        f"{signed(more)}",
        every(rows),
    )
    about = f"{seen} examples in batches of two sizes, each at its own tuned learning rate."
    return Section("batch-size", "The batch", about, (claim,), (losses("Batches", rows),))


def forgetting(known: Known) -> Section:
    """What is forgotten of the text before, at one loss on the new."""
    cell = known.profile.cell
    lengths = sorted({max(2, cell.steps // 4), max(3, cell.steps // 2), cell.steps})
    full = {n: cell.having({}, method="full", rate=MIDDLE["full"] / 3, steps=n) for n in lengths}
    lora = {n: cell.having({"rank": 8}, method="lora", rate=REST, steps=n) for n in (cell.steps, 2 * cell.steps)}
    rows = known.seeded({**{("full", n): c for n, c in full.items()}, **{("lora", n): c for n, c in lora.items()}})
    gaps = [
        _forgot_at(loss, {n: rows["full", n] for n in lengths}, seed) - forgot
        for seed, (loss, forgot) in enumerate(
            zip(values(rows["lora", 2 * cell.steps]), values(rows["lora", 2 * cell.steps], "forgot"), strict=True)
        )
    ]
    learned = paired(rows["lora", cell.steps], rows["full", cell.steps])
    claims = (
        Claim(
            "LoRA learns less than full fine-tuning in the same steps.",
            "Biderman et al. 2024, arXiv:2405.09673",
            above_zero(learned),
            f"LoRA less full after {cell.steps} steps: {signed(learned)} bits per byte",
            every(rows, ("lora", cell.steps), ("full", cell.steps)),
        ),
        Claim(
            "At the same loss on the new it has forgotten less of the old.",
            "Biderman et al. 2024, arXiv:2405.09673",
            above_zero(gaps),
            f"forgotten by full at LoRA's loss, less by LoRA: {signed(gaps)} bits per byte of documentation",
            every(rows),
        ),
    )
    lines = tuple(
        (name, str(n), shown(values(found)), shown(values(found, "forgot"))) for (name, n), found in rows.items()
    )
    table = Table("Learned and forgotten", ("method", "steps", "bits per byte", "forgotten"), lines)
    return Section("forgetting", "Learns less, forgets less", "LoRA of rank 8 on q, v beside full.", claims, (table,))


def _forgot_at(loss: float, full: Mapping[int, Sequence[Row]], seed: int) -> float:
    """What full fine-tuning has forgotten where it has this loss; no number outside of what was run."""
    points = sorted((found[seed].loss or 0.0, found[seed].forgot or 0.0) for found in full.values())
    x, y = zip(*points, strict=True)
    return float(np.interp(loss, x, y, left=math.nan, right=math.nan))


def scaling(known: Known) -> Section:
    """How large the branch becomes with the rank, under α/r and α/√r."""
    cell = known.profile.cell.having(kind="sizes", rate=REST / 10)
    kinds = ("alpha/rank", "alpha/sqrt(rank)")
    ranks = known.possible((4, 16, 64))
    rows = known.seeded({(s, r): cell.having({"rank": r, "scaling": s}) for s in kinds for r in ranks})
    slopes = {
        s: [slope(ranks, [values(rows[s, r], "moved")[seed] for r in ranks]) for seed in range(known.profile.seeds)]
        for s in kinds
    }
    plain, root = (slopes[s] for s in kinds)
    closer = [abs(a) - abs(b) for a, b in zip(plain, root, strict=True)]
    claims = (
        Claim(
            "Under α/r what the branch adds falls as the rank grows.",
            "Kalajdzievski 2023, arXiv:2312.03732",
            above_zero([-value for value in plain]),
            f"exponent of the root mean square of s·BAx in r: {signed(plain)}",
            every(rows),
        ),
        Claim(
            "Under α/√r it keeps its size better.",
            "Kalajdzievski 2023, arXiv:2312.03732",
            above_zero(closer),
            f"exponent under α/√r: {signed(root)}, under α/r: {signed(plain)}",
            every(rows),
        ),
    )
    about = f"After {cell.steps} steps at a rate of {cell.rate:g}, for random inputs of unit size."
    pictures = {
        "scaling": curves({s: {r: rows[s, r] for r in ranks} for s in kinds}, "rank r", "moved", "size of s·BAx")
    }
    return Section("scaling", "How s falls with the rank", about, claims, (), pictures)


def halves(known: Known) -> Section:
    """Which of A and B starts at zero, and which is trained."""
    cell = known.profile.cell.having({"rank": 4})
    rows = known.tuned(
        {
            "both": cell.having(method="lora", rate=REST),
            "B alone": cell.having(method="lora-fa", rate=MIDDLE["lora-fa"]),
            "A alone": cell.having(method="lora-a-only", rate=MIDDLE["lora-fa"]),
        }
    )
    high = (0.03, 0.1, 0.3, 1.0)
    starts = known.seeded({(m, r): cell.having(method=m, rate=r) for m in ("lora", "lora-b-start") for r in high})

    def largest(method: str) -> list[float]:
        """The largest rate of each seed at which the loss still falls below the base's."""
        return [
            max([r for r in high if _learned(starts[method, r][seed])], default=high[0] / 3)
            for seed in range(known.profile.seeds)
        ]

    apart = [math.log(a / b) for a, b in zip(largest("lora"), largest("lora-b-start"), strict=True)]
    stands = "; ".join(f"{m} {', '.join(f'{rate:g}' for rate in largest(m))}" for m in ("lora", "lora-b-start"))
    claims = (
        Claim(
            "Training B with A frozen at random is about as good as training both.",
            "Zhu et al. 2024, arXiv:2402.16842",
            no_worse(rows["B alone"], rows["both"]),
            f"B alone less both: {signed(paired(rows['B alone'], rows['both']))} bits per byte",
            every(rows, "both", "B alone"),
        ),
        Claim(
            "Training A alone is worse than training B alone.",
            "Zhu et al. 2024, arXiv:2402.16842",
            above_zero(paired(rows["A alone"], rows["B alone"])),
            f"A alone less B alone: {signed(paired(rows['A alone'], rows['B alone']))} bits per byte",
            every(rows, "A alone", "B alone"),
        ),
        Claim(
            "A at random and B at zero stand a larger learning rate than the other way round.",
            "Hayou et al. 2024, arXiv:2406.08447",
            above_zero(apart),
            f"the largest of {', '.join(f'{r:g}' for r in high)} that still learns, by seed: {stands}",
            every(starts),
        ),
    )
    best = {m: min(mean(starts[m, r]) for r in high) for m in ("lora", "lora-b-start")}
    lines = tuple((m, f"{r:g}", shown(values(found))) for (m, r), found in starts.items())
    table = Table(
        f"Starts; the best of each: {best['lora']:.3f}, {best['lora-b-start']:.3f}", ("method", "rate", "loss"), lines
    )
    about = "LoRA of rank 4 on queries and values: halves of it trained, and either half at zero first."
    return Section("halves", "A and B", about, claims, (losses("Halves", rows, "both"), table))


def _learned(row: Row) -> bool:
    """Is the loss a number, and below that of the base?"""
    return row.loss is not None and math.isfinite(row.loss) and row.loss < (row.before or 0.0)
