"""Rewards: one file each, the module's name is the grader's name. A new reward is one new file in this folder.

A reward module has `grade(text, problem) -> float` in [0, 1], which never raises for any text, and `check(problem)`,
which raises ValueError if the problem's gold answer cannot be graded. `grade` raises the same ValueError: a gold that
cannot be read must never pay. A module may add `score_many(texts, problems, **columns) -> list[Verdict]`, where grading
many at once is faster or an answer's score depends on its group, and `examples(problem) -> (good texts, bad texts)` for
the self-test (`_selftest`), where a right answer is not simply the gold answer stated.

A user's own function and a judge behind an endpoint are rewards too (`_user`, `_judge`), and a weighted sum (`_mixture`).
They are named by whoever starts the run and never by a problem's row: data must not choose the code that is loaded.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, Protocol, cast

from shoestring.records import Problem, UserError
from shoestring.rewards._verdict import STOPPED, Verdict, of_score, tally

__all__ = ["STOPPED", "Reward", "Verdict", "get", "names", "of_score", "score", "score_all", "tally"]


class Reward(Protocol):
    """What a module in this folder offers."""

    def grade(self, text: str, problem: Problem) -> float: ...

    def check(self, problem: Problem) -> None: ...


def names() -> list[str]:
    """Every reward in the folder, sorted; modules that begin with "_" are helpers."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Reward:
    """The reward module of that name. Raises UserError, naming the nearest, if there is none."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"unknown grader {name!r}: {hint}")
    return cast(Reward, importlib.import_module(f"{__name__}.{name}"))


def score(reward: Reward, texts: Sequence[str], problems: Sequence[Problem], **columns: Any) -> list[Verdict]:
    """One verdict a text by one reward, texts[i] answering problems[i]; all at once where the reward can.

    columns: one value a text each, such as `lengths` (sampled tokens); rewards that do not know one ignore it.
    """
    many = getattr(reward, "score_many", None)
    if many is not None:
        return many(texts, problems, **columns)
    return [of_score(reward.grade(t, p)) for t, p in zip(texts, problems, strict=True)]


def score_all(texts: Sequence[str], problems: Sequence[Problem], **columns: Any) -> list[Verdict]:
    """One verdict a text, each by its problem's own grader; texts of one grader are scored together."""
    by: dict[str, list[int]] = {}
    for i, p in enumerate(problems):
        by.setdefault(p.grader, []).append(i)
    out: list[Verdict | None] = [None] * len(texts)
    for name, at in by.items():
        part = {key: [values[i] for i in at] for key, values in columns.items()}
        verdicts = score(get(name), [texts[i] for i in at], [problems[i] for i in at], **part)
        for i, v in zip(at, verdicts, strict=True):
            out[i] = v
    return cast(list[Verdict], out)
