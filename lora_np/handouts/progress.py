r"""What a learner has done, as the stored outputs of a notebook say it."""

from __future__ import annotations

from collections.abc import Mapping

from .notebooks import Notebook, checks_in, code_cells, source_of

STATES = ("passed", "not yet", "not tried")


def progress(notebook: Notebook) -> dict[str, str]:
    """Of each check: "passed" where the stored output of its cell says so, "not yet" after a hint, else "not tried"."""
    states: dict[str, str] = {}
    for cell in code_cells(notebook):
        if not (checks := checks_in(source_of(cell))):
            continue
        printed = "".join("".join(output.get("text", "")) for output in cell.get("outputs", []))
        failed = any(output.get("output_type") == "error" for output in cell.get("outputs", []))
        states[checks[-1]] = STATES[0] if "Right:" in printed and not failed else STATES[1] if failed else STATES[2]
    return states


def summary(states: Mapping[str, Mapping[str, str]]) -> str:
    """One line of how far a learner is: of all notebooks, then of each."""
    passed = {name: list(each.values()).count(STATES[0]) for name, each in states.items()}
    parts = ", ".join(f"{name[:2]} {passed[name]}/{len(each)}" for name, each in states.items())
    return f"lora_np tutorials: {sum(passed.values())} of {sum(map(len, states.values()))} checks passed ({parts})"
