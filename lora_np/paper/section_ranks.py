r"""Tables 5, 6 and 18: which matrices, and of which rank; the Note's word on how many of them and how fast."""

from __future__ import annotations

from typing import Any

from .asking import Claim, Known, Section, Table, above_zero, mean, no_worse, paired, shown, values
from .cells import Cell, Row
from .entry import lora
from .methods import REST
from .telling import bars, curves, signed

# Of one budget: what a block of 8 ranks is spent on
PLACEMENTS = {"q": 8, "k": 8, "v": 8, "o": 8, "qk": 4, "qv": 4, "qkvo": 2}
PAPER, NOTE = "Hu et al. 2021, table", "A Note on LoRA (arXiv:2404.05086), section 2.1"


def _lora(cell: Cell, rank: int, matrices: str) -> Cell:
    return cell.having({"rank": rank, "targets": lora(rank, matrices).targets}, method="lora", rate=REST)


def placements(known: Known) -> Section:
    """Table 5."""
    cells = {letters: _lora(known.profile.cell, rank, letters) for letters, rank in PLACEMENTS.items()}
    rows = known.tuned(cells)
    every = tuple(row for found in rows.values() for row in found)
    singles = [letters for letters in rows if len(letters) == 1]
    best_single = min(singles, key=lambda letters: mean(rows[letters]))
    apart = paired(rows[best_single], rows["qkvo"])
    claims = (
        Claim(
            "At one budget, all four matrices at rank 2 do better than any single one at rank 8.",
            f"{PAPER} 5",
            above_zero(apart),
            f"the best single one ({best_single}) less all four: {signed(apart)} bits per byte",
            (*rows[best_single], *rows["qkvo"]),
        ),
        Claim(
            "Queries and values together do better than queries or keys alone.",
            f"{PAPER} 5",
            above_zero([min(pair) for pair in zip(*(paired(rows[one], rows["qv"]) for one in "qk"), strict=True)]),
            "; ".join(f"{one} less qv: {signed(paired(rows[one], rows['qv']))}" for one in "qk"),
            (*rows["q"], *rows["k"], *rows["qv"]),
        ),
        _few_matrices(rows),
    )
    lines = [
        (letters, str(PLACEMENTS[letters]), f"{found[0].trained:,.0f}", f"{found[0].cell.rate:g}", shown(values(found)))
        for letters, found in rows.items()
    ]
    head = ("matrices", "rank", "trained", "learning rate", "bits per byte")
    return Section(
        "table-5",
        "Table 5: which matrices",
        "LoRA at one budget of trained numbers, each placement at its own tuned learning rate.",
        claims,
        (Table("Placements", head, tuple(lines)),),
        {"table-5": bars({f"{k}, r={PLACEMENTS[k]}": found for k, found in rows.items()})},
        {"table-5": f"Held-out loss of {len(every)} runs: mean and 95 % interval."},
    )


def _few_matrices(rows: dict[str, list[Row]]) -> Claim:
    rates = {letters: found[0].cell.rate for letters, found in rows.items()}
    singles = [rates[letters] for letters in rates if len(letters) == 1]
    lowest, highest = min(singles), max(singles)
    verdict: Any = "holds here" if lowest > rates["qkvo"] else "does not hold here"
    if lowest == highest == rates["qkvo"] or lowest <= rates["qkvo"] < highest:
        verdict = "cannot be said"
    found = f"best rate of single matrices {lowest:g} to {highest:g}, of all four {rates['qkvo']:g}, on a grid of three"
    every = tuple(row for found in rows.values() for row in found)
    return Claim("Few matrices want a higher learning rate than many.", NOTE, verdict, found, every)


def ranks(known: Known) -> Section:
    """Tables 6 and 18."""
    profile = known.profile
    several = known.possible(profile.ranks)
    pairs = [("qv", rank) for rank in several]
    pairs += [(letters, rank) for letters in ("q", "qkvo") for rank in several if rank in (1, 4, 64)]
    rows = known.tuned({pair: _lora(profile.cell, pair[1], pair[0]) for pair in pairs})
    low, middle, high = several[0], several[len(several) // 2], several[-1]
    gain = paired(rows["qv", low], rows["qv", high])
    late = paired(rows["qv", middle], rows["qv", high])
    claims = (
        Claim(
            f"A rank as small as {low} is enough for queries and values: {high} does no better.",
            f"{PAPER} 6",
            no_worse(rows["qv", low], rows["qv", high]),
            f"rank {low} less rank {high}: {signed(gain)} bits per byte",
            (*rows["qv", low], *rows["qv", high]),
        ),
        Claim(
            f"From rank {middle} on a higher one brings nothing more.",
            f"{PAPER} 18",
            no_worse(rows["qv", middle], rows["qv", high]),
            f"rank {middle} less rank {high}: {signed(late)} bits per byte",
            (*rows["qv", middle], *rows["qv", high]),
        ),
        _rate_of_ranks({rank: rows["qv", rank] for rank in several}),
    )
    lines = [
        (letters, str(rank), f"{found[0].trained:,.0f}", f"{found[0].cell.rate:g}", shown(values(found)))
        for (letters, rank), found in rows.items()
    ]
    head = ("matrices", "rank", "trained", "learning rate", "bits per byte")
    by_rank: dict[str, dict[float, list[Row]]] = {}
    for (letters, rank), found in rows.items():
        by_rank.setdefault(letters, {})[rank] = found
    return Section(
        "table-6-18",
        "Tables 6 and 18: which rank",
        "LoRA at rising ranks, each at its own tuned learning rate.",
        claims,
        (Table("Ranks", head, tuple(lines)),),
        {"table-6": curves(by_rank, "rank r")},
        {"table-6": "Held-out loss against the rank (logarithmic), with 95 % intervals."},
    )


def _rate_of_ranks(rows: dict[int, list[Row]]) -> Claim:
    rates = {rank: found[0].cell.rate for rank, found in rows.items()}
    apart = max(rates.values()) / min(rates.values())
    verdict: Any = "holds here" if apart < 2.0 else "does not hold here"
    found = "best rates: " + ", ".join(f"r={rank}: {rate:g}" for rank, rate in rates.items())
    every = tuple(row for found in rows.values() for row in found)
    return Claim(
        "With s = α/r the best learning rate moves by less than two over all ranks.",
        "Schulman et al. 2025, LoRA Without Regret",
        verdict,
        f"{found}; on a grid whose points lie a factor of three apart",
        every,
    )
