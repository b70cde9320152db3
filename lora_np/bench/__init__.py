r"""How fast, and in how much memory: a training step and generation, beside the textbook and beside PyTorch with PEFT.

report = bench(BenchConfig((SIZES["small"],)))
print(markdown(report))
"""

from .measure import Measured, Ratio
from .process import ChildError
from .real import RealConfig, RealReport, bench_real, table_of
from .report import BenchConfig, BenchReport, bench
from .sizes import SIZES, Size, named_size
from .tables import as_markdown, markdown, tables

__all__ = [
    "SIZES",
    "BenchConfig",
    "BenchReport",
    "ChildError",
    "Measured",
    "Ratio",
    "RealConfig",
    "RealReport",
    "Size",
    "as_markdown",
    "bench",
    "bench_real",
    "markdown",
    "named_size",
    "table_of",
    "tables",
]
