"""Families that pay for saying one answer always. Found before a dollar is spent, by counting answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shoestring.answers import normalise
from shoestring.records import Problem
from shoestring.stats import commonest_answer_baseline

REFUSE, WARN = 0.6, 0.3  # shares of the commonest answer
MIN_PROBLEMS = 10  # below this a share says little: at most a warning

Verdict = Literal["ok", "warn", "refuse"]


@dataclass(frozen=True)
class Trap:
    """One family's commonest answer: `share` of its `n` problems have it. `message` is one line, "" if all is well."""

    family: str
    answer: str
    share: float
    n: int
    verdict: Verdict
    message: str = ""


def inspect(problems: Sequence[Problem], base_accuracy: Mapping[str, float] | None = None) -> list[Trap]:
    """One Trap a family (domain), sorted by name.

    refuse: the commonest answer is right for 60% or more. warn: for 30% or more and, where the base model's accuracy
    on the family is given, for more than that accuracy (a policy would gain by giving up reasoning).
    """
    families: dict[str, list[str]] = defaultdict(list)
    for p in problems:
        families[p.domain].append(normalise(p.answer))
    found = []
    for family in sorted(families):
        answer, share = commonest_answer_baseline(families[family])
        n = len(families[family])
        base = (base_accuracy or {}).get(family)
        verdict: Verdict = "ok"
        if share >= REFUSE and n >= MIN_PROBLEMS:
            verdict = "refuse"
        elif share >= WARN and n > 1 and (base is None or share > base):
            verdict = "warn"
        found.append(Trap(family, answer, share, n, verdict, _message(family, answer, share, n, base, verdict)))
    return found


def _message(family: str, answer: str, share: float, n: int, base: float | None, verdict: Verdict) -> str:
    if verdict == "ok":
        return ""
    versus = "" if base is None else f" (the base model scores {base:.0%})"
    advice = "leave it out" if verdict == "refuse" else "watch whether answers collapse"
    shown = answer if len(answer) <= 40 else answer[:37] + "..."
    name = family or "(no domain)"
    return f"{name}: always answering {shown!r} is right for {share:.0%} of {n} problems{versus}: {advice}"
