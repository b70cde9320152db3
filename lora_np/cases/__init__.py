r"""One loss written twice, at one point: what witnesses, tests and planted faults all read.

`CASES` holds every operation beside the same thing in plain `autograd.numpy`; `METHOD_CASES` and `ARCHITECTURE_CASES`
every method and architecture on a small model, beside `lora_np.textbook`. A new one needs one row here.
"""

from .kinds import Case, Draw, Sample
from .models import ARCHITECTURE_CASES, METHOD_CASES, model_case, model_cases, small_model, textbook_settings
from .operations import (
    along,
    combination,
    joined_cases,
    operation_case,
    operation_cases,
    planted,
    projection,
    sample_case,
    spoiled,
)
from .samples import CASES

__all__ = [
    "ARCHITECTURE_CASES",
    "CASES",
    "METHOD_CASES",
    "Case",
    "Draw",
    "Sample",
    "along",
    "combination",
    "joined_cases",
    "model_case",
    "model_cases",
    "operation_case",
    "operation_cases",
    "planted",
    "projection",
    "sample_case",
    "small_model",
    "spoiled",
    "textbook_settings",
]
