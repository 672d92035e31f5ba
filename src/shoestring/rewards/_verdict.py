"""What a grader says of one answer. Standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# Reasons that mean: the answer was not graded to its end. They are counted apart from answers that are merely wrong.
STOPPED = ("timeout", "hostile", "memory", "crashed")


@dataclass(frozen=True)
class Verdict:
    """score: what is paid, None where the reward has no opinion (it is then left out of a mixture).

    reason: one word. "right", "wrong", "partial"; "no answer" (none was stated), "unreadable" (stated, but not in the
    grader's language), "skipped"; "timeout", "memory", "crashed" (grading was cut off), "hostile" (too long or too deep
    to be handed on, or the program reached for what it may not).
    """

    score: float | None
    reason: str = ""
    detail: str = ""


def of_score(score: float) -> Verdict:
    """The verdict of a reward that gives no reason of its own."""
    return Verdict(score, "right" if score >= 1.0 else "partial" if score > 0.0 else "wrong")


def tally(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How often each reason was given, the commonest first."""
    return dict(Counter(v.reason for v in verdicts).most_common())
