"""Every public name says what it is: its equation or its shapes, what it raises, and an example that runs."""

import ast
import doctest
import inspect
import re
from itertools import pairwise
from pathlib import Path

import pytest

import lora_np

NAMES = sorted(lora_np.__all__)
CONSTANTS = {"METHODS": "methods/__init__.py", "__version__": "version.py"}
HOLD_NO_ARRAYS = {"LoraConfig", "METHODS", "TrainingConfig", "TransformerConfig", "__version__"}

EQUATION = re.compile(r"\$[^$]+\$|\([A-Z]\d+\)")
SHAPE = re.compile(r"\((?:[a-z_]+|\.\.\.)(?:, [a-z_]+)*,?\)")


def documented(name: str) -> str:
    """What a public name says of itself; of a constant, the text below its assignment."""
    value = getattr(lora_np, name)
    if callable(value):
        return inspect.getdoc(value) or ""
    body = ast.parse((Path(lora_np.__file__).parent / CONSTANTS[name]).read_text(encoding="utf-8")).body
    for node, after in pairwise(body):
        assigned = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in (getattr(target, "id", None) for target in assigned):
            return inspect.cleandoc(after.value.value)  # type: ignore[attr-defined]
    return ""


def lacking(name: str, doc: str, is_called: bool) -> list[str]:
    """What a docstring should say and does not."""
    said = doc.partition(">>>")[0] + re.sub(r"(?s)>>>.*?(?:\n\n|\Z)", "", doc)
    lacks = [] if ">>> " in doc else ["an example"]
    if name not in HOLD_NO_ARRAYS and not (EQUATION.search(said) or SHAPE.search(said)):
        lacks.append("an equation or shapes")
    if is_called and not re.search(r"\b[Rr]aises\b", said):
        lacks.append("what it raises")
    return lacks


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_its_equation_or_shapes_what_it_raises_and_an_example(name: str) -> None:
    assert lacking(name, documented(name), callable(getattr(lora_np, name))) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs_by_itself_and_prints_what_it_says(name: str) -> None:
    test = doctest.DocTestParser().get_doctest(documented(name), {}, name, None, 0)
    printed: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
    assert found.attempted
    assert not found.failed, "".join(printed)


@pytest.mark.parametrize(
    ("doc", "lacks"),
    [
        ("W (d_out, d_in). Raises ValueError.\n\n>>> 1", []),
        ("$y = Wx$. Raises ValueError.\n\n>>> 1", []),
        ("W (d_out, d_in). Raises ValueError.", ["an example"]),
        ("A map. Raises ValueError.\n\n>>> f((rank, d_in))", ["an equation or shapes"]),
        ("W (d_out, d_in).\n\n>>> 1  # raises", ["what it raises"]),
        ("", ["an example", "an equation or shapes", "what it raises"]),
    ],
)
def test_a_docstring_that_lacks_something_is_found_out(doc: str, lacks: list[str]) -> None:
    assert lacking("delta", doc, is_called=True) == lacks


def test_an_example_that_prints_something_else_is_found_out() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda _: None).failed == 1


def test_the_reference_holds_every_public_name_once() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = [name for block in re.findall(r"```\{public\}\n(.*?)```", page, re.DOTALL) for name in block.split()]
    assert sorted(listed) == NAMES
