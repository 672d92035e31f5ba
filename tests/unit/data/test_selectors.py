"""Selectors: what each promises, against slow twins; how choices are compared."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data import select
from shoestring.data.selectors import SELECTORS, Pool, choose, compare, farthest
from shoestring.records import Problem


def pool(**sizes: int) -> list[Problem]:
    return [Problem.make(f"{d} {i}", "1", domain=d) for d, n in sizes.items() for i in range(n)]


def unit(n: int, seed: int = 0, d: int = 6) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 25), st.integers(0, 8), st.integers(0, 5))
def test_farthest_against_a_double_loop(n: int, k: int, seed: int) -> None:
    vectors = unit(n, seed)
    chosen = farthest(vectors, k, first=n // 2)
    assert len(chosen) == len(set(chosen)) == min(n, k) and (not chosen or chosen[0] == n // 2)
    for at in range(1, len(chosen)):
        left = [i for i in range(n) if i not in chosen[:at]]
        worst = {i: max(float(vectors[i] @ vectors[c]) for c in chosen[:at]) for i in left}
        assert worst[chosen[at]] == pytest.approx(min(worst.values()), abs=1e-5)


def test_farthest_of_copies_repeats_nothing() -> None:
    assert sorted(farthest(np.ones((5, 3), np.float32), 9)) == [0, 1, 2, 3, 4]


def test_longest_random_and_band() -> None:
    problems = pool(a=10, b=10)
    lengths = {p.id: i for i, p in enumerate(problems)}
    rates = {p.id: i / 20 for i, p in enumerate(problems)}
    given = Pool(problems, rates, lengths, (0.4, 0.6), lambda: unit(20))
    assert choose("longest", given, 3) == problems[:-4:-1]
    inside = choose("band", given, 99)
    assert {p.id for p in inside} == {i for i, r in rates.items() if 0.4 <= r <= 0.6} and len(inside) == 5
    drawn = choose("random", given, 5, seed=1)
    assert drawn == choose("random", Pool(problems[::-1]), 5, seed=1) != choose("random", given, 5, seed=2)
    assert choose("s1", given, 7, 3) == select.select(problems, rates, lengths, 7, 3, "length")
    assert choose("s1", Pool(problems), 7, 3) == select.select(problems, {}, {}, 7, 3, "uniform")
    assert len(choose("k-centre", given, 4)) == 4
    for name in SELECTORS:
        assert len(choose(name, given, 0)) == 0 and len({p.id for p in choose(name, given, 99)}) in (5, 20)


def test_what_a_selector_lacks() -> None:
    bare = Pool(pool(a=3))
    for name, needs in (("longest", "lengths"), ("band", "pass rates"), ("k-centre", "vectors"), ("best", "unknown")):
        with pytest.raises(ValueError, match=needs):
            choose(name, bare, 1)
    with pytest.raises(ValueError, match="cannot select"):
        choose("s1", bare, -1)
    assert choose("k-centre", Pool([], vectors=lambda: unit(0)), 3) == []


@given(st.lists(st.integers(0, 15), unique=True, max_size=16), st.lists(st.integers(0, 15), unique=True, max_size=16))
def test_compare_against_sets(left: list[int], right: list[int]) -> None:
    problems = pool(a=8, b=4, c=4)
    a, b = [problems[i] for i in left], [problems[i] for i in right]
    found = compare({"x": a, "y": b})
    union = set(left) | set(right)
    assert found["overlap"]["x"]["y"] == found["overlap"]["y"]["x"] == round(len(set(left) & set(right)) / max(1, len(union)), 4)
    assert found["overlap"]["x"]["x"] == 1.0
    known = {problems[i].domain for i in union}
    assert set(found["domains"]) == known
    assert found["coverage"]["x"] == round(len({p.domain for p in a}) / max(1, len(known)), 4)
    assert {d: c["y"] for d, c in found["domains"].items() if c["y"]} == dict(Counter(p.domain for p in b))
