"""s1's metrics by hand (section 3.2)."""

from __future__ import annotations

from typing import Any

import pytest

from shoestring.scaling import control, metrics, performance, scaling


def test_control_counts_what_lies_in_its_window() -> None:
    """10 in [0, 10] and 11 in [11, 20] do, at the ends; 5 in [6, 9] and 21 in [0, 20] do not: 2 of 4."""
    assert control([(10, 0, 10), (11, 11, 20), (5, 6, 9), (21, 0, 20)]) == 0.5
    assert control([(3, 0, 4)]) == 1.0 and control([]) is None


def test_scaling_is_the_mean_slope_of_all_pairs() -> None:
    """(100, .2), (200, .4), (400, .5): slopes .2/100 = .002, .3/300 = .001, .1/200 = .0005; their mean is .0035/3."""
    points = [(100.0, 0.2), (200.0, 0.4), (400.0, 0.5)]
    assert scaling(points) == pytest.approx(0.0035 / 3)
    assert scaling(points[::-1]) == scaling(points), "the order of the points is nothing"
    assert scaling([(100, 0.5), (300, 0.1)]) == pytest.approx(-0.002)


def test_pairs_of_equal_tokens_have_no_slope() -> None:
    """Of three pairs the first has none: (.6 − .2)/100 and (.6 − .4)/100, mean .003."""
    assert scaling([(100, 0.2), (100, 0.4), (200, 0.6)]) == pytest.approx(0.003)
    assert scaling([(100, 0.2), (100, 0.4)]) is None and scaling([(1, 1.0)]) is None and scaling([]) is None


def test_performance_is_the_best() -> None:
    assert performance([(1, 0.2), (2, 0.7), (3, 0.5)]) == 0.7 and performance([]) is None


def point(budget: int, mean: float, accuracy: float, **rest: Any) -> dict[str, Any]:
    return {"budget": budget, "waits": 0, "mean_thinking_tokens": mean, "accuracy": accuracy} | rest


def test_of_the_points_of_a_file() -> None:
    """Means 30 ≤ 32 and 60 ≤ 64, but one answer of four thought 33 tokens: control 1 of the means, 3/4 of the answers."""
    means = [point(32, 30, 0.1), point(64, 60, 0.4)]
    assert metrics(means) == {"control": 1.0, "scaling": pytest.approx(0.01), "performance": 0.4}
    answers = [point(32, 30, 0.1, thinking_tokens=[27, 33]), point(64, 60, 0.4, thinking_tokens=[56, 64])]
    assert metrics(answers)["control"] == 0.75
    assert metrics([]) == {"control": None, "scaling": None, "performance": None}
