"""The frontier under intervals: a strict partial order, and the classic Pareto front where everything is known exactly."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.cost.frontier import Placed, Point, Range, dominates, place

D = Decimal


def point(name: str, cost: str | tuple[str, str, str], low: str, mid: str, high: str) -> Point:
    paid = Range.exactly(D(cost)) if isinstance(cost, str) else Range(*map(D, cost))
    return Point(name, paid, Range(D(low), D(mid), D(high)))


def ranges(top: int = 20) -> st.SearchStrategy[Range]:
    return st.lists(st.integers(0, top), min_size=3, max_size=3).map(lambda v: Range(*(D(x) for x in sorted(v))))


def points(exact: bool = False) -> st.SearchStrategy[list[Point]]:
    one = st.integers(0, 9).map(lambda v: Range.exactly(D(v))) if exact else ranges()
    return st.lists(st.tuples(one, one), max_size=9).map(lambda v: [Point(f"p{i}", c, a) for i, (c, a) in enumerate(v)])


def by_name(placed: list[Placed]) -> dict[str, Placed]:
    return {p.point.name: p for p in placed}


def test_by_hand() -> None:
    """A base, a cheap good model, a dear one that overlaps with it, and a dear bad one."""
    found = by_name(place([
        point("base", "0", "0.17", "0.21", "0.26"), point("sft", "5", "0.56", "0.61", "0.66"),
        point("grpo", "9", "0.57", "0.62", "0.67"), point("poor", "7", "0.30", "0.33", "0.36"),
    ]))  # fmt: skip
    assert [n for n, p in found.items() if p.on_frontier] == ["base", "sft", "grpo"]
    assert found["poor"].dominated_by == ("sft",), "grpo is better but dearer"
    assert found["sft"].tied_with == ("grpo",) and found["grpo"].tied_with == ("sft",)
    assert found["sft"].cheapest_tied == "" and found["grpo"].cheapest_tied == "sft"
    assert found["sft"].beats == ("poor",) and found["base"].beats == ()


def test_a_cost_that_may_be_higher_dominates_nothing() -> None:
    better = point("a", ("1", "2", "4"), "0.6", "0.7", "0.8")
    worse = point("b", ("3", "5", "6"), "0.1", "0.2", "0.3")
    assert not dominates(better, worse)
    assert dominates(point("a", ("1", "2", "3"), "0.6", "0.7", "0.8"), worse)


def test_touching_intervals_are_tied() -> None:
    a, b = point("a", "1", "0.5", "0.6", "0.7"), point("b", "2", "0.3", "0.4", "0.5")
    found = by_name(place([a, b]))
    assert found["a"].tied_with == ("b",) and found["b"].on_frontier


@pytest.mark.parametrize("ends", [("2", "1", "3"), ("1", "3", "2"), ("NaN", "1", "2")])
def test_a_range_is_in_order(ends: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match="order"):
        Range(*map(D, ends))


def test_names_are_unique_and_none_is_fine() -> None:
    p = point("a", "1", "0", "0", "0")
    with pytest.raises(ValueError, match="'a'"):
        place([p, p])
    assert place([]) == []


@given(points())
def test_a_strict_partial_order(found: list[Point]) -> None:
    for a in found:
        assert not dominates(a, a)
        for b in found:
            assert not (dominates(a, b) and dominates(b, a))
            assert not (dominates(a, b) and a.accuracy.overlaps(b.accuracy)), "what is tied is not ranked"
            for c in found:
                assert not (dominates(a, b) and dominates(b, c)) or dominates(a, c)


@given(points())
def test_every_dominated_point_is_dominated_by_the_frontier(found: list[Point]) -> None:
    placed = by_name(place(found))
    assert not found or any(p.on_frontier for p in placed.values())
    for p in found:
        really = any(dominates(q, p) for q in found)
        assert placed[p.name].on_frontier == (not really)
        assert all(placed[q].on_frontier for q in placed[p.name].dominated_by)


@given(points(), st.randoms())
def test_the_order_does_not_matter(found: list[Point], rng: object) -> None:
    mixed = list(found)
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    one, two = by_name(place(found)), by_name(place(mixed))
    for name, p in one.items():
        assert set(p.dominated_by) == set(two[name].dominated_by) and set(p.tied_with) == set(two[name].tied_with)


@given(points(), st.integers(0, 3))
def test_less_certainty_never_ranks_more(found: list[Point], wider: int) -> None:
    wide = [
        Point(p.name, p.cost, Range(p.accuracy.low - wider, p.accuracy.mid, p.accuracy.high + wider)) for p in found
    ]
    for a, b in zip(place(found), place(wide), strict=True):
        assert set(b.beats) <= set(a.beats) and set(a.tied_with) <= set(b.tied_with)


@given(points(exact=True))
def test_without_intervals_it_is_the_classic_front(found: list[Point]) -> None:
    """The slow twin: keep what no other point beats in accuracy at no higher cost."""
    classic = {
        p.name for p in found
        if not any(q.cost.mid <= p.cost.mid and q.accuracy.mid > p.accuracy.mid for q in found)
    }  # fmt: skip
    assert {p.point.name for p in place(found) if p.on_frontier} == classic
