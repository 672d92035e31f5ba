"""The cost–accuracy frontier of points that are only known to an interval. Pure, standard library only.

A point has a cost and an accuracy, each as low, middle and high. A point dominates another if it surely costs no more
and is surely more accurate: its highest cost is at most the other's lowest, and its lowest accuracy lies above the
other's highest. Where the accuracies' intervals overlap (touching counts) the two are *tied*: no order is claimed, not
even by the middles. That makes domination a strict partial order, so every dominated point is dominated by one that
is not; what nothing dominates is the frontier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Range:
    """low <= mid <= high; a number that is known exactly has three equal ones. Raises ValueError for another order."""

    low: Decimal
    mid: Decimal
    high: Decimal

    def __post_init__(self) -> None:
        if not all(v.is_finite() for v in (self.low, self.mid, self.high)) or not self.low <= self.mid <= self.high:
            raise ValueError(f"{self.low=} {self.mid=} {self.high=} are out of order")

    @classmethod
    def exactly(cls, value: Decimal) -> Range:
        return cls(value, value, value)

    def overlaps(self, other: Range) -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Point:
    """`cost` in US dollars, `accuracy` a share. Names are unique in a set of points."""

    name: str
    cost: Range
    accuracy: Range


@dataclass(frozen=True)
class Placed:
    """Where a point stands: `dominated_by` the frontier's points that do (empty: it is on the frontier), `tied_with` all
    points whose accuracy interval overlaps, `cheapest_tied` the one of those that costs least, where it surely costs less
    than this point ("" otherwise), `beats` the points that it dominates. Each in the order given."""

    point: Point
    dominated_by: tuple[str, ...]
    tied_with: tuple[str, ...]
    cheapest_tied: str
    beats: tuple[str, ...]

    @property
    def on_frontier(self) -> bool:
        return not self.dominated_by


def dominates(a: Point, b: Point) -> bool:
    return a.cost.high <= b.cost.low and a.accuracy.low > b.accuracy.high


def place(points: Sequence[Point]) -> list[Placed]:
    """Each point's place, in the order given. Raises ValueError where two points have one name."""
    names = [p.name for p in points]
    if len(set(names)) != len(names):
        raise ValueError(f"two points are called {next(n for n in names if names.count(n) > 1)!r}")
    frontier = [p for p in points if not any(dominates(q, p) for q in points)]
    return [
        Placed(
            p,
            tuple(q.name for q in frontier if dominates(q, p)),
            tuple(q.name for q in points if q is not p and q.accuracy.overlaps(p.accuracy)),
            _cheapest(p, [q for q in points if q is not p and q.accuracy.overlaps(p.accuracy)]),
            tuple(q.name for q in points if dominates(p, q)),
        )
        for p in points
    ]


def _cheapest(point: Point, tied: Sequence[Point]) -> str:
    least = min(tied, key=lambda q: q.cost.mid, default=None)
    return least.name if least and least.cost.high < point.cost.low else ""
