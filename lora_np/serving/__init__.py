r"""One frozen base, many adapters: kept by name, mixed in one batch, trained together, composed.

bank = AdapterBank(base, "adapters")
for answer in serve(base, [Request(prompt, "support"), Request(prompt, "sales")], bank):
    print(answer.number, answer.tokens)

mixed(base, [bank["support"], None, bank["sales"]])(tokens)     # one forward, an adapter for each sequence
"""

from .adapter import Adapter, Factors, adapter_of, applied, method_of
from .bank import AdapterBank
from .batching import serve
from .composing import added, averaged_apart, compressed, concatenated, difference
from .mixed import mixed
from .requests import Answer, Request
from .switching import lost_by_subtracting, switched
from .together import fit_together

__all__ = [
    "Adapter",
    "AdapterBank",
    "Answer",
    "Factors",
    "Request",
    "adapter_of",
    "added",
    "applied",
    "averaged_apart",
    "compressed",
    "concatenated",
    "difference",
    "fit_together",
    "lost_by_subtracting",
    "method_of",
    "mixed",
    "serve",
    "switched",
]
