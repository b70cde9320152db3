"""What the pytest plug-in gives to a test that asks for `lora_case`; see `lora_np_pytest`, which imports it then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..cases.vectors import DTYPES, Vector
from ..disk.reading import read_regular
from ..names import nearest_first
from .files import read_vectors
from .running import Case, Run, case_of, expected_failures, judge


@dataclass(frozen=True)
class LoraCase:
    """One vector in one type."""

    vector: Vector
    dtype: str

    @property
    def case(self) -> Case:
        return case_of(self.vector, self.dtype)

    def check(self, run: Run) -> None:
        """Raises AssertionError that says what does not hold."""
        result = judge(run, self.vector, self.dtype)
        if result.fails:
            raise AssertionError(f"{self.vector.name} ({self.dtype}): {result.why}")


def cases(config: Any) -> list[Any]:
    """A parameter for every vector and type that the configuration names; what may fail is marked so."""
    import pytest

    names, known = config.getini("lora_conform_dtypes") or ["float32"], config.getini("lora_conform_xfails")
    for name in names:
        if name not in DTYPES:
            raise pytest.UsageError(f"lora_conform_dtypes: one of {nearest_first(name, DTYPES)}; got {name!r}")
    vectors = read_vectors().vectors
    xfails: dict[str, str] = {}
    if known:
        try:
            text = read_regular(config.rootpath / known).data.decode("utf-8")
            xfails = expected_failures(text, [vector.name for vector in vectors])
        except (OSError, ValueError) as error:
            raise pytest.UsageError(f"lora_conform_xfails: {error}") from None
    made = []
    for vector in vectors:
        for dtype in names:
            key = next((k for k in (vector.name, f"{vector.name}@{dtype}") if k in xfails), None)
            marks = () if key is None else (pytest.mark.xfail(reason=xfails[key], strict=False),)
            if dtype in vector.dtypes:
                made.append(pytest.param(LoraCase(vector, dtype), id=f"{vector.name}@{dtype}", marks=marks))
    return made
