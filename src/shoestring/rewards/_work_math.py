"""In the worker: is an answer mathematically the gold? math-verify (github.com/huggingface/Math-Verify), version 0.9.

Its own limits are switched off: they need the signals that the worker uses itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def prepare() -> Callable[[dict[str, str]], dict[str, Any]]:
    """The function that does one task: {"gold": text} checks a gold; {"gold": text, "answer": text} compares."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from sympy import Expr, expand

    logging.disable(logging.WARNING)
    readers = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

    def read(text: str) -> list[Any]:
        """What the text says, as algebra; [] if it says nothing that can be compared."""
        found = parse(f"${text}$", readers, fallback_mode="no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        if any(isinstance(f, str) and f.count("{") != f.count("}") for f in found):
            return []  # it kept a piece of the text: of 1 - \frac{1}{\mathrm{e}} the 1, which 1 + ... begins with too
        return [f for f in found if not isinstance(f, str)]

    gold_of = lru_cache(4096)(read)

    def far(gold: Any, stated: Any) -> bool:
        """Both are real numbers and differ by more than rounding. math-verify rounds to six decimals, for which 1/2004!
        and 1/2006! are both nothing (Math-Verify#14)."""
        if not all(getattr(x, "is_number", False) and getattr(x, "is_real", False) for x in (gold, stated)):
            return False
        a, b = gold.evalf(20), stated.evalf(20)
        return bool(abs(a - b) > 2e-6 * abs(a))

    def alike(gold: Any, stated: Any) -> bool:
        """Two polynomials whose difference cancels once multiplied out: told without simplify."""
        if not (isinstance(gold, Expr) and isinstance(stated, Expr)) or gold.is_number or stated.is_number:
            return False
        return bool(gold.is_polynomial() and stated.is_polynomial() and expand(gold - stated) == 0)

    def work(task: dict[str, str]) -> dict[str, Any]:
        try:
            gold = gold_of(task["gold"])
        except Exception:  # the parsers raise anything on garbage
            gold = []
        if not gold:
            return {"refused": "it is not mathematics that can be read"}
        if "answer" not in task:
            return {"score": 1.0}
        try:
            stated = read(task["answer"])
            if not stated:
                return {"unreadable": True}
            same = (len(gold) == len(stated) == 1 and alike(gold[0], stated[0])) or verify(gold, stated, timeout_seconds=None)
            percent = "%" in task["gold"] or "%" in task["answer"]  # there 50 and 0.5 are both right
            return {"score": float(same and (percent or not far(gold[0], stated[0])))}
        except (MemoryError, RecursionError):
            raise
        except Exception:
            return {"unreadable": True}

    work({"gold": "x^2", "answer": "\\frac{1}{2}"})  # fills the parser's tables, so that the first item is not charged for it
    return work
