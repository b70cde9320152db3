r"""The sections of `lora-np study --paper` by name: a new one is a function of what is known, and a row here."""

from __future__ import annotations

from collections.abc import Callable

from . import section_laws, section_methods, section_ranks, section_subspaces
from .asking import Known, Section

SECTIONS: dict[str, Callable[[Known], Section]] = {
    "laws": section_laws.laws,
    "table-1": section_laws.latency,
    "table-2-3-4": section_methods.methods,
    "figure-2": section_methods.budgets,
    "table-5": section_ranks.placements,
    "table-6-18": section_ranks.ranks,
    "figure-3-4-8": section_subspaces.subspaces,
    "table-16": section_methods.few_examples,
    "variants": section_methods.variants,
}
FREE = ("laws", "table-1")  # no rows are behind these: they are computed anew, last
