"""Least squares without numpy, against cases that can be worked by hand and against a plain search."""

from __future__ import annotations

import random

import pytest

from shoestring.estimate.regression import nonnegative, quantile, ridge


def test_nonnegative_finds_the_parts_of_a_sum_and_shrugs_off_an_outlier() -> None:
    draw = random.Random(0)
    true = (1.5, 0.0, 4.0)
    rows = []
    for i in range(60):
        parts = [draw.uniform(0.1, 1) for _ in true]
        total = sum(t * p for t, p in zip(true, parts, strict=True)) * (2.0 if i == 7 else 1.0)
        rows.append([p / total for p in parts])
    found = nonnegative(rows, [1.0, 1.0, 1.0], strength=1e-4)
    assert found == pytest.approx(true, abs=0.05) and min(found) >= 0


def test_nonnegative_keeps_the_prior_where_nothing_is_seen() -> None:
    assert nonnegative([[0.5, 0.0]] * 5, [2.1, 7.0])[1] == pytest.approx(7.0)


def test_ridge_solves_and_shrinks() -> None:
    rows, targets = [[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]], [1.0, 3.0, 5.0]
    assert ridge(rows, targets, [1e-9, 1e-9]) == pytest.approx([1.0, 2.0], abs=1e-6)
    small = ridge(rows, targets, [1e-9, 10.0])

    def loss(w: list[float]) -> float:
        return sum((w[0] * r[0] + w[1] * r[1] - t) ** 2 for r, t in zip(rows, targets, strict=True)) + 10 * w[1] ** 2

    best = min(loss([a / 100, b / 100]) for a in range(0, 400, 2) for b in range(0, 200, 2))  # the slow twin
    assert loss(small) <= best + 1e-9 and 0 < small[1] < 2
    with pytest.raises(ValueError, match="penalty"):
        ridge([[1.0, 1.0]], [1.0], [0.0, 0.0])


def test_quantile() -> None:
    assert quantile([3, 1, 2], 0.5) == 2 and quantile([0, 10], 0.9) == 9 and quantile([5], 0.1) == 5
    with pytest.raises(ValueError):
        quantile([], 0.5)
