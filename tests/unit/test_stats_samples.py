"""Statistics of several samples a problem, each against a slow and obvious twin."""

from __future__ import annotations

import math
import random
from itertools import combinations, product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.stats import (
    majority_at_k,
    majority_vote,
    mcnemar,
    paired_problems,
    pass_at_k,
    problem_interval,
    sign_flip,
    wilson_interval,
)


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n: int, data: st.DataObject) -> None:
    marks = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    every = [any(c) for c in combinations(marks, k)]
    assert pass_at_k(n, sum(marks), k) == pytest.approx(fmean(every))


def test_pass_at_k_counts_the_samples_that_exist() -> None:
    """1 of 4 right is a quarter, whatever number of samples was asked for; the plug-in estimate of pass@2 is biased."""
    assert pass_at_k(4, 1, 1) == 0.25 and pass_at_k(3, 1, 1) == pytest.approx(1 / 3)
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5) != 1 - 0.75**2


def test_votes_by_hand() -> None:
    assert majority_vote(["7", "7", "8"], [1, 1, 0]) == 1.0
    assert majority_vote(["7", "8", "8"], [1, 0, 0]) == 0.0
    assert majority_vote(["7", "8"], [1, 0]) == 0.5, "a tie is decided by chance"
    assert majority_vote(["7", "8", "9"], [1, 0, 0]) == pytest.approx(1 / 3)
    assert majority_vote([None, None, "7"], [0, 0, 1]) == 1.0, "who says nothing does not vote"
    assert majority_vote([None], [0]) == 0.0
    with pytest.raises(ValueError, match="2 answers"):
        majority_vote(["7", "8"], [1])


def twin_majority(said: list[str | None], right: list[float], k: int) -> float:
    """Every subset, every way to break its tie."""
    out = []
    for chosen in combinations(range(len(said)), k):
        votes = [said[i] for i in chosen if said[i] is not None]
        most = max((votes.count(v) for v in votes), default=0)
        winners = sorted({v for v in votes if votes.count(v) == most})
        out.append(fmean([fmean(right[i] for i in chosen if said[i] == w) for w in winners]) if winners else 0.0)
    return fmean(out)


ANSWERS = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=7)


@given(ANSWERS, st.data())
def test_majority_at_k_is_the_mean_over_subsets(said: list[str | None], data: st.DataObject) -> None:
    right = [float(s == "1") for s in said]
    k = data.draw(st.integers(1, len(said)))
    assert majority_at_k(said, right, k) == pytest.approx(twin_majority(said, right, k))
    assert majority_at_k(said, right, 1) == pytest.approx(fmean(right))


def test_majority_of_many_samples_is_drawn() -> None:
    rng = random.Random(0)
    said = [rng.choice("112345") for _ in range(20)]
    right = [float(s == "1") for s in said]
    exact = majority_at_k(said, right, 5, draws=math.comb(20, 5))
    assert majority_at_k(said, right, 5, draws=2000) == pytest.approx(exact, abs=0.04)
    assert majority_at_k(said, right, 5, seed=1) == majority_at_k(said, right, 5, seed=1)
    with pytest.raises(ValueError, match="majority@3"):
        majority_at_k(["1", "2"], [1, 0], 3)


def test_samples_of_a_problem_stay_together() -> None:
    """Ten problems with 8 samples each that all agree hold as much as ten problems, not as 80."""
    shares = [1.0] * 5 + [0.0] * 5
    low, high = problem_interval(shares)
    pooled = problem_interval([s for s in shares for _ in range(8)])
    assert high - low > 2 * (pooled[1] - pooled[0])
    assert problem_interval([0.0] * 10) == (0.0, pytest.approx(wilson_interval(0, 10)[1]))
    half = problem_interval([0.5] * 10)  # alike, but not certain
    assert half[0] < 0.5 < half[1]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_pairs_of_single_answers_take_mcnemar(pairs: list[tuple[int, int]]) -> None:
    before, after = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    gain, ends, p = paired_problems(before, after)
    assert gain == pytest.approx(fmean(after) - fmean(before)) and p == mcnemar(before, after)
    assert ends[0] - 1e-9 <= gain <= ends[1] + 1e-9 or len(pairs) < 5


@given(st.lists(st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=9))
def test_sign_flips_are_counted_exactly(differences: list[float]) -> None:
    observed = abs(sum(differences))
    flips = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((-1, 1), repeat=len(differences))]
    assert sign_flip(differences) == pytest.approx(fmean(f >= observed - 1e-9 for f in flips))
    assert sign_flip([-d for d in differences]) == pytest.approx(sign_flip(differences))


def test_the_permutation_of_single_answers_is_mcnemar() -> None:
    """With differences of -1, 0 and 1 the sign-flip test is the exact binomial test."""
    before, after = [0] * 8 + [1] * 2 + [1] * 5, [1] * 8 + [0] * 2 + [1] * 5
    assert sign_flip([b - a for a, b in zip(before, after, strict=True)]) == pytest.approx(mcnemar(before, after))


def test_many_flips_are_drawn() -> None:
    rng = random.Random(1)
    clear = [0.3 + 0.1 * rng.random() for _ in range(40)]
    assert sign_flip(clear, draws=999) == pytest.approx(1 / 1000), "never 0: the observed draw counts too"
    chance = [rng.choice((-0.5, 0.5)) for _ in range(40)]
    exact = mcnemar([float(d < 0) for d in chance], [float(d > 0) for d in chance])
    assert sign_flip(chance, draws=20000) == pytest.approx(exact, abs=0.015)
    gain, ends, p = paired_problems([0.25] * 40, [0.25 + d for d in clear])
    assert 0.3 < ends[0] < gain < ends[1] < 0.4 and p < 0.01


def test_differences_that_are_all_alike_are_not_certain() -> None:
    """Two models that fail all of 30 problems may differ by up to what 0 of 30 leaves open; more problems leave less."""
    gain, (low, high), p = paired_problems([0.0] * 30, [0.0] * 30)
    assert (gain, p) == (0.0, 1.0) and high == pytest.approx(wilson_interval(0, 30)[1]) == -low
    assert paired_problems([0.5] * 300, [0.5] * 300)[1][1] < 0.02
    gain, (low, high), _ = paired_problems([0.0] * 5, [1.0] * 5)
    assert gain == 1.0 == high and 0 < low < wilson_interval(5, 5)[0]
    assert paired_problems([1.0] * 5, [0.0] * 5)[1] == pytest.approx((-high, -low))
