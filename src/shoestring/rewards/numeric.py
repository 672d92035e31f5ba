"""1 if the stated final answer is a number within a tolerance of the gold, else 0.

Read are decimals, fractions, mixed numbers, powers of ten, thousands, money, and LaTeX for these. Grader arguments:
`tolerance` (absolute, default 0) and `relative` (share of the gold's size, default 0); the larger of the two counts.
`unit`: the unit of a bare gold, such as "km"; the answer may bear it, another one of the same kind (5,000 m is 5 km)
or none. `percent = true`: a percent sign means hundredths (50% is 0.5; without this argument it is dropped, 50% is 50).
`interval = true`: the gold is an interval, "[1.4, 1.5)", and every number inside is right.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from shoestring import answers
from shoestring.records import Problem
from shoestring.rewards import _units
from shoestring.rewards._quantity import Interval, interval, quantity


def _number(text: str, unit: _units.Unit | None, percent: bool) -> Fraction | None:
    """The number that a text says, in `unit` where there is one."""
    plain = answers.normalise(text)
    if "%" not in text and answers.is_number(plain) and plain.isascii() and text.isascii():
        return Fraction(Decimal(plain))
    found = quantity(text)
    if found is None:
        return None
    value = found.value / 100 if found.percent and percent else found.value
    if found.unit is None or (unit is None and found.unit.name == "degree"):
        return value
    if unit is None or found.unit.measures != unit.measures:
        return None
    return value * found.unit.factor / unit.factor


def _limit(name: str, value: Any) -> Fraction:
    try:
        limit = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"grader argument {name} = {value!r} is not a number") from None
    if limit < 0:
        raise ValueError(f"grader argument {name} = {value!r} must not be negative")
    return limit


def _flag(problem: Problem, name: str) -> bool:
    value = problem.grader_args.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"grader argument {name} = {value!r} must be true or false")
    return value


def _unit(problem: Problem) -> _units.Unit | None:
    name = problem.grader_args.get("unit")
    if name is None:
        return None
    unit = _units.find(str(name))
    if unit is None:
        raise ValueError(f"grader argument unit = {name!r} is not a unit that is known (km, kg, h, m^2, ...)")
    return unit


def _gold(problem: Problem) -> Interval:
    """Every right value, in the problem's unit."""
    tolerance = _limit("tolerance", problem.grader_args.get("tolerance", 0))
    relative = _limit("relative", problem.grader_args.get("relative", 0))
    if _flag(problem, "interval"):
        right = interval(problem.answer)
        if right is None:
            raise ValueError(f"the gold answer {problem.answer!r} is not an interval such as [1.4, 1.5)")
        return Interval(right.low - tolerance, right.high + tolerance, right.low_in, right.high_in)
    gold = _number(problem.answer, _unit(problem), _flag(problem, "percent"))
    if gold is None:
        raise ValueError(f"the gold answer {problem.answer!r} is not a number")
    either = max(tolerance, relative * abs(gold))
    return Interval(gold - either, gold + either, True, True)


def check(problem: Problem) -> None:
    """Raises ValueError if the gold is not a number (or interval, or in the unit), or an argument is not what it must be."""
    _gold(problem)


def grade(text: str, problem: Problem) -> float:
    """1.0 or 0.0. Raises ValueError as `check` does."""
    right = _gold(problem)
    stated = answers.extract(text)
    value = _number(stated, _unit(problem), _flag(problem, "percent")) if stated is not None else None
    return float(value is not None and right.holds(value))
