"""Several rewards as one: the weighted sum of what each pays. A reward without opinion (None) is left out of the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shoestring import rewards
from shoestring.records import Problem, UserError
from shoestring.rewards import _user
from shoestring.rewards._verdict import STOPPED, Verdict, of_score

OWN = "grader"  # each problem's own grader


class Mixture:
    """parts: name → weight. A name is a reward of this folder, "grader" (each problem's own), "file.py:function", or a
    key of `given`, rewards made elsewhere (a judge). The weights are taken as they are, not made to sum to one.

    As in TRL, an answer on which every part is silent has no score (None). Raises UserError for an unknown name or a
    weight that is not a finite number.
    """

    def __init__(self, parts: Mapping[str, float], given: Mapping[str, rewards.Reward] | None = None) -> None:
        if not parts:
            raise UserError("rewards: name at least one, such as {grader = 1.0}")
        self.weights: dict[str, float] = {}
        self.parts: dict[str, rewards.Reward | None] = {}
        for name, weight in parts.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or not weight:
                raise UserError(f"rewards: the weight of {name} is {weight!r}; it must be a number other than 0")
            self.weights[name] = float(weight)
            if given and name in given:
                self.parts[name] = given[name]
            else:
                self.parts[name] = None if name == OWN else _user.load(name) if ".py:" in name else rewards.get(name)

    def check(self, problem: Problem) -> None:
        """Raises ValueError if one of the parts cannot grade the problem's gold."""
        for part in self.parts.values():
            (part or rewards.get(problem.grader)).check(problem)

    def grade(self, text: str, problem: Problem) -> float:
        """The weighted sum for one text; 0 where no part has an opinion."""
        return self.score_many([text], [problem])[0].score or 0.0

    def by_part(self, texts: Sequence[str], problems: Sequence[Problem], **columns: Any) -> dict[str, list[Verdict]]:
        """The verdicts of each part alone, so that a run can show which reward a model lives on."""
        return {
            name: rewards.score_all(texts, problems, **columns)
            if part is None
            else rewards.score(part, texts, problems, **columns)
            for name, part in self.parts.items()
        }

    def score_many(self, texts: Sequence[str], problems: Sequence[Problem], **columns: Any) -> list[Verdict]:
        """One verdict a text. Its reason is the first part's that was cut off, else the one of the sum."""
        return self.summed(self.by_part(texts, problems, **columns))

    def summed(self, found: Mapping[str, Sequence[Verdict]]) -> list[Verdict]:
        """The sum of each text, from the verdicts of each part."""
        return [self._sum(dict(zip(found, row, strict=True))) for row in zip(*found.values(), strict=True)]

    def _sum(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        heard = [(self.weights[name], v) for name, v in verdicts.items() if v.score is not None]
        if not heard:
            return Verdict(None, "skipped")
        total = sum(w * (v.score or 0.0) for w, v in heard)
        stopped = next((v for _, v in heard if v.reason in STOPPED), None)
        return Verdict(total, stopped.reason, stopped.detail) if stopped else of_score(total)
