r"""The report of a study: one HTML file that needs nothing but itself.

Inline style, inline SVG, no script, no network. Every number comes from the `StudyResult`; every text is escaped.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from html import escape
from typing import Any

from .. import figures
from ..figures.page import figure, page, table, visible
from ..proofs import MapProof
from .intervals import Interval
from .results import Run, StudyResult
from .samples import remark, words


def report(result: StudyResult) -> str:
    """The whole page."""
    sections = [_verdict(result), _setting(result), _gradients(result), _ranks(result), _merge(result), _chance(result)]
    return page("LoRA, shown", "LoRA in NumPy: what it claims, and what this run showed", sections)


def pictures(result: StudyResult) -> dict[str, Any]:
    """The figures of the study by name."""
    ranks = result.config.ranks
    return {
        "learning_curves": figures.learning_curves({f"rank {r}": mean_curve(result, r) for r in ranks}, result.floor),
        "loss_against_rank": figures.loss_against_rank(
            ranks,
            [statistics.mean(run.loss for run in result.of_rank(rank)) for rank in ranks],
            [result.of_rank(rank)[0].counted for rank in ranks],
            result.base_loss,
            result.floor,
            [half_width(result.of_rank(rank)) for rank in ranks] if result.config.seeds > 1 else None,
        ),
        "merge_error": figures.merge_error({p.path: (p.gap, p.bound, p.effect) for p in tightest(result)}),
    }


def mean_curve(result: StudyResult, rank: int) -> list[tuple[float, float]]:
    """The held-out curve of a rank, the mean over its seeds."""
    points = zip(*(run.held_out for run in result.of_rank(rank)), strict=True)
    return [(same[0][0], statistics.mean(bits for _, bits in same)) for same in points]


def half_width(runs: list[Run]) -> float:
    """Half the 95 % interval (Student) of the mean final loss over seeds."""
    return Interval.of([run.loss for run in runs]).half_width


def tightest(result: StudyResult) -> list[MapProof]:
    """For each adapted map, the proof of all runs that comes closest to its bound."""
    paths = [proof.path for proof in result.runs[0].maps]
    return [max((p for run in result.runs for p in run.maps if p.path == path), key=lambda p: p.used) for path in paths]


def _verdict(result: StudyResult) -> str:
    items = "".join(f"<li>{_mark(holds)} {escape(claim)}</li>" for claim, holds in result.claims.items())
    head = "Everything holds." if result.holds else "<b>Something does not hold.</b>"
    kind = "verdict" if result.holds else "verdict no"
    return f'<div class="{kind}"><p>{head}</p><ul class="claims">{items}</ul></div>'


def _setting(result: StudyResult) -> str:
    config, best = result.config, min(result.runs, key=lambda run: run.loss)
    first, where, bits = map(escape, words(config.targets))
    return f"""<h2>The task and the model</h2>
<p>{first} {where} {bits}</p>
<p>The frozen base is a byte-level transformer of {result.base_parameters:,} parameters. The task is data to text:
{result.trained_on:,} examples to train on and {result.held_out:,} others held out ({result.held_out_bytes:,} bytes of
references). Each reference is one of several sentences drawn at random, so no model can on average do better than
{result.floor:.4f} bits per byte: that is the floor in the figures.</p>
<p>Each adapter adds s·BA to the maps “{escape(config.targets)}” of every layer, with s = {config.alpha:g}/r, and is
trained for {config.steps:,} steps of {config.batch_size} examples at a learning rate of {config.learning_rate:g}, the
same for every rank.</p>
<dl><dt>A held-out prompt</dt><dd><pre>{escape(result.example.prompt)}</pre></dd>
<dt>Its reference</dt><dd><pre>{escape(result.example.reference)}</pre></dd>
<dt>The base writes</dt>{_sample(result.base_sample, result)}
<dt>Merged with the adapter of rank {best.rank}, it writes</dt>{_sample(best.sample, result)}</dl>"""


def _sample(written: str, result: StudyResult) -> str:
    """A text that was written, and what is to be said of it."""
    about = escape(visible(remark(written, result.example)))
    return f'<dd><pre>{escape(visible(written))}</pre><p class="soft">{about}</p></dd>'


def _gradients(result: StudyResult) -> str:
    cases = dict.fromkeys(row.case for row in result.gradients.rows)
    rows = []
    for case in cases:
        of_case = [row for row in result.gradients.rows if row.case == case]
        pairs = ("hand_textbook", "hand_difference", "textbook_difference")
        worst = [f"{max(getattr(row, pair) for row in of_case):.1e}" for pair in pairs]
        rows.append((escape(case), str(len(of_case)), *worst, _mark(all(row.holds for row in of_case))))
    head = ("", "arrays", "hand – textbook", "hand – difference", "textbook – difference", "holds")
    caption = "Largest disagreement of each pair, over the largest entry of the array's gradient. float64."
    return f"""<h2>Every gradient, by three witnesses</h2>
<p>Each derivation made by hand is compared with autograd on the plain equations and with difference quotients of the
loss, at random shapes (seed {result.gradients.seed}): {len(result.gradients.rows)} arrays.</p>
{table(caption, head, rows)}"""


def _ranks(result: StudyResult) -> str:
    several = result.config.seeds > 1
    rows = []
    for rank in result.config.ranks:
        runs = result.of_rank(rank)
        loss, first = statistics.mean(run.loss for run in runs), runs[0]
        rows.append(
            (
                str(rank),
                f"{first.predicted:,}",
                _same(run.counted for run in runs),
                _same(run.stored for run in runs),
                f"{first.counted / result.base_parameters:.3%}",
                _same(run.file_bytes for run in runs),
                _same(run.header_bytes for run in runs),
                f"{loss:.4f}" + (f" ± {half_width(runs):.4f}" if several else ""),
                f"{1000 * statistics.median(run.step_seconds for run in runs):.0f}",
            )
        )
    head = (
        "rank",
        "predicted",
        "counted",
        "stored",
        "of the base",
        "file bytes",
        "header",
        "bits per byte",
        "ms a step",
    )
    caption = (
        "Trained parameters three ways: predicted from the sizes alone, counted in memory, and worked out from the "
        "size of the file, (bytes − header)/4. Bits per byte are held out; without an adapter they are "
        f"{result.base_loss:.4f}." + (f" Mean of {result.config.seeds} seeds ± 95 % interval." if several else "")
    )
    shown, about = pictures(result), "Held-out loss while training; all ranks start at the base, since B = 0."
    return f"""<h2>Rank, size and loss</h2>
{table(caption, head, rows)}
{figure(shown["learning_curves"], about)}
{figure(shown["loss_against_rank"], "Held-out loss and trained parameters against the rank.")}"""


def _merge(result: StudyResult) -> str:
    rows = []
    for run in result.runs:
        gaps = run.certificate.model
        rows.append(
            (
                escape(result.config.label(run.rank, run.seed)),
                f"{sum(proof.holds for proof in run.maps)} of {len(run.maps)}",
                f"{run.used:.3f}",
                f"{gaps.contrast:.2e}",
                f"{gaps.gap:.1e}",
                f"{gaps.gap64:.1e}",
                _mark(run.certificate.holds),
            )
        )
    head = ("adapter", "maps that hold", "most of a bound used", "effect", "gap, float32", "gap, float64", "certified")
    caption = (
        "Effect and gaps are of the logits of the whole model on held-out text: what the adapter changes, and what "
        "merging changes. A gap by rounding shrinks from float32 to float64 by about 2⁻²⁹ = 1.9e-9; a mistake stays."
    )
    about = (
        "Each adapted map on the activations that reach it: at the entry where merged and adapted come closest to "
        "their bound (of all adapters), that gap and that bound; and the largest change by the adapter itself."
    )
    unchanged = {run.base_digest for run in result.runs} == {result.base_digest}
    return f"""<h2>Merging changes nothing</h2>
<p>W = W₀ + s·BA, computed once, gives the same outputs as W₀x + s·B(Ax) up to rounding, and how much rounding may do is
computed for every entry beforehand. The frozen base had the SHA-256 digest <code>{result.base_digest[:16]}…</code>
before training, and {"the same" if unchanged else "<b>not the same</b>"} after every run.</p>
{table(caption, head, rows)}
{figure(pictures(result)["merge_error"], about)}"""


def _chance(result: StudyResult) -> str:
    config = result.config
    chance = (
        f"Each rank was trained {config.seeds} times (seeds {config.seed} to {config.seed + config.seeds - 1}); the "
        "intervals are over these seeds, on one task and one split."
        if config.seeds > 1
        else f"Each rank was trained once (seed {config.seed}): a small difference between two ranks may be chance. "
        "<code>lora-np study --full</code> trains several and gives intervals."
    )
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in result.versions.items())
    return f"""<h2>What is chance, and how to repeat this</h2>
<p>{chance} Task, split and gradient checks have seed {config.seed}. The same seeds give the same examples and the same
counts everywhere; the last digits of a loss depend on the machine's matrix library, and times on the machine. All
ranks share α and the learning rate, which were not tuned for each.</p>
<p class="soft">{versions}. Base {escape(result.base_digest)}. {result.seconds:.0f} s in all (a resumed study counts its
last part only), {sum(run.seconds for run in result.runs):.0f} s of them for the adapters. All numbers: study.json.</p>
<p class="soft">Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685.</p>"""


def _mark(holds: bool) -> str:
    return '<span class="yes">✓</span>' if holds else '<b class="no">✗ does not hold</b>'


def _same(values: Iterable[int]) -> str:
    """One number when all are equal, else all of them."""
    return " / ".join(f"{value:,}" for value in dict.fromkeys(values))
