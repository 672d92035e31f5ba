"""Which problems are the same problem. One key a problem, fit for procedural families and for prose.

`answers.operand_key` knows a question by its numbers, which is right for "State ...: 3 + 5 =" and wrong for word
problems, where two stories may share their numbers. A family is procedural if its questions, numbers masked, repeat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from shoestring import answers
from shoestring.records import Problem

_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
_REPEATED = 0.5  # share of a family's questions whose masked form occurs more than once


def skeleton(prompt: str) -> str:
    """The question with numbers masked and white space collapsed: what a template leaves behind."""
    return " ".join(_NUMBER.sub("#", prompt).casefold().split())


def repeating(domain: Any, form: Any, domains: int) -> Any:
    """bool [domains]: the domains of whose questions at least half share their masked form with another.

    domain [N]: each question's domain, 0 to domains - 1; form [N]: a code or hash of its masked form.
    """
    import numpy as np

    order = np.lexsort((form, domain))
    d, f = domain[order], form[order]
    new = np.ones(len(d), bool)
    new[1:] = (d[1:] != d[:-1]) | (f[1:] != f[:-1])
    counts = np.diff(np.append(np.flatnonzero(new), len(d)))
    shared = np.bincount(d[new], weights=np.where(counts > 1, counts, 0), minlength=domains)
    total = np.bincount(d, minlength=domains)
    return (total > 0) & (shared >= _REPEATED * total)


def procedural_families(problems: Iterable[Problem]) -> set[str]:
    """The domains whose questions come from a few templates: at least half share a masked form with another."""
    import numpy as np

    names: dict[str, int] = {}
    forms: dict[str, int] = {}
    pairs = [
        (names.setdefault(p.domain, len(names)), forms.setdefault(skeleton(p.prompt), len(forms))) for p in problems
    ]
    codes = np.array(pairs, np.int64).reshape(-1, 2)
    found = repeating(codes[:, 0], codes[:, 1], len(names))
    return {name for name, code in names.items() if found[code]}


def problem_key(problem: Problem, procedural: bool, words: Sequence[str] | None = None) -> str:
    """`operand_key` of a procedural question; else its domain and all of its words and numbers in order."""
    if procedural:
        return answers.operand_key(problem.prompt, problem.domain)
    return f"{problem.domain}|t|" + " ".join(answers.words(problem.prompt) if words is None else words)


def problem_keys(problems: Sequence[Problem], among: Iterable[Problem] | None = None) -> list[str]:
    """One key a problem, in order. Families are judged over `among` (default: the problems themselves)."""
    families = procedural_families(problems if among is None else among)
    return [problem_key(p, p.domain in families) for p in problems]
