"""1 if the stated final answer equals the gold, else 0. The answer must be marked ("Answer: 7", \\boxed{7}, tags)."""

from __future__ import annotations

from shoestring import answers
from shoestring.records import Problem


def check(problem: Problem) -> None:
    """Raises ValueError if the gold is empty once normalised."""
    answers.equal(None, problem.answer)


def grade(text: str, problem: Problem) -> float:
    """1.0 or 0.0. Raises ValueError as `check` does."""
    return float(answers.equal(answers.extract(text), problem.answer))
