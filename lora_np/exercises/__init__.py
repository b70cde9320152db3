"""Exercises of the tutorials: each check says what is wrong with a wrong answer."""

from __future__ import annotations


def unanswered(answer: object, task: str) -> bool:
    """Is the answer still the placeholder `...`? Then the task is printed."""
    if answer is not ...:
        return False
    print(f"Exercise: {task}")
    return True
