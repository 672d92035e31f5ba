"""Drop repeated problems: the same text, or the same operands in another order. The first of each stays."""

from __future__ import annotations

from collections.abc import Sequence

from shoestring.data.keys import problem_keys
from shoestring.records import Problem


def exact(problems: Sequence[Problem]) -> list[Problem]:
    """Problems whose text is new, case and white space aside; order kept.

    The domain does not count: one question listed under two domains is one question.
    """
    seen: set[str] = set()
    kept = []
    for p in problems:
        text = " ".join(p.prompt.casefold().split())
        if text not in seen:
            seen.add(text)
            kept.append(p)
    return kept


def by_operands(problems: Sequence[Problem]) -> list[Problem]:
    """Problems whose key is new (3 + 5 and 5 + 3 are one problem); order kept.

    Word problems of a family without a template are compared by all of their words, not by their numbers alone.
    """
    seen: set[str] = set()
    kept = []
    for p, key in zip(problems, problem_keys(problems), strict=True):
        if key not in seen:
            seen.add(key)
            kept.append(p)
    return kept
