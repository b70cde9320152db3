r"""Notebooks for a class: blank for students, with answers and points for nbgrader, with numbers of one's own; and what
a learner has done.

A notebook is the JSON of nbformat 4, changed as plain data. An exercise is a code cell that assigns `...` to some names
and calls one `check_…` on them; its worked answer is the cell of the solutions that calls the same check.
"""

from .course import for_nbgrader, handed_out
from .notebooks import Notebook, answers, exercise
from .pages import PREDICTION, blank, figures
from .progress import STATES, progress, summary
from .variants import mine, numbers, varied

__all__ = [
    "PREDICTION",
    "STATES",
    "Notebook",
    "answers",
    "blank",
    "exercise",
    "figures",
    "for_nbgrader",
    "handed_out",
    "mine",
    "numbers",
    "progress",
    "summary",
    "varied",
]
