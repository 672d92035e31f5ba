"""1 if the stated final answer is a number within a tolerance of the gold, else 0.

Grader arguments: `tolerance` (absolute, default 0) and `relative` (share of the gold's size, default 0); the larger of
the two counts. Fractions of two numbers ("3/4") are read too.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from shoestring import answers
from shoestring.records import Problem


def _number(text: str) -> Fraction | None:
    plain = answers.normalise(text)
    if answers.is_number(plain):
        return Fraction(Decimal(plain))
    top, slash, bottom = plain.partition("/")
    if not slash or not (answers.is_number(top) and answers.is_number(bottom)):
        return None
    divisor = Fraction(Decimal(answers.normalise(bottom)))
    return Fraction(Decimal(answers.normalise(top))) / divisor if divisor else None


def _limit(name: str, value: Any) -> Fraction:
    try:
        limit = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"grader argument {name} = {value!r} is not a number") from None
    if limit < 0:
        raise ValueError(f"grader argument {name} = {value!r} must not be negative")
    return limit


def _gold(problem: Problem) -> tuple[Fraction, Fraction]:
    gold = _number(problem.answer)
    if gold is None:
        raise ValueError(f"the gold answer {problem.answer!r} is not a number")
    tolerance = _limit("tolerance", problem.grader_args.get("tolerance", 0))
    relative = _limit("relative", problem.grader_args.get("relative", 0))
    return gold, max(tolerance, relative * abs(gold))


def check(problem: Problem) -> None:
    """Raises ValueError if the gold is not a number, or a tolerance is not one or is negative."""
    _gold(problem)


def grade(text: str, problem: Problem) -> float:
    """1.0 or 0.0. Raises ValueError as `check` does."""
    gold, tolerance = _gold(problem)
    stated = answers.extract(text)
    value = _number(stated) if stated is not None else None
    return float(value is not None and abs(value - gold) <= tolerance)
