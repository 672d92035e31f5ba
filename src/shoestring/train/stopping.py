"""Dollar-aware early stopping: training goes on while it is shown to gain accuracy that is worth its money.

The same held-out problems are answered again and again, so two evaluations are compared problem by problem. Between the
evaluation that last paid for itself and the newest one lie Δ dollars (everything that the run spent, the evaluations too) and
a gain of Δ accuracy. Training pays if the gain's one-sided lower confidence bound, in points, is worth Δ dollars:

    lower(Δ accuracy) / Δ$  >=  1 point / worth

One evaluation that does not pay may be bad luck, and a slow gain needs a longer span to show: the span grows from the same
start, and the stage stops at the second in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.8  # of the lower bound, one-sided
PATIENCE = 2  # evaluations in a row that do not pay


@dataclass(frozen=True)
class Evaluation:
    """At `step`: `right`, 0 or 1 for each of the same problems, and `usd`, the run's dollars once it was made."""

    step: int
    usd: float
    right: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)


@dataclass(frozen=True)
class Verdict:
    """Of the newest evaluation. `since`: the step of the evaluation that it is compared with; points are hundredths of
    accuracy; usd: dollars since then; pays: whether the lower bound is worth them; stop: whether to stop training."""

    since: int
    gain: float
    low: float
    usd: float
    pays: bool
    stop: bool


def lower_bound(before: Sequence[int], after: Sequence[int], confidence: float = CONFIDENCE) -> float:
    """One-sided lower bound of the difference of two paired shares, after - before, in [-1, 1].

    The adjusted Wald interval of Agresti and Min ("Simple improved confidence intervals for comparing matched proportions",
    Statistics in Medicine 24, 2005): half an observation is added to each of the four cells, so that pairs which all
    agree do not look certain. Raises ValueError unless both have the same length above zero.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} answers before and {len(after)} after are no pairs")
    gained = sum(b < a for b, a in zip(before, after, strict=True)) + 0.5
    lost = sum(b > a for b, a in zip(before, after, strict=True)) + 0.5
    n = len(before) + 2
    difference = (gained - lost) / n
    variance = ((gained + lost) / n - difference**2) / n
    return max(-1.0, difference - NormalDist().inv_cdf(confidence) * math.sqrt(variance))


def judge(evaluations: Sequence[Evaluation], worth: float, patience: int = PATIENCE) -> Verdict | None:
    """The verdict on the newest of the evaluations, in their order; None for the first. `worth`: dollars a point.

    Raises ValueError for evaluations of different problems.
    """
    start, missed, verdict = evaluations[0], 0, None
    for now in evaluations[1:]:
        usd = now.usd - start.usd
        low = 100 * lower_bound(start.right, now.right)
        pays = low > 0 and low * worth >= usd
        missed = 0 if pays else missed + 1
        gain = 100 * (now.accuracy - start.accuracy)
        verdict = Verdict(start.step, gain, low, usd, pays, missed >= patience)
        if verdict.stop:
            break
        if pays:
            start = now
    return verdict
