r"""The conformance kit: frozen vectors of LoRA layers for any implementation, in any language.

    vectors  = read_vectors()                                  # from files that need no library but JSON
    results  = conform(load_run("adapter.py"), vectors.chosen(), ["float32"])
    results[0].status                                          # "passed", "failed", …

`files` holds the format, `running` what an implementation must offer and how it is judged, `mutants` the historic bugs
by which the vectors themselves are judged. The equations and rows are `lora_np.cases.equations` and `.layers`.
"""

from .files import FOLDER, made, read_vectors, write_vectors
from .mutants import MUTANTS, killed
from .running import Case, Result, Vectors, conform, expected_failures, load_run, tally

__all__ = [
    "FOLDER",
    "MUTANTS",
    "Case",
    "Result",
    "Vectors",
    "conform",
    "expected_failures",
    "killed",
    "load_run",
    "made",
    "read_vectors",
    "tally",
    "write_vectors",
]
