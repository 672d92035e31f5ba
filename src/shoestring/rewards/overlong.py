"""1 for an answer that keeps within its length, falling to 0 over the last stretch: DAPO's soft overlong punishment.

DAPO (Yu et al. 2025, section 3.4, equation 13) gives 0, falling to -1 between max - buffer and max; this is that plus
one, which leaves every difference within a group as it is. Grader arguments: `max` (default 4096) and `buffer` (default
a quarter of it). Lengths are sampled tokens where the stage passes them (column `lengths`), else words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoestring.records import Problem
from shoestring.rewards._verdict import Verdict, of_score


def _bounds(problem: Problem) -> tuple[int, int]:
    longest = problem.grader_args.get("max", 4096)
    if not isinstance(longest, int) or isinstance(longest, bool) or longest < 1:
        raise ValueError(f"grader argument max = {longest!r} must be a whole number above zero")
    buffer = problem.grader_args.get("buffer", longest // 4)
    if not isinstance(buffer, int) or isinstance(buffer, bool) or not 0 <= buffer <= longest:
        raise ValueError(f"grader argument buffer = {buffer!r} must be a whole number from 0 to max = {longest}")
    return longest, buffer


def check(problem: Problem) -> None:
    """Raises ValueError if `max` or `buffer` makes no sense. The gold is not read."""
    _bounds(problem)


def of_length(length: int, problem: Problem) -> float:
    """The reward of an answer of so many tokens (or words)."""
    longest, buffer = _bounds(problem)
    if length > longest:
        return 0.0
    return min(1.0, (longest - length) / buffer) if buffer else 1.0


def grade(text: str, problem: Problem) -> float:
    """From 1.0 to 0.0 by the words of the text. Raises ValueError as `check` does."""
    return of_length(len(text.split()), problem)


def score_many(
    texts: Sequence[str], problems: Sequence[Problem], lengths: Sequence[int] | None = None, **_: Any
) -> list[Verdict]:
    """As `grade`; by `lengths` where given."""
    counts = lengths if lengths is not None else [len(t.split()) for t in texts]
    return [of_score(of_length(n, p)) for n, p in zip(counts, problems, strict=True)]


def examples(problem: Problem) -> tuple[list[str], list[str]]:
    longest, _ = _bounds(problem)
    return ["x"], ["x " * (longest + 1)]
