from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.select import band, select
from shoestring.records import Problem


def pool(**sizes: int) -> list[Problem]:
    return [Problem.make(f"{d} {i}", "1", domain=d) for d, n in sizes.items() for i in range(n)]


def test_band() -> None:
    rates = {"a": 0.0, "b": 0.25, "c": 0.5, "d": 1.0}
    assert band(rates, 0.25, 0.5) == ["b", "c"]
    assert band(rates, 0, 1) == list(rates)
    for low, high in ((0.5, 0.4), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="band"):
            band(rates, low, high)
    with pytest.raises(ValueError, match="pass rate 2"):
        band({"x": 2}, 0, 1)


def test_domains_are_drawn_alike_whatever_their_size() -> None:
    problems = pool(small=200, large=2000)
    counts = Counter(p.domain for p in select(problems, {}, {}, 200, seed=3))
    assert 70 <= counts["small"] <= 130


def test_length_rank_weighs_two_to_the_minus_rank() -> None:
    problems = pool(a=8)
    lengths = {p.id: 100 - i for i, p in enumerate(problems)}
    firsts = Counter(select(problems, {}, lengths, 1, seed=s)[0].prompt for s in range(2000))
    assert firsts["a 0"] == pytest.approx(1000, abs=100)
    assert firsts["a 1"] == pytest.approx(500, abs=80)
    assert firsts["a 2"] == pytest.approx(250, abs=60)


def test_the_harder_goes_first_among_equally_long() -> None:
    problems = pool(a=2)
    rates = {problems[0].id: 0.9, problems[1].id: 0.1}
    firsts = Counter(select(problems, rates, {}, 1, seed=s)[0].prompt for s in range(300))
    assert firsts["a 1"] > firsts["a 0"]


def test_uniform_within_a_domain() -> None:
    problems = pool(a=4)
    lengths = {problems[0].id: 1000}
    firsts = Counter(select(problems, {}, lengths, 1, seed=s, within="uniform")[0].prompt for s in range(800))
    assert len(firsts) == 4 and max(firsts.values()) < 260


@given(st.integers(0, 40), st.integers(0, 5), st.randoms(), st.sampled_from(["length", "uniform"]))
def test_no_repeats_the_same_seed_the_same_choice(n: int, seed: int, rng, within) -> None:
    problems = pool(a=5, b=10, c=1)
    chosen = select(problems, {}, {}, n, seed, within)
    assert len(chosen) == min(n, 16) == len({p.id for p in chosen})
    shuffled = list(problems)
    rng.shuffle(shuffled)
    assert select(shuffled, {}, {}, n, seed, within) == chosen


def test_refuses() -> None:
    with pytest.raises(ValueError):
        select([], {}, {}, -1)
    with pytest.raises(ValueError, match="within"):
        select([], {}, {}, 1, within="best")  # type: ignore[arg-type]
    assert select([], {}, {}, 3) == []
