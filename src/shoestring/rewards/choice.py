"""1 if the stated letter of a multiple-choice question is the gold letter, else 0.

The gold is one letter, "B" or "(B)". Read are "Answer: B", "Answer: (B) because ...", \\boxed{B}, tags, and a text that
is nothing but the letter. Grader argument: `options`, how many letters there are (default 26).
"""

from __future__ import annotations

import re

from shoestring import answers
from shoestring.records import Problem

_LEADING = re.compile(r"\W{0,10}(?:option |choice )?\W{0,10}([A-Za-z])(?![A-Za-z0-9'’])")
_ALONE = re.compile(r"\s*\W{0,10}([A-Za-z])\W{0,10}\s*")


def _gold(problem: Problem) -> str:
    options = problem.grader_args.get("options", 26)
    if not isinstance(options, int) or not 2 <= options <= 26:
        raise ValueError(f"grader argument options = {options!r} must be a whole number from 2 to 26")
    match = _ALONE.fullmatch(problem.answer)
    if match is None or ord(match[1].upper()) - ord("A") >= options:
        raise ValueError(f"the gold answer {problem.answer!r} is not one letter of the first {options}")
    return match[1].upper()


def check(problem: Problem) -> None:
    """Raises ValueError if the gold is not one letter among the options."""
    _gold(problem)


def grade(text: str, problem: Problem) -> float:
    """1.0 or 0.0. Raises ValueError as `check` does."""
    gold = _gold(problem)
    stated = answers.extract(text)
    if stated is not None:
        match = _LEADING.match(stated)
        # "A" is also a word: "Answer: A train" states no letter
        if match and match[1] in "aA" and re.match(r"\s+[a-z]", stated[match.end() :]):
            match = None if not re.match(r"\s+(because|since|as|is)\b", stated[match.end() :]) else match
    else:
        match = _ALONE.fullmatch(text) if len(text) < 40 else None
    return float(match is not None and match[1].upper() == gold)
