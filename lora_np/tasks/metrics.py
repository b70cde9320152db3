r"""What is asked of answers: functions of (examples, texts), one text an example, to a number, or None: cannot be said.

exact match           the share of texts that equal their reference, up to white space
accuracy              the same, of labels
Matthews correlation  (R1), of labels
slot accuracy         the share of the prompt's values that the text names
BLEU                  of the whole set, 0 to 100, by sacrebleu (Post 2018, arXiv:1804.08771)
execution accuracy    in `lora_np.tasks.sql`: the share of queries that find what the reference finds
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .sources import Example

NO_TEXT = ("yes", "no")  # values that a sentence does not spell


def exact_match(examples: Sequence[Example], texts: Sequence[str]) -> float:
    """The share of texts that read as their reference does, whatever white space they use."""
    return _share(" ".join(e.reference.split()) == " ".join(t.split()) for e, t in zip(examples, texts, strict=True))


def any_match(examples: Sequence[Example], texts: Sequence[str]) -> float:
    """The share of texts that are one of the answers that would have been right."""
    return _share(text.strip() in references_of(e) for e, text in zip(examples, texts, strict=True))


def label_accuracy(examples: Sequence[Example], texts: Sequence[str]) -> float:
    """The share of texts that are their label."""
    return accuracy([example.reference for example in examples], [text.strip() for text in texts])


def label_matthews(examples: Sequence[Example], texts: Sequence[str]) -> float | None:
    """(R1) of texts beside their labels; a text that is no label is a class of its own."""
    return matthews([example.reference for example in examples], [text.strip() for text in texts])


def accuracy(truths: Sequence[object], found: Sequence[object]) -> float:
    """The share of predictions that are right. Raises ValueError for none, or where the counts differ."""
    _check(truths, found)
    return _share(truth == label for truth, label in zip(truths, found, strict=True))


def matthews(truths: Sequence[object], found: Sequence[object]) -> float | None:
    r"""Matthews correlation of predictions with the truth: 1 if all agree, 0 at chance; None where it is 0/0.

    With n predictions, c of them right, $t_k$ of class k in truth and $p_k$ predicted,

    $$R = \frac{c\,n - \sum_k t_k p_k}{\sqrt{n^2 - \sum_k p_k^2}\,\sqrt{n^2 - \sum_k t_k^2}} \tag{R1}$$

    which for two classes is (TP·TN − FP·FN)/√((TP+FP)(TP+FN)(TN+FP)(TN+FN)). Where truth or predictions are all of one
    class it is 0/0; GLUE counts that as 0.

    Sources: Matthews 1975; Gorodkin 2004 for more than two classes.
    """
    _check(truths, found)
    n, t, p = len(truths), Counter(truths), Counter(found)
    right = sum(truth == label for truth, label in zip(truths, found, strict=True))
    spread = (n * n - sum(k * k for k in p.values())) * (n * n - sum(k * k for k in t.values()))
    if spread == 0:
        return None
    return (right * n - sum(t[k] * p[k] for k in t)) / math.sqrt(spread)


def slot_accuracy(examples: Sequence[Example], texts: Sequence[str]) -> float | None:
    """The share of the values in the prompts that their texts name, in whatever case; None if there are no values."""
    pairs = [(value, text.lower()) for e, text in zip(examples, texts, strict=True) for value in slots(e.prompt)]
    return _share(value.lower() in text for value, text in pairs) if pairs else None


def slots(prompt: str) -> tuple[str, ...]:
    """The values that a meaning states: of `name : value` the value, of `subject : property : object` both ends.

    Parts stand between |. Underscores are spaces; what sentences do not spell, yes and no, is left out.
    """
    parts = [[side.strip().strip('"') for side in part.split(" : ")] for part in prompt.split(" | ")]
    values = [value for sides in parts for value in (sides[1:] if len(sides) == 2 else [sides[0], sides[-1]])]
    spelled = [value.replace("_", " ") for value in values if value and value.lower() not in NO_TEXT]
    return tuple(dict.fromkeys(spelled)) if any(len(sides) > 1 for sides in parts) else ()


def bleu(examples: Sequence[Example], texts: Sequence[str]) -> float:
    """BLEU of the texts beside all references of their prompts. Raises ImportError, in a line, without sacrebleu."""
    try:
        import sacrebleu
    except ImportError:
        raise ImportError('BLEU needs the sacrebleu package: pip install "lora_np[tasks]"') from None
    references = [references_of(example) for example in examples]
    most = max(map(len, references))
    streams: list[Any] = [[found[i] if i < len(found) else None for found in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu([text.strip() for text in texts], streams, force=True).score)  # may be in tokens


def references_of(example: Example) -> tuple[str, ...]:
    """All texts that are known to be right for an example."""
    return tuple(getattr(example, "references", (example.reference,)))


def _share(right: Iterable[bool]) -> float:
    found = list(right)
    return sum(found) / len(found)


def _check(truths: Sequence[object], found: Sequence[object]) -> None:
    if len(truths) != len(found) or not truths:
        raise ValueError(f"predictions must be as many as truths, and at least one, got {len(found)} for {len(truths)}")
