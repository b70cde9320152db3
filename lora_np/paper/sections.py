r"""The sections of `lora-np study --paper` by name: a new one is a function of what is known, and a row here."""

from __future__ import annotations

from collections.abc import Callable

from . import section_laws, section_lessons, section_methods, section_ranks, section_since, section_subspaces
from .asking import Known, Section

SECTIONS: dict[str, Callable[[Known], Section]] = {
    "laws": section_laws.laws,
    "table-1": section_laws.latency,
    "table-2-3-4": section_methods.methods,
    "on-par": section_methods.on_par,
    "figure-2": section_methods.budgets,
    "table-5": section_ranks.placements,
    "table-6-18": section_ranks.ranks,
    "figure-3-4-8": section_subspaces.subspaces,
    "intrinsic": section_subspaces.intrinsic,
    "table-16": section_methods.few_examples,
    "variants": section_methods.variants,
    "placement": section_lessons.placement,
    "heads": section_lessons.heads,
    "shared": section_lessons.shared,
    "adaptive": section_lessons.adaptive,
    "carried": section_lessons.carried,
    "depth": section_lessons.depth,
    "learning-rate": section_since.rates,
    "capacity": section_since.capacity,
    "batch-size": section_since.batch_size,
    "forgetting": section_since.forgetting,
    "scaling": section_since.scaling,
    "halves": section_since.halves,
}
FREE = ("laws", "table-1", "depth")  # no rows are behind these: they are computed anew, last
