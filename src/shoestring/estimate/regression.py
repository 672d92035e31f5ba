"""Small least squares without numpy: shares of a time that cannot be negative, and plain ridge. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]
ROUNDS = 5  # of re-weighting


def nonnegative(rows: Sequence[Vector], prior: Vector, strength: float = 0.03, slack: float = 0.04) -> list[float]:
    """Coefficients w ≥ 0 with rows · w ≈ 1, drawn towards `prior` where the rows say little.

    Each row holds the features over the observed value, so the errors are relative. A row that stays off by more than
    `slack` counts less (Huber's weights), because a table has rows that its own neighbours contradict.
    strength: what the prior weighs, in rows a coefficient. Coordinate descent on the normal equations.
    """
    n = len(prior)
    w = [float(p) for p in prior]
    weights = [1.0] * len(rows)
    for _ in range(ROUNDS):
        gram = [[0.0] * n for _ in range(n)]
        rhs = [strength / p for p in prior]
        for row, wt in zip(rows, weights, strict=True):
            for j, a in enumerate(row):
                if a:
                    rhs[j] += wt * a
                    line, scaled = gram[j], wt * a
                    for k in range(j + 1):
                        line[k] += scaled * row[k]
        for j in range(n):
            for k in range(j):
                gram[k][j] = gram[j][k]
            gram[j][j] += strength / prior[j] ** 2
        for _ in range(200):
            moved = 0.0
            for j in range(n):
                line = gram[j]
                step = (rhs[j] - sum(g * v for g, v in zip(line, w, strict=True))) / line[j]
                new = max(0.0, w[j] + step)
                moved = max(moved, abs(new - w[j]) / prior[j])
                w[j] = new
            if moved < 1e-7:
                break
        for i, row in enumerate(rows):
            made = sum(a * v for a, v in zip(row, w, strict=True))
            off = abs(math.log(made)) if made > 0 else 10.0
            weights[i] = 1.0 if off <= slack else slack / off
    return w


def ridge(rows: Sequence[Vector], targets: Vector, penalties: Vector) -> list[float]:
    """Coefficients that minimise Σ(row · w - target)² + Σ penalty · w², by Gaussian elimination with pivots."""
    n = len(penalties)
    table = []
    for j in range(n):
        right = sum(r[j] * t for r, t in zip(rows, targets, strict=True))
        table.append([sum(r[j] * r[k] for r in rows) for k in range(n)] + [right])
    for j, p in enumerate(penalties):
        table[j][j] += p
    for j in range(n):
        best = max(range(j, n), key=lambda i: abs(table[i][j]))
        table[j], table[best] = table[best], table[j]
        if not table[j][j]:
            raise ValueError("the rows do not determine every coefficient: give each a penalty")
        for i in range(j + 1, n):
            share = table[i][j] / table[j][j]
            for k in range(j, n + 1):
                table[i][k] -= share * table[j][k]
    w = [0.0] * n
    for j in reversed(range(n)):
        w[j] = (table[j][n] - sum(table[j][k] * w[k] for k in range(j + 1, n))) / table[j][j]
    return w


def quantile(values: Sequence[float], share: float) -> float:
    """The share-quantile of the values, interpolated between neighbours; ValueError if there are none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])
