"""Which problems are the same problem. One key a problem, fit for procedural families and for prose.

`answers.operand_key` knows a question by its numbers, which is right for "State ...: 3 + 5 =" and wrong for word
problems, where two stories may share their numbers. A family is procedural if its questions, numbers masked, repeat.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from shoestring import answers
from shoestring.records import Problem

_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
_REPEATED = 0.5  # share of a family's questions whose masked form occurs more than once


def skeleton(prompt: str) -> str:
    """The question with numbers masked and white space collapsed: what a template leaves behind."""
    return " ".join(_NUMBER.sub("#", prompt).casefold().split())


def procedural_families(problems: Iterable[Problem]) -> set[str]:
    """The domains whose questions come from a few templates: at least half share a masked form with another."""
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for p in problems:
        forms[p.domain][skeleton(p.prompt)] += 1
    return {
        domain
        for domain, counts in forms.items()
        if sum(n for n in counts.values() if n > 1) >= _REPEATED * sum(counts.values())
    }


def problem_key(problem: Problem, procedural: bool) -> str:
    """`operand_key` of a procedural question; else its domain and all of its words and numbers in order."""
    if procedural:
        return answers.operand_key(problem.prompt, problem.domain)
    return f"{problem.domain}|t|" + " ".join(answers.words(problem.prompt))


def problem_keys(problems: Sequence[Problem], among: Iterable[Problem] | None = None) -> list[str]:
    """One key a problem, in order. Families are judged over `among` (default: the problems themselves)."""
    families = procedural_families(problems if among is None else among)
    return [problem_key(p, p.domain in families) for p in problems]
