"""Format filters: what is wrong with a problem as it stands, before any model has seen it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from shoestring import answers
from shoestring.records import Problem

MIN_PROMPT, MAX_PROMPT, MAX_ANSWER = 3, 8000, 200  # characters
_IMAGE = re.compile(
    r"!\[[^\]]*\]\(|<img\b|\[asy\]|\b(?:figure|diagram|image|picture) (?:below|above|shown)\b", re.IGNORECASE
)
_PLACEHOLDER = re.compile(r"\b(?:TODO|FIXME|lorem ipsum)\b|\{\{.*?\}\}|\[(?:insert|redacted)[^\]]*\]", re.IGNORECASE)


def _unprintable(text: str) -> bool:
    return "\ufffd" in text or any(unicodedata.category(c) in ("Cc", "Cs", "Co") and c not in "\n\r\t" for c in text)


# each filter: what it finds wrong -> True if the problem has it; the first that matches names the reason
FILTERS: dict[str, Callable[[Problem], bool]] = {
    "empty or too short a question": lambda p: len(p.prompt.strip()) < MIN_PROMPT,
    "question too long": lambda p: len(p.prompt) > MAX_PROMPT,
    "no answer": lambda p: not answers.normalise(p.answer),
    "answer too long to be checked": lambda p: len(p.answer) > MAX_ANSWER,
    "unprintable characters": lambda p: _unprintable(p.prompt + p.answer),
    "needs a picture": lambda p: _IMAGE.search(p.prompt) is not None,
    "placeholder text": lambda p: _PLACEHOLDER.search(p.prompt) is not None,
    "answer stated in the question": lambda p: (
        answers.extract(p.prompt) is not None and answers.equal(answers.extract(p.prompt), p.answer)
    ),
    "solution ends in another answer": lambda p: (
        p.solution is not None and not answers.equal(answers.extract(p.solution, lenient=True), p.answer)
    ),
}


def fault(problem: Problem) -> str | None:
    """The first thing wrong with a problem, a key of FILTERS, or None."""
    return next((why for why, wrong in FILTERS.items() if wrong(problem)), None)


def filter_problems(problems: Sequence[Problem]) -> tuple[list[Problem], Counter[str]]:
    """(the problems without a fault, in order; how many were dropped for which reason)."""
    kept, reasons = [], Counter()
    for p in problems:
        why = fault(p)
        if why is None:
            kept.append(p)
        else:
            reasons[why] += 1
    return kept, reasons
