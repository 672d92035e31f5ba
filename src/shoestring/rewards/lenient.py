"""1 if the answer, read leniently, equals the gold, else 0: the marked answer, or the last number, or the last line.

For scoring base models, so that a gain measured with `exact` is not a gain of format. Not meant for training.
"""

from __future__ import annotations

from shoestring import answers
from shoestring.records import Problem


def check(problem: Problem) -> None:
    """Raises ValueError if the gold is empty once normalised."""
    answers.equal(None, problem.answer)


def grade(text: str, problem: Problem) -> float:
    """1.0 or 0.0. Raises ValueError as `check` does."""
    return float(answers.equal(answers.extract(text, lenient=True), problem.answer))
