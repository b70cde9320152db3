r"""Every method adapted to the museum labels at one budget of trained numbers: the table of the README.

    python -m lora_np.paper.methods --out methods

The settings are those of `costs.budget`. Every run is what `lora-np adapt` does, and its command stands beside its
result; the seed decides what is held out, the batches, and what the method draws. The learning rate of a method is the
best of a grid of three, (c/3, c, 3c), on one seed that is not among those reported; one at the edge of its grid bears a
mark, since a better one may lie beyond.

Each run is written down in OUT as it ends: interrupted, the same command goes on from there, and two of them with
different --methods share the work. LORA_NP_THREADS=1 in each then, and two do not wait for each other.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..adaptation import DataConfig, adapt_to_file
from ..costs.budget import Offer, budget_of, compare
from ..disk.reading import read_json
from ..disk.writing import write_atomically, write_json
from ..files import digest, load_model
from ..method import Method, whole
from ..methods import METHODS, described, method_named
from ..model import Transformer
from ..names import nearest_first
from ..optimization import TrainingConfig
from ..tasks.generated import as_tsv, generate
from .intervals import STUDENT, Interval

LABELS, TABLE = "labels.tsv", "methods.md"
# The middle of a method's grid of learning rates: what trains every weight wants small steps, what trains few and far
# from the loss large ones. The grid is wide enough for a guess to be off by three.
MIDDLE = {
    "full": 3e-3,
    "top": 1e-2,
    "lora+": 1e-2,
    **dict.fromkeys(("prefix-embedding", "prefix-layer", "bitfit", "lora-fa"), 1e-1),
    **dict.fromkeys(("prefix-kv", "vera"), 3e-1),
}
REST = 3e-2


@dataclass(frozen=True)
class Plan:
    """What is run: so many steps of so many examples, on seeds 0, 1, …; `examples` are drawn with seed 0."""

    steps: int = 150
    seeds: int = 3
    examples: int = 1280
    batch_size: int = 8
    held_out: float = 0.05

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        whole("seeds", self.seeds)
        if self.seeds not in STUDENT:
            raise ValueError(f"seeds must lie in {min(STUDENT)}..{max(STUDENT)}, for an interval, got {self.seeds}")
        whole("examples", self.examples, least=2)

    def data(self, seed: int) -> DataConfig:
        return DataConfig(batch_size=self.batch_size, held_out=self.held_out, seed=seed)

    def training(self, rate: float, seed: int) -> TrainingConfig:
        """As `lora-np adapt` sets it up."""
        return TrainingConfig(steps=self.steps, learning_rate=rate, warmup=min(20, self.steps // 10), seed=seed)

    def command(self, method: Method, rate: float, seed: int) -> str:
        """The command that makes the same run."""
        about = described(method)
        kind = METHODS[about["method"]]
        chosen = {key: value for key, value in about["settings"].items() if value != getattr(kind(), key)}
        pairs = "".join(f" --set {key}={value}" for key, value in chosen.items())
        return (
            f"lora-np adapt {LABELS} --out adapter --method {about['method']}{pairs} --steps {self.steps} --batch-size "
            f"{self.batch_size} --held-out {self.held_out:g} --learning-rate {rate:g} --seed {seed}"
        )


@dataclass(frozen=True)
class Row:
    """A method's line of the table: held-out bits per byte of each seed, of the adapted model and of the base."""

    offer: Offer
    rate: float
    at_edge: bool
    after: tuple[float, ...]
    before: tuple[float, ...]


def grid(name: str) -> tuple[float, ...]:
    """The three learning rates of which a method gets the best."""
    middle = MIDDLE.get(name, REST)
    return tuple(float(f"{factor * middle:.1g}") for factor in (1 / 3, 1, 3))


def measured(
    out: Path, plan: Plan, base: Transformer, offers: Sequence[Offer], say: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """A row for each method that the model can have; what `out` holds already is not run again."""
    write_atomically(out / LABELS, as_tsv(generate(plan.examples, np.random.default_rng(0))).encode())
    of = {**asdict(plan), "base": digest(base)}
    return [_row(out, plan, base, offer, of, say) for offer in offers if offer.bill]


def _row(out: Path, plan: Plan, base: Transformer, offer: Offer, of: dict[str, Any], say: Any) -> Row:
    assert offer.bill is not None
    method = method_named(offer.name, offer.bill.settings)

    def score(rate: float, seed: int) -> tuple[float, float]:
        kept = out / f"{offer.name}-{rate:g}-{seed}.json"
        about = {**of, "run": plan.command(method, rate, seed)}
        if kept.exists():
            found = read_json(kept)
            if {key: found.get(key) for key in about} != about:
                raise ValueError(f"{kept} is of other settings than asked for now: choose another --out")
        else:
            with tempfile.TemporaryDirectory() as folder:
                result = adapt_to_file(
                    out / LABELS, Path(folder) / "run", base, method, plan.training(rate, seed), plan.data(seed)
                )
            found = {**about, "before": result.before, "after": result.after}
            write_json(kept, found)
            say(f"{found['after']:.4f} bits per byte (base {found['before']:.4f}): {about['run']}")
        return float(found["after"]), float(found["before"])

    rates = grid(offer.name)
    best = min(range(3), key=lambda i: score(rates[i], plan.seeds)[0])
    after, before = zip(*(score(rates[best], seed) for seed in range(plan.seeds)), strict=True)
    return Row(offer, rates[best], best != 1, after, before)


def table(rows: Sequence[Row], budget: int, plan: Plan) -> str:
    """The rows in Markdown, with the base first; beside LoRA, the same seeds are compared pair by pair."""
    lora = next((row for row in rows if row.offer.name == "lora"), None)
    head = ("method", "settings", "trained", "learning rate", "bits per byte", "less LoRA's")
    lines = [_line(head), _line("---" for _ in head)]
    lines.append(_line(("the base, not adapted", "", "0", "", _shown(Interval.of(rows[0].before)), "")))
    for row in rows:
        assert row.offer.bill is not None
        pairs = zip(row.after, lora.after, strict=True) if lora is not None and row is not lora else ()
        gaps = [one - other for one, other in pairs]
        rate = f"{row.rate:g}" + ("*" if row.at_edge else "")
        than_lora = str(Interval.of(gaps)) if gaps else ""
        cells = (row.offer.settings, f"{row.offer.bill.trained:,}", rate, _shown(Interval.of(row.after)), than_lora)
        lines.append(_line((row.offer.name, *cells)))
    return "\n".join([*lines, "", *_notes(budget, plan)]) + "\n"


def _notes(budget: int, plan: Plan) -> tuple[str, str]:
    examples = (
        f"{plan.steps} steps of {plan.batch_size} of {plan.examples:,} labels, {plan.held_out:.0%} of them held out"
    )
    rates = "learning rates are the best of three on another seed, * at the edge of its grid"
    return (
        f"A budget of {budget:,} trained numbers; {examples}.",
        f"Means of {plan.seeds} seeds with the 95 % interval of Student; {rates}.",
    )


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.3f} ± {interval.half_width:.3f}"


def _chosen(offers: Sequence[Offer], names: str | None) -> list[Offer]:
    wanted = [name.strip() for name in names.split(",")] if names else list(METHODS)
    for name in wanted:
        if name not in METHODS:
            raise ValueError(f"--methods must be of {nearest_first(name, METHODS)}; got {name!r}")
    return [offer for offer in offers if offer.name in wanted]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing in OUT, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("methods"), help="folder of the runs and of methods.md")
    parser.add_argument("--seeds", type=int, default=Plan.seeds)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--examples", type=int, default=Plan.examples)
    parser.add_argument("--budget", type=int, default=None, help="trained numbers; those of LoRA r=4 qv when left out")
    parser.add_argument("--methods", default=None, help="some of them, with commas between; all when left out")
    parser.add_argument("--base", type=Path, default=None, help="model folder; the base that ships when left out")
    chosen = parser.parse_args(arguments)
    try:
        plan, base = Plan(chosen.steps, chosen.seeds, chosen.examples), load_model(chosen.base)
        budget = budget_of(base.config, chosen.budget)
        offers = _chosen(compare(base.config, budget), chosen.methods)
        chosen.out.mkdir(parents=True, exist_ok=True)
        shown = table(measured(chosen.out, plan, base, offers, lambda line: print(line, flush=True)), budget, plan)
        write_atomically(chosen.out / TABLE, shown.encode())
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(shown)


if __name__ == "__main__":
    main()
