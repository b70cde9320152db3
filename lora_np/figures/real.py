"""Pictures of tutorial 12: which words a model expects next, and how its loss falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import COLOURS, _figure, _from_zero, _legend, _look

HATCHES = ("", "//", "..", "xx")


def expected_words(beliefs: Mapping[str, Mapping[str, float]]) -> Any:
    r"""What each model expects to come next: a bar for the probability of each word, the words of all in one list.

    beliefs  {model: {word: probability}}; a word that one of them does not name has no bar there
    Raises ValueError when there is no word, or a number that is no probability.
    """
    words = list(dict.fromkeys(word for belief in beliefs.values() for word in belief))
    if not words or any(not 0.0 <= p <= 1.0 for belief in beliefs.values() for p in belief.values()):
        raise ValueError("a picture of what is expected needs at least one word, and probabilities from 0 to 1")
    high = 0.8 / len(beliefs)
    with _figure(5.8, 1.6 + 0.16 * len(words) * (1 + len(beliefs))) as figure:
        axes = figure.add_subplot()
        for i, (model, belief) in enumerate(beliefs.items()):
            places = [row + (i - (len(beliefs) - 1) / 2) * high for row in range(len(words))]
            look = {"color": COLOURS[i % len(COLOURS)], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white"}
            axes.barh(places, [belief.get(word, 0.0) for word in words], height=high, label=model, **look)
        axes.set_yticks(range(len(words)), [repr(word) for word in words])
        axes.set_ylim(len(words) - 0.4, -0.6)  # the first word on top
        axes.set_xlim(0.0, 1.0)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="probability that it comes next", ylabel="token")
        _legend(figure, columns=len(beliefs))
    return figure


def losses_of_steps(losses: Sequence[float]) -> Any:
    r"""The loss of each step's batch, in nats a token, from step 1; the axis of the loss starts at zero.

    Raises ValueError when there is none.
    """
    if not len(losses):
        raise ValueError("a picture of losses needs at least one step")
    with _figure(5.6, 3.4) as figure:
        axes = figure.add_subplot()
        axes.plot(range(1, len(losses) + 1), list(losses), label="batch of this step", **_look(0))
        _from_zero(axes)
        axes.set(xlabel="optimizer step", ylabel="loss (nats a token)")
        _legend(figure, columns=1)
    return figure
