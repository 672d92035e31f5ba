"""1 for the shortest answer to a problem, 0 for the longest, evenly between: brevity within a group.

Kimi k1.5 (Kimi Team 2025, section 2.3.3) pays 0.5 - (length - shortest) / (longest - shortest); this is that plus a
half. It pays short wrong answers too: mix it with a grader, at a small weight (the self-test refuses a mixture that it
rules). Lengths are sampled tokens where the stage passes them (column `lengths`), else words. Answers to one problem in
one call are a group; alone, an answer gets 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoestring.records import Problem
from shoestring.rewards._verdict import Verdict, of_score


def check(problem: Problem) -> None:
    """Every problem has lengths; nothing is refused."""


def grade(text: str, problem: Problem) -> float:
    """1.0: a group of one has no longer answer. An empty text is paid nothing."""
    return float(bool(text.strip()))


def score_many(
    texts: Sequence[str], problems: Sequence[Problem], lengths: Sequence[int] | None = None, **_: Any
) -> list[Verdict]:
    """One verdict a text, by its place between the shortest and the longest answer to its problem."""
    counts = list(lengths) if lengths is not None else [len(t.split()) for t in texts]
    ranges: dict[str, tuple[int, int]] = {}
    for n, text, p in zip(counts, texts, problems, strict=True):
        if text.strip():
            low, high = ranges.get(p.id, (n, n))
            ranges[p.id] = min(low, n), max(high, n)
    out = []
    for n, text, p in zip(counts, texts, problems, strict=True):
        if not text.strip():
            out.append(Verdict(0.0, "no answer"))
            continue
        low, high = ranges[p.id]
        out.append(of_score(1.0 - (n - low) / (high - low) if high > low else 1.0))
    return out


def examples(problem: Problem) -> tuple[list[str], list[str]]:
    return ["x"], [""]
