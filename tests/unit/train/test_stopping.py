"""When training stops paying: the bound against a bootstrap, the rule against histories that are known to pay or not."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from shoestring.train.stopping import Evaluation, judge, lower_bound


def bootstrap(before: Sequence[int], after: Sequence[int], draws: int = 4000) -> float:
    """The slow twin: the 20% quantile of resampled mean differences."""
    rng, n = random.Random(0), len(before)
    d = [a - b for b, a in zip(before, after, strict=True)]
    return sorted(sum(rng.choices(d, k=n)) / n for _ in range(draws))[int(0.2 * draws)]


@pytest.mark.parametrize(("gained", "lost", "n"), [(20, 5, 96), (10, 10, 96), (5, 20, 96), (30, 0, 96), (3, 1, 40)])
def test_the_bound_is_near_a_bootstrap(gained: int, lost: int, n: int) -> None:
    before = [0] * gained + [1] * lost + [0, 1] * ((n - gained - lost) // 2)
    after = [1] * gained + [0] * lost + before[gained + lost :]
    assert lower_bound(before, after) == pytest.approx(bootstrap(before, after), abs=0.015)


def test_the_bound_covers_as_often_as_it_says() -> None:
    """80% of the bounds lie under the true difference: +0.1 on pairs of which 30% differ."""
    rng, hits, n = random.Random(1), 0, 96
    for _ in range(800):
        pairs = rng.choices([(0, 1), (1, 0), (0, 0), (1, 1)], weights=[0.2, 0.1, 0.4, 0.3], k=n)
        hits += lower_bound([b for b, _ in pairs], [a for _, a in pairs]) <= 0.1
    assert 0.75 < hits / 800 < 0.86


def test_agreement_is_not_certainty() -> None:
    assert -0.03 < lower_bound([0, 1] * 48, [0, 1] * 48) < 0
    assert lower_bound([1], [0]) >= -1
    for a, b in (([], []), ([1], [1, 0])):
        with pytest.raises(ValueError, match="no pairs"):
            lower_bound(a, b)


def run(accuracies: Sequence[float], usd: float, n: int = 100) -> list[Evaluation]:
    return [Evaluation(10 * i, usd * i, tuple(int(k < a * n) for k in range(n))) for i, a in enumerate(accuracies)]


def test_goes_on_while_it_pays_and_stops_at_the_second_miss() -> None:
    history = run([0.2, 0.35, 0.5, 0.5, 0.51, 0.51], usd=0.02)
    said = [judge(history[: i + 1], worth=0.01) for i in range(len(history))]
    assert said[0] is None
    first, second, third, fourth, last = (v for v in said[1:] if v)
    assert first.pays and second.pays and (first.since, second.since) == (0, 10)
    assert second.gain == pytest.approx(15) and second.usd == pytest.approx(0.02) and 5 < second.low < 15
    assert not third.pays and not third.stop and third.since == 20
    assert fourth.stop and fourth.since == 20 and fourth.usd == pytest.approx(0.04) and last == fourth


def test_worth_decides() -> None:
    """The same gain pays for somebody to whom a point is worth ten times as much."""
    history = run([0.2, 0.3, 0.4, 0.5], usd=0.5)
    dear, cheap = judge(history, worth=0.2), judge(history, worth=0.02)
    assert dear and cheap and dear.pays and not dear.stop and cheap.stop
    free = judge(run([0.5, 0.5], usd=0.0), worth=1.0)
    assert free and not free.pays, "no gain is no gain, however little it cost"


def test_a_slow_gain_has_two_spans_to_show() -> None:
    verdict = judge(run([0.2, 0.22, 0.26], usd=0.01), worth=0.01)
    assert verdict and verdict.pays and not verdict.stop and verdict.since == 0
