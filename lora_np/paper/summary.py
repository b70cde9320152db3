r"""What a study found, as the README shows it: a table in Markdown, which is printed at the end of `lora-np study`."""

from __future__ import annotations

import statistics

from .results import StudyResult

HEAD = (
    "rank",
    "parameters: predicted = counted = stored",
    "adapter file",
    "held-out loss",
    "of its rounding bound, merging used",
)


def ranks(result: StudyResult) -> str:
    """A row for the base and one for each rank: what it costs, what it reaches, and how exact its merge is.

    Over several seeds the loss is the mean, and what merging used the most of any. Parameters that are not the same
    three times are shown as all three.
    """
    rows = [HEAD, ("---",) * len(HEAD), ("none", "0", "", f"{result.base_loss:.4f} bits per byte", "")]
    for rank in result.config.ranks:
        runs = result.of_rank(rank)
        numbers = dict.fromkeys(n for run in runs for n in (run.predicted, run.counted, run.stored))
        rows.append(
            (
                str(rank),
                " / ".join(f"{number:,}" for number in numbers),
                f"{runs[0].file_bytes:,} bytes",
                f"{statistics.mean(run.loss for run in runs):.4f}",
                f"{100 * max(run.used for run in runs):.1f} %",
            )
        )
    return "\n".join("".join(f"| {cell} " if cell else "| " for cell in row) + "|" for row in rows)
