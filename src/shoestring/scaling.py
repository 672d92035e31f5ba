"""How well a way of spending tokens at test time can be steered, and what it buys: s1's three metrics. Standard library only.

Muennighoff et al. 2025, "s1: Simple test-time scaling", section 3.2. A is a set of evaluations of one model on one benchmark,
each at another amount a of test-time compute (here: mean thinking tokens an answer), and f(a) the accuracy there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any


def control(amounts: Sequence[tuple[float, float, float]]) -> float | None:
    """The share of amounts that lie in the window asked for: 1/|A| · Σ 1(a_min ≤ a ≤ a_max), in [0, 1]. None of nothing.

    amounts: (a, a_min, a_max), ends included, in tokens. 1.0 means that the compute was always what was asked.
    """
    return fmean(float(low <= a <= high) for a, low, high in amounts) if amounts else None


def scaling(points: Sequence[tuple[float, float]]) -> float | None:
    """The mean slope over all pairs: 1/C(|A|,2) · Σ_{b>a} (f(b) − f(a)) / (b − a). points: (tokens, accuracy in [0, 1]).

    In accuracy a token (times 100,000: percentage points a thousand tokens). Pairs of equal tokens have no slope and are left
    out of sum and count; None where no pair is left. Above 0: thinking longer helped on the whole.
    """
    slopes = [(g - f) / (b - a) for (a, f), (b, g) in combinations(sorted(points), 2) if b > a]
    return fmean(slopes) if slopes else None


def performance(points: Sequence[tuple[float, float]]) -> float | None:
    """The best accuracy: max f(a). None of nothing."""
    return max((f for _, f in points), default=None)


def metrics(points: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """control, scaling and performance of the points of scaling.json.

    A point has `budget` (a_max; a_min is 0), `accuracy` and `mean_thinking_tokens`. Where it lists every answer's
    `thinking_tokens`, control is taken over the answers instead of their means: one that overran is seen.
    """
    amounts = [
        (float(a), 0.0, float(p["budget"])) for p in points for a in p.get("thinking_tokens") or [p["mean_thinking_tokens"]]
    ]
    pairs = [(float(p["mean_thinking_tokens"]), float(p["accuracy"])) for p in points]
    return {"control": control(amounts), "scaling": scaling(pairs), "performance": performance(pairs)}
