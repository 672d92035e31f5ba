"""1 if the answer, read leniently, equals the gold, else 0: the marked answer, or the last number, or the last line.

For scoring base models, so that a gain measured with `exact` is not a gain of format. Not meant for training.
Where the gold is a number, a marked number may bear one plain word ("Answer: 18 dollars"): without the mark that number
counts too. Words that change the number ("18 million") are not such words.
"""

from __future__ import annotations

import re

from shoestring import answers
from shoestring.records import Problem

_UNIT = re.compile(r"(.*\d)\s+([A-Za-z]{2,20})\.?")
_CHANGES = re.compile(
    r"dozens?|hundreds?|thousands?|[mb]illions?|trillions?|gross|score|pairs?|half|halves|thirds?|quarters?|fourths?|fifths?|"
    r"sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|squared|cubed|factorial|pi|and|or|to|by|mod|plus|"
    r"minus|times|over|not",
    re.IGNORECASE,
)


def check(problem: Problem) -> None:
    """Raises ValueError if the gold is empty once normalised."""
    answers.equal(None, problem.answer)


def grade(text: str, problem: Problem) -> float:
    """1.0 or 0.0. Raises ValueError as `check` does."""
    stated = answers.extract(text, lenient=True)
    if answers.equal(stated, problem.answer):
        return 1.0
    found = _UNIT.fullmatch(stated.strip()) if stated is not None and len(stated) < 80 else None
    if found is None or _CHANGES.fullmatch(found[2]) or not answers.is_number(problem.answer):
        return 0.0
    return float(answers.is_number(found[1]) and answers.equal(found[1], problem.answer))
