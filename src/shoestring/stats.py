"""Intervals, paired tests and baselines. Standard library only; every random draw takes a seed.

Outcomes are numbers in [0, 1], one a problem (0 wrong, 1 right; a mean over samples is allowed where said so).
"Per family" arguments map a family's name to its list of outcomes; macro means the plain mean of the families' means.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import NormalDist, fmean, stdev

Interval = tuple[float, float]
Outcomes = Mapping[str, Sequence[float]]


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"{confidence=} must lie between 0 and 1")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson_interval(correct: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a share, `correct` of `n`, as (low, high) in [0, 1]. n = 0 gives (0, 1).

    Raises ValueError if correct is not between 0 and n.
    """
    if n < 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct=} of {n=} is not a share")
    if n == 0:
        return 0.0, 1.0
    z, p = _z(confidence), correct / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    return (0.0 if correct == 0 else max(0.0, centre - half)), (1.0 if correct == n else min(1.0, centre + half))


def normal_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Normal interval of a mean: mean ± z · s/√n with the sample deviation s. One value gives (value, value)."""
    if not values:
        raise ValueError("no values: there is no interval of a mean")
    mean = fmean(values)
    half = _z(confidence) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean - half, mean + half


def macro_average(outcomes: Outcomes) -> float:
    """The mean over families of each family's mean. Raises ValueError if there is no family or an empty one."""
    _check(outcomes)
    return fmean(fmean(values) for values in outcomes.values())


def _check(outcomes: Outcomes) -> None:
    if not outcomes:
        raise ValueError("no families: there is no macro average")
    empty = [name for name, values in outcomes.items() if not len(values)]
    if empty:
        raise ValueError(f"family {empty[0]!r} has no outcomes")


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile (0 to 1) of a sorted sequence, linear between neighbours."""
    if not ordered:
        raise ValueError("no values: there is no quantile")
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _resampled_means(rng: random.Random, values: Sequence[float], draws: int) -> list[float]:
    n = len(values)
    return [sum(rng.choices(values, k=n)) / n for _ in range(draws)]


def _bootstrap(outcomes: Outcomes, seed: int, draws: int, confidence: float) -> Interval:
    _check(outcomes)
    rng = random.Random(seed)
    columns = [_resampled_means(rng, list(outcomes[name]), draws) for name in sorted(outcomes)]
    macros = sorted(fmean(row) for row in zip(*columns, strict=True))
    tail = (1 - confidence) / 2
    return quantile(macros, tail), quantile(macros, 1 - tail)


def macro_interval(outcomes: Outcomes, seed: int = 0, draws: int = 2000, confidence: float = 0.95) -> Interval:
    """Percentile interval of the macro average, by bootstrap stratified by family (each family keeps its size).

    A family whose outcomes are all the same (all wrong, all right) looks certain to a bootstrap, however few they are.
    Its uncertainty is its Wilson interval instead, combined with the rest by squares (the method of variance estimates
    recovery, Zou and Donner 2008, section 2). Ends stay within [0, 1].
    """
    _z(confidence)
    low, high = _bootstrap(outcomes, seed, draws, confidence)
    middle = macro_average(outcomes)
    below, above = (middle - low) ** 2, (high - middle) ** 2
    constant = [(fmean(v), len(v)) for _, v in sorted(outcomes.items()) if min(v) == max(v)]
    if not constant:
        return low, high
    for share, n in constant:
        ends = wilson_interval(share * n, n, confidence)
        below += ((share - ends[0]) / len(outcomes)) ** 2
        above += ((ends[1] - share) / len(outcomes)) ** 2
    return max(0.0, middle - math.sqrt(below)), min(1.0, middle + math.sqrt(above))


def paired_differences(before: Outcomes, after: Outcomes) -> dict[str, list[float]]:
    """after - before, problem by problem. Raises ValueError unless families and lengths agree."""
    if set(before) != set(after):
        raise ValueError(f"families differ: {sorted(set(before) ^ set(after))}")
    for name in before:
        if len(before[name]) != len(after[name]):
            raise ValueError(f"family {name!r}: {len(before[name])} outcomes before, {len(after[name])} after")
    return {name: [b - a for a, b in zip(before[name], after[name], strict=True)] for name in before}


def paired_macro_interval(
    before: Outcomes, after: Outcomes, seed: int = 0, draws: int = 2000, confidence: float = 0.95
) -> tuple[float, Interval]:
    """(difference of the macro averages after - before, its percentile interval). Ends stay within [-1, 1].

    Stratified paired bootstrap: the same problems in the same order in both, resampled together inside each family.

    A family whose differences are all alike (two models that fail all of it, or answer it alike) looks certain to a
    bootstrap, however few they are. As in `macro_interval` its uncertainty comes from Wilson's intervals (Wilson 1927), here
    of the two shares that a paired difference is made of, problems gained and problems lost, and is combined with the rest
    by squares (Zou and Donner 2008, section 2): 0 gained and 0 lost of 30 leave about 0.11 open on either side.
    """
    _z(confidence)
    differences = paired_differences(before, after)
    gain = macro_average(differences)
    low, high = _bootstrap(differences, seed, draws, confidence)
    constant = [(values[0], len(values)) for _, values in sorted(differences.items()) if min(values) == max(values)]
    if not constant:
        return gain, (low, high)
    below, above = (gain - low) ** 2, (high - gain) ** 2
    for each, n in constant:
        ends = _alike(each, n, confidence)
        below += ((each - ends[0]) / len(differences)) ** 2
        above += ((ends[1] - each) / len(differences)) ** 2
    return gain, (max(-1.0, gain - math.sqrt(below)), min(1.0, gain + math.sqrt(above)))


def _alike(gain: float, n: int, confidence: float) -> Interval:
    """Interval of a mean difference where each of n problems differs by `gain` (Zou and Donner 2008, section 2)."""
    gained, lost = max(gain, 0.0), max(-gain, 0.0)
    (low_g, high_g), (low_l, high_l) = (wilson_interval(share * n, n, confidence) for share in (gained, lost))
    below, above = math.hypot(gained - low_g, high_l - lost), math.hypot(high_g - gained, lost - low_l)
    return max(-1.0, gain - below), min(1.0, gain + above)


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """Two-sided exact McNemar p-value of paired 0/1 outcomes; 1.0 where no pair differs.

    Raises ValueError for other lengths or for outcomes that are neither 0 nor 1.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} outcomes before, {len(after)} after")
    if any(v not in (0, 1) for v in (*before, *after)):
        raise ValueError("McNemar's test takes outcomes of 0 and 1")
    gained = sum(1 for a, b in zip(before, after, strict=True) if b > a)
    lost = sum(1 for a, b in zip(before, after, strict=True) if a > b)
    n = gained + lost
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def commonest_answer_baseline(answers: Sequence[str]) -> tuple[str, float]:
    """(the commonest answer, its share): the accuracy of always saying it. Ties go to the first in sorted order.

    Answers are compared as given: normalise them first. No answers give ("", 0.0).
    """
    if not answers:
        return "", 0.0
    answer, count = min(Counter(answers).items(), key=lambda item: (-item[1], item[0]))
    return answer, count / len(answers)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of pass@k from n samples of which `correct` are right: 1 - C(n-correct, k) / C(n, k).

    Raises ValueError unless 1 <= k <= n and 0 <= correct <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} of {correct} right of {n} is undefined")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def majority_vote(said: Sequence[str | None], right: Sequence[float]) -> float:
    """Chance that the commonest answer of these samples is right (self-consistency, Wang et al. 2023, section 2).

    said: each sample's answer, normalised, None where it stated none (such a sample does not vote); right: its verdict. Of a
    tie each of the tied answers is taken with equal chance. An answer is as right as the samples that gave it are on average.
    Where nobody voted the result is 0. Raises ValueError for unequal lengths.
    """
    if len(said) != len(right):
        raise ValueError(f"{len(said)} answers, {len(right)} verdicts")
    votes: dict[str, list[float]] = {}
    for answer, verdict in zip(said, right, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(verdict)
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    return fmean(fmean(v) for v in votes.values() if len(v) == most)


def majority_at_k(said: Sequence[str | None], right: Sequence[float], k: int, seed: int = 0, draws: int = 1000) -> float:
    """`majority_vote` of k of the samples, averaged over the ways to choose them: over all of them where there are at most
    `draws`, else over `draws` random ones. Raises ValueError unless 1 <= k <= the number of samples."""
    n = len(said)
    if not 1 <= k <= n:
        raise ValueError(f"majority@{k} of {n} samples is undefined")
    if math.comb(n, k) <= draws:
        chosen: Iterable[Sequence[int]] = combinations(range(n), k)
    else:
        rng = random.Random(seed)
        chosen = (rng.sample(range(n), k) for _ in range(draws))
    return fmean(majority_vote([said[i] for i in c], [right[i] for i in c]) for c in chosen)


def problem_interval(values: Sequence[float], seed: int = 0, draws: int = 2000, confidence: float = 0.95) -> Interval:
    """Percentile interval of a benchmark's mean by bootstrap over problems; values: one a problem, in [0, 1], the mean over
    its samples. Samples of one problem stay together, so more of them do not make the interval look surer than it is.

    Values that are all alike take Wilson's interval of so many problems (as `macro_interval` does).
    """
    return macro_interval({"": values}, seed, draws, confidence)


def paired_problems(
    before: Sequence[float], after: Sequence[float], seed: int = 0, draws: int = 5000, confidence: float = 0.95
) -> tuple[float, Interval, float]:
    """(mean difference after - before, its bootstrap interval over problems, two-sided p-value) on the same problems.

    The interval is that of `paired_macro_interval`, which has a width even where all differences are alike.
    Values of 0 and 1 give McNemar's exact test; means over several samples the sign-flip permutation test of the problems'
    differences, exact where there are at most 2^12 flips, else from `draws` random ones with one added to both counts
    (Phipson and Smyth 2010). Raises ValueError for unequal lengths and for no problems.
    """
    differences = paired_differences({"": before}, {"": after})[""]
    gain, ends = paired_macro_interval({"": before}, {"": after}, seed, min(draws, 2000), confidence)
    if all(v in (0, 1) for v in (*before, *after)):
        return gain, ends, mcnemar(before, after)
    return gain, ends, sign_flip(differences, seed, draws)


def sign_flip(differences: Sequence[float], seed: int = 0, draws: int = 5000) -> float:
    """Two-sided p-value that paired differences are as far from 0 as this by chance: how often their sum with random signs
    is at least as large. Differences of 0 say nothing and are left out."""
    moved = [abs(d) for d in differences if d]
    observed = abs(sum(differences)) * (1 - 1e-12)
    if not moved:
        return 1.0
    if len(moved) <= 12:
        sums = (sum(d if bits >> i & 1 else -d for i, d in enumerate(moved)) for bits in range(2 ** len(moved)))
        return sum(abs(s) >= observed for s in sums) / 2 ** len(moved)
    rng = random.Random(seed)
    hits = 0
    for _ in range(draws):
        bits = rng.getrandbits(len(moved))
        hits += abs(sum(d if bits >> i & 1 else -d for i, d in enumerate(moved))) >= observed
    return (hits + 1) / (draws + 1)
